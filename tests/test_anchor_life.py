"""θ₀ and what decides about it, on the ways that are easily forgotten."""

import contextlib
import gc
import weakref

import keras
import networks
import numpy as np
import pytest
from keras import layers

from keras_dualopt import DualOpt, bases, layer_depth

BACKEND = keras.backend.backend()
RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 4)).astype("float32")
Y = RNG.normal(size=(16, 3)).astype("float32")


def network(seed=1, width=8):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(width, activation="tanh"),
            layers.Dense(3),
        ]
    )


def finetune(**kwargs):
    return DualOpt(1e-2, rollback=0.1, rollback_min=0.05, **kwargs)


def fitted(optimizer, model=None):
    model = model or network()
    optimizer.bind(model, head=())
    networks.compile(model, optimizer)
    model.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
    return model


def assert_equal(actual, expected):
    for a, b in zip(networks.arrays(actual), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_anchors_are_carried_over_before_build():
    model = network()
    start = networks.arrays(model.trainable_variables)
    fitted(finetune(), model)
    new = finetune().anchor_at(model.optimizer)
    fitted(new, model)
    assert_equal(new.anchors, start)


def test_anchors_that_were_handed_on_are_not_dropped_with_the_old_ones():
    model = network()
    start = networks.arrays(model.trainable_variables)
    old = fitted(finetune(), model).optimizer
    new = finetune().anchor_at(old)
    old.drop_anchors()
    fitted(new, model)
    assert_equal(new.anchors, start)


def test_a_layer_unfrozen_later_is_anchored_where_it_is():
    model = network()
    model.layers[0].trainable = False
    start = networks.arrays(model.weights)
    fitted(finetune(), model)
    model.layers[0].trainable = True
    fitted(finetune().anchor_at(model.optimizer), model)
    assert_equal(model.optimizer.anchors, start)


def test_weights_bring_the_reference_rate_back(tmp_path):
    path = tmp_path / "run.weights.h5"
    fitted(finetune()).save_weights(path)
    model = network()
    other = DualOpt(1e-3, rollback=0.1, rollback_min=0.05)
    networks.compile(model, other.bind(model, head=()))
    model.load_weights(path)
    other.build(model.trainable_variables)
    assert other.reference_learning_rate == 1e-2
    assert other.get_config()["reference_learning_rate"] == 1e-2
    ratio = other.pull.host_ratios(1e-2)[other.pull.levels[0]]
    assert ratio == pytest.approx(0.1, rel=1e-6)


class Wrapper(keras.Model):
    """Trains another model, as distillation does."""

    def __init__(self, student):
        super().__init__()
        self.student = student

    def call(self, x):
        return self.student(x)


def wrapped():
    student = network()
    model = Wrapper(student)
    model(X)
    optimizer = DualOpt(1e-2, rollback=1.0, rollback_min=1.0)
    networks.compile(model, optimizer.bind(student, head=()))
    model.fit(X, Y, verbose=0)
    return model, student, optimizer


def test_compiled_steps_of_a_wrapper_see_that_anchors_were_dropped():
    model, student, optimizer = wrapped()
    optimizer.drop_anchors()
    with pytest.raises(ValueError, match="anchor_at"):
        model.fit(X, Y, verbose=0)
    for weight in student.weights:
        weight.assign(keras.ops.full(weight.shape, 5.0))
    optimizer.anchor_at()
    model.fit(X, Y, verbose=0)
    assert_equal(
        student.weights, [np.full(w.shape, 5.0) for w in student.weights]
    )


def test_anchors_can_be_read_in_a_callback_of_a_wrapper():
    model, _, optimizer = wrapped()
    seen = []

    class Read(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(networks.arrays(optimizer.anchors))

    model.fit(X, Y, batch_size=8, verbose=0, callbacks=[Read()])
    assert len(seen) == 2
    assert_equal(optimizer.anchors, seen[0])


@keras.saving.register_keras_serializable(package="test_anchor_life")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = layers.Dense(4)
        self.second = layers.Dense(3)

    def call(self, x):
        return self.second(self.first(x))


def test_an_exclusion_stays_with_its_weights_when_names_change(tmp_path):
    model = Subclassed()
    model(X)
    name = model.second.name
    optimizer = finetune(exclude=f".*{name}/.*|{name}/.*").bind(model, head=())
    networks.compile(model, optimizer)
    model.fit(X, Y, verbose=0)
    before = networks.strengths_of(optimizer)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.second.name != name
    assert networks.strengths_of(again.optimizer) == before
    assert before[:2] != [0.0, 0.0]
    assert before[2:] == [0.0, 0.0]


def test_depths_by_pattern_stay_with_their_weights(tmp_path):
    model = Subclassed()
    model(X)
    first, second = model.first.name, model.second.name
    depth = {f".*{first}/.*": 0.25, f".*{second}/.*": 0.75}
    networks.compile(model, finetune(depth=depth))
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    rows = again.optimizer.rows
    assert [row.relative for row in rows] == [0.25, 0.25, 0.75, 0.75]
    assert networks.strengths_of(again.optimizer) == networks.strengths_of(
        model.optimizer
    )


def test_mixed_precision_file_loads_after_anchors_came_back(tmp_path):
    path = tmp_path / "model.keras"
    model = network(width=5)
    optimizer = finetune().bind(model, head=())
    networks.compile(model, keras.optimizers.LossScaleOptimizer(optimizer))
    model.fit(X, Y, verbose=0)
    order = [variable.shape for variable in optimizer.variables]
    optimizer.drop_anchors()
    optimizer.anchor_at()
    assert [variable.shape for variable in optimizer.variables] == order
    model.fit(X, Y, verbose=0)
    model.save(path)
    again = keras.saving.load_model(path).optimizer.inner_optimizer
    assert_equal(again.anchors, networks.arrays(optimizer.anchors))


def test_anchored_state_loads_into_an_optimizer_that_dropped_its_own(tmp_path):
    path = tmp_path / "run.weights.h5"
    model = fitted(finetune())
    anchors = networks.arrays(model.optimizer.anchors)
    model.save_weights(path)
    model.optimizer.drop_anchors()
    model.load_weights(path)
    assert_equal(model.optimizer.anchors, anchors)
    model.fit(X, Y, verbose=0)


@pytest.mark.filterwarnings("ignore:Another DualOpt has trained")
def test_state_set_back_to_its_start_is_captured_again():
    model = network()
    optimizer = finetune().bind(model, head=())
    networks.compile(model, optimizer)
    optimizer.build(model.trainable_variables)
    start = networks.arrays(optimizer.variables)
    model.fit(X, Y, verbose=0)
    for variable, value in zip(optimizer.variables, start, strict=True):
        variable.assign(value)
    now = networks.arrays(model.trainable_variables)
    model.fit(X, Y, verbose=0)
    assert_equal(optimizer.anchors, now)


@pytest.mark.parametrize("base", ["adam", "sgd", "keras", "decay"])
@pytest.mark.parametrize("rate", [7.04e-5, 0.0010812, 0.0362512, 0.0440624])
def test_full_pull_is_exact_at_rates_that_float32_rounds(rate, base):
    made = {
        "keras": keras.optimizers.SGD,
        "decay": lambda: bases.Adam(weight_decay=0.1),
    }
    base = made[base]() if base in made else base
    anchor = RNG.normal(size=(5,)).astype("float32")
    variable = keras.Variable(anchor)
    optimizer = DualOpt(
        rate, base=base, rollback=1.0, rollback_min=1.0, depth={".*": 0.3}
    )
    for _ in range(2):
        optimizer.apply([keras.ops.full((5,), 1e6)], [variable])
        np.testing.assert_array_equal(networks.arrays([variable])[0], anchor)


def save(model, path):
    if path.name.endswith(".keras"):
        model.save(path)
    else:
        model.save_weights(path)


def load(model, path):
    if path.name.endswith(".keras"):
        return keras.saving.load_model(path)
    networks.compile(model, finetune().bind(model, head=()))
    model.load_weights(path)
    return model


KINDS = pytest.mark.parametrize("kind", ["model.keras", "model.weights.h5"])


@KINDS
@pytest.mark.parametrize("bound", [True, False])
def test_a_source_that_was_not_read_yet_is_saved(bound, kind, tmp_path):
    path = tmp_path / kind
    model, source = network(), network(seed=2)
    optimizer = finetune().anchor_at(source)
    # The depth of all of it, whether or not it is bound.
    optimizer.depth = {".*": 0.5}
    networks.compile(model, optimizer.bind(model) if bound else optimizer)
    save(model, path)
    assert optimizer.built
    again = load(network(seed=3), path)
    again.fit(X, Y, verbose=0)
    for one in (optimizer, again.optimizer):
        assert_equal(one.anchors, networks.arrays(source.weights))


def test_a_source_is_saved_under_a_loss_scale(tmp_path):
    model, source = network(), network(seed=2)
    optimizer = finetune(depth={".*": 0.5}).anchor_at(source)
    scaled = keras.optimizers.LossScaleOptimizer(optimizer)
    networks.compile(model, scaled)
    model.save(tmp_path / "model.keras")
    assert scaled.built
    with pytest.warns(UserWarning, match="Skipping variable loading"):
        again = load(model, tmp_path / "model.keras")
    again.fit(X, Y, verbose=0)
    inner = again.optimizer.inner_optimizer
    assert_equal(inner.anchors, networks.arrays(source.weights))


@KINDS
def test_a_source_that_cannot_be_read_leaves_a_file_that_says_so(
    kind, tmp_path
):
    path = tmp_path / kind
    save(fitted(finetune()), path)
    model = network()
    optimizer = finetune().anchor_at(network(width=5))
    networks.compile(model, optimizer.bind(model, head=()))
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"not in the file.*\(4, 8\)|were"):
            save(model, path)
    again = load(network(seed=3), path)
    assert_equal(again.weights, networks.arrays(model.weights))
    with pytest.raises(ValueError, match="anchor_at"):
        again.fit(X, Y, verbose=0)


def test_a_source_given_for_a_model_that_is_not_built_is_said_not_to_be_saved(
    tmp_path,
):
    model = keras.Sequential([layers.Dense(8), layers.Dense(3)])
    networks.compile(model, finetune().anchor_at(network()))
    with (
        pytest.warns(UserWarning, match="not yet been built"),
        pytest.warns(UserWarning, match=r"not in the file.*build"),
    ):
        model.save(tmp_path / "model.keras")
    keras.saving.load_model(tmp_path / "model.keras")


def test_anchor_at_before_build_means_the_first_step():
    model = network()
    optimizer = finetune().anchor_at().bind(model, head=())
    networks.compile(model, optimizer)
    optimizer.build(model.trainable_variables)
    model.set_weights(network(seed=2).get_weights())
    now = networks.arrays(model.trainable_variables)
    model.fit(X, Y, verbose=0)
    assert_equal(optimizer.anchors, now)


def test_state_of_a_namesake_is_refused(tmp_path):
    path = tmp_path / "run.weights.h5"
    fitted(finetune(base="sgd")).save_weights(path)
    other = fitted(finetune(base=keras.optimizers.SGD(momentum=0.9)))
    with pytest.raises(ValueError, match=r"keras\.SGD"):
        other.load_weights(path)


def test_one_layer_is_the_deepest_in_scratch_mode():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    for depth in (None, layer_depth(model, head=())):
        optimizer = DualOpt(mode="scratch", weight_decay=0.3, depth=depth)
        optimizer.bind(model).build(model.trainable_variables)
        assert networks.strengths_of(optimizer) == [0.3, 0.3]
        assert optimizer.rows[0].relative == 1.0


def test_a_shared_base_is_refused_every_time():
    base = keras.optimizers.Adam()
    first, second = finetune(base=base), finetune(base=base)
    fitted(first)
    model = network()
    networks.compile(model, second.bind(model, head=()))
    for _ in range(2):
        with pytest.raises(ValueError, match="new instance"):
            model.fit(X, Y, verbose=0)


def test_mode_cannot_be_set():
    with pytest.raises(ValueError, match="DualOpt\\(mode="):
        finetune().mode = "scratch"


@pytest.mark.skipif(
    BACKEND == "tensorflow",
    reason="the step that TensorFlow compiled before goes on as it was",
)
def test_a_layer_frozen_without_compiling_again_is_refused():
    model = fitted(finetune())
    model.layers[0].trainable = False
    with pytest.raises(ValueError, match="anchor_at"):
        model.fit(X, Y, verbose=0)


def test_a_head_of_a_model_that_is_gone_is_not_given_to_another():
    optimizer = finetune()
    optimizer.bind(network(), head=())
    gc.collect()  # A model is a ring of references.
    model = network()
    networks.compile(model, optimizer)
    with pytest.raises(ValueError, match=r"bind|bound"):
        model.fit(X, Y, verbose=0)


# Ways to name the head, by the layer that is one.
NAMED = {
    "variable": lambda layer: layer.kernel,
    "variables": lambda layer: [layer.kernel, layer.bias],
    "layers": lambda layer: [layer],
}


@pytest.mark.parametrize("named", NAMED)
def test_what_names_the_head_is_no_state_of_the_optimizer(named, tmp_path):
    model = network()
    optimizer = finetune().bind(model, head=NAMED[named](model.layers[-1]))
    networks.compile(model, optimizer)
    for _ in range(2):
        model.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
    plain = network()
    networks.compile(plain, finetune().bind(plain, head=plain.layers[-1].name))
    for _ in range(2):
        plain.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
    assert_equal(
        optimizer.variables, networks.arrays(plain.optimizer.variables)
    )
    assert_equal(model.weights, networks.arrays(plain.weights))
    sizes = []
    for number, one in enumerate((model, plain)):
        path = tmp_path / f"{number}.weights.h5"
        one.save_weights(path)
        sizes.append(path.stat().st_size)
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("rate", [keras.optimizers.Adam(), "1e-3", True])
def test_what_is_no_learning_rate_is_refused_by_name(rate):
    with pytest.raises(TypeError, match="learning_rate"):
        DualOpt(rate)


@pytest.mark.skipif(BACKEND != "jax", reason="stateless_apply is JAX's")
def test_a_loop_of_ones_own_may_run_inside_of_another_models_fit():
    probe = network(seed=3)
    optimizer = finetune().bind(probe, head=())
    optimizer.build(probe.trainable_variables)

    class Probe(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            trained = [v.value for v in probe.trainable_variables]
            gradients = [keras.ops.ones_like(v) for v in trained]
            state = [v.value for v in optimizer.variables]
            optimizer.stateless_apply(state, gradients, trained)

    model = network()
    networks.compile(model, "adam")
    model.fit(X, Y, verbose=0, callbacks=[Probe()])


@pytest.mark.skipif(BACKEND != "torch", reason="others trace, torch writes")
def test_a_stateless_step_leaves_its_input_alone():
    variable = keras.Variable(np.ones(3, "float32"))
    optimizer = finetune(depth={".*": 0.0})
    optimizer.build([variable])
    state = [v.value.clone() for v in optimizer.variables]
    start = [value.clone() for value in state]
    for _ in range(2):
        _, new = optimizer.stateless_apply(
            state, [keras.ops.ones(3)], [variable.value.clone()]
        )
        names = [v.name for v in optimizer.variables]
        flag = names.index("anchors_taken")
        assert int(new[flag]) == 1
        for before, after in zip(start, state, strict=True):
            assert bool((before == after).all())


def test_a_step_does_not_depend_on_the_optimizer_whose_anchors_it_took():
    """A `tf.function` notes what is read in its trace, and may miss it."""
    model = networks.trained()
    variables = model.trainable_variables
    optimizer = networks.dual_opt().bind(model).anchor_at(model.optimizer)
    held = [a for a in model.optimizer.anchors if a is not None]
    wanted, gone = networks.arrays(held), weakref.ref(held.pop())
    held.clear()

    def step():
        optimizer.apply([keras.ops.ones(v.shape) for v in variables], variables)

    watch = contextlib.nullcontext
    if BACKEND == "tensorflow":
        import tensorflow as tf

        step, watch = tf.function(step), tf.GradientTape
    step()
    model.compile("sgd", "mse")
    gc.collect()
    assert gone() is None
    with watch():
        step()
    assert int(optimizer.iterations) == 2
    found = [a for a in optimizer.anchors if a is not None]
    networks.assert_same(networks.arrays(found), wanted)
