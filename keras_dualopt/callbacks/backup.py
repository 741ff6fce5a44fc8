"""`AtomicBackup`: a run that is killed at any moment goes on where it was."""

import os
from pathlib import Path
from typing import Any

import keras

_ENDING = ".weights.h5"
# In the same file as the weights: two files cannot be replaced at once.
_EPOCH, _ITERATIONS = "dualopt_epoch", "dualopt_iterations"


class AtomicBackup(keras.callbacks.Callback):
    """Writes the state of training after an epoch, whole or not at all.

    Changes no weight, except at the start of `fit`: where a run that was
    killed left its file, weights, optimizer (θ₀, averages, counters, η) and
    epoch are read from it, and `fit` goes on with the epoch that follows. Start
    the same script again after a crash; that is all. Works with any optimizer.

    It takes the place of `keras.callbacks.BackupAndRestore`, which writes two
    files over the old ones, with `double_checkpoint=True` as well: a kill
    between the two trains an epoch twice without a word, one inside of the
    first may leave weights without the optimizer's state. Here one file is
    written beside the old one, forced to the disk, and renamed over it.

    A run goes on bit for bit like one that was never killed if the order of
    the data does not change. Keras saves neither the order of a shuffle, nor
    the seeds of Dropout, nor what other callbacks remember.

    Args:
        path: The file, `*.weights.h5`, on a local disk; its folder is made.
        every: k ≥ 1: write after every k-th epoch. Default 1.
        keep: Whether the file stays when `fit` ends; a script that is started
            again has nothing left to train then. Default False: it is removed.

    Memory: nothing; on disk, twice the file while it is written.

    Raises:
        ValueError: If the path has another ending or `every` is below 1; at
            the start of `fit`, if the file there is no backup, is damaged, or
            is that of another model.

    Example:
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(keras_dualopt.DualOpt(1e-3, mode="scratch"), "mse")
    >>> backup = keras_dualopt.callbacks.AtomicBackup("run.weights.h5")
    >>> data = np.ones((8, 2)), np.ones((8, 1))
    >>> history = model.fit(*data, epochs=3, verbose=0, callbacks=[backup])
    """

    def __init__(
        self, path: str | os.PathLike[str], every: int = 1, keep: bool = False
    ) -> None:
        super().__init__()
        if not os.fspath(path).endswith(_ENDING):
            raise ValueError(
                f"Expected: a path that ends in '{_ENDING}'. Received: "
                f"{os.fspath(path)!r}."
            )
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(
                "Expected: `every` to be a whole number of epochs, at least 1. "
                f"Received: {every!r}."
            )
        self._path = Path(path)
        name = self._path.name.removesuffix(_ENDING)
        self._part = self._path.with_name(f"{name}.part{_ENDING}")
        self._every = every
        self._keep = keep

    def on_train_begin(self, logs: Any = None) -> None:
        """Read what a run that was killed has left."""
        if not self._path.exists():
            return
        epoch, iterations = self._read_progress()
        optimizer = self.model.optimizer
        if not self.model.built:
            raise ValueError(
                "Expected: a built model, to read the backup into. Received: "
                f"{self.model.name!r}, which is not. Call it on a batch, or "
                "`model.build(...)`, before `fit`."
            )
        if not optimizer.built:
            # LossScaleOptimizer's own state is read only into a built one.
            optimizer.build(self.model.trainable_variables)
        self.model.load_weights(self._path)
        if int(optimizer.iterations) != iterations:
            # To load_weights a file whose optimizer is lost is one without.
            raise ValueError(
                f"Expected: an optimizer at step {iterations} in "
                f"{os.fspath(self._path)!r}. Received: a file without it. The "
                "file is damaged; use another copy of it."
            )
        # Private in Keras 3.13 to 3.15; its BackupAndRestore sets it, too.
        self.model._initial_epoch = epoch

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Let a later `fit` of this process begin where it says."""
        self.model._initial_epoch = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write the file after every k-th epoch."""
        if (epoch + 1) % self._every == 0:
            self._write(epoch + 1)

    def on_train_end(self, logs: Any = None) -> None:
        """Remove the file, unless it is to be kept."""
        self.model._initial_epoch = None
        self._part.unlink(missing_ok=True)
        if not self._keep:
            self._path.unlink(missing_ok=True)

    def _read_progress(self) -> tuple[int, int]:
        import h5py

        with h5py.File(self._path, "r") as file:
            progress = [file.attrs.get(n) for n in (_EPOCH, _ITERATIONS)]
        if None in progress:
            raise ValueError(
                "Expected: a file that AtomicBackup wrote. Received: "
                f"{os.fspath(self._path)!r}, a weights file without the number "
                "of its epoch. Choose another path for the backup; this file "
                "is as it was."
            )
        return int(progress[0]), int(progress[1])

    def _write(self, epoch: int) -> None:
        import h5py

        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.model.save_weights(self._part, overwrite=True)
        with h5py.File(self._part, "r+") as file:
            file.attrs[_EPOCH] = epoch
            file.attrs[_ITERATIONS] = int(self.model.optimizer.iterations)
        with open(self._part, "rb+") as written:
            # The name must not reach the disk before what it stands for.
            os.fsync(written.fileno())
        os.replace(self._part, self._path)
        _sync_folder(self._path.parent)


def _sync_folder(folder: Path) -> None:
    """Force the new name to the disk; Windows has no such call."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
