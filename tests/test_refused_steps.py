"""A step that cannot be taken is refused, and takes no weight with it.

What is trained changes after `compile`: frozen, unfrozen, swapped for a layer
of the same shape, given LoRA. Or there is nothing to pull to. However the step
was refused, every weight is what it was before `fit`, and the way out works.
"""

import copy

import keras
import networks
import numpy as np
import pytest
from cases import BACKEND

from keras_dualopt import DualOpt, interpolate, restore_optimizer

RANDOM = np.random.default_rng(5)
X = RANDOM.normal(size=(16, 4)).astype("float32")
Y = RANDOM.normal(size=(16, 2)).astype("float32")


def values(seed=3):
    """Return weights of `alike()`, none of them 0."""
    random = np.random.default_rng(seed)
    shapes = [(4, 4), (4,)] * 3 + [(4, 2), (2,)]
    return [random.uniform(0.2, 0.9, s).astype("float32") for s in shapes]


def alike():
    """Return a model whose three pretrained layers have one shape."""
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(4, activation="tanh", name="a"),
            keras.layers.Dense(4, activation="tanh", name="b"),
            keras.layers.Dense(4, activation="tanh", name="c"),
            keras.layers.Dense(2, name="head"),
        ]
    )
    model.set_weights(values())
    return model


def freeze(model, *names):
    for layer in model.layers:
        layer.trainable = layer.name not in names


def make(**arguments):
    return DualOpt(
        networks.RATE, **{"rollback": 0.2, "rollback_min": 0.1, **arguments}
    )


def fit(model, **arguments):
    arguments = {"epochs": 1, "verbose": 0, **arguments}
    model.fit(X, Y, batch_size=8, shuffle=False, **arguments)


def on_batch(model):
    model.train_on_batch(X, Y)


# On JAX `train_on_batch` leaves its state with the model, `fit` does not.
STEPS = {"fit": fit, "train_on_batch": on_batch}
EAGER = {"run_eagerly": True, "jit_compile": False}


def trained(*frozen, step=fit, optimizer=None, **arguments):
    model = alike()
    freeze(model, *frozen)
    networks.compile(model, optimizer or make(), **arguments)
    step(model)
    return model


# What is done to a model trained without `frozen`, and not compiled again.
CHANGES = {
    "frozen": ((), lambda model: freeze(model, "a")),
    "unfrozen": (("b",), freeze),
    "swapped": (("b",), lambda model: freeze(model, "a")),
    "given LoRA": ((), lambda model: model.get_layer("a").enable_lora(2)),
}
changes = pytest.mark.parametrize("change", CHANGES)


def assert_refused(model, step, words="anchor_at"):
    """Assert that a step is an error, and that it changes nothing."""
    before = networks.arrays(model.weights)
    state = networks.arrays(model.optimizer.variables)
    with pytest.raises(ValueError, match=words):
        step(model)
    networks.assert_same(networks.arrays(model.weights), before)
    networks.assert_same(networks.arrays(model.optimizer.variables), state)
    networks.assert_same(model.get_weights(), before)


@pytest.mark.parametrize(
    ("before", "after"), [("fit", "train_on_batch"), ("train_on_batch", "fit")]
)
@changes
def test_a_change_of_what_is_trained_is_refused_and_no_weight_lost(
    change, before, after
):
    frozen, alter = CHANGES[change]
    # TensorFlow's compiled step never sees the change.
    eager = EAGER if BACKEND == "tensorflow" else {}
    model = trained(*frozen, step=STEPS[before], **eager)
    alter(model)
    new = [weight + 0.25 for weight in networks.arrays(model.weights)]
    model.set_weights(new)
    assert_refused(model, STEPS[after])
    networks.assert_same(networks.arrays(model.weights), new)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="never sees the change")
@changes
def test_a_change_is_refused_where_the_optimizer_is_wrapped(change):
    frozen, alter = CHANGES[change]
    scaled = keras.optimizers.LossScaleOptimizer(make(), initial_scale=4.0)
    model = trained(*frozen, optimizer=scaled)
    alter(model)
    assert_refused(model, fit)


def assert_anchors_kept(model):
    own = [id(variable) for variable in model.trainable_variables]
    anchors = networks.anchors(model.optimizer)
    start = values()
    for name, index in (("b", 2), ("c", 4)):
        for variable, wanted in zip(
            model.get_layer(name).trainable_variables, start[index : index + 2]
        ):
            np.testing.assert_array_equal(
                anchors[own.index(id(variable))], wanted
            )


@changes
def test_the_way_out_of_a_refused_step_keeps_the_anchors(change):
    frozen, alter = CHANGES[change]
    model = trained(*frozen, **EAGER if BACKEND == "tensorflow" else {})
    alter(model)
    assert_refused(model, fit)
    before = networks.arrays(model.get_layer("c").weights)
    networks.compile(model, make().anchor_at(model.optimizer))
    fit(model)
    assert_anchors_kept(model)
    moved = networks.arrays(model.get_layer("c").weights)
    assert all((one != two).any() for one, two in zip(moved, before))


def reloaded(model, path):
    model.save(path)
    return keras.saving.load_model(path)


LOADS = {"load_model": reloaded, "deepcopy": lambda m, path: copy.deepcopy(m)}


@pytest.mark.filterwarnings("ignore:Keras has added LoRA's factors")
@pytest.mark.parametrize("load", LOADS)
@changes
def test_a_model_changed_after_training_is_loaded_and_keeps_its_anchors(
    change, load, tmp_path
):
    frozen, alter = CHANGES[change]
    model = trained(*frozen)
    alter(model)
    wanted = model.predict(X, verbose=0)
    for _ in range(2):  # What waits is saved again.
        with pytest.warns(UserWarning, match=r"state.*does not fit") as caught:
            model = LOADS[load](model, tmp_path / "model.keras")
        assert len(networks.told(caught)) == 1
        np.testing.assert_array_equal(model.predict(X, verbose=0), wanted)
    assert_refused(model, fit, "new DualOpt")
    for use in (interpolate, lambda model, alpha: model.optimizer.anchors):
        with pytest.raises(ValueError, match="anchor_at"):
            use(model, 0.5)
    networks.compile(model, make().anchor_at(model.optimizer))
    fit(model)
    assert_anchors_kept(model)


def test_a_model_changed_after_training_goes_on_where_it_is_changed_back(
    tmp_path,
):
    path = tmp_path / "model.keras"
    model, never = trained(), trained()
    freeze(model, "a")
    with pytest.warns(UserWarning, match="restore_optimizer"):
        model = reloaded(model, path)
    freeze(model)
    networks.compile(model, make())
    restore_optimizer(model, path)
    for one in (model, never):
        fit(one)
    networks.assert_same(networks.state(model), networks.state(never))


def test_anchors_given_to_an_optimizer_whose_state_waits_let_it_train(tmp_path):
    model = trained()
    freeze(model, "a")
    with pytest.warns(UserWarning, match="new DualOpt"):
        model = reloaded(model, tmp_path / "model.keras")
    model.optimizer.anchor_at(model.optimizer)
    fit(model)
    assert_anchors_kept(model)


def test_a_model_changed_after_training_is_loaded_in_scratch_mode(tmp_path):
    model = trained(optimizer=DualOpt(networks.RATE, mode="scratch"))
    freeze(model, "a")
    with pytest.warns(UserWarning, match="new DualOpt"):
        model = reloaded(model, tmp_path / "model.keras")
    assert_refused(model, fit, "new DualOpt")


@pytest.mark.skipif(BACKEND != "tensorflow", reason="others refuse the step")
@changes
def test_a_compiled_step_that_goes_on_as_before_says_so_at_the_end(change):
    frozen, alter = CHANGES[change]
    model = trained(*frozen)
    alter(model)
    with pytest.warns(UserWarning, match="compile") as caught:
        fit(model, epochs=2)
    assert len(networks.told(caught)) == 1
    networks.compile(model, make().anchor_at(model.optimizer))
    fit(model)


@pytest.mark.parametrize("step", STEPS)
def test_a_refusal_of_dropped_anchors_keeps_weights_that_were_set(step):
    model = trained(step=STEPS[step])
    model.optimizer.drop_anchors()
    new = values(seed=8)
    model.set_weights(new)
    for _ in range(2):
        assert_refused(model, fit)
    networks.assert_same(networks.arrays(model.weights), new)
    model.optimizer.anchor_at()
    fit(model)
    networks.assert_same(networks.anchors(model.optimizer)[:6], new[:6])


class DropInTheMiddle(keras.callbacks.Callback):
    """Sets new weights and drops the anchors after a step of this `fit`."""

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 1:
            self.model.set_weights(values(seed=8))
            self.model.optimizer.drop_anchors()


def test_a_step_refused_in_the_middle_of_fit_keeps_weights_that_were_set():
    model = trained()
    with pytest.raises(ValueError, match="anchor_at"):
        fit(model, callbacks=[DropInTheMiddle()])
    networks.assert_same(networks.arrays(model.weights), values(seed=8))


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_a_refused_build_keeps_every_weight(step, wrapped):
    model = alike()
    optimizer = make(exclude=["nothing"])
    if wrapped:  # It makes variables of its own before it builds ours.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    networks.compile(model, optimizer)
    before = networks.arrays(model.weights)
    # A step that TensorFlow could not trace must not pass for one that is.
    for words in ("exclude", "refused|exclude", "refused|exclude"):
        with pytest.raises(ValueError, match=words):
            STEPS[step](model)
        networks.assert_same(networks.arrays(model.weights), before)


@pytest.mark.parametrize("step", STEPS)
def test_a_refused_file_keeps_every_weight(step, tmp_path):
    path = tmp_path / "sgd.weights.h5"
    model = alike()
    networks.compile(model, make(base="sgd"))
    fit(model)
    model.save_weights(path)
    saved = networks.arrays(model.weights)
    other = alike()
    networks.compile(other, make())
    other.load_weights(path)
    for words in ("base", "were refused", "were refused"):
        with pytest.raises(ValueError, match=words):
            STEPS[step](other)
        networks.assert_same(networks.arrays(other.weights), saved)


def test_a_refused_build_is_refused_again_in_a_loop_of_ones_own():
    other = alike()
    step = own_step(other, make(base="sgd"))
    step()
    store = {}
    step.optimizer.save_own_variables(store)
    model = alike()
    step = own_step(model, make())
    step.optimizer.load_own_variables(store)
    for words in ("base", "were refused", "were refused"):
        with pytest.raises(ValueError, match=words):
            step()
    networks.assert_same(networks.arrays(model.weights), values())


def own_step(model, optimizer):
    optimizer.bind(model)
    variables = model.trainable_variables

    def step():
        gradients = [keras.ops.ones(one.shape) for one in variables]
        optimizer.apply(gradients, variables)

    if BACKEND == "tensorflow":
        import tensorflow as tf

        step = tf.function(step)
    step.optimizer = optimizer
    return step


def test_every_step_is_taken_where_a_layer_was_frozen_and_is_free_again():
    """The list of what is trained is the same: nothing to refuse."""
    model = trained()
    freeze(model, "a", "b")
    freeze(model)
    fit(model)
    networks.assert_same(networks.anchors(model.optimizer)[:6], values()[:6])


class Distiller(keras.Model):
    """Trains a part of its weights by a step of its own."""

    def __init__(self):
        super().__init__()
        self.student = alike()
        self.other = keras.layers.Dense(2, name="other")

    def call(self, x):
        return self.student(x) + self.other(x)

    def train_step(self, data):
        variables = self.student.trainable_variables
        gradients = [keras.ops.ones(one.shape) for one in variables]
        self.optimizer.apply_gradients(zip(gradients, variables))
        return {"loss": keras.ops.zeros(())}


# On what a person has built the optimizer before; `fit` on torch builds it on
# all weights, on TensorFlow on what the step trains.
BUILT = {
    "in fit": lambda model: (),
    "on all": lambda model: model.trainable_variables,
    "on a part": lambda model: model.student.trainable_variables,
}


@pytest.mark.skipif(BACKEND == "jax", reason="Keras gives a step all weights")
@pytest.mark.parametrize("built", BUILT)
def test_a_step_of_ones_own_may_train_a_part(built):
    model = Distiller()
    model(X)
    optimizer = make().bind(model, head=[model.student.layers[-1], model.other])
    networks.compile(model, optimizer)
    if BUILT[built](model):
        optimizer.build(BUILT[built](model))
    other = networks.arrays(model.other.weights)
    fit(model)
    fit(model)  # No warning at its end.
    networks.assert_same(networks.arrays(model.other.weights), other)
    networks.assert_same(networks.anchors(optimizer)[:6], values()[:6])
    moved = networks.arrays(model.student.weights)
    assert all((a != b).all() for a, b in zip(moved, values()))
    freeze(model.student, "a")
    if BACKEND == "tensorflow":
        with pytest.warns(UserWarning, match="frozen"):
            fit(model)
    else:
        assert_refused(model, fit)
