"""Small networks for 14×14 images: thousands of weights."""

import keras
from keras import layers, ops

from .tasks import SIDE


@keras.saving.register_keras_serializable(package="forgetting")
class UnfoldedConv2D(layers.Conv2D):
    """Conv2D as one product of matrices, with `padding="same"`.

    The same numbers up to rounding. XLA runs convolutions inside loops on one
    thread and slowly on CPUs; this is four times as fast there.
    """

    def call(self, inputs):
        """Return the convolution of images (batch, height, width, channel)."""
        height, width = inputs.shape[1:3]
        taps = self.kernel_size
        pads = [
            # As XLA and TensorFlow divide an odd padding: more at the end.
            (total // 2, total - total // 2)
            for total in (
                max((-(-size // step) - 1) * step + tap - size, 0)
                for size, step, tap in zip((height, width), self.strides, taps)
            )
        ]
        padded = ops.pad(inputs, ((0, 0), *pads, (0, 0)))
        rows, columns = self.strides
        out_height, out_width = -(-height // rows), -(-width // columns)
        seen = [
            padded[
                :,
                i : i + rows * (out_height - 1) + 1 : rows,
                j : j + columns * (out_width - 1) + 1 : columns,
            ]
            for i in range(taps[0])
            for j in range(taps[1])
        ]
        kernel = ops.reshape(self.kernel, (-1, self.filters))
        return ops.matmul(ops.concatenate(seen, axis=-1), kernel) + self.bias


def dense_network(depth=6, units=64, name="dense"):
    """Return six dense layers of 64 units."""
    inputs = keras.Input((SIDE, SIDE, 1))
    x = layers.Flatten()(inputs)
    for _ in range(depth):
        x = layers.Dense(units)(x)
        x = layers.LayerNormalization()(x)
        x = layers.ReLU()(x)
    return keras.Model(inputs, x, name=name)


def narrow_network():
    """Return three dense layers of 24 units, whose weights are larger."""
    return dense_network(3, 24, "narrow")


def convolutional_network():
    """Return six convolutions, 7×7 positions after the first."""
    inputs = x = keras.Input((SIDE, SIDE, 1))
    for filters, stride in zip(
        (16, 16, 32, 32, 32, 32), (2, 1, 2, 1, 2, 1), strict=True
    ):
        x = UnfoldedConv2D(filters, 3, strides=stride, padding="same")(x)
        x = layers.LayerNormalization()(x)
        x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, x, name="convolutional")


NETWORKS = {
    "dense": dense_network,
    "narrow": narrow_network,
    "convolutional": convolutional_network,
}
