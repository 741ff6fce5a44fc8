"""What a file, a config and an assignment say: the last word counts.

State read from a file waits until there are variables. A file without state
read after it, a rate or a pattern given after it, are said later and win; what
is thereby lost is said.
"""

import keras
import networks
import numpy as np
import pytest
from networks import dual_opt

from keras_dualopt import DualOpt

PRETRAINED = networks.weights()
OTHER = networks.weights(seed=99)
STEPS = 3


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a run's file, and pretrained ones: bare, and with Adam's state."""
    folder = tmp_path_factory.mktemp("files")
    run = networks.compiled()
    networks.fit(run, STEPS)
    run.save_weights(folder / "run.weights.h5")
    plain = networks.compiled(keras.optimizers.Adam(), OTHER)
    plain.optimizer.build(plain.trainable_variables)
    plain.save_weights(folder / "adam.weights.h5")
    networks.network(OTHER).save_weights(folder / "bare.weights.h5")
    names = ("run", "adam", "bare")
    return {name: folder / f"{name}.weights.h5" for name in names}


def steps_taken(model):
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


@pytest.mark.parametrize("pretrained", ["bare", "adam"])
def test_weights_read_over_a_state_that_waits_begin_a_new_run(
    pretrained, files
):
    model = networks.compiled(dual_opt(), networks.weights(seed=7))
    model.load_weights(files["run"])
    with pytest.warns(UserWarning, match="state") as caught:
        model.load_weights(files[pretrained])
    assert len(networks.told(caught)) == 1
    networks.fit(model, STEPS)
    assert steps_taken(model) == STEPS
    networks.assert_anchored_at(model.optimizer, OTHER)
    networks.assert_close(model, networks.expected(STEPS, OTHER)[-1])


@pytest.mark.parametrize("pretrained", ["bare", "adam"])
def test_weights_read_over_a_state_that_was_read_name_the_way_to_anchor(
    pretrained, files
):
    model = networks.compiled(dual_opt(), networks.weights(seed=7))
    model.optimizer.build(model.trainable_variables)
    model.load_weights(files["run"])
    with pytest.warns(UserWarning, match="anchor_at"):
        model.load_weights(files[pretrained])
    networks.assert_anchored_at(model.optimizer, PRETRAINED)
    model.optimizer.anchor_at()
    networks.fit(model, 1)
    networks.assert_anchored_at(model.optimizer, OTHER)


@pytest.mark.parametrize("built", [False, True])
def test_a_state_read_after_pretrained_weights_goes_on(built, files):
    model = networks.compiled(dual_opt(), networks.weights(seed=7))
    if built:
        model.optimizer.build(model.trainable_variables)
    model.load_weights(files["bare"])
    model.load_weights(files["run"])
    networks.fit(model, STEPS, start=STEPS)
    assert steps_taken(model) == 2 * STEPS
    networks.assert_anchored_at(model.optimizer, PRETRAINED)
    networks.assert_close(model, networks.expected(2 * STEPS, PRETRAINED)[-1])


class SetRate(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.model.optimizer.learning_rate = networks.RATE / 8


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("way", ["assigned", "callback", "before the load"])
def test_a_rate_given_after_the_state_wins(way, built, files):
    """And one given before it does not."""
    model = networks.compiled(dual_opt(), OTHER)
    if built:
        model.optimizer.build(model.trainable_variables)
    if way == "before the load":
        model.optimizer.learning_rate = networks.RATE / 8
    model.load_weights(files["run"])
    if way == "assigned":
        model.optimizer.learning_rate = networks.RATE / 8
    networks.fit(
        model, STEPS, STEPS, callbacks=[SetRate()] if way == "callback" else ()
    )
    rate = networks.RATE if way == "before the load" else networks.RATE / 8
    found = float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))
    assert found == pytest.approx(rate, rel=1e-6)
    # The strength is that of the run: its reference is state.
    assert model.optimizer.reference_learning_rate == networks.RATE
    wanted = networks.expected(
        2 * STEPS,
        PRETRAINED,
        rate=lambda step: networks.RATE if step < STEPS else rate,
    )
    networks.assert_close(model, wanted[-1])


NAMES = ("a", "b", "c")


def named(*names):
    """Return a model of layers of one shape, nothing of it 0."""
    layers = [
        keras.layers.Dense(3, activation="tanh", name=name) for name in names
    ]
    model = keras.Sequential([keras.Input((3,)), *layers])
    random = np.random.default_rng(2)
    model.set_weights(
        [random.uniform(0.2, 0.9, w.shape) for w in model.weights]
    )
    return model


def only(name):
    return rf"(.*/)?{name}/.*"


def rigid(**arguments):
    """Return an optimizer that lets no weight move which it pulls."""
    return DualOpt(0.1, rollback=1.0, rollback_min=1.0, **arguments)


def moved(model, optimizer):
    """Take a step; return the names of the layers that moved."""
    networks.compile(model, optimizer.bind(model))
    before = {layer.name: layer.get_weights() for layer in model.layers}
    x = np.random.default_rng(6).normal(size=(8, 3)).astype("float32")
    model.train_on_batch(x, np.ones((8, 3), "float32"))
    return {
        layer.name
        for layer in model.layers
        if any(
            (now != then).any()
            for now, then in zip(
                layer.get_weights(), before[layer.name], strict=True
            )
        )
    }


EVERY = {only("a"): 0.25, only("b"): 0.5, only("c"): 0.75}


def config_of_a_trained_optimizer(**arguments):
    model = named(*NAMES)
    optimizer = rigid(**{"depth": EVERY, **arguments})
    moved(model, optimizer)
    return optimizer.get_config()


def test_exclude_assigned_after_from_config_wins():
    config = config_of_a_trained_optimizer(exclude=[only("a")])
    optimizer = DualOpt.from_config(config)
    optimizer.exclude = [only("b")]
    assert moved(named(*NAMES), optimizer) == {"b"}


def test_exclude_edited_in_the_config_wins():
    config = config_of_a_trained_optimizer(exclude=[only("a")])
    edited = {**config, "exclude": [only("c")]}
    assert moved(named(*NAMES), DualOpt.from_config(edited)) == {"c"}
    without = {**config, "exclude": []}
    assert moved(named(*NAMES), DualOpt.from_config(without)) == set()


def relative(optimizer, names):
    """Return the relative depth of each layer, by its name."""
    return {
        name: row.relative
        for name in names
        for row in optimizer.depth.rows
        if f"{name}/" in row.path
    }


DEPTH = {only("a"): 0.1, only("b"): 0.2, only("c"): 0.9}


@pytest.mark.parametrize("way", ["assigned", "edited"])
def test_depth_given_after_the_config_wins(way):
    config = config_of_a_trained_optimizer()
    if way == "edited":
        # As it is written: a list of pairs.
        config = {**config, "depth": [[k, v] for k, v in DEPTH.items()]}
    optimizer = DualOpt.from_config(config)
    if way == "assigned":
        optimizer.depth = DEPTH
    moved(named(*NAMES), optimizer)
    assert relative(optimizer, NAMES) == {"a": 0.1, "b": 0.2, "c": 0.9}


@pytest.mark.parametrize("way", ["assigned", "edited"])
def test_a_pattern_that_matches_nothing_is_an_error_after_a_config_too(way):
    config = config_of_a_trained_optimizer(exclude=[only("a")])
    if way == "edited":
        config = {**config, "exclude": ["nothing"]}
    optimizer = DualOpt.from_config(config)
    if way == "assigned":
        optimizer.exclude = ["nothing"]
    with pytest.raises(ValueError, match="exclude"):
        moved(named(*NAMES), optimizer)


OTHER_ORDERS = {
    "names": (NAMES, ("c", "b", "a")),
    # Numbers of a person's own are names, too.
    "numbers": (
        ("block_1", "block_2", "block_3"),
        ("block_3", "block_2", "block_1"),
    ),
}


@pytest.mark.parametrize("order", OTHER_ORDERS)
def test_patterns_speak_of_the_names_of_another_model(order):
    old, new = OTHER_ORDERS[order]
    depth = {only(name): 0.1 + 0.2 * n for n, name in enumerate(old)}
    first = rigid(depth=depth, exclude=[only(old[0])])
    assert moved(named(*old), first) == {old[0]}
    optimizer = DualOpt.from_config(first.get_config())
    assert moved(named(*new), optimizer) == {old[0]}
    found = relative(optimizer, new)
    assert found == {name: depth[only(name)] for name in old}


def test_patterns_stay_with_their_weights_where_what_comes_before_differs():
    """Keras numbers models as they come; the rest of the path is the same."""
    model = named(*NAMES)
    first = rigid(depth=EVERY, exclude=[rf"{model.name}/b/.*"])
    assert moved(model, first) == {"b"}
    other = named(*NAMES)
    assert other.name != model.name
    optimizer = DualOpt.from_config(first.get_config())
    assert moved(other, optimizer) == {"b"}
    assert relative(optimizer, NAMES) == {"a": 0.25, "b": 0.5, "c": 0.75}


def test_a_state_of_another_head_is_passed_over_where_that_was_asked_for(files):
    """As Keras does for the weights; without it, it is an error."""

    def with_a_wider_head():
        model = networks.network(networks.weights(seed=7))
        body = model.layers[:-1]
        wide = keras.Sequential([*body, keras.layers.Dense(5, name="dense_3")])
        wide.build((None, networks.WIDTHS[0]))
        wide.compile(dual_opt(), "mse", jit_compile=False)
        return wide

    x = networks.data(1)[0]
    y = np.ones((len(x), 5), dtype="float32")
    model = with_a_wider_head()
    with pytest.warns(UserWarning, match="could not be loaded"):
        model.load_weights(files["run"], skip_mismatch=True)
    loaded = networks.arrays(model.weights)[:6]
    with pytest.warns(UserWarning, match=r"skip_mismatch.*\(4, 2\)"):
        model.fit(x, y, verbose=0)
    networks.assert_same(networks.anchors(model.optimizer)[:6], loaded)
    assert steps_taken(model) == 1
