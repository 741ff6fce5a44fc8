"""Pictures: one for each question, legible where colours are not told apart."""

from keras_dualopt.plots.curves import (
    draw_review,
    draw_trade_off,
    plot_strength,
)
from keras_dualopt.plots.heat_map import draw_drift

__all__ = ["draw_drift", "draw_review", "draw_trade_off", "plot_strength"]
