"""The tools around the optimizer, on a task of KerasHub."""

import warnings

import keras
import keras_hub
import networks
import numpy as np
import pytest
from keras_hub import models as hub

from keras_dualopt import (
    DualOpt,
    interpolate,
    restore_optimizer,
    review,
    save_without_anchors,
)
from keras_dualopt.callbacks import Drift, Retention

X = np.random.default_rng(0).random((8, 8, 8, 3)).astype("float32")
Y = np.arange(8) % 2


def task(preprocessor=None):
    model = hub.ViTImageClassifier(
        backbone=hub.ViTBackbone(
            image_shape=(8, 8, 3),
            patch_size=4,
            num_layers=2,
            num_heads=2,
            hidden_dim=4,
            mlp_dim=8,
        ),
        num_classes=2,
        preprocessor=preprocessor,
    )
    return compiled(model)


def compiled(model):
    model.compile(
        DualOpt(1e-2, mode="finetune", rollback=0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def fit(model, epochs=2, callbacks=()):
    model.fit(
        X,
        Y,
        batch_size=4,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=[*callbacks],
    )


def load(path):
    with warnings.catch_warnings():
        # What these tests are about: a task's optimizer is lost in loading.
        warnings.filterwarnings("ignore", message=r"`compile\(\)` was not")
        warnings.filterwarnings("ignore", message="Skipping variable loading")
        return keras.saving.load_model(path)


@pytest.fixture(scope="module")
def pretrained():
    keras.utils.set_random_seed(1)
    model = task()
    return model, networks.arrays(model.weights)


@pytest.fixture(scope="module")
def tuned(pretrained):
    model, _ = pretrained
    drift, retention = Drift(every=1), Retention((X, Y))
    fit(model, callbacks=[drift, retention])
    return model, drift, retention


def test_a_reloaded_task_goes_on_bit_for_bit(tuned, pretrained, tmp_path):
    model, _, _ = tuned
    path = tmp_path / "task.keras"
    model.save(path)
    loaded = load(path)
    # `load_model` compiles no task, but its constructor does, in its own way.
    assert not isinstance(loaded.optimizer, DualOpt)
    restore_optimizer(compiled(loaded), path)
    fit(loaded, epochs=1)
    wanted = networks.arrays(loaded.weights)

    weights = networks.arrays(model.weights)
    fit(model, epochs=1)
    networks.assert_same(networks.arrays(model.weights), wanted)
    model.set_weights(weights)


def test_the_backbone_is_watched_and_the_head_is_not(tuned):
    _, drift, retention = tuned
    layers = [name.rpartition("/")[2] for name in drift.record.layers]
    assert "predictions" not in layers
    assert len(layers) > 10
    assert (np.diff(drift.record.relative) >= 0.0).all()
    assert list(drift.record.steps) == [1, 2, 3, 4]
    assert (drift.record.totals["drift"] > 0.0).all()
    assert len(retention.epochs) == 2
    assert {"kept_loss", "kept_accuracy"} <= set(retention.epochs[0])


def test_the_way_back_ends_at_the_pretrained_backbone(tuned, pretrained):
    model, _, _ = tuned
    _, before = pretrained
    weights = networks.arrays(model.weights)
    for alpha in review(model, 2):
        if alpha == 0.0:
            ends = networks.arrays(model.weights)
    networks.assert_same(networks.arrays(model.weights), weights)
    copy = interpolate(model, 0.0, copy=True)
    networks.assert_same(networks.arrays(copy.weights), ends)
    body = {id(weight) for weight in model.backbone.weights}
    for weight, end, start, now in zip(
        model.weights, ends, before, weights, strict=True
    ):
        wanted = start if id(weight) in body else now
        np.testing.assert_array_equal(end, wanted)


def test_a_copy_of_a_task_is_a_task_with_its_preprocessor():
    converter = hub.ViTImageClassifierPreprocessor(
        image_converter=keras_hub.layers.ViTImageConverter(
            image_size=(8, 8), scale=2.0
        )
    )
    model = task(preprocessor=converter)
    fit(model, epochs=1)
    copy = interpolate(model, 1.0, copy=True)
    assert type(copy) is hub.ViTImageClassifier
    assert type(copy.preprocessor) is hub.ViTImageClassifierPreprocessor
    assert not copy.compiled
    networks.assert_same(
        networks.arrays(copy.weights), networks.arrays(model.weights)
    )
    np.testing.assert_allclose(
        compiled(copy).predict(X, verbose=0),
        model.predict(X, verbose=0),
        atol=1e-6,
    )


def test_a_task_is_shipped_without_anchors(tuned, tmp_path):
    model, _, _ = tuned
    model.save(tmp_path / "with.keras")
    save_without_anchors(model, tmp_path / "without.keras")
    sizes = [
        (tmp_path / f"{name}.keras").stat().st_size
        for name in ("with", "without")
    ]
    anchored = sum(4 * np.prod(w.shape) for w in model.backbone.weights)
    assert sizes[0] - sizes[1] >= anchored
    loaded = load(tmp_path / "without.keras")
    np.testing.assert_allclose(
        loaded.predict(X, verbose=0), model.predict(X, verbose=0), atol=1e-6
    )
