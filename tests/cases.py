"""The tables of the tests: weights, depths, schedules and base optimizers.

No point is special: θ₀ ≠ 0, γ is not an integer, ι₂ > 0, the depths are not
evenly spaced, and every base has arguments that are not its defaults.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import reference

BACKEND = keras.backend.backend()

# Long trajectories and single steps, as the house style asks.
LONG = {"rtol": 1e-5, "atol": 1e-6}
SHORT = {"rtol": 1e-6, "atol": 1e-6}

# name: (shape, relative depth; None for a head that was not pretrained).
LAYERS = {
    "stem/kernel": ((3, 3, 2, 3), 0.0),
    "stem/bias": ((3,), 0.0),
    "middle/kernel": ((3, 5), 0.37),
    "deep/kernel": ((5, 4), 1.0),
    "deep/bias": ((4,), 1.0),
    "head/kernel": ((4, 2), None),
}
DEPTHS = {name: depth for name, (_, depth) in LAYERS.items()}
# In scratch mode the head counts: it is the deepest.
SCRATCH_DEPTHS = {
    name: 1.0 if depth is None else 0.8 * depth
    for name, depth in DEPTHS.items()
}

FINETUNE = {
    "mode": "finetune",
    "rollback": 0.21,
    "rollback_min": 0.013,
    "power": 1.7,
    "depth": DEPTHS,
}
SCRATCH = {
    "mode": "scratch",
    "weight_decay": 0.9,
    "weight_decay_min": 0.11,
    "power": 1.7,
    "depth": SCRATCH_DEPTHS,
}

# What the tables above mean, by the paper's formulas: the share of the way
# back at the reference learning rate, and the decay rate, for each row.
SHARES = [
    0.0 if depth is None else reference.f(depth, 0.21, 0.013, 1.7)
    for depth in DEPTHS.values()
]
DECAYS = [
    reference.w(depth, 0.9, 0.11, 1.7) for depth in SCRATCH_DEPTHS.values()
]


def initial_weights(seed=7):
    """Return θ₀ for every row of `LAYERS`, none of it 0."""
    random = np.random.default_rng(seed)
    return [
        random.uniform(0.2, 1.5, shape) * random.choice([-1.0, 1.0], shape)
        for shape, _ in LAYERS.values()
    ]


def make_variables(values=None, dtype="float32"):
    """Return trainable variables named like the rows of `LAYERS`."""
    values = initial_weights() if values is None else values
    variables = []
    for name, value in zip(LAYERS, values, strict=True):
        scope, _, own = name.rpartition("/")
        with keras.name_scope(scope):
            variables.append(
                keras.Variable(np.array(value), dtype=dtype, name=own)
            )
    return variables


def quadratic_gradient(seed=11):
    """Return the gradient of a noisy quadratic, a function of (step, [θ]).

    It depends on θ, so that an error in one step is carried to all later ones.
    """
    random = np.random.default_rng(seed)
    shapes = [shape for shape, _ in LAYERS.values()]
    goals = [random.normal(0.0, 1.0, shape) for shape in shapes]
    curvatures = [random.uniform(0.3, 3.0, shape) for shape in shapes]

    def gradient(step, weights):
        noise = np.random.default_rng([seed, step])
        return [
            curvature * (weight - goal) + noise.normal(0.0, 0.5, goal.shape)
            for weight, goal, curvature in zip(
                weights, goals, curvatures, strict=True
            )
        ]

    return gradient


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A learning rate three times: for Keras, for NumPy, and its peak."""

    make: Callable[[], Any]
    rate: Callable[[int], float]
    peak: float


def _cosine(rate, steps, alpha, step):
    share = 0.5 * (1.0 + math.cos(math.pi * min(step / steps, 1.0)))
    return rate * ((1.0 - alpha) * share + alpha)


def _warm_up(step):
    if step < 20:
        return 0.03 * step / 20
    return _cosine(0.03, 180, 0.1, step - 20)


def _restarts(step):
    # `m_mul` scales the cosine alone, not the floor that `alpha` sets.
    start, length, share = 0.0, 7.5, 1.0
    while step >= start + length:
        start, length, share = start + length, length * 2.0, share * 0.8
    return share * _cosine(0.02, length, 0.0, step - start) * 0.9 + 0.002


def _polynomial(step):
    # 16 steps, not 15: XLA turns step/15 into step·(1/15), which is more than
    # 1 at the end, and Keras' schedule then returns NaN for this power.
    share = 1.0 - min(step, 16) / 16
    return (0.02 - 0.005) * share**1.5 + 0.005


_schedules = keras.optimizers.schedules

SCHEDULES = {
    "float": Schedule(lambda: 0.03, lambda step: 0.03, 0.03),
    "cosine with warm-up from 0": Schedule(
        lambda: _schedules.CosineDecay(
            0.0, 180, alpha=0.1, warmup_target=0.03, warmup_steps=20
        ),
        _warm_up,
        0.03,
    ),
    "cosine": Schedule(
        lambda: _schedules.CosineDecay(0.02, 17, alpha=0.2),
        lambda step: _cosine(0.02, 17, 0.2, step),
        0.02,
    ),
    "cosine restarts": Schedule(
        lambda: _schedules.CosineDecayRestarts(
            0.02, 7.5, t_mul=2.0, m_mul=0.8, alpha=0.1
        ),
        _restarts,
        0.02,
    ),
    "exponential": Schedule(
        lambda: _schedules.ExponentialDecay(0.02, 9, 0.7, staircase=True),
        lambda step: 0.02 * 0.7 ** (step // 9),
        0.02,
    ),
    "inverse time": Schedule(
        lambda: _schedules.InverseTimeDecay(0.02, 9, 0.7),
        lambda step: 0.02 / (1.0 + 0.7 * step / 9),
        0.02,
    ),
    "piecewise, highest in the middle": Schedule(
        lambda: _schedules.PiecewiseConstantDecay([4, 11], [0.01, 0.03, 0.005]),
        lambda step: 0.01 if step <= 4 else 0.03 if step <= 11 else 0.005,
        0.03,
    ),
    "polynomial": Schedule(
        lambda: _schedules.PolynomialDecay(0.02, 16, 0.005, power=1.5),
        _polynomial,
        0.02,
    ),
    "polynomial that rises": Schedule(
        lambda: _schedules.PolynomialDecay(0.005, 15, 0.02, power=1.0),
        lambda step: 0.005 + (0.02 - 0.005) * min(step, 15) / 15,
        0.02,
    ),
}


def _without_bias_decay(optimizer):
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


_optimizers = keras.optimizers

# name: make(learning_rate, decay) → a fresh base. `decay` False: without the
# decoupled decay of its own, as scratch mode demands.
BASES = {
    "Adam": lambda rate, decay=True: _optimizers.Adam(
        rate, beta_1=0.8, beta_2=0.98, epsilon=1e-6, amsgrad=True
    ),
    "AdamW": lambda rate, decay=True: _without_bias_decay(
        _optimizers.AdamW(rate, weight_decay=0.3 if decay else 0.0)
    ),
    "Adamax": lambda rate, decay=True: _optimizers.Adamax(rate, beta_1=0.8),
    "Adagrad": lambda rate, decay=True: _optimizers.Adagrad(
        rate, initial_accumulator_value=0.3
    ),
    "Adadelta": lambda rate, decay=True: _optimizers.Adadelta(rate, rho=0.9),
    "Adafactor": lambda rate, decay=True: _optimizers.Adafactor(
        rate, clip_threshold=0.9
    ),
    "SGD Nesterov": lambda rate, decay=True: _optimizers.SGD(
        rate, momentum=0.8, nesterov=True, weight_decay=0.2 if decay else None
    ),
    "RMSprop": lambda rate, decay=True: _optimizers.RMSprop(
        rate, rho=0.8, momentum=0.6, centered=True
    ),
    "Lion": lambda rate, decay=True: _optimizers.Lion(
        rate, beta_1=0.8, beta_2=0.95
    ),
    "Lamb": lambda rate, decay=True: _optimizers.Lamb(rate, beta_1=0.8),
    "Muon": lambda rate, decay=True: _optimizers.Muon(
        rate,
        adam_lr_ratio=0.7,
        exclude_layers=["deep"],
        weight_decay=0.2 if decay else 0.0,
        adam_weight_decay=0.3 if decay else 0.0,
    ),
    "Nadam": lambda rate, decay=True: _optimizers.Nadam(rate, beta_1=0.8),
}
