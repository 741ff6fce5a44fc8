"""The learning rate at which strengths are meant: η of the method."""

import math
from typing import Any

import keras
import numpy as np

schedules = keras.optimizers.schedules

_WAY_OUT = (
    "Pass `reference_learning_rate=`, the learning rate at which `rollback` "
    "is meant; usually the highest one of the run."
)


def shortest(value: Any) -> float:
    """Return the shortest decimal number that float32 stores as `value`.

    0.01 read back from a float32 variable is 0.009999999776482582.
    """
    return float(str(np.float32(value)))


def peak_learning_rate(learning_rate: Any) -> float:
    """Return η: a float itself, or a built-in schedule's highest value.

    Raises:
        ValueError: Where no peak is known (a callable, a schedule that is not
            Keras' own, one that grows without end) or it is not positive.
    """
    if isinstance(learning_rate, int | float):
        peak = float(learning_rate)
    else:
        known = _peak_of_schedule(learning_rate)
        if known is None:
            raise ValueError(
                "Expected: a float learning rate or a schedule of "
                "`keras.optimizers.schedules` with a highest value. Received: "
                f"{learning_rate!r}, whose highest value is not known. "
                + _WAY_OUT
            )
        peak = known
    return check_reference(peak, "the peak of `learning_rate`")


def check_reference(value: Any, name: str) -> float:
    """Return η as a float.

    Raises:
        ValueError: If it is not a finite number > 0.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | np.number)
        or not math.isfinite(value)
        or value <= 0
    ):
        raise ValueError(
            f"Expected: {name} to be a finite number > 0, since the pull is "
            f"measured against it. Received: {value!r}. " + _WAY_OUT
        )
    return float(value)


def _peak_of_schedule(schedule: Any) -> float | None:
    # By exact class: a subclass may do anything in `__call__`.
    kind = type(schedule)
    if kind is schedules.CosineDecay:
        start = schedule.initial_learning_rate
        target = schedule.warmup_target
        top = start if target is None else target
        first = start if schedule.warmup_steps > 0 else top
        return float(max(first, top, top * schedule.alpha))
    if kind is schedules.CosineDecayRestarts:
        config = schedule.get_config()
        if config["m_mul"] > 1.0:
            return None
        return float(schedule.initial_learning_rate * max(1.0, config["alpha"]))
    if kind is schedules.ExponentialDecay:
        return _if_falling(schedule, schedule.decay_rate <= 1.0)
    if kind is schedules.InverseTimeDecay:
        return _if_falling(schedule, schedule.decay_rate >= 0.0)
    if kind is schedules.PiecewiseConstantDecay:
        return float(max(schedule.values))
    if kind is schedules.PolynomialDecay:
        return float(
            max(schedule.initial_learning_rate, schedule.end_learning_rate)
        )
    return None


def _if_falling(schedule: Any, falling: bool) -> float | None:
    return float(schedule.initial_learning_rate) if falling else None
