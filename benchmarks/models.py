"""The models that are timed, built anew for every contender."""

# ruff: noqa: D102 - `build` and `call` mean what they mean in every Keras layer.

import math

import keras
from keras import layers


class Block(layers.Layer):
    """A pre-norm transformer block."""

    def __init__(self, heads, hidden, **options):
        super().__init__(**options)
        self.norm_1 = layers.LayerNormalization(epsilon=1e-6)
        self.attention = layers.MultiHeadAttention(heads, 64)
        self.norm_2 = layers.LayerNormalization(epsilon=1e-6)
        self.grow = layers.Dense(hidden, activation="gelu")
        self.dropout = layers.Dropout(0.1)
        self.hidden = hidden

    def build(self, shape):
        self.norm_1.build(shape)
        self.attention.build(shape, shape)
        self.norm_2.build(shape)
        self.grow.build(shape)
        self.shrink = layers.Dense(shape[-1])
        self.shrink.build((*shape[:-1], self.hidden))

    def call(self, inputs, training=None):
        normed = self.norm_1(inputs)
        inputs = inputs + self.attention(normed, normed, training=training)
        outputs = self.shrink(self.grow(self.norm_2(inputs)))
        return inputs + self.dropout(outputs, training=training)


class Encoder(layers.Layer):
    """All blocks in one layer, as in KerasHub's ViT."""

    def __init__(self, blocks, heads, hidden, **options):
        super().__init__(**options)
        self.blocks = [Block(heads, hidden) for _ in range(blocks)]
        self.norm = layers.LayerNormalization(epsilon=1e-6)

    def build(self, shape):
        self.position = self.add_weight(shape=(1, *shape[1:]), name="position")
        for block in self.blocks:
            block.build(shape)
        self.norm.build(shape)

    def call(self, inputs, training=None):
        outputs = inputs + self.position
        for block in self.blocks:
            outputs = block(outputs, training=training)
        return self.norm(outputs)

    def compute_output_shape(self, shape):
        return shape


def vit(blocks, width, image_size, patch=16):
    """Return a ViT with heads of width 64 and ten classes."""
    inputs = layers.Input((image_size, image_size, 3))
    outputs = layers.Conv2D(width, patch, strides=patch)(inputs)
    outputs = layers.Reshape((-1, width))(outputs)
    outputs = Encoder(blocks, width // 64, 4 * width)(outputs)
    outputs = layers.GlobalAveragePooling1D()(outputs)
    return keras.Model(inputs, layers.Dense(10)(outputs))


def resnet(stages, width, image_size):
    """Return a ResNet of two-convolution blocks, two to a stage."""
    inputs = layers.Input((image_size, image_size, 3))
    outputs = layers.Conv2D(width, 3, padding="same", use_bias=False)(inputs)
    for stage in range(stages):
        for block in range(2):
            outputs = _residual(
                outputs, width << stage, 2 if stage and not block else 1
            )
    outputs = layers.GlobalAveragePooling2D()(_normalized(outputs))
    return keras.Model(inputs, layers.Dense(10)(outputs))


def _residual(inputs, width, strides):
    around = inputs
    if strides > 1:
        around = layers.Conv2D(width, 1, strides=strides)(inputs)
    outputs = layers.Conv2D(
        width, 3, strides=strides, padding="same", use_bias=False
    )(_normalized(inputs))
    outputs = layers.Conv2D(width, 3, padding="same", use_bias=False)(
        _normalized(outputs)
    )
    return layers.Add()([outputs, around])


def _normalized(inputs):
    return layers.ReLU()(layers.BatchNormalization()(inputs))


def chain(parameters, variables):
    """Return equal square dense layers; half of the variables are biases."""
    count = variables // 2
    width = max(1, round(math.sqrt(parameters / count)))
    return keras.Sequential(
        [
            keras.Input((width,)),
            *(
                layers.Dense(width, kernel_initializer="random_normal")
                for _ in range(count)
            ),
        ]
    )
