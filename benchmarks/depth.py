"""What finding depths costs: beside the first training step of a ViT-B.

    KERAS_BACKEND=jax python benchmarks/depth.py

The model is as large as ViT-B/16 (12 blocks of width 768, 86 million weights)
and hides its blocks in one layer, so that they must be traced. The times are
of a process's first call, which is what a user waits for. The limit is the
larger of 1 second and 2 % of the first training step.
"""

# ruff: noqa: D102 - `build` and `call` mean what they mean in every Keras layer.

import argparse
import platform
import time

import keras
import numpy as np
from keras import layers

from keras_dualopt.depth import find_model, layer_depth


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


def vit(blocks, width, image_size):
    inputs = layers.Input((image_size, image_size, 3))
    outputs = layers.Conv2D(width, 16, strides=16)(inputs)
    outputs = layers.Reshape((-1, width))(outputs)
    outputs = Encoder(blocks, width // 64, 4 * width)(outputs)
    outputs = layers.GlobalAveragePooling1D()(outputs)
    return keras.Model(inputs, layers.Dense(10)(outputs))


def seconds(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def first_step(model, batch, image_size):
    model.compile(
        optimizer=keras.optimizers.SGD(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    images = np.ones((batch, image_size, image_size, 3), "float32")
    return seconds(model.train_on_batch, images, np.zeros(batch, "int32"))[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()

    print("building the model ...", flush=True)
    model = vit(options.blocks, options.width, options.image_size)
    find, _ = seconds(find_model, model.trainable_variables)
    cold, depth = seconds(layer_depth, model)
    warm = [seconds(layer_depth, model)[0] for _ in range(3)]
    place, _ = seconds(depth.place, model, model.trainable_variables)
    print("the first training step ...", flush=True)
    step = first_step(model, options.batch, options.image_size)
    limit = max(1.0, 0.02 * step)

    print(
        f"\n{keras.backend.backend()}, Keras {keras.__version__}, Python "
        f"{platform.python_version()}, {platform.machine()}\n"
        f"{model.count_params() / 1e6:.1f} million weights in "
        f"{len(model.weights)} variables, {depth.layer_count} layers; "
        f"batch {options.batch}\n"
    )
    rows = [
        ("find_model, on the call stack", find),
        ("layer_depth, first call", cold),
        ("layer_depth, again (median of 3)", sorted(warm)[1]),
        ("LayerDepth.place", place),
        ("all of it, in one build", find + cold + place),
        ("the limit", limit),
        ("the first training step", step),
    ]
    print(f"{'':34}{'seconds':>10}{'of the step':>14}")
    for name, value in rows:
        print(f"{name:34}{value:10.4f}{value / step:13.2%}")
    within = find + cold + place <= limit
    print("\nwithin the limit" if within else "\nOVER THE LIMIT")


if __name__ == "__main__":
    main()
