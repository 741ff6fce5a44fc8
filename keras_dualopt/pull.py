"""The pull of every variable: decided in `build`, looked up by index."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dualopt import backend
from keras_dualopt.penalty import pulled, way

# `penalty.way(ρ)` by strength.
Ways = dict[float, tuple[Any, Any]]


def compute_dtype(dtype: str) -> str:
    """Return the dtype of the update's arithmetic: float32 or wider.

    In half precision a pull of 1e-5 rounds to nothing and 1 − β₂ᵗ is garbage.
    """
    return "float64" if dtype == "float64" else "float32"


class Pull:
    """θ_pre ↦ θ_pre − ρ (θ_pre − a) for every variable of an optimizer.

    Args:
        strengths: For each variable, its share of the pull at the reference
            learning rate (fine-tune) or its weight decay (scratch); 0.0 for a
            variable that is not pulled.
        anchors: For each variable, the optimizer variable that holds θ₀, or
            `None`, which is 0.
        reference: η, the learning rate at which `strengths` are meant; 1.0 in
            scratch mode, where η cancels.
    """

    def __init__(
        self,
        strengths: Sequence[float],
        anchors: Sequence[keras.Variable | None],
        reference: float,
    ) -> None:
        self.strengths = list(strengths)
        self.anchors = list(anchors)
        self.reference = reference

    def ratio(self, strength: Any, learning_rate: Any) -> Any:
        """Return ρ at a strength, a float32 scalar in [0, 1]."""
        return _whole(ops.multiply(self._share(learning_rate), strength))

    def _share(self, learning_rate: Any) -> Any:
        """Return η_t/η, 0 for a rate below 0, as a float32 scalar."""
        rate = ops.cast(learning_rate, "float32")
        return ops.maximum(ops.divide(rate, self.reference), 0.0)

    def host_ratio(self, strength: float, learning_rate: float) -> float:
        """Return ρ at a strength, where the learning rate is a number."""
        # In float32 as on the device, where a rate equal to η gives exactly 1.
        share = np.float32(learning_rate) / np.float32(self.reference)
        return min(max(float(share * np.float32(strength)), 0.0), 1.0)

    def ways(self, learning_rate: Any, indices: Sequence[int]) -> Ways:
        """Return `penalty.way(ρ)` for each strength of some variables.

        Once a step rather than once a variable: with 1,000 variables the
        scalars would be most of what is traced.
        """
        levels = sorted({self.strengths[i] for i in indices} - {0.0})
        if not levels:
            return {}
        # At rate 0 nothing is pulled, whatever the strength.
        hidden = backend.hidden_scalars(levels, ops.greater(learning_rate, 0.0))
        share = self._share(learning_rate)
        return {
            level: way(_whole(ops.multiply(share, strength)))
            for level, strength in zip(levels, hidden, strict=True)
        }

    def __call__(self, index: int, value: Any, ways: Ways) -> Any:
        """Return the pulled value, in float32 or wider."""
        strength = self.strengths[index]
        if not strength:
            return value
        dtype = compute_dtype(keras.backend.standardize_dtype(value.dtype))
        anchor = self.anchors[index]
        if anchor is not None:
            anchor = ops.cast(anchor, dtype)
        near, share = ways[strength]
        return pulled(
            ops.cast(value, dtype), anchor, near, ops.cast(share, dtype)
        )


def _whole(ratio: Any) -> Any:
    """Return a share of the way, or all of it, but no more."""
    return ops.minimum(ratio, 1.0)
