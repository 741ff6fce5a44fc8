"""LoRA: its product starts at 0, so pulling b to 0 is the rollback.

The frozen kernels need no θ₀, a's random start is no anchor, and nothing is
kept for b.
"""

import keras
import networks
import numpy as np
import pytest
import reference
import twins
from networks import dual_opt

from keras_dualopt import bases

PRETRAINED = networks.weights()
# Layers with LoRA, (rank, alpha); the others train as usual.
LORA = {0: (2, 3.0), 2: (1, 1.0)}
STEPS = 6


def enable(model, loaded=False):
    """Enable LoRA; a trained adapter has a b that is not 0."""
    random = np.random.default_rng(12)
    for index, (rank, alpha) in LORA.items():
        layer = model.layers[index]
        layer.enable_lora(rank, lora_alpha=alpha)
        for factor in (layer.lora_kernel_a, layer.lora_kernel_b):
            value = random.normal(0.0, 0.5, factor.shape)
            if factor is layer.lora_kernel_b and not loaded:
                value = np.zeros(factor.shape)
            factor.assign(value)
    return model


def compile_after(loaded):
    model = enable(networks.network(PRETRAINED), loaded)
    networks.compile(model, dual_opt())
    return model


def compile_before(loaded):
    return enable(networks.compiled(), loaded)


def owners(model):
    """Return (layer, name) of every trainable variable."""
    return [
        (index, variable.name)
        for variable in model.trainable_variables
        for index, layer in enumerate(model.layers)
        if any(variable is own for own in layer.weights)
    ]


def gradient(names):
    """Return the gradient of factors and biases, from that of the kernels."""

    def of(step, thetas):
        now = dict(zip(names, thetas, strict=True))
        whole = []
        for index in range(networks.LAYERS):
            kernel = now.get((index, "kernel"), PRETRAINED[2 * index])
            if index in LORA:
                rank, alpha = LORA[index]
                product = (
                    now[index, "lora_kernel_a"] @ now[index, "lora_kernel_b"]
                )
                kernel = kernel + alpha / rank * product
            whole += [kernel, now[index, "bias"]]
        slopes = networks.gradient(step, whole)
        found = {}
        for index in range(networks.LAYERS):
            slope, found[index, "bias"] = slopes[2 * index : 2 * index + 2]
            found[index, "kernel"] = slope
            if index in LORA:
                rank, alpha = LORA[index]
                a, b = (now[index, f"lora_kernel_{factor}"] for factor in "ab")
                found[index, "lora_kernel_a"] = alpha / rank * slope @ b.T
                found[index, "lora_kernel_b"] = alpha / rank * a.T @ slope
        return [found[name] for name in names]

    return of


def expected(model):
    """Return the weights that the reference arrives at from the present."""
    names = owners(model)
    weights = []
    for (index, name), theta in zip(
        names, networks.arrays(model.trainable_variables), strict=True
    ):
        pulled = networks.strengths()[2 * index]
        if name == "lora_kernel_a":
            pulled = 0.0
        anchor = 0.0 if name == "lora_kernel_b" else None
        weights.append(reference.OlorAdam(theta, pulled, anchor=anchor))
    return reference.train(
        weights, gradient(names), lambda step: networks.RATE, STEPS
    )[-1]


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("order", [compile_before, compile_after])
def test_lora_kernel_b_is_pulled_to_zero_and_a_is_not(order, loaded):
    model = order(loaded)
    wanted = expected(model)
    networks.fit(model, STEPS)
    networks.assert_close(model, wanted)
    for (index, name), anchor in zip(
        owners(model), model.optimizer.anchors, strict=True
    ):
        has_anchor = index < 3 and not name.startswith("lora")
        assert (anchor is not None) == has_anchor, (index, name)


def test_lora_changes_no_depth():
    plain = networks.compiled()
    plain.optimizer.build(plain.trainable_variables)
    lora = compile_after(False)
    lora.optimizer.build(lora.trainable_variables)
    depths = [
        {
            (place.layer.rpartition("/")[2], place.relative)
            for place in model.optimizer.rows
        }
        for model in (plain, lora)
    ]
    assert depths[0] == depths[1]
    assert len(depths[0]) == networks.LAYERS


def test_lora_enabled_after_training_is_an_error_with_the_way_out():
    model = networks.compiled()
    networks.fit(model, 1)
    trained = enable(model).weights
    before = networks.arrays(trained)
    # Keras asks for a new `compile`; here with the optimizer of before.
    networks.compile(model, model.optimizer)
    with pytest.raises(ValueError, match=r"LoRA.*new.anchor_at\(old\)"):
        networks.fit(model, 1)
    networks.assert_same(networks.arrays(trained), before)


@pytest.fixture(scope="module")
def quantized():
    """Return a model with two int8 layers that have LoRA, not compiled."""
    model = networks.network(PRETRAINED)
    random = np.random.default_rng(12)
    for layer in model.layers[:2]:
        layer.quantize("int8")
        layer.enable_lora(2)
        layer.lora_kernel_a.assign(
            random.normal(0.0, 0.5, layer.lora_kernel_a.shape)
        )
    return model, networks.arrays(model.weights)


def compiled_anew(quantized, optimizer):
    model, start = quantized
    for weight, value in zip(model.weights, start, strict=True):
        weight.assign(value)
    networks.compile(model, optimizer)
    return model


@pytest.mark.parametrize("base", ["adam", "Lion"])
def test_lora_over_int8_is_pulled_to_zero(base, quantized):
    """The int8 kernels are no floats and not trained: nothing anchors them."""
    if base == "adam":
        wrapped, plain = "adam", bases.Adam(learning_rate=networks.RATE)
    else:
        wrapped, plain = (
            keras.optimizers.Lion(networks.RATE) for _ in range(2)
        )
    x, y = networks.data(1)
    optimizer = dual_opt(base=wrapped)
    model = compiled_anew(quantized, optimizer)
    for _ in range(4):
        model.train_on_batch(x, y)
    got = networks.arrays(model.weights)
    names = owners(model)
    assert [anchor is not None for anchor in optimizer.anchors] == [
        index < 3 and not name.startswith("lora") for index, name in names
    ]

    model = compiled_anew(quantized, plain)
    depths, anchors = [], []
    for value, (index, name) in zip(
        networks.arrays(model.trainable_variables), names, strict=True
    ):
        free = index == 3 or name == "lora_kernel_a"
        depths.append(None if free else index / 2)
        anchors.append(0.0 * value if name == "lora_kernel_b" else value)
    twin = twins.Twin(model, twins.ratios(optimizer, depths), anchors)
    for _ in range(4):
        twin.train_on_batch(x, y)
    networks.assert_close(got, networks.arrays(model.weights), atol=1e-6)
    b = networks.arrays(model.layers[i].lora_kernel_b for i in range(2))
    assert all(np.abs(value).max() > 0.01 for value in b)


def test_lora_of_an_embedding_is_pulled_to_zero():
    model = keras.Sequential(
        [
            keras.Input((3,), dtype="int32"),
            keras.layers.Embedding(7, 4),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )
    model.layers[0].enable_lora(2)
    model.layers[0].lora_embeddings_b.assign(np.ones((2, 4)))
    # ρ = 1: b is 0 after every step, whatever its gradient.
    optimizer = dual_opt(rollback=1.0)
    networks.compile(model, optimizer)
    a = networks.arrays([model.layers[0].lora_embeddings_a])[0]
    x = np.arange(12).reshape(4, 3) % 7
    model.fit(x, np.ones((4, 2)), verbose=0)
    b = networks.arrays([model.layers[0].lora_embeddings_b])[0]
    np.testing.assert_array_equal(b, np.zeros((2, 4)))
    moved = networks.arrays([model.layers[0].lora_embeddings_a])[0]
    assert np.abs(moved - a).max() > 0.01
