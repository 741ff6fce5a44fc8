"""Trains on two devices of one CPU and writes what came out.

A process of its own, because the number of devices is fixed when a backend
starts. Called as `distributed_worker.py FILE PRETRAINED ROW`.
"""

import sys

import keras
import networks
import numpy as np
from cases import BACKEND

from keras_dualopt import DualOpt

STEPS = 6

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


def built(row):
    """Return a model with other weights and its optimizer built."""
    model = networks.compiled(optimizer_of(row), networks.weights(seed=99))
    model.optimizer.build(model.trainable_variables)
    return model


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


def train(row, pretrained):
    if BACKEND == "tensorflow":
        import tensorflow as tf

        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        with strategy.scope():
            model = built(row)
    else:
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(auto_shard_dataset=False)
        )
        model = built(row)
    model.load_weights(pretrained)
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
