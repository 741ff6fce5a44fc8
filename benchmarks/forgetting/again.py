"""Two experiments in part, once more: does another backend say the same?

    KERAS_BACKEND=tensorflow python -m benchmarks.forgetting again dense

The settings and the rate of `length` that its choice was made at, up to 1,000
steps; one decay of `scratch`. The results have the backend in their names.
"""

import keras
import numpy as np

from . import scratch
from .experiments import RATE, RATES, RIVALS, TASKS, choices, run, store_of
from .grid import Run
from .intervals import in_words, interval
from .methods import METHODS
from .store import RESULTS

POINTS = (100, 300, 1000)
# Where the ways differ most.
DECAYS = (10.0,)


def again(network, options):
    """Measure once more; the backend is that of this process."""
    backend = keras.backend.backend()
    chosen = choices(network, options.folder)
    # What `length` has in its shortest form, too.
    rate = RATES[0] if options.quick else RATE
    runs = [
        Run(network, task, name, chosen[task, name], rate, seed)
        for task in TASKS
        for seed in (options.seeds[:1] if options.quick else options.seeds)
        for name in options.chosen(RIVALS)
    ]
    run(
        "again",
        network,
        options,
        runs,
        POINTS,
        file=f"again_{network}_{backend}",
        seeds=list(options.seeds),
    )
    scratch.measure(
        scratch.store_of(options.folder, f"again_scratch_{backend}"),
        network,
        options,
        DECAYS,
        command=f"python -m benchmarks.forgetting again {network}",
    )


def _pairs(first, second, place):
    """Yield each place with its values by seed in both lists of rows."""
    found = ({}, {})
    for cells, rows in zip(found, (first, second)):
        for row in rows:
            cells.setdefault(place(row), {})[row["seed"]] = row
    for key, cells in found[1].items():
        if seeds := sorted(set(cells) & set(found[0].get(key, {}))):
            before = found[0][key]
            yield key, [before[s] for s in seeds], [cells[s] for s in seeds]


def _columns(before, after, measure):
    """Return three columns, and whether the difference may be none."""
    old, new = ([row[measure] for row in rows] for rows in (before, after))
    difference = np.subtract(new, old)
    mean, half = interval(difference)
    text = " | ".join(map(in_words, (old, new, difference)))
    return text, bool(abs(mean) <= half or np.array_equal(old, new))


def table(network, folder=RESULTS):
    """Return the lines of a table for each backend beside the first one's."""
    made = []
    for backend in ("jax", "tensorflow", "torch"):
        lines, agreed = [], []
        rows = store_of(f"again_{network}_{backend}", folder).rows
        last = max((row["steps"] for row in rows), default=0)
        pairs = _pairs(
            store_of(f"length_{network}", folder).rows,
            rows,
            lambda row: tuple(
                row[key]
                for key in ("task", "method", "setting", "rate", "steps")
            ),
        )
        for (task, name, _, _, steps), before, after in pairs:
            for measure in ("kept", "new"):
                text, same = _columns(before, after, measure)
                agreed.append(same)
                if steps == last:
                    label = METHODS[name].label
                    lines.append(f"| {task}, {label}: {measure} | {text} |")
        pairs = _pairs(
            scratch.store_of(folder).rows,
            scratch.store_of(folder, f"again_scratch_{backend}").rows,
            lambda row: tuple(row[key] for key in ("data", "method", "decay")),
        )
        for (data, method, decay), before, after in pairs:
            text, same = _columns(before, after, "test")
            agreed.append(same)
            lines.append(
                f"| {data} from scratch, {method}, decay {float(decay):g} | "
                f"{text} |"
            )
        if lines:
            made += [
                f"| | as above | on {backend} | difference |",
                "|---|---|---|---|",
                *lines,
                "",
                f"{sum(agreed)} of {len(agreed)} paired differences, those "
                f"before {last:.0f} steps included, have 0 in their 95 % "
                "intervals.",
                "",
            ]
    return made
