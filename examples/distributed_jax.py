"""Fine-tune on many devices with JAX: data, tensor or fully sharded parallel.

    # All devices of this host.
    KERAS_BACKEND=jax python examples/distributed_jax.py --parallel tensor

    # A laptop that plays a host with 8 devices.
    XLA_FLAGS=--xla_force_host_platform_device_count=8 KERAS_BACKEND=jax \
        python examples/distributed_jax.py --parallel full

    # Two hosts, each with its number; data parallel.
    JAX_HOST=0 KERAS_BACKEND=jax python examples/distributed_jax.py \
        --coordinator 10.0.0.1:1234 --hosts 2

θ₀ lies on the devices exactly as its weight does, so the pull needs no
communication. The backup is the same file whatever the devices: stop the run,
start it again with another `--devices` or `--parallel`, and it goes on.
"""

import argparse
import os
from pathlib import Path

import keras
import numpy as np
from distributed_task import data, make_loss, make_model, make_optimizer

from keras_dualopt.callbacks import AtomicBackup


def distribution_of(parallel, devices):
    """Return how weights and data lie on the devices."""
    if parallel == "data":  # Every device has all weights.
        return keras.distribution.DataParallel(
            devices=devices, auto_shard_dataset=False
        )
    count = len(devices)
    # Rows of the batch × parts of a weight. A pair shares what a row needs.
    shape = (count, 1)
    if parallel == "tensor" and count > 1:
        shape = (2, count // 2)
    mesh = keras.distribution.DeviceMesh(shape, ("batch", "model"), devices)
    layout = keras.distribution.LayoutMap(mesh)
    if parallel == "tensor":  # Megatron's: columns, then rows.
        layout[".*(query|key|value)/kernel"] = (None, "model", None)
        layout[".*attention_output/kernel"] = ("model", None, None)
        layout[".*up_.*/kernel"] = (None, "model")
        layout[".*up_.*/bias"] = ("model",)
        layout[".*down_.*/kernel"] = ("model", None)
    else:  # As FSDP and ZeRO: the devices share out the weights as the batch.
        layout[".*(query|key|value)/kernel"] = ("batch", None, None)
        layout[".*attention_output/kernel"] = (None, None, "batch")
        layout[".*(up|down)_.*/kernel"] = ("batch", None)
        layout[".*embeddings"] = ("batch", None)
    return keras.distribution.ModelParallel(
        layout_map=layout, batch_dim_name="batch", auto_shard_dataset=False
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--parallel", choices=("data", "tensor", "full"), default="data"
    )
    parser.add_argument("--devices", type=int, help="default: all")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--backup", default="out/jax.weights.h5")
    parser.add_argument("--coordinator", help="address:port of host 0")
    parser.add_argument("--hosts", type=int, default=1)
    options = parser.parse_args(arguments)
    if options.hosts > 1 and options.parallel != "data":
        parser.error("Keras writes no file of weights split between hosts")

    host = int(os.environ.get("JAX_HOST", "0"))
    backup = Path(options.backup)
    if options.hosts > 1:
        keras.distribution.initialize(options.coordinator, options.hosts, host)
        # Every host takes part in the writing, so each has a file of its own.
        backup = backup.with_name(f"host{host}_{backup.name}")
    devices = keras.distribution.list_devices()[: options.devices]
    keras.distribution.set_distribution(
        distribution_of(options.parallel, devices)
    )

    model = make_model()
    model.compile(optimizer=make_optimizer(), loss=make_loss())
    tokens, labels = data(host, options.hosts)
    model.fit(
        np.concatenate(tokens),
        np.concatenate(labels),
        batch_size=tokens.shape[1],
        epochs=options.epochs,
        shuffle=False,
        verbose=2,
        callbacks=[AtomicBackup(backup, keep=True)],
    )
    return model


if __name__ == "__main__":
    main()
