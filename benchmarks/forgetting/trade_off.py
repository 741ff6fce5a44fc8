"""Kept against learned at one length: every method, all of its settings."""

import numpy as np

from .experiments import ALLOWED_LOSS, store_of
from .intervals import column, difference, in_words, interval
from .methods import METHODS

# What guessing gives, in percent: no method is worse.
CHANCE = 10.0


def hypervolume(points, reference=CHANCE):
    """Return the share of the square that points dominate, in percent.

    Args:
        points: Pairs of accuracies in percent.
        reference: The lower left corner of the square; the upper right one is
            at 100 %.
    """
    area, height = 0.0, reference
    # From the right: each point adds what is above those before it.
    for across, up in sorted(points, reverse=True):
        if up > height and across > reference:
            area += (across - reference) * (up - height)
            height = up
    return 100 * area / (100 - reference) ** 2


def reached(settings, seeds):
    """Return the hypervolume of all settings of a method, by seed."""
    return [
        hypervolume(
            [(rows[s]["kept"], rows[s]["new"]) for rows in settings.values()]
        )
        for s in seeds
    ]


def read(store, task):
    """Return {method: {setting: {seed: its row}}} of one task.

    Without methods that were stopped before the last seed of the others.
    """
    found = {}
    for row in store.rows:
        if row["task"] == task:
            settings = found.setdefault(row["method"], {})
            setting = settings.setdefault(float(row["setting"]), {})
            setting[row["seed"]] = row
    seeds = {
        name: set.intersection(*map(set, settings.values()))
        for name, settings in found.items()
    }
    most = max(map(len, seeds.values()), default=0)
    return {name: found[name] for name in found if len(seeds[name]) == most}


def mean(rows, name):
    return float(np.mean([row[name] for row in rows.values()]))


def choose(settings, best=None):
    """Return the setting that validation examples choose.

    Args:
        settings: {setting: {seed: row}} of one method.
        best: The best new accuracy of all methods: the setting that keeps most
            among those at most `ALLOWED_LOSS` points below it. `None`: the one
            that learns most, without a look at the old problem.
    """
    new = {s: mean(rows, "new_validation") for s, rows in settings.items()}
    most = max(new, key=new.get)
    if best is None:
        return most
    allowed = [s for s in new if new[s] >= best - ALLOWED_LOSS]
    return max(
        allowed,
        key=lambda s: mean(settings[s], "kept_validation"),
        default=most,
    )


def best_new(found):
    """Return the best accuracy that any method has on new validation data."""
    return max(
        mean(rows, "new_validation")
        for settings in found.values()
        for rows in settings.values()
    )


def table(name, task, folder, against="reach"):
    """Return the lines of a table, one row for each method."""
    found = read(store_of(name, folder), task)
    if not found:
        return []
    best = best_new(found)
    lines = [
        "| method | setting | kept | new | kept − reach's | new − reach's | "
        "hypervolume | − reach's | kept / new where new data alone choose |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    theirs = found.get(against)
    for name, method in METHODS.items():
        if name not in found:
            continue
        settings = found[name]
        setting = choose(settings, best)
        own, blind = settings[setting], settings[choose(settings)]
        volumes = reached(settings, own)
        differences = [""] * 3
        if theirs and name != against:
            ours = theirs[choose(theirs, best)]
            differences = [
                difference(column(own, key), column(ours, key))
                for key in ("kept", "new")
            ]
            differences.append(difference(volumes, reached(theirs, own)))
        mark = " (uses old data)" if method.uses_old_data else ""
        knob = f"{method.knob} {setting:g}" if method.knob else ""
        lines.append(
            f"| {method.label}{mark} | {knob} | {mean(own, 'kept'):.1f} | "
            f"{mean(own, 'new'):.1f} | {differences[0]} | {differences[1]} | "
            f"{in_words(volumes)} | {differences[2]} | "
            f"{mean(blind, 'kept'):.1f} / {mean(blind, 'new'):.1f} |"
        )
    return [*lines, "", f"{len(own)} seeds, {len(settings)} settings."]


# What the picture shows, from left to right, and where.
BESIDE = (
    "adam_rates",
    "layerwise",
    "l2_sp",
    "wise_ft",
    "without_forgetting",
    "uniform",
    "replay",
)
PLACES = {
    "inverted": "clothes, inverted and turned",
    "mnist": "digits under a new output layer",
    "long_tailed": "digits, 50:1",
    "fine_grained": "confused clothes",
    "class_incremental": "new classes, same output layer",
    "digits_mnist": "digits of another origin: MNIST",
    "digits_uci": "… UCI",
    "digits_printed": "… printed",
    "tweets": "MiniLM: tweets",
    "stamps": "EfficientNet: photographs",
    "scenes_maps": "SegFormer: segmentation",
    "scenes_boxes": "RetinaNet: detection",
    "scenes_masks": "SAM: instance masks",
}


def picture(experiments, folder, path):
    """Draw the hypervolume of each method beside that of `reach`.

    Args:
        experiments: {name: its tasks}.
        folder: Where the results are.
        path: Of the picture.
    """
    from matplotlib.figure import Figure

    names, cells = [], []
    for experiment, tasks in experiments.items():
        for task in tasks:
            found = read(store_of(experiment, folder), task)
            if "reach" not in found:
                continue
            network = experiment.split("_")[-1]
            names.append(
                f"ViT: {PLACES[task]}" if network == "vit" else PLACES[task]
            )
            seeds = next(iter(found["reach"].values()))
            ours = reached(found["reach"], seeds)
            cells.append(
                [
                    interval(np.subtract(reached(found[m], seeds), ours))
                    if m in found
                    else (np.nan, np.nan)
                    for m in BESIDE
                ]
            )
    if not cells:
        return False
    values, halves = np.moveaxis(np.array(cells), -1, 0)
    # White where the interval has 0 in it.
    shown = np.where(np.abs(values) > halves, values, 0.0)
    figure = Figure((9.2, 0.36 * len(names) + 1.6))
    axis = figure.subplots()
    axis.imshow(
        np.where(np.isnan(values), np.nan, shown),
        cmap="RdBu",
        vmin=-25,
        vmax=25,
        aspect="auto",
    )
    for (line, across), value in np.ndenumerate(values):
        if not np.isnan(value):
            axis.text(
                across,
                line,
                f"{value:+.1f} ± {halves[line, across]:.1f}",
                ha="center",
                va="center",
                fontsize=7.5,
                color="white" if abs(shown[line, across]) > 15 else "black",
            )
    axis.set_yticks(range(len(names)), names, fontsize=8)
    labels = [METHODS[m].label.replace(" ", "\n", 1) for m in BESIDE]
    labels[-1] += "\n(old data)"
    axis.set_xticks(range(len(BESIDE)), labels, fontsize=8)
    axis.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    return True


# What goes together with `reach`, beside what it goes with and the best rival.
PAIRS = (
    ("reach_rates", "layerwise"),
    ("reach_rates", "l2_sp"),
    ("reach_replay", "replay"),
)


def pairs(name, tasks, folder):
    """Return the lines of a table: two methods at their chosen settings."""
    lines = [
        "| task | method | against | kept | new | hypervolume |",
        "|---|---|---|---|---|---|",
    ]
    for task in tasks:
        found = read(store_of(name, folder), task)
        for pair in PAIRS:
            if not set(pair) <= set(found):
                continue
            settings = [found[method] for method in pair]
            one, two = (own[choose(own, best_new(found))] for own in settings)
            cells = [METHODS[method].label for method in pair] + [
                difference(column(one, key), column(two, key))
                for key in ("kept", "new")
            ]
            cells.append(difference(*(reached(own, one) for own in settings)))
            lines.append(f"| {task} | {' | '.join(cells)} |")
    return lines if len(lines) > 2 else []


def kept_at(settings, new):
    """Return what a method keeps where it learns `new`, between settings."""
    points = sorted(
        (mean(rows, "new"), mean(rows, "kept")) for rows in settings.values()
    )
    learned, kept = zip(*points)
    inside = learned[0] <= new <= learned[-1]
    return float(np.interp(new, learned, kept)) if inside else -np.inf


def carry_over(networks, tasks, methods, folder):
    """Return the lines of a table: a network's best setting on another.

    The regret is what is kept less than the best of `methods` keeps on that
    network where it learns as much.
    """
    lines = [
        "| task | to | method | carried | its own | kept | new | kept − own | "
        "new − own | regret |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for task in tasks:
        found = {
            n: read(store_of(f"trade_off_{n}", folder), task) for n in networks
        }
        if not all(set(methods) <= set(f) for f in found.values()):
            continue
        for source, target in (networks, networks[::-1]):
            there = found[target]
            for name in methods:
                carried = choose(found[source][name], best_new(found[source]))
                own = choose(there[name], best_new(there))
                moved, best = there[name][carried], there[name][own]
                kept, new = mean(moved, "kept"), mean(moved, "new")
                regret = max(kept_at(there[m], new) for m in methods) - kept
                differences = [
                    difference(column(moved, key), column(best, key))
                    for key in ("kept", "new")
                ]
                lines.append(
                    f"| {task} | {target} | {METHODS[name].label} | "
                    f"{carried:g} | {own:g} | {kept:.1f} | {new:.1f} | "
                    f"{' | '.join(differences)} | {max(regret, 0.0):.1f} |"
                )
    return lines if len(lines) > 2 else []


def grid(network, task, folder):
    """Return the lines of a table: the paper's ι₁ against its γ."""
    found = read(store_of(f"trade_off_{network}", folder), task)
    names = {1: "paper_power_1", 2: "paper", 4: "paper_power_4"}
    if not set(names.values()) <= set(found):
        return []
    values = METHODS["paper"].settings
    lines = [
        "| γ | " + " | ".join(f"ι₁ {value:g}" for value in values) + " |",
        "|---" * (1 + len(values)) + "|",
    ]
    for power, name in names.items():
        cells = [found[name][value] for value in values]
        lines.append(
            f"| {power} | "
            + " | ".join(
                f"{mean(c, 'kept'):.0f} / {mean(c, 'new'):.0f}" for c in cells
            )
            + " |"
        )
    return lines
