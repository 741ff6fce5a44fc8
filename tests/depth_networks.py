"""Small models of every kind that the depth resolver must order.

Each function returns a built model whose layers have telling names.
"""

import keras
import numpy as np
from keras import layers


def sequential():
    return keras.Sequential(
        [
            layers.Input((8,)),
            layers.Dense(4, name="a"),
            layers.Dense(3, name="b"),
            layers.BatchNormalization(name="c"),
            layers.Dense(2, name="d"),
        ]
    )


def functional_norm():
    """A chain with a normalization, whose paths are bare layer names."""
    inputs = layers.Input((8,))
    outputs = layers.Dense(4, name="a")(inputs)
    outputs = layers.Dense(3, name="b")(outputs)
    outputs = layers.BatchNormalization(name="c")(outputs)
    return keras.Model(inputs, layers.Dense(2, name="d")(outputs))


def functional():
    """Two branches of different lengths between one stem and one end."""
    inputs = layers.Input((8,))
    stem = layers.Dense(4, name="stem")(inputs)
    short = layers.Dense(4, name="short")(stem)
    long = layers.Dense(4, name="long_1")(stem)
    long = layers.Dense(4, name="long_2")(layers.ReLU()(long))
    long = layers.Dense(4, name="long_3")(long)
    merged = layers.Concatenate()([short, long])
    return keras.Model(inputs, layers.Dense(2, name="end")(merged))


def residual():
    """A block with a projection shortcut: its siblings read one tensor."""
    inputs = layers.Input((8,))
    stem = layers.Dense(6, name="stem")(inputs)
    branch = layers.Dense(4, name="first")(stem)
    branch = layers.LayerNormalization(name="first_norm")(branch)
    branch = layers.Dense(4, name="second")(branch)
    shortcut = layers.Dense(4, name="shortcut")(stem)
    shortcut = layers.LayerNormalization(name="shortcut_norm")(shortcut)
    merged = layers.Add()([branch, shortcut])
    return keras.Model(inputs, layers.Dense(2, name="end")(merged))


def nested():
    """A Functional inside a Sequential inside a Functional."""
    inner_inputs = layers.Input((4,))
    inner = layers.Dense(4, name="b")(inner_inputs)
    inner = layers.Dense(4, name="c")(inner)
    inner_model = keras.Model(inner_inputs, inner, name="inner")
    middle = keras.Sequential(
        [layers.Input((4,)), inner_model, layers.Dense(4, name="d")],
        name="middle",
    )
    inputs = layers.Input((8,))
    outputs = layers.Dense(4, name="a")(inputs)
    outputs = middle(outputs)
    return keras.Model(inputs, layers.Dense(2, name="e")(outputs))


class Reversed(keras.Model):
    """Makes its layers in the order opposite to the one it calls them in."""

    def __init__(self, **options):
        super().__init__(**options)
        self.last = layers.Dense(2, name="d")
        self.third = layers.Dense(3, name="c")
        self.second = layers.BatchNormalization(name="b")
        self.first = layers.Dense(4, name="a")

    def call(self, inputs, training=None):
        outputs = self.second(self.first(inputs), training=training)
        return self.last(self.third(outputs))


def subclassed():
    model = Reversed(name="net")
    model(np.zeros((2, 8), "float32"))
    return model


class Block(layers.Layer):
    """An opaque block: norm, attention, norm, two dense layers."""

    def __init__(self, **options):
        super().__init__(**options)
        self.shrink = layers.Dense(4, name="shrink")
        self.grow = layers.Dense(8, name="grow")
        self.norm_2 = layers.LayerNormalization(name="norm_2")
        self.attention = layers.MultiHeadAttention(2, 2, name="attention")
        self.norm_1 = layers.LayerNormalization(name="norm_1")
        self.dropout = layers.Dropout(0.3)

    def build(self, shape):
        self.norm_1.build(shape)
        self.attention.build(shape, shape)
        self.norm_2.build(shape)
        self.grow.build(shape)
        self.shrink.build((*shape[:-1], 8))

    def call(self, inputs, training=None):
        normed = self.norm_1(inputs)
        mixed = inputs + self.attention(normed, normed, training=training)
        outputs = self.shrink(self.grow(self.norm_2(mixed)))
        return mixed + self.dropout(outputs, training=training)

    def compute_output_shape(self, shape):
        return shape


class Encoder(layers.Layer):
    """An opaque stack of opaque blocks."""

    def __init__(self, count=2, **options):
        super().__init__(**options)
        self.count = count
        self.blocks = [Block(name=f"block_{i}") for i in range(count)]

    def build(self, shape):
        for block in self.blocks:
            block.build(shape)

    def call(self, inputs, training=None):
        for block in self.blocks:
            inputs = block(inputs, training=training)
        return inputs

    def compute_output_shape(self, shape):
        return shape


def opaque():
    inputs = layers.Input((5, 3))
    outputs = layers.Dense(4, name="stem")(inputs)
    outputs = Encoder(name="encoder")(outputs)
    outputs = layers.GlobalAveragePooling1D()(outputs)
    return keras.Model(inputs, layers.Dense(2, name="end")(outputs))


class HoldsFunctional(keras.Model):
    """A subclassed model around a Functional body with parallel branches."""

    def __init__(self, **options):
        super().__init__(**options)
        self.classifier = layers.Dense(2, name="classifier")
        inputs = layers.Input((8,))
        stem = layers.Dense(4, name="stem")(inputs)
        left = layers.Dense(4, name="left")(stem)
        right = layers.Dense(4, name="right")(stem)
        merged = layers.Add()([left, right])
        self.body = keras.Model(
            inputs, layers.Dense(4, name="top")(merged), name="body"
        )

    def call(self, inputs):
        return self.classifier(self.body(inputs))


def around_functional():
    model = HoldsFunctional(name="net")
    model(np.zeros((2, 8), "float32"))
    return model


def wrappers():
    """RNNs and the wrappers round layers."""
    inputs = layers.Input((5, 3))
    outputs = layers.TimeDistributed(layers.Dense(4, name="dense"), name="a")(
        inputs
    )
    outputs = layers.LSTM(4, return_sequences=True, name="b")(outputs)
    outputs = layers.Bidirectional(
        layers.GRU(2, return_sequences=True, name="rnn"), name="c"
    )(outputs)
    cells = [layers.SimpleRNNCell(3, name=f"cell_{i}") for i in range(2)]
    outputs = layers.RNN(layers.StackedRNNCells(cells), name="d")(outputs)
    return keras.Model(inputs, layers.Dense(2, name="e")(outputs))


def language_model(tied=True):
    """Tokens in, tokens out: one embedding at both ends."""
    embedding = layers.ReversibleEmbedding(
        10, 4, tie_weights=tied, name="embedding"
    )
    inputs = layers.Input((5,), dtype="int32")
    outputs = embedding(inputs)
    outputs = layers.Dense(4, name="middle")(outputs)
    outputs = layers.LayerNormalization(name="norm")(outputs)
    return keras.Model(inputs, embedding(outputs, reverse=True))


def tied():
    return language_model(True)


def untied():
    return language_model(False)


class LanguageModel(keras.Model):
    """The same as a subclassed model."""

    def __init__(self, is_tied, **options):
        super().__init__(**options)
        self.norm = layers.LayerNormalization(name="norm")
        self.middle = layers.Dense(4, name="middle")
        self.embedding = layers.ReversibleEmbedding(
            10, 4, tie_weights=is_tied, name="embedding"
        )

    def build(self, shape):
        self.embedding.build(shape)
        self.middle.build((*shape, 4))
        self.norm.build((*shape, 4))

    def call(self, inputs):
        outputs = self.norm(self.middle(self.embedding(inputs)))
        return self.embedding(outputs, reverse=True)


def untied_subclassed():
    model = LanguageModel(False, name="net")
    model.build((2, 5))
    return model


def towers():
    """Two encoders of different lengths that meet in one layer."""

    def tower(name, width, length):
        inputs = layers.Input((width,), name=f"{name}_input")
        outputs = inputs
        for i in range(length):
            outputs = layers.Dense(4, name=f"{name}_{i}")(outputs)
        return keras.Model(inputs, outputs, name=name)

    image, text = tower("image", 8, 5), tower("text", 6, 2)
    inputs = [layers.Input((8,)), layers.Input((6,))]
    features = [image(inputs[0]), text(inputs[1])]
    merged = layers.Concatenate()(features)
    return keras.Model(inputs, layers.Dense(2, name="head")(merged))


def shared():
    """One layer that is called twice, with another between."""
    twice = layers.Dense(4, name="twice")
    inputs = layers.Input((4,))
    outputs = layers.Dense(4, name="between")(twice(inputs))
    outputs = layers.Dense(4, name="after")(twice(outputs))
    return keras.Model(inputs, outputs)


class Masked(layers.Layer):
    """Owns a weight that no call reads, and a layer that none calls."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 4), name="kernel")
        self.mask_token = self.add_weight(shape=(4,), name="mask_token")
        self.unused = layers.Dense(3, name="unused")
        self.unused.build((None, 4))

    def call(self, inputs):
        return keras.ops.matmul(inputs, self.kernel)

    def compute_output_shape(self, shape):
        return (*shape[:-1], 4)


def untouched():
    inputs = layers.Input((8,))
    outputs = layers.Dense(4, name="before")(inputs)
    outputs = Masked(name="masked")(outputs)
    return keras.Model(inputs, layers.Dense(2, name="after")(outputs))


def same_paths():
    """Two different layers whose weights have the same paths."""

    def inner(width, units):
        inputs = layers.Input((width,))
        return keras.Model(inputs, layers.Dense(units, name="dense")(inputs))

    inputs = layers.Input((8,))
    first, second = inner(8, 4), inner(4, 3)
    model = keras.Model(inputs, second(first(inputs)))
    paths = [weight.path for weight in model.weights]
    assert len(set(paths)) < len(paths)
    return model


class Towers(keras.Model):
    """Two towers in one subclassed model: called one after the other."""

    def __init__(self, **options):
        super().__init__(**options)
        self.left = [layers.Dense(4, name=f"left_{i}") for i in range(3)]
        self.right = [layers.Dense(4, name=f"right_{i}") for i in range(3)]
        self.head = layers.Dense(2, name="head")

    def call(self, inputs):
        left = right = inputs
        for layer in self.left:
            left = layer(left)
        for layer in self.right:
            right = layer(right)
        return self.head(keras.ops.concatenate([left, right], axis=-1))


def subclassed_towers():
    model = Towers(name="net")
    model(np.zeros((2, 8), "float32"))
    return model


class Inception(layers.Layer):
    """Three branches of different lengths and a shortcut, all opaque."""

    def __init__(self, **options):
        super().__init__(**options)
        for name in ("one", "two_a", "two_b", "shortcut"):
            setattr(self, name, layers.Dense(4, name=name))
        self.gate = layers.Dense(1, name="gate")

    def build(self, shape):
        for layer in (self.one, self.two_a, self.shortcut, self.gate):
            layer.build(shape)
        self.two_b.build((*shape[:-1], 4))

    def call(self, inputs):
        weight = keras.ops.sigmoid(self.gate(inputs))
        one = keras.ops.relu(self.one(inputs))
        two = self.two_b(keras.ops.relu(self.two_a(inputs)))
        return weight * one + (1 - weight) * two + self.shortcut(inputs)


def inception():
    inputs = layers.Input((8,))
    outputs = layers.Dense(4, name="stem")(inputs)
    outputs = Inception(name="block")(outputs)
    return keras.Model(inputs, layers.Dense(2, name="end")(outputs))


class Joint(layers.Layer):
    """Calls the parts of two other layers with something between."""

    def __init__(self, **options):
        super().__init__(**options)
        self.image = Encoder(1, name="image")
        self.text = Encoder(1, name="text")

    def build(self, shape):
        self.image.build(shape)
        self.text.build(shape)

    def call(self, inputs):
        image, text = self.image.blocks[0], self.text.blocks[0]
        first = image.norm_1(inputs)
        second = text.norm_1(inputs + 1.0)
        both = keras.ops.concatenate([first, second], axis=1)
        mixed = image.attention(both, both) + text.attention(both, both)
        first = image.shrink(image.grow(image.norm_2(mixed)))
        return first + text.shrink(text.grow(text.norm_2(mixed)))


def joint():
    inputs = layers.Input((5, 3))
    outputs = layers.Dense(4, name="stem")(inputs)
    outputs = Joint(name="joint")(outputs)
    return keras.Model(inputs, layers.Dense(2, name="end")(outputs))


class Choice(layers.Layer):
    """A condition: its two branches lie side by side."""

    def __init__(self, **options):
        super().__init__(**options)
        self.yes = layers.Dense(4, name="yes")
        self.no = layers.Dense(4, name="no")

    def build(self, shape):
        self.yes.build(shape)
        self.no.build(shape)

    def call(self, inputs):
        return keras.ops.cond(
            keras.ops.sum(inputs) > 0,
            lambda: self.yes(inputs),
            lambda: self.no(inputs),
        )


def choice():
    inputs = layers.Input((8,))
    outputs = layers.Dense(4, name="stem")(inputs)
    outputs = Choice(name="choice")(outputs)
    return keras.Model(inputs, layers.Dense(2, name="end")(outputs))


def flipped(inputs):
    """A function that leaves `keras.ops`, and takes no symbolic tensors."""
    if isinstance(inputs, keras.KerasTensor):
        raise TypeError("a tensor of the backend is needed")
    return keras.ops.flip(inputs, axis=-1)


class Refusing(layers.Layer):
    """Two branches behind what takes no symbolic tensor, or only some do."""

    def __init__(self, **options):
        super().__init__(**options)
        self.function = flipped
        self.left = layers.Dense(4, name="left")
        self.right = layers.Dense(4, name="right")

    def build(self, shape):
        self.left.build(shape)
        self.right.build(shape)

    def call(self, inputs):
        row = keras.ops.mod(keras.ops.argmax(inputs), 2)
        picked = keras.ops.expand_dims(inputs[row], 0)
        left = self.left(flipped(picked))
        return left + self.right(self.function(inputs))


def refusing():
    inputs = layers.Input((8,))
    outputs = layers.Dense(4, name="stem")(inputs)
    for i in range(2):
        outputs = Refusing(name=f"refusing_{i}")(outputs)
    return keras.Model(inputs, layers.Dense(2, name="end")(outputs))


class Loop(layers.Layer):
    """Calls two layers in the function of a loop over the batch."""

    def __init__(self, **options):
        super().__init__(**options)
        self.second = layers.Dense(4, name="second")
        self.first = layers.Dense(4, name="first")

    def build(self, shape):
        self.first.build((1, shape[-1]))
        self.second.build((1, 4))

    def one(self, row):
        row = keras.ops.expand_dims(row, 0)
        return keras.ops.squeeze(self.second(self.first(row)), 0)

    def call(self, inputs):
        return keras.ops.map(self.one, inputs)


def loop():
    inputs = layers.Input((8,))
    outputs = layers.Dense(4, name="stem")(inputs)
    outputs = Loop(name="loop")(outputs)
    return keras.Model(inputs, layers.Dense(2, name="end")(outputs))


class Given(layers.Layer):
    """Calls a layer with a weight of another one, which hands it out."""

    def __init__(self, **options):
        super().__init__(**options)
        self.first = layers.Dense(4, name="first")
        self.table = Table(name="table")
        self.scaled = Scaled(name="scaled")

    def build(self, shape):
        self.first.build(shape)
        self.table.build(shape)
        self.scaled.build((*shape[:-1], 4))

    def call(self, inputs):
        table = self.table(inputs)
        return self.scaled(self.first(inputs), table)


class Table(layers.Layer):
    """Returns its weight itself."""

    def build(self, shape):
        self.table = self.add_weight(shape=(4,), name="table")

    def call(self, inputs):
        return self.table


class Scaled(layers.Layer):
    """Owns a weight, and is given another."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(4,), name="scale")

    def call(self, inputs, table):
        return inputs * self.scale + table


def handed_out():
    inputs = layers.Input((8,))
    outputs = layers.Dense(4, name="stem")(inputs)
    outputs = Given(name="given")(outputs)
    return keras.Model(inputs, layers.Dense(2, name="end")(outputs))


class TwoInputs(keras.Model):
    """Takes two tensors by position: Keras keeps the first one's shape."""

    def __init__(self, **options):
        super().__init__(**options)
        self.out = layers.Dense(2, name="end")
        self.middle = layers.Dense(4, name="middle")
        self.image = layers.Dense(4, name="image")
        self.text = layers.Dense(4, name="text")

    def call(self, image, text):
        merged = keras.ops.concatenate(
            [self.image(image), self.text(text)], axis=-1
        )
        return self.out(self.middle(merged))


def two_inputs():
    model = TwoInputs(name="net")
    model(np.zeros((2, 8), "float32"), np.zeros((2, 6), "float32"))
    return model


def called_three_times():
    """A model of three layers, called three times, and two layers."""
    inputs = layers.Input((4,))
    outputs = inputs
    for i in range(3):
        outputs = layers.Dense(4, name=f"inner_{i}")(outputs)
    inner = keras.Model(inputs, outputs)
    outputs = layers.Dense(4, name="after")(inner(inner(inner(inputs))))
    return keras.Model(inputs, layers.Dense(4, name="end")(outputs))


def nested_twice(levels):
    """A model that calls a model twice, which calls a model twice, …"""
    inputs = layers.Input((4,))
    model = keras.Model(inputs, layers.Dense(4, name="inner")(inputs))
    for level in range(levels):
        inputs = layers.Input((4,))
        outputs = layers.Dense(4, name=f"outer_{level}")(model(model(inputs)))
        model = keras.Model(inputs, outputs)
    return model
