"""What `build` decides for every variable: depth, strength, anchored or not."""

import dataclasses
import re
import warnings
from collections.abc import Sequence
from typing import Any

import keras

from keras_dualopt.arguments import Arguments
from keras_dualopt.depth import (
    LayerDepth,
    Place,
    depth_from_patterns,
    layer_depth,
)
from keras_dualopt.penalty import decay_strength, rollback_strength

# The names that Keras gives to LoRA's factors (`Layer.enable_lora`). The delta
# a·b starts at 0: pulling b to 0 is the rollback, a's random start no anchor.
_LORA_ZERO = ("lora_kernel_b", "lora_embeddings_b")
_LORA_FREE = ("lora_kernel_a", "lora_embeddings_a")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The decisions of `build`, aligned with the optimizer's variables.

    Args:
        depth: The depths in force.
        places: For each variable, its place in the model.
        strengths: For each variable, its share of the pull; 0.0: none.
        anchored: For each variable, whether it gets a θ₀.
    """

    depth: LayerDepth
    places: list[Place]
    strengths: list[float]
    anchored: list[bool]


def make_plan(
    arguments: Arguments,
    model: keras.Model | None,
    head: Any,
    variables: Sequence[keras.Variable],
) -> Plan:
    """Decide for every variable.

    Raises:
        ValueError: If the depths do not fit the variables, a pattern matches
            nothing, or fine-tune mode finds nothing that was pretrained.
    """
    depth = _depth(arguments, model, head, variables)
    places = depth.place(model, variables)
    excluded = _excluded(arguments.exclude, model, variables)
    strengths, anchored = [], []
    for variable, place, free in zip(variables, places, excluded, strict=True):
        name = variable.path.rpartition("/")[2]
        relative = place.relative
        counts = place.pretrained and relative is not None
        overwritten = getattr(variable, "overwrite_with_gradient", False)
        pulled = counts and not (overwritten or free or name in _LORA_FREE)
        strengths.append(
            _strength(arguments, depth, relative)
            if pulled and relative is not None
            else 0.0
        )
        anchored.append(
            arguments.mode == "finetune"
            and counts
            and not overwritten
            and name not in _LORA_ZERO + _LORA_FREE
        )
    plan = Plan(depth, places, strengths, anchored)
    if arguments.mode == "finetune":
        _check_something_is_pretrained(plan, variables)
    return plan


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


def _strength(
    arguments: Arguments, depth: LayerDepth, relative: float
) -> float:
    high, low = arguments.levels
    power = arguments.power
    assert power is not None
    if arguments.mode == "finetune":
        return rollback_strength(relative, high, low, power)
    if arguments.depth is None and len({r.index for r in depth.rows}) == 1:
        relative = 1.0  # The only layer is the output layer.
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
    if not all(v.path.rpartition("/")[2] in _LORA_FREE for v in variables):
        warnings.warn(
            "None of the trainable weights was pretrained (all of them belong "
            "to the new head, or are named as such): weight rollback does "
            "nothing until pretrained layers are made trainable.",
            stacklevel=2,
        )
