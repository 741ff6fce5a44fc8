"""Every experiment is a grid of training runs; this runs what is missing."""

import dataclasses
from pathlib import Path

import numpy as np

from .backbones import load_backbone
from .methods import METHODS
from .problem import PRETRAINING_STEPS, Problem, Retrieval
from .store import Progress
from .tasks import load_task

KEYS = ("network", "task", "method", "setting", "rate", "seed")
MEASURES = ("kept_validation", "new_validation", "kept", "new", "moved")
VALUES = ("steps", *MEASURES)
# Pretrained weights, the same for every experiment; made again if deleted.
CACHE = Path("out/forgetting")


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run of a grid."""

    network: str
    task: str
    method: str
    setting: float
    rate: float
    seed: int


def run_grid(store, runs, points, pretraining=PRETRAINING_STEPS, cache=CACHE):
    """Make the runs that a store has not, and write them into it.

    Args:
        store: A `Store` with `KEYS` and `VALUES`.
        runs: Each a `Run`.
        points: Lengths of training to measure at: one run has them all,
            since the learning rate is constant.
        pretraining: How many steps the old problem is learned for.
        cache: The folder for pretrained weights.
    """
    missing = [r for r in runs if not store.has(**dataclasses.asdict(r))]
    if len(missing) < len(runs):
        print(f"{len(runs) - len(missing)} of {len(runs)} runs are there.")
    # One seed after the other, so that what is there when it is stopped can
    # be compared.
    missing.sort(key=lambda r: (r.network, r.seed, r.task))
    progress = Progress(len(missing))
    problems, place = {}, None
    for run in missing:
        if (run.network, run.seed, run.task) != place:
            place = (run.network, run.seed, run.task)
            task = load_task(run.task, run.seed)
            # Tasks of the same shape share what is compiled.
            shape = (run.network, task.shared_head)
            shape += (task.old_classes, task.new_classes)
            if shape not in problems:
                kind = Retrieval if run.network == "minilm" else Problem
                problems[shape] = kind(load_backbone(run.network), task)
            problem = problems[shape]
            problem.task, weighed = task, False
            weights = pretrained(
                problem, run.network, run.seed, pretraining, cache
            )
        method = METHODS[run.method]
        problem.begin(weights, run.seed)
        if run.method == "ewc" and not weighed:
            problem.weigh()
            weighed = True
        rows = [
            {"steps": steps, **measures}
            for steps, measures in problem.fine_tune(
                method, run.setting, run.rate, points, run.seed
            )
        ]
        store.add(dataclasses.asdict(run), rows)
        last = rows[-1]
        progress.say(
            f"{run.network}, {run.task}, {method.label} {run.setting:g}, rate "
            f"{run.rate:g}, seed {run.seed}: after {points[-1]} steps kept "
            f"{last['kept']:.1f}, new {last['new']:.1f}"
        )


def pretrained(problem, network, seed, steps=PRETRAINING_STEPS, cache=CACHE):
    """Return all weights of `problem.reviewer`, from a file or by training."""
    origin = problem.task.origin
    path = Path(cache) / f"{network}-{origin}-{seed}-{steps}.npz"
    if path.exists():
        with np.load(path) as file:
            return [file[f"arr_{i}"] for i in range(len(file.files))]
    weights = problem.pretrain(seed, steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A kill in the middle leaves no half file behind.
    part = path.with_name(f"part-{path.name}")
    np.savez(part, *weights)
    part.replace(path)
    return weights
