"""Finding depths changes nothing: training goes on bit for bit the same."""

import random

import depth_networks as networks
import keras
import numpy as np
import pytest
from keras import layers

from keras_dualopt.depth import find_model, layer_depth

BACKEND = keras.backend.backend()


class Plain(keras.optimizers.SGD):
    """A subclass, because Keras' own takes another path on torch."""


class Tracing(Plain):
    """Finds the depths of a model in its build, as DualOpt does."""

    def build(self, variables):
        if not self.built:
            assert layer_depth(find_model(variables)).rows
        super().build(variables)


class Noisy(layers.Layer):
    """Draws at random in training and in inference, and adds a loss."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seeds = keras.random.SeedGenerator(3)
        self.dense = layers.Dense(4)
        self.dropout = layers.Dropout(0.4, seed=5)
        self.norm = layers.BatchNormalization()

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build((*shape[:-1], 4))
        self.calls = self.add_weight(
            shape=(), initializer="zeros", trainable=False, name="calls"
        )

    def call(self, inputs, training=None):
        self.calls.assign_add(1.0)
        outputs = self.norm(self.dense(inputs), training=training)
        self.add_loss(1e-3 * keras.ops.mean(outputs**2))
        noise = keras.random.normal(keras.ops.shape(outputs), seed=self.seeds)
        return self.dropout(outputs + 0.1 * noise, training=training)

    def compute_output_shape(self, shape):
        return (*shape[:-1], 4)


def noisy():
    inputs = layers.Input((5, 3))
    outputs = Noisy(name="noisy")(inputs)
    outputs = networks.Block(name="block")(outputs)
    outputs = layers.GlobalAveragePooling1D()(outputs)
    return keras.Model(inputs, layers.Dense(2, name="end")(outputs))


def recurrent():
    inputs = layers.Input((5, 3))
    outputs = layers.LSTM(
        4, dropout=0.2, recurrent_dropout=0.2, return_sequences=True, seed=2
    )(inputs)
    outputs = layers.Bidirectional(layers.GRU(2, seed=4))(outputs)
    return keras.Model(inputs, layers.Dense(2)(outputs))


def state(model):
    return [
        np.array(keras.ops.convert_to_numpy(variable))
        for variable in [*model.variables, *model.optimizer.variables]
    ]


def trained(build, optimizer, **options):
    keras.utils.set_random_seed(11)
    generator = np.random.default_rng(1)
    inputs = generator.normal(size=(8, 5, 3)).astype("float32")
    target = generator.normal(size=(8, 2)).astype("float32")
    model = build()
    model.compile(optimizer=optimizer(0.05), loss="mse", **options)
    history = model.fit(inputs, target, batch_size=4, epochs=2, verbose=0)
    # What Python draws next is the same too.
    return [*state(model), *history.history["loss"], random.random()]


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("eagerly", [False, True])
@pytest.mark.parametrize("build", [noisy, recurrent])
def test_training_is_bit_identical_with_depths_found_in_build(build, eagerly):
    if eagerly and (BACKEND == "jax" or build is recurrent):
        pytest.skip("slow, and the optimizer is built as it is without")
    options = {"run_eagerly": eagerly}
    plain = trained(build, Plain, **options)
    traced = trained(build, Tracing, **options)
    assert_same(plain, traced)


def test_a_look_between_two_epochs_changes_nothing():
    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            before = state(self.model)
            layer_depth(self.model)
            assert_same(before, state(self.model))

    def run(callbacks):
        keras.utils.set_random_seed(11)
        inputs = np.ones((8, 5, 3), "float32")
        model = noisy()
        model.compile(optimizer="sgd", loss="mse")
        model.fit(
            inputs,
            np.ones((8, 2), "float32"),
            batch_size=4,
            epochs=2,
            verbose=0,
            callbacks=callbacks,
        )
        return state(model)

    assert_same(run([]), run([Look()]))


def test_no_loss_and_no_node_of_a_graph_is_left_behind():
    model = noisy()
    layer = model.get_layer("noisy")
    model(np.ones((2, 5, 3), "float32"))
    nodes = len(layer._inbound_nodes)
    losses = [keras.ops.convert_to_numpy(loss) for loss in model.losses]
    assert losses
    layer_depth(model)
    assert_same(
        losses, [keras.ops.convert_to_numpy(loss) for loss in model.losses]
    )
    assert len(layer._inbound_nodes) == nodes


class Doubled(layers.Layer):
    def call(self, inputs):
        return 2.0 * inputs


class Half(keras.Model):
    """Says that it is built, though one of its layers is not."""

    def __init__(self):
        super().__init__()
        self.first = layers.Dense(4, name="first")
        self.doubled = Doubled()
        self.late = layers.Dense(2, name="late")

    def build(self, shape):
        self.first.build(shape)

    def call(self, inputs):
        return self.late(self.doubled(self.first(inputs)))


def test_what_is_not_built_stays_so_and_is_named():
    model = Half()
    model.build((None, None, 3))
    with pytest.warns(UserWarning, match="'late' is not built yet"):
        layer_depth(model, head=())
    assert not model.late.built
    assert not model.doubled.built
    assert model(np.ones((2, 7, 3), "float32")).shape == (2, 7, 2)


def test_no_automatic_name_advances():
    def names():
        return [layers.Dense(2).name, layers.Add().name, layers.Subtract().name]

    def numbers():
        return [int(name.rpartition("_")[2]) for name in names()]

    model = networks.opaque()
    names()
    before = numbers()
    layer_depth(model)
    assert numbers() == [number + 1 for number in before]


@pytest.mark.skipif(BACKEND == "torch", reason="keras.distribution: no torch")
def test_training_under_keras_distribution_is_bit_identical():
    devices = keras.distribution.list_devices("cpu")[:1]
    distribution = keras.distribution.DataParallel(devices=devices)
    plain = None
    for optimizer in (Plain, Tracing):
        with distribution.scope():
            result = trained(noisy, optimizer)
        if plain is None:
            plain = result
    assert_same(plain, result)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.distribute")
def test_training_under_a_mirrored_strategy_is_bit_identical():
    import tensorflow as tf

    results = []
    for optimizer in (Plain, Tracing):
        with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
            results.append(trained(noisy, optimizer))
    assert_same(*results)
