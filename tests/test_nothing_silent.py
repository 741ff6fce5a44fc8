"""What a person would not notice is said: once, in one line, with a way out.

What was taken for the head, layers that look new, a second optimizer on
weights that another one has moved, weights that were set in the middle,
exclusions that leave nothing, precision that loses steps.
"""

import logging

import keras
import loops
import networks
import numpy as np
import pytest
from cases import BACKEND
from networks import dual_opt

from keras_dualopt import DualOpt, interpolate, review

PRETRAINED = networks.weights()
OTHER = networks.weights(seed=99)


def lines(caplog):
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("keras_dualopt")
    ]


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, logger="keras_dualopt")
    return caplog


def test_the_first_fit_says_what_was_taken_for_the_head(log):
    model = networks.compiled(dual_opt(), PRETRAINED)
    networks.fit(model, 2)
    networks.fit(model, 2)
    (line,) = lines(log)
    assert "dense_3" in line
    assert "dense_2" not in line
    assert "3" in line.replace("dense_3", "")  # layers that are anchored
    assert "\n" not in line
    assert [r.levelno for r in log.records if r.getMessage() == line] == [
        logging.INFO
    ]


def test_every_optimizer_says_it_and_train_on_batch_too(log):
    for _ in range(2):
        model = networks.compiled()
        for _ in range(2):
            model.train_on_batch(*networks.data(1))
    assert len(lines(log)) == 2


def test_it_says_that_there_is_no_head(log):
    model = networks.network(PRETRAINED)
    networks.compile(model, dual_opt().bind(model, head=()))
    networks.fit(model, 1)
    (line,) = lines(log)
    assert "dense_" not in line
    assert "4" in line


def test_the_line_can_be_silenced_and_scratch_mode_has_none(log):
    networks.fit(
        networks.compiled(DualOpt(0.1, **networks.SCRATCH), PRETRAINED), 1
    )
    log.set_level(logging.WARNING, logger="keras_dualopt")
    networks.fit(networks.compiled(dual_opt(), PRETRAINED), 1)
    assert lines(log) == []


def test_weights_that_were_forgotten_to_load_are_noticed(log):
    log.set_level(logging.WARNING, logger="keras_dualopt")
    for bias in (True, False):  # Kernels alone show nothing.
        model = keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(5, use_bias=bias),
                keras.layers.Dense(2),
            ]
        )
        model.compile(dual_opt(), "mse")
        model.fit(np.ones((2, 4)), np.ones((2, 2)), verbose=0)
    (line,) = lines(log)
    assert "pretrained weights loaded" in line


# The kinds of new layer between a pretrained body and the head.
NEW = {
    "dense": lambda: keras.layers.Dense(6, name="fresh"),
    "normalization": lambda: keras.layers.BatchNormalization(name="fresh"),
    "layer norm": lambda: keras.layers.LayerNormalization(name="fresh"),
}


def transferred(kind="dense"):
    """Return the flat idiom: new layers on the last but one of a model."""
    base = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(5, activation="tanh", name="old_1"),
            keras.layers.LayerNormalization(name="old_norm"),
            keras.layers.Dense(4, activation="tanh", name="old_2"),
            keras.layers.Dense(3, name="old_head"),
        ]
    )
    random = np.random.default_rng(4)
    base.set_weights([random.uniform(0.2, 0.9, w.shape) for w in base.weights])
    hidden = NEW[kind]()(base.layers[-2].output)
    return keras.Model(base.inputs, keras.layers.Dense(2, name="out")(hidden))


@pytest.mark.parametrize("kind", NEW)
def test_layers_that_look_new_are_named_with_the_way_out(kind):
    model = transferred(kind)
    networks.compile(model, dual_opt())
    with pytest.warns(UserWarning, match="head") as caught:
        networks.fit(model, 2)
    (text,) = networks.told(caught)
    assert "fresh" in text
    assert "bind" in text
    assert "old_" not in text
    assert "\n" not in text
    networks.fit(model, 2)  # Said once.


def test_new_layers_with_the_names_of_trained_ones_are_told_apart():
    model = networks.towers(0.6, 0.0, apart=False)
    networks.compile(model, dual_opt().bind(model, head="head"))
    with pytest.warns(UserWarning, match="head") as caught:
        networks.fit(model, 1)
    (text,) = networks.told(caught)
    assert "tower_1/mid, tower_1/proj" in text
    assert "tower_0" not in text


@pytest.mark.parametrize("walk", [interpolate, review])
def test_ways_back_to_layers_that_look_new_are_named_too(walk):
    model = transferred()
    networks.compile(model, dual_opt())
    with pytest.warns(UserWarning, match="head"):
        networks.fit(model, 2)
    with pytest.warns(UserWarning, match="fresh"):
        walk(model, *((0.5,) if walk is interpolate else ()))


@pytest.mark.parametrize("kind", NEW)
def test_new_layers_that_were_told_are_not_named(kind):
    model = transferred(kind)
    networks.compile(model, dual_opt().bind(model, head=["fresh", "out"]))
    networks.fit(model, 2)
    interpolate(model, 0.5)


def test_pretrained_layers_without_any_bias_are_not_named():
    """Biases are zeros all over: it says nothing."""
    start = [a * (a.ndim > 1) for a in PRETRAINED]
    networks.fit(networks.compiled(dual_opt(), start), 1)


AGAIN = {
    "compiled": lambda model, path: model,
    "loaded": lambda model, path: (
        model.save(path),
        keras.saving.load_model(path),
    )[1],
}


@pytest.mark.parametrize("way", AGAIN)
def test_a_second_optimizer_on_moved_weights_names_the_first(way, tmp_path):
    model = networks.compiled()
    networks.fit(model, 3)
    model = AGAIN[way](model, tmp_path / "model.keras")
    networks.compile(model, dual_opt())
    with pytest.warns(UserWarning, match="anchor_at") as caught:
        networks.fit(model, 2, start=3)
    assert len(networks.told(caught)) == 1
    networks.fit(model, 2, start=5)


class Interrupt(keras.callbacks.Callback):
    """Stops a cell of a notebook after its second batch."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            raise KeyboardInterrupt


def interrupted(model):
    with pytest.raises(KeyboardInterrupt):
        networks.fit(model, 4, callbacks=[Interrupt()])


def interrupted_later(model):
    networks.fit(model, 2)
    interrupted(model)


def interrupted_with_anchors_taken_over(model):
    networks.fit(model, 2)
    networks.compile(model, dual_opt().anchor_at(model.optimizer))
    interrupted(model)


def refused_after_a_warning(model):
    interrupted(model)
    networks.compile(model, dual_opt())
    with pytest.warns(UserWarning, match="Another DualOpt"):
        interrupted(model)


# Training that `fit` does not bring to its end.
UNFINISHED = {
    "train_on_batch": lambda model: [
        model.train_on_batch(*networks.data(1)) for _ in range(2)
    ],
    "interrupted": interrupted,
    "interrupted later": interrupted_later,
    "interrupted, anchors taken over": interrupted_with_anchors_taken_over,
    "interrupted twice": refused_after_a_warning,
    "own loop": lambda model: loops.compiled_steps(
        dual_opt().bind(model), model.trainable_variables, networks.gradient, 2
    ),
}


@pytest.mark.parametrize("way", UNFINISHED)
def test_a_second_optimizer_names_the_first_where_no_fit_has_ended(way):
    model = networks.compiled()
    UNFINISHED[way](model)
    networks.compile(model, dual_opt())
    with pytest.warns(UserWarning, match="anchor_at") as caught:
        networks.fit(model, 2)
    (text,) = networks.told(caught)
    assert "Another DualOpt" in text
    assert "dense_0/kernel" in text


@pytest.mark.parametrize("way", [*UNFINISHED][:2])
def test_folds_that_begin_at_the_same_weights_say_nothing(way):
    model = networks.compiled()
    for _ in range(3):
        UNFINISHED[way](model)
        model.set_weights(PRETRAINED)
        networks.compile(model, dual_opt())
    networks.fit(model, 2)


def test_a_second_optimizer_that_was_told_what_to_anchor_at_says_nothing():
    model = networks.compiled()
    networks.fit(model, 2)
    networks.compile(model, dual_opt().anchor_at(model.optimizer))
    networks.fit(model, 2)
    networks.assert_anchored_at(model.optimizer, PRETRAINED)
    networks.compile(model, dual_opt().anchor_at())
    present = networks.arrays(model.weights)
    networks.fit(model, 2)
    networks.assert_anchored_at(model.optimizer, present)


def test_a_second_optimizer_on_weights_that_came_anew_says_nothing(tmp_path):
    model = networks.compiled()
    networks.fit(model, 2)
    model.set_weights(PRETRAINED)
    networks.compile(model, dual_opt())
    networks.fit(model, 2)
    networks.compile(model, DualOpt(0.1, **networks.SCRATCH))
    networks.fit(model, 2)


@pytest.mark.filterwarnings("ignore:.*is stored in bfloat16")
def test_half_precision_weights_put_back_to_their_start_say_nothing(tmp_path):
    model = networks.network(PRETRAINED, dtype="bfloat16")
    start = networks.arrays(model.weights)
    networks.compile(model, dual_opt())
    networks.fit(model, 2)
    model.save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")
    model.set_weights(start)
    networks.compile(model, dual_opt())
    networks.fit(model, 2)


def lora():
    model = networks.network(PRETRAINED)
    for layer in model.layers[:2]:
        layer.enable_lora(2)
    networks.compile(model, dual_opt())
    networks.fit(model, 2)
    return model


@pytest.mark.parametrize("kind", ["model.keras", "model.weights.h5"])
def test_lora_that_keras_has_merged_is_said_to_learn_nothing(kind, tmp_path):
    path = tmp_path / kind
    model = lora()
    if kind == "model.keras":
        model.save(path)
        model = keras.saving.load_model(path)
    else:
        model.save_weights(path)
        model.load_weights(path)
    with pytest.warns(UserWarning, match=r"LoRA.*dense_0/lora_k.*dense_1") as c:
        networks.fit(model, 2)
    assert len(networks.told(c)) == 1
    networks.fit(model, 2)
    # By their momentum they may have moved: the way back is lost still.
    with pytest.raises(ValueError, match=r"lora_kernel_a.*source="):
        interpolate(model, 0.5)
    for layer in model.layers[:2]:
        layer.lora_kernel_a.assign(np.ones(layer.lora_kernel_a.shape))
    model.optimizer.anchor_at()
    networks.fit(model, 2)
    interpolate(model, 0.5)


@pytest.mark.skipif(
    BACKEND == "tensorflow",
    reason="a step that is compiled already runs no code of ours",
)
def test_weights_set_after_the_first_step_are_said_to_be_pulled_back():
    model = networks.compiled(dual_opt(), OTHER)
    networks.fit(model, 1)
    model.set_weights(PRETRAINED)
    with pytest.warns(UserWarning, match="anchor_at") as caught:
        networks.fit(model, 2)
    assert len(networks.told(caught)) == 1
    networks.assert_anchored_at(model.optimizer, OTHER)
    networks.fit(model, 1)  # Said once.


def test_weights_set_and_anchored_at_say_nothing():
    model = networks.compiled(dual_opt(), OTHER)
    networks.fit(model, 1)
    model.set_weights(PRETRAINED)
    model.optimizer.anchor_at()
    networks.fit(model, 2)
    networks.assert_anchored_at(model.optimizer, PRETRAINED)


def test_weights_that_a_callback_puts_back_say_nothing():
    model = networks.compiled()
    callback = keras.callbacks.EarlyStopping(
        "loss", patience=1, mode="max", restore_best_weights=True
    )
    x, y = networks.data()
    for _ in range(2):
        model.fit(x, y, epochs=4, verbose=0, callbacks=[callback])


def own_loop(model, steps=3):
    """Train without `compile`; return the optimizer."""
    optimizer = dual_opt().bind(model)
    variables = model.trainable_variables
    for step in range(steps):
        gradients = networks.gradient(step, networks.arrays(variables))
        optimizer.apply(
            [keras.ops.convert_to_tensor(np.float32(g)) for g in gradients],
            variables,
        )
    return optimizer


def compiled_anew(model):
    networks.compile(model, dual_opt())


def built_anew(model):
    compiled_anew(model)
    model.optimizer.build(model.trainable_variables)


LOOPS = {
    "not compiled": lambda model: None,
    "compiled with another": compiled_anew,
    "compiled and built": built_anew,
}


@pytest.mark.parametrize("after", LOOPS)
def test_the_way_back_after_a_loop_of_ones_own_is_never_empty(after):
    """The anchors are found, or the error names the optimizer with them."""
    model = networks.network(PRETRAINED)
    optimizer = own_loop(model)
    assert (networks.arrays(model.weights)[0] != PRETRAINED[0]).any()
    LOOPS[after](model)
    refusal = ""
    try:
        interpolate(model, 0.0)
    except ValueError as error:
        refusal = str(error)
    if refusal:
        assert optimizer.name in refusal
        assert "anchor_at" in refusal or "source" in refusal
    else:
        networks.assert_same(
            networks.arrays(model.weights)[:-2], PRETRAINED[:-2]
        )


NARROW = {
    "paper's adam": lambda: "adam",
    "paper's sgd": lambda: "sgd",
    "keras": lambda: keras.optimizers.SGD(momentum=0.9),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("base", NARROW)
def test_weights_stored_in_half_precision_are_said_to_lose_steps(base, dtype):
    model = networks.network(PRETRAINED, dtype=dtype)
    optimizer = dual_opt(base=NARROW[base]()).bind(model)
    with pytest.warns(UserWarning, match=dtype) as caught:
        optimizer.build(model.trainable_variables)
    (text,) = networks.told(caught)
    assert "mixed" in text
    # It would lose the same steps.
    assert "base=" not in text


def test_an_exclusion_that_leaves_nothing_to_pull_is_said():
    model = networks.compiled(dual_opt(exclude=[".*"]), PRETRAINED)
    with pytest.warns(UserWarning, match="exclude"):
        networks.fit(model, 1)


def test_pretrained_weights_that_are_not_finite_are_refused():
    start = [array.copy() for array in PRETRAINED]
    start[2][1, 1] = np.nan
    model = networks.compiled(dual_opt(), start)
    with pytest.raises(ValueError, match=r"(?s)finite.*dense_1/kernel"):
        networks.fit(model, 1)
    networks.assert_same(networks.arrays(model.weights), start)
