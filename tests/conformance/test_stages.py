"""Anchors that are moved, taken over and dropped on request."""

import contextlib

import keras
import networks
import numpy as np
import pytest
import reference
from networks import dual_opt

from keras_dualopt import DualOpt, save_without_anchors

PRETRAINED = networks.weights()
OTHER = networks.weights(seed=99)


def reanchored(first, then, anchor_of=None):
    """Return the reference's weights where θ₀ moves after `first` steps.

    `anchor_of` gives the new θ₀ from the present weights; momentum stays.
    """
    weights = [
        reference.OlorAdam(theta, strength)
        for theta, strength in zip(
            PRETRAINED, networks.strengths(), strict=True
        )
    ]
    for step in range(first + then):
        thetas = [weight.theta for weight in weights]
        if step == first:
            anchors = thetas if anchor_of is None else anchor_of
            for weight, anchor in zip(weights, anchors, strict=True):
                weight.anchor = np.array(anchor, dtype="float64")
                weight.overwrite(weight.theta)
        for weight, g in zip(
            weights, networks.gradient(step, thetas), strict=True
        ):
            weight.step(g, networks.RATE)
    return [weight.theta for weight in weights]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Return the same weights as each kind of source for `anchor_at`."""
    path = tmp_path_factory.mktemp("sources") / "other.weights.h5"
    model = networks.network(OTHER)
    model.save_weights(path)
    optimizer = dual_opt()
    copy = networks.compiled(optimizer, OTHER)
    optimizer.build(copy.trainable_variables)
    return {
        "model": model,
        "weights file": path,
        "weights file as text": str(path),
        "optimizer": optimizer,
        "keep alive": copy,
    }


SOURCES = ("model", "weights file", "weights file as text", "optimizer")


@pytest.mark.parametrize("source", SOURCES)
def test_anchor_at_a_source_after_training(source, sources):
    model = networks.compiled()
    networks.fit(model, 3)
    before = networks.arrays(model.variables)
    assert model.optimizer.anchor_at(sources[source]) is model.optimizer
    networks.assert_same(networks.arrays(model.variables), before)
    networks.fit(model, 3, start=3)
    networks.assert_anchored_at(model.optimizer, OTHER)
    networks.assert_close(model, reanchored(3, 3, OTHER))


@pytest.mark.parametrize("source", SOURCES)
def test_anchor_at_a_source_before_build(source, sources):
    model = networks.compiled(dual_opt().anchor_at(sources[source]), PRETRAINED)
    assert not model.optimizer.built
    networks.fit(model, 3)
    networks.assert_anchored_at(model.optimizer, OTHER)
    networks.assert_close(model, reanchored(0, 3, OTHER))


def test_anchor_at_the_present_weights_begins_a_new_stage():
    """Continual learning: learn A, anchor, learn B without forgetting A."""
    model = networks.compiled()
    networks.fit(model, 3)
    learned = networks.arrays(model.trainable_variables)
    model.optimizer.anchor_at()
    networks.fit(model, 3, start=3)
    networks.assert_anchored_at(model.optimizer, learned)
    networks.assert_close(model, reanchored(3, 3))


def test_anchor_at_the_present_weights_in_the_middle_of_fit():
    class Anchor(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 3:
                self.model.optimizer.anchor_at()

    model = networks.compiled()
    networks.fit(model, 6, callbacks=[Anchor()])
    networks.assert_close(model, reanchored(3, 3))


def test_anchor_at_before_build_is_that_of_the_first_step():
    """Asked for early, the present weights are still those of then."""
    model = networks.compiled(dual_opt().anchor_at(), OTHER)
    model.set_weights(PRETRAINED)
    networks.fit(model, 2)
    networks.assert_anchored_at(model.optimizer, PRETRAINED)


def with_a_nan():
    bad = networks.weights(seed=99)
    bad[2][1, 1] = np.nan
    return networks.network(bad)


def wider():
    return keras.Sequential(
        [keras.Input((3,)), *(keras.layers.Dense(6) for _ in range(4))]
    )


def another_optimizer():
    model = wider()
    optimizer = dual_opt()
    optimizer.bind(model).build(model.trainable_variables)
    optimizer.model = model  # Keeps it alive.
    return optimizer


REFUSED = {
    "a model with a NaN": (with_a_nan, ValueError, "NaN or infinite"),
    "a model of other shapes": (wider, ValueError, "of the same architecture"),
    "an optimizer of another model": (
        another_optimizer,
        ValueError,
        "belongs to another model|shares no weight",
    ),
    "an unbuilt optimizer": (
        dual_opt,
        ValueError,
        "has not seen its variables",
    ),
    "a scratch optimizer": (
        lambda: DualOpt(0.1, **networks.SCRATCH),
        ValueError,
        "scratch mode",
    ),
    "a number": (lambda: 3, TypeError, "`source` must be None, a model"),
    "no file": (lambda: "no.weights.h5", OSError, "no.weights.h5"),
}


def test_of_equal_parts_a_model_stands_for_the_one_that_is_trained():
    model = networks.towers(0.6, 0.6)
    model.get_layer("tower_0").trainable = False
    source = networks.towers(0.3).get_layer("tower_0")
    optimizer = dual_opt().bind(model, head="head").anchor_at(source)
    optimizer.build(model.trainable_variables)
    networks.assert_anchored_at(
        optimizer, networks.arrays([*source.weights, *model.weights[-2:]])
    )


def test_a_model_that_may_stand_for_each_of_several_parts_is_refused():
    model, pretrained = networks.towers(0.6, 0.6), networks.towers(0.3, 0.3)
    optimizer = dual_opt().bind(model, head="head")
    optimizer.build(model.trainable_variables)
    with pytest.raises(ValueError, match=r"one part.*'tower_0', 'tower_1'"):
        optimizer.anchor_at(pretrained.get_layer("tower_0"))
    optimizer.anchor_at(pretrained)  # The way out.
    networks.assert_anchored_at(optimizer, networks.arrays(pretrained.weights))


def test_a_model_inside_of_nothing_but_another_is_found():
    inner = networks.towers(0.6).get_layer("tower_0")
    inputs = keras.Input(inner.input_shape[1:])
    model = keras.Model(inputs, inner(inputs))
    optimizer = dual_opt().bind(model, head=())
    source = networks.towers(0.3).get_layer("tower_0")
    optimizer.anchor_at(source).build(model.trainable_variables)
    networks.assert_same(
        networks.arrays(optimizer.anchors), networks.arrays(source.weights)
    )


def test_a_state_that_waits_for_build_is_said_to_wait(tmp_path):
    networks.trained().save_weights(tmp_path / "run.weights.h5")
    model = networks.compiled(dual_opt(), OTHER)
    model.load_weights(tmp_path / "run.weights.h5")
    with pytest.raises(ValueError, match=r"wait for them.*optimizer\.build"):
        dual_opt().anchor_at(model.optimizer)
    model.optimizer.build(model.trainable_variables)
    networks.compile(model, dual_opt().anchor_at(model.optimizer))
    networks.fit(model, 1)
    networks.assert_anchored_at(model.optimizer, PRETRAINED)


@pytest.fixture(scope="module")
def once_trained():
    model = networks.compiled()
    networks.fit(model, 1)
    return model


@pytest.mark.parametrize("source", REFUSED)
def test_a_refused_source_leaves_the_anchors(source, once_trained):
    make_source, error, words = REFUSED[source]
    model = once_trained
    before = networks.arrays(model.variables)
    with pytest.raises(error, match=words):
        model.optimizer.anchor_at(make_source())
    networks.assert_anchored_at(model.optimizer, PRETRAINED)
    networks.assert_same(networks.arrays(model.variables), before)


def test_anchor_at_and_drop_anchors_in_scratch_mode_are_errors():
    model = networks.compiled(DualOpt(0.1, **networks.SCRATCH))
    for call in (model.optimizer.anchor_at, model.optimizer.drop_anchors):
        with pytest.raises(ValueError, match=r"fine-tune mode"):
            call()


@pytest.mark.parametrize("ending", ["keras", "weights.h5"])
def test_dropped_anchors_are_gone_from_file_and_memory(ending, tmp_path):
    # Wide, so that θ₀ is most of the file.
    layers = [keras.layers.Dense(60) for _ in range(4)]
    model = keras.Sequential([keras.Input((60,)), *layers])
    networks.compile(model, dual_opt(base="sgd"))
    x, y = np.ones((8, 60), "float32"), np.zeros((8, 60), "float32")
    model.fit(x, y, verbose=0)
    save = model.save if ending == "keras" else model.save_weights
    save(tmp_path / f"with.{ending}")
    result = model.evaluate(x, y, verbose=0)
    count = len(model.optimizer.variables)
    model.optimizer.drop_anchors()
    assert model.optimizer.anchors == [None] * 8
    assert len(model.optimizer.variables) == count - 6
    save(tmp_path / f"without.{ending}")

    sizes = [
        (tmp_path / f"{name}.{ending}").stat().st_size
        for name in ("with", "without")
    ]
    held = 3 * (60 * 60 + 60) * 4
    assert sizes[0] - sizes[1] > 0.95 * held

    if ending == "keras":
        loaded = keras.saving.load_model(tmp_path / "without.keras")
    else:
        loaded = keras.models.clone_model(model)
        networks.compile(loaded, dual_opt(base="sgd"))
        loaded.load_weights(tmp_path / "without.weights.h5")
    assert loaded.evaluate(x, y, verbose=0) == result
    before = networks.arrays(loaded.variables)
    for trained in (model, loaded):
        with pytest.raises(ValueError, match="anchor_at"):
            trained.fit(x, y, verbose=0)
        networks.assert_same(networks.arrays(trained.variables), before)
    # The way out that the error names.
    loaded.optimizer.anchor_at()
    networks.assert_same(
        [anchor for anchor in networks.anchors(loaded.optimizer)[:6]],
        networks.arrays(loaded.trainable_variables)[:6],
    )
    loaded.fit(x, y, verbose=0)
    assert int(loaded.optimizer.iterations) == 2


def test_state_with_anchors_is_read_into_an_optimizer_without(tmp_path):
    model = networks.compiled()
    networks.fit(model, 2)
    model.save_weights(tmp_path / "x.weights.h5")
    model.optimizer.drop_anchors()
    model.load_weights(tmp_path / "x.weights.h5")
    networks.fit(model, 2, start=2)
    networks.assert_anchored_at(model.optimizer, PRETRAINED)
    networks.assert_close(model, networks.expected(4, PRETRAINED)[-1])


def freeze(model, frozen):
    for layer, value in zip(model.layers, frozen, strict=True):
        layer.trainable = not value


def trained_upper(steps=3):
    """Return a model of which only the upper half was trained."""
    model = networks.network(PRETRAINED)
    freeze(model, [True, True, False, False])
    networks.compile(model, dual_opt())
    networks.fit(model, steps)
    return model


def unfrozen_reference(weights, anchors, steps, start):
    found = reference.train(
        [
            reference.OlorAdam(theta, strength, anchor=anchor)
            for theta, strength, anchor in zip(
                weights, networks.strengths(), anchors, strict=True
            )
        ],
        lambda step, thetas: networks.gradient(step + start, thetas),
        lambda step: networks.RATE,
        steps,
    )
    return found[-1]


def test_frozen_layers_have_no_anchor_and_count_as_layers():
    model = trained_upper()
    anchors = networks.anchors(model.optimizer)
    assert len(anchors) == 4
    assert anchors[2:] == [None, None]
    networks.assert_same(anchors[:2], PRETRAINED[4:6])
    # The third of three pretrained layers: the weakest pull, as unfrozen.
    assert networks.strengths_of(model.optimizer)[:2] == pytest.approx(
        [networks.FINETUNE["rollback_min"]] * 2
    )


@pytest.mark.parametrize("before_build", [True, False])
def test_unfrozen_layers_join_and_the_anchors_are_carried_over(before_build):
    """Freeze → fit → unfreeze → compile again: θ₀ is still the pretrained."""
    model = trained_upper()
    old, new = model.optimizer, dual_opt()
    freeze(model, [False] * 4)
    networks.compile(model, new)
    if not before_build:
        new.build(model.trainable_variables)
    new.anchor_at(old)
    tuned = networks.arrays(model.trainable_variables)
    assert np.abs(tuned[4] - PRETRAINED[4]).max() > 1e-3
    networks.fit(model, 3, start=3)
    networks.assert_anchored_at(new, PRETRAINED)
    networks.assert_close(
        model, unfrozen_reference(tuned, PRETRAINED, 3, start=3)
    )


def test_anchors_are_carried_over_to_a_copy_of_the_model(tmp_path):
    """Not the same variables, but the same places."""
    model = trained_upper()
    copy = networks.network(networks.arrays(model.weights))
    networks.compile(copy, dual_opt().anchor_at(model.optimizer))
    copy.optimizer.build(copy.trainable_variables)
    networks.assert_anchored_at(copy.optimizer, PRETRAINED)


@pytest.mark.parametrize("change", ["frozen", "unfrozen"])
def test_changed_list_of_variables_is_an_error_with_the_way_out(change):
    model = networks.network(PRETRAINED)
    freeze(model, [change == "unfrozen", False, False, False])
    networks.compile(model, dual_opt())
    model.optimizer.build(model.trainable_variables)
    freeze(model, [change == "frozen", False, False, False])
    with pytest.raises(
        ValueError, match=r"^The \d variables .*anchor_at\(old\)"
    ):
        networks.fit(model, 1)
    networks.assert_same(networks.arrays(model.weights), PRETRAINED)


def stage(model, frozen, start, optimizer=None):
    """Freeze, compile with a new optimizer that takes over, and train."""
    if optimizer is None:
        optimizer = dual_opt().anchor_at(model.optimizer)
    freeze(model, frozen)
    networks.compile(model, optimizer)
    networks.fit(model, 2, start=start)


def drifted(frozen):
    """Return a model trained whole, and then with layers frozen."""
    model = networks.compiled()
    networks.fit(model, 2)
    stage(model, frozen, 2)
    for value, start in zip(
        networks.arrays(model.weights), PRETRAINED, strict=True
    ):
        assert np.abs(value - start).max() > 1e-3
    return model


# Where the head alone is trained, it is said that nothing is pulled.
head_alone = pytest.mark.filterwarnings(
    "ignore:None of the trainable weights was pretrained"
)
BASE = [True, True, True, False]
FROZEN = {
    "the base": BASE,
    "one layer": [False, True, False, False],
}


@head_alone
@pytest.mark.parametrize("frozen", FROZEN)
def test_anchors_outlive_stages_in_which_their_weights_are_frozen(frozen):
    """θ₀ changes only through `anchor_at` and `drop_anchors`."""
    model = drifted(FROZEN[frozen])
    stage(model, FROZEN[frozen], 4)  # Handed on once more.
    assert len(model.optimizer.anchors) == 2 * FROZEN[frozen].count(False)
    tuned = networks.arrays(model.weights)
    stage(model, [False] * 4, 6)
    networks.assert_anchored_at(model.optimizer, PRETRAINED)
    networks.assert_close(
        model, unfrozen_reference(tuned, PRETRAINED, 2, start=6)
    )
    # What is pulled again is held once.
    assert model.optimizer.carried == {}


@head_alone
def test_anchors_outlive_being_frozen_inside_of_a_loss_scale():
    def scaled(model):
        return keras.optimizers.LossScaleOptimizer(
            dual_opt().anchor_at(model.optimizer)
        )

    model = drifted(BASE)
    stage(model, BASE, 4, scaled(model))
    stage(model, [False] * 4, 6, scaled(model))
    networks.assert_anchored_at(model.optimizer, PRETRAINED)


def test_stages_that_share_no_weight_but_the_model_keep_their_anchors():
    model = networks.network(PRETRAINED)
    stage(model, [False, False, True, True], 0, dual_opt())
    stage(model, [True, True, False, False], 2)
    stage(model, [False] * 4, 4)
    networks.assert_anchored_at(model.optimizer, PRETRAINED)


@head_alone
@pytest.mark.parametrize("ending", ["keras", "weights.h5"])
def test_anchors_of_frozen_weights_are_saved(ending, tmp_path):
    model = drifted(BASE)
    path = tmp_path / f"x.{ending}"
    if ending == "keras":
        model.save(path)
        loaded = keras.saving.load_model(path)
    else:
        model.save_weights(path)
        loaded = networks.network(OTHER)
        freeze(loaded, BASE)
        networks.compile(loaded, dual_opt())
        loaded.load_weights(path)
        # Kept until there are variables, and written as they were read.
        again = tmp_path / "again.weights.h5"
        loaded.save_weights(again)
        loaded.load_weights(again)
        loaded.optimizer.build(loaded.trainable_variables)
    stage(loaded, [False] * 4, 4)
    networks.assert_anchored_at(loaded.optimizer, PRETRAINED)


@head_alone
def test_anchors_of_frozen_weights_are_not_shipped(tmp_path):
    model = drifted(BASE)
    save_without_anchors(model, tmp_path / "x.keras")
    loaded = keras.saving.load_model(tmp_path / "x.keras")
    assert loaded.optimizer.carried == {}
    assert len(model.optimizer.carried) == 6


def dropped(optimizer, sources):
    optimizer.drop_anchors()
    optimizer.anchor_at()


FORGETTING = {
    "a new stage": lambda optimizer, sources: optimizer.anchor_at(),
    "a model": lambda optimizer, sources: optimizer.anchor_at(sources["model"]),
    "a file": lambda optimizer, sources: optimizer.anchor_at(
        sources["weights file"]
    ),
    "dropped": dropped,
}


@pytest.mark.parametrize("way", FORGETTING)
def test_new_anchors_forget_those_of_frozen_weights(way, sources):
    frozen = [True, True, False, False]
    model = drifted(frozen)
    FORGETTING[way](model.optimizer, sources)
    new = dual_opt().anchor_at(model.optimizer)
    freeze(model, [False] * 4)
    present = networks.arrays(model.weights)
    new.bind(model).build(model.trainable_variables)
    networks.assert_same(networks.anchors(new)[:4], present[:4])


def test_the_present_weights_asked_for_before_build_forget_a_source(sources):
    model = networks.network(PRETRAINED)
    optimizer = dual_opt().anchor_at(sources["optimizer"]).anchor_at()
    optimizer.bind(model).build(model.trainable_variables)
    networks.assert_anchored_at(optimizer, PRETRAINED)


def test_an_anchor_of_a_frozen_weight_of_another_shape_is_refused():
    model = drifted([True, False, False, False])
    widths = (6, 4, 4, 2)
    layers = [keras.layers.Dense(width) for width in widths]
    other = keras.Sequential([keras.Input((3,)), *layers])
    optimizer = dual_opt().bind(other)
    optimizer.build(other.trainable_variables)
    with pytest.raises(ValueError, match=r"shape \(3, 6\).*\(3, 5\)"):
        optimizer.anchor_at(model.optimizer)


def test_places_in_a_part_are_not_those_of_the_whole():
    """The part's first layer would be the whole's, of the same shape."""

    def square(name):
        return keras.layers.Dense(3, name=name)

    part = keras.Sequential([keras.Input((3,)), square("a"), square("b")])
    old = dual_opt(depth={".*": 0.3}).bind(part)
    old.build(part.trainable_variables)
    old.anchor_at()
    whole = keras.Sequential([keras.Input((3,)), square("new"), part])
    part.layers[0].trainable = False
    new = dual_opt(depth={".*": 0.3}).bind(whole)
    new.build(whole.trainable_variables)
    new.anchor_at(old)
    assert new.carried == {}
    networks.assert_same(
        networks.anchors(new), networks.arrays(whole.trainable_variables)
    )


@head_alone
def test_summary_states_the_bytes_of_anchors_of_frozen_weights():
    lines = []
    drifted(BASE).optimizer.summary(lines.append)
    held = 4 * sum(array.size for array in PRETRAINED[:6])
    assert lines[0].endswith(
        f"and {held:,} bytes on the host: θ₀ of 6 weights that are not "
        "trained now"
    )


def test_weights_that_another_optimizer_has_moved_warn():
    """Compiling anew would lose θ₀ without a word."""
    model = networks.compiled()
    networks.fit(model, 1)
    for way in ([], [None], [model.optimizer]):
        optimizer = dual_opt()
        for source in way:
            optimizer.anchor_at(source)
        networks.compile(model, optimizer)
        with (
            contextlib.nullcontext()
            if way
            else pytest.warns(UserWarning, match=r"`new\.anchor_at\(old\)`")
        ):
            networks.fit(model, 1)
    # Weights that are put back to the start are pretrained ones again.
    model.set_weights(PRETRAINED)
    networks.compile(model, dual_opt())
    networks.fit(model, 1)
