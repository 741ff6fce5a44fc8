"""Depth rises along the data flow, whatever the model is made of.

Each row of the table is a model and the order of its layers written by hand:
layers of one group share a depth, a later group lies deeper.
"""

import depth_networks as networks
import keras
import numpy as np
import pytest
from keras import layers

from keras_dualopt.depth import layer_depth

ORDERS = {
    "sequential": (networks.sequential, ["a", "b", "c", "d"]),
    "functional": (
        networks.functional,
        ["stem", "long_1", "long_2 short", "long_3", "end"],
    ),
    "residual": (
        networks.residual,
        [
            "stem",
            "first shortcut",
            "first_norm shortcut_norm",
            "second",
            "end",
        ],
    ),
    "nested": (networks.nested, ["a", "b", "c", "d", "e"]),
    "subclassed_reversed": (networks.subclassed, ["a", "b", "c", "d"]),
    "opaque_blocks": (
        networks.opaque,
        [
            "stem",
            "block_0/norm_1",
            "block_0/attention/query block_0/attention/key "
            "block_0/attention/value block_0/attention/attention_output",
            "block_0/norm_2",
            "block_0/grow",
            "block_0/shrink",
            "block_1/norm_1",
            "block_1/attention/query block_1/attention/key "
            "block_1/attention/value block_1/attention/attention_output",
            "block_1/norm_2",
            "block_1/grow",
            "block_1/shrink",
            "end",
        ],
    ),
    "functional_in_subclassed": (
        networks.around_functional,
        ["stem", "left right", "top", "classifier"],
    ),
    "wrappers": (
        networks.wrappers,
        [
            "a/dense",
            "b/lstm_cell",
            "c/forward_gru/gru_cell c/backward_gru/gru_cell",
            "cell_0",
            "cell_1",
            "e",
        ],
    ),
    "tied_embedding": (networks.tied, ["embedding", "middle", "norm"]),
    "shared_layer": (networks.shared, ["twice", "between", "after"]),
}


def depths(depth):
    """Return the depth of each layer, by its path."""
    found = {}
    for row in depth.rows:
        found.setdefault(row.layer, set()).add(row.relative)
    assert all(len(values) == 1 for values in found.values()), found
    return {layer: values.pop() for layer, values in found.items()}


def of(found, name):
    matches = [
        v for layer, v in found.items() if f"/{layer}".endswith(f"/{name}")
    ]
    assert len(matches) == 1, f"{name} in {list(found)}"
    return matches[0]


@pytest.mark.parametrize("name", ORDERS)
def test_layers_lie_in_the_order_of_the_data_flow(name):
    build, order = ORDERS[name]
    found = depths(layer_depth(build(), head=()))
    levels = [{of(found, layer) for layer in group.split()} for group in order]
    assert all(len(level) == 1 for level in levels), found
    values = [level.pop() for level in levels]
    assert values == sorted(set(values)), found
    assert len(found) == sum(len(group.split()) for group in order)


@pytest.mark.parametrize("name", ORDERS)
def test_the_shallowest_layer_is_0_and_the_deepest_1(name):
    depth = layer_depth(ORDERS[name][0](), head=())
    relative = [row.relative for row in depth.rows]
    assert min(relative) == 0.0
    assert max(relative) == 1.0
    ranks = {value: rank for rank, value in enumerate(sorted({*relative}))}
    assert [row.index for row in depth.rows] == [ranks[r] for r in relative]


def test_a_chain_is_evenly_spaced():
    found = depths(layer_depth(networks.sequential(), head=()))
    assert [of(found, name) for name in "abcd"] == [0.0, 1 / 3, 2 / 3, 1.0]


def test_every_weight_has_a_row_moving_statistics_too_and_seeds_none():
    model = keras.Sequential(
        [
            layers.Input((8,)),
            layers.Dense(4),
            layers.BatchNormalization(),
            layers.Dropout(0.5, seed=1),
            layers.Dense(2),
        ]
    )
    assert len(model.variables) > len(model.weights)
    depth = layer_depth(model)
    assert sorted(row.path for row in depth.rows) == sorted(
        weight.path for weight in model.weights
    )


def test_towers_run_from_0_to_1_each_whatever_their_lengths():
    found = depths(layer_depth(networks.towers()))
    image = [of(found, f"image_{i}") for i in range(5)]
    text = [of(found, f"text_{i}") for i in range(2)]
    assert image == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert text == [0.0, 1.0]


@pytest.mark.parametrize("build", [networks.untied, networks.untied_subclassed])
def test_untied_output_embeddings_lie_at_the_output(build):
    rows = {row.path: row for row in layer_depth(build(), head=()).rows}
    relative = {path.split("/")[-1]: row.relative for path, row in rows.items()}
    assert relative["embeddings"] == 0.0
    assert relative["reverse_embeddings"] == 1.0
    assert 0.0 < relative["kernel"] < relative["gamma"] < 1.0


def test_what_no_call_reads_takes_its_owners_depth():
    found = depths(layer_depth(networks.untouched(), head=()))
    assert of(found, "masked") == 0.5
    assert of(found, "masked/unused") == 0.5


def test_layers_with_the_same_path_are_told_apart():
    model = networks.same_paths()
    depth = layer_depth(model, head=())
    relative = {row.shape: row.relative for row in depth.rows}
    assert relative[(8, 4)] == relative[(4,)] == 0.0
    assert relative[(4, 3)] == relative[(3,)] == 1.0
    keys = [row.key for row in depth.rows]
    assert len({*keys}) == len(keys)


def test_one_layer_alone_has_depth_0():
    model = keras.Sequential([layers.Input((4,)), layers.Dense(2)])
    depth = layer_depth(model, head=())
    assert {row.relative for row in depth.rows} == {0.0}
    assert depth.layer_count == 1


def test_freezing_changes_no_depth():
    model = networks.opaque()
    before = layer_depth(model, head=())
    model.trainable = False
    assert layer_depth(model, head=()) == before
    model.get_layer("end").trainable = True
    assert layer_depth(model, head=()) == before


@pytest.mark.parametrize("mode", ["lora", "int8"])
def test_lora_and_quantization_change_no_depth(mode):
    model = networks.opaque()
    before = {row.key: row for row in layer_depth(model, head=()).rows}
    if mode == "lora":
        model.get_layer("end").enable_lora(2)
    else:
        for name in ("stem", "end"):
            model.get_layer(name).quantize("int8")
    after = {row.key: row for row in layer_depth(model, head=()).rows}
    assert len(after) > len(before)
    for key, row in before.items():
        assert (after[key].relative, after[key].index) == (
            row.relative,
            row.index,
        )
    by_layer = {row.layer: row.relative for row in before.values()}
    assert all(by_layer[row.layer] == row.relative for row in after.values())


def test_a_call_that_cannot_be_traced_is_ordered_as_made_with_a_warning():
    class Stubborn(keras.Model):
        def __init__(self):
            super().__init__()
            self.a = layers.Dense(4, name="a")
            self.b = layers.Dense(4, name="b")
            self.stubborn = False

        def call(self, inputs):
            if self.stubborn:
                raise ValueError
            return self.b(self.a(inputs))

    model = Stubborn()
    model(np.ones((2, 3), "float32"))
    model.stubborn = True
    with pytest.warns(UserWarning, match="could not be traced"):
        depth = layer_depth(model, head=())
    assert {row.layer[-1]: row.relative for row in depth.rows} == {
        "a": 0.0,
        "b": 1.0,
    }


@pytest.mark.parametrize(
    "model",
    [
        keras.Sequential([layers.Dense(2)]),
        keras.Sequential([layers.Input((3,)), layers.ReLU()]),
        "model",
    ],
)
def test_a_model_that_is_not_built_is_refused(model):
    with pytest.raises(ValueError, match="Expected: a built Keras model"):
        layer_depth(model)
