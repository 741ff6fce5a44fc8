"""The table of depths: one row for each weight, whatever its name is today."""

import dataclasses
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
            row
            if isinstance(row, DepthRow)
            else DepthRow(**{**row, "shape": tuple(row["shape"])})
            for row in rows
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
    ) -> list[DepthRow]:
        """Return the row of each variable, under the names it has today.

        Layers that have one path get names that tell them apart.

        Args:
            model: A model of the architecture this was made from.
            variables: Weights of that model, in any order. What LoRA or a
                quantization has added since takes its layer's depth.

        Raises:
            ValueError: If the model does not fit; names what comes first.
        """
        if model is None:
            raise ValueError(
                "`model` must own the variables, which are known by their "
                "place in it. Received: None. `bind(model)` gives it to the "
                "optimizer."
            )
        structure = Structure(model)
        by_key = {row.key: row for row in self._rows}
        by_layer = {_layer_key(row.key): row for row in self._rows[::-1]}
        self._check_fits(structure, by_layer)
        names = structure.names()

        def placed(weight: Weight) -> DepthRow:
            row = by_key.get(weight.key) or by_layer[_layer_key(weight.key)]
            return dataclasses.replace(
                row,
                path=weight.variable.path,
                layer=names[id(weight.owner)],
                shape=tuple(weight.variable.shape),
                key=weight.key,
            )

        return [placed(_weight_of(structure, v)) for v in variables]

    def _check_fits(
        self, structure: Structure, by_layer: Mapping[str, DepthRow]
    ) -> None:
        present = {weight.key: weight for weight in structure.weights}
        name = structure.model.name
        for row in self._rows:
            weight = present.get(row.key)
            shape = None if weight is None else tuple(weight.variable.shape)
            optional = row.optional or (weight and is_optional(weight))
            if shape != row.shape and not optional:
                found = (
                    f"{shape} for {weight.variable.path!r} of {name!r}"
                    if weight
                    else f"{name!r}, which has none there"
                )
                raise ValueError(
                    f"The depths do not fit the model: it must have a weight "
                    f"like {row.path!r} of shape {row.shape} in layer "
                    f"{row.layer!r} (place {row.key!r}). Received: {found}. "
                    f"{_WAY_OUT}"
                )
        for key, weight in present.items():
            if _layer_key(key) not in by_layer:
                raise ValueError(
                    f"The depths do not fit the model: they know no layer at "
                    f"{_layer_key(key)!r}. Received: {weight.variable.path!r} "
                    f"of {name!r}. {_WAY_OUT}"
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
        a, b, c, d, _ = (
            max(map(len, column)) for column in zip(*lines, strict=True)
        )
        return "\n".join(
            f"{index:>{a}}  {relative:>{b}}  {yes:{c}}  {layer:{d}}  {weight}"
            for index, relative, yes, layer, weight in lines
        )


def place_keys(
    model: keras.Model, variables: Sequence[keras.Variable]
) -> list[str]:
    """Return the `DepthRow.key` of each weight, without finding depths."""
    structure = Structure(model)
    return [_weight_of(structure, variable).key for variable in variables]


def _weight_of(structure: Structure, variable: keras.Variable) -> Weight:
    weight = structure.by_variable.get(id(variable))
    if weight is None:
        raise ValueError(
            f"The variables must be weights of {structure.model.name!r}. "
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


# Depths that a person wrote down: a dict of patterns.


def depth_from_patterns(
    patterns: Mapping[str, float | None],
    variables: Sequence[keras.Variable],
    model: keras.Model | None = None,
    aliases: Mapping[int, str] | None = None,
) -> LayerDepth:
    """Return the depths that `DualOpt`'s `depth`, a dict, gives to variables.

    Args:
        patterns: The dict: every pattern must win a variable.
        variables: The variables to place: each must match a pattern.
        model: The model that owns them, if it is known. A pattern may win one
            of its frozen weights alone, and the table has all of its weights.
        aliases: The paths that patterns speak of, by the variable's id, where
            they are not today's.
    """
    aliases = aliases or {}
    everything = [*variables] if model is None else [*model.weights]
    if model is None:
        keys = [f"{i}/{v.name}" for i, v in enumerate(everything)]
    else:
        keys = place_keys(model, everything)
    paths = [aliases.get(id(v), v.path) for v in everything]
    winners = {
        id(variable): next((p for p in patterns if re.fullmatch(p, path)), None)
        for variable, path in zip(everything, paths, strict=True)
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

    def row(key: str, variable: keras.Variable) -> DepthRow:
        winner = winners[id(variable)]
        value = None if winner is None else patterns[winner]
        return DepthRow(
            path=variable.path,
            layer=variable.path.rpartition("/")[0] or variable.path,
            index=None if value is None else values.index(value),
            relative=value,
            pretrained=value is not None,
            shape=tuple(variable.shape),
            key=key,
        )

    return LayerDepth(map(row, keys, everything))


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
