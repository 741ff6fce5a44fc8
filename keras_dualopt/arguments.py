"""The arguments of DualOpt that say how strongly which weights are pulled."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from keras_dualopt.depth import LayerDepth

MODES = ("finetune", "scratch")

# What `None` means, and which mode an argument belongs to.
_LEVELS = {
    "rollback": ("finetune", 0.01),
    "rollback_min": ("finetune", 0.0),
    "weight_decay": ("scratch", 0.05),
    "weight_decay_min": ("scratch", 0.0),
}
_POWER = {"finetune": 2.0, "scratch": 1.0}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The validated arguments; a level of the other mode is `None`.

    Raises:
        ValueError: If a value is out of its range, or belongs to the other
            mode.
        TypeError: If a value is of a kind that no argument takes.
    """

    mode: str
    rollback: float | None
    rollback_min: float | None
    weight_decay: float | None
    weight_decay_min: float | None
    power: float | None
    depth: LayerDepth | Mapping[str, float | None] | None
    exclude: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check everything, and write the defaults in."""
        if self.mode not in MODES:
            raise ValueError(
                "Expected: `mode` to be 'finetune' or 'scratch'. Received: "
                f"{self.mode!r}."
            )
        for name, (mode, default) in _LEVELS.items():
            value = getattr(self, name)
            if mode != self.mode:
                if value is not None:
                    raise ValueError(
                        f"Expected: no `{name}` in mode {self.mode!r}; it "
                        f"belongs to mode {mode!r}. Received: "
                        f"{name}={value!r}. "
                        + (
                            "Use `rollback` and `rollback_min` here."
                            if self.mode == "finetune"
                            else "Use `weight_decay` and `weight_decay_min` "
                            "here."
                        )
                    )
                continue
            self._write(name, _number(name, value, default))
        self._check_levels()
        power = _number("power", self.power, _POWER[self.mode])
        if power <= 0.0:
            raise ValueError(
                f"Expected: `power` > 0. Received: {power!r}. For the same "
                "strength at every depth set the minimum equal to the maximum."
            )
        self._write("power", power)
        self._write("exclude", _patterns(self.exclude))
        self._check_depth()

    def _write(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_levels(self) -> None:
        high_name, low_name = self.level_names
        high, low = self.levels
        if low < 0.0 or high < 0.0:
            name, value = (low_name, low) if low < 0.0 else (high_name, high)
            raise ValueError(f"Expected: `{name}` ≥ 0. Received: {value!r}.")
        if self.mode == "finetune" and max(low, high) > 1.0:
            name, value = (low_name, low) if low > 1.0 else (high_name, high)
            raise ValueError(
                f"Expected: `{name}` in [0, 1]: it is the share of the way "
                "back to the pretrained weights in one step. Received: "
                f"{value!r}."
            )
        if low > high:
            raise ValueError(
                f"Expected: `{low_name}` ≤ `{high_name}`. Received: "
                f"{low_name}={low!r}, {high_name}={high!r}."
            )

    def _check_depth(self) -> None:
        depth = self.depth
        if depth is None:
            return
        if isinstance(depth, LayerDepth):
            if self.mode == "scratch" and not depth.headless:
                raise ValueError(
                    "Expected: in scratch mode, a `depth` in which the output "
                    "layer counts like the others. Received: one with a head. "
                    "Make it with `layer_depth(model, head=())`."
                )
            return
        if not isinstance(depth, Mapping):
            raise TypeError(
                "Expected: `depth` to be None, a `LayerDepth` or a dict "
                "{pattern: relative depth}. Received: "
                f"{type(depth).__name__} {depth!r}."
            )
        if not depth:
            raise ValueError(
                "Expected: `depth` to name at least one pattern. Received: "
                "an empty dict. `None` finds the depths by itself."
            )
        for pattern, relative in depth.items():
            _compiled("depth", pattern)
            if relative is None:
                continue
            value = _number(f"depth[{pattern!r}]", relative, None)
            if not 0.0 <= value <= 1.0:
                raise ValueError(
                    f"Expected: depth[{pattern!r}] in [0, 1] (0 is the layer "
                    "nearest the input), or None for weights that were not "
                    f"pretrained. Received: {relative!r}."
                )
        self._write("depth", dict(depth))

    @property
    def level_names(self) -> tuple[str, str]:
        """The names of the highest and the lowest level in this mode."""
        if self.mode == "finetune":
            return "rollback", "rollback_min"
        return "weight_decay", "weight_decay_min"

    @property
    def levels(self) -> tuple[float, float]:
        """The highest and the lowest level in this mode."""
        high, low = self.level_names
        return getattr(self, high), getattr(self, low)


def _number(name: str, value: Any, default: float | None) -> float:
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(
        value, int | float | np.number
    ):
        raise TypeError(
            f"Expected: `{name}` to be a number. Received: "
            f"{type(value).__name__} {value!r}."
        )
    if not math.isfinite(value):
        raise ValueError(
            f"Expected: `{name}` to be finite. Received: {value!r}."
        )
    return float(value)


def _patterns(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        value = (value,)
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        raise TypeError(
            "Expected: `exclude` to be one or several regular expressions. "
            f"Received: {type(value).__name__} {value!r}."
        )
    patterns = tuple(value)
    for pattern in patterns:
        _compiled("exclude", pattern)
    return patterns


def _compiled(name: str, pattern: Any) -> re.Pattern[str]:
    if not isinstance(pattern, str):
        raise TypeError(
            f"Expected: `{name}` to hold regular expressions (str). Received: "
            f"{type(pattern).__name__} {pattern!r}."
        )
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"Expected: `{name}` to hold valid regular expressions. Received: "
            f"{pattern!r} ({error})."
        ) from error
