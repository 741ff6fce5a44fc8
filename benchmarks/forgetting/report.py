"""Every table and picture, drawn from the files in `results/`."""

import functools

from . import again, cost, features, lengths, scratch, trade_off, way_back
from .experiments import (
    LENGTHS,
    MORE_TASKS,
    PHOTOGRAPHS,
    SCENES,
    TASKS,
    TEXT,
)
from .store import RESULTS

# Experiments with every setting of every method, and their tasks.
COMPARED = {
    "trade_off_dense": TASKS,
    "trade_off_narrow": TASKS,
    "trade_off_convolutional": TASKS,
    "tasks_dense": MORE_TASKS,
    "transformer_vit": TASKS,
    "photographs_efficientnet_lite0": PHOTOGRAPHS,
    "text_minilm": TEXT,
} | {f"scenes_{network}": (task,) for network, task in SCENES.items()}
# Without the networks that a few methods were tried on.
DRAWN = {
    name: tasks
    for name, tasks in COMPARED.items()
    if name not in ("trade_off_narrow", "trade_off_convolutional")
}
# By the name that `table` knows them by: each takes the folder of results.
TABLES = (
    {
        f"length {network}": functools.partial(lengths.table, network)
        for network in LENGTHS
    }
    | {
        f"{name} {task}": functools.partial(trade_off.table, name, task)
        for name, tasks in COMPARED.items()
        for task in tasks
    }
    | {
        "gamma": functools.partial(trade_off.grid, "dense", "inverted"),
        "pairs": functools.partial(trade_off.pairs, "trade_off_dense", TASKS),
        "carry_over": functools.partial(
            trade_off.carry_over,
            ["dense", "narrow"],
            TASKS,
            ("reach", "relative_reach"),
        ),
        "features": functools.partial(features.table, "dense"),
        "scratch": scratch.table,
        "again": functools.partial(again.table, "dense"),
        "cost": functools.partial(cost.table, "dense"),
    }
)
# By the name of the file.
PICTURES = {
    "forgetting" + ("" if network == "dense" else f"_{network}"): (
        functools.partial(lengths.picture, network)
    )
    for network in LENGTHS
} | {
    "beside_reach": functools.partial(trade_off.picture, DRAWN),
    "way_back_dense": functools.partial(way_back.picture, "dense"),
    "features": functools.partial(features.picture, "dense"),
}


def table(name, folder=RESULTS):
    """Return one of `TABLES` as Markdown.

    Raises:
        ValueError: If there is no such table, or no results for it.
    """
    if name not in TABLES:
        raise ValueError(
            f"`name` must be one of {', '.join(TABLES)}. Received: {name!r}."
        )
    if not (lines := TABLES[name](folder)):
        raise ValueError(f"There are no results for {name!r} in {folder}.")
    return "\n".join(lines)


def report(folder, images):
    """Print every table and draw every picture that has its results."""
    for name, make in TABLES.items():
        if lines := make(folder):
            print(f"\n## {name}\n", *lines, sep="\n")
    images.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        draw(folder, images / f"{name}.png")
