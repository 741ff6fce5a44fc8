"""Fine-tune a KerasHub BERT on short reviews, and ship it.

    KERAS_BACKEND=torch python examples/bert_texts.py            # from_preset
    KERAS_BACKEND=torch python examples/bert_texts.py --small    # no download

The preset is a BERT of two layers, pretrained on English text (17 MB). With
`--small`, and where the preset cannot be reached, a BERT of its own first
learns which of eight verdicts a review ends with and then takes the preset's
place: what it still knows of that is measured after each epoch. The reviews are
made up from a few words; the new task is to tell good ones from bad ones.

How it is tuned and shipped stands in `hub_finetune.py`. It prints what is
pulled and how far it may go, writes the picture of how far each layer went
(`out/bert.png`), and a file without a second copy of the weights
(`out/bert.keras`). Needs `pip install keras-hub matplotlib`.
"""

import itertools

import keras
import keras_hub
import numpy as np
from hub_finetune import compiled, finetune, make_parser, reached

from keras_dualopt.callbacks import Retention

PRESET = "bert_tiny_en_uncased"
OPENINGS = ("we had", "this was", "a friend found", "they made")
THINGS = ("a film", "the story", "an actor", "a soup", "the bread", "a dinner")
BAD = ("dull and slow", "a sad waste", "not worth it", "poor again")
GOOD = ("bright and quick", "a rare joy", "well worth it", "rich again")


def reviews():
    """Return texts, which verdict each ends with, and whether it is good."""
    verdicts = BAD + GOOD
    rows = [
        (f"{opening} {thing} {verdict}", verdicts.index(verdict))
        for opening, thing, verdict in itertools.product(
            OPENINGS, THINGS, verdicts
        )
    ]
    order = np.random.default_rng(0).permutation(len(rows))
    texts, ending = zip(*(rows[i] for i in order), strict=True)
    return list(texts), np.array(ending), np.array(ending) >= len(BAD)


def small_classifier(classes=2, backbone=None):
    """Return a classifier on a given backbone or a new one."""
    words = sorted({word for text in reviews()[0] for word in text.split()})
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = keras_hub.models.BertTokenizer(vocabulary=marks + words)
    if backbone is None:
        backbone = keras_hub.models.BertBackbone(
            vocabulary_size=len(marks + words),
            num_layers=2,
            num_heads=2,
            hidden_dim=32,
            intermediate_dim=64,
            max_sequence_length=16,
        )
    return keras_hub.models.BertTextClassifier(
        backbone=backbone,
        num_classes=classes,
        preprocessor=keras_hub.models.BertTextClassifierPreprocessor(
            tokenizer, sequence_length=16
        ),
    )


def pretrained_small(epochs):
    """Return a classifier on a backbone that knows a task, and a callback."""
    texts, ending, _ = reviews()
    old = compiled(small_classifier(8), keras.optimizers.Adam(3e-3))
    old.fit(texts, ending, batch_size=16, epochs=epochs, verbose=2)
    kept = Retention((texts, ending), model=old)
    return small_classifier(backbone=old.backbone), [kept]


def pretrained(small, epochs):
    task = keras_hub.models.TextClassifier
    classifier = None if small else reached(task, PRESET, 2)
    return pretrained_small(epochs) if classifier is None else (classifier, [])


def main(arguments=None):
    parser = make_parser(__doc__)
    options = parser.parse_args(arguments)
    keras.utils.set_random_seed(0)
    classifier, callbacks = pretrained(options.small, options.epochs)
    texts, _, good = reviews()
    finetune(classifier, (texts, good), 16, callbacks, options, "bert")


if __name__ == "__main__":
    main()
