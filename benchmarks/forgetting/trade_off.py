"""Kept against learned at one length: every method, all of its settings."""

import numpy as np

from .experiments import ALLOWED_LOSS, store_of
from .intervals import in_words
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
        "kept, chosen on new data alone | new | hypervolume | − reach's |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    ours = theirs = found.get(against)
    ours = ours and ours[choose(ours, best)]
    for name, method in METHODS.items():
        if name not in found:
            continue
        settings = found[name]
        setting = choose(settings, best)
        own, blind = settings[setting], settings[choose(settings)]
        differences = ["", ""]
        if ours and name != against:
            differences = [
                in_words([own[s][key] - ours[s][key] for s in own])
                for key in ("kept", "new")
            ]
        volumes = reached(settings, own)
        more = ""
        if ours and name != against:
            more = in_words(np.subtract(volumes, reached(theirs, own)))
        mark = " (uses old data)" if method.uses_old_data else ""
        knob = f"{method.knob} {setting:g}" if method.knob else ""
        lines.append(
            f"| {method.label}{mark} | {knob} | {mean(own, 'kept'):.1f} | "
            f"{mean(own, 'new'):.1f} | {differences[0]} | {differences[1]} | "
            f"{mean(blind, 'kept'):.1f} | {mean(blind, 'new'):.1f} | "
            f"{in_words(volumes)} | {more} |"
        )
    return lines


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
            differences = [
                np.subtract(
                    *([rows[s][key] for s in one] for rows in (one, two))
                )
                for key in ("kept", "new")
            ]
            volumes = np.subtract(*(reached(own, one) for own in settings))
            labels = (METHODS[method].label for method in pair)
            lines.append(
                f"| {task} | {' | '.join(labels)} | "
                f"{' | '.join(map(in_words, [*differences, volumes]))} |"
            )
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
                    in_words([moved[s][key] - best[s][key] for s in moved])
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
