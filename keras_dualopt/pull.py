"""How strongly a weight is pulled, and the pull itself: the only ρ there is.

The equations are those of Huang et al., "One Step Learning, One Step Review",
AAAI 2024, arXiv:2401.10962 (OLOR), and of `DualOpt`'s docstring.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_dualopt.backend import Tensor, engine


def rollback_strength(
    relative: float, rollback: float, rollback_min: float, power: float
) -> float:
    """Return ι₂ + (1 − r)^γ (ι₁ − ι₂) (OLOR Eq. 8 and 9, r for their i/n).

    The share of the way back to θ₀ in one step at the reference learning rate.
    """
    # A negative base and a non-integer γ would turn complex.
    share: float = min(max(1.0 - relative, 0.0), 1.0) ** power
    return rollback_min + share * (rollback - rollback_min)


def decay_strength(
    relative: float, weight_decay: float, weight_decay_min: float, power: float
) -> float:
    """Return w₂ + r^γ (w₁ − w₂), in AdamW's units: times the learning rate."""
    share: float = min(max(relative, 0.0), 1.0) ** power
    return weight_decay_min + share * (weight_decay - weight_decay_min)


def reach_at(
    relative: float, reach: float, reach_max: float, power: float
) -> float:
    """Return R with 1/R = 1/R₂ + (1 − r)^γ (1/R₁ − 1/R₂); R₂ may be infinite.

    For small ρ that is `rollback_strength` with ι = η/R.
    """
    share: float = min(max(1.0 - relative, 0.0), 1.0) ** power
    if share == 0.0 or reach == reach_max:
        return reach_max
    if share == 1.0:
        return reach
    ratio = reach / reach_max
    return reach / (ratio + share * (1.0 - ratio))


def compute_dtype(dtype: str) -> str:
    """Return the dtype of the update's arithmetic: float32 or wider.

    In half precision a pull of 1e-5 rounds to nothing and 1 − β₂ᵗ is garbage.
    """
    return "float64" if dtype == "float64" else "float32"


class Level(NamedTuple):
    """How the weights of one depth are pulled, and how fast they move.

    Args:
        amount: What sets ρ: the share of the way at the reference learning
            rate, the weight decay, or R; 0.0 (of R: infinity): no pull.
        rate: The share of the learning rate, in (0, 1].
        unit: Which of `Pull.units` R is measured in; `None`: in weights.
    """

    amount: float
    rate: float = 1.0
    unit: int | None = None


class Steps(NamedTuple):
    """What one step does at each level, in float32 scalars."""

    rates: dict[Level, Tensor]
    # `Level.rate`, where it is not 1.
    factors: dict[Level, Tensor]
    # `way(ρ)`, where there is a pull.
    ways: dict[Level, tuple[Tensor, Tensor]]


class Pull:
    """θ_pre ↦ θ_pre − ρ (θ_pre − a) for every variable of an optimizer.

    Args:
        levels: For each variable, its level.
        anchors: For each variable, the optimizer variable that holds θ₀, or
            `None`, which is 0.
        reference: η, the learning rate at which amounts are meant; 1.0 in
            scratch mode, where η cancels, and with `reach`, which needs none.
        reach: Whether amounts are distances R.
        units: The sizes of the weights that R is measured in, a vector; `None`
            where R is in the unit of weights.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        anchors: Sequence[keras.Variable | None],
        reference: float = 1.0,
        reach: bool = False,
        units: keras.Variable | None = None,
    ) -> None:
        self.levels = list(levels)
        self.anchors = list(anchors)
        self.reference = reference
        self.reach = reach
        self.units = units
        nothing = math.inf if reach else 0.0
        self.pulls = [level.amount != nothing for level in levels]
        # Whether a base's whole step must be shortened afterwards.
        self.slows = [level.rate != 1.0 for level in levels]

    def ratio(
        self, amount: Tensor, rate: Tensor, factor: Tensor = 1.0, xp: Any = ops
    ) -> Tensor:
        """Return ρ in [0, 1]; 0 at a learning rate of 0 or below.

        With `reach`, ρ = f η_t/(f η_t + R); else ρ = amount · η_t/η, at most 1.

        Args:
            amount: A level's amount; of a relative R, times its unit.
            rate: η_t, a float32 tensor of `xp`.
            factor: f, `Level.rate`.
            xp: Whose functions to call: those of `keras.ops`, NumPy or torch.
        """
        if self.reach:
            rate = xp.clip(rate * factor, 0.0, math.inf)
            # R may be 0, and so may the rate: 0/0 is no pull.
            return rate / xp.clip(rate + amount, _TINY, math.inf)
        # η_t/η first: a rate equal to η gives exactly the amount. η as a
        # tensor: a GPU multiplies by a number's reciprocal, which is inexact.
        share = rate / xp.full_like(rate, self.reference)
        return xp.clip(share * amount, 0.0, 1.0)

    def host_ratios(self, learning_rate: float) -> dict[Level, float]:
        """Return ρ of every level where the learning rate is a number."""
        levels = list(dict.fromkeys(self.levels))
        amounts, factors = np.array(
            [(self.distance(level), level.rate) for level in levels], "float32"
        ).T
        # In float32 as on the device, where the laws of ρ are exact.
        rate = np.full_like(amounts, learning_rate)
        with np.errstate(invalid="ignore", over="ignore"):
            # An infinite rate is somebody else's to refuse, as on the device.
            ratios = self.ratio(amounts, rate, factors, np)
        return dict(zip(levels, ratios.tolist(), strict=True))

    def distance(self, level: Level) -> float:
        """Return a level's amount; of a relative R, in the unit of weights."""
        if level.unit is None:
            return level.amount
        assert self.units is not None
        units = ops.convert_to_numpy(self.units.value)
        return float(level.amount * units[level.unit])

    def steps(self, learning_rate: Tensor, indices: Sequence[int]) -> Steps:
        """Return what each level of some variables does at a learning rate.

        Once a step rather than once a variable: with 1,000 variables the
        scalars would be most of what is traced.
        """
        slowed = {self.levels[i]: None for i in indices if self.slows[i]}
        pulled = {self.levels[i]: None for i in indices if self.pulls[i]}
        units = [] if self.units is None else ops.unstack(self.units.value)
        rate = ops.cast(learning_rate, "float32")
        hidden = iter(
            engine.hidden_scalars(
                [
                    *(level.rate for level in slowed),
                    *(level.amount for level in pulled),
                    *units,
                ],
                # Of every rate there is, but unknown to a compiler.
                rate < math.inf,
            )
        )
        factors = {level: next(hidden) for level in slowed}
        amounts = {level: next(hidden) for level in pulled}
        units = list(hidden)
        rates = {self.levels[i]: rate for i in indices}
        rates.update({level: rate * f for level, f in factors.items()})
        ways = {}
        for level, amount in amounts.items():
            if level.unit is not None:
                amount = amount * units[level.unit]
            ratio = self.ratio(amount, rate, factors.get(level, 1.0))
            ways[level] = way(ratio)
        return Steps(rates, factors, ways)

    def __call__(
        self, index: int, value: Tensor, steps: Steps, before: Tensor = None
    ) -> Tensor:
        """Return the pulled value of θ_pre, in float32 or wider.

        `before` is θ_{t−1}, where `value` was reached at the full learning rate
        and this level's is a share of it.
        """
        level, anchor = self.levels[index], self.anchors[index]
        dtype = compute_dtype(keras.backend.standardize_dtype(value.dtype))
        value = ops.cast(value, dtype)
        if before is not None:
            before = ops.cast(before, dtype)
            factor = ops.cast(steps.factors[level], dtype)
            value = before + factor * (value - before)
        if not self.pulls[index]:
            return value
        near, share = steps.ways[level]
        target = 0.0 if anchor is None else ops.cast(anchor, dtype)
        return pulled(value, target, near, ops.cast(share, dtype))


# Less than any sum of a rate and a distance, and no denormal number.
_TINY = float(np.finfo("float32").tiny)


def way(ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `pulled` needs to know of ρ, a scalar tensor in [0, 1].

    That is whether the way ends nearer to θ_pre than to the anchor, and the
    factor of (θ_pre − a) that leads back to its end from the nearer of the two.
    """
    near = ratio < 0.5
    return near, ops.where(near, ratio, ratio - 1.0)


def pulled(
    value: Tensor, anchor: Tensor, near: Tensor, share: Tensor
) -> Tensor:
    """Return θ_pre − ρ (θ_pre − a) (OLOR Eq. 5 and 6), exact at its ends.

    Three laws hold to the last bit: ρ = 0 returns `value`, ρ = 1 returns
    `anchor`, and `value == anchor` stays. One form alone does not keep all
    three, so the nearer end of the way is the one that is moved from:
    θ_pre − ρ (θ_pre − a), or a − (ρ − 1)(θ_pre − a). `near` and `share` are
    `way(ρ)`.
    """
    return ops.where(near, value, anchor) - share * (value - anchor)
