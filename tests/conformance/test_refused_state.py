"""State that does not fit is refused, and nothing has been written then."""

import json
import zlib

import keras
import networks
import numpy as np
import pytest
from networks import dual_opt

from keras_dualopt import DualOpt, bases


def chain(*widths):
    layers = [keras.layers.Dense(width) for width in widths]
    return keras.Sequential([keras.Input((3,)), *layers])


def frozen_first(model):
    model.layers[0].trainable = False
    return model


def step(model, optimizer, times=1, head=None):
    """Build on the model and take a step, without compiling anything."""
    if not optimizer.built:
        optimizer.bind(model, head)
    random = np.random.default_rng(8)
    for _ in range(times):
        optimizer.apply(
            [
                keras.ops.convert_to_tensor(
                    random.normal(size=v.shape), v.dtype
                )
                for v in model.trainable_variables
            ],
            model.trainable_variables,
        )
    return optimizer


def saved(model, optimizer, head=None):
    store = {}
    step(model, optimizer, head=head).save_own_variables(store)
    return store


# what differs: (model that reads, its optimizer, words of the error)
OTHERS = {
    "one layer more": (
        lambda: chain(5, 4, 2, 2),
        dual_opt,
        r"weight 'sequential.*/(kernel|bias)'.*Received: .*without it",
    ),
    "one layer less": (
        lambda: chain(5, 2),
        dual_opt,
        r"shape \(5, 2\).*\(5, 4\)",
    ),
    "other shapes": (
        lambda: chain(5, 6, 2),
        dual_opt,
        r"shape \(5, 6\).*\(5, 4\)",
    ),
    "other order": (
        lambda: chain(4, 5, 2),
        dual_opt,
        r"shape \(3, 4\).*\(3, 5\)",
    ),
    "frozen layer": (
        lambda: frozen_first(chain(5, 4, 2)),
        dual_opt,
        r"of 4 weights.*a file of 6;.*anchor_at\(old_optimizer\)",
    ),
    "other base": (
        lambda: chain(5, 4, 2),
        lambda: dual_opt(base="sgd"),
        r"base='SGD'.*base='Adam'",
    ),
    "wrapped base": (
        lambda: chain(5, 4, 2),
        lambda: dual_opt(base=keras.optimizers.Lion()),
        r"base='keras.Lion'.*base='Adam'",
    ),
    "other mode": (
        lambda: chain(5, 4, 2),
        lambda: DualOpt(networks.RATE, **networks.SCRATCH),
        r"mode='scratch'.*mode='finetune'",
    ),
    "averages wanted": (
        lambda: chain(5, 4, 2),
        lambda: dual_opt(use_ema=True),
        r"'model_variables_moving_average'.*file has none.*use_ema",
    ),
    "accumulators wanted": (
        lambda: chain(5, 4, 2),
        lambda: dual_opt(gradient_accumulation_steps=2),
        r"'accumulated_gradients'.*gradient_accumulation_steps",
    ),
    "other head": (
        lambda: chain(5, 4, 2),
        lambda: dual_opt(depth={".*": 0.3}),
        r"has 'anchors' for weight .*dense_\d+/kernel.*head",
    ),
}


@pytest.fixture(scope="module")
def state():
    return saved(chain(5, 4, 2), dual_opt())


@pytest.mark.parametrize("built", [True, False])
@pytest.mark.parametrize("other", OTHERS)
def test_other_state_is_refused_before_anything_is_written(other, built, state):
    make_model, make_optimizer, words = OTHERS[other]
    model, optimizer = make_model(), make_optimizer()
    if not built:
        optimizer.load_own_variables(state)  # Kept: there are no variables.
        with pytest.raises(ValueError, match=f"(?s)does not fit.*{words}"):
            step(model, optimizer)
        before = networks.arrays(model.variables)
        # It does not train without the state that was given to it.
        with pytest.raises(ValueError, match="were refused"):
            # Two, where gradients are accumulated.
            step(model, optimizer, times=2)
        networks.assert_same(networks.arrays(model.variables), before)
        return
    step(model, optimizer)
    before = networks.arrays(optimizer.variables)
    with pytest.raises(ValueError, match=f"(?s)does not fit.*{words}"):
        optimizer.load_own_variables(state)
    networks.assert_same(networks.arrays(optimizer.variables), before)


# The head of one side and of the other, as numbers of layers from the end, and
# what the reader expects of which layer. Found by itself, the head is one.
HEADS = {
    "none, found": (0, None, "has no", 2),
    "found, none": (None, 0, "has", 2),
    "found, two": (None, 2, "has no", 1),
    "two, found": (2, None, "has", 1),
    "two, none": (2, 0, "has", 1),
}


def head_of(model, count):
    return None if count is None else model.layers[len(model.layers) - count :]


@pytest.mark.parametrize("built", [True, False])
@pytest.mark.parametrize("case", HEADS)
def test_state_of_another_head_is_refused(case, built):
    """θ₀ would be missing, or that of weights that were not pretrained."""
    written, bound, expected, layer = HEADS[case]
    model = chain(5, 4, 2)
    state = saved(model, dual_opt(), head_of(model, written))
    model, optimizer = chain(5, 4, 2), dual_opt()
    path = model.layers[layer].kernel.path
    words = (
        rf"does not fit\. This optimizer {expected} 'anchors' for weight "
        rf"'{path}'.*head"
    )
    head = head_of(model, bound)
    if built:
        step(model, optimizer, head=head)
        before = networks.arrays(optimizer.variables)
        with pytest.raises(ValueError, match=words):
            optimizer.load_own_variables(state)
        networks.assert_same(networks.arrays(optimizer.variables), before)
    else:
        optimizer.load_own_variables(state)
        with pytest.raises(ValueError, match=words):
            step(model, optimizer, head=head)


def test_state_of_the_same_head_bound_otherwise_is_read():
    model = chain(5, 4, 2)
    state = saved(model, dual_opt(), head_of(model, 2))
    model = chain(5, 4, 2)
    patterns = {rf"(.*/)?{model.layers[0].name}/.*": 0.3, ".*": None}
    optimizer = step(model, dual_opt(depth=patterns))
    optimizer.load_own_variables(state)
    for index in range(2):
        np.testing.assert_array_equal(
            networks.arrays([optimizer.anchors[index]])[0],
            state[f"anchors.{index}"],
        )
    assert optimizer.anchors[2:] == [None] * 4


def test_a_head_in_the_config_is_not_overruled_by_bind():
    model = chain(5, 4, 2)
    config = dual_opt().bind(model, head_of(model, 2)).get_config()
    loaded = DualOpt.from_config(config)
    other = chain(5, 4, 2)
    with pytest.raises(ValueError, match="`depth` says already"):
        loaded.bind(other, head=head_of(other, 1))
    with pytest.raises(ValueError, match=r"'anchors' for weight '.*/kernel'"):
        step(other, loaded).load_own_variables(
            saved(chain(5, 4, 2), dual_opt())
        )


def test_state_of_a_wider_optimizer_is_refused(state):
    """What the file holds besides is lost data, not a detail."""
    wide = saved(chain(5, 4, 2), dual_opt(use_ema=True))
    optimizer = step(chain(5, 4, 2), dual_opt())
    before = networks.arrays(optimizer.variables)
    with pytest.raises(ValueError, match="model_variables_moving_average"):
        optimizer.load_own_variables(wide)
    networks.assert_same(networks.arrays(optimizer.variables), before)


def test_the_same_weights_in_another_order_are_matched_by_their_place(state):
    """Backends list the weights of some KerasHub tasks differently."""
    model, optimizer = chain(5, 4, 2), dual_opt()
    optimizer.bind(model)
    optimizer.build(model.trainable_variables[::-1])
    optimizer.load_own_variables(state)
    anchors = networks.arrays(optimizer.anchors[:1:-1])
    networks.assert_same(anchors, [state[f"anchors.{i}"] for i in range(4)])
    again = {}
    optimizer.save_own_variables(again)
    for index in range(6):
        np.testing.assert_array_equal(
            again[f"momentums.{5 - index}"], state[f"momentums.{index}"]
        )


def test_state_in_an_earlier_format_is_refused(state):
    """Its checksums were of the bytes alone."""
    manifest = json.loads(bytes(state["dualopt"])[:-4])
    text = json.dumps({**manifest, "format": 1}).encode()
    text += zlib.crc32(text).to_bytes(4, "big")
    old = {**state, "dualopt": np.frombuffer(text, dtype="uint8")}
    optimizer = step(chain(5, 4, 2), dual_opt())
    before = networks.arrays(optimizer.variables)
    with pytest.raises(ValueError, match=r"in format 2\. Received: format 1\."):
        optimizer.load_own_variables(old)
    networks.assert_same(networks.arrays(optimizer.variables), before)


def test_another_optimizers_state_is_named_and_not_read():
    model, plain = chain(5, 4, 2), keras.optimizers.Adam()
    plain.build(model.trainable_variables)
    store = {}
    plain.save_own_variables(store)
    for optimizer in (dual_opt(), step(chain(5, 4, 2), dual_opt())):
        before = networks.arrays(optimizer.variables)
        with pytest.warns(UserWarning, match=f"{len(store)} arrays of another"):
            optimizer.load_own_variables(store)
        networks.assert_same(networks.arrays(optimizer.variables), before)


def test_another_learning_rate_or_strength_may_go_on_with_the_state(state):
    """They are arguments, not state: a person may change them."""
    optimizer = step(
        chain(5, 4, 2),
        DualOpt(0.2, rollback=0.4, base=bases.Adam(beta_1=0.5)),
    )
    optimizer.load_own_variables(state)
    again = {}
    optimizer.save_own_variables(again)
    assert again.keys() == state.keys()
    for name in state:
        if name != "dualopt":
            np.testing.assert_array_equal(again[name], state[name])


def test_refused_state_is_named_by_the_error_of_load_weights(tmp_path):
    """Keras collects errors; ours must be among what the user reads."""
    model = chain(5, 4, 2)
    networks.compile(model, dual_opt())
    step(model, model.optimizer)
    model.save_weights(tmp_path / "x.weights.h5")
    other = chain(5, 4, 2)
    networks.compile(other, dual_opt(base="sgd"))
    step(other, other.optimizer)
    before = networks.arrays(other.optimizer.variables)
    with pytest.raises(ValueError, match=r"base='SGD'.*base='Adam'"):
        other.load_weights(tmp_path / "x.weights.h5")
    networks.assert_same(networks.arrays(other.optimizer.variables), before)
