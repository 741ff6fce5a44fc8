"""DualOpt inside of other optimizers, and rebuilt from its config."""

import json

import keras
import networks
import numpy as np
import pytest
import reference
from cases import BACKEND

from keras_dualopt import DualOpt

JIT = {"jit_compile": BACKEND == "jax"}
STEPS = 6
MODES = {"finetune": networks.FINETUNE, "scratch": networks.SCRATCH}

multi = pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"),
    reason="Keras has had MultiOptimizer since 3.14",
)


def with_a_dualopt(mode="finetune"):
    """Return a DualOpt for the body and a plain Adam for the head."""
    head = keras.optimizers.Adam(networks.RATE, epsilon=1e-8)
    body = DualOpt(networks.RATE, **MODES[mode])
    chosen = keras.optimizers.OptimizerMap(body, {r".*dense_3/.*": head})
    return keras.optimizers.MultiOptimizer(chosen), body


@multi
@pytest.mark.parametrize("mode", MODES)
def test_dualopt_inside_of_a_multi_optimizer(mode):
    whole, body = with_a_dualopt(mode)
    model = networks.compiled(whole, networks.weights())
    networks.fit(model, STEPS)
    strengths = [*networks.strengths(mode)[:-2], 0.0, 0.0]
    wanted = networks.expected(
        STEPS, networks.weights(), mode, lambdas=strengths
    )
    networks.assert_close(model, wanted[-1])
    if mode == "finetune":
        networks.assert_same(networks.anchors(body), networks.weights()[:-2])
    assert len(body.anchors) == len(networks.weights()) - 2


@multi
def test_dualopt_inside_of_a_multi_optimizer_resumes(tmp_path):
    whole, _ = with_a_dualopt()
    model = networks.compiled(whole, networks.weights())
    networks.fit(model, 3)
    model.save_weights(tmp_path / "x.weights.h5")
    whole, body = with_a_dualopt()
    resumed = networks.compiled(whole, networks.weights(seed=99))
    whole.build(resumed.trainable_variables)
    resumed.load_weights(tmp_path / "x.weights.h5")
    for one in (model, resumed):
        networks.fit(one, 3, start=3)
    networks.assert_same(networks.anchors(body), networks.weights()[:-2])
    networks.assert_same(
        networks.arrays([*resumed.variables, *whole.variables]),
        networks.arrays([*model.variables, *model.optimizer.variables]),
    )


def rebuilt(model):
    """Return the model made from what a tuner writes down of it."""
    written = json.dumps(
        [
            keras.saving.serialize_keras_object(model),
            model.get_compile_config(),
        ]
    )
    architecture, compilation = json.loads(written)
    copy = keras.saving.deserialize_keras_object(architecture)
    copy.compile_from_config(compilation)
    return copy


@pytest.mark.parametrize(
    "arguments",
    [
        networks.FINETUNE,
        networks.SCRATCH,
        {
            **networks.FINETUNE,
            "base": "sgd",
            "exclude": [r".*dense_1/bias"],
            "clipnorm": 0.2,
            "reference_learning_rate": 0.05,
        },
    ],
    ids=["finetune", "scratch", "more arguments"],
)
def test_rebuilt_from_config_it_trains_to_the_same_numbers(arguments):
    """What a tuner does with each trial: compile config to JSON and back."""
    given = networks.compiled(DualOpt(networks.RATE, **arguments))
    copy = rebuilt(given)
    copy.set_weights(networks.weights())
    networks.fit(copy, STEPS)

    mode = arguments["mode"]
    eta = arguments.get("reference_learning_rate", networks.RATE)
    strengths = networks.strengths(mode, eta)
    by = {}
    if "exclude" in arguments:
        strengths[3] = 0.0
        by = {"rule": reference.OlorSgd, "clip": reference.by_norm(0.2)}
    wanted = networks.expected(
        STEPS, networks.weights(), mode, lambdas=strengths, **by
    )
    networks.assert_close(copy, wanted[-1])


def test_best_trial_of_a_tuner_goes_on(tmp_path):
    """Rebuilt from config, its weights read before the optimizer is built."""
    model = networks.compiled()
    networks.fit(model, 3)
    model.save_weights(tmp_path / "best.weights.h5")
    copy = rebuilt(model)
    copy.load_weights(tmp_path / "best.weights.h5")
    networks.fit(copy, 3, start=3)
    networks.assert_anchored_at(copy.optimizer, networks.weights())
    networks.assert_close(copy, networks.expected(STEPS)[-1])


SETTINGS = {
    "mode": "scratch",
    "rollback": 0.5,
    "rollback_min": 0.1,
    "weight_decay": 0.1,
    "weight_decay_min": 0.1,
    "power": 3.0,
    "depth": {".*": 0.5},
    "exclude": [".*bias"],
}


@pytest.mark.parametrize("name", SETTINGS)
def test_setting_is_read_only_after_build(name):
    """JAX and TensorFlow would ignore it silently, torch would not."""
    optimizer = networks.dual_opt()
    model = networks.network(networks.weights())
    optimizer.bind(model).build(model.trainable_variables)
    before = getattr(optimizer, name)
    # The other arguments belong to the mode: there is no old one to keep.
    way_out = "" if name == "mode" else r".*anchor_at\(old\)"
    words = rf"^`{name}` (stays|cannot be changed) .*new DualOpt{way_out}"
    with pytest.raises(ValueError, match=words):
        setattr(optimizer, name, SETTINGS[name])
    assert getattr(optimizer, name) is before
    assert np.isfinite(optimizer.reference_learning_rate)
