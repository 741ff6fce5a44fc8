"""What each setting of `digits.py` learns and keeps, as a picture."""

import numpy as np
from digits_data import NEW_STYLE, OLD_STYLES, PARTS, draw, load_parts
from matplotlib.figure import Figure

# Okabe and Ito's colours; marker and line tell the curves apart as well. The
# values are written on a curve's own side, below or above.
LOOKS = {
    "Adam": {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    "DualOpt": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
}
SIDES = {"Adam": -1, "DualOpt": 1}


def draw_styles(figure):
    digits, labels = load_parts(seed=0)["pretrain"]
    shown = [digits[labels == label][0] for label in (2, 4, 7)]
    noise = np.random.default_rng(0)
    styles = (*OLD_STYLES, NEW_STYLE)
    for axes, style in zip(figure.subplots(4, 1), styles, strict=True):
        row = np.hstack([draw(digit, style, noise) for digit in shown])
        axes.imshow(row, cmap="gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"{'new' if style == NEW_STYLE else 'old'}: {style}")


def draw_curve(axes, name, knob, points):
    """Draw one optimizer's trade-off, each point with its knob's value."""
    values, kept, learned = zip(*points, strict=True)
    look, side = LOOKS[name], SIDES[name]
    axes.plot(kept, learned, label=f"{name}, by {knob}", markersize=7, **look)
    for value, x, y in zip(values, kept, learned, strict=True):
        axes.annotate(
            f"{value:g}",
            (x, y),
            xytext=(7 * side, 7 * side),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="bottom" if side > 0 else "top",
            color=look["color"],
        )


def draw_picture(curves, chosen, defaults, before, seeds, path):
    """Draw the styles, and beside them the trade-off.

    Args:
        curves: {(optimizer, knob): [(value, kept, learned), ...]}, in percent.
        chosen: The highlighted points (kept, learned), one an optimizer.
        defaults: The point of DualOpt as it comes.
        before: The accuracy on the old styles before fine-tuning, in percent.
        seeds: Over how many seeds the points are means.
        path: Where the PNG goes.
    """
    figure = Figure(figsize=(9, 4.8), layout="constrained", dpi=150)
    left, right = figure.subfigures(1, 2, width_ratios=[1, 3.4])
    draw_styles(left)
    axes = right.subplots()
    for (name, knob), points in curves.items():
        draw_curve(axes, name, knob, points)
    axes.plot(
        *defaults,
        color=LOOKS["DualOpt"]["color"],
        marker="D",
        linestyle="none",
        label="DualOpt as it comes",
    )
    if chosen:
        axes.scatter(
            *zip(*chosen, strict=True),
            s=230,
            facecolors="none",
            edgecolors="black",
            label="chosen on validation digits",
        )
    axes.axvline(
        before, color="gray", linestyle=":", label="before fine-tuning"
    )
    axes.set_title(
        f"Fine-tuned on {PARTS['finetune']} inverted digits "
        f"({f'mean of {seeds} seeds' if seeds > 1 else '1 seed'})"
    )
    axes.set_xlabel("accuracy kept on the old styles (%)")
    axes.set_ylabel("accuracy on the new style (%)")
    axes.margins(0.1)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
