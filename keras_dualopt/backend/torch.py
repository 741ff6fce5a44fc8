"""PyTorch: everything runs eagerly, in place, on live buffers."""

from collections.abc import Callable, Sequence

import keras
import torch

from keras_dualopt.backend import defaults, torch_fused
from keras_dualopt.backend.defaults import Moved, Pull, Strategy
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


def dense(gradient: torch.Tensor) -> torch.Tensor:
    """Return a sparse gradient of an embedding as a dense tensor."""
    return gradient.to_dense()


@torch.no_grad()
def capture(
    flag: keras.Variable,
    targets: Sequence[keras.Variable],
    values: Callable[[], Sequence[torch.Tensor]],
    strategy: Strategy,
) -> None:
    """Write values into the targets in the first step.

    To read the flag makes a GPU wait, so it is read again only after it was
    written: torch counts the writes to a tensor.
    """
    value = flag.value
    if getattr(value, "_seen_taken_at", None) == value._version:
        return
    if int(value) == 0:
        for target, new in zip(targets, values(), strict=True):
            # A copy, and within the scope of `stateless_apply`, if in one.
            target.assign(new.clone())
        flag.assign(torch.ones_like(value))
    if flag.value is value:
        value._seen_taken_at = value._version


@torch.no_grad()
def pull_each(
    pull: Pull,
    moved: Sequence[Moved],
    learning_rate: keras.Variable | torch.Tensor | float,
    strategy: Strategy,
) -> None:
    """Shorten and pull what is to be, with few kernels where they can."""
    left = torch_fused.pull_each(pull, moved, learning_rate)
    defaults.pull_each(pull, left, learning_rate, strategy)


def uncompiled(function: Callable[..., None]) -> Callable[..., None]:
    """Keep `torch.compile` out of a function.

    A compiled model calls the optimizer between two graphs. Tracing it would
    add minutes for many weights, and could not beat the fused kernels.
    """
    disabled: Callable[..., None] = torch.compiler.disable(function)
    return disabled
