"""Trains on devices of one CPU and writes what came out.

A process of its own, because the number of devices is fixed when a backend
starts, and TensorFlow's collectives know one group of devices only. Called as
`distributed_worker.py FILE PRETRAINED ROWS`; all rows have as many devices.
"""

import contextlib
import functools
import socket
import sys
from pathlib import Path

import keras
import networks
import numpy as np
from cases import BACKEND

from keras_dualopt import DualOpt
from keras_dualopt.callbacks import AtomicBackup

STEPS = 6
LONG = 100
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
    "long": ("adam", networks.FINETUNE),
    "long on 4": ("adam", networks.FINETUNE),
    "mixed precision": ("adam", networks.FINETUNE),
    "half anchors": ("adam", {**networks.FINETUNE, "anchor_dtype": "bfloat16"}),
    "accumulation": (
        "adam",
        {**networks.FINETUNE, "gradient_accumulation_steps": 2},
    ),
}
# Keras' own optimizers cannot accumulate under MirroredStrategy: their
# `merge_call` stands inside of a `tf.cond`. There the step adds up itself.
ADDS_UP = BACKEND == "tensorflow"


def steps_of(row):
    return LONG if row.startswith("long") else STEPS


def devices_of(row):
    return 4 if row in ("long on 4", "half anchors") else 2


def start_of(row):
    """Return the pretrained weights."""
    start = networks.weights()
    if row != "half anchors":
        return start
    # As published in bfloat16: the lower half of every number is 0.
    return [
        (array.view("uint32") & 0xFFFF0000).view("float32") for array in start
    ]


def optimizer_of(row):
    base, arguments = ROWS[row]
    if row == "accumulation" and ADDS_UP:
        arguments = networks.FINETUNE
    return DualOpt(
        networks.RATE, base=base() if callable(base) else base, **arguments
    )


def compiled(row):
    """Return a model with other weights."""
    policy = "mixed_float16" if row == "mixed precision" else None
    return networks.compiled(
        optimizer_of(row), networks.weights(seed=99), dtype=policy
    )


def copies(variable):
    """Return the value of a variable on each device."""
    if BACKEND == "tensorflow":
        return [copy.numpy() for copy in variable.value.values]
    return [np.array(copy.data) for copy in variable.value.addressable_shards]


def fit(row, model):
    """Train; return the weights at which anchors were made again, if any."""
    if row == "accumulation" and ADDS_UP:
        add_up(model)
        return []
    if row != "anchored again":
        networks.fit(model, steps_of(row))
        return []
    networks.fit(model, STEPS // 2)
    weights = networks.arrays(model.trainable_variables)
    # Variables of their own: the old ones and their copies are gone.
    model.optimizer.drop_anchors()
    model.optimizer.anchor_at()
    networks.fit(model, STEPS - STEPS // 2, start=STEPS // 2)
    return weights


def add_up(model):
    """Take one step for every two batches, in a loop of one's own."""
    import tensorflow as tf

    strategy = model.distribute_strategy
    variables = model.trainable_variables
    x, y = networks.data()
    half = networks.BATCH // 2

    def rows(step, context):
        first = half * context.replica_id_in_sync_group
        first += networks.BATCH * (step % networks.BATCHES)
        return (
            tf.constant(x[first : first + half]),
            tf.constant(y[first : first + half]),
        )

    def replica_step(*batches):
        sums = None
        for inputs, targets in batches:
            with tf.GradientTape() as tape:
                square = tf.square(model(inputs) - targets)
                loss = tf.reduce_sum(square) / (2 * 2 * square.shape[0])
                loss /= square.shape[1]
            found = tape.gradient(loss, [v.value for v in variables])
            sums = (
                found
                if sums is None
                else tf.nest.map_structure(tf.add, sums, found)
            )
        model.optimizer.apply(sums, variables)

    @tf.function
    def step(batches):
        strategy.run(replica_step, args=batches)

    for first in range(0, STEPS, 2):
        step(
            tuple(
                strategy.experimental_distribute_values_from_function(
                    functools.partial(rows, number)
                )
                for number in (first, first + 1)
            )
        )


def refusals():
    """Return what is said where a step would be wrong (TensorFlow)."""
    import tensorflow as tf

    spec = tf.train.ClusterSpec(
        {"worker": [address()], "ps": [address()], "chief": [address()]}
    )
    servers = [
        tf.distribute.Server(spec, job_name=job, task_index=0)
        for job in ("worker", "ps")
    ]
    strategies = {
        "parameter servers": tf.distribute.ParameterServerStrategy(
            tf.distribute.cluster_resolver.SimpleClusterResolver(
                spec, task_type="chief", task_id=0, rpc_layer="grpc"
            )
        ),
        "accumulation": tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]),
    }
    found = {}
    for name, strategy in strategies.items():
        arguments = networks.FINETUNE
        if name == "accumulation":
            arguments = {**arguments, "gradient_accumulation_steps": 2}
        with strategy.scope():
            model = networks.network()
            optimizer = DualOpt(networks.RATE, **arguments)
            try:
                optimizer.build(model.trainable_variables)
            except ValueError as error:
                found[f"refused.{name}"] = np.array(str(error))
    del servers
    return found


def address():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return f"localhost:{one.getsockname()[1]}"


def train(row, pretrained):
    count = devices_of(row)
    scope = contextlib.nullcontext
    if BACKEND == "tensorflow":
        import tensorflow as tf

        names = [f"CPU:{number}" for number in range(count)]
        scope = tf.distribute.MirroredStrategy(names).scope
    else:
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(
                devices=keras.distribution.list_devices()[:count],
                auto_shard_dataset=False,
            )
        )
    with scope():
        model = compiled(row)
        model.optimizer.build(model.trainable_variables)
    if row == "half anchors":
        model.set_weights(start_of(row))
    else:
        model.load_weights(pretrained)
    stage = []
    if row == "resumed":
        path = Path(pretrained).with_name("run.weights.h5")
        networks.epochs(model, EPOCHS - 1, [AtomicBackup(path, keep=True)])
        with scope():
            model = compiled(row)
        networks.epochs(model, EPOCHS, [AtomicBackup(path)])
    else:
        stage = fit(row, model)
    found = {f"stage.{index}": value for index, value in enumerate(stage)}
    optimizer = model.optimizer
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    anchors = [a for a in optimizer.anchors if a is not None]
    for name, variables in (
        ("weight", model.trainable_variables),
        ("anchor", anchors),
        ("state", optimizer.variables),
    ):
        for index, variable in enumerate(variables):
            values = copies(variable)
            assert len(values) == count
            for value in values[1:]:
                np.testing.assert_array_equal(values[0], value)
            first = values[0]
            if name == "anchor" and row == "half anchors":
                assert first.dtype.name == "bfloat16"
                first = first.astype("float32")  # NumPy's files lack it.
            if first.dtype.name != "bfloat16":
                found[f"{name}.{index}"] = first
    return found


def main(file, pretrained, rows):
    rows = rows.split(",")
    if BACKEND == "tensorflow":
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * devices_of(rows[0])
        )
    results = {}
    for row in rows:
        for name, value in train(row, pretrained).items():
            results[f"{row}.{name}"] = value
    if BACKEND == "tensorflow" and "adam" in rows:
        results.update(refusals())
    np.savez(file, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
