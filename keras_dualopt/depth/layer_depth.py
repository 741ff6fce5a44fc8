"""`layer_depth`: the graph, the head and the structure put together."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import keras

from keras_dualopt.depth.calls import graph_of_calls
from keras_dualopt.depth.graph import Graph
from keras_dualopt.depth.head import find_head, select_head
from keras_dualopt.depth.structure import Owner, Structure, Weight
from keras_dualopt.depth.table import DepthRow, LayerDepth, is_optional


def layer_depth(model: keras.Model, head: Any = None) -> LayerDepth:
    """Find how deep each weight of a model lies, without changing the model.

    Args:
        model: A built model: Sequential, Functional or subclassed, nested as
            it likes.
        head: What was not pretrained. `None`: what lies outside a KerasHub
            task's backbone, or outside a nested model that is most of this
            one, or the last layer (a `Sequential` is one). `()`: nothing. Or
            layers, variables and patterns (regular expressions that match the
            whole path of a weight or a layer), one or a list of them.

    Returns:
        The table, one row for each weight.

    Raises:
        ValueError: If the model is not built, or `head` names nothing in it.
    """
    if not isinstance(model, keras.Model) or not (
        model.built and model.weights
    ):
        raise ValueError(
            "`model` must be a built Keras model with weights. Received: "
            f"{_described(model)}. Call it on data or `build` it first."
        )
    structure = Structure(model)
    graph = graph_of_calls(structure)
    if head is None:
        new = find_head(structure, graph)
    elif isinstance(head, list | tuple | set | frozenset) and not head:
        new = set()
    else:
        new = select_head(structure, head)
    relative = _relative(structure, graph, new)
    return LayerDepth(
        _rows(structure, relative, new),
        headless=head is not None and not new,
    )


def _relative(
    structure: Structure, graph: Graph, new: set[str]
) -> dict[int, Fraction]:
    """Return the depth of every unit that counts, 0 to 1."""
    counted = {w.unit for w in structure.weights if w.key not in new}
    placed = graph.positions(counted)
    # What no call reads lies where the shallowest layer beside it does.
    nearby: dict[Owner, Fraction] = {}
    for weight in structure.weights:
        if weight.unit in placed:
            depth = placed[weight.unit]
            for around in weight.owner.chain():
                nearby[around] = min(nearby.get(around, depth), depth)
    position = dict(placed)
    for unit in counted - placed.keys():
        chain = structure.unit_roots[unit].chain()
        found = (nearby[around] for around in chain if around in nearby)
        position[unit] = next(found, Fraction(0))
    lowest = min(position.values(), default=Fraction(0))
    highest = max(position.values(), default=Fraction(0))
    if lowest == highest:
        return dict.fromkeys(position, Fraction(0))
    return {
        unit: (value - lowest) / (highest - lowest)
        for unit, value in position.items()
    }


def _rows(
    structure: Structure, relative: Mapping[int, Fraction], new: set[str]
) -> list[DepthRow]:
    ranks = {
        value: rank for rank, value in enumerate(sorted({*relative.values()}))
    }

    def row(weight: Weight) -> DepthRow:
        pretrained = weight.key not in new
        depth = relative[weight.unit] if pretrained else None
        return DepthRow(
            path=weight.variable.path,
            layer=weight.owner.path,
            index=None if depth is None else ranks[depth],
            relative=None if depth is None else float(depth),
            pretrained=pretrained,
            shape=tuple(weight.variable.shape),
            key=weight.key,
            optional=is_optional(weight),
        )

    rows = [row(weight) for weight in structure.weights]
    # Stable: weights of one depth stay in the order of the model's structure.
    return sorted(
        rows, key=lambda r: (r.index is None, 0 if r.index is None else r.index)
    )


def _described(model: Any) -> str:
    if isinstance(model, keras.Model):
        built = "not built" if not model.built else "without weights"
        return f"{type(model).__name__} {model.name!r}, {built}"
    return f"{type(model).__name__} {model!r}"
