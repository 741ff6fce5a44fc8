"""The new head is told from the pretrained body, and a person can say so."""

import depth_heads
import depth_networks as networks
import keras
import numpy as np
import pytest
from keras import layers

from keras_dualopt.depth import layer_depth


def head_of(model, **options):
    depth = layer_depth(model, **options)
    for row in depth.rows:
        assert row.pretrained == (row.relative is not None)
        assert row.pretrained == (row.index is not None)
    return {
        row.layer.split("/")[-1] for row in depth.rows if not row.pretrained
    }


def body(width=8, name=None):
    inputs = layers.Input((width,))
    outputs = layers.Dense(4, name="b1")(inputs)
    outputs = layers.Dense(4, name="b2")(outputs)
    return keras.Model(inputs, outputs, name=name)


def under_sequential():
    return keras.Sequential(
        [
            body(),
            layers.Dense(3, name="new_1"),
            layers.Dense(2, name="new_2"),
        ]
    )


def around_functional():
    inputs = layers.Input((8,))
    outputs = layers.Dense(2, name="new")(body()(inputs))
    return keras.Model(inputs, outputs)


def with_a_side_branch():
    inputs = [layers.Input((8,)), layers.Input((3,))]
    side = layers.Dense(4, name="side")(inputs[1])
    merged = layers.Concatenate()([body()(inputs[0]), side])
    return keras.Model(inputs, layers.Dense(2, name="new")(merged))


def nothing_around():
    inputs = layers.Input((8,))
    return keras.Model(inputs, layers.Softmax()(body()(inputs)))


def two_towers():
    inputs = [layers.Input((8,)), layers.Input((6,))]
    features = [body(8, "left")(inputs[0]), body(6, "right")(inputs[1])]
    merged = layers.Concatenate()(features)
    return keras.Model(inputs, layers.Dense(2, name="new")(merged))


def blocks():
    """Nested models that are blocks of one network, not backbones."""

    def block(width):
        return keras.Sequential(
            [layers.Input((width,)), layers.Dense(4), layers.Dense(4)]
        )

    return keras.Sequential(
        [
            layers.Input((8,)),
            layers.Dense(4, name="stem"),
            block(4),
            block(4),
            block(4),
            layers.Dense(2, name="new"),
        ]
    )


def two_outputs():
    inputs = layers.Input((8,))
    outputs = layers.Dense(4, name="a")(inputs)
    deep = layers.Dense(4, name="b")(outputs)
    return keras.Model(
        inputs,
        [
            layers.Dense(2, name="out_1")(deep),
            layers.Dense(2, name="out_2")(outputs),
        ],
    )


def features_and_logits():
    inputs = layers.Input((8,))
    features = layers.Dense(4, name="features")(inputs)
    logits = layers.Dense(2, name="logits")(features)
    return keras.Model(inputs, [features, logits])


HEADS = {
    "last_layer": (networks.sequential, {"d"}),
    "last_layer_of_a_subclassed_model": (networks.subclassed, {"d"}),
    "outside_a_nested_model_in_sequential": (
        under_sequential,
        {"new_1", "new_2"},
    ),
    "outside_a_nested_model_in_functional": (around_functional, {"new"}),
    "outside_a_nested_model_in_subclassed": (
        networks.around_functional,
        {"classifier"},
    ),
    "a_branch_beside_the_nested_model": (with_a_side_branch, {"side", "new"}),
    "nothing_outside_the_nested_model": (nothing_around, set()),
    "towers": (two_towers, {"new"}),
    "blocks_are_no_backbone": (blocks, {"new"}),
    "several_outputs": (two_outputs, {"out_1", "out_2"}),
    "an_output_that_others_read": (features_and_logits, {"logits"}),
    "tied_embedding": (networks.tied, set()),
    "untied_embedding": (networks.untied, {"embedding"}),
    **depth_heads.HEADS,
}


@pytest.mark.parametrize("name", HEADS)
def test_the_head_is_found(name):
    build, expected = HEADS[name]
    assert head_of(build()) == expected


@pytest.mark.parametrize("name", HEADS)
def test_without_a_head_every_layer_counts(name):
    depth = layer_depth(HEADS[name][0](), head=())
    assert depth.headless
    assert all(row.pretrained for row in depth.rows)
    assert max(row.relative for row in depth.rows) == 1.0


def test_only_the_pretrained_layers_count():
    depth = layer_depth(under_sequential())
    assert not depth.headless
    relative = {r.layer[-2:]: r.relative for r in depth.rows if r.pretrained}
    assert relative == {"b1": 0.0, "b2": 1.0}


def test_rows_of_the_head_come_last():
    pretrained = [row.pretrained for row in layer_depth(two_outputs()).rows]
    assert pretrained == sorted(pretrained, reverse=True)


def selectors(model):
    layer = model.get_layer("c")
    return {
        "layer": layer,
        "list_of_layers": [layer],
        "variables": layer.trainable_variables,
        "one_variable": layer.weights[0],
        "path_of_a_weight": "c/gamma",
        "path_of_the_layer": "c",
        "pattern": ".*/?c/(gamma|beta)",
        "tuple_with_one_pattern": ("c",),
    }


@pytest.mark.parametrize("name", selectors(networks.functional_norm()))
def test_a_head_that_is_named_wins(name):
    model = networks.functional_norm()
    assert head_of(model, head=selectors(model)[name]) == {"c"}


def test_several_selectors_are_joined():
    model = networks.functional_norm()
    head = [model.get_layer("a"), "d/.*", model.get_layer("c").weights[0]]
    assert head_of(model, head=head) == {"a", "c", "d"}


def test_a_container_in_the_head_means_all_its_layers():
    model = under_sequential()
    assert head_of(model, head=model.layers[0]) == {"b1", "b2"}
    assert head_of(networks.opaque(), head="encoder/block_0") == {
        "norm_1",
        "norm_2",
        "grow",
        "shrink",
        "query",
        "key",
        "value",
        "attention_output",
    }


@pytest.mark.parametrize(
    "selector",
    [
        "gamma",
        ["c/gamma", "nothing"],
        layers.Dense(2),
        keras.Variable(np.zeros(3, "float32"), name="stranger"),
        "(",
        3,
        [None],
    ],
)
def test_a_head_that_names_nothing_is_an_error(selector):
    with pytest.raises(ValueError, match="`head` must"):
        layer_depth(networks.functional_norm(), head=selector)


def test_the_error_says_which_paths_there_are():
    with pytest.raises(ValueError, match="'d/bias'"):
        layer_depth(networks.functional_norm(), head="nothing")


class Subclassed(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.inner = keras.Sequential(
            [layers.Dense(8, name="b1")], name="inner"
        )
        self.first = layers.Dense(8, name="b1")
        self.top = layers.Dense(2, name="predictions")

    def call(self, x):
        return self.top(self.inner(self.first(x)))


def subclassed():
    model = Subclassed()
    model(np.zeros((1, 8), "float32"))
    return model


def sequential():
    return keras.Sequential(
        [
            layers.Input((8,)),
            layers.Dense(8, name="b1"),
            body(name="inner"),
            layers.Dense(2, name="predictions"),
        ]
    )


@pytest.mark.parametrize("make", [sequential, subclassed])
def test_a_layers_own_name_is_enough(make):
    depth = layer_depth(make(), head=["predictions"])
    new = {row.path.split("/")[-2] for row in depth.rows if not row.pretrained}
    assert new == {"predictions"}
    assert sum(not row.pretrained for row in depth.rows) == 2


def test_of_layers_with_one_name_the_outermost_is_meant():
    model = subclassed()
    outer = next(one for one in model.layers if one.name == "b1")
    places = layer_depth(model, head="b1").place(model, model.weights)
    new = {
        id(weight)
        for weight, place in zip(model.weights, places, strict=True)
        if not place.pretrained
    }
    assert new == {id(weight) for weight in outer.weights}
