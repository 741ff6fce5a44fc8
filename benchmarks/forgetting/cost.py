"""What a step of each method costs: time, and bytes that it keeps."""

import time

import numpy as np

from .backbones import load_backbone
from .experiments import RATE
from .loop import batches
from .methods import METHODS
from .problem import BATCH_SIZE, Problem
from .store import RESULTS, Store
from .tasks import load_task

STEPS = 300


def store_of(network, folder):
    values = ("milliseconds", "copies")
    return Store(f"cost_{network}", ("network", "method"), values, folder)


def cost(network, options):
    """Time some hundred steps, the best of five, and count the state.

    Of this process alone: other programs on the machine do not count.
    """
    store = store_of(network, options.folder)
    store.describe(command=f"python -m benchmarks.forgetting cost {network}")
    task = load_task("mnist")
    problem = Problem(load_backbone(network), task)
    new = task.new["train"]
    rows = batches(len(new), STEPS, BATCH_SIZE, 0)
    size = sum(np.prod(v.shape) for v in problem.model.trainable_variables)
    for name in options.chosen(METHODS):
        method = METHODS[name]
        # What is added would be another network's.
        if method.adapt or store.has(network=network, method=name):
            continue
        problem.begin(problem.reviewer.get_weights(), 0)
        loop = problem.loop_of(method)
        loop.start(RATE, method.settings[0])
        data = (new.inputs, new.labels, *method.data(problem, 0))
        times = []
        for _ in range(3 if options.quick else 6):
            begun = time.process_time()
            loop.run(data, rows)
            np.array(problem.pretrained[0])
            times.append(time.process_time() - begun)
        state = sum(np.prod(v.shape) for v in loop.optimizer.variables)
        store.add(
            {"network": network, "method": name},
            [
                {
                    "milliseconds": 1000 * min(times[1:]) / STEPS,
                    "copies": state / size,
                }
            ],
        )


def table(network, folder=RESULTS):
    """Return the lines of a table: time and memory of each method."""
    rows = store_of(network, folder).rows
    if not rows:
        return []
    adam = next(r["milliseconds"] for r in rows if r["method"] == "adam")
    return [
        "| method | ms a step | / Adam's | copies of the weights kept |",
        "|---|---|---|---|",
    ] + [
        f"| {METHODS[row['method']].label} | {row['milliseconds']:.2f} | "
        f"{row['milliseconds'] / adam:.2f} | {row['copies']:.1f} |"
        for row in rows
    ]
