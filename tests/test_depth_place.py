"""A table of depths fits every copy of its model, or says what does not."""

import json

import depth_networks as networks
import keras
import numpy as np
import pytest
from keras import layers

from keras_dualopt.depth import DepthRow, LayerDepth, layer_depth, place_keys

MODELS = {
    "sequential": networks.sequential,
    "nested": networks.nested,
    "opaque": networks.opaque,
    "subclassed": networks.subclassed,
    "untied": networks.untied,
    "same_paths": networks.same_paths,
    "wrappers": networks.wrappers,
}
CUSTOM = {
    kind.__name__: kind
    for kind in (networks.Reversed, networks.Encoder, networks.Block)
}


def through_json(depth):
    config = keras.saving.serialize_keras_object(depth)
    return keras.saving.deserialize_keras_object(json.loads(json.dumps(config)))


def placed(depth, model):
    """Return, in the order of the model's weights, what matters."""
    return [
        (place.key, place.index, place.relative, place.pretrained)
        for place in depth.place(model, model.weights)
    ]


@pytest.mark.parametrize("name", MODELS)
def test_a_table_survives_json_exactly(name):
    depth = layer_depth(MODELS[name]())
    again = through_json(depth)
    assert again == depth
    assert isinstance(again, LayerDepth)
    assert again.rows == depth.rows
    assert again.headless == depth.headless
    assert hash(again) == hash(depth)
    assert str(again) == str(depth)


def test_two_tables_differ_when_a_row_or_the_head_does():
    model = networks.sequential()
    depth = layer_depth(model)
    assert depth != layer_depth(model, head=())
    assert depth != LayerDepth(depth.rows, headless=True)
    assert depth != LayerDepth(depth.rows[1:])
    assert depth != "depth"


@pytest.mark.parametrize("name", MODELS)
def test_a_table_fits_a_second_model_of_the_architecture(name):
    first, second = MODELS[name](), MODELS[name]()
    depth = layer_depth(first)
    assert placed(depth, second) == placed(depth, first)


@pytest.mark.parametrize("name", MODELS)
def test_a_clone_has_the_same_places(name, monkeypatch):
    model = MODELS[name]()
    with keras.saving.custom_object_scope(CUSTOM):
        clone = keras.models.clone_model(model)
    if not clone.built:
        clone(np.zeros((2, 8), "float32"))
    depth = through_json(layer_depth(model))
    assert placed(depth, clone) == placed(depth, model)
    assert layer_depth(clone).rows != ()


@pytest.mark.parametrize("name", MODELS)
def test_a_reloaded_model_has_the_same_places(name, tmp_path):
    model = MODELS[name]()
    model.save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(
        tmp_path / "model.keras", custom_objects=CUSTOM
    )
    depth = layer_depth(model)
    assert placed(depth, reloaded) == placed(depth, model)


def test_automatic_names_do_not_matter():
    def build():
        inputs = layers.Input((8,))
        inner_inputs = layers.Input((4,))
        inner = keras.Model(inner_inputs, layers.Dense(4)(inner_inputs))
        outputs = inner(layers.Dense(4)(inputs))
        return keras.Model(inputs, layers.Dense(2)(outputs))

    first, second = build(), build()
    assert [w.path for w in first.weights] != [w.path for w in second.weights]
    assert placed(layer_depth(first), second) == placed(
        layer_depth(second), first
    )


def test_keys_are_unique_and_places_follow_the_given_order():
    model = networks.opaque()
    depth = layer_depth(model)
    places = depth.place(model, model.weights)
    assert len({place.key for place in places}) == len(places)
    assert [place.path for place in places] == [w.path for w in model.weights]
    some = model.weights[::-3]
    assert depth.place(model, some) == places[::-3]


def test_keys_need_no_depths():
    model = networks.opaque()
    places = layer_depth(model).place(model, model.weights)
    some = model.weights[::-3]

    def refuses(*inputs, **options):
        raise AssertionError("no call is made for keys")

    model.call = refuses
    keys = [place.key for place in places]
    assert place_keys(model, some) == keys[::-3]


def test_keys_of_a_strange_variable_are_refused():
    stranger = networks.sequential().weights[0]
    with pytest.raises(ValueError, match="must be weights of"):
        place_keys(networks.sequential(), [stranger])


# Checkpoints know a weight by its key: these must never change.
KEYS = {
    "nested": "0/kernel 0/bias 1/0/0/kernel 1/0/0/bias 1/0/1/kernel 1/0/1/bias "
    "1/1/kernel 1/1/bias 2/kernel 2/bias",
    "subclassed": "first/kernel first/bias second/gamma second/beta "
    "second/moving_mean second/moving_variance third/kernel third/bias "
    "last/kernel last/bias",
    "untied": "0/embeddings 1/kernel 1/bias 2/gamma 2/beta "
    "0/reverse_embeddings",
    "same_paths": "0/0/kernel 0/0/bias 1/0/kernel 1/0/bias",
    "wrappers": "0/layer/kernel 0/layer/bias "
    "1/cell/kernel 1/cell/recurrent_kernel 1/cell/bias "
    "2/backward_layer/cell/kernel 2/backward_layer/cell/recurrent_kernel "
    "2/backward_layer/cell/bias "
    "2/forward_layer/cell/kernel 2/forward_layer/cell/recurrent_kernel "
    "2/forward_layer/cell/bias "
    "3/cell/cells.0/kernel 3/cell/cells.0/recurrent_kernel "
    "3/cell/cells.0/bias "
    "3/cell/cells.1/kernel 3/cell/cells.1/recurrent_kernel "
    "3/cell/cells.1/bias 4/kernel 4/bias",
}


@pytest.mark.parametrize("name", KEYS)
def test_keys_are_the_same_in_every_process_and_on_every_backend(name):
    depth = layer_depth(MODELS[name](), head=())
    assert [row.key for row in depth.rows] == KEYS[name].split()


def test_attributes_that_differ_in_an_underscore_have_different_keys():
    class Twins(keras.Model):
        def __init__(self):
            super().__init__()
            self.part = layers.Dense(4, name="second")
            self._part = layers.Dense(4, name="first")

        def build(self, shape):
            self._part.build(shape)
            self.part.build((None, 4))

        def call(self, inputs):
            return self.part(self._part(inputs))

    model = Twins()
    model.build((None, 8))
    keys = [row.key for row in layer_depth(model, head=()).rows]
    assert keys == ["part/kernel", "part/bias", "part'/kernel", "part'/bias"]


def test_frozen_when_it_was_built_or_not_a_model_has_the_same_rows():
    def build(trainable):
        return keras.Sequential(
            [
                layers.Input((8,)),
                layers.Dense(4, name="a", trainable=trainable),
                layers.BatchNormalization(name="b", trainable=trainable),
                layers.Dense(2, name="c"),
            ],
            name="net",
        )

    assert layer_depth(build(True)) == layer_depth(build(False))


@pytest.mark.parametrize("change", ["lora", "int8", "both"])
def test_what_is_added_since_takes_its_layers_depth(change):
    model = networks.opaque()
    depth = layer_depth(model)
    by_key = {row.key: row for row in depth.rows}
    for name in ("stem", "end"):
        layer = model.get_layer(name)
        if change in ("int8", "both"):
            layer.quantize("int8")
        if change in ("lora", "both"):
            layer.enable_lora(2)
    places = depth.place(model, model.weights)
    added = [place for place in places if place.key not in by_key]
    assert added
    by_layer = {row.layer: row for row in depth.rows}
    for place in places:
        row = by_layer[place.layer]
        assert (place.relative, place.index, place.pretrained) == (
            row.relative,
            row.index,
            row.pretrained,
        )


def test_a_table_made_with_lora_fits_the_model_without():
    model = networks.opaque()
    model.get_layer("stem").enable_lora(2)
    depth = layer_depth(model)
    plain = networks.opaque()
    assert all(place.key for place in depth.place(plain, plain.weights))


def chain(*units, first=layers.Dense):
    return keras.Sequential(
        [
            layers.Input((8,)),
            first(units[0], name="x0"),
            *(
                layers.Dense(u, name=f"x{i + 1}")
                for i, u in enumerate(units[1:])
            ),
        ]
    )


MISFITS = {
    "another_width": (
        chain(4, 5, 2),
        r"shape \(4, 3\).*Received: \(4, 5\).*x1",
    ),
    "a_layer_less": (chain(4, 2), r"shape \(4, 3\).*Received: \(4, 2\)"),
    "a_layer_more": (chain(4, 3, 2, 2), "know no layer at '3'.*x3"),
    "no_bias": (
        keras.Sequential(
            [
                layers.Input((8,)),
                layers.Dense(4),
                layers.Dense(3, use_bias=False),
                layers.Dense(2),
            ]
        ),
        r"x1/bias' of shape \(3,\).*Received.*none there",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_no_longer_fits_is_named(name):
    model, message = MISFITS[name]
    made = keras.Sequential(
        [
            layers.Input((8,)),
            layers.Dense(4, name="x0"),
            layers.Dense(3, name="x1"),
            layers.Dense(2, name="x2"),
        ]
    )
    depth = layer_depth(made)
    with pytest.raises(
        ValueError, match=f"The depths do not fit.*{message}"
    ) as error:
        depth.place(model, model.weights)
    assert "`layer_depth(model)`" in str(error.value)


def test_a_strange_variable_is_refused():
    model = networks.sequential()
    stranger = networks.sequential().weights[0]
    with pytest.raises(ValueError, match="must be weights of"):
        layer_depth(model).place(model, [stranger])


def test_without_a_model_the_error_names_bind():
    model = networks.sequential()
    with pytest.raises(ValueError, match="bind"):
        layer_depth(model).place(None, model.weights)


def test_a_row_says_what_there_is_to_know():
    row = layer_depth(networks.functional_norm()).rows[0]
    assert isinstance(row, DepthRow)
    assert (row.path, row.layer, row.index, row.relative, row.pretrained) == (
        "a/kernel",
        "a",
        0,
        0.0,
        True,
    )
    assert row.shape == (8, 4)
    with pytest.raises(AttributeError):
        row.relative = 0.5


def test_printing_shows_every_weight_shallowest_first():
    depth = layer_depth(networks.functional_norm())
    lines = str(depth).splitlines()
    assert len(lines) == 1 + len(depth.rows)
    assert lines[0].split() == [
        "index",
        "relative",
        "pretrained",
        "layer",
        "weight",
    ]
    assert lines[1].split()[:5] == ["0", "0.0000", "yes", "a", "a/kernel"]
    assert lines[-1].split()[:4] == ["head", "no", "d", "d/bias"]
    assert repr(depth) == "<LayerDepth: 10 weights, 3 layers that count>"
