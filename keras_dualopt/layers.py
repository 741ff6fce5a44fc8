"""An optimizer's variables by the layer they belong to."""

import dataclasses
import math
from typing import Any

from keras_dualopt.plan import Plan


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer that is trained.

    Args:
        name: Its path.
        relative: Its relative depth; `None` for the head.
        indices: The positions of its variables in the optimizer's list.
    """

    name: str
    relative: float | None
    indices: tuple[int, ...]


def layers_of(plan: Plan) -> list[Layer]:
    """Return the trained layers, shallowest first, the head last."""
    # Paths are not unique: two nested models may use the same names.
    groups: dict[tuple[str, Any], list[int]] = {}
    for index, place in enumerate(plan.places):
        groups.setdefault((place.layer, place.relative), []).append(index)
    layers = [
        Layer(name, relative, tuple(indices))
        for (name, relative), indices in groups.items()
    ]
    return sorted(
        layers,
        key=lambda layer: (
            math.inf if layer.relative is None else layer.relative
        ),
    )
