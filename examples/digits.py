"""Fine-tune a network on a new style of digits, at three rates, for longer.

A small convolutional network learns scikit-learn's handwritten digits in three
styles (plain, edges, noisy). Then it is fine-tuned on 300 digits in a new
style (inverted), for 100 steps, 300 and 1,000: with Keras' Adam, and with
`DualOpt(learning_rate, reach=0.1)`, which holds weights at about that distance
from their pretrained values at most: 0.1 in the shallowest layer, three times
as far in the deepest. Both at three learning rates. Two things are measured, on
digits that no training saw: the accuracy kept on the three old styles, and the
accuracy on the new one.

    KERAS_BACKEND=jax python examples/digits.py              # one seed
    KERAS_BACKEND=jax python examples/digits.py --seeds 3    # quoted figures

It prints a table, writes a picture, `out/digits.png`, and says how much the
rate and the length decide.
"""

import argparse
import itertools
import time
from collections import defaultdict
from pathlib import Path

import keras
import numpy as np
from digits_data import NEW_STYLE, OLD_STYLES, PARTS, in_styles, load_parts
from digits_picture import draw_picture
from keras import layers

from keras_dualopt import DualOpt

BATCH_SIZE = 60
# Epochs. Five steps each in fine-tuning: after 100, 300 and 1,000 steps.
PRETRAINING, LENGTHS = 25, (20, 60, 200)
STEPS = PARTS["finetune"] // BATCH_SIZE
RATES = (3e-4, 1e-3, 3e-3)
OPTIMIZERS = {
    "Adam": lambda model, rate: keras.optimizers.Adam(rate),
    # The ten classes stay, so the last layer is pretrained like the others.
    "DualOpt, reach=0.1": lambda model, rate: DualOpt(rate, reach=0.1).bind(
        model, head=()
    ),
}
OURS = list(OPTIMIZERS)[-1]


# --- training ---------------------------------------------------------------


def make_model():
    """Return three stages of convolutions, and one dense layer."""
    inputs = keras.Input((8, 8, 1))
    x = inputs
    for filters in (16, 32, 64):
        x = layers.Conv2D(filters, 3, padding="same")(x)
        x = layers.LayerNormalization()(x)
        x = layers.ReLU()(x)
        x = layers.Conv2D(filters, 3, strides=2, padding="same")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10)(x))


def train(model, optimizer, data, epochs, seed, callbacks=()):
    """Train a model; equal seeds shuffle the data equally."""
    keras.utils.set_random_seed(seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss)
    images, labels = data
    model.fit(
        images, labels, BATCH_SIZE, epochs, verbose=0, callbacks=list(callbacks)
    )


def accuracy(model, data):
    """Return the share of images that a model names rightly, in percent."""
    images, labels = data
    logits = model.predict_on_batch(images)
    return 100 * float(np.mean(logits.argmax(axis=1) == labels))


class AtLengths(keras.callbacks.Callback):
    """Measures at some lengths of training.

    Args:
        lengths: How many epochs each is.
        measure: Called with how many steps were taken.
    """

    def __init__(self, lengths, measure):
        super().__init__()
        self.lengths, self.measure = lengths, measure

    def on_epoch_end(self, epoch, logs=None):
        """Measure, if the training is as long."""
        if epoch + 1 in self.lengths:
            self.measure(STEPS * (epoch + 1))


def run_seed(seed, pretraining, lengths, rates, report):
    """Pretrain once, fine-tune with every optimizer; report what it knows.

    Args:
        seed: Of the division of the digits, the weights and the batches.
        pretraining: Epochs on the old styles.
        lengths: Epochs on the new one, rising.
        rates: Learning rates.
        report: Called with an optimizer's name, the rate, the number of steps,
            and the accuracies on the old styles and on the new one.
    """
    parts = load_parts(seed)
    old = {name: in_styles(parts[name], OLD_STYLES, seed) for name in PARTS}
    new = {name: in_styles(parts[name], [NEW_STYLE], seed) for name in PARTS}
    keras.utils.set_random_seed(seed)
    model = make_model()
    adam = keras.optimizers.Adam(1e-3)
    train(model, adam, old["pretrain"], pretraining, seed)
    pretrained = model.get_weights()

    for name, rate in itertools.product(OPTIMIZERS, rates):

        def measure(steps, name=name, rate=rate):
            known = (accuracy(model, part["test"]) for part in (old, new))
            report(name, rate, steps, *known)

        model.set_weights(pretrained)
        train(
            model,
            OPTIMIZERS[name](model, rate),
            new["finetune"],
            lengths[-1],
            seed,
            [AtLengths(lengths, measure)],
        )


# --- report -----------------------------------------------------------------


def means(results):
    """Return the mean accuracies, kept and new, of each cell of the table."""
    return {
        name: {cell: np.mean(runs, axis=0) for cell, runs in own.items()}
        for name, own in results.items()
    }


def print_table(found):
    """Print kept and new, one row a rate and length."""
    print(
        f"\nFine-tuned on {PARTS['finetune']} inverted digits. Accuracy in %: "
        "kept on the old\nstyles / learned of the new one.\n"
    )
    print("  rate  steps" + "".join(f"{name:>22}" for name in found))
    for rate, steps in found[OURS]:
        cells = (found[name][rate, steps] for name in found)
        row = "".join(f"{f'{kept:.1f} / {new:.1f}':>22}" for kept, new in cells)
        print(f"{rate:6g} {steps:6,}{row}")


def print_point(found):
    """Print how much the rate and the length decide."""
    print("\nOver these rates and lengths")
    for name, cells in found.items():
        low, high = np.min([*cells.values()], 0), np.max([*cells.values()], 0)
        print(
            f"  {name:<18} keeps {low[0]:.0f} to {high[0]:.0f} %, and learns "
            f"{low[1]:.0f} to {high[1]:.0f} %"
        )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=1, metavar="N")
    parser.add_argument("--picture", type=Path, default=Path("out/digits.png"))
    parser.add_argument(
        "--quick", action="store_true", help="see that it runs; learn nothing"
    )
    options = parser.parse_args(arguments)
    pretraining, lengths, rates = PRETRAINING, LENGTHS, RATES
    if options.quick:
        pretraining, lengths, rates = 1, (1, 2), RATES[:1]
    results = {name: defaultdict(list) for name in OPTIMIZERS}
    started = time.monotonic()

    def report(seed, name, rate, steps, kept, new):
        results[name][rate, steps].append((kept, new))
        print(
            f"{time.monotonic() - started:4.0f} s, seed {seed}: {name:<18} "
            f"rate {rate:<6g} {steps:5,} steps: kept {kept:5.1f} %, "
            f"new {new:5.1f} %",
            flush=True,
        )

    print(f"Keras {keras.__version__} on {keras.backend.backend()}", flush=True)
    for seed in range(options.seeds):
        now = time.monotonic() - started
        print(f"{now:4.0f} s, seed {seed}: pretraining", flush=True)
        run_seed(
            seed,
            pretraining,
            lengths,
            rates,
            lambda *measured, seed=seed: report(seed, *measured),
        )
    found = means(results)
    print_table(found)
    draw_picture(found, options.seeds, options.picture)
    print(f"\nAs a picture: {options.picture}")
    print_point(found)


if __name__ == "__main__":
    main()
