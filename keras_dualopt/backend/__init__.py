"""What TensorFlow, JAX and PyTorch do differently, and nothing else.

`engine` has what `defaults` says, or the module of the backend in use where
that has a way of its own; and of every backend's own:

- `capture(flag, targets, values, strategy)`: in a training step, if the flag is
  0, write what `values()` returns into the targets, and set the flag to 1.
"""

import importlib
from types import SimpleNamespace

import keras

from keras_dualopt.backend import defaults
from keras_dualopt.backend.defaults import Array, Strategy, Tensor

if keras.backend.backend() not in ("tensorflow", "jax", "torch"):
    raise ImportError(
        "keras_dualopt trains with a Keras backend that can train. "
        "`KERAS_BACKEND` must be 'tensorflow', 'jax' or 'torch'. Received: "
        f"{keras.backend.backend()!r}."
    )

_own = importlib.import_module(
    f"keras_dualopt.backend.{keras.backend.backend()}"
)
engine = SimpleNamespace(**{**vars(defaults), **vars(_own)})

__all__ = ["Array", "Strategy", "Tensor", "engine"]
