"""Weights that are added to a network and trained in place of its own.

Each function takes a backbone that is `vision_transformer()`, freezes what it
knows, and returns it with something added. `fresh` sets what was added to what
a run begins with.
"""

import keras
import numpy as np
from keras import ops

RANK, PROMPTS = 4, 10
# Every product with a kernel in a block of KerasHub's ViT.
DENSE = ("query", "key", "value", "attention_output", "dense_1", "dense_2")


def low_rank(backbone):
    """Add to each kernel of the blocks the product of two thin ones.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022,
    by KerasHub's `enable_lora`, which goes on training those layers' biases.
    """
    backbone.get_layer("vit_backbone").enable_lora(RANK, DENSE)
    return backbone


class Prompts(keras.layers.Layer):
    """Puts tokens of its own between the class token and the others.

    Args:
        count: How many.
    """

    def __init__(self, count, **options):
        super().__init__(**options)
        self.count = count

    def build(self, shape):
        """Make the tokens, as wide as the others."""
        self.prompts = self.add_weight(
            (1, self.count, shape[-1]), name="prompts"
        )

    def call(self, inputs):
        """Return tokens (batch, token, width), `count` more than there were."""
        prompts = ops.tile(self.prompts, (ops.shape(inputs)[0], 1, 1))
        return ops.concatenate([inputs[:, :1], prompts, inputs[:, 1:]], axis=1)


def with_prompts(backbone):
    """Add tokens before the first block.

    Jia et al., "Visual Prompt Tuning", ECCV 2022, in its shallow form.
    """
    backbone.trainable = False
    vit = backbone.get_layer("vit_backbone")
    x = backbone.get_layer("margin")(backbone.input)
    x = vit.get_layer("vit_patching_and_embedding")(x)
    x = Prompts(PROMPTS, name="prompts")(x)
    x = vit.get_layer("vit_encoder")(x)
    return keras.Model(backbone.input, x[:, 0], name="prompted_vit")


def fresh(variables, seed):
    """Set added weights, the same for equal seeds."""
    random = np.random.default_rng(seed)
    for variable in variables:
        if variable.path.endswith("lora_kernel_b"):
            # So that the network begins with what it knew.
            value = np.zeros(variable.shape)
        elif variable.path.endswith("lora_kernel_a"):
            # He's uniform distribution, as Keras' default.
            limit = np.sqrt(6 / np.prod(variable.shape[:-1]))
            value = random.uniform(-limit, limit, variable.shape)
        else:
            value = random.normal(0, 0.02, variable.shape)
        variable.assign(value.astype("float32"))
