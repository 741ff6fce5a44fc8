"""What "real time" means: the pull never moves a weight away from its target.

OLOR Eq. 2: ordinary decoupled decay acts on θ_{t−1}. Where the gradient step
of the same t goes past 0, it pushes the weight further away from 0: the
"delay defect". DualOpt's pull acts on θ_pre, after the step.
"""

import keras
import numpy as np
import pytest
from loops import tensors, values

from keras_dualopt import DualOpt, bases

RATE = 0.1
DECAY = 4.0  # λ = η w = 0.4, as AdamW's units have it.
LAMBDA = RATE * DECAY

# (θ_{t−1}, g_t) in and outside of the condition of Eq. 2.
CROSSING = {
    "past zero, from above": (0.5, 8.3),
    "past zero, from below": (-0.7, -11.0),
    "almost to zero, from above": (0.5, 4.6),
    "almost to zero, from below": (-0.5, -4.1),
}
APPROACHING = {
    "half way to zero": (0.5, 2.3),
    "away from zero": (0.5, -3.1),
    "away from zero, from below": (-0.7, 1.9),
}
# The same points around another target than 0.
ANCHOR = 1.3


def delayed(theta, g, target=0.0):
    """Return Eq. 1 of OLOR, (1 − λ) θ_{t−1} − η g, around a target."""
    return theta - RATE * g - LAMBDA * (theta - target)


def one_step(optimizer, theta, g):
    variable = keras.Variable(np.float32([theta]), name="weight")
    optimizer.apply(tensors([[g]], [variable]), [variable])
    return float(values([variable])[0][0])


def satisfies_eq_2(theta, g):
    bound = (1.0 - LAMBDA / 2.0) * theta
    return RATE * g > bound if theta > 0 else RATE * g < bound


def scratch():
    # β = 0, so that the direction is the gradient itself, as in Eq. 1.
    return DualOpt(
        RATE,
        mode="scratch",
        base=bases.SGD(momentum=0.0),
        weight_decay=DECAY,
        weight_decay_min=0.3,
        depth={"weight": 1.0},
    )


@pytest.mark.parametrize("case", CROSSING)
def test_ordinary_decay_moves_a_weight_away_from_zero_and_ours_does_not(case):
    theta, g = CROSSING[case]
    assert satisfies_eq_2(theta, g)
    without = theta - RATE * g

    ordinary = one_step(
        keras.optimizers.SGD(RATE, weight_decay=DECAY), theta, g
    )
    np.testing.assert_allclose(ordinary, delayed(theta, g), rtol=1e-6)
    assert abs(ordinary) > abs(without)

    ours = one_step(scratch(), theta, g)
    np.testing.assert_allclose(ours, (1.0 - LAMBDA) * without, rtol=1e-6)
    assert abs(ours) < abs(without)


@pytest.mark.parametrize("case", APPROACHING)
def test_both_decays_move_towards_zero_outside_of_the_defect(case):
    theta, g = APPROACHING[case]
    assert not satisfies_eq_2(theta, g)
    without = theta - RATE * g
    ordinary = one_step(
        keras.optimizers.SGD(RATE, weight_decay=DECAY), theta, g
    )
    assert abs(ordinary) < abs(without)
    assert abs(one_step(scratch(), theta, g)) < abs(without)


@pytest.mark.parametrize("case", CROSSING)
def test_rollback_moves_towards_the_anchor_where_a_delayed_pull_does_not(case):
    offset, g = CROSSING[case]
    optimizer = DualOpt(
        RATE,
        base=bases.SGD(momentum=0.0),
        rollback=LAMBDA,
        depth={"weight": 0.0},
    )
    # θ₀ first, then a weight that has moved away from it since.
    variable = keras.Variable(np.float32([ANCHOR]), name="weight")
    optimizer.build([variable])
    optimizer.anchor_at()
    variable.assign(np.float32([ANCHOR + offset]))
    optimizer.apply(tensors([[g]], [variable]), [variable])

    without = ANCHOR + offset - RATE * g
    late = delayed(ANCHOR + offset, g, ANCHOR)
    assert abs(late - ANCHOR) > abs(without - ANCHOR)
    ours = float(values([variable])[0][0])
    np.testing.assert_allclose(
        ours, without - LAMBDA * (without - ANCHOR), rtol=1e-6
    )
    assert abs(ours - ANCHOR) < abs(without - ANCHOR)
