"""Fine-tune a classifier of KerasHub with DualOpt, and ship it.

What `vit_images.py` and `bert_texts.py` share; each brings a preset, its data,
and a small network for where the preset cannot be reached.
"""

import argparse
from pathlib import Path

import keras
import numpy as np

from keras_dualopt import DualOpt, save_without_anchors
from keras_dualopt.callbacks import Drift


def make_parser(description):
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("out"))
    return parser


def compiled(classifier, optimizer):
    classifier.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return classifier


def reached(task, preset, classes):
    """Return the preset with a new head; `None` where it is out of reach."""
    try:
        return task.from_preset(preset, num_classes=classes)
    except OSError as error:
        print(f"{preset} cannot be reached: {error}\nA small one instead.")
        return None


def finetune(classifier, data, batch_size, callbacks, options, name):
    """Train, and write the picture and the file to ship."""
    optimizer = DualOpt(1e-3, reach=0.05)
    compiled(classifier, optimizer)
    optimizer.build(classifier.trainable_variables)
    optimizer.summary()
    drift = Drift(every=5)
    classifier.fit(
        *data,
        batch_size=batch_size,
        epochs=options.epochs,
        callbacks=[drift, *callbacks],
        verbose=2,
    )

    options.out.mkdir(parents=True, exist_ok=True)
    picture, file = options.out / f"{name}.png", options.out / f"{name}.keras"
    drift.plot(path=picture)
    save_without_anchors(classifier, file)
    inputs, labels = (part[:16] for part in data)
    shipped = keras.models.load_model(file)
    named = np.argmax(shipped.predict(inputs, verbose=0), axis=1)
    print(f"The shipped file names {np.mean(named == labels):.0%} of 16 right.")
    print(f"How far each layer went: {picture}. The model: {file}.")
