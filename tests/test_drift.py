"""`Drift`: the numbers are those of the reference, and nothing is disturbed."""

import csv
import warnings

import keras
import networks
import numpy as np
import pytest
import reference
from cases import BACKEND

from keras_dualopt import DualOpt, interpolate
from keras_dualopt.callbacks import Drift, DriftRecord
from keras_dualopt.pull import reach_at

# Float32 training against a float64 reference; the pull is a difference of
# two nearly equal weights.
CLOSE = {"rtol": 2e-4, "atol": 2e-6}
BATCHES = networks.BATCHES


class Watched(reference.OlorAdam):
    """The reference, with what a step consists of."""

    def step(self, g_t, eta_t):
        self.before = self.theta
        super().step(g_t, eta_t)
        m_hat = self.m / (1 - self.beta_1**self.t)
        v_hat = self.v / (1 - self.beta_2**self.t)
        move = eta_t * m_hat / (np.sqrt(v_hat) + self.epsilon)
        self.pre = self.before - move
        self.ratio = self.rho(eta_t)
        return self.theta


def norm(arrays):
    return np.sqrt(sum(np.sum(np.square(array)) for array in arrays))


def expected(steps, mode):
    """Return quantity → (layer matrix), and log key → (totals)."""
    anchor = None if mode == "finetune" else 0.0
    weights = [
        Watched(theta, level, anchor)
        for theta, level in zip(
            networks.weights(), networks.strengths(mode), strict=True
        )
    ]
    count = networks.LAYERS - (mode == "finetune")
    groups = [weights[2 * layer : 2 * layer + 2] for layer in range(count)]
    relative = np.linspace(0.0, 1.0, count)

    def drift(group):
        distance = norm([w.theta - w.anchor for w in group])
        if mode == "scratch":
            return distance
        return distance / norm([w.anchor for w in group])

    quantities = {
        "drift": drift,
        "strength": lambda group: max(w.ratio for w in group),
        "pull_share": lambda group: (
            norm([w.ratio * (w.pre - w.anchor) for w in group])
            / norm([w.pre - w.before for w in group])
        ),
        "update_ratio": lambda group: (
            norm([w.theta - w.before for w in group])
            / norm([w.before for w in group])
        ),
    }
    matrices = {name: [] for name in quantities}
    totals = {}
    everything = [w for group in groups for w in group]
    chosen = {
        "drift": ("drift", everything),
        "drift_shallow": (
            "drift",
            [w for g, r in zip(groups, relative) if r < 0.5 for w in g],
        ),
        "drift_deep": (
            "drift",
            [w for g, r in zip(groups, relative) if r >= 0.5 for w in g],
        ),
        "pull_share": ("pull_share", everything),
        "update_ratio": ("update_ratio", everything),
    }
    for step in range(steps):
        gradients = networks.gradient(step, [w.theta for w in weights])
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.step(gradient, networks.RATE)
        for name, quantity in quantities.items():
            matrices[name].append([quantity(group) for group in groups])
        for key, (name, members) in chosen.items():
            totals.setdefault(key, []).append(quantities[name](members))
    return (
        {name: np.transpose(rows) for name, rows in matrices.items()},
        {key: np.array(values) for key, values in totals.items()},
    )


def watched_fit(drift, optimizer, epochs=1, callbacks=(), **arguments):
    model = networks.compiled(optimizer, networks.weights(), **arguments)
    return model, networks.epochs(model, epochs, [drift, *callbacks])


@pytest.mark.parametrize("mode", ["finetune", "scratch"])
def test_record_and_logs_are_those_of_the_reference(mode, tmp_path):
    arguments = networks.FINETUNE if mode == "finetune" else networks.SCRATCH
    table = tmp_path / "log.csv"
    drift = Drift(every=1, file=tmp_path / "drift.npz")
    _, history = watched_fit(
        drift,
        DualOpt(networks.RATE, **arguments),
        epochs=2,
        callbacks=[keras.callbacks.CSVLogger(table)],
    )
    steps = 2 * BATCHES
    matrices, totals = expected(steps, mode)

    assert list(drift.record.steps) == list(range(1, steps + 1))
    count = len(matrices["drift"])
    assert [name.rpartition("/")[2] for name in drift.record.layers] == [
        f"dense_{layer}" for layer in range(count)
    ]
    np.testing.assert_allclose(
        drift.record.relative, np.linspace(0.0, 1.0, count)
    )
    for name, matrix in matrices.items():
        np.testing.assert_allclose(
            drift.record.matrix(name), matrix, **CLOSE, err_msg=name
        )
    rows = list(csv.DictReader(table.read_text().splitlines()))
    ends = [BATCHES - 1, 2 * BATCHES - 1]
    for key, values in totals.items():
        np.testing.assert_allclose(
            drift.record.totals[key], values, **CLOSE, err_msg=key
        )
        np.testing.assert_allclose(history[key], values[ends], **CLOSE)
        np.testing.assert_allclose(
            [float(row[key]) for row in rows], values[ends], **CLOSE
        )

    read = DriftRecord.load(tmp_path / "drift.npz")
    assert (read.mode, read.layers) == (mode, drift.record.layers)
    np.testing.assert_array_equal(read.steps, drift.record.steps)
    for name in matrices:
        np.testing.assert_array_equal(
            read.matrix(name), drift.record.matrix(name)
        )


class Weights(keras.callbacks.Callback):
    """Keeps the weights after every step."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def on_train_batch_end(self, batch, logs=None):
        self.kept.append(networks.arrays(self.model.trainable_variables))


# `reach`, `reach_max` and the unit they are measured in, layer by layer.
REACHES = {
    "distance": (0.05, 0.4, lambda layer: 1.0),
    "share": (
        "7%",
        "90%",
        lambda layer: norm(layer) / np.sqrt(sum(a.size for a in layer)),
    ),
}


@pytest.mark.parametrize("unit", REACHES)
def test_reach_used_is_the_farthest_weights_share_of_its_reach(unit, tmp_path):
    shallow, deep, size = REACHES[unit]
    drift, watched = Drift(every=1, file=tmp_path / "drift.npz"), Weights()
    optimizer = DualOpt(
        networks.RATE,
        reach=shallow,
        reach_max=deep,
        power=1.7,
        exclude=r".*dense_1/bias",
    )
    _, history = watched_fit(drift, optimizer, 2, [watched])
    ends = (0.05, 0.4) if unit == "distance" else (0.07, 0.9)
    expected = []
    start = networks.weights()
    for weights in watched.kept:
        used = []
        for layer, relative in enumerate([0.0, 0.5, 1.0]):
            pair = slice(2 * layer, 2 * layer + 2)
            reach = reach_at(relative, *ends, 1.7) * size(start[pair])
            # The excluded bias may go as far as it likes.
            pulled = slice(2 * layer, 2 * layer + 2 - (layer == 1))
            used.append(
                max(
                    np.max(np.abs(now - then)) / reach
                    for now, then in zip(weights[pulled], start[pulled])
                )
            )
        expected.append(used)
    expected = np.transpose(expected)
    assert 0.2 < expected[0].max() < 1.0
    found = drift.record.matrix("reach_used")
    np.testing.assert_allclose(found, expected, **CLOSE)
    totals = expected.max(axis=0)
    np.testing.assert_allclose(drift.record.totals["reach_used"], totals, 2e-4)
    np.testing.assert_allclose(
        history["reach_used"], totals[BATCHES - 1 :: BATCHES], **CLOSE
    )
    read = DriftRecord.load(tmp_path / "drift.npz")
    np.testing.assert_array_equal(read.matrix("reach_used"), found)


@pytest.mark.parametrize("arguments", [networks.FINETUNE, networks.SCRATCH])
def test_without_reach_none_of_it_is_used_and_none_is_logged(arguments):
    drift = Drift(every=2)
    _, history = watched_fit(drift, DualOpt(networks.RATE, **arguments))
    assert "reach_used" not in history
    assert np.isnan(drift.record.matrix("reach_used")).all()
    assert np.isnan(drift.record.totals["reach_used"]).all()


def test_a_resumed_run_goes_on_with_the_file(tmp_path):
    path, weights = tmp_path / "drift.npz", tmp_path / "x.weights.h5"

    def watched(end, start=0):
        model = networks.compiled(networks.dual_opt())
        if start:
            model.optimizer.build(model.trainable_variables)
            model.load_weights(weights)
        drift = Drift(every=1, file=path)
        networks.fit(model, end - start, start, [drift])
        if end == 2:
            model.save_weights(weights)
        return DriftRecord.load(path)

    whole = watched(4)
    assert watched(2).steps.tolist() == [1, 2]  # A new run, a new record.
    for killed in (2, 3):  # With the weights of the second step.
        watched(killed)
        found = watched(4, start=2)
        assert found.places == whole.places
        assert found.steps.tolist() == [1, 2, 3, 4]
        np.testing.assert_allclose(found.matrix(), whole.matrix(), **CLOSE)


def test_a_file_of_other_layers_is_not_written_over_without_a_word(tmp_path):
    DriftRecord("finetune", ["other"], [0.0], ["other"]).save(
        tmp_path / "drift.npz"
    )
    model = networks.trained()
    drift = Drift(every=1, file=tmp_path / "drift.npz")
    with pytest.warns(UserWarning, match="drift.npz.*other layers"):
        networks.fit(model, 1, 0, [drift])
    assert len(drift.record.layers) == 3


def test_a_new_run_begins_a_new_record():
    drift = Drift(every=1)
    for _ in range(2):
        networks.fit(networks.compiled(networks.dual_opt()), 3, 0, [drift])
        assert drift.record.steps.tolist() == [1, 2, 3]


def test_a_record_of_an_earlier_version_is_read(tmp_path):
    drift = Drift(every=2, file=tmp_path / "drift.npz")
    watched_fit(drift, networks.dual_opt())
    with np.load(tmp_path / "drift.npz") as file:
        older = {name: file[name] for name in file if "reach" not in name}
    np.savez(tmp_path / "older.npz", **older)
    read = DriftRecord.load(tmp_path / "older.npz")
    assert np.isnan(read.matrix("reach_used")).all()
    assert np.isnan(read.totals["reach_used"]).all()
    np.testing.assert_array_equal(
        read.matrix("drift"), drift.record.matrix("drift")
    )


def test_a_record_says_what_it_holds():
    drift = Drift(every=3)
    watched_fit(drift, networks.dual_opt())
    assert repr(drift.record) == (
        "<DriftRecord finetune: 3 layers, 2 samples of steps 1 to 4>"
    )
    assert repr(DriftRecord("scratch", ["a"], [0.0])) == (
        "<DriftRecord scratch: 1 layers, 0 samples>"
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_share_is_not_told_where_storing_hides_it(dtype):
    model = networks.network(networks.weights(), dtype=dtype)
    networks.compile(
        model, DualOpt(networks.RATE, rollback=0.1, rollback_min=0.0, power=1.7)
    )
    drift = Drift(every=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=f".*{dtype}")
        networks.fit(model, BATCHES, callbacks=[drift])
    share = drift.record.matrix("pull_share")
    assert np.isnan(share[:-1]).all()
    np.testing.assert_array_equal(share[-1], 0.0)  # It is not pulled.
    assert (drift.record.matrix("drift")[:, -1] > 0.0).all()


def test_every_kth_step_and_the_last_of_each_epoch_are_sampled():
    drift = Drift(every=3)
    _, history = watched_fit(drift, networks.dual_opt(), epochs=3)
    # Steps 0, 3, 6, 9 of the run, and 3, 7, 11: counted after the update.
    assert list(drift.record.steps) == [1, 4, 7, 8, 10, 12]
    _, totals = expected(3 * BATCHES, "finetune")
    for key, values in totals.items():
        np.testing.assert_allclose(history[key], values[3::4], **CLOSE)


def test_training_is_the_same_with_and_without():
    plain = networks.compiled()
    networks.fit(plain, BATCHES)
    model, _ = watched_fit(Drift(every=2), networks.dual_opt())
    networks.assert_same(
        networks.arrays(model.trainable_variables),
        networks.arrays(plain.trainable_variables),
    )


def test_steps_between_samples_are_left_alone(monkeypatch):
    looked = []
    model = networks.compiled()
    drift = Drift(every=BATCHES)

    class Counting(keras.callbacks.Callback):
        """Counts how often JAX's state is brought back in an epoch."""

        def on_train_batch_begin(self, batch, logs=None):
            looked.append(getattr(self._model, "_jax_state_synced", False))

    x, y = networks.data()
    model.fit(
        x[: 3 * networks.BATCH],
        y[: 3 * networks.BATCH],
        batch_size=1,
        verbose=0,
        callbacks=[drift, Counting()],
    )
    # 24 steps: sampled 0, 4, 8, …, 20 and 23; closed one step later each.
    disturbed = {s + late for s in (0, 4, 8, 12, 16, 20) for late in (0, 1)}
    disturbed |= {23}
    if BACKEND == "jax":
        assert {i for i, synced in enumerate(looked) if synced} == disturbed
    # An override would make `fit` wait for the device after every step.
    assert Drift.on_train_batch_end is (
        keras.callbacks.Callback.on_train_batch_end
    )
    assert len(drift.record) == 7


def test_an_update_of_several_micro_steps_is_one_sample():
    drift = Drift(every=3)
    _, history = watched_fit(
        drift,
        networks.dual_opt(gradient_accumulation_steps=2),
        epochs=2,
    )
    # Micro-steps 0, 3 and 6 of 8; updates are taken in 1, 3, 5 and 7.
    assert list(drift.record.steps) == [1, 2, 4]
    assert np.isfinite(drift.record.matrix("pull_share")).all()
    ratios = drift.record.matrix("strength")[:, 0]
    # From θ₀, the first pull takes back ρ of the way exactly.
    np.testing.assert_allclose(
        drift.record.matrix("pull_share")[:, 0], ratios, rtol=1e-4
    )
    assert len(history["pull_share"]) == 2


def test_the_rate_of_an_update_is_that_of_its_last_micro_step():
    class Halve(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.model.optimizer.learning_rate = networks.RATE / (batch + 1)

    model = networks.compiled(networks.dual_opt(gradient_accumulation_steps=2))
    drift = Drift(every=2)
    networks.fit(model, 2, callbacks=[Halve(), drift])
    np.testing.assert_allclose(
        drift.record.matrix("strength")[0], 0.21 / 2, rtol=1e-6
    )


def test_an_epoch_without_an_update_logs_what_is_not_defined():
    drift = Drift(every=1)
    _, history = watched_fit(
        drift, networks.dual_opt(gradient_accumulation_steps=BATCHES + 1)
    )
    assert list(drift.record.steps) == [0]
    for key in ("drift", "pull_share", "update_ratio"):
        assert np.isnan(history[key]).all()


@pytest.mark.skipif(
    BACKEND == "tensorflow",
    reason="Keras counts five steps there, of Adam too, for four batches",
)
def test_an_epoch_of_unknown_length_ends_with_the_drift_of_its_end():
    def batches():
        x, y = networks.data()
        for step in range(BATCHES):
            rows = slice(networks.BATCH * step, networks.BATCH * (step + 1))
            yield x[rows], y[rows]

    model, drift = networks.compiled(), Drift(every=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*ran out of data")
        history = model.fit(batches(), callbacks=[drift], verbose=0).history
    # Nobody knew that the last step would be the last: it was not watched.
    assert list(drift.record.steps) == [1, 3, 4]
    _, totals = expected(BATCHES, "finetune")
    np.testing.assert_allclose(history["drift"], totals["drift"][-1], **CLOSE)
    share = drift.record.totals["pull_share"]
    np.testing.assert_allclose(share[:2], totals["pull_share"][[0, 2]], **CLOSE)
    assert np.isnan(share[2])
    assert history["pull_share"] == [share[1]]


@pytest.mark.skipif(
    BACKEND == "torch", reason="Keras refuses steps_per_execution on torch"
)
def test_several_steps_at_once_have_no_pull_share_but_a_drift():
    drift = Drift(every=1)
    _, history = watched_fit(
        drift,
        networks.dual_opt(),
        epochs=2,
        steps_per_execution=2,
    )
    assert list(drift.record.steps) == [2, 4, 6, 8]
    _, totals = expected(2 * BATCHES, "finetune")
    np.testing.assert_allclose(history["drift"], totals["drift"][3::4], **CLOSE)
    assert np.isnan(history["pull_share"]).all()
    assert np.isnan(drift.record.matrix("pull_share")).all()
    assert (drift.record.matrix("update_ratio") > 0.0).all()


def test_full_rollback_is_left_out_of_the_share():
    drift = Drift(every=1)
    watched_fit(
        drift,
        DualOpt(networks.RATE, rollback=1.0, rollback_min=0.2, power=1.0),
    )
    share = drift.record.matrix("pull_share")
    assert np.isnan(share[0]).all()
    assert np.isfinite(share[1:]).all()
    np.testing.assert_array_equal(drift.record.matrix("drift")[0], 0.0)
    assert np.isfinite(drift.record.totals["pull_share"]).all()


def test_a_layer_that_is_not_used_has_no_pull_share():
    class Backbone(keras.Model):
        def __init__(self):
            super().__init__(name="backbone")
            self.used = keras.layers.Dense(3, name="used")
            # Owned and pretrained, never called.
            self.idle = keras.layers.Dense(3, name="idle")

        def build(self, shape):
            self.used.build(shape)
            self.idle.build(shape)

        def call(self, x):
            return self.used(x)

    inner = Backbone()
    idle = inner.idle
    model = keras.Sequential(
        [keras.Input((3,)), inner, keras.layers.Dense(2, name="head")]
    )
    depth = {".*used/.*": 0.0, ".*idle/.*": 0.7, ".*head/.*": None}
    networks.compile(model, DualOpt(0.1, rollback=0.3, depth=depth))
    x, y = networks.data()
    # Move away from θ₀ first, so that a pull would show.
    model.optimizer.build(model.trainable_variables)
    model.optimizer.anchor_at()
    idle.kernel.assign(np.ones((3, 3), "float32"))
    drift = Drift(every=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]radients")
        model.fit(x, y, verbose=0, callbacks=[drift])
    names = [name.rpartition("/")[2] for name in drift.record.layers]
    row = names.index("idle")
    assert drift.record.matrix("drift")[row, 0] > 0.0
    assert np.isnan(drift.record.matrix("pull_share")[row, 0])
    moved = drift.record.matrix("update_ratio")[row, 0]
    # JAX hands out zeros as gradients, so that there the pull goes on.
    assert (moved > 0.0) == (BACKEND == "jax")


def test_a_wrapped_optimizer_and_a_reloaded_model_are_watched(tmp_path):
    drift = Drift(every=1)
    model, _ = watched_fit(
        drift,
        keras.optimizers.LossScaleOptimizer(
            networks.dual_opt(), initial_scale=8.0
        ),
    )
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    networks.fit(again, 2, start=BATCHES, callbacks=[drift])
    # The record goes on where it was.
    assert list(drift.record.steps) == [1, 2, 3, 4, 5, 6]
    matrices, _ = expected(BATCHES + 2, "finetune")
    for name, matrix in matrices.items():
        np.testing.assert_allclose(
            drift.record.matrix(name), matrix, **CLOSE, err_msg=name
        )


@pytest.mark.parametrize("every", [0, -1, 2.0, True])
def test_every_must_be_a_number_of_steps(every):
    with pytest.raises(ValueError, match=r"`every`.*Received"):
        Drift(every=every)


def test_another_optimizer_is_refused_before_training():
    model = networks.compiled(keras.optimizers.Adam(), networks.weights())
    with pytest.raises(ValueError, match=r"Received: one compiled with Adam"):
        networks.fit(model, 1, callbacks=[Drift()])


def test_a_quantity_that_is_not_measured_is_refused():
    record = DriftRecord("finetune", ["a"], [0.0])
    with pytest.raises(ValueError, match="'speed'"):
        record.matrix("speed")


def test_a_stage_of_the_head_alone_logs_nothing():
    model = networks.compiled()
    for layer in model.layers[:-1]:
        layer.trainable = False
    networks.compile(model, networks.dual_opt())
    with pytest.warns(UserWarning, match="None of the trainable") as caught:
        history = model.fit(
            *networks.data(), callbacks=[Drift(every=1)], verbose=0
        )
    assert set(history.history) == {"loss"}
    # The warning points at the `fit` above.
    places = [
        one.filename for one in caught if "None of the" in str(one.message)
    ]
    assert places == [__file__]


def test_a_stage_of_the_head_alone_leaves_the_record_as_it_was():
    drift = Drift(every=1)
    model, _ = watched_fit(drift, networks.dual_opt())
    before = drift.record.matrix()
    for layer in model.layers[:-1]:
        layer.trainable = False
    networks.compile(model, networks.dual_opt())
    with pytest.warns(UserWarning, match="None of the trainable"):
        networks.fit(model, 1, callbacks=[drift])
    np.testing.assert_array_equal(drift.record.matrix(), before)


def test_a_model_that_is_built_by_its_first_step_is_watched():
    class Late(keras.Model):
        def __init__(self):
            super().__init__()
            self.body = keras.layers.Dense(3)
            self.head = keras.layers.Dense(2)

        def call(self, x):
            return self.head(self.body(x))

    model = Late()
    depth = {f"{model.name}/{model.body.name}/.*": 0.0, ".*": None}
    networks.compile(model, DualOpt(0.1, rollback=0.3, depth=depth))
    drift = Drift(every=1)
    networks.fit(model, 3, callbacks=[drift])
    # TensorFlow has nothing to copy before the first.
    first = 2 if BACKEND == "tensorflow" else 1
    assert list(drift.record.steps) == [*range(first, 4)]
    assert np.isfinite(drift.record.matrix("pull_share")).all()


needs_multi_optimizer = pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"),
    reason="Keras has had MultiOptimizer since 3.14",
)


@needs_multi_optimizer
def test_the_dualopt_beside_others_is_watched():
    model = networks.compiled()
    optimizers = keras.optimizers.OptimizerMap(model.optimizer)
    optimizers[f".*{model.layers[-1].name}/.*"] = keras.optimizers.SGD(0.01)
    networks.compile(model, keras.optimizers.MultiOptimizer(optimizers))
    drift = Drift(every=1)
    logs = model.fit(*networks.data(), callbacks=[drift], verbose=0).history
    assert logs["drift"][0] > 0.0
    assert len(drift.record.matrix("drift")) == networks.LAYERS - 1


@needs_multi_optimizer
def test_anchors_beside_other_optimizers_are_not_walked_to():
    model = networks.compiled()
    optimizers = keras.optimizers.OptimizerMap(model.optimizer)
    networks.compile(model, keras.optimizers.MultiOptimizer(optimizers))
    with pytest.raises(ValueError, match="Received: one compiled with a Multi"):
        interpolate(model, 0.5)


@pytest.mark.parametrize("name", ["drift.csv", "drift", "npz"])
def test_a_file_of_another_ending_is_refused(name):
    with pytest.raises(ValueError, match=r"`file`.*\.npz.*CSVLogger"):
        Drift(file=name)


@pytest.mark.parametrize("how", ["cut", "empty", "text", "other", "array"])
def test_a_file_that_is_no_record_is_named(tmp_path, how):
    path = tmp_path / "drift.npz"
    record = DriftRecord("finetune", ["a"], np.array([0.5]))
    record.save(path)
    whole = path.read_bytes()
    if how == "other":
        np.savez(path, weights=np.ones(3))
    elif how == "array":
        with path.open("wb") as file:
            np.save(file, np.ones(3))
    else:
        damaged = {"cut": whole[:-40], "empty": b"", "text": b"step,drift\n"}
        path.write_bytes(damaged[how])
    with pytest.raises(ValueError, match=r"drift\.npz.*Move it away"):
        DriftRecord.load(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        DriftRecord.load(path)
