"""What each optimizer of `digits.py` keeps and learns, as a picture."""

import numpy as np
from digits_data import NEW_STYLE, OLD_STYLES, PARTS, draw, load_parts
from matplotlib.figure import Figure

# Shades of Okabe and Ito's blue, darker for higher rates.
SHADES = ("#56B4E9", "#0072B2", "#003A5D")


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


def draw_picture(found, seeds, path):
    """Draw the styles, and beside them accuracy against length.

    Args:
        found: {optimizer: {(rate, steps): (kept, learned)}}, in percent.
        seeds: Over how many seeds the points are means.
        path: Where the PNG goes.
    """
    figure = Figure(figsize=(9, 4.8), layout="constrained", dpi=150)
    left, right = figure.subfigures(1, 2, width_ratios=[1, 3.4])
    draw_styles(left)
    for axes, (name, cells) in zip(
        right.subplots(1, len(found), sharey=True), found.items(), strict=True
    ):
        rates = sorted({rate for rate, _ in cells})
        for rate, shade in zip(rates, SHADES, strict=False):
            steps = sorted(at for own, at in cells if own == rate)
            kept, learned = zip(*(cells[rate, at] for at in steps), strict=True)
            axes.plot(
                steps,
                kept,
                "o-",
                color=shade,
                label=f"old, kept, rate {rate:g}",
            )
            axes.plot(steps, learned, "s:", color=shade, label="new, learned")
        axes.set_xscale("log")
        axes.set_title(name)
        axes.set_xlabel("training steps")
        axes.set_ylim(0, 100)
        axes.grid(alpha=0.3)
    # The last has room below its curves.
    axes.legend(loc="lower left", fontsize=8)
    right.axes[0].set_ylabel("accuracy, %")
    right.suptitle(
        f"Fine-tuned on {PARTS['finetune']} inverted digits "
        f"({f'mean of {seeds} seeds' if seeds > 1 else '1 seed'})"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
