"""PyTorch: everything runs eagerly, in place, on live buffers."""

from collections.abc import Sequence
from typing import Any

import keras
import torch

from keras_dualopt.backend import torch_fused
from keras_dualopt.backend.defaults import eager as eager
from keras_dualopt.backend.defaults import forget_compiled as forget_compiled
from keras_dualopt.backend.defaults import hidden_scalars as hidden_scalars
from keras_dualopt.backend.defaults import replicated as replicated
from keras_dualopt.backend.defaults import starting_model as starting_model


def check_engine(
    model: keras.Model | None,
    variables: Sequence[keras.Variable],
    strategy: Any,
    accumulates: bool,
) -> None:
    """Refuse a model whose parameters are no longer Keras' variables.

    `fully_shard` and `FullyShardedDataParallel` put tensors of their own in
    the place of a module's parameters, or parts into them. Keras' layers go on
    computing with their variables: whole ones, whose gradients nobody averages,
    so that the processes drift apart without a word.

    Raises:
        ValueError: In a distributed run, naming the first such weight.
    """
    if model is None or not (
        torch.distributed.is_available() and torch.distributed.is_initialized()
    ):
        return
    known = {id(parameter) for parameter in model.parameters()}
    for variable in variables:
        value = variable.value
        if id(value) not in known or value.shape != variable.shape:
            raise ValueError(
                f"The torch parameter of {variable.path!r} is no longer the "
                "tensor that Keras computes with: `fully_shard` or "
                "`FullyShardedDataParallel` has replaced it, and the processes "
                "would drift apart. Wrap the model in `torch.nn.parallel."
                "DistributedDataParallel`; to shard weights use "
                "`keras.distribution.ModelParallel` on the JAX backend."
            )


def concrete(variable: keras.Variable) -> Any:
    """Return a variable's value on the host."""
    value = variable.value.detach().cpu()
    narrow = value.dtype in (torch.bfloat16, torch.float16)
    return (value.float() if narrow else value).numpy()


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
    units: keras.Variable | None = None,
    measure: Any = None,
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
        if units is not None:
            units.assign(measure([variable.value for variable in variables]))
        flag.assign(torch.ones_like(value))
    if flag.value is value:
        value._seen_taken_at = value._version


@torch.no_grad()
def before_step(
    pull: Any, variables: Sequence[keras.Variable], indices: Sequence[int]
) -> list[Any]:
    """Return θ_{t−1} of the variables whose step will be shortened."""
    return [
        variable.value.clone() if pull.slows[index] else None
        for index, variable in zip(indices, variables, strict=True)
    ]


@torch.no_grad()
def pull_each(
    pull: Any,
    variables: Sequence[keras.Variable],
    indices: Sequence[int],
    learning_rate: Any,
    before: Sequence[Any],
    strategy: Any = None,
) -> None:
    """Shorten and pull what is to be."""
    steps = None
    plain = []
    for index, variable, past in zip(indices, variables, before, strict=True):
        if past is None:
            plain.append((index, variable))
            continue
        if steps is None:
            steps = pull.steps(learning_rate, indices)
        variable.assign(pull(index, variable.value, steps, past))
    left = torch_fused.pull_each(
        pull,
        [variable for _, variable in plain],
        [index for index, _ in plain],
        learning_rate,
    )
    if left:
        steps = pull.steps(learning_rate, [index for index, _ in left])
    for index, variable in left:
        variable.assign(pull(index, variable.value, steps))


def batched_step(
    rule: Any,
    gradients: Sequence[Any],
    variables: Sequence[keras.Variable],
    learning_rate: Any,
) -> tuple[Sequence[Any], Sequence[Any]]:
    """Run torch's fused kernels on all that they can take."""
    left: tuple[list[Any], list[Any]] = torch_fused.step(
        rule, gradients, variables, learning_rate
    )
    return left


def uncompiled(function: Any) -> Any:
    """Keep `torch.compile` out of a function.

    A compiled model calls the optimizer between two graphs. Tracing it would
    add minutes for many weights, and could not beat the fused kernels.
    """
    return torch.compiler.disable(function)
