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


def difference(values, others):
    """Return the paired difference in words, bold if its interval is not at 0.

    Args:
        values: Numbers by seed, or in the order of the seeds.
        others: What they are compared with, of the same seeds.
    """
    if isinstance(values, dict):
        seeds = sorted(values.keys() & others.keys())
        values, others = ([by[s] for s in seeds] for by in (values, others))
    mean, half = interval(np.subtract(values, others))
    if math.isnan(half):
        return f"{mean:+.1f}"
    words = f"{mean:+.1f} ± {half:.1f}"
    return f"**{words}**" if abs(mean) > half else words


def column(rows, name):
    """Return {seed: what was measured} of {seed: row}."""
    return {seed: row[name] for seed, row in rows.items()}
