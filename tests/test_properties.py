"""Laws that hold for any configuration in range and any gradient.

Exactly, in floating point, where the specification says so: ρ = 0 leaves
θ_pre, ρ = 1 gives the anchor, θ_pre = a stays a, and no pull overshoots.
"""

import json

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loops import compiled, tensors, values

from keras_dualopt import DualOpt, bases
from keras_dualopt.pull import (
    Level,
    Pull,
    decay_strength,
    pulled,
    rollback_strength,
    way,
)

# The same examples every time: a failure here must not depend on the day.
thorough = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
brief = settings(thorough, max_examples=100)

LARGEST = 1e15
SIZE = 5


def float32s(low=-LARGEST, high=LARGEST):
    low, high = float(np.float32(low)), float(np.float32(high))
    # XLA may flush subnormal numbers to 0.
    return st.floats(low, high, width=32, allow_subnormal=False)


def arrays(elements):
    return st.lists(elements, min_size=SIZE, max_size=SIZE).map(np.float32)


shares = st.floats(0.0, 1.0, width=32, allow_subnormal=False)


def pull(value, anchor, ratio):
    """Call `pulled` on NumPy arrays."""
    anchor = 0.0 if anchor is None else keras.ops.convert_to_tensor(anchor)
    result = pulled(
        keras.ops.convert_to_tensor(value),
        anchor,
        *way(keras.ops.convert_to_tensor(np.float32(ratio))),
    )
    return np.array(keras.ops.convert_to_numpy(result))


anchors = st.one_of(st.none(), arrays(float32s()))


@thorough
@given(arrays(float32s()), anchors)
def test_no_share_leaves_the_weight(value, anchor):
    np.testing.assert_array_equal(pull(value, anchor, 0.0), value)


@thorough
@given(arrays(float32s()), anchors)
def test_whole_share_gives_the_anchor(value, anchor):
    wanted = np.zeros(SIZE) if anchor is None else anchor
    np.testing.assert_array_equal(pull(value, anchor, 1.0), wanted)


@thorough
@given(arrays(float32s()), shares)
def test_weight_at_its_anchor_stays(value, ratio):
    np.testing.assert_array_equal(pull(value, value, ratio), value)
    nothing = np.zeros(SIZE, "float32")
    np.testing.assert_array_equal(pull(nothing, None, ratio), nothing)


@thorough
@given(arrays(float32s()), anchors, shares)
def test_pull_ends_between_weight_and_anchor(value, anchor, ratio):
    got = pull(value, anchor, ratio)
    target = np.zeros(SIZE, "float32") if anchor is None else anchor
    assert (np.minimum(value, target) <= got).all()
    assert (got <= np.maximum(value, target)).all()


@thorough
@given(arrays(float32s(-1e6, 1e6)), anchors, shares)
def test_pull_removes_its_share_of_the_distance(value, anchor, ratio):
    target = np.zeros(SIZE) if anchor is None else np.float64(anchor)
    wanted = (1.0 - float(ratio)) * np.float64(value) + float(ratio) * target
    largest = np.maximum(np.abs(value), np.abs(target))
    error = np.abs(pull(value, anchor, ratio) - wanted)
    # The smallest normal number: below it XLA may answer 0.
    assert (error <= 2e-7 * largest + 1.2e-38).all()


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.49999997, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("anchored", [True, False])
def test_laws_hold_when_compiled(anchored, ratio):
    """XLA fuses multiplications into additions and may reorder them."""
    random = np.random.default_rng(1)
    scale = 10.0 ** random.uniform(-20, 15, 20_000)
    value = (random.normal(size=20_000) * scale).astype("float32")
    target = (value * random.choice([1.0, 0.9, -3.0], 20_000)).astype("float32")
    arguments = [keras.ops.convert_to_tensor(value)]
    if anchored:
        arguments.append(keras.ops.convert_to_tensor(target))
        function = compiled(lambda v, a, ratio: pulled(v, a, *way(ratio)))
    else:
        target = np.zeros_like(target)
        function = compiled(lambda v, ratio: pulled(v, 0.0, *way(ratio)))
    share = keras.ops.convert_to_tensor(np.float32(ratio))
    got = np.array(keras.ops.convert_to_numpy(function(*arguments, share)))
    same = value == target
    np.testing.assert_array_equal(got[same], value[same])
    if ratio in (0.0, 1.0):
        np.testing.assert_array_equal(got, value if ratio == 0.0 else target)
    assert (np.minimum(value, target) <= got).all()
    assert (got <= np.maximum(value, target)).all()


@brief
@given(
    float32s(-1e30, 1e30),
    st.floats(0.0, 1.0),
    st.floats(1e-8, 1e3),
)
def test_share_is_between_nothing_and_the_whole_way(rate, strength, eta):
    made = Pull([Level(strength)], [None], eta)
    ratio = float(made.ratio(strength, keras.ops.cast(rate, "float32")))
    assert made.host_ratios(rate) == {Level(strength): pytest.approx(ratio)}
    assert 0.0 <= ratio <= 1.0
    exact = min(max(float(np.float32(rate)) * strength / eta, 0.0), 1.0)
    np.testing.assert_allclose(ratio, exact, rtol=1e-5, atol=1e-28)


levels = st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)).map(sorted)
powers = st.floats(0.01, 20.0)


@thorough
@given(levels, powers, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_strength_falls_with_depth_or_rises(level, power, one, other):
    low, high = level
    shallow, deep = sorted([one, other])
    slack = 1e-15
    down = [rollback_strength(r, high, low, power) for r in (shallow, deep)]
    up = [decay_strength(r, high, low, power) for r in (shallow, deep)]
    assert high + slack >= down[0] >= down[1] - slack >= low - 2 * slack
    assert low - slack <= up[0] <= up[1] + slack <= high + 2 * slack


@thorough
@given(levels, powers)
def test_strength_is_the_levels_at_both_ends(level, power):
    low, high = level
    assert rollback_strength(1.0, high, low, power) == low
    assert decay_strength(0.0, high, low, power) == low
    for full in (
        rollback_strength(0.0, high, low, power),
        decay_strength(1.0, high, low, power),
    ):
        np.testing.assert_allclose(full, high, rtol=1e-15, atol=1e-16)
    # ρ = 1 must be 1 to the last bit: it gives the anchor.
    assert rollback_strength(0.0, 1.0, low, power) == 1.0


@st.composite
def configurations(draw):
    """Draw the arguments of a DualOpt, any in their range."""
    mode = draw(st.sampled_from(["finetune", "scratch"]))
    low, high = draw(levels)
    arguments = {
        "mode": mode,
        "learning_rate": draw(st.floats(1e-7, 1.0)),
        "power": draw(powers),
        "depth": {"weight": draw(st.floats(0.0, 1.0)), ".*": 0.5},
        "exclude": draw(st.sampled_from([None, "bias", [".*bias", "b.*"]])),
        "clipnorm": draw(st.none() | st.floats(1e-3, 1e3)),
        "use_ema": draw(st.booleans()),
    }
    if mode == "finetune":
        arguments["rollback"], arguments["rollback_min"] = high, low
        arguments["reference_learning_rate"] = draw(
            st.none() | st.floats(1e-7, 1.0)
        )
    else:
        largest = draw(st.floats(0.0, 1e4))
        arguments["weight_decay"] = high * largest
        arguments["weight_decay_min"] = low * largest
    rule = draw(
        st.one_of(
            st.builds(
                dict,
                beta_1=st.floats(0.0, 0.999),
                beta_2=st.floats(0.0, 0.99999),
                epsilon=st.floats(1e-12, 1.0),
            ).map(lambda given: (bases.Adam, given)),
            st.builds(dict, momentum=st.floats(0.0, 0.999)).map(
                lambda given: (bases.SGD, given)
            ),
        )
    )
    return arguments, rule


@thorough
@given(configurations())
def test_config_round_trip_is_equal(drawn):
    arguments, (rule, given_to_rule) = drawn
    optimizer = DualOpt(base=rule(**given_to_rule), **arguments)
    config = optimizer.get_config()
    for name, value in given_to_rule.items():
        assert config["base"]["config"][name] == value
    for name in ("mode", "power", "rollback", "weight_decay_min"):
        if name in arguments:
            assert config[name] == arguments[name]
    again = DualOpt.from_config(json.loads(json.dumps(config, sort_keys=True)))
    assert again.get_config() == config


@brief
@given(
    configurations(),
    arrays(float32s(-10.0, 10.0)),
    arrays(float32s(-10.0, 10.0)),
    st.lists(arrays(float32s()), min_size=1, max_size=3),
)
def test_any_step_is_finite_and_ends_nearer_to_the_anchor(
    drawn, start, anchor, gradients
):
    arguments, (rule, given_to_rule) = drawn
    arguments = {**arguments, "clipnorm": None, "use_ema": False}
    arguments["depth"] = {"weight": arguments["depth"]["weight"]}
    arguments["exclude"] = None
    rate = arguments["learning_rate"]
    dual = DualOpt(base=rule(**given_to_rule), **arguments)
    alone = rule(**given_to_rule, learning_rate=rate)
    variable = keras.Variable(anchor, name="weight")
    free = keras.Variable(start, name="weight")
    dual.build([variable])
    if arguments["mode"] == "finetune":
        dual.anchor_at()
    else:
        anchor = np.zeros(SIZE)
    variable.assign(start)
    for gradient in gradients:
        free.assign(values([variable])[0])
        dual.apply(tensors([gradient], [variable]), [variable])
        alone.apply(tensors([gradient], [free]), [free])
        (theta,), (theta_pre,) = values([variable]), values([free])
        assert np.isfinite(theta).all()
        largest = np.maximum(np.abs(theta_pre), np.abs(anchor))
        assert (
            np.abs(np.float64(theta) - anchor)
            <= np.abs(np.float64(theta_pre) - anchor) + 3e-7 * largest
        ).all()


BASES = {
    "adam": lambda: "adam",
    "sgd": lambda: "sgd",
    "Keras' SGD": lambda: keras.optimizers.SGD(momentum=0.9),
}


@pytest.mark.parametrize("base", BASES)
@brief
@given(arrays(float32s()), st.floats(0.0, 1.0))
def test_weights_at_their_anchors_stay_in_a_step(base, anchor, strength):
    """θ_pre = a stays a, through whatever path the backend takes."""
    variables = [
        keras.Variable(np.resize(anchor, shape), name=name)
        for name, shape in (("one", (5,)), ("other", (7, 3)))
    ]
    dual = DualOpt(
        0.5, base=BASES[base](), rollback=strength, depth={".*": 0.0}
    )
    dual.build(variables)
    dual.anchor_at()
    start = values(variables)
    zeros = [np.zeros(v.shape, "float32") for v in variables]
    for _ in range(2):
        dual.apply(tensors(zeros, variables), variables)
    for value, theta in zip(values(variables), start, strict=True):
        np.testing.assert_array_equal(value, theta)
