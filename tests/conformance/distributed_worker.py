"""Trains on two devices of one CPU and writes what came out.

A process of its own, because the number of devices is fixed when a backend
starts. Called as `distributed_worker.py FILE PRETRAINED ROW`.
"""

import contextlib
import sys
from pathlib import Path

import keras
import networks
import numpy as np
from cases import BACKEND

from keras_dualopt import DualOpt
from keras_dualopt.callbacks import AtomicBackup

STEPS = 6
EPOCHS = 2

# row: (base, arguments of DualOpt)
ROWS = {
    "adam": ("adam", networks.FINETUNE),
    "sgd": ("sgd", networks.FINETUNE),
    "wrapped": (
        lambda: keras.optimizers.Lion(networks.RATE, beta_1=0.8),
        networks.FINETUNE,
    ),
    "scratch": ("adam", networks.SCRATCH),
    "anchored again": ("adam", networks.FINETUNE),
    "resumed": ("adam", networks.FINETUNE),
}
if BACKEND == "jax":
    # Keras' own optimizers cannot accumulate under MirroredStrategy: their
    # `merge_call` stands inside of a `tf.cond`.
    ROWS["accumulation"] = (
        "adam",
        {**networks.FINETUNE, "gradient_accumulation_steps": 2},
    )


def optimizer_of(row):
    base, arguments = ROWS[row]
    return DualOpt(
        networks.RATE, base=base() if callable(base) else base, **arguments
    )


def compiled(row):
    """Return a model with other weights."""
    return networks.compiled(optimizer_of(row), networks.weights(seed=99))


def copies(variable):
    """Return the value of a variable on each device."""
    if BACKEND == "tensorflow":
        return [copy.numpy() for copy in variable.value.values]
    return [np.array(copy.data) for copy in variable.value.addressable_shards]


def fit(row, model):
    """Train; return the weights at which anchors were made again, if any."""
    if row != "anchored again":
        networks.fit(model, STEPS)
        return []
    networks.fit(model, STEPS // 2)
    weights = networks.arrays(model.trainable_variables)
    # Variables of their own: the old ones and their copies are gone.
    model.optimizer.drop_anchors()
    model.optimizer.anchor_at()
    networks.fit(model, STEPS - STEPS // 2, start=STEPS // 2)
    return weights


def epochs(model, count, backup):
    x, y = networks.data()
    model.fit(
        x,
        y,
        batch_size=networks.BATCH,
        epochs=count,
        shuffle=False,
        verbose=0,
        callbacks=[backup],
    )


def train(row, pretrained):
    scope = contextlib.nullcontext
    if BACKEND == "tensorflow":
        import tensorflow as tf

        scope = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope
    else:
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(auto_shard_dataset=False)
        )
    with scope():
        model = compiled(row)
        model.optimizer.build(model.trainable_variables)
    model.load_weights(pretrained)
    stage = []
    if row == "resumed":
        path = Path(pretrained).with_name("run.weights.h5")
        epochs(model, EPOCHS - 1, AtomicBackup(path, keep=True))
        with scope():
            model = compiled(row)
        epochs(model, EPOCHS, AtomicBackup(path))
    else:
        stage = fit(row, model)
    found = {f"stage.{index}": value for index, value in enumerate(stage)}
    anchors = [a for a in model.optimizer.anchors if a is not None]
    for name, variables in (
        ("weight", model.trainable_variables),
        ("anchor", anchors),
        ("state", model.optimizer.variables),
    ):
        for index, variable in enumerate(variables):
            values = copies(variable)
            assert len(values) == 2
            np.testing.assert_array_equal(values[0], values[1])
            found[f"{name}.{index}"] = values[0]
    return found


def main(file, pretrained, rows):
    if BACKEND == "tensorflow":
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * 2
        )
    results = {}
    for row in rows.split(","):
        for name, value in train(row, pretrained).items():
            results[f"{row}.{name}"] = value
    np.savez(file, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
