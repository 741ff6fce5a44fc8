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
from typing import Any, NamedTuple

import keras
import torch

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
    level: Any
    rate: float


class Run(NamedTuple):
    """Neighbours that are pulled equally: to θ₀, or to 0 (no anchors)."""

    level: Any
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
        if slot.level is not None:
            run = self._run(slot.level, slot.anchor is not None)
            run.weights.append(slot.weight)
            if slot.anchor is not None:
                run.anchors.append(slot.anchor)

    def _run(self, level: Any, anchored: bool) -> Run:
        if self.runs:
            last = self.runs[-1]
            if last.level == level and bool(last.anchors) == anchored:
                return last
        self.runs.append(Run(level, [], []))
        return self.runs[-1]


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
    pull: Any,
    variables: Sequence[keras.Variable],
    indices: Sequence[int],
    learning_rate: Any,
) -> list[tuple[int, keras.Variable]]:
    """Pull what a wrapped optimizer has moved; return what is left to do."""
    pairs = [
        (index, variable)
        for index, variable in zip(indices, variables, strict=True)
        if pull.pulls[index]
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
    level = None if pull is None else pull.levels[index]
    pulled = pull is not None and pull.pulls[index]
    anchor = pull.anchors[index] if pulled else None
    others = tuple(None if slot is None else slot._value for slot in state)
    target = None if anchor is None else anchor._value
    tensors = [weight, *others] + ([] if target is None else [target])
    for tensor in tensors:
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
    rate = 1.0 if level is None else level.rate
    return Slot(weight, others, target, level if pulled else None, rate)


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


# The pull of many weights at once, in place.


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
    ratios: dict[Any, float] = {}

    def move(runs: Sequence[Run]) -> None:
        for run in runs:
            ratio = ratios.get(run.level)
            if ratio is None:
                ratio = ratios[run.level] = pull.host_ratio(run.level, rate)
            if not ratio:
                continue
            if run.anchors:
                torch._foreach_lerp_(run.weights, _wide(run.anchors), ratio)
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
    ratios: dict[Any, torch.Tensor] = {}
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


def _device_ratio(pull: Any, level: Any, rate: torch.Tensor) -> torch.Tensor:
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


def _wide(anchors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return anchors in the weights' float32; a block's, no more."""
    if anchors[0].dtype == torch.float32:
        return anchors
    return [anchor.to(torch.float32) for anchor in anchors]
