"""What `AtomicBackup` leaves, reads, keeps and refuses.

That it outlives a kill at any moment is shown by `conformance/test_crash.py`.
"""

import collections
import os
import shutil
import warnings

import h5py
import keras
import networks
import numpy as np
import pytest

from keras_dualopt import DualOpt
from keras_dualopt.callbacks import AtomicBackup, backup

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
    return networks.compiled(start=networks.weights(seed))


def epochs(model, callbacks=(), first=0, count=EPOCHS):
    networks.epochs(model, count, callbacks, first, batches=2)


@pytest.fixture(scope="module")
def never_killed():
    """The state of a run that was not killed."""
    model = compiled()
    epochs(model)
    return networks.state(model)


@pytest.mark.parametrize(("every", "begun"), [(1, [2]), (2, [2]), (3, [0])])
def test_a_killed_run_goes_on_after_the_last_epoch_written(
    every, begun, never_killed, tmp_path
):
    path = tmp_path / "made" / "run.weights.h5"
    with pytest.raises(Killed):
        epochs(compiled(), [AtomicBackup(path, every), KillAt(2)])
    assert path.exists() == (every < 3)
    rest, model = KillAt(), compiled(99 if every < 3 else 3)
    epochs(model, [AtomicBackup(path, every), rest])
    assert rest.begun == [*range(begun[0], EPOCHS)]
    networks.assert_same(networks.state(model), never_killed)
    networks.assert_anchored_at(model.optimizer, networks.weights())


def with_lora():
    """Return a model that has LoRA in every kind of layer, one over int8."""
    keras.utils.set_random_seed(7)
    layers = [
        keras.layers.Embedding(9, 4),
        keras.layers.EinsumDense("abc,cd->abd", output_shape=(3, 4)),
        keras.layers.Conv1D(4, 2),
        keras.layers.Flatten(),
        keras.layers.Dense(4),
    ]
    model = keras.Sequential(
        [keras.Input((3,), dtype="int32"), *layers, keras.layers.Dense(2)]
    )
    layers[4].quantize("int8")
    for layer in layers:
        if layer.weights:
            layer.enable_lora(2)
    networks.compile(model, networks.dual_opt())
    return model


def lora_epochs(model, callbacks=(), count=EPOCHS):
    random = np.random.default_rng(5)
    x, y = random.integers(0, 9, (8, 3)), random.normal(size=(8, 2))
    model.fit(
        x,
        y,
        batch_size=4,
        shuffle=False,
        epochs=count,
        verbose=0,
        callbacks=[*callbacks],
    )


def test_a_killed_run_with_lora_goes_on_with_its_own_factors(tmp_path):
    path = tmp_path / "run.weights.h5"
    never = with_lora()
    lora_epochs(never)
    with pytest.raises(Killed):
        lora_epochs(with_lora(), [AtomicBackup(path), KillAt(2)])
    model = with_lora()
    for weight in model.weights:  # What is in the file, and nothing of here.
        weight.assign(keras.ops.zeros(weight.shape, weight.dtype))
    # It is a weights file for anyone else.
    model.load_weights(path)
    lora_epochs(model, [AtomicBackup(path)])
    networks.assert_same(networks.state(model), networks.state(never))


def test_the_file_goes_with_the_run_unless_it_is_kept(tmp_path):
    path = tmp_path / "run.weights.h5"
    model, seen = compiled(), KillAt()
    epochs(model, [AtomicBackup(path)])
    assert not [*tmp_path.iterdir()]
    epochs(model, [AtomicBackup(path, keep=True), seen])
    assert [*tmp_path.iterdir()] == [path]
    assert seen.begun == [0, 1, 2]
    # Nothing is left to do for this path, and everything for another `fit`.
    after = networks.state(model)
    epochs(model, [AtomicBackup(path, keep=True), seen])
    networks.assert_same(networks.state(model), after)
    assert seen.begun == [0, 1, 2]
    epochs(model, [seen], first=1)
    assert seen.begun == [0, 1, 2, 1, 2]


def test_a_file_of_another_kind_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "pretrained.weights.h5"
    compiled().save_weights(path)
    bytes_before = path.read_bytes()
    model = compiled(99)
    before = networks.arrays(model.variables)
    with pytest.raises(ValueError, match=r"must be a file that Atomic.*path"):
        epochs(model, [AtomicBackup(path)])
    assert path.read_bytes() == bytes_before
    networks.assert_same(networks.arrays(model.variables), before)


@pytest.mark.skipif(os.name != "posix", reason="folders are not synced")
def test_a_file_is_on_the_disk_before_its_name_and_its_name_after(
    tmp_path, monkeypatch
):
    """What a power cut leaves; a killed process does not show it."""
    done, sync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        done.append(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def replaced(*paths):
        done.append("renamed")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    path = tmp_path / "run.weights.h5"
    epochs(compiled(), [AtomicBackup(path, keep=True)], count=1)
    assert done == [path.stat().st_ino, "renamed", tmp_path.stat().st_ino]


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    path = tmp_path_factory.mktemp("killed") / "run.weights.h5"
    with pytest.raises(Killed):
        epochs(compiled(), [AtomicBackup(path), KillAt(2)])
    return path


@pytest.fixture
def killed(left, tmp_path):
    """The file of a run that was killed in its last epoch."""
    return shutil.copy(left, tmp_path / left.name)


def refused(model, path, words):
    """Assert that the start is refused and changes neither file nor weight."""
    data, before = path.read_bytes(), networks.arrays(model.variables)
    with pytest.raises(ValueError, match=words):
        epochs(model, [AtomicBackup(path)])
    assert path.read_bytes() == data
    networks.assert_same(networks.arrays(model.variables), before)


def test_a_file_that_lost_its_optimizer_is_refused(killed):
    """For `load_weights` it is a file of weights without one."""
    with h5py.File(killed, "r+") as file:
        del file["optimizer"]
    refused(
        compiled(99), killed, r"with DualOpt, without its state\. .*damaged"
    )


def test_a_file_of_another_optimizer_is_refused(killed):
    words = r"hold the state of SGD\. .* with DualOpt\. .*another optimizer"
    refused(networks.compiled(keras.optimizers.SGD()), killed, words)
    wrapped = keras.optimizers.LossScaleOptimizer(DualOpt(mode="scratch"))
    refused(
        networks.compiled(wrapped),
        killed,
        r"of LossScaleOptimizer\(DualOpt\)\.",
    )


@pytest.mark.filterwarnings("ignore:Skipping variable loading")
def test_a_state_that_the_optimizer_passes_over_is_refused(tmp_path):
    path = tmp_path / "run.weights.h5"
    written = networks.compiled(keras.optimizers.SGD(momentum=0.9))
    epochs(written, [AtomicBackup(path, keep=True)])
    with pytest.raises(
        ValueError, match=r"must hold the optimizer at step 6\."
    ):
        epochs(networks.compiled(keras.optimizers.SGD()), [AtomicBackup(path)])


@pytest.mark.parametrize("end", [0, 100, 0.5, -8])
def test_a_file_that_was_cut_is_refused(end, killed):
    data = killed.read_bytes()
    killed.write_bytes(data[: int(end * len(data)) if end == 0.5 else end])
    refused(compiled(99), killed, r"must be an intact .*run\.weig.*damaged")


def test_an_error_of_the_system_is_not_called_damage(tmp_path):
    path = tmp_path / "run.weights.h5"
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        epochs(compiled(), [AtomicBackup(path)])


class Lower(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.optimizer.learning_rate = networks.RATE / (epoch + 2)


def test_a_rate_lowered_before_the_backup_is_in_the_file(tmp_path):
    path = tmp_path / "run.weights.h5"
    with pytest.raises(Killed):
        epochs(compiled(), [Lower(), AtomicBackup(path), KillAt(2)])
    # The rate of the file, not that of the new run.
    model = compiled(99)
    model.optimizer.learning_rate = 1.0
    with pytest.warns(UserWarning, match="learning_rate"):
        epochs(model, [Lower(), AtomicBackup(path)])
    never = compiled()
    epochs(never, [Lower()])
    networks.assert_same(networks.state(model), networks.state(never))


@pytest.mark.parametrize("every", [2, 4])
def test_a_kept_file_holds_the_last_epoch(every, tmp_path):
    path = tmp_path / "run.weights.h5"
    ended = compiled()
    epochs(ended, [AtomicBackup(path, every, keep=True)])
    model, seen = compiled(99), KillAt()
    epochs(model, [AtomicBackup(path, every, keep=True), seen])
    assert not seen.begun
    networks.assert_same(networks.state(model), networks.state(ended))
    # With more to train it goes on there.
    epochs(model, [AtomicBackup(path, every), seen], count=EPOCHS + 2)
    assert seen.begun == [EPOCHS, EPOCHS + 1]


def test_a_fit_that_trains_nothing_keeps_the_file_as_it_was(tmp_path):
    path = tmp_path / "run.weights.h5"
    callback, seen = AtomicBackup(path, 2, keep=True), KillAt()
    with pytest.raises(Killed):  # The third epoch is trained, not written.
        epochs(compiled(), [callback, KillAt(3)], count=4)
    epochs(compiled(99), [callback], count=2)
    epochs(compiled(99), [seen, AtomicBackup(path)])
    assert seen.begun == [2]


def two_fits(paths, seed, kill=None, keep=True):
    """Train in two stages, the second anchored where the first has ended."""
    model = compiled(seed)
    epochs(model, [AtomicBackup(paths[0], keep=keep)])
    start = networks.arrays(model.trainable_variables)
    optimizer = networks.dual_opt(networks.RATE / 2).anchor_at()
    networks.compile(model, optimizer)
    seen = KillAt(kill)
    epochs(model, [AtomicBackup(paths[1], keep=keep), seen])
    networks.assert_anchored_at(model.optimizer, start)
    return networks.state(model), seen.begun


@pytest.fixture(scope="module")
def never_killed_in_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return two_fits([folder / f"{n}.weights.h5" for n in range(2)], 3)[0]


@pytest.mark.parametrize(("kill", "rest"), [(0, [0, 1, 2]), (2, [2])])
def test_two_fits_with_their_own_paths_go_on_in_the_second(
    kill, rest, never_killed_in_two, tmp_path
):
    paths = [tmp_path / f"stage_{n}.weights.h5" for n in range(2)]
    with pytest.raises(Killed):
        two_fits(paths, 3, kill)
    state, begun = two_fits(paths, 99)
    assert begun == rest
    networks.assert_same(state, never_killed_in_two)


def test_the_file_of_a_later_fit_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "run.weights.h5"
    with pytest.raises(Killed):
        two_fits([path, path], 3, kill=2, keep=False)
    # What a process that is started again knows.
    monkeypatch.setattr(backup, "_ended", collections.Counter())
    words = r"number 1 .*number 2\. .*keep=True.*initial_epoch=2"
    refused(compiled(99), path, words)


class Fails(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        raise Killed


def test_a_start_that_fails_does_not_move_the_next_one(killed):
    model, seen = compiled(99), KillAt()
    with pytest.raises(Killed):
        epochs(model, [AtomicBackup(killed), Fails()])
    epochs(model, [seen, AtomicBackup(killed.with_name("other.weights.h5"))])
    assert seen.begun == [0, 1, 2]


def test_a_model_that_is_not_built_is_refused(tmp_path):
    path = tmp_path / "run.weights.h5"
    epochs(compiled(), [AtomicBackup(path, keep=True)])
    model = keras.Sequential([keras.layers.Dense(2)])
    networks.compile(model, DualOpt(mode="scratch"))
    backup = AtomicBackup(path)
    backup.set_model(model)
    with pytest.raises(ValueError, match=r"The model must be built"):
        backup.on_train_begin()


def rated(rate, seed=99):
    return networks.compiled(networks.dual_opt(rate), networks.weights(seed))


def test_a_learning_rate_changed_in_the_script_is_said_not_to_be_used(killed):
    for _ in range(2):  # Again, where that run is killed as well.
        model = rated(networks.RATE / 4)
        words = rf"{networks.RATE}.*{networks.RATE / 4}.*learning_rate"
        with (
            pytest.warns(UserWarning, match=words) as caught,
            pytest.raises(Killed),
        ):
            epochs(model, [AtomicBackup(killed), KillAt(2)])
        assert len(networks.told(caught)) == 1
        assert networks.rate_of(model.optimizer) == pytest.approx(
            networks.RATE, rel=1e-6
        )


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"rollback": 0.05}, r"rollback=0\.05 \(it was 0\.21\)\. "),
        ({"power": 1.0}, r"power=1\.0 \(it was 1\.7\)"),
        ({"shallow_rate": 0.5}, r"shallow_rate=0\.5 \(it was 1\.0\)"),
        ({"exclude": ".*bias"}, r"exclude=\('\.\*bias',\) \(it was \(\)\)"),
        ({"reference_learning_rate": 0.5}, r"=0\.5 \(it was 0\.03\)"),
        (
            {"reach": "40%", "rollback": None, "rollback_min": None},
            r"rollback=None.*reach='40%'.*reach_max='120%' \(it was None\)",
        ),
    ],
)
def test_a_strength_changed_in_the_script_is_said_and_used(
    changed, words, killed
):
    model = networks.compiled(networks.dual_opt(**changed))
    with pytest.warns(UserWarning, match=words) as caught:
        epochs(model, [AtomicBackup(killed)])
    assert len(networks.told(caught)) == 1
    for name in changed:
        wanted = getattr(networks.dual_opt(**changed), name)
        assert getattr(model.optimizer, name) == wanted


class Halve(keras.callbacks.Callback):
    """Lowers the rate at the end of an epoch, before the backup."""

    def on_epoch_end(self, epoch, logs=None):
        self.model.optimizer.learning_rate = networks.RATE / 2 ** (epoch + 1)


def test_a_learning_rate_that_a_callback_changed_is_no_change_of_the_script(
    tmp_path,
):
    path = tmp_path / "run.weights.h5"
    with pytest.raises(Killed):
        epochs(compiled(), [Halve(), AtomicBackup(path), KillAt(2)])
    model = compiled(99)
    epochs(model, [Halve(), AtomicBackup(path)])
    assert networks.rate_of(model.optimizer) == pytest.approx(
        networks.RATE / 8, rel=1e-6
    )


def test_a_callback_listed_after_the_backup_changes_the_rate_of_a_run(killed):
    """As the warning says."""

    class Set(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.model.optimizer.learning_rate = networks.RATE / 4

    model = compiled(99)
    epochs(model, [AtomicBackup(killed), Set()])
    assert networks.rate_of(model.optimizer) == pytest.approx(
        networks.RATE / 4, rel=1e-6
    )


def test_a_schedule_of_the_script_is_used_without_a_word(tmp_path):
    path = tmp_path / "run.weights.h5"
    schedules = [
        keras.optimizers.schedules.CosineDecay(rate, 20)
        for rate in (networks.RATE, networks.RATE / 4)
    ]
    with pytest.raises(Killed):
        epochs(rated(schedules[0], 3), [AtomicBackup(path), KillAt(2)])
    model = rated(schedules[1])
    with warnings.catch_warnings():
        # That η differs is DualOpt's to say.
        warnings.filterwarnings("ignore", message=".*reference")
        epochs(model, [AtomicBackup(path)])
    wanted = networks.RATE / 4 * 0.5 * (1.0 + np.cos(np.pi * 6 / 20))
    assert networks.rate_of(model.optimizer) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run.h5",), r"end in '\.weights\.h5'\. Received: 'run\.h5'"),
        (("run.weights.h5", 0), r"≥ 1\. Received: 0"),
        (("run.weights.h5", True), r"Received: True"),
        (("run.weights.h5", 1.5), r"Received: 1\.5"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, words):
    with pytest.raises(ValueError, match=f"^`.*` must .*{words}"):
        AtomicBackup(*arguments)
