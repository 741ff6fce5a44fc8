"""Training loops written by hand, as each backend's users write them.

The gradient is NumPy's, so that every backend trains on the same numbers.
"""

import keras
import numpy as np
from cases import BACKEND


def values(variables):
    """Return copies: torch and TensorFlow may hand out the live buffer."""
    return [
        np.array(keras.ops.convert_to_numpy(v.value)).astype("float64")
        if v.dtype in ("float16", "bfloat16")
        else np.array(keras.ops.convert_to_numpy(v.value))
        for v in variables
    ]


def tensors(gradients, variables):
    return [
        None
        if gradient is None
        else keras.ops.convert_to_tensor(np.asarray(gradient), variable.dtype)
        for gradient, variable in zip(gradients, variables, strict=True)
    ]


def apply_steps(optimizer, variables, gradient, steps):
    """Train with `apply`; return the weights after every step."""
    trajectory = []
    for step in range(steps):
        gradients = gradient(step, values(variables))
        optimizer.apply(tensors(gradients, variables), variables)
        trajectory.append(values(variables))
    return trajectory


def compiled_steps(optimizer, variables, gradient, steps):
    """Train as a compiled loop of the backend's own does; same result.

    TensorFlow: `apply` in a `tf.function`. JAX: `stateless_apply`, jitted, its
    arguments donated. torch: `apply`, which is what its users call.
    """
    if BACKEND == "torch":
        return apply_steps(optimizer, variables, gradient, steps)
    if BACKEND == "jax":
        return _jax_steps(optimizer, variables, gradient, steps)
    return _tensorflow_steps(optimizer, variables, gradient, steps)


def _jax_steps(optimizer, variables, gradient, steps):
    import jax

    optimizer.build(variables)
    compiled = jax.jit(optimizer.stateless_apply, donate_argnums=(0, 2))
    state = [variable.value for variable in optimizer.variables]
    weights = [variable.value for variable in variables]
    trajectory = []
    for step in range(steps):
        now = [np.array(weight) for weight in weights]
        gradients = tensors(gradient(step, now), variables)
        weights, state = compiled(state, gradients, weights)
        trajectory.append([np.array(weight) for weight in weights])
    for variable, weight in zip(variables, weights, strict=True):
        variable.assign(weight)
    for variable, value in zip(optimizer.variables, state, strict=True):
        variable.assign(value)
    assert compiled._cache_size() == 1
    return trajectory


def _tensorflow_steps(optimizer, variables, gradient, steps):
    import tensorflow as tf

    traces = []

    @tf.function
    def compiled(gradients):
        traces.append(len(gradients))
        optimizer.apply(gradients, variables)

    trajectory, first = [], 0
    for step in range(steps):
        compiled(tensors(gradient(step, values(variables)), variables))
        first = first or len(traces)
        trajectory.append(values(variables))
    assert len(traces) == first
    return trajectory


def compiled(function):
    """Return a function of tensors as XLA compiles it; as it is on torch."""
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True)
    return function
