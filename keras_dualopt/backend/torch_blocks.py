"""PyTorch: which weights are moved and pulled together, in which order.

A fused kernel reads and writes every number of an update once. The pull that
follows reads the weights again: from the cache, if the kernel did not move too
many others meanwhile. So small weights share a block, and large ones are cut.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

# Numbers in a block: 2 MiB each of θ, g, m, v and θ₀, together less than a
# last-level cache. With a quarter of it, an update was 10% slower on two cores
# (more kernels to start); without any cutting, 15%.
_CHUNK = 1 << 19

# The largest block on each kind of device that has the kernels. On a GPU one
# call takes all: launches cost more than the cache could save.
LIMITS = {"cpu": _CHUNK, "cuda": None}


class Slot(NamedTuple):
    """The tensors of one weight's update.

    Args:
        weight: θ.
        state: m, or m and v; nothing where only the pull is wanted.
        anchor: θ₀, or `None`, which is 0.
        strength: Its share of the pull; 0.0: not pulled.
    """

    weight: torch.Tensor
    state: tuple[torch.Tensor, ...]
    anchor: torch.Tensor | None
    strength: float


class Run(NamedTuple):
    """Neighbours that are pulled equally: to θ₀, or to 0 (no anchors)."""

    strength: float
    weights: list[torch.Tensor]
    anchors: list[torch.Tensor]


class Block:
    """What one call of a kernel takes, and the pulls that follow it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
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
        if slot.strength:
            run = self._run(slot.strength, slot.anchor is not None)
            run.weights.append(slot.weight)
            if slot.anchor is not None:
                run.anchors.append(slot.anchor)

    def _run(self, strength: float, anchored: bool) -> Run:
        if self.runs:
            last = self.runs[-1]
            if last.strength == strength and bool(last.anchors) == anchored:
                return last
        self.runs.append(Run(strength, [], []))
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
        growing: dict[torch.device, Block] = {}
        for position, slot in enumerate(slots):
            device, size = slot.weight.device, slot.weight.numel()
            limit = LIMITS[device.type]
            if limit is not None and size > limit:
                self._cut(position, slot, limit)
                continue
            block = growing.get(device)
            if block is None or (
                limit is not None and block.size + size > limit
            ):
                block = growing[device] = Block(device)
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
            block = Block(weight.device)
            part = Slot(
                weight,
                state[piece] if state else (),
                None if anchors is None else anchors[piece],
                slot.strength,
            )
            block.add(position, piece, part)
            self.blocks.append(block)


def cut(tensor: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
    """Return a contiguous tensor's pieces: views, in order."""
    pieces: tuple[torch.Tensor, ...] = tensor.detach().view(-1).split(size)
    return pieces


def _ceiling(count: int, size: int) -> int:
    return -(-count // size)
