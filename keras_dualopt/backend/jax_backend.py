"""JAX: values are immutable, updates are traced, buffers are donated."""

import contextlib
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import keras
from jax.experimental import sparse as jax_sparse


def eager() -> AbstractContextManager[Any]:
    """JAX builds optimizers outside of its traces."""
    return contextlib.nullcontext()


def replicated(strategy: Any) -> AbstractContextManager[Any]:
    """JAX lays variables out by their reference."""
    return contextlib.nullcontext()


def copy_value(target: keras.Variable, source: Any) -> None:
    """Write a copy: an alias would be donated twice in the next step."""
    value = source.value if isinstance(source, keras.Variable) else source
    target.assign(jnp.array(value, dtype=target.dtype, copy=True))


def dense(gradient: Any) -> Any:
    """Return a `BCOO` gradient of an embedding as a dense array."""
    if isinstance(gradient, jax_sparse.JAXSparse):
        return gradient.todense()
    return gradient


def capture(
    flag: keras.Variable,
    anchors: Sequence[keras.Variable],
    variables: Sequence[keras.Variable],
    strategy: Any = None,
) -> None:
    """Copy `variables` into `anchors` in the first step.

    A conditional rather than `where`: once the anchors are taken, its branch
    hands the old buffers on, and no pass over memory is made.
    """
    taken = flag.value
    if not isinstance(taken, jax.core.Tracer) and int(taken) != 0:
        return
    if anchors:
        values = jax.lax.cond(
            jnp.equal(taken, 0),
            lambda old, new: new,
            lambda old, new: old,
            [anchor.value for anchor in anchors],
            [
                jnp.asarray(variable.value, dtype=anchor.dtype)
                for variable, anchor in zip(variables, anchors, strict=True)
            ],
        )
        for anchor, value in zip(anchors, values, strict=True):
            anchor.assign(value)
    flag.assign(jnp.ones_like(taken))


def hidden_scalars(values: Sequence[float], used: Any) -> Sequence[Any]:
    """Return numbers that XLA does not see; 0 where they are not used.

    Kernels that differ in nothing but a constant are compiled one by one, with
    one strength for each layer most of the time that compiling takes. What
    comes out of a conditional is no constant to XLA. Not on a GPU, which may
    have to ask the host which branch to take.
    """
    if not isinstance(used, jax.core.Tracer) or jax.default_backend() != "cpu":
        return values
    scalars: list[Any] = jax.lax.cond(
        used,
        lambda: [jnp.float32(value) for value in values],
        lambda: [jnp.float32(0.0)] * len(values),
    )
    return scalars


def pull_each(
    pull: Any,
    variables: Sequence[keras.Variable],
    indices: Sequence[int],
    learning_rate: Any,
    strategy: Any = None,
) -> None:
    """Pull every variable that has a target."""
    ways = pull.ways(learning_rate, indices)
    for index, variable in zip(indices, variables, strict=True):
        if pull.strengths[index]:
            variable.assign(pull(index, variable.value, ways))


def batched_step(
    rule: Any,
    gradients: Sequence[Any],
    variables: Sequence[Any],
    learning_rate: Any,
) -> tuple[Sequence[Any], Sequence[Any]]:
    """XLA fuses the plain path: there is nothing to batch."""
    return gradients, variables


def uncompiled(function: Any) -> Any:
    """XLA compiles whatever the whole step is made of."""
    return function


def forget_compiled(model: Any) -> None:
    """Make the next step compile anew, also in the middle of `fit`."""
    if getattr(model, "train_function", None) is not None:
        model.make_train_function(force=True)


def keep_state() -> None:
    """Hand `fit` its variables back before an error ends it.

    Keras' `fit` empties the variables before the first step, to have their
    memory, and fills them from `_jax_state`, which the first step has yet to
    write. An error while that step is traced would lose every weight.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        owner, state = (frame.f_locals.get(name) for name in ("self", "state"))
        if (
            frame.f_code.co_name == "fit"
            and isinstance(owner, keras.Model)
            and isinstance(state, tuple)
            and not getattr(owner, "_jax_state", None)
        ):
            names = ("trainable", "non_trainable", "optimizer", "metrics")
            owner._jax_state = {
                f"{name}_variables": values
                for name, values in zip(names, state, strict=True)
            }
            return
        frame = frame.f_back
