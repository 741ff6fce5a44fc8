"""What an update of DualOpt costs, beside Keras' Adam and AdamW and others.

    pip install '.[jax,benchmarks]'        # or tensorflow, or torch
    KERAS_BACKEND=jax python benchmarks/update.py

Prints Markdown tables: the update for several sizes and numbers of variables,
the start, the memory, and a whole training step of a ViT and a ResNet. A ratio
is the median over rounds, with its quartiles; every round runs all contenders,
in any order. The largest row needs about 16 GB; `--parameters 1e4 1e6 2e7`
leaves it out, `--quick` shows in a minute that all of it runs.
"""

import argparse
import dataclasses
import functools
import os
import platform
from pathlib import Path

import contenders
import keras
import memory
import models
import numpy as np
import timing
from contenders import (
    ADAM,
    ADAMW,
    FINETUNE,
    KERAS,
    OTHERS,
    PAIRS,
    SCRATCH,
    UPDATES,
)
from rich import box
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn
from rich.table import Table

import keras_dualopt


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much is measured."""

    rounds: int
    starts: int
    counts: tuple[int, ...]  # of variables
    middle: tuple[float, int]  # parameters, variables
    vit: tuple[int, int, int, int]  # blocks, width, image size, patch
    resnet: tuple[int, int, int]  # stages, width, image size
    batch: int


FULL = Scale(
    rounds=20,
    starts=2,
    counts=(10, 200, 1000),
    middle=(2e7, 200),
    vit=(6, 192, 64, 8),
    resnet=(3, 32, 32),
    batch=32,
)
QUICK = Scale(
    rounds=3,
    starts=1,
    counts=(4,),
    middle=(1e4, 4),
    vit=(1, 64, 16, 8),
    resnet=(1, 4, 8),
    batch=2,
)


def main(arguments=None):
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--parameters",
        type=float,
        nargs="*",
        default=[1e4, 1e6, 2e7, 1e8],
        help="sizes of the update",
    )
    parser.add_argument("--quick", action="store_true", help="tiny, a minute")
    parser.add_argument(
        "--only",
        choices=["update", "start", "memory", "step"],
        help="one of the tables",
    )
    options = parser.parse_args(arguments)
    scale = QUICK if options.quick else FULL
    sizes = [1e4] if options.quick else options.parameters
    keras.utils.set_random_seed(0)
    print(f"{machine()}\n", flush=True)
    with Progress(
        SpinnerColumn(),
        *Progress.get_default_columns()[:2],
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        for name, table in (
            ("update", lambda: update_table(sizes, scale, progress)),
            ("start", lambda: start_table(scale, progress)),
            ("memory", lambda: memory_table(scale, progress)),
            ("step", lambda: step_table(scale, progress)),
        ):
            if options.only in (None, name):
                show(table())


def machine():
    """Return what the numbers depend on, in one line."""
    return (
        f"keras-dualopt {keras_dualopt.__version__}, Keras {keras.__version__},"
        f" {_backend()}, Python {platform.python_version()}; {_processor()}, "
        f"{os.cpu_count()} cores"
    )


def _backend():
    name = keras.backend.backend()
    if name == "jax":
        import jax

        return f"JAX {jax.__version__} on {jax.devices()[0].device_kind}"
    if name == "tensorflow":
        import tensorflow as tf

        devices = tf.config.list_logical_devices()
        return f"TensorFlow {tf.__version__} on {devices[-1].device_type}"
    import torch

    device = keras.ops.zeros(1).device.type
    if device == "cuda":
        device = torch.cuda.get_device_name()
    return f"PyTorch {torch.__version__} on {device}"


def _on_cpu():
    """Tell whether the process's own memory is what an update takes."""
    return _backend().lower().endswith(" on cpu")


def _processor():
    file = Path("/proc/cpuinfo")
    if file.exists():
        for line in file.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def show(table):
    """Print a table, however narrow the terminal."""
    console = Console(width=40 + 32 * len(table.columns))
    console.print(table)
    print(flush=True)


def _table(title, *columns):
    table = Table(title=title, title_justify="left", box=box.MARKDOWN)
    for column in columns:
        table.add_column(column)
    return table


def _pairs():
    return [f"{name} / {rival}" for name, rival in PAIRS]


def _milliseconds(times, name):
    return f"{1e3 * timing.spread(times[name]).median:.3g}"


def update_table(sizes, scale, progress):
    """Time updates: sizes at one number of variables, numbers at one size."""
    size, count = scale.middle
    rows = [(parameters, count) for parameters in sizes]
    if size in sizes:
        rows += [(size, other) for other in scale.counts if other != count]
    table = _table(
        "One update", "parameters", "variables", f"{ADAM}, ms", *_pairs()
    )
    names = [*UPDATES, *OTHERS]
    total = len(rows) * (len(names) + scale.rounds)
    task = progress.add_task("updates", total=total)
    for number, (parameters, variables) in enumerate(rows):
        progress.update(
            task,
            description=f"update of {parameters:,.0f} in {variables}",
            completed=number * (len(names) + scale.rounds),
        )
        built = contenders.updates(
            functools.partial(models.chain, parameters, variables),
            names,
            lambda: progress.advance(task),
        )
        times = timing.interleaved(
            {name: update.run for name, update in built.items()},
            scale.rounds,
            advance=lambda: progress.advance(task),
        )
        table.add_row(
            f"{parameters:,.0f}",
            f"{variables:,}",
            _milliseconds(times, ADAM),
            *(str(timing.ratio(times, *pair)) for pair in PAIRS),
        )
        del built
        keras.backend.clear_session()
    progress.remove_task(task)
    return table


def start_table(scale, progress):
    """Time `build`, and tracing and compiling (torch: the first update)."""
    first = "first update" if keras.backend.backend() == "torch" else "compile"
    table = _table(
        "The start, 1,000,000 parameters",
        "variables",
        f"build, ms, {FINETUNE}",
        f"build, ms, {ADAM}",
        f"{first}, s, {ADAM}",
        f"{first}, {FINETUNE} / {ADAM}",
        f"{first}, {SCRATCH} / {ADAMW}",
    )
    task = progress.add_task(
        "starts", total=len(scale.counts) * scale.starts * len(KERAS)
    )
    for count in scale.counts:
        progress.update(task, description=f"start with {count} variables")
        builds = {name: [] for name in KERAS}
        starts = {name: [] for name in KERAS}
        for number in range(scale.starts):
            names = [*KERAS]
            names = names[number % 4 :] + names[: number % 4]
            for name in names:
                made = contenders.updates(
                    functools.partial(models.chain, 1e6, count), [name]
                )[name]
                builds[name].append(made.build_seconds)
                starts[name].append(made.start_seconds)
                progress.advance(task)
                del made
                keras.backend.clear_session()
        table.add_row(
            f"{count:,}",
            _milliseconds(builds, FINETUNE),
            _milliseconds(builds, ADAM),
            f"{timing.spread(starts[ADAM]).median:.3g}",
            str(timing.ratio(starts, FINETUNE, ADAM)),
            str(timing.ratio(starts, SCRATCH, ADAMW)),
        )
    progress.remove_task(task)
    return table


def memory_table(scale, progress):
    """Measure state, and the peak of an update above it."""
    parameters, variables = scale.middle
    table = _table(
        f"Memory in units of the weights, {parameters:,.0f} parameters in "
        f"{variables} variables",
        "",
        "weights and state",
        "more during an update",
    )
    names = [*UPDATES, *OTHERS]
    task = progress.add_task("memory", total=len(names))
    for name in names:
        made = contenders.updates(
            functools.partial(models.chain, parameters, variables), [name]
        )[name]
        more = memory.transient_bytes(made.run) if _on_cpu() else None
        table.add_row(
            name,
            f"{made.state_bytes / made.weight_bytes:.2f}",
            "?" if more is None else f"{more / made.weight_bytes:.2f}",
        )
        del made
        keras.backend.clear_session()
        progress.advance(task)
    progress.remove_task(task)
    return table


def step_table(scale, progress):
    """Time `train_on_batch` of whole models."""
    table = _table(
        f"One training step, batch {scale.batch}",
        "model",
        "parameters",
        f"{ADAM}, ms",
        *_pairs()[:2],
    )
    rows = {
        "ViT": lambda: models.vit(*scale.vit),
        "ResNet": lambda: models.resnet(*scale.resnet),
    }
    size = {"ViT": scale.vit[2], "ResNet": scale.resnet[2]}
    task = progress.add_task(
        "training steps", total=len(rows) * (scale.rounds + len(KERAS))
    )
    for row, make in rows.items():
        progress.update(task, description=f"training step of a {row}")
        random = np.random.default_rng(0)
        shape = (scale.batch, size[row], size[row], 3)
        images = random.standard_normal(shape, dtype="float32")
        labels = random.integers(0, 10, scale.batch)
        runs, weights = {}, None
        for name, optimizer in KERAS.items():
            model = make()
            weights = weights or model.get_weights()
            model.set_weights(weights)
            model.compile(
                optimizer(),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            )
            runs[name] = _training(model, images, labels)
            progress.advance(task)
        times = timing.interleaved(
            runs,
            scale.rounds,
            limit=90.0,
            advance=lambda: progress.advance(task),
        )
        table.add_row(
            row,
            f"{model.count_params():,}",
            _milliseconds(times, ADAM),
            *(str(timing.ratio(times, *pair)) for pair in PAIRS[:2]),
        )
        keras.backend.clear_session()
    progress.remove_task(task)
    return table


def _training(model, images, labels):
    def run(count):
        for _ in range(count):
            model.train_on_batch(images, labels)

    return run


if __name__ == "__main__":
    main()
