"""A figure to draw on. matplotlib is optional, imported when one is drawn."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKS = ("o", "s", "^", "D", "v", "P")
COLOUR_MAP = "viridis"


def new_figure(
    width: float, height: float, **layout: Any
) -> tuple["Figure", dict[str, "Axes"]]:
    """Return an empty figure, in inches, and its axes; no window, no state.

    `layout` is that of `Figure.subplot_mosaic`; without one, the axes are "".
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "A picture needs matplotlib, which is not installed. Run `pip "
            "install keras-dualopt[plots]`; the numbers are there without it."
        ) from error
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    panels: dict[str, Axes] = figure.subplot_mosaic(
        **({"mosaic": [[""]]} | layout)
    )
    for axes in panels.values():
        axes.grid(alpha=0.3)
        # One line after the other; each says itself how large its marks are.
        axes.set_prop_cycle(color=COLOURS, marker=MARKS)
    return figure, panels


def finish(
    figure: "Figure", path: str | os.PathLike[str] | None, *named: "Axes"
) -> "Figure":
    """Name the lines of some axes; save the figure, if there is a path."""
    for axes in named:
        axes.legend(frameon=False, fontsize=8)
    if path is not None:
        figure.savefig(path)
    return figure
