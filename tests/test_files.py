"""Files without anchors, and optimizers put back from a file."""

import keras
import networks
import numpy as np
import pytest
from conformance.checkpoint_worker import DATA, unpacked
from networks import dual_opt, state, trained

from keras_dualopt import DualOpt
from keras_dualopt.files import restore_optimizer, save_without_anchors

WIDTH = 64


def wrapped(**arguments):
    return keras.optimizers.LossScaleOptimizer(
        dual_opt(**arguments), initial_scale=4.0
    )


def save_all(model, path):
    if str(path).endswith(".keras"):
        model.save(path)
    else:
        model.save_weights(path)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (dual_opt, "model.keras"),
        (dual_opt, "model.weights.h5"),
        (wrapped, "model.keras"),
    ],
)
def test_the_file_is_smaller_by_the_anchors(make, kind, tmp_path):
    # Wide enough for the arrays to outweigh HDF5's own bookkeeping.
    model = keras.Sequential(
        [keras.Input((WIDTH,))]
        + [keras.layers.Dense(WIDTH) for _ in range(3)]
        + [keras.layers.Dense(1)]
    )
    networks.compile(model, make())
    rows = np.ones((8, WIDTH), "float32")
    model.fit(rows, rows[:, :1], verbose=0)
    inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    anchored = sum(
        4 * int(np.prod(anchor.shape))
        for anchor in inner.anchors
        if anchor is not None
    )
    save_all(model, tmp_path / f"with.{kind}")
    save_without_anchors(model, tmp_path / f"without.{kind}")
    saved = (tmp_path / f"with.{kind}").stat().st_size - (
        tmp_path / f"without.{kind}"
    ).stat().st_size
    # LossScaleOptimizer had written them twice.
    copies = 2 if make is wrapped else 1
    assert copies * anchored <= saved < copies * anchored * 1.25


@pytest.mark.parametrize("make", [dual_opt, wrapped])
def test_the_model_in_memory_goes_on_as_if_nothing_had_been(make, tmp_path):
    model, plain = trained(make()), trained(make(), steps=5)
    before = state(model)
    save_without_anchors(model, tmp_path / "model.keras")
    networks.assert_same(state(model), before)
    networks.assert_anchored_at(model.optimizer, networks.weights())
    networks.fit(model, 2, start=3)
    networks.assert_same(state(model), state(plain))


def test_the_file_evaluates_and_asks_for_anchors(tmp_path):
    model = trained()
    save_without_anchors(model, tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x, y = networks.data()
    np.testing.assert_allclose(
        loaded.evaluate(x, y, verbose=0), model.evaluate(x, y, verbose=0)
    )
    with pytest.raises(ValueError, match="anchor_at"):
        networks.fit(loaded, 1)
    loaded.optimizer.anchor_at()
    networks.fit(loaded, 1)


@pytest.mark.parametrize("reach", [None, "40%"])
def test_the_anchors_in_memory_outlive_a_file_without_them(reach, tmp_path):
    path = tmp_path / "best.weights.h5"
    arguments = {}
    if reach:
        arguments = {"reach": reach, "rollback": None, "rollback_min": None}
    model, never = (trained(dual_opt(**arguments)) for _ in range(2))
    save_without_anchors(model, path)
    networks.fit(model, 2, start=3)
    with pytest.warns(UserWarning, match="anchors; those in memory stay"):
        model.load_weights(path)
    networks.assert_same(state(model), state(never))
    for one in (model, never):
        networks.fit(one, 2, start=3)
    networks.assert_same(state(model), state(never))
    networks.assert_anchored_at(model.optimizer, networks.weights())


def test_the_sizes_that_reach_is_a_share_of_stay_with_their_anchors(tmp_path):
    def run(seed):
        arguments = {"reach": "40%", "rollback": None, "rollback_min": None}
        return trained(dual_opt(**arguments), start=networks.weights(seed))

    path = tmp_path / "other.weights.h5"
    save_without_anchors(run(8), path)
    model = run(3)
    sizes = networks.arrays([model.optimizer._anchors.units])
    with pytest.warns(UserWarning, match="those in memory stay"):
        model.load_weights(path)
    networks.assert_same(
        networks.arrays([model.optimizer._anchors.units]), sizes
    )


@pytest.mark.filterwarnings("ignore:Skipping variable loading")
@pytest.mark.parametrize("kind", ["model.keras", "model.weights.h5"])
@pytest.mark.parametrize("make", [dual_opt, wrapped])
def test_a_state_that_waits_for_build_is_shipped_without_anchors(
    make, kind, tmp_path
):
    run = trained(make())
    run.save_weights(tmp_path / "run.weights.h5")
    model = networks.compiled(make(), networks.weights(seed=9))
    model.load_weights(tmp_path / "run.weights.h5")
    save_without_anchors(model, tmp_path / kind)
    if kind == "model.keras":
        loaded = keras.saving.load_model(tmp_path / kind)
    else:
        loaded = networks.compiled(make())
        loaded.load_weights(tmp_path / kind)
    with pytest.raises(ValueError, match="anchor_at"):
        networks.fit(loaded, 1)
    for one in (model, run):
        networks.fit(one, 2, start=3)
    networks.assert_same(
        networks.arrays(model.weights), networks.arrays(run.weights)
    )


def test_a_state_that_does_not_fit_is_not_shipped(tmp_path):
    trained(dual_opt(base="sgd")).save_weights(tmp_path / "run.weights.h5")
    model = networks.compiled()
    model.load_weights(tmp_path / "run.weights.h5")
    for match in ("base='Adam'", "were refused"):
        with pytest.raises(ValueError, match=match):
            save_without_anchors(model, tmp_path / "model.keras")
    assert not (tmp_path / "model.keras").exists()


def test_saving_in_the_middle_of_an_epoch_does_not_disturb_it(tmp_path):
    class Shipping(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            save_without_anchors(self.model, tmp_path / f"{batch}.keras")

    model = networks.compiled()
    networks.fit(model, 4, callbacks=[Shipping()])
    networks.assert_same(state(model), state(trained(steps=4)))
    loaded = keras.saving.load_model(tmp_path / "1.keras")
    networks.assert_same(
        networks.arrays(loaded.weights),
        networks.arrays(trained(steps=2).weights),
    )


def test_the_anchors_survive_an_error_while_saving(tmp_path):
    model = trained()
    before = state(model)
    with pytest.raises(OSError, match=r"nowhere|No such file|Unable"):
        save_without_anchors(model, tmp_path / "nowhere" / "m.weights.h5")
    networks.assert_same(state(model), before)


@pytest.mark.parametrize(
    ("make", "kind", "built"),
    [
        (dual_opt, "model.keras", False),
        (dual_opt, "model.weights.h5", True),
        (wrapped, "model.keras", True),
    ],
)
def test_restored_training_goes_on_bit_for_bit(make, kind, built, tmp_path):
    model = trained(make())
    save_all(model, tmp_path / kind)
    weights = networks.arrays(model.weights)
    networks.fit(model, 2, start=3)

    again = networks.compiled(make(), networks.weights(seed=9))
    if built:
        networks.fit(again, 2)
    # What `load_model` leaves of a model with a `compile` of its own.
    again.set_weights(weights)
    restore_optimizer(again, tmp_path / kind)
    networks.assert_anchored_at(again.optimizer, networks.weights())
    networks.fit(again, 2, start=3)
    networks.assert_same(state(again), state(model))


def test_restoring_leaves_the_weights_alone(tmp_path):
    model = trained()
    model.save(tmp_path / "model.keras")
    again = networks.compiled(dual_opt(), networks.weights(seed=9))
    restore_optimizer(again, tmp_path / "model.keras")
    networks.assert_same(
        networks.arrays(again.weights), networks.weights(seed=9)
    )


def test_state_is_restored_across_the_loss_scale(tmp_path):
    trained().save(tmp_path / "plain.keras")
    trained(wrapped()).save(tmp_path / "wrapped.keras")
    for make, name in ((wrapped, "plain"), (dual_opt, "wrapped")):
        model = networks.compiled(make(), networks.weights(seed=9))
        restore_optimizer(model, tmp_path / f"{name}.keras")
        assert int(model.optimizer.iterations) == 3
        networks.assert_anchored_at(model.optimizer, networks.weights())


def test_half_precision_is_restored(tmp_path):
    model = networks.network(networks.weights(), dtype="bfloat16")
    networks.compile(model, dual_opt())
    networks.fit(model, 2)
    before = state(model)
    model.save(tmp_path / "model.keras")
    networks.compile(model, dual_opt())
    restore_optimizer(model, tmp_path / "model.keras")
    networks.assert_same(state(model), before)


def test_a_file_without_our_state_is_an_error(tmp_path):
    trained(keras.optimizers.Adam(0.1)).save(tmp_path / "adam.keras")
    networks.network(networks.weights()).save(tmp_path / "bare.keras")
    model = trained()
    before = state(model)
    for name, match in (
        ("adam", r"arrays of another optimizer"),
        ("bare", "DualOpt. Received: none"),
    ):
        with pytest.raises(ValueError, match=match):
            restore_optimizer(model, tmp_path / f"{name}.keras")
    networks.assert_same(state(model), before)


def test_a_state_that_does_not_fit_is_an_error(tmp_path):
    trained().save(tmp_path / "model.keras")
    model = trained(dual_opt(base="sgd"))
    before = state(model)
    with pytest.raises(ValueError, match="base='SGD'"):
        restore_optimizer(model, tmp_path / "model.keras")
    networks.assert_same(state(model), before)


@pytest.mark.parametrize("act", [save_without_anchors, restore_optimizer])
def test_files_and_models_of_other_kinds_are_refused(act, tmp_path):
    model = networks.compiled()
    with pytest.raises(ValueError, match=r"'\.keras' or '\.weights\.h5'"):
        act(model, tmp_path / "model.h5")
    networks.compile(model, "adam")
    with pytest.raises(ValueError, match="one compiled with Adam"):
        act(model, tmp_path / "model.keras")


def test_scratch_mode_has_no_anchors_to_leave_out(tmp_path):
    model = networks.compiled(DualOpt(mode="scratch"), networks.weights())
    with pytest.raises(
        ValueError, match="`save_without_anchors` needs fine-tune"
    ):
        save_without_anchors(model, tmp_path / "model.keras")


def test_a_file_of_version_0_1_with_a_loss_scale_is_read(tmp_path):
    """`LossScaleOptimizer` goes by the order of the state, and by nothing else.

    Written by torch, with version 0.1, after three steps at a scale of 4.
    """
    path = unpacked(DATA / "scaled-torch.weights.h5.gz", tmp_path)
    model = networks.compiled(wrapped(), networks.weights(seed=99))
    model.optimizer.build(model.trainable_variables)
    model.load_weights(path)
    inner = model.optimizer.inner_optimizer
    assert int(inner.iterations) == 3
    networks.assert_anchored_at(inner, networks.weights())
    networks.fit(model, 2, start=3)
    networks.assert_close(model, networks.expected(5)[-1])


@pytest.mark.parametrize("base", ["adam", keras.optimizers.Nadam])
def test_anchors_that_come_back_take_their_old_place_in_the_state(base):
    optimizer = dual_opt(base=base if base == "adam" else base())
    model = networks.compiled(optimizer, networks.weights())
    optimizer.build(model.trainable_variables)
    # A file of version 0.1 has the same order.
    names = [variable.name for variable in optimizer.variables]
    first = next(n for n, name in enumerate(names) if name.endswith("anchor"))
    assert names[first - 1] == "anchors_taken"
    assert not any(name.endswith("anchor") for name in names[first + 6 :])
    optimizer.drop_anchors()
    optimizer.anchor_at()
    assert [variable.name for variable in optimizer.variables] == names
