"""How strongly each depth is pulled."""

import os
from typing import Any

import numpy as np

from keras_dualopt.anchored import unwrapped
from keras_dualopt.layers import layers_of
from keras_dualopt.penalty import decay_strength, rollback_strength
from keras_dualopt.plots.canvas import COLOURS, MARKS, finish, new_figure


def plot_strength(
    *optimizers: Any, path: str | os.PathLike[str] | None = None
) -> Any:
    """Draw how strongly each depth is pulled, before any training.

    Shows what `rollback`, `rollback_min` and `power` do (fine-tune mode), or
    `weight_decay`, `weight_decay_min` and `power` (scratch mode): ι₂ + (1 −
    r)^γ (ι₁ − ι₂), OLOR Eq. 8 and 9, or w₂ + r^γ (w₁ − w₂), over r. A built
    optimizer also shows its layers, each as a mark.

    Args:
        *optimizers: One `DualOpt`, or several to compare; all of one mode.
        path: Where to save the picture. Default: nowhere.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: For none, or for optimizers of different modes.
        TypeError: For anything that is not a DualOpt.
        ImportError: Without matplotlib.

    Example:
    >>> from keras_dualopt import DualOpt, plot_strength
    >>> mild, steep = (DualOpt(1e-3, power=power) for power in (1.0, 4.0))
    >>> plot_strength(mild, steep, path="strength.png")  # doctest: +SKIP
    """
    settings = [_arguments_of(optimizer) for optimizer in optimizers]
    modes = {arguments.mode for arguments in settings}
    if len(modes) != 1:
        raise ValueError(
            "Expected: one DualOpt, or several of one mode: the strengths of "
            f"the two modes have different units. Received: {len(settings)} "
            f"of modes {sorted(modes)}."
        )
    finetune = modes == {"finetune"}
    figure, axes = new_figure(6.4, 3.8)
    depths = np.linspace(0.0, 1.0, 201)
    formula = rollback_strength if finetune else decay_strength
    for number, (optimizer, arguments) in enumerate(
        zip(optimizers, settings, strict=True)
    ):
        colour = COLOURS[number % len(COLOURS)]
        high, low = arguments.levels
        axes.plot(
            depths,
            [formula(r, high, low, arguments.power) for r in depths],
            color=colour,
            label=_label(arguments, finetune),
        )
        mark = MARKS[number % len(MARKS)]
        axes.plot(*_strengths_of(optimizer), mark, color=colour, markersize=5)
    axes.set_xlabel("relative depth r (0: nearest the input, 1: deepest)")
    axes.set_ylabel(
        "share of the way back to θ₀ per step\nat the reference learning rate"
        if finetune
        else "weight decay (AdamW's units):\nshare of θ removed per step / η_t"
    )
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(bottom=0.0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return finish(figure, path)


def _arguments_of(optimizer: Any) -> Any:
    arguments = getattr(unwrapped(optimizer), "_arguments", None)
    if arguments is None:
        raise TypeError(
            "Expected: a DualOpt. Received: "
            f"{type(optimizer).__name__} {optimizer!r}."
        )
    return arguments


def _strengths_of(optimizer: Any) -> tuple[list[float], list[float]]:
    """Return depth and strength of each layer; none before `build`."""
    parts = unwrapped(optimizer)._parts
    depths, strengths = [], []
    for layer in [] if parts is None else layers_of(parts.plan):
        if layer.relative is not None:
            depths.append(layer.relative)
            strengths.append(
                max(parts.plan.strengths[i] for i in layer.indices)
            )
    return depths, strengths


def _label(arguments: Any, finetune: bool) -> str:
    high, low = arguments.levels
    signs = ("ι₁", "ι₂") if finetune else ("w₁", "w₂")
    return (
        f"{signs[0]} = {high:g}, {signs[1]} = {low:g}, γ = {arguments.power:g}"
    )
