"""How deep each weight of a Keras model lies, and which of them are new."""

from keras_dualopt.depth.find import find_model, no_weights, training_model
from keras_dualopt.depth.head import check_head
from keras_dualopt.depth.layer_depth import layer_depth
from keras_dualopt.depth.table import (
    DepthRow,
    LayerDepth,
    depth_from_patterns,
    place_keys,
)

__all__ = [
    "DepthRow",
    "LayerDepth",
    "check_head",
    "depth_from_patterns",
    "find_model",
    "layer_depth",
    "no_weights",
    "place_keys",
    "training_model",
]
