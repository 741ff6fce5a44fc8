"""What a backend does where it has nothing of its own to do."""

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras


def eager() -> AbstractContextManager[Any]:
    """A context in which variables are created and written at once."""
    return contextlib.nullcontext()


def replicated(strategy: Any) -> AbstractContextManager[Any]:
    """A context in which new variables get their replicas."""
    return contextlib.nullcontext()


def starting_model() -> keras.Model | None:
    """The model whose `fit` is about to take the weights out of it."""
    return None


def check_engine(
    model: keras.Model | None,
    variables: Sequence[keras.Variable],
    strategy: Any,
    accumulates: bool,
) -> None:
    """Refuse a way to distribute on which a step would be wrong."""


def hidden_scalars(values: Any, used: Any) -> Sequence[Any]:
    """Numbers that a compiler does not take for constants."""
    if isinstance(values, keras.Variable):
        return [values.value[n] for n in range(values.shape[0])]
    numbers: Sequence[Any] = values
    return numbers


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
