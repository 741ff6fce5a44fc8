"""Depths that a person wrote down: a dict of patterns, another way to say it.

The patterns were checked (regular expressions, depths in [0, 1]) when they were
given.
"""

import re
from collections.abc import Mapping, Sequence

import keras

from keras_dualopt.depth.structure import Structure
from keras_dualopt.depth.table import DepthRow, LayerDepth


def depth_from_patterns(
    patterns: Mapping[str, float | None],
    variables: Sequence[keras.Variable],
    model: keras.Model | None = None,
    aliases: Mapping[int, str] | None = None,
) -> LayerDepth:
    """Return the depths that a dict gives to variables.

    Args:
        patterns: Regular expression, matched in full against the variable's
            path → relative depth in [0, 1], or `None` for a variable that was
            not pretrained and is never pulled. The first match wins.
        variables: The variables to place: each must match a pattern.
        model: The model that owns them, if it is known. A pattern may win one
            of its frozen weights alone, and the table has all of its weights.
        aliases: The paths that patterns speak of, by the variable's id, where
            they are not today's.

    Raises:
        ValueError: For a pattern that wins nothing, or a variable that no
            pattern matches.
    """
    aliases = aliases or {}
    structure = None if model is None else Structure(model)
    everything = [*variables] if model is None else [*model.weights]
    winners = {
        id(variable): _winner(patterns, variable, aliases)
        for variable in everything
    }
    for variable in variables:
        if winners[id(variable)] is None:
            raise ValueError(
                "Every weight needs a pattern of `depth`. Received: none that "
                f"matches the whole of {variable.path!r}. Add one; '.*' as the "
                "last pattern takes the rest."
            )
    for pattern in patterns:
        if pattern not in winners.values():
            raise ValueError(_wins_nothing(pattern, everything))
    values = sorted({value for value in patterns.values() if value is not None})
    rows = []
    for number, variable in enumerate(everything):
        winner = winners[id(variable)]
        value = None if winner is None else patterns[winner]
        key = f"{number}/{variable.name}"
        if structure is not None and id(variable) in structure.by_variable:
            key = structure.by_variable[id(variable)].key
        rows.append(
            DepthRow(
                path=variable.path,
                layer=variable.path.rpartition("/")[0] or variable.path,
                index=None if value is None else values.index(value),
                relative=value,
                pretrained=value is not None,
                shape=tuple(variable.shape),
                key=key,
            )
        )
    return LayerDepth(rows)


def _winner(
    patterns: Mapping[str, float | None],
    variable: keras.Variable,
    aliases: Mapping[int, str],
) -> str | None:
    path = aliases.get(id(variable), variable.path)
    for pattern in patterns:
        if re.fullmatch(pattern, path):
            return pattern
    return None


def _wins_nothing(pattern: str, variables: Sequence[keras.Variable]) -> str:
    lost = [v.path for v in variables if re.fullmatch(pattern, v.path)]
    why = (
        f"which matches {lost[0]!r}, but a pattern before it wins that. Put "
        "the narrower pattern first."
        if lost
        else "which matches the whole path of no variable, such as "
        f"{[v.path for v in variables[:3]]}. For a part of a path write "
        f"'.*{pattern}.*'."
    )
    return (
        "Every pattern of `depth` must win at least one variable. Received: "
        f"{pattern!r}, {why}"
    )
