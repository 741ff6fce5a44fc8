"""Every experiment is a grid of training runs; this runs what is missing."""

import dataclasses
from pathlib import Path

import numpy as np

from .backbones import load_backbone
from .loop import BACKEND
from .methods import METHODS
from .problem import (
    PRETRAINING_STEPS,
    CamePretrained,
    Problem,
    Retrieval,
    Start,
)
from .recognition import Recognition
from .store import Progress
from .tasks import load_task
from .vision import PROBLEMS

KEYS = ("network", "task", "method", "setting", "rate", "seed")
MEASURES = ("kept_validation", "new_validation", "kept", "new", "moved")
VALUES = ("steps", *MEASURES)
# How many trainings share a call; 15 where nothing else is said.
TOGETHER = {
    "minilm": 1,
    "efficientnet_lite0": 1,
    "vit": 4,
} | dict.fromkeys(PROBLEMS, 1)
# Kinds of problems that not all networks have.
KINDS = {"minilm": Retrieval, "efficientnet_lite0": Recognition} | PROBLEMS
# A step takes long, and the old scenes are soon known.
PRETRAINING = {
    "vit": 5000,
    "segformer": 2500,
    "retinanet": 2000,
    "sam": 2000,
}
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


def run_grid(store, runs, points, pretraining=None, cache=CACHE):
    """Make the runs that a store has not, and write them into it.

    Args:
        store: A `Store` with `KEYS` and `VALUES`.
        runs: Each a `Run`.
        points: Lengths of training to measure at: one run has them all,
            since the learning rate is constant.
        pretraining: How many steps the old problem is learned for; `None`: as
            long as is usual for the network.
        cache: The folder for pretrained weights.
    """
    missing = [r for r in runs if not store.has(**dataclasses.asdict(r))]
    if len(missing) < len(runs):
        print(f"{len(runs) - len(missing)} of {len(runs)} runs are there.")
    progress = Progress(len(missing))
    problems = {}
    for (network, name, method), group in _groups(missing):
        tasks = {run.seed: load_task(name, run.seed) for run in group}
        task = tasks[group[0].seed]
        # Tasks of the same shape share what is compiled.
        shape = (network, task.shared_head, task.old_classes, task.new_classes)
        kind = KINDS.get(network, Problem)
        if shape not in problems:
            problems[shape] = kind(load_backbone(network), task)
        problem = problems[shape]
        problem.task = task
        steps = pretraining or PRETRAINING.get(network, PRETRAINING_STEPS)
        weights = pretrained(problem, network, tasks, steps, cache)
        if adapt := METHODS[method].adapt:
            # What is added and frozen makes another network of it.
            if (shape, method) not in problems:
                problems[shape, method] = kind(
                    load_backbone(network), task, adapt
                )
            problem = problems[shape, method]
        starts = [
            Start(tasks[r.seed], weights[r.seed], r.setting, r.rate, r.seed)
            for r in group
        ]
        rows = [[] for _ in group]
        tuned = problem.fine_tune(METHODS[method], starts, points)
        for i, steps, measures in tuned:
            rows[i].append({"steps": steps, **measures})
        for run, measured in zip(group, rows):
            store.add(dataclasses.asdict(run), measured)
            last = measured[-1]
            progress.say(
                f"{network}, {name}, {METHODS[method].label} {run.setting:g}, "
                f"rate {run.rate:g}, seed {run.seed}: after {points[-1]} steps "
                f"kept {last['kept']:.1f}, new {last['new']:.1f}"
            )


def _groups(runs):
    """Yield what several runs share, and as many as go side by side."""
    together = {}
    for run in runs:
        place = (run.network, run.task, run.method)
        together.setdefault(place, []).append(run)
    for place, group in together.items():
        trainings, after = {}, METHODS[place[2]].after is not None
        for i, run in enumerate(group):
            # One training serves all settings that are used after it.
            key = (run.seed, run.rate) if after else i
            trainings.setdefault(key, []).append(run)
        size, trainings = TOGETHER.get(place[0], 15), list(trainings.values())
        for i in range(0, len(trainings), size):
            parts = trainings[i : i + size]
            yield place, [run for part in parts for run in part]


def pretrained(problem, network, seeds, steps=PRETRAINING_STEPS, cache=CACHE):
    """Return the weights of `problem.reviewer` by seed: from files, or new."""
    if isinstance(problem, CamePretrained):
        return problem.pretrain(seeds)
    start = f"{network}-{problem.task.origin}"
    if network in PROBLEMS:
        # KerasHub makes their weights in another order on another backend.
        start = f"{start}-{BACKEND}"
    paths = {s: Path(cache) / f"{start}-{s}-{steps}.npz" for s in seeds}
    missing = [seed for seed, path in paths.items() if not path.exists()]
    learned = problem.pretrain(missing, steps) if missing else {}
    for seed, weights in learned.items():
        path = paths[seed]
        path.parent.mkdir(parents=True, exist_ok=True)
        # A kill in the middle leaves no half file behind.
        part = path.with_name(f"part-{path.name}")
        np.savez(part, *weights)
        part.replace(path)
    return {seed: _arrays(path) for seed, path in paths.items()}


def _arrays(path):
    with np.load(path) as file:
        return [file[f"arr_{i}"] for i in range(len(file.files))]
