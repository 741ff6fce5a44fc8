"""The experiments: which runs each is made of."""

import dataclasses

from .grid import KEYS, VALUES, Run, run_grid
from .methods import METHODS
from .store import RESULTS, Store

TASKS = ("inverted", "mnist")
SEEDS = tuple(range(10))
# Fewer where a step takes ten times as long and more.
HEAVY = {
    "convolutional": SEEDS[:5],
    "minilm": SEEDS[:5],
    "efficientnet_lite0": SEEDS[:3],
    "vit": SEEDS[:5],
    "segformer": SEEDS[:5],
    "retinanet": SEEDS[:3],
    "sam": SEEDS[:3],
}
# Settings are chosen on networks and divisions of their own.
SEARCH_SEEDS = (100, 101)
RATE, LENGTH = 1e-3, 1000
# What a setting may lose on the new task against the best, in points.
ALLOWED_LOSS = 8.0
RATES = (3e-4, 1e-3, 3e-3)
RIVALS = ("adam", "layerwise", "l2_sp", "rollback", "reach")
PICTURED = ("adam", "layerwise", "l2_sp", "reach", "reach_rates")
SMALL = ("dense", "convolutional")
MORE_TASKS = (
    "long_tailed",
    "fine_grained",
    "class_incremental",
    "digits_mnist",
    "digits_uci",
    "digits_printed",
)
SELECTED = (
    "adam_rates",
    "layerwise",
    "l2_sp",
    "wise_ft",
    "without_forgetting",
    "replay",
    "rollback",
    "reach",
)
TEXT = ("tweets",)
# The text encoder takes a tenth of a second a step; at this rate Adam learns
# tweets best.
TEXT_RATE, TEXT_LENGTH = 1e-4, 100
TEXT_SETTINGS = {
    "adam_rates": (1e-5, 3e-5, 1e-4, 3e-4),
    "layerwise": (0.3, 0.1, 0.03, 0.01),
    "l2_sp": (0.03, 0.1, 0.3, 1.0),
    "wise_ft": (0.2, 0.4, 0.6, 0.8),
    "uniform": (0.01, 0.03, 0.1, 0.3),
    "reach": (0.0005, 0.001, 0.003, 0.01),
    "reach_held": (0.0005, 0.001, 0.003, 0.01),
}
# The networks that answer for places in an image, three settings a method.
SCENES = {
    "segformer": "scenes_maps",
    "retinanet": "scenes_boxes",
    "sam": "scenes_masks",
}
SCENES_LENGTH = 150
SCENES_SETTINGS = {
    "adam_rates": (1e-4, 3e-4, 1e-3),
    "reach": (0.02, 0.05, 0.2),
    "l2_sp": (0.03, 0.3, 3.0),
    "replay": (0.3, 1.0, 3.0),
    "layerwise": (0.3, 0.1, 0.03),
    "wise_ft": (0.3, 0.5, 0.8),
    "paper": (0.005, 0.02, 0.05),
    "uniform": (0.005, 0.02, 0.05),
}
# RetinaNet breaks at the rate of the others; at a tenth of it Adam is balanced
# at a tenth of the distance.
SCENES_OWN = {
    "retinanet": (
        1e-4,
        SCENES_SETTINGS
        | {
            "adam_rates": (3e-5, 1e-4, 3e-4),
            "reach": (0.002, 0.005, 0.02),
        },
    )
}
# ImageNet's network takes 0.4 seconds a step with eight pictures.
PHOTOGRAPHS = ("stamps",)
PHOTOGRAPHS_RATE, PHOTOGRAPHS_LENGTH = 1e-4, 30
PHOTOGRAPHS_SETTINGS = {
    "adam_rates": (1e-5, 3e-5, 1e-4),
    "layerwise": (0.3, 0.1, 0.03),
    "l2_sp": (0.3, 3.0, 30.0),
    "wise_ft": (0.25, 0.5, 0.75),
    "without_forgetting": (0.3, 1.0, 3.0),
    "reach": (0.0003, 0.001, 0.003),
    "reach_rates": (0.001, 0.003, 0.01),
}
# A small vision transformer takes 5 milliseconds, and as long to be measured.
TRANSFORMER_LENGTH = 300
TRANSFORMER = (
    "adam_rates",
    "layerwise",
    "lora",
    "prompts",
    "l2_sp",
    "wise_ft",
    "without_forgetting",
    "replay",
    "rollback",
    "reach",
)


@dataclasses.dataclass(frozen=True)
class Lengths:
    """What `length` measures on a network.

    Args:
        steps: The lengths of training.
        since: That from which the change to the end is told.
        rates: The learning rates.
        tasks: The new tasks.
        methods: The methods of the picture.
        others: The methods that only the table has.
        search: The experiment whose results choose the settings.
        quick: The lengths in the `--quick` form.
    """

    steps: tuple
    since: int = 1000
    rates: tuple = RATES
    tasks: tuple = TASKS
    methods: tuple = PICTURED
    others: tuple = ("rollback",)
    search: str = "search"
    quick: tuple = (100, 200)


LENGTHS = {
    "dense": Lengths(
        (100, 300, 1000, 3000, 10_000),
        others=(
            "rollback",
            "frozen",
            "wise_ft",
            "without_forgetting",
            "uniform",
            "reach_held",
            "ewc",
            "replay",
        ),
    ),
    # Twelve times as slow.
    "convolutional": Lengths((100, 300, 1000, 3000)),
    # A thousand times as slow.
    "efficientnet_lite0": Lengths(
        (30, 100, 300),
        since=100,
        rates=(3e-5, PHOTOGRAPHS_RATE, 3e-4),
        tasks=PHOTOGRAPHS,
        methods=(*PICTURED[:3], "wise_ft", *PICTURED[3:]),
        others=(),
        search="photographs",
        quick=(5, 10),
    ),
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


def run(
    name, network, options, runs, points, file=None, quick=(100, 200), **facts
):
    """Make an experiment's runs, what made them in a file beside theirs."""
    store = store_of(file or f"{name}_{network}", options.folder)
    pretraining = {}
    if options.quick:
        points, pretraining = quick, {"pretraining": quick[-1]}
        pretraining["cache"] = options.folder
    store.describe(
        command=f"python -m benchmarks.forgetting {name} {network}",
        **facts,
    )
    run_grid(store, runs, points, **pretraining)


def _every_setting(
    name, network, options, tasks, methods, seeds, length=LENGTH
):
    runs = [
        Run(network, task, method, setting, RATE, seed)
        for task in tasks
        for seed in (seeds[:1] if options.quick else seeds)
        for method in options.chosen(methods)
        for setting in METHODS[method].settings[: 1 if options.quick else None]
    ]
    run(name, network, options, runs, (length,), seeds=list(seeds))


def search(network, options):
    """Try every setting of `length`'s methods, for it to choose from."""
    methods = LENGTHS[network].methods + LENGTHS[network].others
    _every_setting("search", network, options, TASKS, methods, SEARCH_SEEDS)


def trade_off(network, options):
    """Try every setting of every method on the seeds that are reported."""
    methods = [m for m in METHODS if METHODS[m].adapt is None]
    _every_setting("trade_off", network, options, TASKS, methods, options.seeds)


def tasks(network, options):
    """Do the same with fewer methods on more tasks."""
    _every_setting(
        "tasks", network, options, MORE_TASKS, SELECTED, options.seeds
    )


def text(network, options):
    """Fine-tune a text encoder, four settings of each method."""
    runs = _given(network, options, TEXT, TEXT_SETTINGS, TEXT_RATE)
    run("text", network, options, runs, (TEXT_LENGTH,), seeds=options.seeds)


def scenes(network, options):
    """Fine-tune a network that segments or detects, three settings a method."""
    rate, settings = SCENES_OWN.get(network, (RATE, SCENES_SETTINGS))
    runs = _given(network, options, [SCENES[network]], settings, rate)
    run(
        "scenes",
        network,
        options,
        runs,
        (SCENES_LENGTH,),
        quick=(5, 10),
        seeds=options.seeds,
    )


def photographs(network, options):
    """Fine-tune ImageNet's network, three settings of each method."""
    runs = _given(
        network, options, PHOTOGRAPHS, PHOTOGRAPHS_SETTINGS, PHOTOGRAPHS_RATE
    )
    points = (PHOTOGRAPHS_LENGTH,)
    run("photographs", network, options, runs, points, seeds=options.seeds)


def transformer(network, options):
    """Fine-tune a vision transformer, LoRA and visual prompts as well."""
    _every_setting(
        "transformer",
        network,
        options,
        TASKS,
        TRANSFORMER,
        options.seeds,
        TRANSFORMER_LENGTH,
    )


def _given(network, options, tasks, settings, rate):
    return [
        Run(network, task, method, setting, rate, seed)
        for task in tasks
        for seed in (options.seeds[:1] if options.quick else options.seeds)
        for method in options.chosen(settings)
        for setting in settings[method][: 1 if options.quick else None]
    ]


def choices(network, folder=RESULTS):
    """Return {(task, method): the setting that keeps most}, by the search.

    Of those that lose at most `ALLOWED_LOSS` points on the new task against
    the best of the methods of the picture; where none does, the one that
    learns most. Validation examples of both problems decide.
    """
    asked = LENGTHS[network]
    store = store_of(f"{asked.search}_{network}", folder)
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
        best = max(
            new
            for key, (_, new) in means.items()
            if key[0] == task and key[1] not in asked.others
        )
        own = {k[2]: v for k, v in means.items() if k[:2] == (task, method)}
        allowed = {s: v for s, v in own.items() if v[1] >= best - ALLOWED_LOSS}
        if allowed:
            chosen[task, method] = max(allowed, key=lambda s: allowed[s][0])
        else:
            chosen[task, method] = max(own, key=lambda s: own[s][1])
    return chosen


def length(network, options):
    """Measure along long runs, at three learning rates: the first picture."""
    asked = LENGTHS[network]
    methods = asked.methods + asked.others
    # A method that has nothing to choose need not be searched for.
    chosen = {
        (task, name): METHODS[name].settings[0]
        for task in asked.tasks
        for name in methods
        if len(METHODS[name].settings) == 1
    } | choices(network, options.folder)
    runs = [
        Run(network, task, name, chosen[task, name], rate, seed)
        for task in asked.tasks
        for seed in (options.seeds[:1] if options.quick else options.seeds)
        for name in options.chosen(methods)
        for rate in (asked.rates[:1] if options.quick else asked.rates)
    ]
    run(
        "length",
        network,
        options,
        runs,
        asked.steps,
        quick=asked.quick,
        seeds=list(options.seeds),
        settings={
            f"{task}, {name}": value
            for (task, name), value in sorted(chosen.items())
            if name in methods
        },
    )
