"""The model is found on the call stack, and never guessed."""

import gc
import runpy
import weakref

import depth_networks as networks
import keras
import numpy as np
import pytest
from keras import layers

from keras_dualopt import DualOpt
from keras_dualopt.depth import find_model, layer_depth, training_model

BACKEND = keras.backend.backend()


# Not on the optimizer: Keras' saver would walk into the model from there.
NOTES = {}


@keras.saving.register_keras_serializable(package="test_depth_find")
class Finder(keras.optimizers.SGD):
    """An optimizer that notes which model its build found."""

    def build(self, variables):
        if not self.built:
            model = find_model(variables)
            NOTES["found"] = weakref.ref(model)
            NOTES["rows"] = layer_depth(model).rows
        super().build(variables)

    def stateless_apply(self, *arguments):
        NOTES["trained"] = training_model()
        return super().stateless_apply(*arguments)

    def apply(self, grads, trainable_variables=None):
        NOTES["trained"] = training_model()
        return super().apply(grads, trainable_variables)


@pytest.fixture(autouse=True)
def _forget():
    yield
    NOTES.clear()


def data(model, size=4):
    generator = np.random.default_rng(0)
    shapes = [(size, *tensor.shape[1:]) for tensor in model.inputs]
    inputs = [generator.normal(size=s).astype("float32") for s in shapes]
    target = generator.normal(size=(size, 2)).astype("float32")
    return (inputs[0] if len(inputs) == 1 else inputs), target


def compiled(model, **options):
    model.compile(optimizer=Finder(0.01), loss="mse", **options)
    return model


def fit(model):
    model.fit(*data(model), verbose=0)


def train_on_batch(model):
    model.train_on_batch(*data(model))


def evaluate_then_fit(model):
    model.evaluate(*data(model), verbose=0)
    model.fit(*data(model), verbose=0)


WAYS = {
    "fit": (fit, {}),
    "fit_eagerly": (fit, {"run_eagerly": True}),
    "fit_without_jit": (fit, {"jit_compile": False}),
    "train_on_batch": (train_on_batch, {}),
    "evaluate_then_fit": (evaluate_then_fit, {}),
    "auto_scale_loss": (fit, {"auto_scale_loss": True}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("build", [networks.nested, networks.residual])
def test_training_finds_the_model_itself(build, way):
    run, options = WAYS[way]
    model = compiled(build(), **options)
    run(model)
    assert NOTES["found"]() is model
    assert NOTES["trained"] is model
    assert NOTES["rows"] == layer_depth(model).rows


def test_a_subclassed_model_finds_itself():
    model = compiled(networks.subclassed())
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(4, 8)).astype("float32")
    model.fit(inputs, inputs[:, :2], verbose=0)
    assert NOTES["found"]() is model


def test_a_model_that_fit_builds_is_found_and_ordered():
    model = networks.Reversed(name="net")
    model.compile(optimizer=Finder(0.01), loss="mse")
    assert not model.built
    inputs = np.ones((4, 8), "float32")
    model.fit(inputs, inputs[:, :2], verbose=0)
    assert NOTES["found"]() is model
    layers_found = dict.fromkeys(row.layer for row in NOTES["rows"])
    assert [layer[-1] for layer in layers_found] == ["a", "b", "c", "d"]


def test_mixed_precision_finds_the_model_through_its_wrapper():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = compiled(networks.sequential())
        fit(model)
    finally:
        keras.config.set_dtype_policy("float32")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert NOTES["found"]() is model


def test_a_part_of_the_variables_is_enough():
    model = networks.nested()
    assert find_model(model.trainable_variables[1:3]) is model


def test_a_reloaded_model_is_found_before_its_weights_are_read(tmp_path):
    model = compiled(networks.nested())
    fit(model)
    model.save(tmp_path / "model.keras")
    NOTES.clear()
    reloaded = keras.models.load_model(tmp_path / "model.keras")
    assert NOTES["found"]() is reloaded


def custom_loop(model, variables):
    return find_model(variables)


def test_a_loop_that_has_the_model_is_enough():
    model = networks.nested()
    assert custom_loop(model, model.trainable_variables) is model


def test_a_closure_that_has_the_model_is_enough():
    def make():
        model = networks.nested()

        def step():
            return model, find_model(model.trainable_variables)

        return step

    expected, found = make()()
    assert found is expected


def test_an_object_that_keeps_the_model_is_enough():
    class Loop:
        def __init__(self):
            self.network = networks.nested()

        def run(self):
            return find_model(self.network.trainable_variables)

    loop = Loop()
    assert loop.run() is loop.network


SCRIPT = """
import depth_networks
from keras_dualopt import DualOpt
from keras_dualopt.depth import find_model

network = depth_networks.nested()


def inner(variables):
    return find_model(variables)


for _ in range(1):
    found = inner(network.trainable_variables)
"""


def test_a_loop_in_a_script_is_enough(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    names = runpy.run_path(str(path))
    assert names["found"] is names["network"]


GLOBAL = networks.nested()


def only_variables(variables):
    return find_model(variables)


def test_globals_of_a_module_are_not_searched():
    with pytest.raises(ValueError, match=r"bind\(model\)"):
        only_variables(GLOBAL.trainable_variables)


def test_bare_variables_are_an_error_that_names_both_ways_out():
    variables = [keras.Variable(np.zeros(3, "float32"), name="bare")]
    with pytest.raises(ValueError, match=r"'bare'.*bind\(model\).*`depth=`"):
        find_model(variables)


def test_a_model_that_owns_only_some_of_them_is_not_taken():
    model, other = networks.nested(), networks.sequential()
    with pytest.raises(ValueError, match="was not found"):
        find_model([*model.trainable_variables, *other.trainable_variables])


def test_the_nearest_frame_wins():
    def inner(model, variables):
        return find_model(variables)

    def outer():
        body = networks.nested()
        inputs = layers.Input((8,))
        model = keras.Model(inputs, layers.Dense(2)(body(inputs)))
        return body, inner(body, body.trainable_variables), model

    body, found, _ = outer()
    assert found is body


def test_of_models_that_share_a_backbone_the_one_that_fits_is_taken():
    def build_by_hand():
        body = networks.nested()
        inputs = layers.Input((8,))
        first = keras.Model(inputs, layers.Dense(2)(body(inputs)))
        second = keras.Model(inputs, layers.Dense(3)(body(inputs)))
        return first, second, body, find_model(second.trainable_variables)

    first, second, body, found = build_by_hand()
    assert found is second
    assert first is not body


def test_of_models_that_a_trainer_keeps_the_one_that_fits_is_taken():
    class Trainer:
        def __init__(self):
            self.backbone = networks.nested()
            inputs = layers.Input((8,))
            self.net = keras.Model(
                inputs, layers.Dense(2)(self.backbone(inputs))
            )

        def run(self):
            return self.step(self.backbone.trainable_variables)

        def step(self, variables):
            return find_model(variables)

    trainer = Trainer()
    assert trainer.run() is trainer.backbone


def test_a_frame_with_models_that_disagree_is_an_error_that_names_bind():
    def ambiguous():
        body = networks.nested()
        inputs = layers.Input((8,))
        model = keras.Model(inputs, layers.Dense(2)(body(inputs)))
        return model, find_model(body.trainable_variables[1:])

    with pytest.raises(ValueError, match=r"Received: 2 .*bind\(model\)"):
        ambiguous()


def test_models_in_a_frame_that_agree_are_no_error():
    def agree():
        model = networks.nested()
        features = keras.Model(model.inputs, model.outputs)
        return model, features, find_model(model.trainable_variables)

    model, features, found = agree()
    assert found in (model, features)


def test_an_unbuilt_model_in_the_way_is_skipped():
    def loop(model, variables):
        unbuilt = keras.Sequential([layers.Dense(3)])
        return unbuilt, find_model(variables)

    model = networks.nested()
    assert loop(model, model.trainable_variables)[1] is model


def test_finding_keeps_nothing_alive():
    model = compiled(networks.nested())
    fit(model)
    reference = weakref.ref(model)
    NOTES.clear()
    del model
    keras.backend.clear_session()
    gc.collect()
    assert reference() is None


def test_no_model_is_training_outside_of_training():
    model = networks.nested()
    assert training_model() is None
    del model


def test_a_fit_of_ones_own_is_a_loop_where_nothing_is_compiled():
    class OwnFit(networks.Reversed):
        def fit(self, optimizer):
            variables = self.trainable_variables
            ones = [keras.ops.ones(v.shape) for v in variables]
            optimizer.apply(ones, variables)
            optimizer.finalize_variable_values(variables)
            return training_model()

    model = OwnFit(name="own")
    model(np.ones((1, 8), "float32"))
    optimizer = DualOpt(0.1)
    assert model.fit(optimizer) is None
    assert int(optimizer.iterations) == 1


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.distribute")
def test_a_strategy_finds_the_model():
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = compiled(networks.nested())
    fit(model)
    assert NOTES["found"]() is model


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.Variable")
def test_the_backends_own_variables_are_known():
    model = networks.nested()
    assert find_model([v.value for v in model.trainable_variables]) is model
