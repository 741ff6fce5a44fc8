"""200 steps against the slow reference, in both modes, with both rules.

Every backend is held to the same float64 numbers at the same precision, so the
backends agree with each other to that precision as well.
"""

import keras
import numpy as np
import pytest
import reference
from cases import (
    DECAYS,
    DEPTHS,
    FINETUNE,
    LONG,
    SCHEDULES,
    SCRATCH,
    SHARES,
    initial_weights,
    make_variables,
    quadratic_gradient,
)
from loops import apply_steps, compiled_steps, values

from keras_dualopt import DualOpt, bases

RULES = {
    "adam": ("adam", reference.OlorAdam, {}),
    "sgd": ("sgd", reference.OlorSgd, {}),
    "adam, other betas": (
        lambda: bases.Adam(beta_1=0.7, beta_2=0.95, epsilon=1e-3),
        reference.OlorAdam,
        {"beta_1": 0.7, "beta_2": 0.95, "epsilon": 1e-3},
    ),
    "sgd, other beta": (
        lambda: bases.SGD(momentum=0.5),
        reference.OlorSgd,
        {"beta": 0.5},
    ),
}
MODES = {"finetune": FINETUNE, "scratch": SCRATCH}


def reference_weights(mode, algorithm, eta, arguments):
    """Return the reference's weights for the tables of `cases`."""
    if mode == "finetune":
        return [
            algorithm(theta_0, share / eta, **arguments)
            for theta_0, share in zip(initial_weights(), SHARES, strict=True)
        ]
    return [
        algorithm(theta_0, decay, anchor=0.0, **arguments)
        for theta_0, decay in zip(initial_weights(), DECAYS, strict=True)
    ]


def base_of(rule):
    base, algorithm, arguments = RULES[rule]
    return (base() if callable(base) else base), algorithm, arguments


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mode", MODES)
def test_trajectory_is_the_papers(mode, rule):
    schedule = SCHEDULES["cosine with warm-up from 0"]
    base, algorithm, arguments = base_of(rule)
    optimizer = DualOpt(schedule.make(), base=base, **MODES[mode])
    variables = make_variables()
    gradient = quadratic_gradient()

    trajectory = compiled_steps(optimizer, variables, gradient, 200)

    expected = reference.train(
        reference_weights(mode, algorithm, schedule.peak, arguments),
        gradient,
        schedule.rate,
        200,
    )
    assert len(trajectory) == len(expected) == 200
    for got, wanted in zip(trajectory, expected, strict=True):
        for value, theta in zip(got, wanted, strict=True):
            np.testing.assert_allclose(value, theta, **LONG)
    # The pull is what is measured: without it the end would be elsewhere.
    free = reference.train(
        [algorithm(theta, 0.0, **arguments) for theta in initial_weights()],
        gradient,
        schedule.rate,
        200,
    )
    assert np.abs(free[-1][0] - expected[-1][0]).max() > 0.01


def test_averages_of_adam_are_not_off_by_what_float32_makes_of_beta():
    """A constant gradient makes u_t its sign; a β₂ that is rounded does not.

    0.999 in float32 and 0.001 do not add up to 1. The error is too small for
    the trajectories above, but it is the same in every weight and every step.
    """
    random = np.random.default_rng(3)
    sign = random.choice([-1.0, 1.0], 4000)
    gradients = random.uniform(0.1, 3.0, 4000) * sign
    weight = keras.Variable(np.zeros(4000, "float32"), name="weight")
    optimizer = DualOpt(
        0.01,
        base=bases.Adam(beta_2=0.9999),
        rollback=0.0,
        depth={"weight": 0.0},
    )
    compiled_steps(optimizer, [weight], lambda step, theta: [gradients], 2000)
    weight.assign(np.zeros(4000, "float32"))
    (after,) = apply_steps(
        optimizer, [weight], lambda step, theta: [gradients], 1
    )[0]
    direction = -np.float64(after) * sign / np.float32(0.01)
    assert abs(direction.mean() - 1.0) < 1.5e-6


@pytest.mark.parametrize("rule", ["adam", "sgd"])
def test_anchors_are_the_weights_of_the_first_step(rule):
    optimizer = DualOpt(0.03, base=rule, **FINETUNE)
    variables = make_variables()
    starts = values(variables)
    compiled_steps(optimizer, variables, quadratic_gradient(), 3)
    for anchor, start, depth in zip(
        optimizer.anchors, starts, DEPTHS.values(), strict=True
    ):
        if depth is None:
            assert anchor is None
        else:
            np.testing.assert_array_equal(
                keras.ops.convert_to_numpy(anchor), start
            )


def test_anchors_are_none_in_scratch_mode():
    optimizer = DualOpt(0.03, **SCRATCH)
    variables = make_variables()
    compiled_steps(optimizer, variables, quadratic_gradient(), 1)
    assert optimizer.anchors == [None] * len(variables)


KEYWORDS = {
    "clipvalue": ({"clipvalue": 0.4}, {"clip": reference.by_value(0.4)}),
    "clipnorm": ({"clipnorm": 0.7}, {"clip": reference.by_norm(0.7)}),
    "global_clipnorm": (
        {"global_clipnorm": 0.9},
        {"clip": reference.by_global_norm(0.9)},
    ),
    "gradient_accumulation_steps": (
        {"gradient_accumulation_steps": 3},
        {"accumulate": 3},
    ),
    "use_ema": (
        {"use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": 5},
        {"ema": (0.8, 5)},
    ),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("keyword", KEYWORDS)
def test_keras_keywords_act_around_step_and_pull(keyword, mode):
    given, expected_by = KEYWORDS[keyword]
    base, algorithm, arguments = base_of("adam")
    optimizer = DualOpt(0.03, base=base, **MODES[mode], **given)
    variables = make_variables()
    gradient = quadratic_gradient()
    trajectory = compiled_steps(optimizer, variables, gradient, 24)
    expected = reference.train(
        reference_weights(mode, algorithm, 0.03, arguments),
        gradient,
        lambda step: 0.03,
        24,
        **expected_by,
    )
    for got, wanted in zip(trajectory, expected, strict=True):
        for value, theta in zip(got, wanted, strict=True):
            np.testing.assert_allclose(value, theta, **LONG)
