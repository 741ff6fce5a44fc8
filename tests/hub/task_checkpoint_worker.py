"""Writes the KerasHub checkpoints in `tests/data`, each with one backend.

Run once with each `KERAS_BACKEND` when the format of the state changes, with
`tests` and `tests/hub` on the path.
"""

import zlib

import keras
import numpy as np
from cases import BACKEND
from conformance.checkpoint_worker import DATA, pack
from hub import zoo

from keras_dualopt import DualOpt

# Tasks of which torch lists the weights in another order than JAX and
# TensorFlow do.
TASKS = ("segformer", "whisper")


def file_of(task, backend):
    return DATA / f"{task}-{backend}.weights.h5.gz"


def compiled(task):
    with zoo.zero_weights():
        model = zoo.MODELS[task]()
    # So slow that the weights stay where they are: each must find itself in
    # its anchor again, and in its averages.
    optimizer = DualOpt(1e-30, depth={".*": 0.3})
    # A task's own `compile` wants a loss that fits; a checkpoint does not.
    keras.Model.compile(model, optimizer, "mse")
    optimizer.build(model.trainable_variables)
    return model


def fill(model):
    """Give every weight other values, and its gradient the same ones."""
    gradients = []
    for variable in model.trainable_variables:
        seed = zlib.crc32(str((variable.name, variable.shape)).encode())
        random = np.random.default_rng([seed, len(gradients)])
        value = random.integers(1, 9, variable.shape).astype("float32")
        variable.assign(value)
        gradients.append(keras.ops.convert_to_tensor(value))
    model.optimizer.apply(gradients, model.trainable_variables)


def main():
    for task in TASKS:
        model = compiled(task)
        fill(model)
        pack(model, file_of(task, BACKEND))


if __name__ == "__main__":
    main()
