"""Depth in KerasHub's models and keras.applications'."""

import functools
import json
import re

import dataflow
import keras
import keras_hub
import pytest
from hub.zoo import (
    EXPECTED,
    MODELS,
    build,
    fingerprint,
    zero_weights,
)

from keras_dualopt.depth import layer_depth

BACKEND = keras.backend.backend()
FRESH = "ignore:.*holds layers round its image encoder:UserWarning"

model_of = functools.cache(build)


@functools.cache
def depth_of(name):
    return layer_depth(model_of(name), head=())


# The order by hand: every weight whose path matches a pattern lies shallower
# than all that match the next one; patterns of one tuple share one depth.
ORDERS = {
    "vit": [
        ".*/patch_embedding/.*",
        ".*/(class_token|position_embedding/.*)",
        ".*/transformer_block_1/ln_1/.*",
        ".*/transformer_block_1/mha/.*",
        ".*/transformer_block_1/(ln_2|mlp)/.*",
        ".*/transformer_block_2/.*",
        ".*/transformer_block_3/.*",
        "vit_encoder/ln/.*",
    ],
    "resnet": [
        "conv1_.*",
        ("stack0_block0_0_conv/.*", "stack0_block0_1_conv/.*"),
        ("stack0_block0_0_bn/.*", "stack0_block0_1_bn/.*"),
        "stack0_block0_[23]_.*",
        "stack0_block1_.*",
        ("stack1_block0_0_conv/.*", "stack1_block0_1_conv/.*"),
        "stack1_block0_3_.*",
        "stack2_.*",
        "stack3_.*",
    ],
    "bert": [
        "(token|segment|position)_embedding/.*",
        "embeddings_layer_norm/.*",
        "transformer_layer_0/self_attention_layer/.*",
        "transformer_layer_0/self_attention_layer_norm/.*",
        "transformer_layer_0/feedforward_.*",
        "transformer_layer_1/.*",
        "pooled_dense/.*",
    ],
    "gpt2": [
        "token_embedding/.*",
        "position_embedding/.*",
        "transformer_layer_0/self_attention_layer_norm/.*",
        "transformer_layer_0/self_attention/.*",
        "transformer_layer_0/feedforward_.*",
        "transformer_layer_1/self_attention_layer_norm/.*",
        "transformer_layer_1/self_attention/.*",
        "layer_norm/.*",
    ],
    "segformer": [
        "patch_and_embed_0/.*",
        "hierarchical_encoder_0_0/.*attention.*",
        "hierarchical_encoder_0_0/mix_ffn.*",
        "patch_and_embed_1/.*",
        "hierarchical_encoder_1_0/.*",
    ],
    "retinanet": [
        "(conv1|stack).*",
        "fpn/lateral_conv_P5/.*",
        ("fpn/output_conv_P3/.*", "fpn/output_conv_P4/.*"),
    ],
    "clip": [
        ("embedding/patch_embedding/.*", "embedding/token_embedding/.*"),
        "embedding/class_embedding",
        "encoder_block_0/attention/.*",
        "(vision|text)_projection/.*",
    ],
    "bart": [
        "token_embedding/.*",
        "(encoder|decoder)_position_embedding/.*",
        "transformer_encoder_layer_0/.*",
        "transformer_encoder_layer_1/.*",
        "transformer_decoder_layer_0/cross_attention/.*",
        "transformer_decoder_layer_1/.*",
    ],
    "applications_convnext": [
        "convnext_tiny_stem.*",
        "convnext_tiny_stage_0_block_0_.*",
        "convnext_tiny_stage_0_block_1_.*",
        "convnext_tiny_downsampling_block_0.*",
        "convnext_tiny_stage_1_.*",
        "convnext_tiny_stage_3_block_2_.*",
    ],
    "applications_resnet50v2": [
        "conv1_conv/.*",
        "conv2_block1_preact_bn/.*",
        ("conv2_block1_0_conv/.*", "conv2_block1_1_conv/.*"),
        "conv2_block1_3_conv/.*",
        "conv3_.*",
        "conv5_block3_3_conv/.*",
        "post_bn/.*",
    ],
}

HEADS = {
    "vit": {"predictions"},
    "resnet": {"predictions"},
    "bert": {"logits"},
    "roberta": {"pooled_dense", "logits"},
    "gpt2": set(),
    "gemma": set(),
    "bart": set(),
    "clip": set(),
    "retinanet": {"box_head", "classification_head"},
    "mobilenet": {"classifier_conv", "predictions"},
    "applications_convnext": {"sequential"},
    "applications_resnet50v2": {"sequential"},
}


@pytest.mark.filterwarnings(FRESH)
@pytest.mark.parametrize("name", ORDERS)
def test_the_order_is_the_one_written_by_hand(name):
    rows = [r for r in layer_depth(model_of(name)).rows if r.pretrained]

    def depths(pattern):
        found = {r.relative for r in rows if re.fullmatch(pattern, r.path)}
        assert found, f"{pattern} matches nothing"
        return found

    deepest = None
    for entry in ORDERS[name]:
        patterns = entry if isinstance(entry, tuple) else (entry,)
        found = [depths(pattern) for pattern in patterns]
        assert all(one == found[0] for one in found), patterns
        if deepest is not None:
            assert deepest < min(found[0]), entry
        deepest = max(found[0])
    relative = [row.relative for row in rows]
    assert (min(relative), max(relative)) == (0.0, 1.0)


def of_tower(name, rows, tower):
    inside = {id(w) for w in tower.weights}
    model = model_of(name)
    places = layer_depth(model, head=()).place(model, model.weights)
    return [
        place.relative
        for place, weight in zip(places, model.weights, strict=True)
        if id(weight) in inside
    ]


def test_both_towers_of_clip_start_at_0_and_end_together():
    model = model_of("clip")
    rows = depth_of("clip").rows
    image = of_tower("clip", rows, model.vision_encoder)
    text = of_tower("clip", rows, model.text_encoder)
    assert min(image) == min(text) == 0.0
    # The towers have 3 and 2 blocks; both end one projection from the output.
    assert abs(max(image) - max(text)) < 0.05


def test_box_and_classification_towers_lie_side_by_side():
    found = {
        row.path: row.relative
        for row in depth_of("retinanet").rows
        if "_head/" in row.path
    }
    for path, relative in found.items():
        box = path.replace("classification_head", "box_head")
        assert found[box] == relative


@pytest.mark.filterwarnings(FRESH)
@pytest.mark.parametrize("name", HEADS)
def test_the_head_is_what_is_new(name):
    depth = layer_depth(model_of(name))
    heads = {r.layer.split("/")[0] for r in depth.rows if not r.pretrained}
    # Only the automatic name of the Sequential round an application varies.
    assert {re.sub(r"_\d+$", "", h) for h in heads} == HEADS[name]


def test_segformers_whole_decode_head_is_new():
    depth = layer_depth(model_of("segformer"))
    body = {r.path for r in depth.rows if r.pretrained}
    encoder = model_of("segformer").backbone.image_encoder
    assert body == {weight.path for weight in encoder.weights}
    assert sum("linear_" in r.path for r in depth.rows if not r.pretrained) == 4


def test_fresh_layers_that_cannot_be_told_are_named_in_a_warning():
    with pytest.warns(UserWarning, match="fpn/lateral_conv_P3") as caught:
        layer_depth(model_of("retinanet"))
    (message,) = [str(w.message) for w in caught]
    assert re.search(r"and \d+ more", message)
    assert len(message) < 500
    assert "stack" not in message
    assert "box_head" not in message
    assert "`head=`" in message


def test_naming_them_in_head_makes_them_new():
    depth = layer_depth(
        model_of("retinanet"), head=["fpn", "box_head", "classification_head"]
    )
    body = [r.path for r in depth.rows if r.pretrained]
    assert body
    assert all(re.match("conv1_|stack", path) for path in body)


def test_lora_moves_no_layer():
    model = build("gemma")
    before = {row.key: row for row in layer_depth(model).rows}
    model.backbone.enable_lora(2)
    depth = layer_depth(model)
    after = {row.key: row for row in depth.rows}
    assert len(after) > len(before)
    for key, row in before.items():
        assert after[key].relative == row.relative
        assert after[key].index == row.index


def test_a_copy_from_its_config_takes_the_same_table():
    model = model_of("vit")
    depth = layer_depth(model)
    with zero_weights():
        copy = type(model).from_config(model.get_config())
    assert [
        (place.key, place.relative) for place in depth.place(copy, copy.weights)
    ] == [
        (place.key, place.relative)
        for place in depth.place(model, model.weights)
    ]


@pytest.mark.parametrize("name", MODELS)
def test_depths_are_the_same_on_every_backend(name):
    expected = json.loads(EXPECTED.read_text())
    if expected["keras_hub"] != keras_hub.__version__:
        pytest.skip(f"written with KerasHub {expected['keras_hub']}")
    assert fingerprint(depth_of(name)) == expected["models"][name]


def by_weight(name):
    model = model_of(name)
    places = depth_of(name).place(model, model.weights)
    return {
        id(weight): place
        for weight, place in zip(model.weights, places, strict=True)
    }


@pytest.mark.parametrize("name", MODELS)
def test_all_weights_of_a_layer_share_one_depth(name):
    depths = {}
    for row in depth_of(name).rows:
        # Untied output embeddings are used, alone, where the output is made.
        if not row.key.endswith("/reverse_embeddings"):
            layer = row.key.rpartition("/")[0]
            depths.setdefault(layer, set()).add(row.relative)
    assert all(len(found) == 1 for found in depths.values()), depths


# Weights that do not lie where they are used, and why.
EXCEPTIONS = {
    "d_fine": (
        "decoder/(reg_scale|upsampling_factor)",
        "owned by the whole decoder",
    ),
    "rwkv7": (
        ".*/RWKV_TIME_MIX/(k_k|r_k|(key|receptance)/.*)",
        "owned by the whole time mix",
    ),
    "sam3": (
        "sam3_detr_decoder/(presence_token|query_embed|reference_points)/.*",
        "read from their layers, and used behind layers that read nothing else",
    ),
}


def excepted(name, path):
    pattern, _ = EXCEPTIONS.get(name, ("", ""))
    return re.fullmatch(pattern, path) is not None


def symbolic_inputs(model):
    """Yield inputs of several lengths, for a model that leaves it open."""
    import jax

    given = (
        model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    )
    for length in (8, 6, 4, 64, 2048):

        def closed(tensor, length=length):
            shape = [length if size is None else size for size in tensor.shape]
            return jax.ShapeDtypeStruct((2, *shape[1:]), tensor.dtype)

        yield keras.tree.map_structure(closed, given)


@functools.cache
def uses_in(name):
    """Return the uses of the model's weights, as `dataflow.uses` does."""
    model = model_of(name)
    for inputs in symbolic_inputs(model):
        try:
            return dataflow.uses(model, inputs)
        except Exception as error:  # Too short for this model.
            reason = error
    raise reason


# The two branches of a condition in SAM do not fit each other on JAX.
IN_THE_PROGRAM = [name for name in MODELS if name != "sam"]

in_the_program = pytest.mark.skipif(
    BACKEND != "jax",
    reason="only JAX shows its program; the others' depths are the same",
)


@in_the_program
@pytest.mark.filterwarnings("ignore")  # KerasHub's own, in the call.
@pytest.mark.parametrize("name", IN_THE_PROGRAM)
def test_no_depth_falls_along_the_data_flow(name):
    uses, variables = uses_in(name)
    places = by_weight(name)
    # The states of random generators are variables too, and no weights.
    uses = [
        (use, [one for one in earlier if id(variables[one[0]]) in places])
        for use, earlier in uses
        if id(variables[use[0]]) in places
    ]

    def depth(weight):
        return places[id(variables[weight])].relative

    before = {}
    for use, earlier in uses:
        deepest = max((depth(weight) for weight, _ in earlier), default=0.0)
        before[use] = max(before.get(use, 0.0), deepest)
    # What is used again, as tied embeddings are, lies where it is used first.
    first = {}
    for (weight, _), deepest in before.items():
        first[weight] = min(first.get(weight, 1.0), deepest)
    fell = [
        variables[weight].path
        for weight, deepest in first.items()
        if depth(weight) < deepest
        and not excepted(name, variables[weight].path)
    ]
    assert first
    assert fell == []


@in_the_program
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", IN_THE_PROGRAM)
def test_layers_between_the_same_others_lie_side_by_side(name):
    uses, variables = uses_in(name)
    places = by_weight(name)

    def layer(weight):
        place = places.get(id(variables[weight]))
        return place and place.key.rpartition("/")[0]

    before, after, calls = {}, {}, {}
    for (weight, call), earlier in uses:
        this = layer(weight)
        calls.setdefault(this, set()).add(call)
        for source in {layer(other) for other, _ in earlier} - {this}:
            before.setdefault(this, set()).add(source)
            after.setdefault(source, set()).add(this)
    depths = {}
    for place in places.values():
        this = place.key.rpartition("/")[0]
        if len(calls.get(this, ())) == 1 and not excepted(name, place.path):
            between = (
                frozenset(before.get(this, ())),
                frozenset(after.get(this, ())),
            )
            depths.setdefault(between, {})[this] = place.relative
    apart = [d for d in depths.values() if len({*d.values()}) > 1]
    assert apart == []
