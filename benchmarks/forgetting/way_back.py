"""How far each layer went, and what is known on the way back to θ₀.

The weight discrepancy and the zero-shot reviewing of Huang et al., AAAI 2024,
Fig. 3.
"""

import numpy as np

from .backbones import load_backbone
from .experiments import RATE, TASKS, choices
from .grid import CACHE, pretrained
from .methods import METHODS, depths, toward_start
from .problem import PRETRAINING_STEPS, Problem, Start
from .store import RESULTS, Progress, Store
from .tasks import load_task

STEPS = 3000
SHARES = tuple(i / 10 for i in range(11))


def stores(network, folder=RESULTS):
    """Return the tables of distances by depth and of accuracies by share."""
    keys = ("task", "method", "setting", "seed")
    return (
        Store(f"by_depth_{network}", (*keys, "depth"), ("distance",), folder),
        Store(f"way_back_{network}", (*keys, "share"), ("kept", "new"), folder),
    )


def way_back(network, options):
    """Fine-tune with the settings of `length`; go back in ten steps."""
    by_depth, by_share = stores(network, options.folder)
    for store in (by_depth, by_share):
        store.describe(
            command=f"python -m benchmarks.forgetting way_back {network}",
            seeds=list(options.seeds),
            rate=RATE,
            steps=STEPS,
        )
    cache, steps, points = CACHE, PRETRAINING_STEPS, (STEPS,)
    if options.quick:
        cache, steps, points = options.folder, 200, (100,)
    chosen = choices(network, options.folder)
    names = [m for m in options.chosen(METHODS) if (TASKS[0], m) in chosen]
    seeds = options.seeds[:1] if options.quick else options.seeds
    progress = Progress(len(TASKS) * len(seeds) * len(names))
    for name in TASKS:
        problem = Problem(load_backbone(network), load_task(name))
        learned = pretrained(problem, network, seeds, steps, cache)
        for seed in seeds:
            task, weights = load_task(name, seed), learned[seed]
            for method in names:
                run = {
                    "task": name,
                    "method": method,
                    "setting": chosen[name, method],
                    "seed": seed,
                }
                if by_share.has(**run, share=SHARES[-1]):
                    progress.skip()
                    continue
                start = Start(task, weights, run["setting"], RATE, seed)
                for _ in problem.fine_tune(METHODS[method], [start], points):
                    for depth, distance in _distances(problem).items():
                        by_depth.add(
                            run | {"depth": round(depth, 3)},
                            [{"distance": distance}],
                        )
                    trained = [np.array(v) for v in problem.pretrained]
                    for share in SHARES:
                        for variable, value in zip(problem.pretrained, trained):
                            variable.assign(value)
                        toward_start(problem, share)
                        measured = problem.measure()
                        by_share.add(
                            run | {"share": share},
                            [{key: measured[key] for key in ("kept", "new")}],
                        )
                progress.say(f"{network}, {name}, {method}, seed {seed}")


def _distances(problem):
    """Return {relative depth: rms of θ − θ₀ in the kernels there}."""
    relative = dict(
        zip(
            (v.path for v in problem.model.trainable_variables),
            depths(problem),
        )
    )
    return {
        relative[variable.path]: float(
            np.sqrt(np.mean((np.array(variable) - np.array(start)) ** 2))
        )
        for variable, start in zip(problem.pretrained, problem.start)
        if variable.path.endswith("kernel")
    }


def picture(network, folder, path):
    """Draw the distance by depth, and accuracies on the way back."""
    from matplotlib.figure import Figure

    by_depth, by_share = stores(network, folder)
    if not by_share.rows:
        return False
    figure = Figure((9, 5.2))
    axes = figure.subplots(2, 3)
    for row, task in zip(axes, TASKS):
        methods = [
            m
            for m in METHODS
            if any((r["task"], r["method"]) == (task, m) for r in by_share.rows)
        ]
        for axis, store, place, measure in (
            (row[0], by_depth, "depth", "distance"),
            (row[1], by_share, "share", "kept"),
            (row[2], by_share, "share", "new"),
        ):
            for method in methods:
                cells = {}
                for r in store.rows:
                    if (r["task"], r["method"]) == (task, method):
                        cell = cells.setdefault(float(r[place]), [])
                        cell.append(r[measure])
                axis.plot(
                    sorted(cells),
                    [np.mean(cells[x]) for x in sorted(cells)],
                    "o-",
                    ms=3,
                    label=METHODS[method].label,
                )
            axis.grid(alpha=0.25)
            what = "rms of θ − θ₀" if measure == "distance" else measure
            axis.set_title(f"{task}: {what}", fontsize=9)
        row[0].set_yscale("log")
    for axis, text in zip(
        axes[-1],
        (
            "relative depth",
            "share of the way from θ₀",
            "share of the way from θ₀",
        ),
    ):
        axis.set_xlabel(text, fontsize=9)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="lower center",
        ncols=len(METHODS),
        frameon=False,
        fontsize=8,
    )
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=120)
    return True
