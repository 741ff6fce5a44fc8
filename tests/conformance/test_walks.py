"""Random walks over all that may be done to a model, beside an oracle.

Build, compile, train, freeze, load, save, reload, set weights, move or drop
the anchors, change the rate, and steps that must be refused, in any order.
After each, the weights, θ₀, the step counter and the rate are those of the
oracle below, which is made of the slow reference and of plain copies.

`DUALOPT_WALKS` is the number of walks; a release is tested with 1,000.
"""

import copy
import functools
import os
import tempfile
import warnings
from pathlib import Path

import keras
import networks
import numpy as np
import pytest
import reference
from cases import BACKEND

from keras_dualopt import DualOpt

# TensorFlow and JAX compile, for a second each time.
_SHORT = {"torch": 30, "jax": 10, "tensorflow": 8}[BACKEND]
WALKS, LENGTH = int(os.environ.get("DUALOPT_WALKS", _SHORT)), 25
NAMES = ("a", "b", "c", "head")
WIDTH, OUTPUTS, BATCH = 3, 2, 4
RATE, RATES = 0.03, (0.03, 0.011, 0.004)
LEVELS = {"rollback": 0.21, "rollback_min": 0.013, "power": 1.7}
BODY = range(6)  # The weights of the layers that are pretrained.
STRENGTHS = [
    level
    for depth in (0.0, 0.5, 1.0)
    for level in 2 * [reference.f(depth, 0.21, 0.013, 1.7) / RATE]
] + [0.0, 0.0]
NOT_TAKEN, TAKEN, DROPPED = "not taken", "taken", "dropped"

_random = np.random.default_rng(12)
X = _random.normal(size=(BATCH, WIDTH)).astype("float32")
Y = _random.normal(size=(BATCH, OUTPUTS)).astype("float32")


def weights(seed):
    random = np.random.default_rng(seed)
    shapes = [(WIDTH, WIDTH), (WIDTH,)] * 3 + [(WIDTH, OUTPUTS), (OUTPUTS,)]
    return [random.uniform(0.2, 0.8, s).astype("float32") for s in shapes]


def network(seed):
    layers = [
        keras.layers.Dense(WIDTH, activation="tanh", name=name)
        for name in NAMES[:-1]
    ]
    head = keras.layers.Dense(OUTPUTS, name=NAMES[-1])
    model = keras.Sequential([keras.Input((WIDTH,)), *layers, head])
    model.set_weights(weights(seed))
    return model


def gradient(thetas):
    """Return the gradient of the mean squared error on the one batch."""
    thetas = [np.float64(theta) for theta in thetas]
    values = [np.float64(X)]
    for layer in range(len(NAMES)):
        value = values[-1] @ thetas[2 * layer] + thetas[2 * layer + 1]
        values.append(value if layer == len(NAMES) - 1 else np.tanh(value))
    delta = 2.0 * (values[-1] - np.float64(Y)) / Y.size
    gradients = [None] * len(thetas)
    for layer in reversed(range(len(NAMES))):
        gradients[2 * layer] = values[layer].T @ delta
        gradients[2 * layer + 1] = delta.sum(axis=0)
        delta = (delta @ thetas[2 * layer].T) * (1.0 - values[layer] ** 2)
    return gradients


class Refused(Exception):
    """What the oracle expects to be a `ValueError`."""


class Optimizer:
    """What an optimizer must remember, by the number of the weight."""

    def __init__(self, rate):
        self.rate = rate
        self.rules = None  # A rule of the reference for each trained weight.
        self.state = NOT_TAKEN
        self.origins = {}  # θ₀, also of weights that are frozen now.
        self.steps = 0
        self.file = None  # A state that waits for `build`.
        self.rate_after_file = None
        self.source = None  # What to anchor at when it is built.
        self.broken = False  # Its build was refused.

    @property
    def built(self):
        return self.rules is not None

    def build(self, trained, thetas):
        if self.built:
            return
        if self.file is not None and set(self.file.rules) != set(trained):
            self.broken = True
            raise Refused
        self.rules = {
            index: reference.OlorAdam(thetas[index], STRENGTHS[index])
            for index in trained
        }
        if self.file is not None:
            self.restore(self.file)
            if self.rate_after_file is not None:
                self.rate = self.rate_after_file
            self.file = None
        if self.source is not None:
            self.anchor(self.source(thetas), thetas)
            self.source = None

    def restore(self, other):
        if set(other.rules) != set(self.rules):
            raise Refused
        self.rules = copy.deepcopy(other.rules)
        self.state, self.steps = other.state, other.steps
        self.origins = dict(other.origins)
        self.rate = other.rate

    def anchor(self, origins, thetas):
        """Anchor at some values; what has none, at its present one."""
        own = {index for index in self.rules if index in BODY}
        self.origins = dict(origins)
        for index in own - set(origins):
            self.origins[index] = thetas[index].copy()
        self.state = TAKEN

    def step(self, thetas):
        if self.state == NOT_TAKEN:
            self.anchor({}, thetas)
        gradients = gradient(thetas)
        for index, rule_ in self.rules.items():
            theta = np.float64(thetas[index])
            rule_.anchor = np.float64(self.origins.get(index, theta))
            rule_.overwrite(theta)
            thetas[index] = rule_.step(gradients[index], self.rate)
        self.steps += 1


# What may be done, how often, and with which arguments.
OPERATIONS = {}


def operation(weight, allowed=lambda walk: True, **arguments):
    def register(method):
        OPERATIONS[method.__name__] = weight, allowed, arguments
        return method

    return register


def is_intact(walk):
    return not walk.expected.broken


def is_usable(walk):
    return walk.expected.built and is_intact(walk)


def waits_for_no_source(walk):
    return is_intact(walk) and walk.expected.source is None


EAGER = [True, True, True, False]  # Compiling takes a second.


class Walk:
    """The model, and beside it `thetas` and `expected`, the oracle."""

    def __init__(self, folder, file=None):
        self.folder = Path(folder)
        self.files = {}
        if file is not None:
            content, self.files[0] = file
            self.path(0).write_bytes(content)
        self.model = network(1)
        self.other = network(2)
        self.thetas = [np.float64(w) for w in weights(1)]
        self.trained = [*range(8)]
        self.compile_new(True, RATE)

    # What is done, and what the oracle says of it.

    def compile_new(self, eager, rate, anchored=False):
        optimizer = DualOpt(rate, reference_learning_rate=RATE, **LEVELS)
        expected = Optimizer(rate)
        if anchored:
            optimizer.anchor_at(self.model.optimizer)
            old = self.expected
            found = dict(old.origins)
            if old.state == NOT_TAKEN:
                own = [index for index in old.rules if index in BODY]
                found |= {index: self.thetas[index].copy() for index in own}
            expected.source = lambda thetas: found
        self.expected, self.eager = expected, eager
        self.model.compile(
            optimizer.bind(self.model),
            "mse",
            run_eagerly=eager,
            jit_compile=BACKEND == "jax" and not eager,
        )

    def attempt(self, expect, act):
        """Do something with the oracle, then with the model."""
        before = copy.deepcopy(self.thetas)
        try:
            expect()
        except Refused:
            self.thetas = before
            with pytest.raises(ValueError):  # noqa: PT011
                act()
        else:
            act()

    @property
    def optimizer(self):
        return self.model.optimizer

    def changed(self):
        return self.expected.built and set(self.expected.rules) != set(
            self.trained
        )

    @operation(2, eager=EAGER, rate=RATES)
    def compile_again(self, eager, rate):
        self.compile_new(eager, rate)

    @operation(
        2,
        lambda walk: is_usable(walk) and walk.expected.state != DROPPED,
        eager=EAGER,
        rate=RATES,
    )
    def compile_with_the_anchors_of_the_last(self, eager, rate):
        self.compile_new(eager, rate, anchored=True)

    @operation(1, is_intact)
    def build(self):
        self.attempt(
            lambda: self.expected.build(self.trained, self.thetas),
            lambda: self.optimizer.build(self.model.trainable_variables),
        )

    # TensorFlow's compiled step does not see that what is trained changed;
    # it says so, and goes on. It is no walk of this oracle.
    @operation(
        6,
        lambda walk: (
            BACKEND != "tensorflow" or walk.eager or not walk.changed()
        ),
        steps=[1, 2, 3],
        way=["fit", "batch"],
    )
    def train(self, steps, way):
        def expect():
            expected = self.expected
            if expected.broken:
                raise Refused
            expected.build(self.trained, self.thetas)
            if self.changed() or expected.state == DROPPED:
                raise Refused
            for _ in range(steps):
                expected.step(self.thetas)

        def act():
            if way == "batch":
                for _ in range(steps):
                    self.model.train_on_batch(X, Y)
                return
            self.model.fit(
                np.tile(X, (steps, 1)),
                np.tile(Y, (steps, 1)),
                batch_size=BATCH,
                shuffle=False,
                verbose=0,
            )

        self.attempt(expect, act)

    @operation(2, frozen=["", "", "a", "b", "ab", "bc", "abc"])
    def freeze(self, frozen):
        for layer in self.model.layers:
            layer.trainable = layer.name not in frozen
        self.trained = [
            2 * number + part
            for number, name in enumerate(NAMES)
            if name not in frozen
            for part in range(2)
        ]

    @operation(1, seed=[3, 4, 5])
    def set_weights(self, seed):
        self.model.set_weights(weights(seed))
        self.thetas = [np.float64(w) for w in weights(seed)]

    @operation(2, is_intact, rate=RATES)
    def set_rate(self, rate):
        self.optimizer.learning_rate = rate
        self.expected.rate = rate
        if self.expected.file is not None:
            self.expected.rate_after_file = rate

    @operation(2, is_intact, source=["present", "model", "file"])
    def anchor_at(self, source):
        path = self.folder / "other.weights.h5"
        if source == "file":
            self.other.save_weights(path)
        given = {"present": None, "model": self.other, "file": path}[source]
        if source == "present":
            found = lambda thetas: {}  # noqa: E731
        else:
            values = {i: np.float64(weights(2)[i]) for i in BODY}
            found = lambda thetas: values  # noqa: E731
        expected = self.expected
        self.optimizer.anchor_at(given)
        if expected.built:
            own = [i for i in BODY if i in expected.rules]
            origins = found(self.thetas)
            expected.anchor(
                {i: origins[i] for i in own if i in origins}, self.thetas
            )
        elif source == "present" and expected.file is None:
            expected.source = None
        else:
            expected.source = lambda thetas: {
                i: value
                for i, value in found(thetas).items()
                if i in expected.rules
            }

    @operation(1, is_usable)
    def drop_anchors(self):
        self.optimizer.drop_anchors()
        self.expected.state, self.expected.origins = DROPPED, {}

    @operation(2, waits_for_no_source, slot=[0, 1])
    def save(self, slot):
        self.model.save_weights(self.path(slot), overwrite=True)
        expected = self.expected
        kept = copy.deepcopy(expected if expected.built else expected.file)
        waits = not expected.built and kept is not None
        if waits and expected.rate_after_file is not None:
            # What was said since the file was read is written, too.
            kept.rate = expected.rate_after_file
        self.files[slot] = copy.deepcopy(self.thetas), kept

    def path(self, slot):
        return self.folder / f"{slot}.weights.h5"

    @operation(5, waits_for_no_source, slot=[0, 0, 1, 2])
    def load(self, slot):
        """Read a file of this walk, or one without an optimizer's state."""
        if slot == 2:
            self.other.save_weights(self.path(2))
            self.files[2] = [np.float64(w) for w in weights(2)], None
        if slot not in self.files:
            return
        thetas, kept = copy.deepcopy(self.files[slot])
        expected = self.expected
        refused = False
        if kept is None:
            expected.file = expected.rate_after_file = None
        elif expected.built:
            try:
                expected.restore(kept)
            except Refused:
                refused = True
        else:
            expected.file, expected.rate_after_file = kept, None
        if refused:
            with pytest.raises(ValueError):  # noqa: PT011
                self.model.load_weights(self.path(slot))
        else:
            self.model.load_weights(self.path(slot))
        # Keras has read the weights before it comes to the optimizer.
        self.thetas = thetas

    @operation(
        1,
        lambda walk: (
            waits_for_no_source(walk)
            and walk.expected.file is None
            and not walk.changed()
        ),
    )
    def save_and_load_the_model(self):
        path = self.folder / "model.keras"
        self.model.save(path)
        self.model = keras.saving.load_model(path)
        self.expected.build(self.trained, self.thetas)

    @operation(1)
    def evaluate(self):
        def expect():
            # Keras builds the optimizer there, too, but on TensorFlow.
            if BACKEND != "tensorflow" and is_intact(self):
                self.expected.build(self.trained, self.thetas)

        self.attempt(expect, lambda: self.model.evaluate(X, Y, verbose=0))

    # What must hold after every operation.

    def check(self):
        expected = self.expected
        found = [
            value
            for layer in self.model.layers
            for value in networks.arrays(layer.weights)
        ]
        for value, theta in zip(found, self.thetas, strict=True):
            np.testing.assert_allclose(value, theta, rtol=2e-5, atol=2e-6)
        # The oracle goes on from the model's own rounding.
        self.thetas = [np.float64(value) for value in found]
        if not is_usable(self):
            return
        steps = int(keras.ops.convert_to_numpy(self.optimizer.iterations))
        assert steps == expected.steps
        rate = float(keras.ops.convert_to_numpy(self.optimizer.learning_rate))
        assert rate == pytest.approx(expected.rate, rel=1e-6)
        anchors = networks.anchors(self.optimizer)
        for index, anchor in zip(expected.rules, anchors, strict=True):
            if index not in BODY or expected.state == DROPPED:
                assert anchor is None
                continue
            wanted = (
                self.thetas[index]
                if expected.state == NOT_TAKEN
                else expected.origins[index]
            )
            np.testing.assert_allclose(anchor, wanted, rtol=2e-5, atol=2e-6)


@functools.cache
def first_file():
    """Return a file of a run, for every walk to begin with."""
    with tempfile.TemporaryDirectory() as folder:
        walk = Walk(folder)
        walk.train(2, "fit")
        walk.check()
        walk.save(0)
        return walk.path(0).read_bytes(), walk.files[0]


def run(operations):
    """Walk; return the operations, the last of which failed, and its error.

    Operations that are not allowed where they stand are left out.
    """
    done = []
    with tempfile.TemporaryDirectory() as folder:
        walk = Walk(folder, first_file())
        for name, arguments in operations(walk):
            if not OPERATIONS[name][1](walk):
                continue
            done.append((name, arguments))
            try:
                getattr(walk, name)(**arguments)
                walk.check()
            except (Exception, pytest.fail.Exception) as error:
                return done, error
    return done, None


def drawn(seed):
    """Return operations in random order."""
    random = np.random.default_rng(seed)

    def operations(walk):
        names = [*OPERATIONS]
        shares = np.array([OPERATIONS[name][0] for name in names], float)
        for _ in range(LENGTH):
            name = names[random.choice(len(names), p=shares / shares.sum())]
            yield (
                name,
                {
                    key: values[random.integers(len(values))]
                    for key, values in OPERATIONS[name][2].items()
                },
            )

    return operations


def shortest(done, error):
    """Leave out what the same kind of failure does not need."""
    for index in reversed(range(len(done) - 1)):
        fewer = done[:index] + done[index + 1 :]
        found, other = run(lambda walk, fewer=fewer: fewer)
        if type(other) is type(error):
            done, error = found, other
    return done, error


@pytest.mark.timeout(0)
def test_every_walk_ends_where_the_oracle_does():
    for seed in range(WALKS):
        with warnings.catch_warnings():
            # What is said on the way is the affair of other tests.
            warnings.simplefilter("ignore")
            done, error = run(drawn(seed))
            if error is not None:
                done, error = shortest(done, error)
        if error is not None:
            steps = "\n".join(f"  {name}({given})" for name, given in done)
            pytest.fail(f"walk {seed}:\n{steps}\n{error!r}")
