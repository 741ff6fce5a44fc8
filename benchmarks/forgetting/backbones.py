"""Networks that know something: `load_backbone(name)` is the door."""

import keras

from .efficientnet_lite import efficientnet_lite0
from .minilm import text_encoder
from .networks import NETWORKS
from .stamps import SIDE
from .transformer import vision_transformer
from .vision import retinanet, sam, segformer

# Pretrained elsewhere; the small ones of `NETWORKS` learn clothes here first.
PRETRAINED = {
    "efficientnet_lite0": lambda: efficientnet_lite0(SIDE)[0],
    "minilm": text_encoder,
}
# Small too, but made with KerasHub.
HUB = {
    "vit": vision_transformer,
    "segformer": segformer,
    "retinanet": retinanet,
    "sam": sam,
}


def load_backbone(name):
    """Return a Keras model from inputs to features.

    Args:
        name: One of `NETWORKS` or `HUB` (not pretrained: `Problem.pretrain`
            does it) or of `PRETRAINED`; or a model of one's own, a KerasHub
            `from_preset` model say, which is returned as it is.

    Raises:
        ValueError: If there is no such network.
        MissingPackageError: If the package with its weights is not installed.
    """
    if isinstance(name, keras.Model):
        return name
    networks = NETWORKS | HUB | PRETRAINED
    if name not in networks:
        raise ValueError(
            f"`name` must be one of {', '.join(networks)}, or a Keras model. "
            f"Received: {name!r}."
        )
    return networks[name]()
