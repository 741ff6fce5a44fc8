"""What was asked for, checked: the arguments of DualOpt, and η.

Errors come before anything is touched; what is kept here is valid.
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeGuard

import keras
import numpy as np

from keras_dualopt.bases.paper_rule import LearningRate
from keras_dualopt.depth import LayerDepth
from keras_dualopt.pull import decay_strength, reach_at, rollback_strength

schedules = keras.optimizers.schedules

Mode: TypeAlias = Literal["finetune", "scratch"]
Depth: TypeAlias = LayerDepth | Mapping[str, float | None] | None
# Layers, variables, names or patterns; `()`: nothing; `None`: to be found.
_Part: TypeAlias = keras.layers.Layer | keras.Variable | str
Head: TypeAlias = _Part | Sequence[_Part] | None
# A distance, or a share of the weights' own size such as "20%".
Reach: TypeAlias = float | str

# By mode: the other one, what belongs to it, and what to use in its place.
_FOREIGN = {
    "finetune": (
        "scratch",
        ("weight_decay", "weight_decay_min"),
        "Use `rollback` or `reach` here; for a decay of the base's own, "
        "`base=keras.optimizers.AdamW(weight_decay=...)`.",
    ),
    "scratch": (
        "finetune",
        ("rollback", "rollback_min", "reach", "reach_max", "anchor_dtype"),
        "Use `weight_decay` and `weight_decay_min` here.",
    ),
}
_SHARE = (
    lambda value: 0.0 <= value <= 1.0,
    "in [0, 1]: it is the share of the way back to the pretrained weights in "
    "one step",
)
_DECAY = _RATE = (lambda value: value >= 0.0, "≥ 0")
_DEPTH = (
    lambda value: 0.0 <= value <= 1.0,
    "in [0, 1] (0 is the layer nearest the input), or None for weights that "
    "were not pretrained",
)
# What `None` means, what the number must fulfil, and how that is said.
_NUMBERS: dict[str, tuple[float | None, Callable[[float], bool], str]] = {
    "rollback": (0.01, *_SHARE),
    "rollback_min": (0.0, *_SHARE),
    "weight_decay": (0.05, *_DECAY),
    "weight_decay_min": (0.0, *_DECAY),
    "power": (
        2.0,
        lambda value: value > 0.0,
        "> 0; for the same strength at every depth set the minimum equal to "
        "the maximum",
    ),
    "shallow_rate": (
        None,
        lambda value: 0.0 < value <= 1.0,
        "in (0, 1]: it is the share of the learning rate at the shallowest "
        "layer",
    ),
}

# `reach_max=None`. Layers near the output keep what a shared head, an
# embedding or a search reads: left free, they lose it.
REACH_MAX = 3.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """The validated arguments; one that does not apply is `None`."""

    mode: Mode = "finetune"
    rollback: float | None = None
    rollback_min: float | None = None
    weight_decay: float | None = None
    weight_decay_min: float | None = None
    power: float | None = None
    depth: Depth = None
    exclude: tuple[str, ...] = ()
    reach: Reach | None = None
    reach_max: Reach | None = None
    shallow_rate: float = 1.0
    anchor_dtype: str | None = None

    def __post_init__(self) -> None:
        """Check everything, and write the defaults in."""
        if self.mode not in (*_FOREIGN,):
            raise ValueError(
                f"`mode` must be 'finetune' or 'scratch'. Received: "
                f"mode={self.mode!r}."
            )
        mode, names, remedy = _FOREIGN[self.mode]
        for name in names:
            value = getattr(self, name)
            if value is not None:
                raise ValueError(
                    f"`{name}` belongs to mode {mode!r}. Received: {name}="
                    f"{value!r} in mode {self.mode!r}. {remedy}"
                )
        numbers = ["power", "shallow_rate"]
        if self.reach is None and self.reach_max is None:
            numbers += self.level_names
        else:
            self._check_reach()
        if self.mode == "scratch" and self.power is None:
            self._write("power", 1.0)
        for name in numbers:
            default, holds, must = _NUMBERS[name]
            value = getattr(self, name)
            value = default if value is None else value
            self._write(name, _number(name, value, holds, must))
        (first, second), (one, two) = self.level_names, self.levels
        if two < one if self.reach is not None else two > one:
            sign = "≤" if self.reach is None else "≥"
            raise ValueError(
                f"`{second}` must be {sign} `{first}`. Received: {second}="
                f"{getattr(self, second)!r}, {first}={getattr(self, first)!r}."
            )
        if self.anchor_dtype not in (None, "bfloat16", "float16"):
            raise ValueError(
                "`anchor_dtype` must be None (the weights' own), 'bfloat16' or "
                f"'float16'. Received: anchor_dtype={self.anchor_dtype!r}."
            )
        self._write("exclude", _patterns(self.exclude))
        self._check_depth()

    def _write(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_reach(self) -> None:
        for name in ("rollback", "rollback_min"):
            value = getattr(self, name)
            if value is not None:
                raise ValueError(
                    "`reach` and `rollback` are two ways to say the same. "
                    f"Received: both, reach={self.reach!r} and {name}="
                    f"{value!r}. Leave one out."
                )
        if self.reach is None:
            raise ValueError(
                "`reach_max` needs `reach`, how far the shallowest layer may "
                f"go. Received: reach_max={self.reach_max!r} alone."
            )
        for name in ("reach", "reach_max"):
            if is_number(getattr(self, name)):  # It may be NumPy's.
                self._write(name, float(getattr(self, name)))
        reach, relative = _distance("reach", self.reach)
        if self.reach_max is None:
            most = REACH_MAX * reach
            self._write("reach_max", f"{100.0 * most:g}%" if relative else most)
        most, relative_max = _distance("reach_max", self.reach_max)
        if relative != relative_max and math.isfinite(most):
            raise ValueError(
                "`reach` and `reach_max` must be of one unit, both a distance "
                "or both a share such as '20%'. Received: reach="
                f"{self.reach!r}, reach_max={self.reach_max!r}."
            )

    def _check_depth(self) -> None:
        depth = self.depth
        if isinstance(depth, LayerDepth):
            if self.mode == "scratch" and not depth.headless:
                raise ValueError(
                    "`depth` must count the output layer like the others in "
                    "scratch mode. Received: one with a head. Make it with "
                    "`layer_depth(model, head=())`."
                )
        elif isinstance(depth, Mapping):
            if not depth:
                raise ValueError(
                    "`depth` must name at least one pattern. Received: an "
                    "empty dict. `None` finds the depths by itself."
                )
            checked: dict[str, float | None] = {}
            for pattern, relative in depth.items():
                _check_pattern("depth", pattern)
                if relative is not None:
                    name = f"depth[{pattern!r}]"
                    relative = _number(name, relative, *_DEPTH)
                checked[pattern] = relative
            self._write("depth", checked)
        elif depth is not None:
            raise TypeError(
                "`depth` must be None, a `LayerDepth` or a dict {pattern: "
                f"relative depth}}. Received: {type(depth).__name__} {depth!r}."
            )

    def changed(self, name: str, value: object) -> "Settings":
        """Return settings with another argument; what it replaces goes."""
        values = {**vars(self), name: value}
        if name == "rollback" and self.reach is not None:
            values.update(reach=None, reach_max=None)
        elif name == "reach" and self.reach is None:
            values.update(rollback=None, rollback_min=None)
        elif name == "reach":
            default = Settings(reach=self.reach).reach_max
            if self.reach_max == default:
                values["reach_max"] = None  # It was not said.
        return Settings(**values)

    @property
    def has_patterns(self) -> bool:
        """Whether weights are named by patterns of their paths."""
        return bool(self.exclude) or isinstance(self.depth, Mapping)

    @property
    def level_names(self) -> tuple[str, str]:
        """The names of what is set at the two ends of depth."""
        if self.mode == "scratch":
            return "weight_decay", "weight_decay_min"
        if self.reach is not None:
            return "reach", "reach_max"
        return "rollback", "rollback_min"

    @property
    def levels(self) -> tuple[float, float]:
        """Their values; of a relative reach, shares and not percents."""
        first, second = (getattr(self, name) for name in self.level_names)
        if self.reach is not None:
            return _distance("reach", first)[0], _distance("", second)[0]
        return first, second

    def amount(self, relative: float) -> float:
        """Return what sets ρ at a relative depth (`pull.Level.amount`)."""
        assert self.power is not None
        ends = (*self.levels, self.power)
        if self.mode == "scratch":
            return decay_strength(relative, *ends)
        if self.reach is not None:
            return reach_at(relative, *ends)
        return rollback_strength(relative, *ends)

    def rate(self, relative: float) -> float:
        """Return the share of the learning rate at a relative depth.

        Formula: `shallow_rate`^(1 − r), the geometric profile of BEiT
        (arXiv:2106.08254) and timm: their decay d over n blocks is
        `shallow_rate` = dⁿ, however finely layers are counted.
        """
        share: float = self.shallow_rate ** min(max(1.0 - relative, 0.0), 1.0)
        return share


def is_number(value: object) -> TypeGuard[float]:
    """Tell a number, also one of NumPy's, from `True` and anything else."""
    numbers = isinstance(value, int | float | np.number)
    return numbers and not isinstance(value, bool)


def check_whole(name: str, value: object, of: str = "") -> None:
    """Refuse what is no whole number ≥ 1 (of something)."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"`{name}` must be a whole number{of} ≥ 1. Received: {value!r}."
        )


def _number(
    name: str, value: object, holds: Callable[[float], bool], must: str
) -> float:
    """Return a finite number for which something holds."""
    if not is_number(value):
        raise TypeError(
            f"`{name}` must be a number. Received: {type(value).__name__} "
            f"{value!r}."
        )
    if not math.isfinite(value):
        must = "finite"
    if not math.isfinite(value) or not holds(value):
        raise ValueError(f"`{name}` must be {must}. Received: {value!r}.")
    return float(value)


def _distance(name: str, value: object) -> tuple[float, bool]:
    """Return a reach as a number, and whether it is a share."""
    relative, number = isinstance(value, str), math.nan
    if is_number(value):
        number = float(value)
    elif isinstance(value, str) and value.strip().endswith("%"):
        with contextlib.suppress(ValueError):
            number = float(value.strip().removesuffix("%")) / 100.0
    if not number >= 0.0:
        error = ValueError if relative or is_number(value) else TypeError
        raise error(
            f"`{name}` must be a distance ≥ 0, or a share of the weights' size "
            f"such as '20%'. Received: {type(value).__name__} {value!r}."
        )
    most = float(np.finfo("float32").max)
    return (math.inf if number > most else number), relative


def _patterns(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        value = (value,)
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        raise TypeError(
            "`exclude` must be one or several regular expressions. Received: "
            f"{type(value).__name__} {value!r}."
        )
    patterns = tuple(value)
    for pattern in patterns:
        _check_pattern("exclude", pattern)
    return patterns


def _check_pattern(name: str, pattern: object) -> None:
    if not isinstance(pattern, str):
        raise TypeError(
            f"`{name}` must hold regular expressions (str). Received: "
            f"{type(pattern).__name__} {pattern!r}."
        )
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"`{name}` must hold valid regular expressions. Received: "
            f"{pattern!r} ({error})."
        ) from error


# η, the learning rate at which `rollback` is meant.

_WAY_OUT = (
    "Pass `reference_learning_rate=`, the learning rate at which `rollback` "
    "is meant, usually the highest one of the run; or `reach=`, which needs "
    "none."
)


def check_learning_rate(value: object) -> LearningRate | None:
    """Return a learning rate that Keras takes; a number as float."""
    if isinstance(value, keras.optimizers.Optimizer):
        kind = type(value).__name__
        raise TypeError(
            "`learning_rate` must be a float, a schedule or a callable. "
            f"Received: the optimizer {kind}. To take its steps pass it as the "
            f"base: `DualOpt(base=keras.optimizers.{kind}(...))`."
        )
    if isinstance(value, bool | str) or not (
        value is None or is_number(value) or callable(value)
    ):
        raise TypeError(
            "`learning_rate` must be a float, a schedule or a callable. "
            f"Received: {type(value).__name__} {value!r}."
        )
    if not is_number(value):
        return value
    return _number("learning_rate", value, *_RATE)


def rate_in(value: object) -> float:
    """Return the number in what is assigned to `learning_rate`.

    It may be an array or a tensor, too: `optimizer.learning_rate * 0.5` is one.
    """
    if not is_number(value) and hasattr(value, "shape"):
        array = keras.ops.convert_to_numpy(value)
        value = array.item() if array.size == 1 else value
    if not is_number(value):
        raise TypeError(
            "`learning_rate` must be a number, a schedule or a callable. "
            f"Received: {type(value).__name__} {value!r}."
        )
    return float(value)


def reference_rate(
    settings: Settings, given: float | None, learning_rate: LearningRate
) -> float | None:
    """Return η; `None` where the pull needs none (scratch mode, `reach`)."""
    if settings.mode == "scratch" or settings.reach is not None:
        if given is not None:
            where = (
                "in scratch mode, where it cancels (the pull is learning rate "
                "× weight decay)"
                if settings.mode == "scratch"
                else "with `reach`, which holds at every learning rate"
            )
            raise ValueError(
                f"`reference_learning_rate` has no meaning {where}. Received: "
                f"{given!r}."
            )
        return None
    if given is None:
        return peak_learning_rate(learning_rate)
    return _reference(given, "`reference_learning_rate`")


def peak_learning_rate(learning_rate: LearningRate) -> float:
    """Return η: a float itself, or a built-in schedule's highest value.

    Unknown of a callable, of a schedule of one's own, and where it grows.
    """
    peak = _peak(learning_rate)
    if peak is None:
        raise ValueError(
            "The pull is measured against the highest learning rate, which is "
            f"not known of {learning_rate!r}: neither a float nor a schedule "
            "of `keras.optimizers.schedules` that has one. " + _WAY_OUT
        )
    return _reference(peak, "the peak of `learning_rate`")


def _reference(value: object, name: str) -> float:
    if not is_number(value) or not math.isfinite(value) or value <= 0:
        raise ValueError(
            f"{name} must be a finite number > 0, since the pull is measured "
            f"against it. Received: {value!r}. {_WAY_OUT}"
        )
    return float(value)


def _peak(rate: Any) -> Any:
    # By exact class: a subclass may do anything in `__call__`.
    kind, first = type(rate), getattr(rate, "initial_learning_rate", None)
    if is_number(rate):
        return rate
    if kind is schedules.CosineDecay:
        top = first if rate.warmup_target is None else rate.warmup_target
        start = first if rate.warmup_steps > 0 else top
        return max(start, top, top * rate.alpha)
    if kind is schedules.CosineDecayRestarts:
        config = rate.get_config()
        return first * max(1, config["alpha"]) if config["m_mul"] <= 1 else None
    if kind is schedules.ExponentialDecay:
        return first if rate.decay_rate <= 1.0 else None
    if kind is schedules.InverseTimeDecay:
        return first if rate.decay_rate >= 0.0 else None
    if kind is schedules.PiecewiseConstantDecay:
        return max(rate.values)
    if kind is schedules.PolynomialDecay:
        return max(first, rate.end_learning_rate)
    return None
