"""Curves: of strength over depth, and of what is kept and what is learned."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import keras
import numpy as np

from keras_dualopt.backend import Array
from keras_dualopt.optimizer import DualOpt
from keras_dualopt.plan import layers_of
from keras_dualopt.plots.canvas import COLOUR_MAP, COLOURS, finish, new_figure
from keras_dualopt.settings import Settings
from keras_dualopt.wrapping import unwrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_UNITS = {
    "rollback": "share of the way back to θ₀ per step\n"
    "at the reference learning rate",
    "reach": "R: how far a weight may go from θ₀",
    "reach, a share": "R: how far a weight may go from θ₀,\n"
    "as a share of its layer's size",
    "weight_decay": "weight decay (AdamW's units):\n"
    "share of θ removed per step / η_t",
}


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
    kinds = {_kind(optimizer.settings) for optimizer in found}
    if len(kinds) != 1:
        raise ValueError(
            "`plot_strength` takes one DualOpt, or several that are set in one "
            f"unit. Received: {len(found)}, set by {sorted(kinds)}."
        )
    figure, panels = new_figure(6.4, 3.8)
    axes = panels[""]
    depths = np.linspace(0.0, 1.0, 201)
    for optimizer in found:
        settings = optimizer.settings
        ends = [
            (name, getattr(settings, name)) for name in settings.level_names
        ]
        label = [
            f"{name} = {end if isinstance(end, str) else format(end, 'g')}"
            for name, end in ends
        ]
        if settings.shallow_rate != 1.0:
            label.append(f"shallow_rate = {settings.shallow_rate:g}")
        (curve,) = axes.plot(
            depths,
            [settings.amount(r) for r in depths],
            markevery=[],
            label=", ".join([*label, f"power = {settings.power:g}"]),
        )
        # With `reach` what is not pulled has no bound, and so no mark.
        marks = [
            (
                layer[0].relative,
                max(r.strength if r.pulled else 0.0 for r in layer),
            )
            for layer in (layers_of(optimizer.rows) if optimizer.built else ())
            if layer[0].relative is not None
            and (settings.reach is None or any(r.pulled for r in layer))
        ]
        axes.plot(
            [depth for depth, _ in marks],
            [strength for _, strength in marks],
            linestyle="none",
            color=curve.get_color(),
            marker=curve.get_marker(),
            markersize=5,
        )
    axes.set_xlabel("relative depth r (0: nearest the input, 1: deepest)")
    axes.set_ylabel(_UNITS[kinds.pop()])
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(bottom=0.0)
    return finish(figure, path, axes)


def _kind(settings: Settings) -> str:
    """Return which of `_UNITS` strengths are in."""
    name = settings.level_names[0]
    return f"{name}, a share" if isinstance(settings.reach, str) else name


def draw_trade_off(
    new: Sequence[float],
    kept: Sequence[float],
    before: float,
    best: int | None,
    labels: tuple[str, str],
    path: str | os.PathLike[str] | None = None,
) -> "Figure":
    """Draw one point an epoch: the new task across, the old one up.

    `new` and `kept` are the metrics after each epoch, called as `labels` says;
    `before` is the old task's before training, `best` the epoch to be ringed.
    """
    figure, panels = new_figure(6.4, 4.4)
    axes = panels[""]
    from matplotlib.ticker import MaxNLocator

    axes.axhline(before, color="0.4", ls="--", label="old task before training")
    axes.plot(new, kept, color="0.7", marker="", linewidth=1.0, zorder=1)
    points = axes.scatter(
        new,
        kept,
        c=range(1, len(new) + 1),
        cmap=COLOUR_MAP,
        s=42,
        edgecolors="0.3",
        linewidths=0.5,
        zorder=2,
    )
    for position in sorted({0, len(new) - 1}):
        # Inside of the axes, and beside of the line as far as may be.
        right = new[position] <= (min(new) + max(new)) / 2
        above = kept[position] > (min(kept) + max(kept)) / 2
        axes.annotate(
            f"epoch {position + 1}",
            (new[position], kept[position]),
            xytext=(6 if right else -6, 6 if above else -6),
            textcoords="offset points",
            ha="left" if right else "right",
            va="bottom" if above else "top",
            fontsize=8,
        )
    if best is not None:
        axes.plot(
            new[best],
            kept[best],
            "o",
            markersize=13,
            markerfacecolor="none",
            markeredgecolor=COLOURS[1],
            markeredgewidth=2.0,
            ls="none",
            label=f"best by the rule: epoch {best + 1}",
        )
    ticks = MaxNLocator(integer=True)
    figure.colorbar(points, ax=axes, label="epoch", pad=0.01, ticks=ticks)
    axes.set_xlabel(f"new task: {labels[0]}")
    axes.set_ylabel(f"old task: {labels[1]}")
    axes.margins(0.12)
    return finish(figure, path, axes)


def draw_review(
    alphas: Array,
    metrics: Mapping[str, Array],
    chosen: float | None,
    path: str | os.PathLike[str] | None,
) -> "Figure":
    """Draw metrics over α, by name; mark the α that was chosen."""
    figure, panels = new_figure(6.4, 4.0)
    axes = panels[""]
    every = max(1, len(alphas) // 10)
    for name, values in metrics.items():
        axes.plot(alphas, values, markersize=4, markevery=every, label=name)
    if chosen is not None:
        label = f"α = {chosen:.3g}"
        axes.axvline(chosen, color="0.4", ls="--", label=label)
    axes.set_xlabel("α (0: pretrained, 1: fine-tuned)")
    # Of several data sets: "old_accuracy" and "new_accuracy".
    kinds = {name.partition("_")[2] or name for name in metrics}
    if len(metrics) == 1:
        kinds = {*metrics}
    axes.set_ylabel(kinds.pop() if len(kinds) == 1 else "metric")
    return finish(figure, path, axes)
