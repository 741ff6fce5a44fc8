"""What a backend does where it has nothing of its own to do."""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import keras
import numpy.typing as npt

# A tensor of the backend in use, real or traced: no type is common to them,
# and Keras has none for what its operations take and return.
Tensor: TypeAlias = Any
# The same on the host.
Array: TypeAlias = npt.NDArray[Any]

# Of higher up: `pull.Pull`, `bases.PaperRule`. The backend imports neither.
Pull: TypeAlias = Any
Rule: TypeAlias = Any

# A `tf.distribute.Strategy`; `None` without one and on other backends.
Strategy: TypeAlias = Any


def eager() -> AbstractContextManager[object]:
    """A context in which variables are created and written at once."""
    return contextlib.nullcontext()


def replicated(strategy: Strategy) -> AbstractContextManager[object]:
    """A context in which new variables get their replicas."""
    return contextlib.nullcontext()


def unwatched(variable: keras.Variable) -> Tensor:
    """A variable's value, which no trace that runs takes note of."""
    return variable.value


def starting_model() -> keras.Model | None:
    """The model whose `fit` is about to take the weights out of it."""
    return None


def check_engine(
    model: keras.Model | None,
    variables: Sequence[keras.Variable],
    strategy: Strategy,
    accumulates: bool,
) -> None:
    """Refuse a way to distribute on which a step would be wrong."""


def hidden_scalars(values: Sequence[Tensor], used: Tensor) -> Sequence[Tensor]:
    """Numbers that a compiler does not take for constants."""
    return values


def batched_step(
    rule: Rule,
    gradients: Sequence[Tensor],
    variables: Sequence[keras.Variable],
    learning_rate: Tensor,
) -> tuple[Sequence[Tensor], Sequence[keras.Variable]]:
    """XLA fuses the plain path: there is nothing to batch."""
    return gradients, variables


def uncompiled(function: Callable[..., None]) -> Callable[..., None]:
    """XLA compiles whatever the whole step is made of."""
    return function


def forget_compiled(model: keras.Model) -> None:
    """Make the next step compile anew, also in the middle of `fit`."""
    if getattr(model, "train_function", None) is not None:
        model.make_train_function(force=True)
