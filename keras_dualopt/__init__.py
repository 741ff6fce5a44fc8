"""DualOpt: any Keras optimizer's step, and a pull in the same step."""

from keras_dualopt import bases, callbacks
from keras_dualopt.depth import LayerDepth, layer_depth
from keras_dualopt.files import restore_optimizer, save_without_anchors
from keras_dualopt.interpolation import (
    ReviewCurve,
    interpolate,
    review,
    review_curve,
)
from keras_dualopt.optimizer import DualOpt
from keras_dualopt.plots import plot_strength
from keras_dualopt.recipes import recipe

__version__ = "0.1.0"

__all__ = [
    "DualOpt",
    "LayerDepth",
    "ReviewCurve",
    "__version__",
    "bases",
    "callbacks",
    "interpolate",
    "layer_depth",
    "plot_strength",
    "recipe",
    "restore_optimizer",
    "review",
    "review_curve",
    "save_without_anchors",
]


def __dir__() -> list[str]:
    """Return the public names: the modules inside are not among them."""
    return __all__
