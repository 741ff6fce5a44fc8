"""Stops after every step, and goes on from each stop in another process.

The test writes (`write`); this file, run as `resume_worker.py FOLDER`, reads.
"""

import sys
from pathlib import Path

import keras
import networks
import numpy as np
from cases import BACKEND

from keras_dualopt import DualOpt

STEPS = 7
schedules = keras.optimizers.schedules


def lowered():
    """Its learning rate is lowered, its reference learning rate is not."""
    return networks.dual_opt()


def accumulating():
    return networks.dual_opt(
        base="sgd",
        gradient_accumulation_steps=3,
        use_ema=True,
        ema_momentum=0.8,
        ema_overwrite_frequency=2,
    )


def wrapped():
    """Nadam keeps a product that belongs to no weight."""
    return networks.dual_opt(
        schedules.CosineDecay(0.0, 9, warmup_target=0.03, warmup_steps=3),
        base=keras.optimizers.Nadam(beta_1=0.8),
        clipnorm=0.3,
    )


def muon():
    """Muon keeps other state for a kernel than for a bias."""
    return DualOpt(
        networks.RATE,
        base=keras.optimizers.Muon(weight_decay=0.0, adam_weight_decay=0.0),
        **networks.SCRATCH,
    )


CASES = {
    "lowered learning rate": lowered,
    "accumulation and averages": accumulating,
    "wrapped Nadam, schedule": wrapped,
    "wrapped Muon, scratch": muon,
}

# Every step's file is read into one model; the other ways, at one step each.
WAYS = {
    "weights file": range(1, STEPS),
    "whole model": (2,),
    "weights file, optimizer not built": (2,),
    "own variables": (4,),
    "own variables, optimizer not built": (4,),
}
# Every way with two cases, the first two ways with all.
ROWS = [
    (case, way)
    for number, case in enumerate(CASES)
    for way in list(WAYS)[: None if number in (1, 2) else 2]
]


def network(seed):
    """Return a network with state that is not trained.

    No Dropout: Keras writes the state of its seeds to no file.
    """
    model = keras.Sequential(
        [
            keras.Input((networks.WIDTHS[0],)),
            keras.layers.Dense(5, activation="tanh"),
            keras.layers.BatchNormalization(momentum=0.7),
            keras.layers.Dense(4, activation="tanh"),
            keras.layers.Dense(networks.WIDTHS[-1]),
        ]
    )
    random = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.dtype == "float32":
            weight.assign(random.uniform(0.1, 0.9, weight.shape))
    return model


def compiled(case, seed=5):
    model = network(seed)
    model.compile(CASES[case](), "mse", jit_compile=BACKEND == "jax")
    return model


def state(model):
    """Return everything that training changes, and what it is meant at."""
    optimizer = model.optimizer
    found = networks.arrays([*model.variables, *optimizer.variables])
    found += [a for a in networks.anchors(optimizer) if a is not None]
    return [*found, np.float64(optimizer.reference_learning_rate or 0.0)]


class Save(keras.callbacks.Callback):
    """Writes a checkpoint of every kind after every step."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder
        self.step = 0

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        model, name = self.model, str(self.folder / str(self.step))
        model.save_weights(f"{name}.weights.h5")
        if self.step in WAYS["whole model"]:
            model.save(f"{name}.keras")
        if self.step in WAYS["own variables"]:
            store = {}
            model.optimizer.save_own_variables(store)
            np.savez(f"{name}.own.npz", **store)


def write(case, folder):
    """Train without a stop, saving at every step; return the last state."""
    folder.mkdir()
    model = compiled(case)
    if case == "lowered learning rate":
        model.optimizer.learning_rate = 0.011
    networks.fit(model, STEPS, callbacks=[Save(folder)])
    return state(model)


def resume(case, way, step, folder, model):
    """Return the model of a stop; `model` may be used again."""
    name = str(folder / str(step))
    if way == "whole model":
        return keras.saving.load_model(f"{name}.keras")
    if way == "weights file":
        model.optimizer.build(model.trainable_variables)
        model.load_weights(f"{name}.weights.h5")
        return model
    if way == "weights file, optimizer not built":
        model = compiled(case, seed=6)
        model.load_weights(f"{name}.weights.h5")
        return model
    if way == "own variables, optimizer not built":
        model = compiled(case, seed=6)
    # The weights come without the optimizer's state, which follows alone.
    optimizer, model.optimizer = model.optimizer, None
    model.load_weights(f"{name}.weights.h5")
    model.optimizer = optimizer
    with np.load(f"{name}.own.npz") as store:
        optimizer.load_own_variables(dict(store))
    return model


def main(folder):
    results = {}
    models = {case: compiled(case, seed=6) for case in CASES}
    for case, way in ROWS:
        at = Path(folder) / str([*CASES].index(case))
        for step in WAYS[way]:
            resumed = resume(case, way, step, at, models[case])
            networks.fit(resumed, STEPS - step, start=step)
            for index, value in enumerate(state(resumed)):
                results[f"{case}.{way}.{step}.{index}"] = value
    np.savez(Path(folder) / "resumed.npz", **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
