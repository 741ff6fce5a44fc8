"""Telling the new head from the pretrained body."""

import re
import warnings
from collections.abc import Iterable
from typing import Any

import keras

from keras_dualopt.caller import stacklevel
from keras_dualopt.depth.graph import Graph
from keras_dualopt.depth.structure import Structure, Weight


def find_head(structure: Structure, graph: Graph) -> set[str]:
    """Return the keys of the weights that are most likely new.

    What lies outside a KerasHub task's backbone; else what lies outside a
    nested model that is most of this one; else the last layer with weights. A
    KerasHub backbone alone and a causal language model have no head.
    """
    model = structure.model
    if _is_hub(model, "Backbone"):
        _warn_of_fresh_layers(structure, model)
        return set()
    if _is_hub(model, "Task") and getattr(model, "backbone", None) is not None:
        if _is_hub(model, "CausalLM"):
            return set()
        body = model.backbone
        if _is_hub(body, "SegFormerBackbone"):
            # It holds its decode head too; what ImageNet presets fill is the
            # encoder.
            body = body.image_encoder
        _warn_of_fresh_layers(structure, body)
        inside = {id(weight) for weight in body.weights}
        return {
            w.key for w in structure.weights if id(w.variable) not in inside
        }
    body_units = _nested_body(structure, graph)
    if body_units is None:
        last = _last_units(structure, graph)
        return {w.key for w in structure.weights if w.unit in last}
    return {w.key for w in structure.weights if w.unit not in body_units}


def select_head(structure: Structure, head: Any) -> set[str]:
    """Return the keys of the weights of the layers that a person named."""
    several = isinstance(head, list | tuple | set | frozenset)
    chosen: set[str] = set()
    for selector in head if several else [head]:
        matches = [*_matches(structure, selector)]
        if not matches:
            paths = [repr(w.variable.path) for w in structure.weights[-3:]]
            raise ValueError(
                "`head` must name layers, variables or patterns "
                "(regular expressions that match the whole path of a weight "
                "or a layer, or a layer's name) of "
                f"{structure.model.name!r}. Received: {_shown(selector)}, "
                "which names none of its "
                f"{len(structure.weights)} weights. Paths look like "
                f"{', '.join(paths)}; print(layer_depth(model, head=())) "
                "shows all of them."
            )
        # The unit of choice is the layer: a bias is as new as its kernel.
        layers = {(id(w.owner), w.unit) for w in matches}
        chosen.update(
            w.key for w in structure.weights if (id(w.owner), w.unit) in layers
        )
    return chosen


def check_head(model: keras.Model, head: Any) -> None:
    """Refuse a head that names nothing in a built model."""
    select_head(Structure(model), head)


def _matches(structure: Structure, selector: Any) -> Iterable[Weight]:
    if isinstance(selector, str):
        try:
            pattern = re.compile(selector)
        except re.error as error:
            raise ValueError(
                "The patterns of `head` must be regular expressions. Received: "
                f"{selector!r} ({error}). `re.escape` quotes a path."
            ) from error
        return [
            weight
            for weight in structure.weights
            if pattern.fullmatch(weight.variable.path)
            or any(pattern.fullmatch(o.path) for o in weight.owner.chain())
        ] or _named(structure, selector)
    if isinstance(selector, keras.Variable):
        weight = structure.by_variable.get(id(selector))
        return [] if weight is None else [weight]
    if isinstance(selector, keras.layers.Layer):
        inside = {id(weight) for weight in selector.weights}
        return [w for w in structure.weights if id(w.variable) in inside]
    raise ValueError(
        "`head` must be None (find it), () (there is none), or layers, "
        f"variables and patterns. Received: {_shown(selector)}."
    )


def _named(structure: Structure, name: str) -> list[Weight]:
    """Return the weights of the outermost layer that has a name.

    A path starts with the model's name in some kinds of models only.
    """
    found: dict[int, list[Weight]] = {}
    for weight in structure.weights:
        chain = [*weight.owner.chain()]
        for place, owner in enumerate(chain):
            if owner.layer.name == name:
                found.setdefault(len(chain) - place, []).append(weight)
    return found[min(found)] if found else []


def _shown(selector: Any) -> str:
    if isinstance(selector, keras.Variable):
        return f"the variable {selector.path!r}"
    if isinstance(selector, keras.layers.Layer):
        return f"the layer {selector.name!r}"
    return f"{selector!r}"


def _is_hub(model: Any, name: str) -> bool:
    """Tell a KerasHub class by name, so that KerasHub need not be there."""
    return any(
        kind.__name__ == name and kind.__module__.startswith("keras_hub")
        for kind in type(model).__mro__
    )


def _warn_of_fresh_layers(structure: Structure, backbone: Any) -> None:
    """Name layers that a backbone adds round an image encoder."""
    encoder = getattr(backbone, "image_encoder", None)
    if not isinstance(encoder, keras.Model):
        return
    outside = {*map(id, backbone.weights)}.difference(map(id, encoder.weights))
    around = dict.fromkeys(
        weight.owner.path
        for weight in structure.weights
        if id(weight.variable) in outside
    )
    if around:
        some = ", ".join([*around][:4])
        if len(around) > 4:
            some += f" and {len(around) - 4} more"
        warnings.warn(
            f"{type(backbone).__name__} holds layers round its image encoder "
            "that may be fresh, which nothing on the model tells. They are "
            f"taken for pretrained: {some}. If only the encoder "
            "was pretrained, name them in `head=` (of `layer_depth` or "
            "`bind`).",
            stacklevel=stacklevel(),
        )


def _nested_body(structure: Structure, graph: Graph) -> set[int] | None:
    """Return the units of the pretrained model nested in this one, if any.

    It is most of the model and not its end: at least half of the layers for a
    `Sequential`, which may be a stem or a block as well; a third for any other
    model, a `Sequential` at the end left out of the count, as a head that is
    larger than its base. Others of its size beside it, as a second tower, are
    part of it. What is all of the model has no head.
    """
    everything = {w.unit for w in structure.weights}
    nested = _nested_models(structure)
    ends = set().union(
        *(
            units
            for model, units in nested
            if isinstance(model, keras.Sequential)
            and everything > units
            and not graph.after(units)
        )
    )
    best: set[int] | None = None
    for model, units in nested:
        after = graph.after(units)
        body = set(units).union(
            *(
                other
                for beside, other in nested
                if len(other) <= len(units) <= _most(beside) * len(other)
                and other.isdisjoint(after)
                and units.isdisjoint(graph.after(other))
            )
        )
        is_sequential = isinstance(model, keras.Sequential)
        rest = everything if is_sequential else everything - (ends - body)
        enough = _most(model) * len(body) >= len(rest)
        at_end = body != everything and not graph.after(body)
        if enough and not at_end and len(body) > len(best or ()):
            best = body
    return best


def _most(model: keras.Model) -> int:
    """Return how much larger than a body what it belongs to may be.

    A `Sequential` may be a stem, a block or a head as well.
    """
    return 2 if isinstance(model, keras.Sequential) else 3


def _last_units(structure: Structure, graph: Graph) -> set[int]:
    """Return the units of the layers at the end.

    A nested `Sequential` is one of them, unless it is most of the model.
    """
    last = graph.last_units()
    for model, units in _nested_models(structure):
        small = 2 * len(units) <= len({w.unit for w in structure.weights})
        if isinstance(model, keras.Sequential) and small and units & last:
            last |= units
    return last


def _nested_models(
    structure: Structure,
) -> list[tuple[keras.Model, set[int]]]:
    """Return a model's direct parts that are models with weights."""
    found = []
    for owner in structure.owners.values():
        _, *around = owner.chain()
        if around and isinstance(around[0].layer, keras.layers.Wrapper):
            del around[0]
        units = set(structure.units_of(owner.layer.weights))
        if len(around) == 1 and units and isinstance(owner.layer, keras.Model):
            found.append((owner.layer, units))
    return found
