"""A figure to draw on. matplotlib is optional, imported when one is drawn."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKS = ("o", "s", "^", "D", "v", "P")
COLOUR_MAP = "viridis"


def new_figure(
    width: float, height: float, **layout: Any
) -> tuple["Figure", Any]:
    """Return an empty figure, in inches, and its axes; no window, no state.

    `layout` is that of `Figure.subplots`, or of `subplot_mosaic`.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "A picture needs matplotlib, which is not installed. Run `pip "
            "install keras-dualopt[plots]`; the numbers are there without it."
        ) from error
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    if "mosaic" in layout:
        return figure, figure.subplot_mosaic(**layout)
    return figure, figure.subplots(**layout)


def finish(figure: "Figure", path: str | os.PathLike[str] | None) -> "Figure":
    """Save a figure, if there is a path, and return it."""
    if path is not None:
        figure.savefig(path)
    return figure


def as_percent(axis: "Axis") -> None:
    """Label an axis of shares in per cent."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0))
