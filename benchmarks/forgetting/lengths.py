"""Accuracy kept and learned against the length of training and its rate."""

from collections import defaultdict

import numpy as np

from .experiments import LENGTHS, store_of
from .intervals import difference, in_words
from .methods import METHODS

# Over a tenfold range of rates and a thirtyfold range of lengths.
LONGEST = 3000
TITLES = {
    "inverted": "Clothes, then the same\ninverted and turned",
    "mnist": "Clothes, then digits\nunder a new output layer",
    "stamps": "ImageNet's names,\nthen kinds of things",
}


def compared(rows):
    """Return the rows of the seeds that every method of a task has; how many.

    An experiment that was stopped has some methods for its last seed only.
    """
    runs = defaultdict(set)
    for row in rows:
        place = (row["task"], row["method"], row["rate"], row["steps"])
        runs[place].add(row["seed"])
    seeds = {
        task: set.intersection(*(s for p, s in runs.items() if p[0] == task))
        for task in {place[0] for place in runs}
    }
    kept = [row for row in rows if row["seed"] in seeds[row["task"]]]
    said = [f"{task}: {len(own)} seeds" for task, own in sorted(seeds.items())]
    return kept, ", ".join(said)


def curves(rows, measure):
    """Return {(task, method): {(rate, steps): {seed: measured}}}."""
    result = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        place = (float(row["rate"]), int(row["steps"]))
        cell = result[row["task"], row["method"]][place]
        cell[row["seed"]] = row[measure]
    return result


def spread(cells, seed):
    """Return how far one seed's values range over all rates and lengths."""
    values = [
        cell[seed] for (_, steps), cell in cells.items() if steps <= LONGEST
    ]
    return max(values) - min(values)


def table(network, folder):
    """Return the lines of a table: how much depends on rate and length."""
    asked = LENGTHS[network]
    rows, of = compared(store_of(f"length_{network}", folder).rows)
    if not rows:
        return []
    kept, new = curves(rows, "kept"), curves(rows, "new")
    lines = [
        "| task | method | setting | kept, lowest to highest | range | "
        "range − reach's | − that of reach, shallow_rate=0.1 | "
        "kept, change from step "
        f"{asked.since:,} to the end | new, lowest to highest | "
        "new at the end, below the best |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    settings = {(r["task"], r["method"]): float(r["setting"]) for r in rows}
    for task in asked.tasks:
        methods = [m for m in asked.methods + asked.others if (task, m) in kept]
        ranges, ends = {}, {}
        for m in methods:
            cells = kept[task, m]
            seeds = sorted(next(iter(cells.values())))
            ranges[m] = [spread(cells, seed) for seed in seeds]
            end = max(steps for _, steps in cells)
            # What is learned is compared where it had time to be.
            ends[m] = [
                np.mean(list(cell.values()))
                for (_, steps), cell in new[task, m].items()
                if steps == end
            ]
        best = max(map(max, ends.values()), default=0)
        for m in methods:
            wider = [
                difference(ranges[m], ranges[ours])
                if ours in ranges and ours != m
                else ""
                for ours in ("reach", "reach_rates")
            ]
            gaps = best - np.array(ends[m])
            knob = METHODS[m].knob and f"{settings[task, m]:g}"
            lines.append(
                f"| {task} | {METHODS[m].label} | {knob} | "
                f"{_range(kept[task, m])} | {in_words(ranges[m])} | "
                f"{' | '.join(wider)} | "
                f"{_change(kept[task, m], asked.since)} | "
                f"{_range(new[task, m])} | "
                f"{gaps.min():.1f} to {gaps.max():.1f} |"
            )
    return [*lines, "", f"{of}."]


def _change(cells, begin):
    """Return how the accuracy goes on, at the worst and at the best rate."""
    end = max(steps for _, steps in cells)
    changes = [
        np.mean(list(cells[rate, end].values()))
        - np.mean(list(cells[rate, begin].values()))
        for rate in {rate for rate, _ in cells}
        if {(rate, begin), (rate, end)} <= set(cells)
    ]
    if not changes:
        return ""
    return f"{min(changes):+.1f} to {max(changes):+.1f}"


def _range(cells):
    means = [
        np.mean(list(cell.values()))
        for (_, steps), cell in cells.items()
        if steps <= LONGEST
    ]
    return f"{min(means):.0f} to {max(means):.0f}"


def _band(values):
    values = list(values)
    return np.mean(values), min(values), max(values)


def picture(network, folder, path):
    """Draw accuracy kept against training length, a column for each method.

    Means over the seeds; the bands go from the lowest to the highest seed.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    asked = LENGTHS[network]
    rows, _ = compared(store_of(f"length_{network}", folder).rows)
    if not rows:
        return False
    kept, new = curves(rows, "kept"), curves(rows, "new")
    tasks = [t for t in asked.tasks if any(key[0] == t for key in kept)]
    methods = [m for m in asked.methods if any(key[1] == m for key in kept)]
    rates = sorted({rate for cells in kept.values() for rate, _ in cells})
    shades = colormaps["viridis"](np.linspace(0.15, 0.8, len(rates)))
    figure = Figure((2.1 * len(methods) + 0.8, 2.4 * len(tasks) + 0.8))
    axes = figure.subplots(
        len(tasks), len(methods), sharex=True, sharey=True, squeeze=False
    )
    for row, task in zip(axes, tasks):
        for axis, method in zip(row, methods):
            for rate, shade in zip(rates, shades):
                for data, style in ((kept, "o-"), (new, ":")):
                    points = sorted(
                        (steps, *_band(cell.values()))
                        for (at, steps), cell in data[task, method].items()
                        if at == rate
                    )
                    if not points:
                        continue
                    steps, means, low, high = zip(*points)
                    axis.plot(steps, means, style, color=shade, markersize=3.5)
                    if data is kept:
                        axis.fill_between(
                            steps, low, high, color=shade, alpha=0.15, lw=0
                        )
            axis.set_xscale("log")
            axis.minorticks_off()
            axis.set_xticks(asked.steps, map("{:,}".format, asked.steps))
            axis.tick_params(axis="x", labelsize=7)
            axis.grid(alpha=0.25)
            for side in ("top", "right"):
                axis.spines[side].set_visible(False)
        row[0].set_ylabel(f"{TITLES[task]}\naccuracy, %", fontsize=8)
    for axis, method in zip(axes[0], methods):
        axis.set_title(METHODS[method].label, fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("training steps", fontsize=9)
    legend = [
        Line2D([], [], color=shade, label=f"learning rate {rate:g}")
        for rate, shade in zip(rates, shades)
    ] + [
        Line2D([], [], color="0.3", marker="o", ms=3.5, label="old, kept"),
        Line2D([], [], color="0.3", linestyle=":", label="new, learned"),
    ]
    figure.legend(
        handles=legend,
        loc="lower center",
        ncols=len(legend),
        frameon=False,
        fontsize=8,
    )
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=150)
    return True
