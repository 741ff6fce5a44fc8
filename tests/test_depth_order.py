"""Depth rises along the data flow, whatever the model is made of.

Each row of the table is a model and the order of its layers written by hand:
layers of one group share a depth, a later group lies deeper.
"""

import depth_heads
import depth_networks as networks
import keras
import numpy as np
import pytest
from keras import layers

from keras_dualopt.depth import layer_depth
from keras_dualopt.depth.graph import Graph

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
            "c/forward_rnn/gru_cell c/backward_rnn/gru_cell",
            "cell_0",
            "cell_1",
            "e",
        ],
    ),
    "tied_embedding": (networks.tied, ["embedding", "middle", "norm"]),
    "shared_layer": (networks.shared, ["twice", "between", "after"]),
    "towers_in_a_subclass": (
        networks.subclassed_towers,
        [*(f"left_{i} right_{i}" for i in range(3)), "head"],
    ),
    "branches_in_an_opaque_layer": (
        networks.inception,
        ["stem", "two_a shortcut", "one gate", "two_b", "end"],
    ),
    "parts_of_other_layers": (
        networks.joint,
        [
            "stem",
            "image/block_0/norm_1 text/block_0/norm_1",
            " ".join(
                f"{tower}/block_0/attention/{part}"
                for tower in ("image", "text")
                for part in ("query", "key", "value", "attention_output")
            ),
            "image/block_0/norm_2 text/block_0/norm_2",
            "image/block_0/grow text/block_0/grow",
            "image/block_0/shrink text/block_0/shrink",
            "end",
        ],
    ),
    "condition": (networks.choice, ["stem", "yes no", "end"]),
    "what_takes_no_symbolic_tensors": (
        networks.refusing,
        [
            "stem",
            "refusing_0/left refusing_0/right",
            "refusing_1/left refusing_1/right",
            "end",
        ],
    ),
    "loop": (networks.loop, ["stem", "first", "second", "end"]),
    "a_weight_handed_to_a_later_layer": (
        networks.handed_out,
        ["stem", "first", "table scaled", "end"],
    ),
    "two_positional_tensors": (
        networks.two_inputs,
        ["image text", "middle", "end"],
    ),
    "auxiliary_output": (
        depth_heads.auxiliary,
        ["shared a", "b", "new"],
    ),
    "a_model_called_attention": (
        depth_heads.named_attention,
        [
            "embedding",
            "forward_rnn/lstm_cell backward_rnn/lstm_cell",
            "attention/query attention/key attention/value "
            "attention/attention_output",
            "new",
        ],
    ),
    "a_block_called_attention": (
        depth_heads.block_with_attention,
        [
            "first",
            "second",
            "attention/query attention/key attention/value "
            "attention/attention_output",
            "new",
        ],
    ),
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


class Stubborn(keras.Model):
    """Stops working, with a reason, once it is built."""

    def __init__(self):
        super().__init__()
        self.a = layers.Dense(4, name="a")
        self.b = layers.Dense(4, name="b")
        self.stubborn = False

    def call(self, inputs):
        if self.stubborn:
            raise ValueError("not today")
        return self.b(self.a(inputs))


def stubborn():
    model = Stubborn()
    model(np.ones((2, 3), "float32"))
    model.stubborn = True
    return model


def test_a_call_that_cannot_be_traced_is_ordered_as_made_with_a_warning():
    with pytest.warns(UserWarning, match="could not be traced") as caught:
        depth = layer_depth(stubborn(), head=())
    assert {row.layer[-1]: row.relative for row in depth.rows} == {
        "a": 0.0,
        "b": 1.0,
    }
    (message,) = [str(warning.message) for warning in caught]
    assert "not today" in message
    assert "`head=`" in message


def test_one_warning_speaks_of_all_that_cannot_be_traced():
    inputs = outputs = layers.Input((3,))
    for _ in range(20):
        model = stubborn()
        model.stubborn = False
        outputs = layers.Dense(3)(model(outputs))
    model = keras.Model(inputs, outputs)
    for layer in model.layers:
        layer.stubborn = isinstance(layer, Stubborn)
    with pytest.warns(UserWarning, match="of 19 more") as caught:
        layer_depth(model)
    assert len(caught) == 1
    assert len(str(caught[0].message)) < 500


class Raw(layers.Layer):
    """Leaves `keras.ops` for the backend between its layers."""

    def __init__(self, **options):
        super().__init__(**options)
        self.second = layers.Dense(4, name="second")
        self.first = networks.Inception(name="first")

    def build(self, shape):
        self.first.build(shape)
        self.second.build((*shape[:-1], 4))

    def call(self, inputs):
        outputs = self.first(inputs)
        if isinstance(outputs, keras.KerasTensor):
            raise TypeError("a tensor of the backend is needed")
        return self.second(outputs)

    def compute_output_shape(self, shape):
        return (*shape[:-1], 4)


def test_layers_of_a_call_that_refuses_symbolic_tensors_lie_in_a_row():
    inputs = layers.Input((8,))
    outputs = Raw()(layers.Dense(4, name="stem")(inputs))
    model = keras.Model(inputs, layers.Dense(2, name="end")(outputs))
    with pytest.warns(UserWarning, match="one after another"):
        found = depths(layer_depth(model, head=()))
    values = [of(found, name) for name in ("one", "two_b", "second", "end")]
    assert values == sorted(values)
    # What is called inside is known again.
    assert of(found, "two_a") == of(found, "shortcut") < of(found, "one")
    assert of(found, "one") == of(found, "gate")


def test_parallel_branches_have_the_depths_of_a_functional_model():
    found = depths(layer_depth(networks.subclassed_towers()))
    for side in ("left", "right"):
        values = [of(found, f"{side}_{i}") for i in range(3)]
        assert values == [0.0, 0.5, 1.0]


def test_a_layer_used_for_an_auxiliary_output_too_lies_where_it_feeds():
    found = depths(layer_depth(depth_heads.auxiliary(), head=()))
    assert of(found, "shared") == 0.0
    assert of(found, "b") < of(found, "new") == 1.0


class Twice(layers.Layer):
    """Holds one layer, and calls it twice."""

    def __init__(self, **options):
        super().__init__(**options)
        self.inner = layers.Dense(4, name="inner")

    def build(self, shape):
        self.inner.build(shape)

    def call(self, inputs):
        return self.inner(self.inner(inputs))


def test_the_calls_in_a_layer_that_holds_one_layer_count_one_by_one():
    inputs = layers.Input((8,))
    outputs = Twice()(layers.Dense(4, name="stem")(inputs))
    model = keras.Model(inputs, layers.Dense(2, name="end")(outputs))
    found = depths(layer_depth(model, head=()))
    names = ("stem", "inner", "end")
    assert [of(found, name) for name in names] == [0.0, 1 / 3, 1.0]


def test_a_model_that_is_called_again_counts_with_all_its_layers():
    found = depths(layer_depth(networks.called_three_times(), head=()))
    assert of(found, "after") == 0.9


def test_models_nested_twice_a_level_cost_no_more_than_their_layers(
    monkeypatch,
):
    counted = []
    add = Graph.add
    monkeypatch.setattr(
        Graph, "add", lambda *given, **k: counted.append(1) or add(*given, **k)
    )
    found = depths(layer_depth(networks.nested_twice(12), head=()))
    assert len(counted) < 100  # Of 8,190 calls.
    values = [of(found, "inner")] + [of(found, f"outer_{i}") for i in range(12)]
    assert values == sorted(values)


@pytest.mark.parametrize(
    "model",
    [
        keras.Sequential([layers.Dense(2)]),
        keras.Sequential([layers.Input((3,)), layers.ReLU()]),
        "model",
    ],
)
def test_a_model_that_is_not_built_is_refused(model):
    with pytest.raises(ValueError, match="must be a built Keras model"):
        layer_depth(model)
