"""The sizes that the models share."""

import keras_hub

hub = keras_hub.models

TEXT = {
    "vocabulary_size": 10,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 4,
    "intermediate_dim": 8,
}
GROUPED = {
    "vocabulary_size": 10,
    "num_layers": 2,
    "num_query_heads": 2,
    "num_key_value_heads": 1,
    "hidden_dim": 4,
    "intermediate_dim": 8,
}
VISION = {
    "patch_size": 4,
    "hidden_dim": 4,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_dim": 8,
    "image_shape": (8, 8, 3),
}
PLAIN = {"preprocessor": None}


def backbone(name, **options):
    def build():
        return getattr(hub, f"{name}Backbone")(**options)

    return build
