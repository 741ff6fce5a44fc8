"""PyTorch: everything runs eagerly, in place, on live buffers."""

from collections.abc import Callable, Sequence

import keras
import numpy.typing as npt
import torch

from keras_dualopt.backend import torch_fused
from keras_dualopt.backend.defaults import Array, Pull, Strategy
from keras_dualopt.backend.torch_fused import step as batched_step  # noqa: F401


def check_engine(
    model: keras.Model | None,
    variables: Sequence[keras.Variable],
    strategy: Strategy,
    accumulates: bool,
) -> None:
    """Refuse a model whose parameters are no longer Keras' variables.

    `fully_shard` and `FullyShardedDataParallel` put tensors of their own in
    the place of a module's parameters, or parts into them. Keras' layers go on
    computing with their variables: whole ones, whose gradients nobody averages,
    so that the processes drift apart without a word.
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


def concrete(variable: keras.Variable) -> Array:
    """Return a variable's value on the host."""
    value = variable.value.detach().cpu()
    narrow = value.dtype in (torch.bfloat16, torch.float16)
    array: Array = (value.float() if narrow else value).numpy()
    return array


def copy_value(
    target: keras.Variable,
    source: keras.Variable | torch.Tensor | npt.ArrayLike,
) -> None:
    """Write a copy into the buffer that the target owns."""
    value = source
    if isinstance(source, keras.Variable):
        value = source.value
    elif not isinstance(source, torch.Tensor):
        # By Keras: torch does not know NumPy's bfloat16.
        value = keras.ops.convert_to_tensor(source, target.dtype)
    with torch.no_grad():
        target.value.copy_(value)


def dense(gradient: torch.Tensor) -> torch.Tensor:
    """Return a sparse gradient of an embedding as a dense tensor."""
    if gradient.layout != torch.strided:
        return gradient.to_dense()
    return gradient


@torch.no_grad()
def capture(
    flag: keras.Variable,
    anchors: Sequence[keras.Variable],
    variables: Sequence[keras.Variable],
    units: keras.Variable | None,
    measure: Callable[[Sequence[torch.Tensor]], torch.Tensor],
    strategy: Strategy,
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
def kept(variable: keras.Variable) -> torch.Tensor:
    """Return the value of now, which the step will write over."""
    return variable.value.clone()


@torch.no_grad()
def pull_each(
    pull: Pull,
    variables: Sequence[keras.Variable],
    indices: Sequence[int],
    learning_rate: keras.Variable | torch.Tensor | float,
    before: Sequence[torch.Tensor | None],
    strategy: Strategy,
) -> None:
    """Shorten and pull what is to be."""
    left = torch_fused.pull_each(pull, variables, indices, learning_rate)
    if left:
        steps = pull.steps(learning_rate, [index for index, _ in left])
        past = dict(zip(indices, before, strict=True))
    for index, variable in left:
        variable.assign(pull(index, variable.value, steps, past[index]))


def uncompiled(function: Callable[..., None]) -> Callable[..., None]:
    """Keep `torch.compile` out of a function.

    A compiled model calls the optimizer between two graphs. Tracing it would
    add minutes for many weights, and could not beat the fused kernels.
    """
    disabled: Callable[..., None] = torch.compiler.disable(function)
    return disabled
