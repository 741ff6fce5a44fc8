"""Layers that look as if they had never been trained."""

from collections.abc import Sequence
from typing import Any

import numpy as np

# What Keras' initializers put there, and training moves at once.
_STARTS = {"bias": 0.0, "beta": 0.0, "gamma": 1.0}
# Some models start their biases beside 0 (ViT: at 1e-6).
_NEARLY = 1e-4


def look_new(
    layers: Sequence[str],
    paths: Sequence[str],
    depths: Sequence[float],
    values: Sequence[Any],
) -> list[str]:
    """Return the deepest layers whose biases and scales never moved.

    A bias of zeros, a γ of ones with a β of zeros: what is put on top of a
    pretrained model looks like that, where layers below it do not. Inside of
    one it is no sign: attention may have been trained without a key's bias.

    Args:
        layers: For each weight, the layer that owns it.
        paths: Its path.
        depths: Its relative depth.
        values: Its value, an array.
    """
    new: dict[str, float] = {}
    deepest_trained: float | None = None
    moved: set[str] = set()
    for layer, path, depth, value in zip(
        layers, paths, depths, values, strict=True
    ):
        start = _STARTS.get(path.rpartition("/")[2])
        if start is None:
            continue
        distance = float(np.max(np.abs(value - start), initial=0.0))
        if distance:
            moved.add(layer)
        else:
            new[layer] = depth
        if distance > _NEARLY:
            deepest_trained = max(depth, deepest_trained or 0.0)
    if deepest_trained is None:
        return []
    return [
        layer
        for layer, depth in new.items()
        if layer not in moved and depth > deepest_trained
    ]
