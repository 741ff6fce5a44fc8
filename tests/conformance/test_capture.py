"""θ₀ is the value of each weight at the first step, however it got there.

Every row brings pretrained weights into a model of other weights in its own
order of compile, build, load and fit. Then θ₀ must be the pretrained weights
to the last bit, and the trained weights those of the reference.
"""

import keras
import networks
import pytest
from cases import BACKEND
from networks import dual_opt

from keras_dualopt import DualOpt

STEPS = 6
PRETRAINED = networks.weights()
OTHER = networks.weights(seed=99)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Return the path of a weights file, saved without an optimizer."""
    path = tmp_path_factory.mktemp("pretrained") / "network.weights.h5"
    networks.network(PRETRAINED).save_weights(path)
    return path


def compile_fit(file, path):
    return networks.compiled()


def compile_load_fit(file, path):
    model = networks.compiled(dual_opt(), OTHER)
    assert not model.optimizer.built
    model.load_weights(file)
    return model


def build_load_fit(file, path):
    model = networks.compiled(dual_opt(), OTHER)
    model.optimizer.build(model.trainable_variables)
    model.load_weights(file)
    return model


def build_in_another_function_fit(file, path):
    """Nothing of the model is on the stack when the weights arrive."""
    model = networks.compiled(dual_opt(), OTHER)
    model.optimizer.build(model.trainable_variables)
    for variable, value in zip(
        model.trainable_variables, PRETRAINED, strict=True
    ):
        variable.assign(value)
    return model


def load_compile_fit(file, path):
    model = networks.network(OTHER)
    model.load_weights(file)
    networks.compile(model, dual_opt())
    return model


def saved_before_fit(file, path):
    model = networks.compiled()
    model.save(path / "model.keras")
    return keras.saving.load_model(path / "model.keras")


def saved_built_before_fit(file, path):
    model = networks.compiled(dual_opt(), OTHER)
    model.optimizer.build(model.trainable_variables)
    model.save(path / "model.keras")
    model = keras.saving.load_model(path / "model.keras")
    model.load_weights(file)
    return model


def cloned(file, path):
    model = keras.models.clone_model(networks.network(OTHER))
    networks.compile(model, dual_opt())
    model.load_weights(file)
    return model


def evaluated_before(file, path):
    model = networks.compiled(dual_opt(), OTHER)
    model.optimizer.build(model.trainable_variables)
    x, y = networks.data()
    model.evaluate(x, y, verbose=0)
    model.predict(x, verbose=0)
    networks.assert_same(networks.anchors(model.optimizer)[:-2], OTHER[:-2])
    model.load_weights(file)
    return model


def bound_by_hand(file, path):
    model = networks.network(OTHER)
    networks.compile(model, dual_opt().bind(model))
    model.load_weights(file)
    return model


def eager(file, path):
    model = networks.network(OTHER)
    model.compile(dual_opt(), "mse", run_eagerly=True)
    model.load_weights(file)
    return model


def steps_per_execution(file, path):
    if BACKEND == "torch":
        pytest.skip("Keras refuses steps_per_execution on torch")
    model = networks.compiled(dual_opt(), OTHER, steps_per_execution=3)
    model.load_weights(file)
    return model


ROWS = {
    "compile, fit": compile_fit,
    "compile, load_weights, fit": compile_load_fit,
    "compile, build, load_weights, fit": build_load_fit,
    "compile, build, assign, fit": build_in_another_function_fit,
    "load_weights, compile, fit": load_compile_fit,
    "save before fit, load_model, fit": saved_before_fit,
    "build, save, load_model, load_weights, fit": saved_built_before_fit,
    "clone_model, compile, load_weights, fit": cloned,
    "build, evaluate, predict, load_weights, fit": evaluated_before,
    "bind, load_weights, fit": bound_by_hand,
    "run_eagerly": eager,
    "steps_per_execution": steps_per_execution,
}


@pytest.mark.parametrize("row", ROWS)
def test_anchors_are_the_weights_of_the_first_step(row, pretrained, tmp_path):
    model = ROWS[row](pretrained, tmp_path)
    networks.fit(model, STEPS)
    networks.assert_anchored_at(model.optimizer, PRETRAINED)
    networks.assert_close(model, networks.expected(STEPS, PRETRAINED)[-1])


def test_anchors_are_those_of_the_first_batch_when_trained_by_batches():
    model = networks.compiled()
    x, y = networks.data(1)
    for _ in range(3):
        model.train_on_batch(x, y)
        networks.assert_anchored_at(model.optimizer, PRETRAINED)


def test_anchors_show_the_present_weights_until_the_first_step(pretrained):
    model = networks.compiled(dual_opt(), OTHER)
    model.optimizer.build(model.trainable_variables)
    networks.assert_anchored_at(model.optimizer, OTHER)
    model.load_weights(pretrained)
    networks.assert_anchored_at(model.optimizer, PRETRAINED)


def test_anchors_before_build_are_an_error():
    with pytest.raises(ValueError, match=r"has not seen its variables"):
        _ = dual_opt().anchors


def test_anchors_are_not_taken_again():
    """Neither a counter set to 0 nor weights that are loaded move θ₀."""
    model = networks.compiled()
    networks.fit(model, 2)
    model.optimizer.iterations.assign(0)
    model.set_weights(OTHER)
    with networks.warns_of_new_weights():
        networks.fit(model, 2, start=2)
    networks.assert_anchored_at(model.optimizer, PRETRAINED)


def test_anchors_stay_when_other_weights_are_loaded(pretrained):
    """θ₀ stays as it is, and a warning names the way to move it."""
    model = networks.compiled(dual_opt(), OTHER)
    networks.fit(model, 1)
    with pytest.warns(UserWarning, match=r"anchor_at\(\)"):
        model.load_weights(pretrained)
    networks.fit(model, 1)
    networks.assert_anchored_at(model.optimizer, OTHER)


def test_anchors_wait_for_the_first_real_update(pretrained):
    """Gradients that are only collected do not move the weights yet."""
    optimizer = dual_opt(gradient_accumulation_steps=3)
    model = networks.compiled(optimizer, OTHER)
    networks.fit(model, 2)
    networks.assert_same(networks.arrays(model.trainable_variables), OTHER)
    model.load_weights(pretrained)
    networks.fit(model, 1, start=2)
    networks.assert_anchored_at(model.optimizer, PRETRAINED)


def test_scratch_mode_takes_no_anchors():
    model = networks.compiled(
        DualOpt(networks.RATE, **networks.SCRATCH), PRETRAINED
    )
    networks.fit(model, STEPS)
    assert networks.anchors(model.optimizer) == [None] * len(PRETRAINED)
    networks.assert_close(
        model, networks.expected(STEPS, PRETRAINED, mode="scratch")[-1]
    )
