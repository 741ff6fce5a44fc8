"""A small network twice: in Keras, and in NumPy with gradients by hand.

What `fit` does to the Keras one is compared with what `reference.train` does
to the NumPy one, on the same batches in the same order.
"""

import contextlib
import itertools

import keras
import numpy as np
import pytest
import reference
from cases import BACKEND

from keras_dualopt import DualOpt

WIDTHS = (3, 5, 4, 4, 2)
LAYERS = len(WIDTHS) - 1
BATCH, BATCHES = 8, 4
RATE = 0.03

# No `depth=`: found from the layer graph. The last layer is the head.
FINETUNE = {
    "mode": "finetune",
    "rollback": 0.21,
    "rollback_min": 0.013,
    "power": 1.7,
}
SCRATCH = {
    "mode": "scratch",
    "weight_decay": 0.9,
    "weight_decay_min": 0.11,
    "power": 1.7,
}


def weights(seed=3):
    """Return kernels and biases in the order of `trainable_variables`."""
    random = np.random.default_rng(seed)
    arrays = []
    for rows, columns in itertools.pairwise(WIDTHS):
        arrays.append(random.normal(0.0, 0.6, (rows, columns)))
        arrays.append(random.uniform(0.1, 0.4, columns))
    return [array.astype("float32") for array in arrays]


def data(batches=BATCHES, seed=4):
    random = np.random.default_rng(seed)
    x = random.normal(size=(batches * BATCH, WIDTHS[0]))
    y = random.normal(size=(batches * BATCH, WIDTHS[-1]))
    return x.astype("float32"), y.astype("float32")


def network(start=None, dtype=None, **layer_arguments):
    """Return the Keras network with given weights, not compiled."""
    layers = [keras.Input((WIDTHS[0],))]
    for index, width in enumerate(WIDTHS[1:]):
        last = index == LAYERS - 1
        layers.append(
            keras.layers.Dense(
                width,
                activation=None if last else "tanh",
                dtype=dtype,
                name=f"dense_{index}",
                **layer_arguments,
            )
        )
    model = keras.Sequential(layers)
    if start is not None:
        model.set_weights(start)
    return model


def towers(*scales, apart=True):
    """Return a head on models whose layers have the same names and paths.

    Side by side, each on the input, or (not `apart`) one after the other; all
    that they hold is of the size of their scale; 0.0: as Keras makes it.
    """
    random = np.random.default_rng(6)
    inputs = keras.Input((WIDTHS[0],))
    outputs = []
    for number, scale in enumerate(scales):
        below = inputs if apart or not outputs else outputs.pop()
        start = keras.Input(below.shape[1:])
        end = keras.layers.Dense(5, activation="tanh", name="mid")(start)
        end = keras.layers.Dense(4, name="proj")(end)
        tower = keras.Model(start, end, name=f"tower_{number}")
        for weight in tower.weights if scale else ():
            weight.assign(random.normal(0.0, scale, weight.shape))
        outputs.append(tower(below))
    hidden = outputs[0]
    if len(outputs) > 1:
        hidden = keras.layers.Concatenate()(outputs)
    head = keras.layers.Dense(WIDTHS[-1], name="head")
    return keras.Model(inputs, head(hidden))


def dual_opt(rate=RATE, **arguments):
    """Return an optimizer for fine-tuning."""
    return DualOpt(rate, **{**FINETUNE, **arguments})


def compile(model, optimizer, **arguments):
    """Compile a model; with XLA, which is slow, only where JAX needs it."""
    arguments.setdefault("jit_compile", BACKEND == "jax")
    model.compile(optimizer, "mse", **arguments)


def compiled(optimizer=None, start=None, dtype=None, **arguments):
    """Return the network with the weights `start` or `weights()`, compiled."""
    model = network(weights() if start is None else start, dtype)
    compile(model, optimizer or dual_opt(), **arguments)
    return model


def fit(model, steps, start=0, callbacks=(), batches=BATCHES):
    """Train on the batches `start`, `start` + 1, … in their fixed order."""
    x, y = data(batches)
    rows = np.concatenate(
        [
            np.arange(BATCH) + BATCH * (step % batches)
            for step in range(start, start + steps)
        ]
    )
    model.fit(
        x[rows],
        y[rows],
        batch_size=BATCH,
        shuffle=False,
        verbose=0,
        callbacks=[*callbacks],
    )


def trained(optimizer=None, steps=3, **arguments):
    model = compiled(optimizer, **arguments)
    fit(model, steps)
    return model


def epochs(model, count, callbacks=(), first=0, batches=BATCHES, **arguments):
    """Train up to epoch `count` on the same batches; return the log."""
    x, y = data(batches)
    return model.fit(
        x,
        y,
        batch_size=BATCH,
        epochs=count,
        initial_epoch=first,
        shuffle=False,
        verbose=0,
        callbacks=[*callbacks],
        **arguments,
    ).history


def warns_of_new_weights():
    """Expect what `fit` says of weights that were set since the last one.

    TensorFlow does not look: its step is compiled already.
    """
    if BACKEND == "tensorflow":
        return contextlib.nullcontext()
    return pytest.warns(UserWarning, match="were given new values")


def gradient(step, thetas, batches=BATCHES):
    """Return the gradient of the mean squared error on batch `step`."""
    x, y = data(batches)
    rows = slice(BATCH * (step % batches), BATCH * (step % batches + 1))
    x, y = np.float64(x[rows]), np.float64(y[rows])
    values = [x]
    for index in range(LAYERS):
        value = values[-1] @ thetas[2 * index] + thetas[2 * index + 1]
        values.append(value if index == LAYERS - 1 else np.tanh(value))
    delta = 2.0 * (values[-1] - y) / y.size
    gradients = [None] * (2 * LAYERS)
    for index in reversed(range(LAYERS)):
        gradients[2 * index] = values[index].T @ delta
        gradients[2 * index + 1] = delta.sum(axis=0)
        delta = (delta @ thetas[2 * index].T) * (1.0 - values[index] ** 2)
    return gradients


def strengths(mode="finetune", eta=RATE):
    """Return λ of `reference.Weight` for each variable of the network."""
    if mode == "finetune":
        levels = [
            reference.f(
                index / (LAYERS - 2),
                FINETUNE["rollback"],
                FINETUNE["rollback_min"],
                FINETUNE["power"],
            )
            / eta
            for index in range(LAYERS - 1)
        ]
        levels.append(0.0)
    else:
        levels = [
            reference.w(
                index / (LAYERS - 1),
                SCRATCH["weight_decay"],
                SCRATCH["weight_decay_min"],
                SCRATCH["power"],
            )
            for index in range(LAYERS)
        ]
    return [level for level in levels for _ in range(2)]


def expected(
    steps,
    start=None,
    mode="finetune",
    rule=reference.OlorAdam,
    lambdas=None,
    rate=RATE,
    **arguments,
):
    """Return the reference's weights after every step of `fit`."""
    start = weights() if start is None else start
    anchor = None if mode == "finetune" else 0.0
    lambdas = strengths(mode) if lambdas is None else lambdas
    schedule = rate if callable(rate) else lambda step: rate
    return reference.train(
        [
            rule(theta, lambda_i, anchor=anchor)
            for theta, lambda_i in zip(start, lambdas, strict=True)
        ],
        gradient,
        schedule,
        steps,
        **arguments,
    )


def arrays(variables):
    """Return copies: torch and TensorFlow may hand out the live buffer."""
    return [
        np.array(keras.ops.convert_to_numpy(getattr(v, "value", v)))
        for v in variables
    ]


def state(model):
    """Return all that training goes on from."""
    return arrays([*model.variables, *model.optimizer.variables])


def rate_of(optimizer):
    return float(keras.ops.convert_to_numpy(optimizer.learning_rate))


def assert_close(got, wanted, rtol=1e-5, atol=2e-6):
    """Compare arrays, or a model's trained weights, with the reference's."""
    if isinstance(got, keras.Model):
        got = arrays(got.trainable_variables)
    assert len(got) == len(wanted) > 0
    for value, theta in zip(got, wanted, strict=True):
        np.testing.assert_allclose(value, theta, rtol=rtol, atol=atol)


def assert_same(got, wanted):
    """Assert equality to the last bit."""
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def anchors(optimizer):
    """Return θ₀ as arrays; `None` where a variable has none."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return [
        None if anchor is None else arrays([anchor])[0]
        for anchor in optimizer.anchors
    ]


def assert_anchored_at(optimizer, start):
    """Assert that θ₀ is `start`, and that only the head has none."""
    found = anchors(optimizer)
    assert [anchor is None for anchor in found] == (
        [False] * (len(start) - 2) + [True] * 2
    )
    assert_same(found[:-2], start[:-2])


def strengths_of(optimizer):
    """Return each weight's strength, 0.0 where it is not pulled."""
    return [row.strength if row.pulled else 0.0 for row in optimizer.rows]


def told(caught):
    """Return what was said to the user, of warnings that pytest caught."""
    return [
        str(warning.message)
        for warning in caught
        if issubclass(warning.category, UserWarning)
    ]
