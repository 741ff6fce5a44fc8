"""Every way to train gives the same numbers: those of the slow reference.

The model and its gradients exist in NumPy too (`networks`), so that each way
is compared with the paper's algorithm and not with another way.
"""

import functools

import keras
import networks
import numpy as np
import pytest
import reference
from cases import BACKEND, BASES

from keras_dualopt import DualOpt

STEPS = 8
MODES = {"finetune": networks.FINETUNE, "scratch": networks.SCRATCH}


def fitted(optimizer, **arguments):
    return networks.trained(optimizer, STEPS, **arguments)


def fit_in_parts(optimizer):
    """Three calls of `fit`: nothing starts anew in between."""
    model = networks.compiled(optimizer, networks.weights())
    for start, steps in ((0, 1), (1, 4), (5, STEPS - 5)):
        networks.fit(model, steps, start=start)
    return model


def train_on_batch(optimizer):
    model = networks.compiled(optimizer, networks.weights())
    for x, y in batches():
        model.train_on_batch(x, y)
    return model


def batches():
    x, y = networks.data()
    for step in range(STEPS):
        first = networks.BATCH * (step % networks.BATCHES)
        rows = slice(first, first + networks.BATCH)
        yield x[rows], y[rows]


def mean_squared_error(model, x, y):
    return keras.ops.mean(keras.ops.square(model(x) - y))


def torch_loop(optimizer):
    model = networks.network(networks.weights())
    for x, y in batches():
        model.zero_grad()
        mean_squared_error(model, x, keras.ops.convert_to_tensor(y)).backward()
        variables = model.trainable_variables
        optimizer.apply([v.value.grad for v in variables], variables)
    return model


def eager_tensorflow_loop(optimizer):
    import tensorflow as tf

    model = networks.network(networks.weights())

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = mean_squared_error(model, x, y)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)

    for x, y in batches():
        step(tf.constant(x), tf.constant(y))
    return model


def traced_tensorflow_loop(optimizer):
    import tensorflow as tf

    model = networks.network(networks.weights())

    # Built in the trace, as most people leave it to be.
    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = mean_squared_error(model, x, y)
        variables = model.trainable_variables
        optimizer.apply_gradients(
            zip(tape.gradient(loss, variables), variables, strict=True)
        )

    for x, y in batches():
        step(tf.constant(x), tf.constant(y))
    return model


def jitted_jax_loop(optimizer):
    import jax

    model = networks.network(networks.weights())
    optimizer.build(model.trainable_variables)

    def loss(trainable, fixed, x, y):
        prediction, _ = model.stateless_call(trainable, fixed, x)
        return keras.ops.mean(keras.ops.square(prediction - y))

    # Donation: an anchor that aliased its weight would die here.
    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(trainable, state, fixed, x, y):
        gradients = jax.grad(loss)(trainable, fixed, x, y)
        return optimizer.stateless_apply(state, gradients, trainable)

    trainable = [v.value for v in model.trainable_variables]
    fixed = [v.value for v in model.non_trainable_variables]
    state = [v.value for v in optimizer.variables]
    for x, y in batches():
        trainable, state = step(trainable, state, fixed, x, y)
    model.set_weights(trainable)
    for variable, value in zip(optimizer.variables, state, strict=True):
        variable.assign(value)
    return model


def eager_jax_loop(optimizer):
    import jax

    model = networks.network(networks.weights())

    def loss(trainable, x, y):
        prediction, _ = model.stateless_call(trainable, [], x)
        return keras.ops.mean(keras.ops.square(prediction - y))

    for x, y in batches():
        variables = model.trainable_variables
        gradients = jax.grad(loss)([v.value for v in variables], x, y)
        optimizer.apply(gradients, variables)
    return model


WAYS = {
    "fit": lambda optimizer: fitted(optimizer, jit_compile=False),
    "fit, compiled": lambda optimizer: fitted(optimizer, jit_compile=True),
    "fit, compiled if Keras likes": lambda optimizer: fitted(
        optimizer, jit_compile="auto"
    ),
    "fit, eagerly": lambda optimizer: fitted(
        optimizer, run_eagerly=True, jit_compile=False
    ),
    "fit, four steps at once": lambda optimizer: fitted(
        optimizer, steps_per_execution=4
    ),
    "fit in parts": fit_in_parts,
    "train_on_batch": train_on_batch,
}
LOOPS = {
    "torch": {"apply": torch_loop},
    "tensorflow": {
        "apply": eager_tensorflow_loop,
        "apply in a tf.function": traced_tensorflow_loop,
    },
    "jax": {
        "apply": eager_jax_loop,
        "stateless_apply, jitted": jitted_jax_loop,
    },
}
WAYS |= LOOPS[BACKEND]
if BACKEND == "torch":
    del WAYS["fit, four steps at once"]  # Keras refuses it on torch.


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", MODES)
def test_way_to_train_gives_the_references_numbers(mode, way):
    optimizer = DualOpt(networks.RATE, **MODES[mode])
    model = WAYS[way](optimizer)
    wanted = networks.expected(STEPS, mode=mode)
    networks.assert_close(model, wanted[-1])
    assert int(optimizer.iterations) == STEPS
    if mode == "finetune":
        networks.assert_anchored_at(optimizer, networks.weights())
    else:
        assert optimizer.anchors == [None] * len(networks.weights())


# Nadam keeps state of its own per step, AdamW has a decay of its own.
WRAPPED = [
    (base, way)
    for base in ("Nadam", "AdamW")
    for way in ["train_on_batch", *LOOPS[BACKEND]]
]
if BACKEND != "torch":  # `torch.compile` takes half a minute for Nadam.
    WRAPPED.append(("Nadam", "fit, compiled"))


@functools.cache
def wrapped_in_fit(base):
    return networks.arrays(
        WAYS["fit"](wrapped_optimizer(base)).trainable_variables
    )


def wrapped_optimizer(base):
    return networks.dual_opt(base=BASES[base](networks.RATE))


@pytest.mark.parametrize(("base", "way"), WRAPPED)
def test_way_to_train_gives_the_same_numbers_with_a_wrapped_base(base, way):
    model = WAYS[way](wrapped_optimizer(base))
    networks.assert_close(model, wrapped_in_fit(base))


def test_a_new_optimizer_takes_its_own_steps_where_an_old_one_is_held():
    """As the traceback of an interrupted `fit` does in a notebook."""
    stronger = {**networks.FINETUNE, "rollback": 0.9, "rollback_min": 0.4}
    model = networks.compiled(
        DualOpt(networks.RATE, **stronger), networks.weights()
    )
    networks.fit(model, 2)
    held = model.train_function
    model.set_weights(networks.weights())
    optimizer = DualOpt(networks.RATE, **networks.FINETUNE)
    model.compile(optimizer, "mse", jit_compile=BACKEND == "jax")
    for start, steps in ((0, 3), (3, STEPS - 3)):
        networks.fit(model, steps, start=start)
    assert held is not model.train_function
    networks.assert_close(model, networks.expected(STEPS)[-1])


@pytest.mark.skipif(BACKEND != "torch", reason="a limit of Keras on torch")
def test_several_steps_at_once_are_refused_by_keras_on_torch():
    with pytest.raises(ValueError, match="steps_per_execution"):
        fitted(DualOpt(), steps_per_execution=4)


@pytest.mark.parametrize("rule", ["adam", "sgd"])
def test_sparse_gradients_of_an_embedding_are_those_of_a_dense_one(rule):
    """TensorFlow and JAX may hand out slices; a row without one is pulled."""
    table = np.random.default_rng(2).normal(size=(6, 3)).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((2,), dtype="int32"),
            keras.layers.Embedding(6, 3, name="table"),
        ]
    )
    model.set_weights([table])
    optimizer = DualOpt(0.1, base=rule, rollback=0.3, depth={".*": 0.0})
    networks.compile(model, optimizer)
    rows = np.array([[0, 1], [1, 4]], dtype="int32")
    goal = np.zeros((2, 2, 3), dtype="float32")

    weight = {"adam": reference.OlorAdam, "sgd": reference.OlorSgd}[rule](
        table, 0.3 / 0.1
    )
    for _ in range(3):
        model.train_on_batch(rows, goal)
        gradient = np.zeros_like(weight.theta)
        np.add.at(gradient, rows, 2.0 * weight.theta[rows] / goal.size)
        weight.step(gradient, 0.1)
    (value,) = networks.arrays(model.trainable_variables)
    np.testing.assert_allclose(value, weight.theta, rtol=1e-5, atol=1e-6)
