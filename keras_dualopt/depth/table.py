"""The table of depths: one row for each weight, whatever its name is today."""

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import keras

from keras_dualopt.depth.structure import Structure, Weight


@dataclasses.dataclass(frozen=True)
class DepthRow:
    """What is known of one weight.

    Args:
        path: The weight's Keras path when the table was made.
        layer: The path of the layer that owns it.
        index: Dense rank of `relative`, from 0; `None` for the head.
        relative: 0 at the shallowest layer that counts, 1 at the deepest;
            `None` for the head.
        pretrained: Whether its layer was pretrained; `False` for the head.
        shape: The weight's shape.
        key: Its place in the model, the same in every copy of it.
        optional: Whether a copy may lack it: LoRA factors, and the weights of
            a quantized layer.
    """

    path: str
    layer: str
    index: int | None
    relative: float | None
    pretrained: bool
    shape: tuple[int, ...]
    key: str
    optional: bool = False


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a variable is in a model.

    Args:
        key: Its place, the same in every copy of the model and on every
            backend; unique in the model.
        path: Its Keras path.
        layer: The path of the layer that owns it.
        index: As in `DepthRow`.
        relative: As in `DepthRow`.
        pretrained: As in `DepthRow`.
    """

    key: str
    path: str
    layer: str
    index: int | None
    relative: float | None
    pretrained: bool


@keras.saving.register_keras_serializable(package="keras_dualopt")
class LayerDepth:
    """How deep each weight of a model lies, and which of them are new.

    Made by `layer_depth`. It goes with the architecture, not with the model
    it was made from: a clone, a reloaded or a rebuilt model takes it too.

    Args:
        rows: One `DepthRow` for each weight, shallowest first, the head last.
        headless: Whether it was made with `head=()`: every layer counts.
    """

    def __init__(
        self,
        rows: Iterable[DepthRow | Mapping[str, Any]],
        headless: bool = False,
    ) -> None:
        self._rows = tuple(
            row if isinstance(row, DepthRow) else _row(row) for row in rows
        )
        self._headless = bool(headless)

    @property
    def rows(self) -> tuple[DepthRow, ...]:
        """One row for each weight."""
        return self._rows

    @property
    def headless(self) -> bool:
        """Whether every layer counts, the output layer included."""
        return self._headless

    @property
    def layer_count(self) -> int:
        """The number of layer paths that count."""
        return len({row.layer for row in self._rows if row.pretrained})

    def place(
        self,
        model: keras.Model | None,
        variables: Sequence[keras.Variable],
    ) -> list[Place]:
        """Return where each variable is.

        Args:
            model: A model of the architecture this was made from.
            variables: Weights of that model, in any order. What LoRA or a
                quantization has added since takes its layer's depth.

        Raises:
            ValueError: If the model does not fit; names what comes first.
        """
        if model is None:
            raise ValueError(
                "Expected: the model whose variables are given, to know them "
                "by their place in it. Received: None. `bind(model)` gives it "
                "to the optimizer."
            )
        structure = Structure(model)
        by_key = {row.key: row for row in self._rows}
        self._check_fits(structure, by_key)
        by_layer: dict[str, DepthRow] = {}
        for row in self._rows:
            by_layer.setdefault(_layer_key(row.key), row)
        places = []
        for variable in variables:
            weight = _weight_of(structure, variable)
            row = by_key.get(weight.key) or by_layer[_layer_key(weight.key)]
            places.append(
                Place(
                    weight.key,
                    variable.path,
                    weight.owner.path,
                    row.index,
                    row.relative,
                    row.pretrained,
                )
            )
        return places

    def _check_fits(
        self, structure: Structure, by_key: Mapping[str, DepthRow]
    ) -> None:
        layers = {_layer_key(key) for key in by_key}
        present = {weight.key: weight for weight in structure.weights}
        name = structure.model.name
        for row in self._rows:
            weight = present.get(row.key)
            if weight is None:
                if row.optional:
                    continue
                raise ValueError(
                    f"Expected: a weight like {row.path!r} of shape "
                    f"{row.shape} in layer {row.layer!r} (place {row.key!r}). "
                    f"Received: {name!r}, which has none there. {_WAY_OUT}"
                )
            shape = tuple(weight.variable.shape)
            if shape != row.shape and not (row.optional or is_optional(weight)):
                raise ValueError(
                    f"Expected: shape {row.shape} for {row.path!r} (place "
                    f"{row.key!r}). Received: {shape} for "
                    f"{weight.variable.path!r} of {name!r}. {_WAY_OUT}"
                )
        for key, weight in present.items():
            if key not in by_key and _layer_key(key) not in layers:
                raise ValueError(
                    f"Expected: no layer with weights at {_layer_key(key)!r}. "
                    f"Received: {weight.variable.path!r} of {name!r}, which "
                    f"the depths do not know. {_WAY_OUT}"
                )

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs, in types that JSON keeps."""
        return {
            "rows": [
                {**dataclasses.asdict(row), "shape": list(row.shape)}
                for row in self._rows
            ],
            "headless": self._headless,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Return the same table again."""
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LayerDepth):
            return NotImplemented
        return (self._rows, self._headless) == (other._rows, other._headless)

    def __hash__(self) -> int:
        return hash((self._rows, self._headless))

    def __repr__(self) -> str:
        return (
            f"<LayerDepth: {len(self._rows)} weights, {self.layer_count} "
            "layers that count>"
        )

    def __str__(self) -> str:
        lines = [("index", "relative", "pretrained", "layer", "weight")]
        for row in self._rows:
            lines.append(
                (
                    "head" if row.index is None else str(row.index),
                    "" if row.relative is None else f"{row.relative:.4f}",
                    "yes" if row.pretrained else "no",
                    row.layer,
                    f"{row.path} {row.shape}",
                )
            )
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if column < 2 else cell.ljust(width)
                for column, (cell, width) in enumerate(
                    zip(line, widths, strict=True)
                )
            ).rstrip()
            for line in lines
        )


def place_keys(
    model: keras.Model, variables: Sequence[keras.Variable]
) -> list[str]:
    """Return the `Place.key` of each variable, without finding depths.

    Args:
        model: A built model.
        variables: Weights of it, in any order.

    Raises:
        ValueError: For a variable that is not one of the model's weights.
    """
    structure = Structure(model)
    return [_weight_of(structure, variable).key for variable in variables]


def _weight_of(structure: Structure, variable: keras.Variable) -> Weight:
    weight = structure.by_variable.get(id(variable))
    if weight is None:
        raise ValueError(
            f"Expected: weights of the model {structure.model.name!r}. "
            f"Received: {variable.path!r} of shape {tuple(variable.shape)}, "
            "which is not one of them. Make a new optimizer for another model."
        )
    return weight


_WAY_OUT = (
    "The depths belong to another architecture: make them anew with "
    "`layer_depth(model)`."
)


def is_optional(weight: Weight) -> bool:
    """Tell a weight that a copy of the model may lack or hold otherwise."""
    name = weight.key.rpartition("/")[2]
    quantized = getattr(weight.owner.layer, "quantization_mode", None)
    return name.startswith("lora_") or quantized is not None


def _layer_key(key: str) -> str:
    return key.rpartition("/")[0]


def _row(config: Mapping[str, Any]) -> DepthRow:
    return DepthRow(**{**config, "shape": tuple(config["shape"])})


# Depths that a person wrote down: a dict of patterns.


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
                    _owner_path(variable),
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
                    layer=_owner_path(variable),
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
        with contextlib.suppress(ValueError):
            return place_keys(model, variables)
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


def _owner_path(variable: keras.Variable) -> str:
    return str(variable.path.rpartition("/")[0] or variable.path)
