"""The experiments: which runs each is made of."""

import dataclasses

from .grid import KEYS, VALUES, Run, run_grid
from .methods import METHODS
from .store import RESULTS, Store

TASKS = ("inverted", "mnist")
SEEDS = tuple(range(5))
# Settings are chosen on networks and divisions of their own.
SEARCH_SEEDS = (100, 101)
RATE, LENGTH = 1e-3, 1000
# What a setting may lose on the new task against the best, in points.
ALLOWED_LOSS = 8.0
RATES = (3e-4, 1e-3, 3e-3)
RIVALS = ("adam", "layerwise", "l2_sp", "rollback", "reach")
SEARCHED = "convolutional"
LENGTHS = {
    "convolutional": (100, 300, 1000, 3000),
    "dense": (100, 300, 1000, 3000),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What an experiment is asked for on the command line.

    Args:
        folder: Where its files are.
        methods: The methods to run; `None` for all that it has.
        seeds: The seeds to report.
        quick: Whether to make the shortest runs that show that it works.
    """

    folder: object = RESULTS
    methods: tuple | None = None
    seeds: tuple = SEEDS
    quick: bool = False

    def chosen(self, methods):
        """Return those of `methods` that are asked for."""
        return [m for m in methods if self.methods is None or m in self.methods]


def store_of(name, folder):
    return Store(name, KEYS, VALUES, folder)


def _run(name, options, runs, points, **facts):
    store = store_of(name, options.folder)
    split = name.rsplit("_", 1)
    pretraining = {}
    if options.quick:
        points, pretraining = (100, 200), {"pretraining": 200}
        pretraining["cache"] = options.folder
    store.describe(
        command=f"python -m benchmarks.forgetting {' '.join(split)}",
        **facts,
    )
    run_grid(store, runs, points, **pretraining)
    return store


def _every_setting(name, network, options, seeds):
    runs = [
        Run(network, task, method, setting, RATE, seed)
        for task in TASKS
        for seed in (seeds[:1] if options.quick else seeds)
        for method in options.chosen(METHODS)
        for setting in METHODS[method].settings[: 1 if options.quick else None]
    ]
    return _run(
        f"{name}_{network}", options, runs, (LENGTH,), seeds=list(seeds)
    )


def search(network, options):
    """Try every setting of every method, for `length` to choose from."""
    return _every_setting("search", network, options, SEARCH_SEEDS)


def trade_off(network, options):
    """Try every setting of every method on the seeds that are reported."""
    return _every_setting("trade_off", network, options, options.seeds)


def choices(network, folder=RESULTS):
    """Return {(task, method): the setting that keeps most}, by the search.

    Of those that lose at most `ALLOWED_LOSS` points on the new task against
    the best of all; where none does, the one that learns most. Validation
    examples of both problems decide.
    """
    store = store_of(f"search_{network}", folder)
    means = {}
    for row in store.rows:
        key = (row["task"], row["method"], float(row["setting"]))
        means.setdefault(key, []).append(row)
    means = {
        key: tuple(
            sum(row[name] for row in rows) / len(rows)
            for name in ("kept_validation", "new_validation")
        )
        for key, rows in means.items()
    }
    chosen = {}
    for task, method in {key[:2] for key in means}:
        best = max(new for key, (_, new) in means.items() if key[0] == task)
        own = {k[2]: v for k, v in means.items() if k[:2] == (task, method)}
        allowed = {s: v for s, v in own.items() if v[1] >= best - ALLOWED_LOSS}
        if allowed:
            chosen[task, method] = max(allowed, key=lambda s: allowed[s][0])
        else:
            chosen[task, method] = max(own, key=lambda s: own[s][1])
    return chosen


def length(network, options):
    """Measure along long runs, at three learning rates: the first picture.

    A network whose settings were not searched takes those of `SEARCHED`: so
    one sees whether they carry over.
    """
    searched = network
    if not (chosen := choices(network, options.folder)):
        searched, chosen = SEARCHED, choices(SEARCHED, options.folder)
    methods = [m for m in options.chosen(RIVALS) if (TASKS[0], m) in chosen]
    runs = [
        Run(network, task, name, chosen[task, name], rate, seed)
        for task in TASKS
        for seed in (options.seeds[:1] if options.quick else options.seeds)
        for name in methods
        for rate in (RATES[:1] if options.quick else RATES)
    ]
    return _run(
        f"length_{network}",
        options,
        runs,
        LENGTHS[network],
        seeds=list(options.seeds),
        settings_chosen_on=searched,
        settings={
            f"{task}, {name}": value
            for (task, name), value in sorted(chosen.items())
            if name in RIVALS
        },
    )
