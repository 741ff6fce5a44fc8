"""PyTorch: one of the paper's rules for all weights at once, and the pull.

The plain path makes some ten passes over memory, with a temporary for each. A
fused kernel of torch's makes one; the pull is then half a pass more. What a
kernel cannot take (half precision, sparse gradients, tensors that are laid out
otherwise) is handed back for the plain path: same numbers, more slowly.

Private names, used here alone: `Variable._value` of Keras 3.13 to 3.15, the
tensor behind `Variable.value`, whose property takes longer than a kernel does
on a small weight; `torch._fused_adam_`, `_fused_sgd_` and `_foreach_*` of torch
2.6 to 2.13, on which `torch.optim` stands.
"""

import weakref
from collections.abc import Sequence
from typing import Any

import keras
import torch

from keras_dualopt.backend.torch_blocks import LIMITS, Block, Plan, Slot, cut
from keras_dualopt.backend.torch_pull import puller, scalar_on, tensor_of


class _Batch:
    """The slots of an optimizer, and a plan for each set of weights seen."""

    def __init__(self) -> None:
        self.slots: dict[int, Slot | None] = {}
        self._addresses: dict[int, int] = {}
        self._plans: dict[tuple[int, ...], Plan] = {}
        self._steps: dict[torch.device, torch.Tensor] = {}

    def knows(self, index: int, value: torch.Tensor) -> bool:
        """Tell whether a weight's slot is made, and for this tensor."""
        slot = self.slots.get(index)
        # A model that is moved keeps its tensors and gives them other memory.
        return self._addresses.get(index) == value.data_ptr() and (
            slot is None or slot.weight is value
        )

    def learn(self, index: int, value: torch.Tensor, slot: Slot | None) -> None:
        """Keep a weight's slot; `None`: no kernel can take it."""
        self._addresses[index] = value.data_ptr()
        self.slots[index] = slot
        self._plans.clear()

    def plan(self, indices: list[int]) -> Plan:
        """Return the blocks for these weights."""
        key = tuple(indices)
        if key not in self._plans:
            if len(self._plans) == 8:  # Other weights take part every time.
                self._plans.clear()
            slots = [self.slots[index] for index in indices]
            self._plans[key] = Plan([s for s in slots if s is not None])
        return self._plans[key]

    def step(self, device: torch.device) -> torch.Tensor:
        """Return the scalar that holds the step's number on a device."""
        if device not in self._steps:
            self._steps[device] = torch.zeros((), device=device)
        return self._steps[device]


# By the pull rather than the optimizer, if there is one: other anchors come
# with another pull, and those that were dropped are not kept alive here.
_batches: weakref.WeakKeyDictionary[Any, _Batch] = weakref.WeakKeyDictionary()


@torch.compiler.disable
@torch.no_grad()
def step(
    rule: Any,
    gradients: Sequence[Any],
    variables: Sequence[keras.Variable],
    learning_rate: Any,
) -> tuple[list[Any], list[keras.Variable]]:
    """Move and pull what the kernels can take; return the rest."""
    # A subclass has a rule of its own, which the kernel does not know.
    kernel = _KERNELS.get(vars(type(rule)).get("kernel"))
    if kernel is None or _in_scope(variables):
        return list(gradients), list(variables)
    pull = rule.pull
    batch = _batches.setdefault(rule if pull is None else pull, _Batch())
    indices, taken, left = [], [], []
    for gradient, variable in zip(gradients, variables, strict=True):
        index = rule._get_variable_index(variable)
        value = variable._value
        if not batch.knows(index, value):
            state = rule.state_of(index)
            batch.learn(index, value, _slot(value, state, pull, index))
        slot = batch.slots[index]
        if slot is not None and _fits(gradient, slot.weight):
            indices.append(index)
            taken.append(gradient)
        else:
            left.append((gradient, variable))
    if taken:
        _run(kernel, rule, batch, indices, taken, learning_rate)
    return [gradient for gradient, _ in left], [weight for _, weight in left]


def _run(
    kernel: Any,
    rule: Any,
    batch: _Batch,
    indices: list[int],
    gradients: list[torch.Tensor],
    learning_rate: Any,
) -> None:
    plan = batch.plan(indices)
    pieces = {
        position: cut(gradients[position].contiguous(), size)
        for position, size in plan.cuts.items()
    }
    rates, pulls, steps = {}, {}, {}
    for block in plan.blocks:
        device = block.device
        if device not in rates:
            rates[device] = scalar_on(device, learning_rate)
            pulls[device] = puller(rule.pull, rates[device], device)
            steps[device] = batch.step(device)
            steps[device].copy_(tensor_of(rule.iterations)).add_(1)
        kernel(
            rule,
            block,
            [
                pieces[position][piece]
                if position in pieces
                else gradients[position].contiguous()
                for position, piece in block.sources
            ],
            [steps[device]] * len(block.weights),
            rates[device],
        )
        pulls[device](block.runs)


@torch.compiler.disable
@torch.no_grad()
def pull_each(
    pull: Any,
    variables: Sequence[keras.Variable],
    indices: Sequence[int],
    learning_rate: Any,
) -> list[tuple[int, keras.Variable]]:
    """Pull what a wrapped optimizer has moved; return what is left to do."""
    pairs = [
        (index, variable)
        for index, variable in zip(indices, variables, strict=True)
        if pull.strengths[index]
    ]
    if not pairs or _in_scope(variables):
        return pairs
    batch = _batches.setdefault(pull, _Batch())
    taken, left = [], []
    for index, variable in pairs:
        value = variable._value
        if not batch.knows(index, value):
            batch.learn(index, value, _slot(value, (), pull, index))
        if batch.slots[index] is None:
            left.append((index, variable))
        else:
            taken.append(index)
    for block in batch.plan(taken).blocks:
        rate = scalar_on(block.device, learning_rate)
        puller(pull, rate, block.device)(block.runs)
    return left


# What can be taken.


def _in_scope(variables: Sequence[keras.Variable]) -> bool:
    """Tell whether variables stand for other tensors (`stateless_apply`)."""
    return not variables or variables[0].value is not variables[0]._value


def _slot(
    weight: torch.Tensor,
    state: Sequence[keras.Variable | None],
    pull: Any,
    index: int,
) -> Slot | None:
    strength = 0.0 if pull is None else pull.strengths[index]
    anchor = pull.anchors[index] if strength else None
    others = tuple(None if slot is None else slot._value for slot in state)
    target = None if anchor is None else anchor._value
    tensors = [weight, *others] + ([] if target is None else [target])
    for tensor in tensors:
        if (
            # Not a subclass: a DTensor spreads over processes.
            type(tensor) not in (torch.Tensor, torch.nn.Parameter)
            or tensor.dtype != torch.float32
            or tensor.device != weight.device
            or tensor.device.type not in LIMITS
            or tensor.layout != torch.strided
            or not tensor.is_contiguous()
            or not tensor.numel()
        ):
            return None
    return Slot(weight, others, target, strength)


def _fits(gradient: Any, weight: torch.Tensor) -> bool:
    return (
        type(gradient) is torch.Tensor
        and gradient.layout is torch.strided
        and gradient.dtype is torch.float32
        and gradient.shape == weight.shape
        and gradient.device == weight.device
    )


# The kernels.


def _adam(
    rule: Any,
    block: Block,
    gradients: list[torch.Tensor],
    steps: list[torch.Tensor],
    rate: Any,
) -> None:
    torch._fused_adam_(
        block.weights,
        gradients,
        *block.state,
        [],
        steps,
        lr=rate,
        beta1=_rounded(rule.beta_1),
        beta2=_rounded(rule.beta_2),
        weight_decay=0.0,
        eps=rule.epsilon,
        amsgrad=False,
        maximize=False,
        grad_scale=None,
        found_inf=None,
    )


def _sgd(
    rule: Any,
    block: Block,
    gradients: list[torch.Tensor],
    steps: list[torch.Tensor],
    rate: Any,
) -> None:
    momentum = _rounded(rule.momentum)
    torch._fused_sgd_(
        block.weights,
        gradients,
        block.state[0] if momentum else [],
        weight_decay=0.0,
        momentum=momentum,
        lr=rate,
        # With this "dampening", m is an average: βm + (1 − β)g.
        dampening=momentum,
        nesterov=False,
        maximize=False,
        is_first_step=False,
        grad_scale=None,
        found_inf=None,
    )


_KERNELS: dict[Any, Any] = {"adam": _adam, "sgd": _sgd}


def _rounded(beta: float) -> float:
    """Return β as the kernel's float32 sees it.

    The kernel computes 1 − β from what it is given and β itself in float32; if
    the two do not add up to 1, its averages are off by 1e-5 for β₂ = 0.999.
    """
    rounded: float = torch.tensor(beta, dtype=torch.float32).item()
    return rounded if rounded < 1.0 else beta
