"""From nothing, on few examples: what a decay that grows with depth is worth.

The dense network learns 500 examples. Every method but Adam has nine decays.
"""

import functools
import re
from types import SimpleNamespace

import keras
import numpy as np

from keras_dualopt import layer_depth

from .intervals import column, difference, in_words
from .loop import Loop, batches
from .methods import cross_entropy, ours
from .networks import NETWORKS
from .problem import BATCH_SIZE, accuracy, answering, set_fresh
from .store import RESULTS, Progress, Store
from .tasks import CLASSES, divide, fashion, mnist, uci_digits

RATE, STEPS = 1e-3, 1000
DECAYS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
SIZES = {"train": 500, "validation": 300}
SOURCES = {
    "MNIST": mnist,
    "UCI": uci_digits,
    "clothes": lambda: fashion()["train"],
}


class AdamW(keras.optimizers.Adam):
    """AdamW whose decay is its `setting`; it decays every weight."""

    def update_step(self, gradient, variable, learning_rate):
        """Decay, then take Adam's step."""
        share = learning_rate * self.setting
        self.assign_sub(variable, keras.ops.multiply(variable, share))
        super().update_step(gradient, variable, learning_rate)


def _reversed(problem, rate, setting):
    rows = layer_depth(problem.model, head=()).rows
    depth = {re.escape(row.path): 1 - row.relative for row in rows}
    strengths = {"weight_decay": 1.0}
    return ours(problem, rate, setting, strengths, mode="scratch", depth=depth)


def _sparing(problem, rate, setting):
    """Spare what feeds a normalization, which undoes any scale."""
    spared = [
        re.escape(variable.path)
        for layer in problem.model.layers
        if isinstance(layer, keras.layers.Dense) and layer.name != "last"
        for variable in layer.trainable_variables
    ]
    return _both(problem, rate, setting, exclude=spared)


def _dualopt(problem, rate, setting, low, **others):
    strengths = {"weight_decay": 1.0, "weight_decay_min": low}
    return ours(problem, rate, setting, strengths, mode="scratch", **others)


_both = functools.partial(_dualopt, low=1.0)
METHODS = {
    "Adam": lambda problem, rate, setting: keras.optimizers.Adam(
        rate, epsilon=1e-8
    ),
    "AdamW": lambda problem, rate, setting: AdamW(rate, epsilon=1e-8),
    "uniform": _both,
    "DualOpt, the paper's profile": functools.partial(_dualopt, low=0.0),
    "reversed profile": _reversed,
    "uniform, spares what is normalized": _sparing,
}


def store_of(folder, name="scratch_dense"):
    keys = ("data", "method", "decay", "seed")
    return Store(name, keys, ("validation", "test"), folder)


def scratch(network, options):
    """Train from scratch with every method at every decay."""
    measure(
        store_of(options.folder),
        network,
        options,
        DECAYS,
        command="python -m benchmarks.forgetting scratch",
    )


def measure(store, network, options, decays, **facts):
    """Write into a store what it has not of every method at some decays."""
    store.describe(
        **facts,
        seeds=list(options.seeds),
        rate=RATE,
        steps=STEPS,
    )
    body = NETWORKS[network]()
    model = keras.Model(
        body.input, keras.layers.Dense(CLASSES, name="last")(body.output)
    )
    problem = SimpleNamespace(model=model, head=None)
    loops = {
        name: Loop(
            functools.partial(make, problem),
            model.trainable_variables,
            lambda setting: (
                lambda x, y: cross_entropy(y, model(x, training=True))
            ),
        )
        for name, make in METHODS.items()
    }
    answer = answering(model)
    decays = decays[: 1 if options.quick else None]
    places = [
        (data, seed, method)
        for seed in (options.seeds[:1] if options.quick else options.seeds)
        for data in SOURCES
        for method in METHODS
    ]
    progress = Progress(len(places))
    for data, seed, method in places:
        own = (0.0,) if method == "Adam" else decays
        run = {"data": data, "method": method, "seed": seed}
        own = [decay for decay in own if not store.has(**run, decay=decay)]
        if not own:
            progress.skip()
            continue
        parts = divide(SOURCES[data](), SIZES, seed, rest="test")
        train, loop = parts["train"], loops[method]
        batch_rows = batches(
            len(train), 100 if options.quick else STEPS, BATCH_SIZE, seed
        )
        for decay in loop.each(
            own,
            functools.partial(_begin, loop, model, seed),
            (train.inputs, train.labels),
            batch_rows,
        ):
            measured = {
                name: accuracy(answer, parts[name])
                for name in ("validation", "test")
            }
            store.add(run | {"decay": decay}, [measured])
        progress.say(f"{data}, {method}, seed {seed}: {measured}")


def _begin(loop, model, seed, decay):
    set_fresh(model, seed)
    loop.start(RATE, decay)


def table(folder=RESULTS):
    """Return the lines of a table: the best decay, and the whole range."""
    rows = store_of(folder).rows
    lines = [
        "| 500 examples of | method | decay | accuracy | − Adam's | at 1 | "
        "at 10 | at 100 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for data in SOURCES:
        adam = None
        for method in METHODS:
            cells = {}
            for row in rows:
                if (row["data"], row["method"]) == (data, method):
                    cell = cells.setdefault(float(row["decay"]), {})
                    cell[row["seed"]] = row
            if not cells:
                continue
            best = max(
                cells,
                key=lambda d: np.mean(
                    [row["validation"] for row in cells[d].values()]
                ),
            )
            own = column(cells[best], "test")
            adam = adam or own
            better = "" if own is adam else difference(own, adam)
            ends = [
                f"{np.mean([row['test'] for row in cells[d].values()]):.0f}"
                if d in cells
                else ""
                for d in (1.0, 10.0, 100.0)
            ]
            lines.append(
                f"| {data} | {method} | {best:g} | "
                f"{in_words(list(own.values()))} | {better} | "
                f"{' | '.join(ends)} |"
            )
    return lines if len(lines) > 2 else []
