"""JAX: values are immutable, updates are traced, buffers are donated."""

import sys
from collections.abc import Callable, Sequence
from types import FrameType

import jax
import jax.numpy as jnp
import keras
import numpy as np
import numpy.typing as npt
from jax.experimental import sparse as jax_sparse

from keras_dualopt.backend import defaults
from keras_dualopt.backend.defaults import Array, Pull, Strategy, Tensor


def starting_model() -> keras.Model | None:
    """Return the model whose `fit` is about to take the weights out of it.

    Keras' `fit` empties the variables before a step, to have their memory: an
    error afterwards may lose every weight, and a step compiled for other
    variables of the same shapes would run on them. What it reads just before,
    on every backend's public property, is `optimizer.variables`.
    """
    frame: FrameType | None = sys._getframe(2)
    for _ in range(5):  # Through a wrapper's property, and a comprehension.
        if frame is None:
            return None
        if frame.f_code.co_name == "_purge_model_variables":
            return None  # Called by the same, for the second time.
        if frame.f_code.co_name == "_get_jax_state":
            model: keras.Model = frame.f_locals["self"]
            return model
        frame = frame.f_back
    return None


def forget_compiled(model: keras.Model) -> None:
    """Make the next step compile anew, also where the last one is still held.

    JAX looks for what it has traced by equality, and `model.train_step` equals
    itself: while anything holds an old step (the traceback of an interrupted
    `fit`, in a notebook), a new one would be that of the old optimizer.
    """
    jax.jit(model.train_step, donate_argnums=0).clear_cache()
    defaults.forget_compiled(model)


def concrete(variable: keras.Variable) -> Array | None:
    """Return a variable's value on the host, also while a step is traced."""
    value = variable._value
    if value is None or isinstance(value, jax.core.Tracer):
        return None
    # Given away to a step, or parts of it in other processes only.
    if value.is_deleted() or not (
        value.is_fully_addressable or value.is_fully_replicated
    ):
        return None
    return np.asarray(value)


def copy_value(
    target: keras.Variable, source: keras.Variable | Tensor | npt.ArrayLike
) -> None:
    """Write a copy: an alias would be donated twice in the next step."""
    value = source.value if isinstance(source, keras.Variable) else source
    target.assign(jnp.array(value, dtype=target.dtype, copy=True))


def dense(gradient: Tensor) -> Tensor:
    """Return a `BCOO` gradient of an embedding as a dense array."""
    if isinstance(gradient, jax_sparse.JAXSparse):
        return gradient.todense()
    return gradient


def capture(
    flag: keras.Variable,
    anchors: Sequence[keras.Variable],
    variables: Sequence[keras.Variable],
    units: keras.Variable | None,
    measure: Callable[[Sequence[Tensor]], Tensor],
    strategy: Strategy,
) -> None:
    """Copy `variables` into `anchors` in the first step.

    A conditional rather than `where`: once the anchors are taken, its branch
    hands the old buffers on, and no pass over memory is made.
    """
    taken = flag.value
    if not isinstance(taken, jax.core.Tracer) and int(taken) != 0:
        return
    if anchors:
        targets = [*anchors] if units is None else [*anchors, units]

        def take(old: list[Tensor], new: list[Tensor]) -> list[Tensor]:
            values = [
                jnp.asarray(value, dtype=anchor.dtype)
                for value, anchor in zip(new, anchors, strict=True)
            ]
            return values if units is None else [*values, measure(new)]

        results = jax.lax.cond(
            jnp.equal(taken, 0),
            take,
            lambda old, new: old,
            [target.value for target in targets],
            [variable.value for variable in variables],
        )
        for target, value in zip(targets, results, strict=True):
            target.assign(value)
    flag.assign(jnp.ones_like(taken))


def hidden_scalars(values: Sequence[Tensor], used: Tensor) -> Sequence[Tensor]:
    """Return numbers that XLA does not see; 0 where they are not used.

    Kernels that differ in nothing but a constant are compiled one by one, with
    one strength for each layer most of the time that compiling takes. What
    comes out of a conditional is no constant to XLA. Not on a GPU, which may
    have to ask the host which branch to take.
    """
    if (
        not values
        or not isinstance(used, jax.core.Tracer)
        or jax.default_backend() != "cpu"
    ):
        return values
    scalars: list[Tensor] = jax.lax.cond(
        used,
        lambda: [jnp.asarray(value, "float32") for value in values],
        lambda: [jnp.float32(0.0)] * len(values),
    )
    return scalars


def kept(variable: keras.Variable) -> Tensor:
    """Return the value of now; it is not changed, but replaced."""
    return variable.value


def pull_each(
    pull: Pull,
    variables: Sequence[keras.Variable],
    indices: Sequence[int],
    learning_rate: Tensor,
    before: Sequence[Tensor],
    strategy: Strategy,
) -> None:
    """Shorten the step of every variable where it is to be, and pull it."""
    steps = pull.steps(learning_rate, indices)
    for index, variable, past in zip(indices, variables, before, strict=True):
        if pull.pulls[index] or pull.slows[index]:
            variable.assign(pull(index, variable.value, steps, past))
