"""PyTorch: everything runs eagerly, in place, on live buffers."""

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import torch


def eager() -> AbstractContextManager[Any]:
    """PyTorch is eager already."""
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
) -> bool:
    """Copy `variables` into `anchors` in the first step."""
    if int(flag.value) != 0:
        return True
    for anchor, variable in zip(anchors, variables, strict=True):
        anchor.value.copy_(variable.value)
    flag.value.fill_(1)
    return True


@torch.no_grad()
def pull_each(
    pull: Any,
    variables: Sequence[keras.Variable],
    indices: Sequence[int],
    learning_rate: Any,
    strategy: Any = None,
) -> None:
    """Pull every variable that has a target."""
    share = pull.share(learning_rate)
    for index, variable in zip(indices, variables, strict=True):
        if pull.strengths[index]:
            variable.value.copy_(pull(index, variable.value, share))


def batched_step(
    rule: Any, gradients: Any, variables: Any, scalars: Any
) -> bool:
    """Not batched."""
    return False


def forget_compiled(model: Any) -> None:
    """Nothing is compiled but by `torch.compile`, which guards itself."""


def keep_state() -> None:
    """Nothing is lost in an error: the variables keep their values."""
