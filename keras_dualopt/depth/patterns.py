"""Depths that a person wrote down: a dict of patterns."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

import keras

from keras_dualopt.depth.structure import Structure
from keras_dualopt.depth.table import DepthRow, LayerDepth, Place


def depth_from_patterns(
    patterns: Mapping[str, float | None],
    variables: Sequence[keras.Variable],
    known: Sequence[keras.Variable] = (),
) -> LayerDepth:
    """Return the depths that a dict gives to variables.

    Args:
        patterns: Regular expression, matched in full against the variable's
            path → relative depth in [0, 1], or `None` for a variable that was
            not pretrained and is never pulled. The first match wins.
        variables: The variables to place: each must match a pattern.
        known: Further weights of the model that a pattern may win (frozen
            ones): every pattern must win at least one variable.

    Raises:
        ValueError: For a pattern or a value that is none, a pattern that wins
            nothing, or a variable that no pattern matches.
    """
    return PatternDepth(patterns, variables, known)


@keras.saving.register_keras_serializable(package="keras_dualopt")
class PatternDepth(LayerDepth):
    """The depths of a dict of patterns; see `depth_from_patterns`."""

    def __init__(
        self,
        patterns: Mapping[str, float | None],
        variables: Sequence[keras.Variable] = (),
        known: Sequence[keras.Variable] = (),
        rows: Sequence[DepthRow | Mapping[str, Any]] | None = None,
        headless: bool = False,
    ) -> None:
        self._patterns = {
            _compiled(pattern): _checked(pattern, value)
            for pattern, value in patterns.items()
        }
        if rows is None:
            rows = self._made(variables, known)
        super().__init__(rows, headless)

    def place(
        self,
        model: keras.Model | None,
        variables: Sequence[keras.Variable],
    ) -> list[Place]:
        """Return where each variable is; its depth by its path alone."""
        ranks = self._ranks()
        places = []
        for key, variable in zip(_keys(model, variables), variables):
            value = self._value(variable)
            places.append(
                Place(
                    key,
                    variable.path,
                    _layer_path(variable),
                    None if value is None else ranks[value],
                    value,
                    value is not None,
                )
            )
        return places

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs, in types that JSON keeps."""
        # Pairs, because the order of the patterns decides and JSON objects
        # promise none.
        pairs = [[p.pattern, value] for p, value in self._patterns.items()]
        return {"patterns": pairs, **super().get_config()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Return the same table again."""
        return cls(**{**config, "patterns": dict(config["patterns"])})

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, PatternDepth)
            and [*self._patterns.items()] == [*other._patterns.items()]
            and super().__eq__(other)
        )

    __hash__ = LayerDepth.__hash__

    def _made(
        self,
        variables: Sequence[keras.Variable],
        known: Sequence[keras.Variable],
    ) -> list[DepthRow]:
        winners = {p: 0 for p in self._patterns}
        given = {id(variable) for variable in variables}
        for variable in (*variables, *known):
            pattern = self._winner(variable)
            if pattern is not None:
                winners[pattern] += 1
            elif id(variable) in given:
                raise _unmatched(variable)
        self._check_winners(winners, [*variables, *known])
        ranks = self._ranks()
        rows = []
        for number, variable in enumerate(variables):
            value = self._value(variable)
            rows.append(
                DepthRow(
                    path=variable.path,
                    layer=_layer_path(variable),
                    index=None if value is None else ranks[value],
                    relative=value,
                    pretrained=value is not None,
                    shape=tuple(variable.shape),
                    key=f"{number}/{variable.name}",
                )
            )
        return rows

    def _winner(self, variable: keras.Variable) -> re.Pattern[str] | None:
        for pattern in self._patterns:
            if pattern.fullmatch(variable.path):
                return pattern
        return None

    def _value(self, variable: keras.Variable) -> float | None:
        pattern = self._winner(variable)
        if pattern is None:
            raise _unmatched(variable)
        return self._patterns[pattern]

    def _ranks(self) -> dict[float, int]:
        values = {v for v in self._patterns.values() if v is not None}
        return {value: rank for rank, value in enumerate(sorted(values))}

    def _check_winners(
        self,
        winners: Mapping[re.Pattern[str], int],
        variables: Sequence[keras.Variable],
    ) -> None:
        for pattern, count in winners.items():
            if count:
                continue
            lost = [v.path for v in variables if pattern.fullmatch(v.path)]
            why = (
                f"which matches {lost[0]!r}, but a pattern before it wins "
                "that. Put the narrower pattern first."
                if lost
                else "which matches the whole path of no variable, such as "
                f"{[v.path for v in variables[:3]]}. For a part of a path "
                f"write '.*{pattern.pattern}.*'."
            )
            raise ValueError(
                "Expected: every pattern of `depth` to win at least one "
                f"variable. Received: {pattern.pattern!r}, {why}"
            )


def _keys(
    model: keras.Model | None, variables: Sequence[keras.Variable]
) -> list[str]:
    """Return a name for each variable: its place in the model, if known.

    The order of variables differs between backends for some models; state
    saved by number would go to other weights of the same shape.
    """
    if model is not None:
        weights = Structure(model).by_variable
        if all(id(variable) in weights for variable in variables):
            return [weights[id(variable)].key for variable in variables]
    return [f"{number}/{v.name}" for number, v in enumerate(variables)]


def _unmatched(variable: keras.Variable) -> ValueError:
    return ValueError(
        "Expected: a pattern of `depth` for every variable. Received: none "
        f"that matches the whole of {variable.path!r}. Add one; '.*' as the "
        "last pattern takes the rest."
    )


def _compiled(pattern: Any) -> re.Pattern[str]:
    if not isinstance(pattern, str):
        raise ValueError(
            "Expected: the keys of `depth` to be regular expressions. "
            f"Received: {type(pattern).__name__} {pattern!r}."
        )
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            "Expected: the keys of `depth` to be regular expressions. "
            f"Received: {pattern!r} ({error}). `re.escape` quotes a path."
        ) from error


def _checked(pattern: str, value: Any) -> float | None:
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 <= value <= 1:
        raise ValueError(
            f"Expected: depth[{pattern!r}] in [0, 1] (0 is the layer nearest "
            "the input), or None for what was not pretrained. Received: "
            f"{value!r}."
        )
    return float(value)


def _layer_path(variable: keras.Variable) -> str:
    return str(variable.path.rpartition("/")[0] or variable.path)
