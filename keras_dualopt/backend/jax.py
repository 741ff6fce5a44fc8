"""JAX: values are immutable, updates are traced, buffers are donated."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import keras
import numpy as np

from keras_dualopt.backend import defaults
from keras_dualopt.backend.defaults import Array, Strategy, Tensor


def layout(variable: keras.Variable) -> object:
    """Return how a variable is spread over devices."""
    sharding = variable.value.sharding
    spread = isinstance(sharding, jax.sharding.NamedSharding)
    return sharding if spread else None


def forget_compiled(model: keras.Model) -> None:
    """Make the next step compile anew, also where the last one is still held.

    JAX looks for what it has traced by equality, and `model.train_step` equals
    itself: while anything holds an old step (the traceback of an interrupted
    `fit`, in a notebook), a new one would be that of the old optimizer.
    """
    jax.jit(model.train_step, donate_argnums=0).clear_cache()
    defaults.forget_compiled(model)


def on_host(value: Tensor) -> Array | None:
    """Return a variable's own value, also while a step is traced."""
    if value is None or isinstance(value, jax.core.Tracer):
        return None
    # Given away to a step, or parts of it in other processes only.
    if value.is_deleted() or not (
        value.is_fully_addressable or value.is_fully_replicated
    ):
        return None
    return np.asarray(value)


def capture(
    flag: keras.Variable,
    targets: Sequence[keras.Variable],
    values: Callable[[], Sequence[Tensor]],
    strategy: Strategy,
) -> None:
    """Write values into the targets in the first step.

    A conditional rather than `where`: once the anchors are taken, its branch
    hands the old buffers on, and no pass over memory is made.
    """
    taken = flag.value
    if not isinstance(taken, jax.core.Tracer) and int(taken) != 0:
        return
    results = jax.lax.cond(
        jnp.equal(taken, 0),
        lambda old: [
            jnp.asarray(value, dtype=target.dtype)
            for value, target in zip(values(), targets, strict=True)
        ],
        lambda old: old,
        [target.value for target in targets],
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
