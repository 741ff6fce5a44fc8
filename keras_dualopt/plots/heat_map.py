"""Depth over time, as a heat map, with the totals beside it."""

import os
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from keras_dualopt.plots.canvas import COLOUR_MAP, finish, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure

# Of higher up: `callbacks.DriftRecord`.
Record: TypeAlias = Any

_ROW, _PANEL = 0.17, 1.9  # Heights in inches.

_QUANTITIES = {
    "drift": "drift ‖θ − θ₀‖ / ‖θ₀‖",
    "strength": "strength ρ: share of the way back per step",
    "pull_share": "share of the step that the pull took",
    "update_ratio": "update ‖θₜ − θₜ₋₁‖ / ‖θₜ₋₁‖",
    "reach_used": "reach used: largest |θ − θ₀| / R",
}


def draw_drift(
    record: Record, quantity: str, path: str | os.PathLike[str] | None
) -> "Figure":
    """Draw a heat map of a quantity over time, with the totals beside it."""
    panels = ["drift", "pull_share", "update_ratio"]
    if np.isfinite(record.totals["reach_used"]).any():
        panels.append("reach_used")
    labels = _labels(record)
    beside = _PANEL * len(panels)
    height = max(beside, 1.2 + _ROW * len(labels))
    mosaic, heights = [["map", p] for p in panels], [_PANEL] * len(panels)
    if height > beside + _PANEL / 2:
        # The map goes on below the panels, which would be stretched.
        mosaic, heights = [*mosaic, ["map", "."]], [*heights, height - beside]
    figure, axes = new_figure(
        9.0 + 0.07 * max(map(len, labels)),
        height,
        mosaic=mosaic,
        width_ratios=[2.0, 1.0],
        height_ratios=heights,
    )
    from matplotlib.ticker import PercentFormatter

    bar = _draw_map(figure, axes["map"], record, quantity, labels)
    scales = [(quantity, bar.ax)]
    for panel in panels:
        _draw_total(axes[panel], record, panel)
        axes[panel].set_xlim(axes["map"].get_xlim())
        scales.append((panel, axes[panel]))
    for name, scale in scales:
        title = _QUANTITIES[name]
        if name == "drift" and record.mode == "scratch":
            title = "norm ‖θ‖"
        else:
            scale.yaxis.set_major_formatter(PercentFormatter(1.0))
        if scale is bar.ax:
            bar.set_label(title)
        else:
            scale.set_title(title, fontsize=9)
    axes[panels[-1]].set_xlabel("step (updates so far)")
    return finish(figure, path)


def _labels(record: Record) -> list[str]:
    """Return each row's layer, less the folders that all share, and depth."""
    parts = [name.split("/") for name in record.layers]
    while min(map(len, parts)) > 1 and len({p[0] for p in parts}) == 1:
        parts = [part[1:] for part in parts]
    return [
        f"{'/'.join(part)}  {depth:.2f}"
        for part, depth in zip(parts, record.relative)
    ]


def _draw_total(axes: "Axes", record: Record, key: str) -> None:
    labels = {key: "all"}
    if key == "drift":
        labels |= {"drift_shallow": "r < 0.5", "drift_deep": "r ≥ 0.5"}
    every = max(1, len(record) // 12)
    for name, label in labels.items():
        axes.plot(
            record.steps,
            record.totals[name],
            markersize=3,
            markevery=every,
            label=label,
        )
    axes.set_ylim(bottom=0.0)
    if len(labels) > 1:
        # Room for the legend above the lines.
        axes.set_ylim(top=1.4 * axes.get_ylim()[1])
        axes.legend(
            frameon=False,
            fontsize=8,
            ncols=3,
            loc="upper center",
            handlelength=1.2,
            columnspacing=0.8,
            handletextpad=0.4,
        )


def _draw_map(
    figure: "Figure",
    axes: "Axes",
    record: Record,
    quantity: str,
    labels: list[str],
) -> "Colorbar":
    """Draw the map and return its colour bar."""
    matrix = np.ma.masked_invalid(record.matrix(quantity))
    # A layer that starts near 0, as a position embedding may, drifts by far
    # more than the others, which would all have one colour.
    values = matrix.compressed() if matrix.count() else np.ones(1)
    highest, most = float(values.max()), float(np.percentile(values, 97.0))
    beyond = highest > 2.0 * most > 0.0
    rows, steps = np.arange(len(labels)), record.steps
    # Columns end halfway between the samples.
    half = np.diff(steps) / 2.0 if len(steps) > 1 else np.array([0.5])
    ends = steps + np.append(half, half[-1])[: len(steps)]
    image = axes.pcolormesh(
        np.append(steps[0] - half[0], ends),
        np.append(rows, len(rows)) - 0.5,
        matrix,
        cmap=COLOUR_MAP,
        vmin=0.0,
        vmax=most if beyond else highest or 1.0,
    )
    axes.grid(False)
    axes.set_facecolor("0.85")  # Shows through where nothing is defined.
    axes.invert_yaxis()
    axes.set_xlabel("step (updates so far)")
    axes.set_yticks(rows, labels, fontsize=7)
    axes.set_ylabel("layer and its relative depth, nearest the input on top")
    extend = "max" if beyond else "neither"
    return figure.colorbar(image, ax=axes, pad=0.01, extend=extend)
