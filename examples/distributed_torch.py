"""Fine-tune in several processes with PyTorch's DistributedDataParallel.

    # All GPUs of this host; 4 processes on a CPU the same way.
    KERAS_BACKEND=torch torchrun --nproc-per-node 4 \
        examples/distributed_torch.py

    # Two hosts, each with its number.
    KERAS_BACKEND=torch torchrun --nnodes 2 --node-rank 0 --nproc-per-node 4 \
        --master-addr 10.0.0.1 --master-port 1234 \
        examples/distributed_torch.py

A loop of one's own: Keras' `fit` would train each process for itself. Each
process holds all weights and θ₀, so the pull needs no communication. The
checkpoint is the same file whatever the number of processes: stop the run,
start it again with another `--nproc-per-node`, and it goes on.
"""

import argparse
import os
import zlib
from pathlib import Path

import keras
import torch
from distributed_task import (
    BATCHES,
    data,
    make_loss,
    make_model,
    make_optimizer,
)
from torch import distributed
from torch.nn.parallel import DistributedDataParallel


def save(model, path):
    """Write the weights and the optimizer's state, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"part_{path.name}")
    model.save_weights(part, overwrite=True)
    os.replace(part, path)


def check_anchors(optimizer):
    """Raise if the processes do not pull to the same θ₀."""
    sums = [
        zlib.crc32(keras.ops.convert_to_numpy(anchor).tobytes())
        for anchor in optimizer.anchors
        if anchor is not None
    ]
    found = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, sums)
    if any(other != sums for other in found):
        raise RuntimeError(
            "The processes hold different anchors. Wrap the model in "
            "DistributedDataParallel before the first step and before "
            "`anchor_at`: wrapping sends the weights of process 0 to all."
        )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--backup", default="out/torch.weights.h5")
    options = parser.parse_args(arguments)
    path = Path(options.backup)

    on_gpu = torch.cuda.is_available()
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))

    model = make_model()
    optimizer = make_optimizer()
    # Not for `fit`: so that files of the model hold the optimizer, too.
    model.compile(optimizer)
    optimizer.build(model.trainable_variables)
    if path.exists():
        model.load_weights(path)
    # Now every process has the weights of process 0: θ₀, in the first step.
    parallel = DistributedDataParallel(model)

    loss_of = make_loss()
    tokens, labels = (
        keras.ops.convert_to_tensor(array) for array in data(rank, processes)
    )
    variables = model.trainable_variables
    for epoch in range(int(optimizer.iterations) // BATCHES, options.epochs):
        for step in range(BATCHES):
            model.zero_grad()
            loss = loss_of(labels[step], parallel(tokens[step]))
            loss.backward()  # Averages the gradients over the processes.
            optimizer.apply([v.value.grad for v in variables], variables)
        if epoch == 0:
            check_anchors(optimizer)
        if rank == 0:
            save(model, path)
            print(
                f"Epoch {epoch + 1}/{options.epochs}: {loss.item():.4f}",
                flush=True,
            )
    distributed.barrier()  # Nobody leaves while another still receives.
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
