"""Telling the new head from the pretrained body."""

import re
import warnings
from collections.abc import Iterable
from typing import Any

import keras

from keras_dualopt.caller import stacklevel
from keras_dualopt.depth import keras_hooks as hooks
from keras_dualopt.depth.order import Order
from keras_dualopt.depth.structure import Owner, Structure, Weight

# The head, as keys of weights.
Head = set[str]

Selector = Any


def find_head(structure: Structure, order: Order) -> Head:
    """Return the weights that are most likely new.

    What lies outside a KerasHub task's backbone; else what lies outside the
    largest nested model; else the last layer with weights. A KerasHub backbone
    alone and a causal language model have no head.
    """
    model = structure.model
    if _is_hub(model, "Backbone"):
        _warn_of_fresh_layers(structure, model)
        return set()
    if _is_hub(model, "Task") and getattr(model, "backbone", None) is not None:
        if _is_hub(model, "CausalLM"):
            return set()
        body = _pretrained_part(model.backbone)
        _warn_of_fresh_layers(structure, body)
        inside = {id(weight) for weight in body.weights}
        return {
            w.key for w in structure.weights if id(w.variable) not in inside
        }
    units = _nested_body(structure, order)
    if units is not None:
        return {w.key for w in structure.weights if w.unit not in units}
    last = order.last_units(range(len(structure.unit_roots)))
    return {w.key for w in structure.weights if w.unit in last}


def select_head(structure: Structure, head: Selector) -> Head:
    """Return the weights of the layers that a person named.

    Raises:
        ValueError: If one of them names nothing in this model.
    """
    selectors = (
        head if isinstance(head, list | tuple | set | frozenset) else [head]
    )
    chosen: Head = set()
    for selector in selectors:
        matches = [*_matches(structure, selector)]
        if not matches:
            raise ValueError(
                "Expected: `head` to name layers, variables or patterns "
                "(regular expressions that match the whole path of a weight "
                "or a layer, or a layer's name) of "
                f"{structure.model.name!r}. Received: {_shown(selector)}, "
                "which names none of its "
                f"{len(structure.weights)} weights. Paths look like "
                f"{_examples(structure)}; print(layer_depth(model, head=())) "
                "shows all of them."
            )
        # The unit of choice is the layer: a bias is as new as its kernel.
        layers = {(id(w.owner), w.unit) for w in matches}
        chosen.update(
            w.key for w in structure.weights if (id(w.owner), w.unit) in layers
        )
    return chosen


def check_head(model: keras.Model, head: Selector) -> None:
    """Refuse a head that names nothing in a built model.

    Raises:
        ValueError: If one of the selectors names nothing in this model.
    """
    select_head(Structure(model), head)


def _matches(structure: Structure, selector: Selector) -> Iterable[Weight]:
    if isinstance(selector, str):
        pattern = _compiled(selector)
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
        "Expected: `head` to be None (find it), () (there is none), or layers, "
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


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            "Expected: `head` patterns to be regular expressions. Received: "
            f"{pattern!r} ({error}). `re.escape` quotes a path."
        ) from error


def _shown(selector: Selector) -> str:
    if isinstance(selector, keras.Variable):
        return f"the variable {selector.path!r}"
    if isinstance(selector, keras.layers.Layer):
        return f"the layer {selector.name!r}"
    return f"{selector!r}"


def _examples(structure: Structure) -> str:
    paths = [weight.variable.path for weight in structure.weights]
    return ", ".join(repr(path) for path in paths[-3:])


def _is_hub(model: Any, name: str) -> bool:
    """Tell a KerasHub class by name, so that KerasHub need not be there."""
    return any(
        kind.__name__ == name and kind.__module__.startswith("keras_hub")
        for kind in type(model).__mro__
    )


def _pretrained_part(backbone: Any) -> Any:
    # SegFormer's backbone class holds its decode head too; what ImageNet
    # presets fill is the encoder.
    if _is_hub(backbone, "SegFormerBackbone"):
        return backbone.image_encoder
    return backbone


def _warn_of_fresh_layers(structure: Structure, backbone: Any) -> None:
    """Name layers that a backbone adds round an image encoder."""
    encoder = getattr(backbone, "image_encoder", None)
    if not isinstance(encoder, keras.Model):
        return
    inside = {id(weight) for weight in encoder.weights}
    around = {
        weight.owner.path: None
        for weight in structure.weights
        if id(weight.variable) not in inside
        and id(weight.variable) in {id(w) for w in backbone.weights}
    }
    if around:
        warnings.warn(
            f"{type(backbone).__name__} holds layers round its image encoder "
            "that may be fresh, which nothing on the model tells. They are "
            f"taken for pretrained: {', '.join(around)}. If only the encoder "
            "was pretrained, name them in `head=` (of `layer_depth` or "
            "`bind`).",
            stacklevel=stacklevel(),
        )


def _nested_body(structure: Structure, order: Order) -> set[int] | None:
    """Return the units of the pretrained model nested in this one, if any.

    The largest nested model, and others that do not read from it: towers side
    by side are one body. A nested model with less than half of the layers, with
    layers of the model's own before it or nested models after it, is one block
    of many and no backbone.
    """
    nested = [
        set(structure.units_of(owner.layer.weights))
        for owner in structure.owners.values()
        if isinstance(owner.layer, keras.Model) and _is_direct(owner)
    ]
    nested = [units for units in nested if units]
    if not nested:
        return None
    largest = max(nested, key=len)
    after = order.after(largest)
    graph = hooks.graph_of(structure.model) is not None
    body = set(largest)
    following = False
    for units in nested:
        # In a chain what comes later need not read what came before.
        beside = not graph and 2 * len(units) >= len(largest)
        if units.isdisjoint(after) or beside:
            body |= units
        else:
            following = following or units is not largest
    own = {w.unit for w in structure.weights} - set().union(*nested)
    leading = any(largest & order.after({unit}) for unit in own)
    total = len({w.unit for w in structure.weights})
    if 2 * len(largest) < total and (following or leading):
        return None
    return body


def _is_direct(owner: Owner) -> bool:
    """Tell a model's own part from one inside another layer of it."""
    around = owner.parent
    if around is not None and isinstance(around.layer, keras.layers.Wrapper):
        around = around.parent
    return around is not None and around.parent is None
