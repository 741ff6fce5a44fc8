"""Trains under PyTorch's DistributedDataParallel, in two processes.

Called as `ddp_worker.py FOLDER`; each process writes what it ended with.
"""

import functools
import sys
from pathlib import Path

import keras
import networks
import numpy as np
import torch

from keras_dualopt import DualOpt

STEPS = 100
PROCESSES = 2
MODES = {"finetune": networks.FINETUNE, "scratch": networks.SCRATCH}


def train(mode, part):
    """Train on one half of every batch; the gradients are averaged."""
    # The weights of the first process are sent to the others.
    model = networks.network(networks.weights(seed=3 if part == 0 else 99))
    optimizer = DualOpt(networks.RATE, **MODES[mode])
    optimizer.build(model.trainable_variables)
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    loss_of = keras.losses.MeanSquaredError()
    x, y = networks.data()
    half = networks.BATCH // PROCESSES
    for step in range(STEPS):
        first = networks.BATCH * (step % networks.BATCHES) + half * part
        rows = slice(first, first + half)
        loss = loss_of(y[rows], parallel(torch.as_tensor(x[rows])))
        model.zero_grad()
        loss.backward()
        variables = model.trainable_variables
        optimizer.apply([v.value.grad for v in variables], variables)
    anchors = [a for a in optimizer.anchors if a is not None]
    return {
        f"{mode}.{name}.{index}": value
        for name, variables in (
            ("weight", model.trainable_variables),
            ("anchor", anchors),
        )
        for index, value in enumerate(networks.arrays(variables))
    }


def fully_shard(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (PROCESSES,))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # What is wrong without a word: Keras computes with whole tensors of its
    # own, and no gradient reaches the sharded parameters.
    keras.ops.sum(model(networks.data()[0])).backward()
    assert all(p.grad is None for p in model.parameters())


def fully_sharded(model, **arguments):
    from torch.distributed.fsdp import FullyShardedDataParallel

    device = torch.device("cpu")
    FullyShardedDataParallel(model, device_id=device, **arguments)


SHARDED = {
    "FSDP2": fully_shard,
    "FSDP1": fully_sharded,
    "FSDP1, original parameters": functools.partial(
        fully_sharded, use_orig_params=True
    ),
}


def refusals():
    """Return what is said of a model that was sharded in each way."""
    for name, shard in SHARDED.items():
        model = networks.network()
        shard(model)
        optimizer = networks.dual_opt()
        try:
            optimizer.build(model.trainable_variables)
        except ValueError as error:
            yield f"refused.{name}", np.array(str(error))


def process(part, folder):
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=part,
        world_size=PROCESSES,
    )
    results = {}
    for mode in MODES:
        results.update(train(mode, part))
    results.update(refusals())
    np.savez(Path(folder) / f"{part}.npz", **results)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(process, args=(sys.argv[1],), nprocs=PROCESSES)
