"""What `AtomicBackup` leaves, reads, keeps and refuses.

That it outlives a kill at any moment is shown by `conformance/test_crash.py`.
"""

import h5py
import keras
import networks
import pytest

from keras_dualopt import DualOpt
from keras_dualopt.callbacks import AtomicBackup

EPOCHS = 3


class Killed(BaseException):
    pass


class KillAt(keras.callbacks.Callback):
    """Ends `fit` in the middle of an epoch; notes the epochs that began."""

    def __init__(self, epoch=None):
        super().__init__()
        self.epoch = epoch
        self.begun = []

    def on_epoch_begin(self, epoch, logs=None):
        self.begun.append(epoch)

    def on_train_batch_begin(self, batch, logs=None):
        if batch and self.begun[-1] == self.epoch:
            raise Killed


def compiled(seed=3):
    return networks.compiled(
        DualOpt(networks.RATE, **networks.FINETUNE), networks.weights(seed)
    )


def epochs(model, callbacks=(), first=0):
    x, y = networks.data(2)
    model.fit(
        x,
        y,
        batch_size=networks.BATCH,
        epochs=EPOCHS,
        initial_epoch=first,
        shuffle=False,
        verbose=0,
        callbacks=[*callbacks],
    )


def everything(model):
    return networks.arrays([*model.variables, *model.optimizer.variables])


@pytest.mark.parametrize(("every", "begun"), [(1, [2]), (2, [2]), (3, [0])])
def test_a_killed_run_goes_on_after_the_last_epoch_written(
    every, begun, tmp_path
):
    path = tmp_path / "made" / "run.weights.h5"
    with pytest.raises(Killed):
        epochs(compiled(), [AtomicBackup(path, every), KillAt(2)])
    assert path.exists() == (every < 3)
    rest, model = KillAt(), compiled(seed=99 if every < 3 else 3)
    epochs(model, [AtomicBackup(path, every), rest])
    assert rest.begun == [*range(begun[0], EPOCHS)]
    never = compiled()
    epochs(never)
    networks.assert_same(everything(model), everything(never))
    networks.assert_anchored_at(model.optimizer, networks.weights())


def test_the_file_goes_with_the_run_unless_it_is_kept(tmp_path):
    path = tmp_path / "run.weights.h5"
    model, seen = compiled(), KillAt()
    epochs(model, [AtomicBackup(path)])
    assert not [*tmp_path.iterdir()]
    epochs(model, [AtomicBackup(path, keep=True), seen])
    assert [*tmp_path.iterdir()] == [path]
    assert seen.begun == [0, 1, 2]
    # Nothing is left to do for this path, and everything for another `fit`.
    after = everything(model)
    epochs(model, [AtomicBackup(path, keep=True), seen])
    networks.assert_same(everything(model), after)
    assert seen.begun == [0, 1, 2]
    epochs(model, [seen], first=1)
    assert seen.begun == [0, 1, 2, 1, 2]


def test_a_file_of_another_kind_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "pretrained.weights.h5"
    compiled().save_weights(path)
    bytes_before = path.read_bytes()
    model = compiled(seed=99)
    before = networks.arrays(model.variables)
    with pytest.raises(ValueError, match=r"Expected: a file that Atomic.*path"):
        epochs(model, [AtomicBackup(path)])
    assert path.read_bytes() == bytes_before
    networks.assert_same(networks.arrays(model.variables), before)


def test_a_file_that_lost_its_optimizer_is_refused(tmp_path):
    """For `load_weights` it is a file of weights without one."""
    path = tmp_path / "run.weights.h5"
    with pytest.raises(Killed):
        epochs(compiled(), [AtomicBackup(path), KillAt(2)])
    with h5py.File(path, "r+") as file:
        del file["optimizer"]
    with pytest.raises(ValueError, match=r"Expected: an optimizer at step 4 "):
        epochs(compiled(seed=99), [AtomicBackup(path)])
    assert path.exists()


def test_a_model_that_is_not_built_is_refused(tmp_path):
    path = tmp_path / "run.weights.h5"
    epochs(compiled(), [AtomicBackup(path, keep=True)])
    model = keras.Sequential([keras.layers.Dense(2)])
    model.compile(DualOpt(mode="scratch"), "mse")
    backup = AtomicBackup(path)
    backup.set_model(model)
    with pytest.raises(ValueError, match=r"Expected: a built model"):
        backup.on_train_begin()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run.h5",), r"ends in '\.weights\.h5'\. Received: 'run\.h5'"),
        (("run.weights.h5", 0), r"at least 1\. Received: 0"),
        (("run.weights.h5", True), r"Received: True"),
        (("run.weights.h5", 1.5), r"Received: 1\.5"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, words):
    with pytest.raises(ValueError, match=f"Expected: .*{words}"):
        AtomicBackup(*arguments)
