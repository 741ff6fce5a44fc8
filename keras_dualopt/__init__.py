"""DualOpt: any Keras optimizer's step, and a pull in the same step."""

from keras_dualopt import bases
from keras_dualopt.depth import LayerDepth, layer_depth
from keras_dualopt.optimizer import DualOpt

__version__ = "0.1.0"

__all__ = ["DualOpt", "LayerDepth", "__version__", "bases", "layer_depth"]
