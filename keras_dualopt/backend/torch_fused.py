"""PyTorch: one of the paper's rules for all weights at once, and the pull.

The plain path makes some ten passes over memory, with a temporary for each. A
fused kernel of torch's makes one; the pull is then half a pass more. What a
kernel cannot take (half precision, sparse gradients, tensors that are laid out
otherwise) is handed back for the plain path: same numbers, more slowly.

The pull reads the weights again: from the cache, if the kernel did not move too
many others meanwhile. So small weights share a block, and large ones are cut.

Private names, used here alone: `Variable._value` of Keras 3.13 to 3.15, the
tensor behind `Variable.value`, whose property takes longer than a kernel does
on a small weight; `torch._fused_adam_`, `_fused_sgd_` and `_foreach_*` of torch
2.6 to 2.13, on which `torch.optim` stands.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import keras
import torch

from keras_dualopt.backend.defaults import Pull, Rule

# Of higher up, `pull.Level`: hashable, equal where pulls are.
Level: TypeAlias = Any
# A number for the host, a tensor for a GPU.
Scalar: TypeAlias = float | torch.Tensor
LearningRate: TypeAlias = keras.Variable | torch.Tensor | float

# Numbers in a block: 2 MiB each of θ, g, m, v and θ₀, together less than a
# last-level cache. With a quarter of it, an update was 10% slower on two cores
# (more kernels to start); without any cutting, 15%.
_CHUNK = 1 << 19

# The largest block on each kind of device that has the kernels. On a GPU one
# call takes all: launches cost more than the cache could save.
LIMITS = {"cpu": _CHUNK, "cuda": None}

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


class Run(NamedTuple):
    """Neighbours that are pulled equally: to θ₀, or to 0 (no anchors)."""

    level: Level
    weights: list[torch.Tensor]
    anchors: list[torch.Tensor]


class Block:
    """What one call of a kernel takes, and the pulls that follow it."""

    def __init__(self, device: torch.device, rate: float) -> None:
        self.device = device
        self.rate = rate
        self.size = 0
        # Which gradient is whose: its position, and which piece of it.
        self.sources: list[tuple[int, int]] = []
        self.weights: list[torch.Tensor] = []
        self.state: tuple[list[torch.Tensor], ...] = ([], [])
        self.runs: list[Run] = []

    def add(self, position: int, piece: int, slot: Slot) -> None:
        """Take one more weight, or one piece of a weight."""
        self.size += slot.weight.numel()
        self.sources.append((position, piece))
        self.weights.append(slot.weight)
        for column, tensor in zip(self.state, slot.state, strict=False):
            column.append(tensor)
        if slot.level is None:
            return
        anchors = [] if slot.anchor is None else [slot.anchor]
        last = self.runs[-1] if self.runs else None
        if (
            last is None
            or last.level != slot.level
            or bool(last.anchors) != bool(anchors)
        ):
            last = Run(slot.level, [], [])
            self.runs.append(last)
        last.weights.append(slot.weight)
        last.anchors.extend(anchors)


class Plan:
    """The blocks for one set of weights.

    Args:
        slots: The weights, in the order in which gradients will come.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.blocks: list[Block] = []
        # The weights that are cut: their positions, and the size of a piece.
        self.cuts: dict[int, int] = {}
        growing: dict[tuple[torch.device, float], Block] = {}
        for position, slot in enumerate(slots):
            device, size = slot.weight.device, slot.weight.numel()
            limit = LIMITS[device.type]
            if limit is not None and size > limit:
                self._cut(position, slot, limit)
                continue
            block = growing.get((device, slot.rate))
            if block is None or (
                limit is not None and block.size + size > limit
            ):
                block = growing[device, slot.rate] = Block(device, slot.rate)
                self.blocks.append(block)
            block.add(position, 0, slot)

    def _cut(self, position: int, slot: Slot, limit: int) -> None:
        count = slot.weight.numel()
        size = _ceiling(count, _ceiling(count, limit))
        size = 16 * _ceiling(size, 16)  # Whole cache lines.
        self.cuts[position] = size
        weights = cut(slot.weight, size)
        state = list(zip(*(cut(tensor, size) for tensor in slot.state)))
        anchors = None if slot.anchor is None else cut(slot.anchor, size)
        for piece, weight in enumerate(weights):
            block = Block(weight.device, slot.rate)
            part = slot._replace(
                weight=weight,
                state=state[piece] if state else (),
                anchor=None if anchors is None else anchors[piece],
            )
            block.add(position, piece, part)
            self.blocks.append(block)


def cut(tensor: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
    """Return a contiguous tensor's pieces: views, in order."""
    pieces: tuple[torch.Tensor, ...] = tensor.detach().view(-1).split(size)
    return pieces


def _ceiling(count: int, size: int) -> int:
    return -(-count // size)


class _Batch:
    """The slots of an optimizer, and a plan for each set of weights seen."""

    def __init__(self) -> None:
        # `None`: no kernel can take it.
        self._slots: dict[int, Slot | None] = {}
        self._addresses: dict[int, int] = {}
        self._plans: dict[tuple[int, ...], Plan] = {}
        self._steps: dict[torch.device, torch.Tensor] = {}

    def slot(
        self,
        index: int,
        weight: torch.Tensor,
        pull: Pull | None,
        state_of: Callable[[int], Sequence[keras.Variable | None]],
    ) -> Slot | None:
        """Return a weight's slot, made anew for another tensor."""
        slot = self._slots.get(index)
        # A model that is moved keeps its tensors and gives them other memory.
        if self._addresses.get(index) != weight.data_ptr() or (
            slot is not None and slot.weight is not weight
        ):
            slot = _slot(weight, state_of(index), pull, index)
            self._addresses[index] = weight.data_ptr()
            self._slots[index] = slot
            self._plans.clear()
        return slot

    def plan(self, indices: list[int]) -> Plan:
        """Return the blocks for these weights."""
        key = tuple(indices)
        if key not in self._plans:
            if len(self._plans) == 8:  # Other weights take part every time.
                self._plans.clear()
            slots = [self._slots[index] for index in indices]
            self._plans[key] = Plan([s for s in slots if s is not None])
        return self._plans[key]

    def step(self, device: torch.device) -> torch.Tensor:
        """Return the scalar that holds the step's number on a device."""
        if device not in self._steps:
            self._steps[device] = torch.zeros((), device=device)
        return self._steps[device]


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
) -> tuple[list[torch.Tensor], list[keras.Variable]]:
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
        slot = batch.slot(index, variable._value, pull, rule.state_of)
        if slot is not None and _fits(gradient, slot.weight):
            indices.append(index)
            taken.append(gradient)
        else:
            left.append((gradient, variable))
    if taken:
        _run(kernel, rule, batch, indices, taken, learning_rate)
    return [gradient for gradient, _ in left], [weight for _, weight in left]


def _run(
    kernel: Callable[..., None],
    rule: Rule,
    batch: _Batch,
    indices: list[int],
    gradients: list[torch.Tensor],
    learning_rate: LearningRate,
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
            steps[device].copy_(_tensor_of(rule.iterations)).add_(1)
        rate = rates[device]
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
            rate if block.rate == 1.0 else rate * block.rate,
        )
        pulls[device](block.runs)


@torch.compiler.disable
@torch.no_grad()
def pull_each(
    pull: Pull,
    variables: Sequence[keras.Variable],
    indices: Sequence[int],
    learning_rate: LearningRate,
) -> list[tuple[int, keras.Variable]]:
    """Pull what a wrapped optimizer has moved; return what is left to do."""
    pairs = [
        (index, variable)
        for index, variable in zip(indices, variables, strict=True)
        if pull.pulls[index] or pull.slows[index]
    ]
    if not pairs or _in_scope(variables):
        return pairs
    batch = _batches.setdefault(pull, _Batch())
    taken, left = [], []
    for index, variable in pairs:
        if (
            pull.slows[index]
            or batch.slot(index, variable._value, pull, _no_state) is None
        ):
            left.append((index, variable))
        else:
            taken.append(index)
    for block in batch.plan(taken).blocks:
        rate = scalar_on(block.device, learning_rate)
        puller(pull, rate, block.device)(block.runs)
    return left


def _no_state(index: int) -> tuple[()]:
    """Return the averages that the pull alone needs."""
    return ()


# What can be taken.


def _in_scope(variables: Sequence[keras.Variable]) -> bool:
    """Tell whether variables stand for other tensors (`stateless_apply`)."""
    return not variables or variables[0].value is not variables[0]._value


def _slot(
    weight: torch.Tensor,
    state: Sequence[keras.Variable | None],
    pull: Pull | None,
    index: int,
) -> Slot | None:
    level, rate, target = None, 1.0, None
    if pull is not None:
        rate = pull.levels[index].rate
        if pull.pulls[index]:
            level, anchor = pull.levels[index], pull.anchors[index]
            target = None if anchor is None else anchor._value
    others = tuple(None if slot is None else slot._value for slot in state)
    for tensor in [weight, *others] + ([] if target is None else [target]):
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
    rounded: float = torch.tensor(beta, dtype=torch.float32).item()
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


def puller(
    pull: Pull | None, rate: Scalar, device: torch.device
) -> Callable[[Sequence[Run]], None]:
    """Return what pulls the runs of a block, in a step at this rate."""
    if pull is None:
        return lambda runs: None
    if isinstance(rate, float):
        return _host_puller(pull, rate)
    return _device_puller(pull, rate, device)


def _host_puller(pull: Pull, rate: float) -> Callable[[Sequence[Run]], None]:
    ratios: dict[Level, float] = {}

    def move(runs: Sequence[Run]) -> None:
        for run in runs:
            ratio = ratios.get(run.level)
            if ratio is None:
                ratio = ratios[run.level] = pull.host_ratio(run.level, rate)
            if not ratio:
                continue
            if run.anchors:
                ends = run.anchors
                if ends[0].dtype != torch.float32:
                    # Of a block, no more.
                    ends = [anchor.to(torch.float32) for anchor in ends]
                torch._foreach_lerp_(run.weights, ends, ratio)
            elif ratio < 0.5:
                # Not (1 − ρ)θ: 1 − ρ is rounded to 6e-8, which is a large part
                # of a small ρ, and the same error in every step.
                torch._foreach_add_(run.weights, run.weights, alpha=-ratio)
            else:
                torch._foreach_mul_(run.weights, 1.0 - ratio)

    return move


def _device_puller(
    pull: Pull, rate: torch.Tensor, device: torch.device
) -> Callable[[Sequence[Run]], None]:
    ratios: dict[Level, torch.Tensor] = {}
    zero = torch.zeros((), device=device)

    def move(runs: Sequence[Run]) -> None:
        weights: list[torch.Tensor] = []
        ends: list[torch.Tensor] = []
        shares: list[torch.Tensor] = []
        for run in runs:
            if run.level not in ratios:
                ratios[run.level] = _device_ratio(pull, run.level, rate)
            ratio = ratios[run.level]
            if run.anchors and run.anchors[0].dtype != torch.float32:
                # One by one: a wide copy of all θ₀ would be the memory saved.
                for weight, anchor in zip(run.weights, run.anchors):
                    weight.lerp_(anchor.to(torch.float32), ratio)
                continue
            weights += run.weights
            ends += run.anchors or [zero] * len(run.weights)
            shares += [ratio] * len(run.weights)
        if weights:
            torch._foreach_lerp_(weights, ends, shares)

    return move


def _device_ratio(pull: Pull, level: Level, rate: torch.Tensor) -> torch.Tensor:
    """Return ρ as `Pull.ratio` does, in torch's own terms.

    With numbers, Keras' operations would copy each of them to the device, and
    wait.
    """
    amount = level.amount
    if level.unit is not None:
        amount = pull.units.value[level.unit].to(rate.device) * amount
    if not pull.reach:
        # By a tensor: a number's reciprocal would be multiplied with on a
        # GPU, and η/η would not be 1.
        whole = torch.full_like(rate, pull.reference)
        share = (rate / whole).clamp_min(0.0)
        return (share * amount).clamp_max(1.0)
    own = (rate * level.rate).clamp_min(0.0)
    return own / (own + amount).clamp_min(torch.finfo(torch.float32).tiny)
