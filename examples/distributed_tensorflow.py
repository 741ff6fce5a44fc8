"""Fine-tune on many devices with TensorFlow, on one host or on several.

    # All devices of this host (MirroredStrategy).
    KERAS_BACKEND=tensorflow python examples/distributed_tensorflow.py

    # A laptop that plays a host with 4 devices.
    KERAS_BACKEND=tensorflow python examples/distributed_tensorflow.py \
        --logical-devices 4

    # Two hosts (MultiWorkerMirroredStrategy), each with its own index.
    TF_CONFIG='{"cluster": {"worker": ["10.0.0.1:1234", "10.0.0.2:1234"]},
                "task": {"type": "worker", "index": 0}}' \
        KERAS_BACKEND=tensorflow python examples/distributed_tensorflow.py

On one host Keras' `fit` does the same and takes `AtomicBackup`. It does not
run on several (Keras 3.15), so this is a loop of one's own, which runs on
both. Every replica holds all weights and θ₀, so the pull needs no
communication. The checkpoint is the same file whatever the devices: stop the
run, start it again with others, and it goes on.
"""

import argparse
import os
from pathlib import Path

import keras
import tensorflow as tf
from distributed_task import (
    BATCH,
    BATCHES,
    data,
    make_loss,
    make_model,
    make_optimizer,
)


def strategy_of(logical_devices):
    """Return the strategy: the hosts of TF_CONFIG, or this one's devices."""
    if "TF_CONFIG" in os.environ:
        return tf.distribute.MultiWorkerMirroredStrategy()
    if logical_devices:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * logical_devices,
        )
        names = [f"CPU:{number}" for number in range(logical_devices)]
        return tf.distribute.MirroredStrategy(names)
    return tf.distribute.MirroredStrategy()


def save(model, path):
    """Write the weights and the optimizer's state, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"part_{path.name}")
    model.save_weights(part, overwrite=True)
    os.replace(part, path)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logical-devices", type=int)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--backup", default="out/tensorflow.weights.h5")
    options = parser.parse_args(arguments)
    path = Path(options.backup)

    strategy = strategy_of(options.logical_devices)
    resolver = strategy.cluster_resolver
    worker = resolver.task_id if resolver else 0
    replicas = strategy.num_replicas_in_sync
    with strategy.scope():
        model = make_model()
        optimizer = make_optimizer()
        # Not for `fit`: so that files of the model hold the optimizer, too.
        model.compile(optimizer)
        optimizer.build(model.trainable_variables)
    if path.exists():
        model.load_weights(path)

    loss_of = make_loss(reduction="sum")
    variables = model.trainable_variables

    def replica_step(tokens, labels):
        with tf.GradientTape() as tape:
            # The replicas' gradients are added up.
            loss = loss_of(labels, model(tokens, training=True)) / BATCH
        gradients = tape.gradient(loss, [v.value for v in variables])
        optimizer.apply(gradients, variables)
        return loss

    @tf.function
    def train_step(batch):
        losses = strategy.run(replica_step, batch)
        return strategy.reduce("SUM", losses, axis=None)

    parts = [data(replica, replicas) for replica in range(replicas)]

    def rows(step):
        """Return the rows of one step, each replica's on its device."""

        def of_replica(context):
            part = parts[context.replica_id_in_sync_group]
            return tuple(tf.constant(array[step]) for array in part)

        return strategy.experimental_distribute_values_from_function(of_replica)

    done = int(keras.ops.convert_to_numpy(optimizer.iterations)) // BATCHES
    for epoch in range(done, options.epochs):
        for step in range(BATCHES):
            loss = train_step(rows(step))
        if worker == 0:
            save(model, path)
            print(
                f"Epoch {epoch + 1}/{options.epochs}: {float(loss):.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
