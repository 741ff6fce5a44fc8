"""Variables that are not like the others: constrained, sparse, unused, float8.

Each against the reference, or against a twin that is pulled in NumPy.
"""

import keras
import networks
import numpy as np
import pytest
import reference
import twins
from cases import BACKEND

from keras_dualopt import DualOpt, bases

JIT = {"jit_compile": BACKEND == "jax"}
BASES = {
    "adam": ("adam", lambda: bases.Adam(learning_rate=0.05)),
    "Lamb": (None, lambda: keras.optimizers.Lamb(0.05)),
}


def optimizers(base, **arguments):
    """Return a DualOpt and the unwrapped base."""
    name, make = BASES[base]
    arguments = {"rollback": 0.3, "power": 1.7, **arguments}
    return DualOpt(0.05, base=name or make(), **arguments), make()


def test_constraints_run_after_the_pull_and_may_undo_it():
    """θ₀ breaks the constraint: every step ends on its border or inside."""
    model = networks.network(networks.weights())
    kernel = model.layers[1].kernel
    kernel.constraint = keras.constraints.MinMaxNorm(0.2, 0.9, rate=0.8)
    model.compile(networks.dual_opt(), "mse", **JIT)
    networks.fit(model, 5)

    weights = [
        reference.OlorAdam(theta, strength)
        for theta, strength in zip(
            networks.weights(), networks.strengths(), strict=True
        )
    ]
    for step in range(5):
        slopes = networks.gradient(step, [w.theta for w in weights])
        for weight, slope in zip(weights, slopes, strict=True):
            weight.step(slope, networks.RATE)
        theta = weights[2].theta
        norms = np.sqrt(np.sum(theta**2, axis=0, keepdims=True))
        wanted = 0.8 * np.clip(norms, 0.2, 0.9) + 0.2 * norms
        weights[2].overwrite(theta * wanted / (1e-7 + norms))
    networks.assert_close(model, [weight.theta for weight in weights])


def embedding_model(start):
    model = keras.Sequential(
        [
            keras.Input((3,), dtype="int32"),
            keras.layers.Embedding(9, 4),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )
    if start is not None:
        model.set_weights(start)
    return model


@pytest.mark.parametrize("base", BASES)
def test_every_row_of_a_sparse_embedding_is_pulled(base):
    """Also the rows that no gradient reached in this step."""
    dual, plain = optimizers(base)
    model = embedding_model(None)
    start = networks.arrays(model.weights)
    model.compile(dual, "mse", **JIT)
    other = embedding_model(start)
    other.compile(plain, "mse", **JIT)
    twin = twins.Twin(other, [0.3, 0.0, 0.0])
    random = np.random.default_rng(6)
    for step in range(4):
        # Step by step other rows; the last one is never used.
        x = (random.integers(0, 3, (5, 3)) + 2 * step).astype("int32") % 8
        y = random.normal(size=(5, 2)).astype("float32")
        model.train_on_batch(x, y)
        twin.train_on_batch(x, y)
    got = networks.arrays(model.weights)
    networks.assert_close(got, networks.arrays(other.weights), atol=1e-6)
    np.testing.assert_array_equal(got[0][8], start[0][8])
    assert all(np.abs(got[0][:8] - start[0][:8]).max(axis=1) > 1e-4)


def sparse_gradient(rows, values, shape):
    """Return a gradient as each backend's sparse embeddings give it."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.IndexedSlices(tf.constant(values), tf.constant(rows), shape)
    if BACKEND == "jax":
        from jax.experimental.sparse import BCOO

        return BCOO((values, rows[:, None]), shape=shape)
    import torch

    return torch.sparse_coo_tensor(
        torch.tensor(rows[None]),
        torch.tensor(values),
        shape,
        check_invariants=True,
    )


@pytest.mark.parametrize("rule", ["adam", "sgd"])
def test_sparse_gradient_is_the_dense_one(rule):
    """Rows that come twice are added up, the others are pulled too."""
    random = np.random.default_rng(6)
    start = random.normal(size=(6, 3)).astype("float32")
    rows = np.array([4, 1, 4])
    values = random.normal(size=(3, 3)).astype("float32")
    whole = np.zeros((6, 3))
    np.add.at(whole, rows, values)
    table = keras.Variable(start, name="table")
    optimizer = DualOpt(0.1, base=rule, rollback=0.3, depth={"table": 0.0})
    optimizer.build([table])
    optimizer.anchor_at()
    table.assign(start + 1.0)

    algorithm = {"adam": reference.OlorAdam, "sgd": reference.OlorSgd}[rule]
    weight = algorithm(start, 0.3 / 0.1)
    weight.overwrite(start + 1.0)
    for _ in range(3):
        gradient = sparse_gradient(rows, values, (6, 3))
        optimizer.apply([gradient], [table])
        weight.step(whole, 0.1)
    (value,) = networks.arrays([table])
    np.testing.assert_allclose(value, weight.theta, rtol=1e-5, atol=1e-6)


class Unused(keras.layers.Layer):
    """A layer with a weight that the loss does not depend on."""

    def build(self, shape):
        self.used = self.add_weight(shape=(shape[-1],), initializer="ones")
        self.unused = self.add_weight(shape=(2,), initializer="ones")

    def call(self, x):
        return x * self.used


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("mode", ["finetune", "scratch"])
def test_variables_without_gradient(mode):
    """TensorFlow and torch give none, and nothing is pulled.

    JAX gives zeros, which Keras hands on as a gradient like any other: in
    scratch mode such a weight decays there. In fine-tune mode it is at θ₀ and
    stays.
    """
    model = keras.Sequential(
        [keras.Input((3,)), Unused(), keras.layers.Dense(2)]
    )
    arguments = (
        {"rollback": 0.5}
        if mode == "finetune"
        else {
            "mode": "scratch",
            "weight_decay": 0.5,
            "weight_decay_min": 0.5,
        }
    )
    model.compile(DualOpt(0.1, **arguments), "mse", **JIT)
    networks.fit(model, 3)
    (unused,) = networks.arrays([model.layers[0].unused])
    decayed = mode == "scratch" and BACKEND == "jax"
    wanted = (1.0 - 0.5 * 0.1) ** 3 if decayed else 1.0
    np.testing.assert_allclose(unused, wanted, rtol=0 if wanted == 1 else 1e-6)
    (used,) = networks.arrays([model.layers[0].used])
    assert np.abs(used - 1.0).min() > 1e-3


@pytest.fixture(scope="module")
def float8_model():
    """Return a model with a float8 layer, and its weights."""
    model = networks.network(networks.weights())
    model.layers[1].quantize("float8")
    return model, networks.arrays(model.weights)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("accumulate", [None, 2])
def test_float8_scales_are_overwritten_and_not_pulled(
    base, accumulate, float8_model
):
    """Their gradient is their new value: neither a step nor a pull."""
    model, start = float8_model
    dual, plain = optimizers(base, gradient_accumulation_steps=accumulate)
    plain.gradient_accumulation_steps = accumulate
    x, y = networks.data(1)
    found = []
    for optimizer in (dual, plain):
        for weight, value in zip(model.weights, start, strict=True):
            weight.assign(value)
        model.compile(optimizer, "mse", **JIT)
        scales = [
            getattr(v, "overwrite_with_gradient", False)
            for v in model.trainable_variables
        ]
        depths = iter([0.0, 0.0, 0.5, 0.5, 1.0, 1.0, None, None])
        twin = twins.Twin(
            model,
            twins.ratios(dual, [None if s else next(depths) for s in scales]),
        )
        for step in range(4):
            if optimizer is dual:
                model.train_on_batch(x, y)
                continue
            model.train_on_batch(x, y)
            if not accumulate or step % accumulate == accumulate - 1:
                twin.pull()
        found.append(networks.arrays(model.weights))
    assert sum(scales) == 6
    networks.assert_close(*found, rtol=1e-4, atol=1e-5)
    held = [anchor is not None for anchor in dual.anchors]
    assert [h for h, scale in zip(held, scales, strict=True) if scale] == (
        [False] * 6
    )
    assert sum(held) == 6
