"""What the three distributed examples fine-tune: a small text classifier.

A stand-in for your own model and data. The order of the batches is fixed, for
any number of devices and after every restart: that is what makes a run that
was stopped and resumed end with the weights of one that was not.
"""

import keras
import numpy as np
from keras import layers

from keras_dualopt import DualOpt, bases

VOCABULARY, LENGTH, CLASSES = 64, 12, 4
WIDTH, HEADS, BLOCKS = 32, 8, 2
BATCHES = 10
BATCH = 16  # Rows of one step, on all devices together.


def make_model():
    """Return a transformer with the weights that are to be fine-tuned.

    Your own: `keras_hub.models.TextClassifier.from_preset(...)`, say. Every
    process must read the same weights.
    """
    keras.utils.set_random_seed(0)
    tokens = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(VOCABULARY, WIDTH, name="embedding")(tokens)
    for block in range(BLOCKS):
        y = layers.LayerNormalization(name=f"attention_norm_{block}")(x)
        # No biases: a key's bias has no gradient but rounding, which Adam
        # would blow up to full steps that differ from device to device.
        attention = layers.MultiHeadAttention(
            HEADS, WIDTH // HEADS, use_bias=False, name=f"attention_{block}"
        )
        x = x + attention(y, y)
        y = layers.LayerNormalization(name=f"mlp_norm_{block}")(x)
        y = layers.Dense(4 * WIDTH, "gelu", name=f"up_{block}")(y)
        x = x + layers.Dense(WIDTH, name=f"down_{block}")(y)
    x = layers.LayerNormalization(name="norm")(x)
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    return keras.Model(tokens, layers.Dense(CLASSES, name="head")(x))


def make_optimizer():
    """Return the optimizer: nothing in it depends on the devices.

    ε = 1e-6, as BERT's successors use: with 1e-8 a gradient that is nothing
    but rounding becomes a step of its own on every number of devices.
    """
    return DualOpt(
        3e-4,
        mode="finetune",
        base=bases.Adam(epsilon=1e-6),
        rollback=0.05,
    )


def make_loss(reduction="sum_over_batch_size"):
    return keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction=reduction
    )


def data(part=0, parts=1):
    """Return the rows that one of several processes trains on, in batches.

    Each gets its share of every batch, so that the steps are the same however
    many share them.
    """
    if BATCH % parts:
        raise ValueError(
            f"The number of processes must divide the batch of {BATCH}. "
            f"Received: {parts}."
        )
    random = np.random.default_rng(0)
    tokens = random.integers(0, VOCABULARY, (BATCHES, BATCH, LENGTH))
    labels = (tokens.mean(axis=2) > [[[26]], [[32]], [[38]]]).sum(axis=0)
    rows = slice(BATCH // parts * part, BATCH // parts * (part + 1))
    return tokens[:, rows].astype("int32"), labels[:, rows].astype("int32")
