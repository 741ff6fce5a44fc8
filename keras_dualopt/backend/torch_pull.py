"""PyTorch: the pull of many weights at once, in place.

`torch.lerp` has two forms and takes the one whose end is nearer, as
`penalty.pulled` does: the same three laws hold to the last bit.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import torch

from keras_dualopt.backend.torch_blocks import Run

# Where a scalar is read off a tensor at once. On a GPU that would wait for all
# that was launched before, so that scalars stay tensors there.
HOSTS = ("cpu",)


def tensor_of(value: Any) -> Any:
    """Return a variable's tensor; anything else as it is."""
    return value.value if isinstance(value, keras.Variable) else value


def scalar_on(device: torch.device, value: Any) -> Any:
    """Return a scalar: a number for the host, a tensor for a GPU."""
    value = tensor_of(value)
    if device.type in HOSTS:
        return float(value)
    if isinstance(value, torch.Tensor):
        return value.to(device, torch.float32)
    # Filled on the device; a copy from the host would wait for it.
    return torch.full((), float(value), device=device)


def puller(
    pull: Any, rate: Any, device: torch.device
) -> Callable[[Sequence[Run]], None]:
    """Return what pulls the runs of a block, in a step at this rate.

    Args:
        pull: The optimizer's `Pull`, or `None`.
        rate: η_t, from `scalar_on`.
        device: Where the weights are.
    """
    if pull is None:
        return lambda runs: None
    if device.type in HOSTS:
        return _host_puller(pull, rate)
    return _device_puller(pull, rate, device)


def _host_puller(pull: Any, rate: float) -> Callable[[Sequence[Run]], None]:
    ratios: dict[float, float] = {}

    def move(runs: Sequence[Run]) -> None:
        for run in runs:
            ratio = ratios.get(run.strength)
            if ratio is None:
                ratio = ratios[run.strength] = pull.host_ratio(
                    run.strength, rate
                )
            if not ratio:
                continue
            if run.anchors:
                torch._foreach_lerp_(run.weights, run.anchors, ratio)
            elif ratio < 0.5:
                # Not (1 − ρ)θ: 1 − ρ is rounded to 6e-8, which is a large part
                # of a small ρ, and the same error in every step.
                torch._foreach_add_(run.weights, run.weights, alpha=-ratio)
            else:
                torch._foreach_mul_(run.weights, 1.0 - ratio)

    return move


def _device_puller(
    pull: Any, rate: torch.Tensor, device: torch.device
) -> Callable[[Sequence[Run]], None]:
    # In torch's own terms: with numbers, Keras' operations would copy each of
    # them to the device, and wait.
    share = (rate / pull.reference).clamp_min(0.0)
    ratios: dict[float, torch.Tensor] = {}
    zero = torch.zeros((), device=device)

    def move(runs: Sequence[Run]) -> None:
        weights: list[torch.Tensor] = []
        ends: list[torch.Tensor] = []
        shares: list[torch.Tensor] = []
        for run in runs:
            if run.strength not in ratios:
                ratios[run.strength] = (share * run.strength).clamp_max(1.0)
            weights += run.weights
            ends += run.anchors or [zero] * len(run.weights)
            shares += [ratios[run.strength]] * len(run.weights)
        if weights:
            torch._foreach_lerp_(weights, ends, shares)

    return move
