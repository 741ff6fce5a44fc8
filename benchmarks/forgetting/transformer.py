"""A vision transformer of KerasHub, small enough to be pretrained here."""

import keras
from keras import layers

from .packages import imported
from .tasks import SIDE

PATCH, LAYERS, HEADS, WIDTH, HIDDEN = 4, 4, 4, 32, 64


def vision_transformer():
    """Return a model from images to what the class token has become.

    `keras_hub.models.ViTBackbone` with four blocks of width 32, on 4×4
    patches: 16 of an image with a margin of one pixel.
    """
    keras_hub = imported("keras_hub", "keras-hub")
    inputs = keras.Input((SIDE, SIDE, 1))
    vit = keras_hub.models.ViTBackbone(
        image_shape=(SIDE + 2, SIDE + 2, 1),
        patch_size=PATCH,
        num_layers=LAYERS,
        num_heads=HEADS,
        hidden_dim=WIDTH,
        mlp_dim=HIDDEN,
        name="vit_backbone",
    )
    x = vit(layers.ZeroPadding2D(1, name="margin")(inputs))
    return keras.Model(inputs, x[:, 0], name="vit")
