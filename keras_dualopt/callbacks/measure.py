"""How far the weights are, and how much of a step the pull took back."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_dualopt.backend import Array, Tensor
from keras_dualopt.optimizer import DualOpt
from keras_dualopt.plan import layers_of
from keras_dualopt.pull import Level

LOG_KEYS = (
    "drift",
    "drift_shallow",
    "drift_deep",
    "reach_used",
    "pull_share",
    "update_ratio",
)

# Of these, what concerns one step and not the weights as they are.
OF_A_STEP = ("pull_share", "update_ratio")


def present(variable: keras.Variable) -> Tensor:
    """Return a variable's value, outside of torch's gradient tape."""
    return ops.stop_gradient(variable.value)


class Snapshot(NamedTuple):
    """θ_{t−1}, and what the step from there to θ_t will be taken with."""

    # By the variable's id, real copies: the live buffer is moved in place on
    # torch and donated on JAX.
    values: dict[int, Tensor]
    iterations: int
    rate: float

    @classmethod
    def of(
        cls, optimizer: DualOpt, variables: Sequence[keras.Variable]
    ) -> "Snapshot":
        """Copy the weights."""
        return cls(
            {id(v): ops.copy(present(v)) for v in variables},
            iterations_of(optimizer),
            rate_of(optimizer),
        )


def iterations_of(optimizer: DualOpt) -> int:
    """Return the number of updates so far; micro-steps do not count."""
    return int(ops.convert_to_numpy(optimizer.iterations))


def rate_of(optimizer: DualOpt) -> float:
    """Return η_t of the next step."""
    return float(ops.convert_to_numpy(optimizer.learning_rate))


class Sample(NamedTuple):
    """What one look at the weights found; NaN where it is not defined.

    Args:
        step: The number of updates so far.
        layers: For each quantity, one number a layer.
        totals: One number for each of `LOG_KEYS`.
    """

    step: int
    layers: dict[str, Array]
    totals: dict[str, float]


_NARROW = ("bfloat16", "float16")
# The distance from 1 to the next number of the arithmetic here.
_ROUNDING = 2.0**-23


class Measure:
    """Measures the layers of one optimizer that have something to measure.

    In fine-tune mode these are the layers with an anchor or a pull, in scratch
    mode all of them.
    """

    def __init__(self, optimizer: DualOpt) -> None:
        self.mode: str = optimizer.mode
        self.optimizer = optimizer
        rows = optimizer.rows
        measured = {
            id(row)
            for row in rows
            if not getattr(row.variable, "overwrite_with_gradient", False)
            and (self.mode == "scratch" or row.anchored or row.pulled)
        }
        layers = [
            kept
            for layer in layers_of(rows)
            if (kept := [row for row in layer if id(row) in measured])
        ]
        self.names = [layer[0].layer for layer in layers]
        # Names change when a model is reloaded, places do not.
        self.places = [layer[0].key for layer in layers]
        self.relative = np.array(
            [
                np.nan if layer[0].relative is None else layer[0].relative
                for layer in layers
            ],
            dtype="float64",
        )
        self._rows = [row for layer in layers for row in layer]
        numbers = {id(row): index for index, row in enumerate(rows)}
        self._indices = [numbers[id(row)] for row in self._rows]
        self._layer = np.repeat(
            np.arange(len(layers)), [len(layer) for layer in layers]
        )
        # Stored so, θ_t is rounded by as much as the pull moves it.
        self._narrow = np.array(
            [row.variable.dtype in _NARROW for row in self._rows], dtype=bool
        )
        # LoRA's second factor is pulled to 0, which is no pretrained value.
        self._drifts = np.array(
            [self.mode == "scratch" or row.anchored for row in self._rows],
            dtype=bool,
        )

    @property
    def variables(self) -> list[keras.Variable]:
        """The weights that are measured."""
        return [row.variable for row in self._rows]

    def __call__(self, before: Snapshot | None) -> Sample:
        """Measure now; what concerns a step only if one was watched."""
        step = iterations_of(self.optimizer)
        ratio = np.zeros(len(self._indices), dtype="float32")
        factors = ratio
        if before is not None:
            pull, rate = self.optimizer.pull, before.rate
            # In the arithmetic of the step itself.
            ratios = pull.host_ratios(rate)
            ratio = self._each(ratios.__getitem__).astype("float32")
            if step - before.iterations == 1:
                with np.errstate(divide="ignore"):
                    factors = ratio / (1.0 - ratio)
                factors[ratio == 1.0] = np.nan
                factors[self._narrow & (ratio > 0.0)] = np.nan
            else:
                # Several pulls in between: their sum is not known.
                factors = np.full_like(ratio, np.nan)
        sums = _sums_of_squares(
            self.variables,
            [row.anchor for row in self._rows],
            before,
            factors,
        )
        return self._sample(step, ratio, sums, before is not None)

    def _each(self, number: Callable[[Level], float]) -> Array:
        """Return what belongs to the level of each weight."""
        levels = [self.optimizer.pull.levels[index] for index in self._indices]
        numbers = {level: number(level) for level in {*levels}}
        return np.array([numbers[level] for level in levels], dtype="float64")

    def _sample(
        self, step: int, ratio: Array, sums: dict[str, Array], watched: bool
    ) -> Sample:
        count, pull = len(self.names), self.optimizer.pull
        strength = np.zeros(count)
        np.maximum.at(strength, self._layer, ratio)
        layers = {
            name: self._ratios(sums, name, self._layer, count)
            for name in ("drift", "pull_share", "update_ratio")
        }
        layers["strength"] = strength if watched else np.full(count, np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            used = sums["farthest"] / self._each(
                pull.distance if pull.reach else lambda level: np.nan
            )
        layers["reach_used"] = np.full(count, np.nan)
        # Where R is 0, a weight at θ₀ has used nothing that there is.
        np.fmax.at(layers["reach_used"], self._layer, used)

        depth = self.relative[self._layer]
        totals = {
            "drift": self._total(sums, "drift", np.isfinite(depth)),
            "drift_shallow": self._total(sums, "drift", depth < 0.5),
            "drift_deep": self._total(sums, "drift", depth >= 0.5),
            "reach_used": float(
                np.fmax.reduce(layers["reach_used"], initial=np.nan)
            ),
        }
        for name in OF_A_STEP:
            totals[name] = self._total(sums, name, np.isfinite(depth))
        return Sample(step, layers, totals)

    def _total(self, sums: dict[str, Array], name: str, chosen: Array) -> float:
        groups = np.where(chosen, 0, 1)
        if name == "pull_share":
            # Where ρ = 1 the proposed step is lost: the others speak for it.
            groups = np.where(np.isnan(sums["proposed"]), 1, groups)
        return float(self._ratios(sums, name, groups, 2)[0])

    def _ratios(
        self, sums: dict[str, Array], name: str, groups: Array, count: int
    ) -> Array:
        """Return ‖numerator‖ / ‖denominator‖ of each group of weights."""
        upper, lower = {
            "drift": ("distance", "anchor"),
            "pull_share": ("pull", "proposed"),
            "update_ratio": ("step", "before"),
        }[name]
        above, below = np.zeros(count), np.zeros(count)
        chosen = self._drifts if name == "drift" else np.full(len(groups), True)
        np.add.at(above, groups[chosen], sums[upper][chosen])
        np.add.at(below, groups[chosen], sums[lower][chosen])
        if name == "drift" and self.mode == "scratch":
            filled = np.isin(np.arange(count), groups)
            return np.where(filled, np.sqrt(above), np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(below > 0.0, np.sqrt(above / below), np.nan)


def _sums_of_squares(
    variables: Sequence[keras.Variable],
    anchors: Sequence[keras.Variable | None],
    before: Snapshot | None,
    factors: Array,
) -> dict[str, Array]:
    """Return Σ(θ−a)², Σa², max |θ−a| and the parts of Σ(θ_t−θ_{t−1})².

    Computed on the device; one array comes back. An ordinary step is undone
    exactly: with k = ρ/(1−ρ), the pull ρ(θ_pre−a) is k(θ_t−a), and the
    proposed step θ_pre−θ_{t−1} is (θ_t−θ_{t−1}) + k(θ_t−a).
    """
    rows = []
    for variable, anchor, factor in zip(
        variables, anchors, factors, strict=True
    ):
        now = ops.cast(present(variable), "float32")
        target = (
            ops.zeros_like(now)
            if anchor is None
            else ops.cast(present(anchor), "float32")
        )
        distance = ops.subtract(now, target)
        row = [
            _square_sum(distance),
            _square_sum(target),
            ops.max(ops.abs(distance)),
        ]
        if before is not None:
            past = ops.cast(before.values[id(variable)], "float32")
            step = ops.subtract(now, past)
            proposed = ops.add(step, ops.multiply(distance, float(factor)))
            row += [_square_sum(t) for t in (step, past, proposed)]
        rows.append(ops.stack(row))
    if not rows:
        table = np.zeros((0, 6))
    else:
        table = ops.convert_to_numpy(ops.stack(rows)).astype("float64")
    distance, target, farthest = table[:, :3].T
    if before is None:
        missing = np.full(len(rows), np.nan)
        step = past = proposed = pull = missing
    else:
        step, past, proposed = table[:, 3:].T
        pull = np.square(factors.astype("float64")) * distance
        # No gradient, no pull: the weight did not move at all. And JAX hands
        # out zeros as gradients of weights that are not used: there the pull
        # is all of the step, and what else there seems to be is rounding.
        idle = (step == 0.0) & np.isfinite(proposed)
        still = idle | (proposed <= np.square(4.0 * _ROUNDING) * past)
        pull = np.where(idle, 0.0, pull)
        proposed = np.where(still, 0.0, proposed)
    return {
        "distance": distance,
        "anchor": target,
        "farthest": farthest,
        "step": step,
        "before": past,
        "proposed": proposed,
        "pull": pull,
    }


def _square_sum(tensor: Tensor) -> Tensor:
    return ops.sum(ops.square(tensor))
