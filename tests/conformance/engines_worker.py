"""Runs the JAX example in one process with 8 devices, time after time.

Called as `engines_worker.py FOLDER`; writes what the models held at the end,
how it lay on the devices, and what the compiled update says.
"""

import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import keras
import numpy as np
import scripts

from keras_dualopt import interpolate, review
from keras_dualopt.callbacks import Drift

sys.path.insert(0, str(scripts.ROOT / "examples"))

import distributed_jax
import distributed_task

# On a machine with fewer cores than devices, collectives of two steps in
# flight have waited for each other's threads. Said before the devices are made.
jax.config.update("jax_cpu_enable_async_dispatch", False)

EPOCHS = 10
# What runs after what: (how, on how many devices, until which epoch).
CHAINS = {
    "data": [("data", 8, EPOCHS)],
    "tensor": [("tensor", 8, EPOCHS)],
    "full": [("full", 8, EPOCHS)],
    "data on 8, then 4": [("data", 8, 5), ("data", 4, EPOCHS)],
    "tensor on 8, then 1": [("tensor", 8, 5), ("data", 1, EPOCHS)],
    "one, then full on 8": [("data", 1, 5), ("full", 8, EPOCHS)],
}
COLLECTIVES = re.compile(
    r"\b(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)\b"
)


def collectives(function, *arguments):
    """Return the collectives of a function's compiled program."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return sorted(set(COLLECTIVES.findall(text)))


def programs(model):
    """Return the collectives of the update, and of the gradients before."""
    optimizer = model.optimizer
    weights = [v.value for v in model.trainable_variables]
    fixed = [v.value for v in model.non_trainable_variables]
    state = [v.value for v in optimizer.variables]
    tokens, labels = (array[0] for array in distributed_task.data())
    layout = keras.distribution.distribution().get_data_layout(tokens.shape)
    tokens = keras.distribution.distribute_tensor(jnp.asarray(tokens), layout)
    loss_of = distributed_task.make_loss()

    def loss(weights, tokens):
        logits, _ = model.stateless_call(weights, fixed, tokens)
        return loss_of(labels, logits)

    def update(weights, state, gradients):
        return optimizer.stateless_apply(state, gradients, weights)

    return {
        "update": collectives(update, weights, state, weights),
        "gradients": collectives(jax.grad(loss), weights, tokens),
    }


def share(array):
    """Return the part of an array that one device holds."""
    return array.addressable_shards[0].data.size / array.size


def layouts(model):
    """Return how each weight and its θ₀ lie on the devices."""
    return {
        weight.path: {
            "share": share(weight.value),
            "same": anchor.value.sharding.is_equivalent_to(
                weight.value.sharding, weight.value.ndim
            ),
        }
        for weight, anchor in zip(
            model.trainable_variables, model.optimizer.anchors, strict=True
        )
        if anchor is not None
    }


def arrays(name, model):
    optimizer = model.optimizer
    anchors = [a for a in optimizer.anchors if a is not None]
    return {
        f"{name}.{kind}.{index}": np.array(variable.value)
        for kind, variables in (
            ("weight", model.trainable_variables),
            ("anchor", anchors),
        )
        for index, variable in enumerate(variables)
    }


def walk(name, model):
    """Go back to θ₀ and halfway; measure drift in two more epochs."""
    before = layouts(model)
    found = {}
    for step, _ in enumerate(review(model, steps=2)):
        found.update(arrays(f"{name}, review step {step}", model))
    interpolate(model, 0.25)
    found.update(arrays(f"{name}, interpolated", model))
    assert layouts(model) == before
    drift = Drift()
    tokens, labels = map(np.concatenate, distributed_task.data())
    history = model.fit(
        tokens,
        labels,
        batch_size=distributed_task.BATCH,
        shuffle=False,
        verbose=0,
        callbacks=[drift],
    )
    for key in ("drift", "drift_shallow", "drift_deep", "pull_share"):
        found[f"{name}, {key}"] = np.array(history.history[key])
    return found


def main(folder):
    found, facts = {}, {}
    for name, chain in CHAINS.items():
        path = Path(folder) / f"{name}.weights.h5"
        for parallel, devices, epochs in chain:
            words = f"--parallel {parallel} --devices {devices}".split()
            words += ["--epochs", str(epochs), "--backup", str(path)]
            model = distributed_jax.main(words)
        found.update(arrays(name, model))
        facts[name] = layouts(model)
        if len(chain) == 1:
            facts[f"{name}, programs"] = programs(model)
        if name == "tensor":
            found.update(walk(name, model))
    np.savez(Path(folder) / "found.npz", **found)
    (Path(folder) / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
