"""What is kept against what is learned: over epochs, and on the way back."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from keras_dualopt.backend import Array
from keras_dualopt.plots.canvas import (
    COLOUR_MAP,
    COLOURS,
    MARKS,
    finish,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    figure, axes = new_figure(6.4, 4.4)
    from matplotlib.ticker import MaxNLocator

    axes.axhline(
        before, color="0.4", linestyle="--", label="old task before training"
    )
    axes.plot(new, kept, color="0.7", linewidth=1.0, zorder=1)
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
            linestyle="none",
            label=f"best by the rule: epoch {best + 1}",
        )
    figure.colorbar(
        points,
        ax=axes,
        label="epoch",
        pad=0.01,
        ticks=MaxNLocator(integer=True),
    )
    axes.set_xlabel(f"new task: {labels[0]}")
    axes.set_ylabel(f"old task: {labels[1]}")
    axes.grid(alpha=0.3)
    axes.margins(0.12)
    axes.legend(frameon=False, fontsize=8)
    return finish(figure, path)


def draw_review(
    alphas: Array,
    metrics: Mapping[str, Array],
    chosen: float | None,
    path: str | os.PathLike[str] | None,
) -> "Figure":
    """Draw metrics over α, by name; mark the α that was chosen."""
    figure, axes = new_figure(6.4, 4.0)
    for number, (name, values) in enumerate(metrics.items()):
        axes.plot(
            alphas,
            values,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKS[number % len(MARKS)],
            markersize=4,
            markevery=max(1, len(alphas) // 10),
            label=name,
        )
    if chosen is not None:
        axes.axvline(
            chosen, color="0.4", linestyle="--", label=f"α = {chosen:.3g}"
        )
    axes.set_xlabel("α (0: pretrained, 1: fine-tuned)")
    kinds = {name.partition("_")[2] or name for name in metrics}
    axes.set_ylabel(kinds.pop() if len(kinds) == 1 else "metric")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return finish(figure, path)
