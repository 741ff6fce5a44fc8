"""Models whose new layers are easily mistaken for the pretrained ones."""

import keras
import numpy as np
from keras import layers


def dense(*names, width=4):
    return [layers.Dense(width, name=name) for name in names]


def base(prefix, count, width=4, name=None):
    """A Functional base: a chain of dense layers."""
    inputs = layers.Input((width,))
    outputs = inputs
    for i in range(count):
        outputs = layers.Dense(4, name=f"{prefix}{i}")(outputs)
    return keras.Model(inputs, outputs, name=name)


def fresh_classifier():
    """Embedding → LSTM → Sequential([Dense, Dense])."""
    return keras.Sequential(
        [
            layers.Input((5,), dtype="int32"),
            layers.Embedding(10, 4, name="embedding"),
            layers.LSTM(4, name="lstm"),
            keras.Sequential(dense("new_1", "new_2"), name="top"),
        ]
    )


def patch_embedding():
    """A Sequential stem before a chain of blocks."""
    inputs = layers.Input((8,))
    outputs = keras.Sequential(dense("patch", "position"))(inputs)
    for i in range(6):
        outputs = layers.Dense(4, name=f"block_{i}")(outputs)
    return keras.Model(inputs, layers.Dense(2, name="new")(outputs))


def stem_and_trunk():
    """Everything in two Sequentials: the small one first."""
    return keras.Sequential(
        [
            layers.Input((8,)),
            keras.Sequential(dense("stem")),
            keras.Sequential(dense("a", "b", "c", "d", "new")),
        ]
    )


def augmented():
    """A base that was made on the output of an augmentation."""
    inputs = layers.Input((8,))
    outputs = keras.Sequential(
        [layers.GaussianNoise(0.1), layers.BatchNormalization(name="norm")]
    )(inputs)
    for i in range(5):
        outputs = layers.Dense(4, name=f"base_{i}")(outputs)
    return keras.Model(inputs, layers.Dense(2, name="new")(outputs))


class Diffusion(keras.Model):
    """A denoiser with a small model for the time."""

    def __init__(self):
        super().__init__()
        self.time = keras.Sequential(dense("time_1", "time_2"))
        self.down = layers.Dense(4, name="down")
        self.middle = layers.Dense(4, name="middle")
        self.up = layers.Dense(4, name="up")
        self.out = layers.Dense(2, name="new")

    def call(self, inputs):
        time = self.time(inputs[:, :1])
        outputs = self.down(inputs) + time
        return self.out(self.up(self.middle(outputs) + time))


def diffusion():
    model = Diffusion()
    model(np.zeros((2, 8), "float32"))
    return model


class Recommender(keras.Model):
    """Embeddings beside two Sequentials, and a layer that joins them."""

    def __init__(self):
        super().__init__()
        self.users = layers.Embedding(10, 4, name="users")
        self.items = layers.Embedding(10, 4, name="items")
        self.user_tower = keras.Sequential(dense("user_1"))
        self.item_tower = keras.Sequential(dense("item_1"))
        self.hidden = layers.Dense(4, name="hidden")
        self.rating = layers.Dense(1, name="new")

    def call(self, inputs):
        user = self.user_tower(self.users(inputs[:, 0]))
        item = self.item_tower(self.items(inputs[:, 1]))
        joined = keras.ops.concatenate([user, item], axis=-1)
        return self.rating(self.hidden(joined))


def recommender():
    model = Recommender()
    model(np.zeros((2, 2), "int32"))
    return model


def larger_head():
    """A small base under a Sequential head with more layers."""
    return keras.Sequential(
        [
            layers.Input((4,)),
            base("base_", 2),
            keras.Sequential(dense("new_1", "new_2", "new_3")),
        ]
    )


def head_on_its_output():
    """A Sequential head on the output of a base that is not nested."""
    body = base("base_", 4)
    head = keras.Sequential(dense("new_1", "new_2"))
    return keras.Model(body.inputs, head(body.outputs[0]))


class TwoHeads(keras.Model):
    """Two heads that read the same features, one called after the other."""

    def __init__(self):
        super().__init__()
        self.second = layers.Dense(2, name="new_2")
        self.trunk = layers.Dense(4, name="trunk")
        self.first = layers.Dense(3, name="new_1")
        self.stem = layers.Dense(4, name="stem")

    def call(self, inputs):
        features = self.trunk(self.stem(inputs))
        return self.first(features), self.second(features)


def two_heads():
    model = TwoHeads()
    model(np.zeros((2, 8), "float32"))
    return model


def side_network():
    """A small model of its own beside a base, both under a new layer."""
    inputs = [layers.Input((4,)), layers.Input((3,))]
    side = keras.Sequential(dense("new_side"))(inputs[1])
    merged = layers.Concatenate()([base("base_", 5)(inputs[0]), side])
    return keras.Model(inputs, layers.Dense(2, name="new")(merged))


def auxiliary():
    """A layer used first for an auxiliary output, then by the trunk."""
    shared = layers.Dense(4, name="shared")
    inputs = layers.Input((4,))
    aside = shared(inputs)
    outputs = layers.Dense(4, name="a")(inputs)
    outputs = layers.Dense(4, name="b")(shared(outputs))
    return keras.Model(inputs, [aside, layers.Dense(2, name="new")(outputs)])


class AttentionClassifier(keras.Model):
    """A model, though its name may end in "Attention"."""

    def __init__(self, **options):
        super().__init__(**options)
        self.embedding = layers.Dense(4, name="embedding")
        self.lstm = layers.Bidirectional(
            layers.LSTM(2, return_sequences=True, name="rnn"), name="lstm"
        )
        self.attention = layers.MultiHeadAttention(2, 2, name="attention")
        self.out = layers.Dense(2, name="new")

    def call(self, inputs):
        outputs = self.lstm(self.embedding(inputs))
        outputs = self.attention(outputs, outputs)
        return self.out(keras.ops.mean(outputs, axis=1))


class BiLSTMAttention(AttentionClassifier):
    pass


def named_attention():
    model = BiLSTMAttention()
    model(np.zeros((2, 5, 3), "float32"))
    return model


class CNNWithAttention(layers.Layer):
    """A layer so named that holds more than projections."""

    def __init__(self, **options):
        super().__init__(**options)
        self.first = layers.Conv1D(4, 3, padding="same", name="first")
        self.second = layers.Conv1D(4, 3, padding="same", name="second")
        self.attention = layers.MultiHeadAttention(2, 2, name="attention")

    def build(self, shape):
        self.first.build(shape)
        self.second.build((*shape[:-1], 4))
        self.attention.build((*shape[:-1], 4), (*shape[:-1], 4))

    def call(self, inputs):
        outputs = self.second(self.first(inputs))
        return self.attention(outputs, outputs)


def block_with_attention():
    inputs = layers.Input((5, 3))
    outputs = CNNWithAttention(name="block")(inputs)
    outputs = layers.GlobalAveragePooling1D()(outputs)
    return keras.Model(inputs, layers.Dense(2, name="new")(outputs))


HEADS = {
    "fresh_classifier": (fresh_classifier, {"new_1", "new_2"}),
    "patch_embedding": (patch_embedding, {"new"}),
    "stem_and_trunk": (stem_and_trunk, {"new"}),
    "augmented": (augmented, {"new"}),
    "diffusion": (diffusion, {"new"}),
    "recommender": (recommender, {"new"}),
    "larger_head": (larger_head, {"new_1", "new_2", "new_3"}),
    "head_on_its_output": (head_on_its_output, {"new_1", "new_2"}),
    "two_heads": (two_heads, {"new_1", "new_2"}),
    "side_network": (side_network, {"new", "new_side"}),
    "auxiliary": (auxiliary, {"new"}),
    "named_attention": (named_attention, {"new"}),
    "block_with_attention": (block_with_attention, {"new"}),
}
