"""`AtomicBackup`: a run that is killed at any moment goes on where it was."""

import collections
import json
import os
import warnings
from pathlib import Path

import keras
import numpy as np

from keras_dualopt.backend import engine
from keras_dualopt.caller import stacklevel
from keras_dualopt.depth import LayerDepth
from keras_dualopt.depth.keras_hooks import with_lora
from keras_dualopt.files import restore_optimizer
from keras_dualopt.optimizer import DualOpt
from keras_dualopt.settings import check_whole
from keras_dualopt.sources import numpy_value
from keras_dualopt.wrapping import begin_at, unwrapped

_ENDING = ".weights.h5"
# In the same file as the weights: two files cannot be replaced at once.
_EPOCH, _ITERATIONS = "dualopt_epoch", "dualopt_iterations"
_OPTIMIZER, _EARLIER_FITS = "dualopt_optimizer", "dualopt_earlier_fits"
# The learning rate with which the first of these runs began.
_RATE = "dualopt_learning_rate"
# The arguments that say how strongly which weights are pulled.
_STRENGTHS = "dualopt_strengths"
# What layers with LoRA hold, which Keras merges into one kernel.
_LORA = "dualopt_lora"
# How many fits of this process have ended and removed their file, by path: a
# script that is started again passes its fits in the same order.
_ended: collections.Counter[Path] = collections.Counter()


class AtomicBackup(keras.callbacks.Callback):
    """Writes the state of training after an epoch, whole or not at all.

    Changes no weight, except at the start of `fit`: where a run that was
    killed left its file, weights, optimizer (θ₀, averages, counters, η) and
    epoch are read from it, and `fit` goes on with the epoch that follows. Start
    the same script again after a crash; that is all. Works with any optimizer.
    η is state: the file's learning rate replaces the one in the script, and a
    warning says so where the script's has changed since. DualOpt's `reach`,
    `rollback`, `power` and their like are none: the script's are used, and a
    warning names those that have changed.

    It takes the place of `keras.callbacks.BackupAndRestore`, which writes two
    files over the old ones, with `double_checkpoint=True` as well: a kill
    between the two trains an epoch twice without a word, one inside of the
    first may leave weights without the optimizer's state. Here one file is
    written beside the old one, forced to the disk, and renamed over it.

    List it last: what a callback after it changes at the end of an epoch, as
    the learning rate, is not in the file. A run then goes on bit for bit like
    one that was never killed if the order of the data does not change. Keras
    saves neither the order of a shuffle, nor the seeds of Dropout, nor what
    other callbacks remember: a run that was stopped early trains on.

    Layers with LoRA are in the file twice: merged, as Keras saves them, and as
    they are, so that a run goes on from its own factors.

    One path for each `fit`; in a script with several, each with `keep=True`,
    so that those that have ended are not trained again. One process for each
    path: in a distributed run let one process write and all read, or give each
    its own path.

    Args:
        path: The file, `*.weights.h5`, on a local disk; its folder is made.
        every: k ≥ 1: write after every k-th epoch. Default 1.
        keep: Whether the file stays when `fit` ends, with the last epoch in
            it; a script that is started again has nothing left to train then.
            Default False: it is removed.

    Memory: nothing in training; while it is read, the optimizer's state once
    on the host; on disk, twice the file while it is written.

    Raises:
        ValueError: If the path has another ending or `every` is below 1; at
            the start of `fit`, if the file there is no backup, is damaged, or
            is that of another model, another optimizer, or a later `fit` of
            the script.

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
                f"`path` must end in '{_ENDING}'. Received: "
                f"{os.fspath(path)!r}."
            )
        check_whole("every", every, " of epochs")
        self._path = Path(path)
        name = self._path.name.removesuffix(_ENDING)
        self._part = self._path.with_name(f"{name}.part{_ENDING}")
        self._every = every
        self._keep = keep

    def on_train_begin(self, logs: object = None) -> None:
        """Read what a run that was killed has left."""
        self._trained = self._written = 0
        # A start that failed after this callback has left it.
        begin_at(self.model, None)
        self._rate = _rate(self.model.optimizer)
        if not self._path.exists():
            return
        try:
            begin_at(self.model, self._read())
        except OSError as error:
            if error.errno is not None:  # The system's: no right to read, …
                raise
            raise ValueError(
                "`path` must be an intact file of AtomicBackup. Received: "
                f"{os.fspath(self._path)!r}, which HDF5 cannot read. The file "
                "is damaged; use another copy of it, or remove it to begin "
                "anew."
            ) from error

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        """Let a later `fit` of this process begin where it says."""
        begin_at(self.model, None)

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        """Write the file after every k-th epoch."""
        self._trained = epoch + 1
        if (epoch + 1) % self._every == 0:
            self._write(epoch + 1)

    def on_train_end(self, logs: object = None) -> None:
        """Remove the file, or keep it with the last epoch in it."""
        begin_at(self.model, None)
        if self._keep and self._written < self._trained:
            self._write(self._trained)
        self._part.unlink(missing_ok=True)
        if not self._keep:
            self._path.unlink(missing_ok=True)
            _ended[self._path.resolve()] += 1

    def _read(self) -> int:
        """Put what the file holds into the model; return its epoch."""
        import h5py

        path, optimizer = os.fspath(self._path), self.model.optimizer
        with h5py.File(path, "r") as file:
            found = dict(file.attrs)
            has_optimizer = "optimizer" in file
            strengths = json.loads(
                file[_STRENGTHS][()] if _STRENGTHS in file else "{}"
            )
            count = len(file.get(_LORA, ()))
            lora = [bytes(file[f"{_LORA}/{n}"][()]) for n in range(count)]
        if not {_EPOCH, _ITERATIONS, _OPTIMIZER, _EARLIER_FITS} <= {*found}:
            raise ValueError(
                "`path` must be a file that AtomicBackup wrote. Received: "
                f"{path!r}, a weights file without the number of its epoch. "
                "Choose another path for the backup; this file is as it was."
            )
        epoch, name = int(found[_EPOCH]), _name(optimizer)
        if found[_OPTIMIZER] != name or not has_optimizer:
            raise ValueError(
                f"{path!r} must hold the state of {name}. Received: a file "
                f"written with {found[_OPTIMIZER]}"
                + ("" if has_optimizer else ", without its state")
                + ". The file is damaged, or was written with another "
                "optimizer: compile with that one, or choose another path."
            )
        ended, earlier = _ended[self._path.resolve()], found[_EARLIER_FITS]
        if earlier != ended:
            raise ValueError(
                f"{path!r} must be the backup of this process's `fit` number "
                f"{ended + 1} with this path. Received: that of number "
                f"{earlier + 1}. Give each `fit` a path of its own, with "
                "`keep=True`; to use this file, `model.load_weights(...)` and "
                f"`fit(..., initial_epoch={epoch})`."
            )
        if not self.model.built:
            raise ValueError(
                "The model must be built, to read the backup into. Received: "
                f"{self.model.name!r}, which is not. Call it on a batch, or "
                "`model.build(...)`, before `fit`."
            )
        if not optimizer.built:
            # LossScaleOptimizer's own state is read only into a built one.
            optimizer.build(self.model.trainable_variables)
        self.model.load_weights(path)
        if lora:  # Earlier versions have not written it.
            for weight, data in zip(_in_lora(self.model), lora, strict=True):
                shape, kind = weight.shape, numpy_value(weight).dtype
                value = np.frombuffer(data, kind).reshape(shape)
                engine.copy_value(weight, value)
            if isinstance(unwrapped(optimizer), DualOpt):
                # Again, for it has seen the factors that Keras loads.
                restore_optimizer(self.model, path)
        if _iterations(optimizer) != found[_ITERATIONS]:
            # Keras' optimizers pass over a state of another length.
            raise ValueError(
                f"{path!r} must hold the optimizer at step "
                f"{found[_ITERATIONS]}. Received: a file without one for "
                f"{name}. The file is damaged, or was written with other "
                "arguments of the optimizer."
            )
        changed = [
            f"{name}={now} (it was {strengths[name]})"
            for name, now in _strengths(optimizer).items()
            if strengths.get(name, now) != now
        ]
        if changed:
            warnings.warn(
                f"The run in {path!r} goes on with other strengths, those of "
                f"this script: {', '.join(changed)}. If that is not meant, "
                "change them back; to begin anew, choose another path.",
                stacklevel=stacklevel(),
            )
        given, first = self._rate, found.get(_RATE)
        if first is not None and given is not None:
            self._rate = float(first)
            if given != first:
                warnings.warn(
                    f"The backup {path!r} goes on at its own learning rate, "
                    f"{_rate(optimizer):.6g}; the {given:.6g} of this script "
                    f"is not used (the run began at {first:.6g}). To change "
                    "the rate of a run, set `optimizer.learning_rate` in a "
                    "callback listed after AtomicBackup; to begin anew, choose "
                    "another path.",
                    stacklevel=stacklevel(),
                )
        return epoch

    def _write(self, epoch: int) -> None:
        import h5py

        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.model.save_weights(self._part, overwrite=True)
        with h5py.File(self._part, "r+") as file:
            file.attrs[_EPOCH] = epoch
            file.attrs[_ITERATIONS] = _iterations(self.model.optimizer)
            file.attrs[_OPTIMIZER] = _name(self.model.optimizer)
            file.attrs[_EARLIER_FITS] = _ended[self._path.resolve()]
            if self._rate is not None:
                file.attrs[_RATE] = self._rate
            file[_STRENGTHS] = json.dumps(_strengths(self.model.optimizer))
            for number, weight in enumerate(_in_lora(self.model)):
                # As bytes: HDF5 has no bfloat16.
                data = np.frombuffer(numpy_value(weight).tobytes(), "uint8")
                file[f"{_LORA}/{number}"] = data
        with open(self._part, "rb+") as written:
            # The name must not reach the disk before what it stands for.
            os.fsync(written.fileno())
        os.replace(self._part, self._path)
        if os.name == "posix":  # Windows cannot force a name to the disk.
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        self._written = epoch


def _strengths(optimizer: keras.optimizers.Optimizer) -> dict[str, str]:
    """Return what is no state, and decides how a DualOpt pulls."""
    inner = unwrapped(optimizer)
    if not isinstance(inner, DualOpt):
        return {}
    rate = inner.reference_learning_rate
    asked = {**vars(inner.settings), "reference_learning_rate": rate}
    return {
        name: repr(value)
        for name, value in asked.items()
        if not isinstance(value, LayerDepth)
    }


def _in_lora(model: keras.Model) -> list[keras.Variable]:
    """Return what does not come back from Keras' files as it was."""
    return [weight for layer in with_lora(model) for weight in layer.weights]


def _iterations(optimizer: keras.optimizers.Optimizer) -> int:
    # `int` refuses a variable that MirroredStrategy has on every device.
    return int(keras.ops.convert_to_numpy(optimizer.iterations))


def _rate(optimizer: keras.optimizers.Optimizer) -> float | None:
    """Return a learning rate that is a number; `None`: a schedule."""
    rate = getattr(optimizer, "learning_rate", None)
    if not isinstance(rate, keras.Variable):
        return None
    return float(keras.ops.convert_to_numpy(rate))


def _name(optimizer: keras.optimizers.Optimizer) -> str:
    name = type(optimizer).__name__
    inner = getattr(optimizer, "inner_optimizer", None)
    return name if inner is None else f"{name}({_name(inner)})"
