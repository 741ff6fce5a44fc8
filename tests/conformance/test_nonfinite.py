"""NaN and ±inf may ruin weights; θ₀ stays what it was captured as.

What a non-finite gradient does to its own weight is the base optimizer's
affair, and the same as without DualOpt. It reaches no other weight (but by
`global_clipnorm`), and never θ₀, in memory and in files.
"""

import keras
import loops
import networks
import numpy as np
import pytest
from cases import (
    BACKEND,
    BASES,
    DEPTHS,
    FINETUNE,
    SCRATCH,
    initial_weights,
    make_variables,
    quadratic_gradient,
)

from keras_dualopt import DualOpt, interpolate, review

RATE, STEPS = 0.03, 4
BAD = (np.nan, np.inf, -np.inf)
# The weights, of the table in `cases`, that BAD goes into; the others are not
# to notice.
POISONED = (0, 2, 3)
ANCHORED = [i for i, depth in enumerate(DEPTHS.values()) if depth is not None]

# row: () → an optimizer
ROWS = {
    "adam": lambda: DualOpt(RATE, base="adam", **FINETUNE),
    "sgd": lambda: DualOpt(RATE, base="sgd", **FINETUNE),
    "wrapped": lambda: DualOpt(RATE, base=BASES["Adam"](RATE), **FINETUNE),
    "scratch adam": lambda: DualOpt(RATE, base="adam", **SCRATCH),
    "scratch sgd": lambda: DualOpt(RATE, base="sgd", **SCRATCH),
    "scratch wrapped": lambda: DualOpt(
        RATE, base=BASES["Adam"](RATE, decay=False), **SCRATCH
    ),
}
# Half precision is what torch's fused kernels hand back to the plain path. A
# Keras optimizer does not train it.
WAYS = [
    (row, way)
    for row in ROWS
    for way in (
        ("eager", "compiled", "bfloat16")
        if "wrapped" not in row
        else ("eager",)
    )
]


def run(row, way, poison=None):
    """Train; return the optimizer, its variables and the last weights."""
    variables = make_variables(
        dtype="bfloat16" if way == "bfloat16" else "float32"
    )
    clean = quadratic_gradient()

    def gradient(step, weights):
        found = clean(step, weights)
        if step == poison:
            for index, bad in zip(POISONED, BAD, strict=True):
                found[index].flat[1] = bad
        return found

    optimizer = ROWS[row]()
    steps = loops.compiled_steps if way == "compiled" else loops.apply_steps
    last = steps(optimizer, variables, gradient, STEPS)[-1]
    return optimizer, variables, last


_clean = {}


def clean_run(row, way):
    if (row, way) not in _clean:
        _clean[row, way] = run(row, way)[2]
    return _clean[row, way]


def assert_anchored_at_the_start(optimizer, dtype="float32"):
    """In memory, and in what is written, to the last bit."""
    store = {}
    optimizer.save_own_variables(store)
    start = make_variables(dtype=dtype)
    for index, anchor in enumerate(optimizer.anchors):
        if optimizer.mode == "scratch" or index not in ANCHORED:
            assert anchor is None
            assert f"anchors.{index}" not in store
            continue
        wanted = networks.arrays([start[index]])[0]
        for found in (networks.arrays([anchor])[0], store[f"anchors.{index}"]):
            assert found.dtype == wanted.dtype
            assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize(("row", "way"), WAYS)
def test_bad_gradient_reaches_no_other_weight_and_no_anchor(row, way, step):
    optimizer, variables, last = run(row, way, poison=step)
    assert_anchored_at_the_start(optimizer, variables[0].dtype)
    for index, (value, wanted) in enumerate(
        zip(last, clean_run(row, way), strict=True)
    ):
        assert np.isfinite(wanted).all()
        if index in POISONED:
            assert not np.isfinite(value.flat[1])
            value.flat[1] = wanted.flat[1]
        np.testing.assert_array_equal(value, wanted)


@pytest.mark.skipif(BACKEND != "torch", reason="a layout only torch has")
@pytest.mark.parametrize("row", ["adam", "sgd", "scratch adam"])
def test_bad_gradient_of_another_layout_reaches_no_anchor(row, monkeypatch):
    """The fused kernels take it as a copy."""

    def tensors(gradients, variables):
        found = [
            keras.ops.convert_to_tensor(np.stack([g, g], -1), "float32")[..., 0]
            for g in gradients
        ]
        assert not any(tensor.is_contiguous() for tensor in found)
        return found

    monkeypatch.setattr(loops, "tensors", tensors)
    optimizer, _, last = run(row, "eager", poison=0)
    assert_anchored_at_the_start(optimizer)
    for index in {*range(len(last))} - {*POISONED}:
        np.testing.assert_array_equal(
            last[index], clean_run(row, "eager")[index]
        )


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("row", ["adam", "sgd", "wrapped"])
def test_bad_weight_reaches_no_anchor(row, bad):
    variables, gradient = make_variables(), quadratic_gradient()
    optimizer = ROWS[row]()
    loops.apply_steps(optimizer, variables, gradient, 2)
    for variable in variables:
        variable.assign(keras.ops.full(variable.shape, bad))
    loops.apply_steps(optimizer, variables, gradient, 2)
    assert_anchored_at_the_start(optimizer)
    assert not any(np.isfinite(v).any() for v in loops.values(variables))
    # The pull has not been harmed: where the base's state is new, it works.
    fresh = ROWS[row]()
    fresh.build(variables)
    fresh.anchor_at(optimizer)
    for variable, value in zip(variables, initial_weights(), strict=True):
        variable.assign(value)
    wanted = run(row, "eager")[2]
    found = loops.apply_steps(fresh, variables, gradient, STEPS)[-1]
    networks.assert_same(found, wanted)


class Failing(keras.optimizers.schedules.LearningRateSchedule):
    """Gives a bad rate at one step."""

    def __init__(self, bad, at):
        self.bad, self.at = bad, at

    def __call__(self, step):
        return keras.ops.where(keras.ops.equal(step, self.at), self.bad, RATE)


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("row", ["adam", "sgd", "wrapped"])
@pytest.mark.parametrize("kind", ["assigned", "schedule"])
def test_bad_learning_rate_reaches_no_anchor(kind, row, bad, step):
    variables, gradient = make_variables(), quadratic_gradient()
    if kind == "schedule":
        base = BASES["Adam"](RATE) if row == "wrapped" else row
        optimizer = DualOpt(
            Failing(bad, step),
            base=base,
            reference_learning_rate=RATE,
            **FINETUNE,
        )
        loops.apply_steps(optimizer, variables, gradient, 3)
    else:
        optimizer = ROWS[row]()
        for number in range(3):
            optimizer.learning_rate = bad if number == step else RATE
            loops.apply_steps(optimizer, variables, gradient, 1)
    assert_anchored_at_the_start(optimizer)
    assert not any(np.isfinite(v).any() for v in loops.values(variables))


@pytest.mark.parametrize("row", ["adam", "wrapped"])
def test_weights_that_are_bad_at_the_first_step_are_refused(row):
    """No anchor is NaN: nothing is trained until the weights are mended."""
    variables, gradient = make_variables(), quadratic_gradient()
    middle = np.array(loops.values(variables)[2])
    middle.flat[1] = np.nan
    variables[2].assign(middle)
    optimizer = ROWS[row]()
    before = loops.values(variables)
    with pytest.raises(ValueError, match=r"must be finite\. .*'middle/kernel'"):
        loops.apply_steps(optimizer, variables, gradient, 1)
    networks.assert_same(loops.values(variables), before)
    variables[2].assign(initial_weights()[2])
    loops.apply_steps(optimizer, variables, gradient, 1)
    assert_anchored_at_the_start(optimizer)


def small(value=None):
    """Return a compiled model of two layers, one weight of it replaced."""
    model = networks.compiled()
    if value is not None:
        kernel = model.trainable_variables[2]
        kernel.assign(keras.ops.full(kernel.shape, value))
    return model


def own_weights(model, tmp_path):
    kernel = model.trainable_variables[2]
    kernel.assign(small(np.nan).trainable_variables[2])


def other_model(model, tmp_path):
    return small(np.inf)


def weights_file(model, tmp_path):
    small(-np.inf).save_weights(tmp_path / "x.weights.h5")
    return tmp_path / "x.weights.h5"


def other_optimizer(model, tmp_path):
    other = small(np.nan)
    other.optimizer.build(other.trainable_variables)
    return other.optimizer


@pytest.mark.parametrize(
    "make", [own_weights, other_model, weights_file, other_optimizer]
)
def test_no_one_can_anchor_at_what_is_not_finite(make, tmp_path):
    model = small()
    networks.fit(model, 1)
    optimizer = model.optimizer
    source = make(model, tmp_path)
    before = networks.arrays(optimizer.variables)
    with pytest.raises(
        ValueError,
        match=r"must be finite.*Received: 20 values of .*dense_1/"
        r"kernel' that are NaN or infinite\. The anchors are as they were",
    ):
        optimizer.anchor_at(source)
    networks.assert_same(networks.arrays(optimizer.variables), before)
    networks.assert_anchored_at(optimizer, networks.weights())


@pytest.mark.skipif(BACKEND == "jax", reason="JAX without x64 has no float64")
def test_what_only_float64_holds_is_finite():
    start = [np.float64(array) for array in networks.weights()]
    start[2][1, 1] = start[3][1] = 1e39
    model = networks.network(start, dtype="float64")
    networks.compile(model, networks.dual_opt())
    networks.fit(model, 1)
    networks.assert_anchored_at(model.optimizer, start)
    model.set_weights(start)
    networks.compile(model, networks.dual_opt().anchor_at())
    networks.fit(model, 1)
    networks.assert_anchored_at(model.optimizer, start)


@pytest.mark.parametrize("ending", [".weights.h5", ".keras"])
def test_a_ruined_run_goes_back_to_its_anchors(ending, tmp_path):
    model = small()
    networks.fit(model, 1)
    x, y = networks.data(1)
    x[0, 0] = np.nan
    model.train_on_batch(x, y)
    ruined = networks.arrays(model.trainable_variables)
    assert not any(np.isfinite(value).all() for value in ruined)
    path = tmp_path / f"x{ending}"
    if ending == ".keras":
        model.save(path)
        model = keras.saving.load_model(path)
    else:
        model.save_weights(path)
        model = small()
        model.optimizer.build(model.trainable_variables)
        model.load_weights(path)
    start = networks.weights()
    networks.assert_anchored_at(model.optimizer, start)
    for alpha in review(model, steps=3):
        if alpha == 0.0:
            networks.assert_same(
                networks.arrays(model.trainable_variables)[:-2], start[:-2]
            )
    networks.assert_same(networks.arrays(model.trainable_variables), ruined)
    interpolate(model, 0.0)
    networks.assert_same(
        networks.arrays(model.trainable_variables)[:-2], start[:-2]
    )
    # The averages are ruined, too: a new optimizer with the old anchors.
    model.set_weights(
        networks.arrays(model.trainable_variables)[:-2] + start[-2:]
    )
    again = networks.dual_opt()
    networks.compile(model, again.anchor_at(model.optimizer))
    networks.fit(model, 2)
    networks.assert_anchored_at(again, start)
    networks.assert_close(model, networks.expected(2)[-1])


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("taken", [False, True])
def test_a_step_that_loss_scaling_skips_changes_nothing(taken, bad):
    model = networks.network(networks.weights())
    inner = networks.dual_opt().bind(model)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0)
    variables = model.trainable_variables
    optimizer.build(variables)

    def step(last):
        gradients = [np.full(v.shape, 0.3, "float32") for v in variables]
        gradients[-1][0] = last
        loops.compiled_steps(optimizer, variables, lambda *_: gradients, 1)

    if taken:
        step(0.7)
    before = networks.arrays([*variables, *inner.variables])
    step(bad)
    networks.assert_same(
        networks.arrays([*variables, *inner.variables]), before
    )
    assert int(optimizer.step_counter) == 0
    assert float(optimizer.dynamic_scale) == 2.0
    step(0.7)
    networks.assert_anchored_at(optimizer, networks.weights())
    assert int(inner.iterations) == 1 + taken
