"""What `build` decides for every variable: depth, strength, anchored or not."""

import dataclasses
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_dualopt.arguments import Arguments
from keras_dualopt.caller import stacklevel
from keras_dualopt.depth import (
    DepthRow,
    LayerDepth,
    Place,
    depth_from_patterns,
    layer_depth,
)
from keras_dualopt.penalty import decay_strength, rollback_strength

# The names that Keras gives to LoRA's factors (`Layer.enable_lora`).
_LORA_ZERO = ("lora_kernel_b", "lora_embeddings_b")
_LORA_FREE = ("lora_kernel_a", "lora_embeddings_a")

# Decisions by the weight's place in the model: relative depth, pretrained,
# excluded. What a config keeps of patterns, since names change on reload.
Decisions = Mapping[str, Sequence[Any]]


def role(variable: keras.Variable) -> str:
    """Return what a pretrained layer's weight is pulled to in fine-tune mode.

    `"anchor"`: its θ₀. `"zero"`: LoRA's factor b, whose product with a is a
    delta that starts at 0. `"free"`: nothing; a's random start is no anchor,
    and float8 scales are overwritten with their gradient.
    """
    name = variable.path.rpartition("/")[2]
    if getattr(variable, "overwrite_with_gradient", False):
        return "free"
    if name in _LORA_FREE:
        return "free"
    return "zero" if name in _LORA_ZERO else "anchor"


@dataclasses.dataclass(frozen=True)
class Plan:
    """The decisions of `build`, aligned with the optimizer's variables.

    Args:
        depth: The depths in force.
        places: For each variable, its place in the model.
        excluded: For each variable, whether `exclude` names it.
        strengths: For each variable, its share of the pull; 0.0: none.
        anchored: For each variable, whether it gets a θ₀.
        lasting: Whether `Place.key` is the same in a copy of the model.
    """

    depth: LayerDepth
    places: list[Place]
    excluded: list[bool]
    strengths: list[float]
    anchored: list[bool]
    lasting: bool

    def decisions(self) -> Decisions:
        """Return what patterns have decided, by place."""
        return {
            place.key: [place.relative, place.pretrained, free]
            for place, free in zip(self.places, self.excluded, strict=True)
        }


def make_plan(
    arguments: Arguments,
    model: keras.Model | None,
    head: Any,
    variables: Sequence[keras.Variable],
    decided: Decisions | None = None,
) -> Plan:
    """Decide for every variable.

    Args:
        arguments: The arguments of DualOpt.
        model: The model that owns the variables, if it is known.
        head: What `bind` was told of the head.
        variables: The variables to train.
        decided: What patterns decided in a model that this one is a copy of.

    Raises:
        ValueError: If the depths do not fit the variables, a pattern matches
            nothing, or fine-tune mode finds nothing that was pretrained.
    """
    keys = _lasting_keys(arguments, model, variables)
    if decided is not None and keys and all(key in decided for key in keys):
        excluded = [bool(decided[key][2]) for key in keys]
    else:
        decided = None
        excluded = _excluded(arguments.exclude, model, variables)
    if decided is not None and isinstance(arguments.depth, Mapping):
        depth = _decided_depth(decided, keys, variables)
        places = [_place(row) for row in depth.rows]
    else:
        depth = _depth(arguments, model, head, variables)
        places = depth.place(model, variables)
    if keys:
        places = [
            dataclasses.replace(place, key=key)
            for place, key in zip(places, keys, strict=True)
        ]
    if _is_one_output_layer(arguments, depth):
        places = [dataclasses.replace(p, relative=1.0) for p in places]
    strengths, anchored = [], []
    for variable, place, free in zip(variables, places, excluded, strict=True):
        kind = role(variable)
        relative = place.relative if place.pretrained else None
        if relative is None or free or kind == "free":
            strengths.append(0.0)
        else:
            strengths.append(_strength(arguments, relative))
        anchored.append(
            arguments.mode == "finetune"
            and relative is not None
            and kind == "anchor"
        )
    lasting = model is not None
    plan = Plan(depth, places, excluded, strengths, anchored, lasting)
    if arguments.mode == "finetune":
        _check_something_is_pretrained(plan, variables)
    return plan


def _lasting_keys(
    arguments: Arguments,
    model: keras.Model | None,
    variables: Sequence[keras.Variable],
) -> list[str]:
    """Return the places of the variables where patterns speak of them."""
    by_pattern = isinstance(arguments.depth, Mapping) or arguments.exclude
    if model is None or not by_pattern:
        return []
    places = layer_depth(model, head=()).place(model, variables)
    return [place.key for place in places]


def _decided_depth(
    decided: Decisions,
    keys: Sequence[str],
    variables: Sequence[keras.Variable],
) -> LayerDepth:
    values = sorted({r for r, *_ in decided.values() if r is not None})
    return LayerDepth(
        [
            DepthRow(
                path=variable.path,
                layer=variable.path.rpartition("/")[0],
                index=None if relative is None else values.index(relative),
                relative=relative,
                pretrained=pretrained,
                shape=tuple(variable.shape),
                key=key,
            )
            for key, variable in zip(keys, variables, strict=True)
            for relative, pretrained, _ in [decided[key]]
        ]
    )


def _place(row: DepthRow) -> Place:
    return Place(
        row.key, row.path, row.layer, row.index, row.relative, row.pretrained
    )


def _depth(
    arguments: Arguments,
    model: keras.Model | None,
    head: Any,
    variables: Sequence[keras.Variable],
) -> LayerDepth:
    given = arguments.depth
    if isinstance(given, LayerDepth):
        return given
    if given is not None:
        known = [] if model is None else model.weights
        return depth_from_patterns(given, variables, known)
    if arguments.mode == "scratch":
        head = ()
    return layer_depth(model, head=head)


def _is_one_output_layer(arguments: Arguments, depth: LayerDepth) -> bool:
    """Tell scratch mode's model of one layer, which is the output layer."""
    return (
        arguments.mode == "scratch"
        and not isinstance(arguments.depth, Mapping)
        and len({row.index for row in depth.rows}) == 1
    )


def _strength(arguments: Arguments, relative: float) -> float:
    high, low = arguments.levels
    power = arguments.power
    assert power is not None
    if arguments.mode == "finetune":
        return rollback_strength(relative, high, low, power)
    return decay_strength(relative, high, low, power)


def _excluded(
    patterns: Sequence[str],
    model: keras.Model | None,
    variables: Sequence[keras.Variable],
) -> list[bool]:
    paths = [variable.path for variable in variables]
    known = paths if model is None else [w.path for w in model.weights]
    for pattern in patterns:
        if not any(re.fullmatch(pattern, path) for path in known):
            raise ValueError(
                f"Expected: every pattern of `exclude` to match the whole path "
                f"of at least one weight. Received: {pattern!r}, which matches "
                f"none of {len(known)}, such as {known[:3]}. For a part of a "
                f"path write '.*{pattern}.*'."
            )
    return [
        any(re.fullmatch(pattern, path) for pattern in patterns)
        for path in paths
    ]


def _check_something_is_pretrained(
    plan: Plan, variables: Sequence[keras.Variable]
) -> None:
    if any(plan.anchored) or any(plan.strengths):
        return
    if not any(row.pretrained for row in plan.depth.rows):
        raise ValueError(
            "Expected: at least one pretrained layer to roll back. Received: "
            f"a model of which every layer was taken for a new head ("
            f"{', '.join(sorted({row.layer for row in plan.depth.rows}))}). "
            "If the whole model is pretrained, say so: "
            "`optimizer.bind(model, head=())`; for a model that is not "
            "pretrained use mode='scratch'."
        )
    if not all(role(variable) == "free" for variable in variables):
        warnings.warn(
            "None of the trainable weights was pretrained (all of them belong "
            "to the new head, or are named as such): weight rollback does "
            "nothing until pretrained layers are made trainable.",
            stacklevel=stacklevel(),
        )
