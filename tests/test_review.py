"""`review` and `interpolate`: the way between θ₀ and θ, and back again."""

import gc

import keras
import networks
import numpy as np
import pytest

from keras_dualopt import (
    DualOpt,
    ReviewCurve,
    interpolate,
    review,
    review_curve,
)

HEAD = 2  # The head's variables come last.
OTHER = networks.weights(seed=5)


def trained(optimizer=None, steps=6):
    return networks.trained(optimizer, steps, metrics=["mae"])


@pytest.fixture(scope="module")
def model():
    """Return one fine-tuned model; the tests leave it as they found it."""
    return trained()


@pytest.fixture
def tuned(model):
    """Return its weights, and check that they are there at the end."""
    weights = networks.arrays(model.weights)
    yield weights
    networks.assert_same(networks.arrays(model.weights), weights)


def between(alpha, tuned, origins=None):
    """Return θ₀ + α (θ − θ₀), the head at θ."""
    origins = networks.weights() if origins is None else origins
    body = [
        np.float64(a) + alpha * (np.float64(b) - np.float64(a))
        for a, b in zip(origins[:-HEAD], tuned[:-HEAD], strict=True)
    ]
    return [*body, *tuned[-HEAD:]]


def assert_at(model, alpha, tuned):
    got = networks.arrays(model.weights)
    for one, wanted in zip(got, between(alpha, tuned), strict=True):
        np.testing.assert_allclose(one, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_review_walks_back_in_equal_steps(model, tuned, steps):
    alphas = []
    for alpha in review(model, steps):
        alphas.append(alpha)
        assert_at(model, alpha, tuned)
        if alpha in (0.0, 1.0):
            networks.assert_same(
                networks.arrays(model.weights),
                tuned
                if alpha == 1.0
                else [*networks.weights()[:-HEAD], *tuned[-HEAD:]],
            )
    assert alphas == [1.0 - step / steps for step in range(steps + 1)]


def test_leaving_the_loop_restores_the_weights(model, tuned):
    for alpha in review(model, 5):
        if alpha < 0.5:
            break
    networks.assert_same(networks.arrays(model.weights), tuned)


def test_an_error_in_the_loop_restores_the_weights(model, tuned):
    def measure():
        for alpha in review(model, 5):
            if alpha < 0.5:
                raise RuntimeError("measuring failed")

    with pytest.raises(RuntimeError, match="measuring failed"):
        measure()
    networks.assert_same(networks.arrays(model.weights), tuned)


@pytest.mark.parametrize("end", ["close", "drop"])
def test_an_iterator_that_is_given_up_restores_the_weights(model, tuned, end):
    walk = review(model, 5)
    assert [next(walk), next(walk)] == [1.0, 0.8]
    assert_at(model, 0.8, tuned)
    if end == "close":
        walk.close()
    else:
        del walk
        gc.collect()
    networks.assert_same(networks.arrays(model.weights), tuned)


@pytest.mark.parametrize("alpha", [0.0, 0.37, 1.0])
def test_interpolate_in_place_and_as_a_copy(model, tuned, alpha):
    copy = interpolate(model, alpha, copy=True)
    networks.assert_same(networks.arrays(model.weights), tuned)
    assert_at(copy, alpha, tuned)
    x, _ = networks.data()
    assert interpolate(model, alpha) is model
    assert_at(model, alpha, tuned)
    # Not only the numbers were copied.
    np.testing.assert_allclose(
        copy.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6
    )
    model.set_weights(tuned)


def test_the_curve_is_that_of_the_interpolated_models(model, tuned, tmp_path):
    old, new = networks.data(2, seed=20), networks.data()
    curve = review_curve(model, {"old": old, "new": new}, steps=4)
    networks.assert_same(networks.arrays(model.weights), tuned)
    assert list(curve.alphas) == [1.0, 0.75, 0.5, 0.25, 0.0]
    for number, alpha in enumerate(curve.alphas):
        model.set_weights(between(alpha, tuned))
        for name, data in (("old", old), ("new", new)):
            loss, error = model.evaluate(*data, verbose=0)
            np.testing.assert_allclose(
                curve.metrics[f"{name}_loss"][number], loss, rtol=1e-5
            )
            np.testing.assert_allclose(
                curve.metrics[f"{name}_mae"][number], error, rtol=1e-5
            )
    model.set_weights(tuned)


ALPHAS = [1.0, 0.75, 0.5, 0.25, 0.0]
METRICS = {"old": [0.1, 0.5, 0.8, 0.9, 0.9], "new": [0.9, 0.9, 0.6, 0.3, 0.2]}


@pytest.mark.parametrize("order", [1, -1], ids=["down", "up"])
def test_alpha_is_chosen_by_two_validation_sets(order):
    curve = ReviewCurve(
        ALPHAS[::order], {name: m[::order] for name, m in METRICS.items()}
    )
    assert curve.choose({"old": 1.0, "new": 1.0}) == 0.75  # 1.4 twice
    assert curve.choose({"old": 1.0}) == 0.25
    assert curve.choose({"new": -1.0}) == 0.0
    at_least = curve.choose(lambda m: m["new"] if m["old"] >= 0.8 else -1.0)
    assert at_least == 0.5
    with pytest.raises(ValueError, match=r"'new', 'old'.*'older'"):
        curve.choose({"older": 1.0})


def test_a_curve_shows_its_metrics_at_both_ends():
    assert repr(ReviewCurve(ALPHAS, METRICS)) == (
        "<ReviewCurve α 1 to 0: old 0.1 to 0.9, new 0.9 to 0.2>"
    )


def test_a_wrapped_optimizer_and_a_reloaded_model_know_the_way(tmp_path):
    model = trained(
        keras.optimizers.LossScaleOptimizer(
            networks.dual_opt(), initial_scale=4.0
        )
    )
    tuned = networks.arrays(model.weights)
    model.save(tmp_path / "model.keras")
    for one in (model, keras.saving.load_model(tmp_path / "model.keras")):
        for alpha in review(one, 2):
            assert_at(one, alpha, tuned)
        networks.assert_same(networks.arrays(one.weights), tuned)


@pytest.mark.filterwarnings("ignore:Skipping variable loading")
@pytest.mark.parametrize("wrap", [False, True])
def test_anchors_that_a_file_has_brought_know_the_way(wrap, tmp_path):
    def make():
        inner = networks.dual_opt()
        return keras.optimizers.LossScaleOptimizer(inner) if wrap else inner

    run = trained(make())
    tuned = networks.arrays(run.weights)
    run.save_weights(tmp_path / "run.weights.h5")
    for walk in (interpolate, review):
        model = networks.compiled(make(), OTHER)
        model.load_weights(tmp_path / "run.weights.h5")
        if walk is interpolate:
            interpolate(model, 0.37)
            assert_at(model, 0.37, tuned)
        else:
            for alpha in review(model, 2):
                assert_at(model, alpha, tuned)


def test_another_optimizer_is_a_source(model, tuned):
    stranger = networks.compiled(keras.optimizers.SGD(), tuned)
    with pytest.raises(ValueError, match=r"none for .*dense_0"):
        interpolate(stranger, 0.5, model.optimizer)
    optimizer = model.optimizer
    model.optimizer = None
    try:
        copy = interpolate(model, 0.37, optimizer, copy=True)
    finally:
        model.optimizer = optimizer
    assert_at(copy, 0.37, tuned)


def test_of_a_part_of_the_model_only_that_part_is_walked():
    model = trained()
    tuned = networks.arrays(model.weights)
    body = keras.Model(model.inputs, model.layers[1].output)
    interpolate(body, 0.0)
    networks.assert_same(
        networks.arrays(model.weights), [*networks.weights()[:4], *tuned[4:]]
    )


def test_two_optimizers_with_anchors_are_named_and_one_can_be_chosen():
    model = trained()
    first = model.optimizer
    networks.compile(model, networks.dual_opt(name="second").anchor_at())
    middle = networks.arrays(model.weights)
    networks.fit(model, 2)
    second, tuned = model.optimizer, networks.arrays(model.weights)
    networks.compile(model, "sgd")
    with pytest.raises(ValueError, match=r"second.*`source=`.*anchor_at"):
        interpolate(model, 0.5)
    interpolate(model, 0.0, second)
    networks.assert_same(
        networks.arrays(model.weights), [*middle[:-HEAD], *tuned[-HEAD:]]
    )
    interpolate(model, 0.0, first)
    assert_at(model, 0.0, tuned)


def test_a_stage_that_was_meant_does_not_look_for_earlier_anchors():
    model = trained()
    first, tuned = model.optimizer, networks.arrays(model.weights)
    networks.compile(model, networks.dual_opt().anchor_at())
    model.optimizer.build(model.trainable_variables)
    interpolate(model, 0.0)
    networks.assert_same(networks.arrays(model.weights), tuned)
    assert first.has_anchors


@pytest.mark.parametrize("kind", ["model", "file", "backbone"])
def test_a_source_stands_in_for_the_anchors(kind, tmp_path):
    pretrained = networks.network(networks.weights())
    model = networks.compiled(keras.optimizers.SGD(0.3), networks.weights())
    networks.fit(model, 4)
    tuned = networks.arrays(model.weights)
    source = pretrained
    if kind == "file":
        source = tmp_path / "pretrained.weights.h5"
        pretrained.save_weights(source)
    elif kind == "backbone":
        body = keras.Model(pretrained.inputs, pretrained.layers[-2].output)
        inputs = keras.Input((networks.WIDTHS[0],))
        nested = keras.models.clone_model(body)
        outputs = keras.layers.Dense(networks.WIDTHS[-1])(nested(inputs))
        model = keras.Model(inputs, outputs)
        model.set_weights(tuned)
        source = body
    interpolate(model, 0.37, source)
    assert_at(model, 0.37, tuned)


def test_a_source_also_gives_statistics_and_frozen_weights():
    def make():
        return keras.Sequential(
            [
                keras.Input((3,)),
                keras.layers.Dense(4),
                keras.layers.BatchNormalization(momentum=0.5),
                keras.layers.Dense(2),
            ]
        )

    pretrained, model = make(), make()
    model.set_weights(pretrained.get_weights())
    networks.compile(model, DualOpt(0.1))
    x, y = networks.data()
    model.fit(x, y, verbose=0)
    tuned = networks.arrays(model.weights)
    model.layers[0].trainable = False
    paths = [weight.path.rpartition("/")[2] for weight in model.weights]
    moving = [name.startswith("moving") for name in paths]
    assert sum(moving) == 2

    by_anchors = interpolate(model, 0.0, copy=True)
    for one, wanted, is_moving in zip(
        networks.arrays(by_anchors.weights), tuned, moving, strict=True
    ):
        if is_moving:
            np.testing.assert_array_equal(one, wanted)
    by_source = interpolate(model, 0.0, pretrained, copy=True)
    networks.assert_same(
        networks.arrays(by_source.weights)[:-HEAD],
        networks.arrays(pretrained.weights)[:-HEAD],
    )


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize(
    ("arguments", "head", "count"),
    [
        ({}, [".*dense_2", ".*dense_3"], 4),
        ({}, (), 8),
        ({"depth": {".*dense_[12]/.*": 0.5, ".*": None}}, None, None),
    ],
    ids=["two layers", "none", "patterns"],
)
def test_with_a_source_too_the_head_is_what_a_person_said(
    arguments, head, count, built
):
    model = networks.compiled(networks.dual_opt(**arguments), OTHER)
    optimizer = model.optimizer.bind(model, head=head)
    if built:
        optimizer.build(model.trainable_variables)
    interpolate(model, 0.0, networks.network(networks.weights()))
    pretrained = range(2, 6) if count is None else range(count)
    networks.assert_same(
        networks.arrays(model.weights),
        [
            pair[number not in pretrained]
            for number, pair in enumerate(
                zip(networks.weights(), OTHER, strict=True)
            )
        ],
    )
    assert optimizer.built == built  # It may be bound and set as before.


def test_half_precision_is_interpolated_in_float32():
    model = networks.network(networks.weights(), dtype="bfloat16")
    origins = networks.network(networks.weights(seed=5), dtype="bfloat16")
    start = [np.float32(a) for a in networks.arrays(origins.weights)]
    tuned = [np.float32(a) for a in networks.arrays(model.weights)]
    interpolate(model, 0.37, origins)
    wanted = between(0.37, tuned, start)
    for weight, value in zip(model.weights, wanted, strict=True):
        rounded = keras.ops.convert_to_tensor(np.float32(value))
        np.testing.assert_array_equal(
            np.float32(networks.arrays([weight])[0]),
            np.float32(
                networks.arrays([keras.ops.cast(rounded, "bfloat16")])[0]
            ),
        )


def test_a_lora_delta_is_scaled():
    model = networks.network(networks.weights())
    model.layers[0].enable_lora(2)
    networks.compile(model, networks.dual_opt(0.1))
    networks.fit(model, 4)
    factors = networks.arrays(
        [model.layers[0].lora_kernel_a, model.layers[0].lora_kernel_b]
    )
    interpolate(model, 0.25)
    networks.assert_same(
        networks.arrays([model.layers[0].lora_kernel_a]), factors[:1]
    )
    np.testing.assert_allclose(
        networks.arrays([model.layers[0].lora_kernel_b])[0], 0.25 * factors[1]
    )


def test_a_lora_delta_that_keras_has_merged_needs_a_source(tmp_path):
    pretrained = networks.network(networks.weights())
    model = networks.network(networks.weights())
    model.layers[0].enable_lora(2)
    networks.compile(model, networks.dual_opt(0.1))
    networks.fit(model, 4)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    tuned = networks.arrays(loaded.weights)
    for way in (lambda *a: interpolate(*a, 0.25), review):
        with pytest.raises(ValueError, match=r"lora_kernel_a.*source="):
            way(loaded)
    networks.assert_same(networks.arrays(loaded.weights), tuned)
    interpolate(loaded, 0.25, source=pretrained)
    start, end = networks.weights()[0], tuned[0]
    np.testing.assert_allclose(
        networks.arrays(loaded.weights)[0],
        start + 0.25 * (end - start),
        rtol=1e-6,
    )


@pytest.mark.parametrize("alpha", [-0.1, 1.1, 50, float("nan"), True, "0.5"])
def test_alpha_must_be_a_share(model, tuned, alpha):
    with pytest.raises(ValueError, match=r"`alpha` must be in \[0, 1\]"):
        interpolate(model, alpha)


@pytest.mark.parametrize("steps", [0, -1, 2.0, True])
def test_steps_must_be_a_number(model, tuned, steps):
    with pytest.raises(ValueError, match="`steps`"):
        review(model, steps)


def test_a_weight_without_a_value_is_an_error_at_once():
    model = trained(steps=1)
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(5)])
    with pytest.raises(ValueError, match=r"a weight of shape \(5, 4"):
        review(model, source=other)
    with pytest.raises(TypeError, match="Received: int 3"):
        review(model, source=3)
    model.optimizer.drop_anchors()
    with pytest.raises(ValueError, match=r"none for .*dense_0.*`source=`"):
        review(model)


@pytest.mark.parametrize(
    ("optimizer", "match"),
    [
        (keras.optimizers.Adam, "one compiled with Adam"),
        (lambda: DualOpt(0.1, mode="scratch"), "scratch mode.*`source=`"),
        (lambda: DualOpt(0.1), "has no anchors yet"),
    ],
)
def test_a_model_without_anchors_is_an_error(optimizer, match):
    model = networks.compiled(optimizer(), networks.weights())
    with pytest.raises(ValueError, match=match):
        interpolate(model, 0.5)


def test_a_layer_unfrozen_since_is_an_error():
    model = networks.network(networks.weights())
    model.layers[1].trainable = False
    networks.compile(model, DualOpt(0.1))
    networks.fit(model, 1)
    model.layers[1].trainable = True
    with pytest.raises(ValueError, match=r"none for .*dense_1"):
        interpolate(model, 0.5)


def test_reviewing_in_the_middle_of_an_epoch_does_not_disturb_it():
    class Reviewing(keras.callbacks.Callback):
        seen = 0

        def on_train_batch_end(self, batch, logs=None):
            model = self.model
            before = networks.arrays(model.trainable_variables)
            for alpha in review(model, 2):
                assert_at(model, alpha, before)
                self.seen += 1

    plain, reviewing = trained(steps=4), Reviewing()
    watched = networks.compiled()
    networks.fit(watched, 4, callbacks=[reviewing])
    assert reviewing.seen == 4 * 3
    networks.assert_same(
        networks.arrays(watched.weights), networks.arrays(plain.weights)
    )


def test_a_copy_is_not_compiled_and_the_model_stays_so(model, tuned):
    copy = interpolate(model, 0.5, copy=True)
    assert not copy.compiled
    assert getattr(copy, "optimizer", None) is None
    assert model.compiled
    with pytest.raises(ValueError, match="compile"):
        copy.fit(*networks.data(), verbose=0)
    networks.compile(copy, "sgd")
    networks.fit(copy, 1)


def test_a_copy_needs_nothing_of_what_the_model_was_compiled_with():
    """A rate of one's own cannot be written to a config."""
    model = trained(
        networks.dual_opt(
            lambda: networks.RATE, reference_learning_rate=networks.RATE
        )
    )
    assert not interpolate(model, 0.5, copy=True).compiled
    assert model.compiled


@keras.saving.register_keras_serializable(package="test_review")
class Labelled(keras.Model):
    """A functional model with arguments of its own, like KerasHub's tasks."""

    def __init__(self, width, label, **kwargs):
        inputs = keras.Input((3,))
        hidden = keras.layers.Dense(width, name="body")(inputs)
        outputs = keras.layers.Dense(2, name="head")(hidden)
        super().__init__(inputs, outputs, **kwargs)
        self.width, self.label = width, label
        self.compile("sgd", "mse")

    def get_config(self):
        return {"width": self.width, "label": self.label, "name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def test_a_copy_is_of_the_same_class():
    model = Labelled(4, "birds")
    networks.compile(model, DualOpt(networks.RATE))
    networks.fit(model, 2)
    copy = interpolate(model, 0.0, copy=True)
    assert type(copy) is Labelled
    assert copy.label == "birds"
    assert not copy.compiled
    networks.assert_same(
        networks.arrays(copy.weights[:2]),
        networks.arrays(model.optimizer.anchors[:2]),
    )


class Growing(keras.Sequential):
    """A model whose config does not tell of all its layers."""

    def get_config(self):
        config = super().get_config()
        return {**config, "layers": config["layers"][:-1]}


def test_a_model_that_keras_cannot_copy_is_named_and_stays_as_it_is():
    model = Growing(networks.network(networks.weights()).layers, name="own")
    networks.compile(model, networks.dual_opt())
    networks.fit(model, 1)
    with pytest.raises(ValueError, match=r"'own', whose copy has 6 .* of 8"):
        interpolate(model, 0.5, copy=True)
    assert model.compiled


def fit_elsewhere(model):
    networks.fit(model, 1)


def fit_anew(model):
    networks.compile(model, "sgd")
    networks.fit(model, 1)


@pytest.mark.parametrize("train", [fit_elsewhere, fit_anew])
@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_training_inside_of_the_loop_is_an_error_in_the_next_step(train, at):
    model = trained()
    tuned = networks.arrays(model.weights)

    def walk():
        for alpha in review(model, 2):
            if alpha == at:
                train(model)

    with pytest.raises(ValueError, match="interpolate"):
        walk()
    found = networks.arrays(model.weights)
    networks.assert_same(found[:-HEAD], tuned[:-HEAD])
    assert (found[-1] != tuned[-1]).any()


def test_training_before_the_loop_is_left_is_said():
    model = trained()
    tuned = networks.arrays(model.weights)
    walk = review(model, 2)
    next(walk)
    networks.fit(model, 1)
    with pytest.warns(UserWarning, match="interpolate"):
        walk.close()
    networks.assert_same(networks.arrays(model.weights)[:-HEAD], tuned[:-HEAD])


def test_compiling_inside_of_the_loop_is_not_training():
    model = trained()
    for _ in review(model, 2):
        model.compile("sgd", "mse", metrics=["mae"])
        model.evaluate(*networks.data(), verbose=0)


@pytest.mark.parametrize("walk", [interpolate, review])
def test_the_way_back_to_layers_that_look_new_names_them(walk):
    model = with_zeros(5)
    with pytest.warns(UserWarning, match=r"(?s)dense_2.*bind.*head") as caught:
        walk(model, 0.5 if walk is interpolate else 2)
    (text,) = networks.told(caught)
    assert "dense_1" not in text


def with_zeros(*numbers, size=0.0):
    """Return a model some of whose weights are zeros, before training."""
    start = networks.weights()
    for number in numbers:
        start[number] = np.full_like(start[number], size)
    model = networks.compiled(networks.dual_opt(0.1), start)
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.mark.parametrize(
    "zeros", [[1, 3, 5], [7], [3], []], ids=["all", "head", "inside", "none"]
)
def test_the_way_back_to_what_tells_nothing_is_silent(zeros):
    """Warnings are errors here."""
    interpolate(with_zeros(*zeros), 0.5)


def test_biases_that_start_beside_zero_tell_nothing():
    model = with_zeros(1, 3, size=1e-6)
    model.layers[2].bias.assign(np.zeros(4))
    interpolate(model, 0.5)
