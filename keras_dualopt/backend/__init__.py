"""What TensorFlow, JAX and PyTorch do differently, and nothing else.

Each module of this folder offers the same functions with the same meaning:

- `eager()`: a context in which variables are created and written at once, even
  while a graph is being traced;
- `replicated(strategy)`: a context in which new variables get their replicas;
- `copy_value(target, source)`: write a real copy of a value into a variable
  (never an alias of a live or donated buffer);
- `dense(gradient)`: a sparse gradient as a dense tensor;
- `capture(flag, anchors, variables, strategy)`: in a training step, copy the
  variables into the anchors if the flag is 0, and set the flag to 1;
- `hidden_scalars(values, used)`: numbers that a compiler does not take for
  constants; 0 where the scalar `used` is false;
- `pull_each(pull, variables, indices, learning_rate, strategy)`: apply the
  pull to variables that a wrapped optimizer has just moved;
- `batched_step(rule, gradients, variables, learning_rate)`: the update of one
  of the paper's rules for many variables at once; returns the gradients and
  the variables that the plain path must do;
- `uncompiled(function)`: a function that a compiler should leave alone;
- `forget_compiled(model)`: make the next training step trace anew;
- `keep_state()`: called when a step is refused: no weight may be lost by it.
"""

import keras

if keras.backend.backend() == "tensorflow":
    from keras_dualopt.backend.tensorflow_backend import (
        batched_step,
        capture,
        copy_value,
        dense,
        eager,
        forget_compiled,
        hidden_scalars,
        keep_state,
        pull_each,
        replicated,
        uncompiled,
    )
elif keras.backend.backend() == "jax":
    from keras_dualopt.backend.jax_backend import (
        batched_step,
        capture,
        copy_value,
        dense,
        eager,
        forget_compiled,
        hidden_scalars,
        keep_state,
        pull_each,
        replicated,
        uncompiled,
    )
elif keras.backend.backend() == "torch":
    from keras_dualopt.backend.torch_backend import (
        batched_step,
        capture,
        copy_value,
        dense,
        eager,
        forget_compiled,
        hidden_scalars,
        keep_state,
        pull_each,
        replicated,
        uncompiled,
    )
else:
    raise ImportError(
        "keras_dualopt trains with a Keras backend that can train. Expected: "
        "KERAS_BACKEND to be 'tensorflow', 'jax' or 'torch'. Received: "
        f"{keras.backend.backend()!r}."
    )

__all__ = [
    "batched_step",
    "capture",
    "copy_value",
    "dense",
    "eager",
    "forget_compiled",
    "hidden_scalars",
    "keep_state",
    "pull_each",
    "replicated",
    "uncompiled",
]
