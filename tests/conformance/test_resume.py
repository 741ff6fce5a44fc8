"""A run that was stopped equals one that never was, to the last bit."""

import keras
import networks
import numpy as np
import processes
import pytest

from conformance import resume_worker
from conformance.resume_worker import CASES, ROWS, STEPS, WAYS


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the states of uninterrupted runs, and of resumed ones."""
    folder = tmp_path_factory.mktemp("resume")
    uninterrupted = {
        case: resume_worker.write(case, folder / str(number))
        for number, case in enumerate(CASES)
    }
    processes.run("conformance/resume_worker.py", folder)
    with np.load(folder / "resumed.npz") as resumed:
        return uninterrupted, dict(resumed)


@pytest.mark.parametrize(("case", "way"), ROWS)
def test_resumed_in_a_new_process_equals_uninterrupted(case, way, runs):
    uninterrupted, resumed = runs
    wanted = uninterrupted[case]
    for step in WAYS[way]:
        networks.assert_same(
            [resumed[f"{case}.{way}.{step}.{i}"] for i in range(len(wanted))],
            wanted,
        )


class Stop(Exception):
    """Ends `fit` like a machine that goes away."""


class StopAt(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise Stop


EPOCHS = 4


def epochs(model, callbacks=(), first=0):
    networks.epochs(model, EPOCHS, callbacks, first, batches=2)


@pytest.fixture(scope="module")
def one_run():
    model = resume_worker.compiled("lowered learning rate")
    epochs(model)
    return resume_worker.state(model)


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("double", [False, True])
def test_backup_and_restore_goes_on_where_it_stopped(
    stop, double, one_run, tmp_path
):
    def backup():
        return keras.callbacks.BackupAndRestore(
            str(tmp_path), double_checkpoint=double
        )

    model = resume_worker.compiled("lowered learning rate")
    with pytest.raises(Stop):
        epochs(model, [backup(), StopAt(stop)])
    model = resume_worker.compiled("lowered learning rate", seed=6)
    epochs(model, [backup()])
    networks.assert_same(resume_worker.state(model), one_run)


@pytest.mark.parametrize("weights_only", [True, False])
def test_model_checkpoint_goes_on_where_it_stopped(
    weights_only, one_run, tmp_path
):
    ending = "weights.h5" if weights_only else "keras"
    checkpoint = keras.callbacks.ModelCheckpoint(
        str(tmp_path / ("{epoch}." + ending)), save_weights_only=weights_only
    )
    model = resume_worker.compiled("lowered learning rate")
    with pytest.raises(Stop):
        epochs(model, [checkpoint, StopAt(2)])
    path = tmp_path / f"2.{ending}"
    if weights_only:
        model = resume_worker.compiled("lowered learning rate", seed=6)
        model.load_weights(path)
    else:
        model = keras.saving.load_model(path)
    epochs(model, first=2)
    networks.assert_same(resume_worker.state(model), one_run)


def test_reference_learning_rate_is_no_float32_number(tmp_path):
    """0.01 read back from float32 is another number; η must not be."""
    model = networks.compiled(resume_worker.DualOpt(0.01))
    networks.fit(model, 1)
    model.optimizer.learning_rate = 0.001
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.reference_learning_rate == 0.01
    assert float(loaded.optimizer.learning_rate) == np.float32(0.001)


def test_pending_state_is_written_again(tmp_path):
    """A file read and saved before `build` keeps the state it held."""
    model = resume_worker.compiled("wrapped Nadam, schedule")
    networks.fit(model, 3)
    model.save_weights(tmp_path / "first.weights.h5")
    waiting = resume_worker.compiled("wrapped Nadam, schedule", seed=6)
    waiting.load_weights(tmp_path / "first.weights.h5")
    assert not waiting.optimizer.built
    waiting.save_weights(tmp_path / "second.weights.h5")
    last = resume_worker.compiled("wrapped Nadam, schedule", seed=7)
    last.load_weights(tmp_path / "second.weights.h5")
    for resumed in (model, last):
        networks.fit(resumed, STEPS - 3, start=3)
    networks.assert_same(resume_worker.state(last), resume_worker.state(model))
