"""How strongly each depth is pulled."""

import os
from typing import TYPE_CHECKING

import keras
import numpy as np

from keras_dualopt.optimizer import DualOpt
from keras_dualopt.plan import layers_of
from keras_dualopt.plots.canvas import COLOURS, MARKS, finish, new_figure
from keras_dualopt.settings import Settings
from keras_dualopt.wrapping import unwrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_strength(
    *optimizers: keras.optimizers.Optimizer,
    path: str | os.PathLike[str] | None = None,
) -> "Figure":
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
    found: list[DualOpt] = []
    for optimizer in map(unwrapped, optimizers):
        if not isinstance(optimizer, DualOpt):
            raise TypeError(
                "`plot_strength` takes DualOpts. Received: "
                f"{type(optimizer).__name__} {optimizer!r}."
            )
        found.append(optimizer)
    kinds = {optimizer.settings.level_names[0] for optimizer in found}
    if len(kinds) != 1:
        raise ValueError(
            "`plot_strength` takes one DualOpt, or several that are set in one "
            f"unit. Received: {len(found)}, set by {sorted(kinds)}."
        )
    (kind,) = kinds
    figure, axes = new_figure(6.4, 3.8)
    depths = np.linspace(0.0, 1.0, 201)
    for number, optimizer in enumerate(found):
        colour = COLOURS[number % len(COLOURS)]
        settings = optimizer.settings
        axes.plot(
            depths,
            [settings.amount(r) for r in depths],
            color=colour,
            label=_label(settings),
        )
        mark = MARKS[number % len(MARKS)]
        axes.plot(*_layers_of(optimizer), mark, color=colour, markersize=5)
    axes.set_xlabel("relative depth r (0: nearest the input, 1: deepest)")
    axes.set_ylabel(_UNITS[kind])
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(bottom=0.0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return finish(figure, path)


_UNITS = {
    "rollback": "share of the way back to θ₀ per step\n"
    "at the reference learning rate",
    "reach": "R: how far a weight may go from θ₀",
    "weight_decay": "weight decay (AdamW's units):\n"
    "share of θ removed per step / η_t",
}


def _layers_of(optimizer: DualOpt) -> tuple[list[float], list[float]]:
    """Return depth and strength of each layer; none before `build`."""
    depths, strengths = [], []
    for layer in layers_of(optimizer.rows) if optimizer.built else []:
        pulled = [row.strength for row in layer if row.pulled]
        if layer[0].relative is not None:
            depths.append(layer[0].relative)
            strengths.append(max(pulled, default=0.0))
    return depths, strengths


def _label(settings: Settings) -> str:
    parts = [f"{n} = {getattr(settings, n)}" for n in settings.level_names]
    if settings.shallow_rate != 1.0:
        parts.append(f"shallow_rate = {settings.shallow_rate:g}")
    return ", ".join([*parts, f"power = {settings.power:g}"])
