"""Weights in half precision: arithmetic in float32, cast once, at the end.

In bfloat16 a step counter sticks at 256, 1 − β₂ᵗ is garbage, and a step that is
rounded before the pull is another step.
"""

import keras
import networks
import numpy as np
import pytest
import reference
from cases import BACKEND, make_variables
from loops import compiled_steps, tensors, values

from keras_dualopt import DualOpt

HALF = ["bfloat16", "float16"]
RULES = {"adam": reference.OlorAdam, "sgd": reference.OlorSgd}


def rounded(array, dtype):
    """Return what is left of float values in half precision, as float64."""
    tensor = keras.ops.cast(np.asarray(array, dtype="float32"), dtype)
    tensor = keras.ops.cast(tensor, "float32")
    return np.array(keras.ops.convert_to_numpy(tensor)).astype("float64")


def weight(array, dtype):
    return keras.Variable(np.asarray(array), dtype=dtype, name="weight")


def test_bias_correction_is_right_after_1000_steps_in_bfloat16():
    """A constant gradient makes m̂/√v̂ its sign at every t, if corrected."""
    start = rounded([0.07, -0.05, 0.031, -0.06], "bfloat16")
    gradients = np.array([0.3, -2.0, 0.011, 7.0])
    variable = weight(start, "bfloat16")
    optimizer = DualOpt(0.01, rollback=0.2, depth={"weight": 0.0})
    trajectory = compiled_steps(
        optimizer, [variable], lambda step, theta: [gradients], 1000
    )
    expected = reference.train(
        [reference.OlorAdam(start, 0.2 / 0.01)],
        lambda step, theta: [gradients],
        lambda step: 0.01,
        1000,
    )
    # Half a last digit of θ ≈ 0.1 a step, and the pull forgets a fifth of it.
    rounding = {"rtol": 0.0, "atol": 2.0**-12 / 0.2 * 1.5}
    for step in (10, 255, 256, 257, 600, 999):
        got = np.float64(trajectory[step][0])
        np.testing.assert_allclose(got, expected[step][0], **rounding)
    # Where it settles: d = (1 − ρ)(d − η) ⇒ d = −η (1 − ρ)/ρ.
    settled = start - 0.04 * np.sign(gradients)
    np.testing.assert_allclose(
        np.float64(trajectory[-1][0]), settled, **rounding
    )
    assert int(optimizer.iterations) == 1000


def one_rounding(dtype, rule, base_rounds=False):
    """Return θ_1 with one cast at the end, or with one before the pull too."""
    random = np.random.default_rng(9)
    start = rounded(random.uniform(-1.5, 1.5, 4000), dtype)
    anchor = rounded(start + random.normal(0.0, 0.3, 4000), dtype)
    g = rounded(random.normal(0.0, 2.0, 4000), dtype)
    free = RULES[rule](start, 0.0)
    theta_pre = free.step(g, 0.05)
    if base_rounds:
        theta_pre = rounded(theta_pre, dtype)
    pulled = reference.pulled(theta_pre, anchor, 0.31)
    return start, anchor, g, rounded(pulled, dtype)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("rule", RULES)
def test_step_and_pull_are_cast_once(rule, dtype):
    start, anchor, g, wanted = one_rounding(dtype, rule)
    variable = weight(anchor, dtype)
    optimizer = DualOpt(0.05, base=rule, rollback=0.31, depth={"weight": 0.0})
    optimizer.build([variable])
    optimizer.anchor_at()
    variable.assign(tensors([start], [variable])[0])
    optimizer.apply(tensors([g], [variable]), [variable])
    (got,) = values([variable])
    # A few results lie so close to the middle of two half-precision numbers
    # that float32 and float64 round them to different sides.
    assert np.mean(got != wanted) < 0.002
    *_, twice = one_rounding(dtype, rule, base_rounds=True)
    assert np.mean(got != twice) > 0.1


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("rule", RULES)
def test_state_is_float32_and_anchors_are_as_wide_as_the_weights(rule, dtype):
    variable = weight(np.ones(3), dtype)
    optimizer = DualOpt(base=rule, depth={"weight": 0.0})
    optimizer.build([variable])
    base = optimizer._holder.base
    states = [v for v in base.variables if tuple(v.shape) == (3,)]
    assert states
    assert {state.dtype for state in states} == {"float32"}
    assert [anchor.dtype for anchor in optimizer.anchors] == [dtype]


@pytest.mark.parametrize("dtype", HALF)
def test_wrapped_base_warns_and_its_pull_is_float32(dtype):
    random = np.random.default_rng(3)
    start = rounded(random.uniform(-1.5, 1.5, 4000), dtype)
    g = rounded(random.normal(0.0, 2.0, 4000), dtype)
    pulled, free = weight(start, dtype), weight(start, dtype)
    dual = DualOpt(
        0.05, base=keras.optimizers.SGD(), rollback=0.31, depth={"weight": 0.0}
    )
    with pytest.warns(UserWarning, match="SGD also computes in it"):
        dual.build([pulled])
    dual.apply(tensors([g], [pulled]), [pulled])
    keras.optimizers.SGD(0.05).apply(tensors([g], [free]), [free])
    (theta_pre,) = values([free])
    wanted = rounded(reference.pulled(theta_pre, start, 0.31), dtype)
    (got,) = values([pulled])
    assert np.mean(got != wanted) < 0.002
    in_half = rounded(
        theta_pre - rounded(rounded(0.31, dtype) * (theta_pre - start), dtype),
        dtype,
    )
    assert np.mean(got != in_half) > 0.01


# Warnings are errors here: these two would fail if they warned.
def test_wrapped_base_does_not_warn_of_float32_weights():
    optimizer = DualOpt(base=keras.optimizers.SGD(), depth={".*": 0.0})
    optimizer.build(make_variables())


@pytest.mark.skipif(BACKEND == "jax", reason="JAX without x64 has no float64")
@pytest.mark.parametrize("rule", RULES)
def test_float64_weights_are_pulled_in_float64(rule):
    anchor = np.array([0.1, -1.3, 2.7])
    variable = weight(anchor, "float64")
    optimizer = DualOpt(0.5, base=rule, rollback=0.25, depth={"weight": 0.0})
    optimizer.build([variable])
    optimizer.anchor_at()
    variable.assign(tensors([anchor + 1.0 / 3.0], [variable])[0])
    optimizer.apply(tensors([np.zeros(3)], [variable]), [variable])
    (got,) = values([variable])
    np.testing.assert_allclose(got, anchor + 0.25, rtol=1e-15)


def test_bfloat16_model_follows_the_float32_one_in_fit():
    model = networks.compiled(
        dtype="bfloat16",
    )
    networks.fit(model, 12)
    variables = model.trainable_variables
    assert {variable.dtype for variable in variables} == {"bfloat16"}
    for value, theta, start in zip(
        values(variables),
        networks.expected(12)[-1],
        networks.weights(),
        strict=True,
    ):
        # The gradients are bfloat16's, with 8 bits; Adam takes their signs.
        assert np.linalg.norm(value - theta) < 0.15 * np.linalg.norm(start)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_keeps_weights_and_anchors_in_float32(policy):
    optimizer = networks.dual_opt()
    with_scale = policy == "mixed_float16"
    model = networks.compiled(
        keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0)
        if with_scale
        else optimizer,
        networks.weights(),
        dtype=policy,
    )
    networks.fit(model, 4)
    wanted = networks.expected(4)
    for value, theta in zip(
        values(model.trainable_variables), wanted[-1], strict=True
    ):
        assert value.dtype == "float32"
        assert np.abs(value - theta).max() < 0.05
    networks.assert_anchored_at(optimizer, networks.weights())


def test_step_that_loss_scaling_skips_does_not_pull():
    optimizer = DualOpt(0.05, rollback=0.3, depth={"weight": 0.0})
    scaled = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=4.0)
    variable = weight(np.array([0.5, -1.0]), "float32")
    scaled.build([variable])
    optimizer.anchor_at()
    variable.assign(np.array([0.9, -0.4]))
    before = values([variable])[0]
    scaled_gradients = [np.array([np.inf, 1.0]), 4.0 * np.array([0.1, 0.2])]
    skipped, taken = compiled_steps(
        scaled, [variable], lambda step, theta: [scaled_gradients[step]], 2
    )
    np.testing.assert_array_equal(skipped[0], before)
    # The first real step of Adam: η in the direction of the sign.
    moved = before - 0.05 * np.sign([0.1, 0.2])
    anchor = np.array([0.5, -1.0])
    np.testing.assert_allclose(
        taken[0], moved - 0.3 * (moved - anchor), rtol=1e-5
    )
