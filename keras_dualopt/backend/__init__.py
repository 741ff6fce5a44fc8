"""What TensorFlow, JAX and PyTorch do differently, and nothing else.

`engine` has the functions of the module of the backend in use, and those of
`defaults` that it need not write:

- `eager()`: a context in which variables are created and written at once, even
  while a graph is being traced;
- `replicated(strategy)`: a context in which new variables get their replicas;
- `check_engine(model, variables, strategy, accumulates)`: refuse a way to
  distribute on which a step would be wrong;
- `unwatched(variable)`: a variable's value, which no trace takes note of;
- `starting_model()`: the model whose `fit` is about to take the weights out of
  their variables, if that is what is happening;
- `concrete(variable)`: a variable's value on the host, also while a step is
  traced; `None` where it is not at hand;
- `copy_value(target, source)`: write a real copy of a value into a variable
  (never an alias of a live or donated buffer);
- `dense(gradient)`: a sparse gradient as a dense tensor;
- `capture(flag, anchors, variables, units, measure, strategy)`: in a training
  step, copy the variables into the anchors and their sizes into the units if
  the flag is 0, and set the flag to 1;
- `hidden_scalars(values, used)`: numbers that a compiler does not take for
  constants; 0 where the scalar `used` is false;
- `kept(variable)`: its value of now, which a step will not change;
- `pull_each(pull, variables, indices, learning_rate, before, strategy)`:
  shorten the steps that are too long, and pull what a wrapped optimizer has
  just moved; `before` has θ_{t−1} of the former;
- `batched_step(rule, gradients, variables, learning_rate)`: the update of one
  of the paper's rules for many variables at once; returns the gradients and
  the variables that the plain path must do;
- `uncompiled(function)`: a function that a compiler should leave alone;
- `forget_compiled(model)`: make the next training step trace anew.
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
