"""What a backend does where it has nothing of its own to do."""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import keras
import numpy.typing as npt
from keras import ops

# A tensor of the backend in use, real or traced: no type is common to them,
# and Keras has none for what its operations take and return.
Tensor: TypeAlias = Any
# The same on the host.
Array: TypeAlias = npt.NDArray[Any]

# Of higher up: `pull.Pull`, `bases.PaperRule`. The backend imports neither.
Pull: TypeAlias = Any
Rule: TypeAlias = Any

# What a base has moved and the pull is to move on: which of the variables, the
# variable at θ_pre, and θ_{t−1} if the step was too long, else `None`.
Moved: TypeAlias = tuple[int, keras.Variable, Tensor]

# A `tf.distribute.Strategy`; `None` without one and on other backends.
Strategy: TypeAlias = Any


def eager() -> AbstractContextManager[object]:
    """A context in which variables are created and written at once.

    Also while a graph is being traced.
    """
    return contextlib.nullcontext()


def replicated(strategy: Strategy) -> AbstractContextManager[object]:
    """A context in which new variables get their replicas."""
    return contextlib.nullcontext()


def layout(variable: keras.Variable) -> object:
    """How a variable is spread over devices, for another like it."""
    return None


def check_engine(
    model: keras.Model | None,
    variables: Sequence[keras.Variable],
    strategy: Strategy,
    accumulates: bool,
) -> None:
    """Refuse a way to distribute on which a step would be wrong."""


def unwatched(variable: keras.Variable) -> Tensor:
    """A variable's value, which no trace that runs takes note of."""
    return variable.value


def on_host(value: Tensor) -> Array | None:
    """A variable's own value, also while a step is traced.

    `None` where it is not at hand.
    """
    array: Array = ops.convert_to_numpy(value)
    return array


def copy_value(
    target: keras.Variable, source: keras.Variable | Tensor | npt.ArrayLike
) -> None:
    """Write a copy: an alias would be moved or donated in the next step."""
    target.assign(ops.copy(ops.convert_to_tensor(source, target.dtype)))


def dense(gradient: Tensor) -> Tensor:
    """A sparse gradient of an embedding as a dense tensor."""
    return ops.convert_to_tensor(gradient, sparse=False)


def hidden_scalars(values: Sequence[Tensor], used: Tensor) -> Sequence[Tensor]:
    """Numbers that a compiler does not take for constants.

    They are 0 where the scalar `used` is false.
    """
    return values


def batched_step(
    rule: Rule,
    gradients: Sequence[Tensor],
    variables: Sequence[keras.Variable],
    learning_rate: Tensor,
) -> list[tuple[Tensor, keras.Variable]]:
    """Update many variables at once; return what the plain path must do.

    XLA fuses the plain path: there is nothing to batch.
    """
    return list(zip(gradients, variables, strict=True))


def pull_each(
    pull: Pull,
    moved: Sequence[Moved],
    learning_rate: Tensor,
    strategy: Strategy,
) -> None:
    """Shorten the steps that are too long, and pull."""
    if not moved:
        return
    steps = pull.steps(learning_rate, [index for index, *_ in moved])
    for index, variable, before in moved:
        variable.assign(pull(index, variable.value, steps, before))


def uncompiled(function: Callable[..., None]) -> Callable[..., None]:
    """A function that a compiler leaves alone; XLA compiles whole steps."""
    return function


def forget_compiled(model: keras.Model) -> None:
    """Make the next step compile anew, also in the middle of `fit`."""
    if getattr(model, "train_function", None) is not None:
        model.make_train_function(force=True)
