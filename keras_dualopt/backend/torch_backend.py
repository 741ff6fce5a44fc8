"""PyTorch: everything runs eagerly, in place, on live buffers."""

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import torch

from keras_dualopt.backend import torch_batched


def eager() -> AbstractContextManager[Any]:
    """PyTorch is eager already."""
    return contextlib.nullcontext()


def replicated(strategy: Any) -> AbstractContextManager[Any]:
    """PyTorch's replicas are processes."""
    return contextlib.nullcontext()


def copy_value(target: keras.Variable, source: Any) -> None:
    """Write a copy into the buffer that the target owns."""
    value = source.value if isinstance(source, keras.Variable) else source
    with torch.no_grad():
        target.value.copy_(torch.as_tensor(value))


def dense(gradient: Any) -> Any:
    """Return a sparse gradient of an embedding as a dense tensor."""
    if gradient.layout != torch.strided:
        return gradient.to_dense()
    return gradient


@torch.no_grad()
def capture(
    flag: keras.Variable,
    anchors: Sequence[keras.Variable],
    variables: Sequence[keras.Variable],
    strategy: Any = None,
) -> None:
    """Copy `variables` into `anchors` in the first step.

    To read the flag makes a GPU wait, so it is read again only after it was
    written: torch counts the writes to a tensor.
    """
    value = flag.value
    if getattr(value, "_seen_taken_at", None) == value._version:
        return
    if int(value) == 0:
        for anchor, variable in zip(anchors, variables, strict=True):
            # A copy, and within the scope of `stateless_apply`, if in one.
            anchor.assign(variable.value.clone())
        flag.assign(torch.ones_like(value))
    if flag.value is value:
        value._seen_taken_at = value._version


@torch.no_grad()
def pull_each(
    pull: Any,
    variables: Sequence[keras.Variable],
    indices: Sequence[int],
    learning_rate: Any,
    strategy: Any = None,
) -> None:
    """Pull every variable that has a target."""
    left = torch_batched.pull_each(pull, variables, indices, learning_rate)
    ways = pull.ways(learning_rate, [index for index, _ in left])
    for index, variable in left:
        variable.assign(pull(index, variable.value, ways))


def hidden_scalars(values: Sequence[float], used: Any) -> Sequence[Any]:
    """Nothing is compiled that numbers could be hidden from."""
    return values


def batched_step(
    rule: Any,
    gradients: Sequence[Any],
    variables: Sequence[keras.Variable],
    learning_rate: Any,
) -> tuple[Sequence[Any], Sequence[Any]]:
    """Run torch's fused kernels on all that they can take."""
    left: tuple[list[Any], list[Any]] = torch_batched.step(
        rule, gradients, variables, learning_rate
    )
    return left


def uncompiled(function: Any) -> Any:
    """Keep `torch.compile` out of a function.

    A compiled model calls the optimizer between two graphs. Tracing it would
    add minutes for many weights, and could not beat the fused kernels.
    """
    return torch.compiler.disable(function)


def forget_compiled(model: Any) -> None:
    """Nothing is compiled but by `torch.compile`, which guards itself."""


def keep_state() -> None:
    """Nothing is lost in an error: the variables keep their values."""
