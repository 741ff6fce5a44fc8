"""What TensorFlow, JAX and PyTorch do differently, and nothing else.

`engine` is the module of the backend in use. Each offers the same functions
with the same meaning; `defaults` has those that most need not write:

- `eager()`: a context in which variables are created and written at once, even
  while a graph is being traced;
- `replicated(strategy)`: a context in which new variables get their replicas;
- `check_engine(model, variables, strategy, accumulates)`: refuse a way to
  distribute on which a step would be wrong;
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
- `before_step(pull, variables, indices)`: θ_{t−1} of variables whose step a
  wrapped optimizer will make too long;
- `pull_each(pull, variables, indices, learning_rate, before, strategy)`:
  shorten those steps, and pull what a wrapped optimizer has just moved;
- `batched_step(rule, gradients, variables, learning_rate)`: the update of one
  of the paper's rules for many variables at once; returns the gradients and
  the variables that the plain path must do;
- `uncompiled(function)`: a function that a compiler should leave alone;
- `forget_compiled(model)`: make the next training step trace anew.
"""

import importlib
from typing import Any

import keras

if keras.backend.backend() not in ("tensorflow", "jax", "torch"):
    raise ImportError(
        "keras_dualopt trains with a Keras backend that can train. "
        "`KERAS_BACKEND` must be 'tensorflow', 'jax' or 'torch'. Received: "
        f"{keras.backend.backend()!r}."
    )

# The type is that of any of them: all have the same functions.
engine: Any = importlib.import_module(
    f"keras_dualopt.backend.{keras.backend.backend()}"
)

__all__ = ["engine"]
