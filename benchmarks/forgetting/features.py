"""What images look like to a network before and after it learned another task.

The features of Huang et al., AAAI 2024, Fig. 5, drawn by t-SNE. A picture of
that kind shows clusters that are not there and hides others: what is claimed
are numbers in the features themselves.
"""

import numpy as np

from .backbones import load_backbone
from .experiments import LENGTH, RATE, RIVALS, TASKS, choices
from .grid import CACHE, pretrained
from .intervals import column, difference
from .methods import METHODS
from .problem import PRETRAINING_STEPS, Problem, Start
from .store import RESULTS, Progress, Store
from .tasks import load_task

BEFORE = "pretrained"
MEASURES = ("kept", "old_neighbours", "silhouette", "new", "new_neighbours")
NEIGHBOURS = 10
# What is drawn: one network, these methods, so many images of each problem.
DRAWN, IMAGES = (BEFORE, "adam", "reach"), {"old": 300, "new": 200}


def stores(network, folder=RESULTS):
    """Return the tables of measures and of the points of the picture."""
    return (
        Store(
            f"features_{network}",
            ("task", "method", "setting", "seed"),
            MEASURES,
            folder,
        ),
        Store(
            f"features_drawn_{network}",
            ("task", "method", "setting", "seed"),
            ("x", "y", "label", "is_new"),
            folder,
        ),
    )


def features(network, options):
    """Fine-tune with the settings of `length`; look at the features."""
    measured, drawn = stores(network, options.folder)
    for store in (measured, drawn):
        store.describe(
            command=f"python -m benchmarks.forgetting features {network}",
            seeds=list(options.seeds),
            rate=RATE,
            steps=LENGTH,
        )
    cache, steps, length = CACHE, PRETRAINING_STEPS, LENGTH
    if options.quick:
        cache, steps, length = options.folder, 200, 100
    chosen = choices(network, options.folder)
    seeds = options.seeds[:1] if options.quick else options.seeds
    names = [m for m in options.chosen(RIVALS) if (TASKS[0], m) in chosen]
    progress = Progress(len(TASKS) * len(seeds) * (1 + len(names)))
    for task in TASKS:
        problem = Problem(load_backbone(network), load_task(task))
        learned = pretrained(problem, network, seeds, steps, cache)
        for method in (BEFORE, *names):
            setting = chosen.get((task, method), 0.0)
            left = []
            for seed in seeds:
                run = {
                    "task": task,
                    "method": method,
                    "setting": setting,
                    "seed": seed,
                }
                if measured.has(**run):
                    progress.skip()
                else:
                    start = Start(
                        load_task(task, seed),
                        learned[seed],
                        setting,
                        RATE,
                        seed,
                    )
                    left.append((run, start))
            if not left:
                continue
            for i in _trained(problem, method, [s for _, s in left], length):
                run = left[i][0]
                # What is drawn first: after a kill in between, both again.
                if (
                    method in DRAWN
                    and run["seed"] == seeds[0]
                    and not drawn.has(**run)
                ):
                    drawn.add(run, _points(problem))
                measured.add(run, [_measures(problem)])
                progress.say(f"{network}, {task}, {method}, seed {run['seed']}")


def _trained(problem, method, starts, length):
    """Yield the number of each start when the weights are in place."""
    if method != BEFORE:
        tuned = problem.fine_tune(METHODS[method], starts, (length,))
        yield from (i for i, _, _ in tuned)
        return
    for i, start in enumerate(starts):
        problem.task = start.task
        problem.begin(start.weights, start.seed)
        yield i


def _measures(problem):
    """Return how well old and new classes lie apart, in percent.

    `kept` and `new` by the output layers; `neighbours` by the ten nearest of
    the validation images; the silhouette of the old test images is 100 where
    classes are points, 0 where they lie in one another.
    """
    from sklearn.metrics import silhouette_score

    old, new = problem.task.old, problem.task.new
    return {
        "kept": problem.known(old["test"]),
        "old_neighbours": _by_neighbours(problem, old),
        "silhouette": 100
        * silhouette_score(_seen(problem, old["test"]), old["test"].labels),
        "new": problem.accuracy(problem.model, new["test"]),
        "new_neighbours": _by_neighbours(problem, new),
    }


def _seen(problem, part):
    return problem.answer(problem.backbone, part.inputs)


def _by_neighbours(problem, parts):
    from sklearn.neighbors import KNeighborsClassifier

    known, asked = parts["validation"], parts["test"]
    count = min(NEIGHBOURS, len(known))
    classifier = KNeighborsClassifier(count).fit(
        _seen(problem, known), known.labels
    )
    return 100 * classifier.score(_seen(problem, asked), asked.labels)


def _points(problem):
    """Return a row for each drawn image: where t-SNE puts it."""
    parts = {
        name: getattr(problem.task, name)["test"][:count]
        for name, count in IMAGES.items()
    }
    places = embedding(
        np.concatenate([_seen(problem, part) for part in parts.values()])
    )
    rows, which = [], np.repeat([0, 1], [len(p) for p in parts.values()])
    labels = np.concatenate([part.labels for part in parts.values()])
    for (x, y), label, is_new in zip(places, labels, which):
        rows.append(
            {
                "x": round(float(x), 1),
                "y": round(float(y), 1),
                "label": label,
                "is_new": is_new,
            }
        )
    return rows


def embedding(seen):
    """Return where t-SNE puts features, one a row; the same in each call."""
    from sklearn.manifold import TSNE

    # It wants more points than neighbours of each.
    perplexity = min(30, (len(seen) - 1) / 3)
    return TSNE(
        init="pca", perplexity=perplexity, random_state=0
    ).fit_transform(seen)


def table(network, folder=RESULTS):
    """Return the lines of a table: means over the seeds, and differences."""
    measured, _ = stores(network, folder)
    cells = {}
    for row in measured.rows:
        cell = cells.setdefault((row["task"], row["method"]), {})
        cell[row["seed"]] = row
    if not cells:
        return []
    titles = (
        "kept",
        "old, by neighbours",
        "silhouette",
        "new",
        "new, by neighbours",
    )
    lines = [
        f"| task | network | {' | '.join(titles)} | "
        "old, by neighbours − reach's |",
        "|---" * (3 + len(titles)) + "|",
    ]
    for (task, method), rows in cells.items():
        values = [
            f"{np.mean([row[name] for row in rows.values()]):.1f}"
            for name in MEASURES
        ]
        ours, better = cells.get((task, "reach"), {}), ""
        if method != "reach" and rows.keys() & ours.keys():
            name = "old_neighbours"
            better = difference(column(rows, name), column(ours, name))
        lines.append(
            f"| {task} | {_label(method)} | {' | '.join(values)} | {better} |"
        )
    return lines


def _label(method):
    return BEFORE if method == BEFORE else METHODS[method].label


def picture(network, folder, path):
    """Draw old images by class, and new ones among them."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    _, drawn = stores(network, folder)
    if not drawn.rows:
        return False
    figure = Figure((8.4, 5.8))
    panels = figure.subplots(len(TASKS), len(DRAWN), squeeze=False)
    colours = colormaps["tab10"]
    for line, task in zip(panels, TASKS):
        for axis, method in zip(line, DRAWN):
            rows = [
                r
                for r in drawn.rows
                if (r["task"], r["method"]) == (task, method)
            ]
            for is_new, marker, size in ((1, "x", 9), (0, "o", 7)):
                part = [r for r in rows if r["is_new"] == is_new]
                axis.scatter(
                    [r["x"] for r in part],
                    [r["y"] for r in part],
                    c="0.75"
                    if is_new
                    else [colours(int(r["label"])) for r in part],
                    marker=marker,
                    s=size,
                    linewidths=0.7 if is_new else 0,
                )
            axis.set_xticks([])
            axis.set_yticks([])
            if task == TASKS[0]:
                axis.set_title(_label(method), fontsize=10)
        line[0].set_ylabel(task, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    return True
