"""Means over seeds, and how sure they are."""

import math

import numpy as np


def interval(values):
    """Return the mean of values and half its 95 % interval (Student's t).

    Not a number where there are fewer than three values.
    """
    from scipy import stats

    values = np.asarray(values, float)
    if len(values) < 3:
        return float(values.mean()), math.nan
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return float(values.mean()), float(half)


def in_words(values):
    mean, half = interval(values)
    return f"{mean:.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}")
