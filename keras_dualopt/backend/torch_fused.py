"""PyTorch: one of the paper's rules for all weights at once, and the pull.

The plain path makes some ten passes over memory, with a temporary for each. A
fused kernel of torch's makes one; the pull is then half a pass more. What a
kernel cannot take (half precision, sparse gradients, tensors that are laid out
otherwise) is handed back for the plain path: same numbers, more slowly.

The pull reads the weights again: from the cache, if the kernel did not move too
many others meanwhile. So small weights share a block, and large ones are cut.

Private names, used here alone: `torch._fused_adam_`, `_fused_sgd_` and
`_foreach_*` of torch 2.6 to 2.13, on which `torch.optim` stands.
"""

import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import keras
import numpy as np
import torch

from keras_dualopt.backend.defaults import Moved, Pull, Rule

# Of higher up, `pull.Level`: hashable, equal where pulls are.
Level: TypeAlias = Any
# A number for the host, a tensor for a GPU.
Scalar: TypeAlias = float | torch.Tensor
LearningRate: TypeAlias = keras.Variable | torch.Tensor | float

# Numbers in a block, on each kind of device that has the kernels. On a CPU 2
# MiB each of θ, g, m, v and θ₀, together less than a last-level cache: with a
# quarter of it, an update was 10% slower on two cores (more kernels to start);
# without any cutting, 15%. On a GPU one call takes all: launches cost more than
# the cache could save.
LIMITS = {"cpu": 1 << 19, "cuda": sys.maxsize}

# Where a scalar is read off a tensor at once. On a GPU that would wait for all
# that was launched before, so that scalars stay tensors there.
HOSTS = ("cpu",)


# Blocks: which weights are moved and pulled together.


class Slot(NamedTuple):
    """The tensors of one weight's update.

    Args:
        weight: θ.
        state: m, or m and v; nothing where only the pull is wanted.
        anchor: θ₀, or `None`, which is 0.
        level: How it is pulled; `None`: not at all.
        rate: Its share of the learning rate.
    """

    weight: torch.Tensor
    state: tuple[torch.Tensor, ...]
    anchor: torch.Tensor | None
    level: Level | None
    rate: float

    def cut(self, part: slice) -> "Slot":
        """Return a part of it: views of the contiguous tensors."""
        weight, *state = (
            tensor.detach().view(-1)[part]
            for tensor in (self.weight, *self.state)
        )
        anchor = None if self.anchor is None else self.anchor.view(-1)[part]
        return Slot(weight, tuple(state), anchor, self.level, self.rate)


class Block:
    """What one call of a kernel takes, and the pulls that follow it."""

    def __init__(self, device: torch.device, rate: float) -> None:
        self.device = device
        self.rate = rate
        self.size = 0
        # Which gradient is whose: its position, and which part of it.
        self.sources: list[tuple[int, slice | None]] = []
        self.weights: list[torch.Tensor] = []
        self.state: tuple[list[torch.Tensor], ...] = ([], [])
        # By level, and whether to θ₀: the weights, and their anchors.
        self.pulls: dict[
            tuple[Level, bool], tuple[list[torch.Tensor], list[torch.Tensor]]
        ] = {}

    def add(self, slot: Slot, position: int, part: slice | None = None) -> None:
        """Take one more weight, or one part of a weight."""
        self.size += slot.weight.numel()
        self.sources.append((position, part))
        self.weights.append(slot.weight)
        for column, tensor in zip(self.state, slot.state, strict=False):
            column.append(tensor)
        if slot.level is not None:
            key = slot.level, slot.anchor is not None
            weights, anchors = self.pulls.setdefault(key, ([], []))
            weights.append(slot.weight)
            if slot.anchor is not None:
                anchors.append(slot.anchor)


def blocks_of(slots: Sequence[Slot]) -> list[Block]:
    """Return blocks for weights in the order in which gradients will come."""
    blocks: list[Block] = []
    growing: dict[tuple[torch.device, float], Block] = {}
    for position, slot in enumerate(slots):
        size, key = slot.weight.numel(), (slot.weight.device, slot.rate)
        limit = LIMITS[slot.weight.device.type]
        if size > limit:
            for start in range(0, size, limit):
                part = slice(start, start + limit)
                blocks.append(Block(*key))
                blocks[-1].add(slot.cut(part), position, part)
            continue
        block = growing.get(key)
        if block is None or block.size + size > limit:
            block = growing[key] = Block(*key)
            blocks.append(block)
        block.add(slot, position)
    return blocks


class _Batch:
    """The slots of an optimizer, and the blocks of each set of weights seen."""

    def __init__(self) -> None:
        # By index: a weight, its address, and its slot; `None`: no kernel can
        # take it.
        self._seen: dict[int, tuple[torch.Tensor, int, Slot | None]] = {}
        self._blocks: dict[tuple[int, ...], list[Block]] = {}

    def slot(
        self,
        index: int,
        variable: keras.Variable,
        pull: Pull | None,
        state_of: Callable[[int], Sequence[keras.Variable]],
    ) -> Slot | None:
        """Return a weight's slot, made anew where the weight has moved."""
        if index in self._seen:
            # `variable.value` would take longer than a kernel does on a small
            # weight. A model that is moved keeps its tensors and gives them
            # other memory.
            weight, address, slot = self._seen[index]
            if weight.data_ptr() == address:
                return slot
        weight = variable.value
        slot = _slot(weight, state_of(index), pull, index)
        self._seen[index] = weight, weight.data_ptr(), slot
        self._blocks.clear()
        return slot

    def blocks(self, indices: Sequence[int]) -> list[Block]:
        """Return the blocks for weights that have slots."""
        key = tuple(indices)
        if key not in self._blocks:
            if len(self._blocks) == 8:  # Other weights take part every time.
                self._blocks.clear()
            slots = [self._seen[index][2] for index in indices]
            self._blocks[key] = blocks_of([s for s in slots if s is not None])
        return self._blocks[key]


# By the pull rather than the optimizer, if there is one: other anchors come
# with another pull, and those that were dropped are not kept alive here.
_batches: weakref.WeakKeyDictionary[Pull | Rule, _Batch] = (
    weakref.WeakKeyDictionary()
)


@torch.compiler.disable
@torch.no_grad()
def step(
    rule: Rule,
    gradients: Sequence[torch.Tensor],
    variables: Sequence[keras.Variable],
    learning_rate: LearningRate,
) -> list[tuple[torch.Tensor, keras.Variable]]:
    """Move and pull what the kernels can take; return the rest."""
    pairs = list(zip(gradients, variables, strict=True))
    # A subclass has a rule of its own, which the kernel does not know.
    kernel = _KERNELS.get(vars(type(rule)).get("kernel"))
    if kernel is None or _in_scope(variables[0]):
        return pairs
    pull = rule.pull
    batch = _batches.setdefault(rule if pull is None else pull, _Batch())
    indices, taken, left = [], [], []
    for gradient, variable in pairs:
        index = rule.index_of(variable)
        slot = batch.slot(index, variable, pull, rule.state_of)
        if slot is not None and _fits(gradient, slot.weight):
            indices.append(index)
            taken.append(gradient.contiguous())
        else:
            left.append((gradient, variable))
    number = rule.iterations + 1

    def move(block: Block, rate: Scalar) -> None:
        parts = [
            taken[which] if part is None else taken[which].view(-1)[part]
            for which, part in block.sources
        ]
        step = number.to(block.device, torch.float32)
        kernel(rule, block, parts, [step] * len(parts), rate)

    _run(batch.blocks(indices), pull, learning_rate, move)
    return left


@torch.compiler.disable
@torch.no_grad()
def pull_each(
    pull: Pull, moved: Sequence[Moved], learning_rate: LearningRate
) -> list[Moved]:
    """Pull what a wrapped optimizer has moved; return what is left to do."""
    if not moved or _in_scope(moved[0][1]):
        return list(moved)
    batch = _batches.setdefault(pull, _Batch())
    taken, left = [], []
    for index, variable, before in moved:
        slot = batch.slot(index, variable, pull, lambda index: ())
        if slot is None or before is not None:
            left.append((index, variable, before))
        else:
            taken.append(index)
    _run(batch.blocks(taken), pull, learning_rate)
    return left


def _run(
    blocks: Sequence[Block],
    pull: Pull | None,
    learning_rate: LearningRate,
    move: Callable[[Block, Scalar], None] | None = None,
) -> None:
    """Move and pull block by block."""
    rates: dict[torch.device, Scalar] = {}
    ratios: dict[torch.device, Mapping[Level, Scalar]] = {}
    for block in blocks:
        device = block.device
        if device not in rates:
            rates[device] = scalar_on(device, learning_rate)
            ratios[device] = _ratios(pull, rates[device])
        if move is not None:
            rate = rates[device]
            move(block, rate if block.rate == 1.0 else rate * block.rate)
        _pull(block, ratios[device])


# What can be taken.


def _in_scope(variable: keras.Variable) -> bool:
    """Tell whether variables stand for other tensors (`stateless_apply`)."""
    value = variable.value
    with keras.StatelessScope():  # An empty one, in which they do not.
        return value is not variable.value


def _slot(
    weight: torch.Tensor,
    state: Sequence[keras.Variable],
    pull: Pull | None,
    index: int,
) -> Slot | None:
    level, rate, anchor = None, 1.0, None
    if pull is not None:
        rate = pull.levels[index].rate
        if pull.pulls[index]:
            level, anchor = pull.levels[index], pull.anchors[index]
    others = tuple(variable.value for variable in state)
    target = None if anchor is None else anchor.value
    for tensor in (weight, *others, *([] if target is None else [target])):
        if (
            # Not a subclass: a DTensor spreads over processes.
            type(tensor) not in (torch.Tensor, torch.nn.Parameter)
            or (tensor.dtype != torch.float32 and tensor is not target)
            or tensor.device != weight.device
            or tensor.device.type not in LIMITS
            or tensor.layout != torch.strided
            or not tensor.is_contiguous()
            or not tensor.numel()
        ):
            return None
    return Slot(weight, others, target, level, rate)


def _fits(gradient: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        type(gradient) is torch.Tensor
        and gradient.layout is torch.strided
        and gradient.dtype is torch.float32
        and gradient.shape == weight.shape
        and gradient.device == weight.device
    )


# The kernels.


def _adam(
    rule: Rule,
    block: Block,
    gradients: list[torch.Tensor],
    steps: list[torch.Tensor],
    rate: Scalar,
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
    rule: Rule,
    block: Block,
    gradients: list[torch.Tensor],
    steps: list[torch.Tensor],
    rate: Scalar,
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


_KERNELS: dict[str | None, Callable[..., None]] = {"adam": _adam, "sgd": _sgd}


def _rounded(beta: float) -> float:
    """Return β as the kernel's float32 sees it.

    The kernel computes 1 − β from what it is given and β itself in float32; if
    the two do not add up to 1, its averages are off by 1e-5 for β₂ = 0.999.
    """
    rounded = float(np.float32(beta))
    return rounded if rounded < 1.0 else beta


# The pull of many weights at once, in place.


def _tensor_of(value: LearningRate) -> torch.Tensor | float:
    return value.value if isinstance(value, keras.Variable) else value


def scalar_on(device: torch.device, value: LearningRate) -> Scalar:
    """Return a scalar: a number for the host, a tensor for a GPU."""
    value = _tensor_of(value)
    if device.type in HOSTS:
        return float(value)
    if isinstance(value, torch.Tensor):
        return value.to(device, torch.float32)
    # Filled on the device; a copy from the host would wait for it.
    return torch.full((), float(value), device=device)


def _ratios(pull: Pull | None, rate: Scalar) -> Mapping[Level, Scalar]:
    """Return ρ of every level, on the host or on the device of the rate."""
    ratios: dict[Level, Scalar] = {}
    if pull is None:
        return ratios
    if isinstance(rate, float):
        ratios.update(pull.host_ratios(rate))
        return ratios
    for level in dict.fromkeys(pull.levels):
        # In torch's own terms: with numbers, Keras' operations would copy each
        # of them to the device, and wait.
        amount = level.amount
        if level.unit is not None:
            amount = pull.units.value[level.unit].to(rate.device) * amount
        ratios[level] = pull.ratio(amount, rate, level.rate, torch)
    return ratios


def _pull(block: Block, ratios: Mapping[Level, Scalar]) -> None:
    for (level, anchored), (weights, anchors) in block.pulls.items():
        ratio = ratios[level]
        if isinstance(ratio, torch.Tensor):
            # One by one: wide copies of a whole θ₀ would be the memory saved.
            zeros = [torch.zeros_like(ratio)] * len(weights)
            for weight, anchor in zip(weights, anchors or zeros, strict=True):
                weight.lerp_(anchor.to(torch.float32), ratio)
        elif not ratio:
            continue
        elif anchored:
            if anchors[0].dtype != torch.float32:
                # Of a block, no more.
                anchors = [anchor.to(torch.float32) for anchor in anchors]
            torch._foreach_lerp_(weights, anchors, ratio)
        elif ratio < 0.5:
            # Not (1 − ρ)θ: 1 − ρ is rounded to 6e-8, which is a large part of
            # a small ρ, and the same error in every step.
            torch._foreach_add_(weights, weights, alpha=-ratio)
        else:
            torch._foreach_mul_(weights, 1.0 - ratio)
