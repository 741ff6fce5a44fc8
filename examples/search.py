"""Search ι₁ × γ as the paper does, and draw what its Fig. 4 draws.

The network and the digits of `digits.py`: pretrained on three styles of
handwritten digits, fine-tuned on 300 digits in a new one, once for every pair
of `rollback` (ι₁) and `power` (γ) of the paper: {0.0001, …, 1} × {1, 2, 4}.
Measured on validation digits: the accuracy on the new style, and the accuracy
kept on the old ones.

    KERAS_BACKEND=jax python examples/search.py

Prints both tables and writes the picture `out/search.png`. Two plain loops are
all it takes. For searches that prune, resume or run on several machines use a
library; with KerasTuner (`pip install keras-tuner`) it is

    def build(hp):
        model = make_model()
        model.load_weights("pretrained.weights.h5")
        optimizer = DualOpt(
            1e-3,
            rollback=hp.Choice("rollback", ROLLBACKS),
            power=hp.Choice("power", POWERS),
        )
        model.compile(optimizer, loss=..., metrics=["accuracy"])
        return model

    tuner = keras_tuner.GridSearch(build, objective="val_accuracy")
    tuner.search(*new_digits, epochs=30, validation_data=validation_digits)

With `keras_dualopt.callbacks.Retention(old_digits)` in the `callbacks` of
`tuner.search`, what is kept is an objective like any other:
`keras_tuner.Objective("kept_accuracy", "max")`.
"""

import argparse
import sys
import time
from pathlib import Path

import keras
import numpy as np
from digits import PRETRAINING, accuracy, make_model, train
from digits_data import NEW_STYLE, OLD_STYLES, in_styles, load_parts

from keras_dualopt import DualOpt

# OLOR, "Hyper-parameter Exploration".
ROLLBACKS = [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0]
POWERS = [1.0, 2.0, 4.0]
# What the chosen pair may lose on the new style against the best one.
MAXIMUM_LOSS = 2.0
LEARNING_RATE = 1e-3
EPOCHS = {"pretrain": PRETRAINING, "finetune": 30}
PICTURE = Path("out/search.png")


def search(rollbacks, powers, epochs, seed=0):
    """Return {"new", "old"}: accuracies in percent, one row a power."""
    parts = load_parts(seed)
    keras.utils.set_random_seed(seed)
    model = make_model()
    old = in_styles(parts["pretrain"], OLD_STYLES, seed)
    train(
        model,
        keras.optimizers.Adam(LEARNING_RATE),
        old,
        epochs["pretrain"],
        seed,
    )
    pretrained = model.get_weights()
    tuning = in_styles(parts["finetune"], [NEW_STYLE], seed)
    validation = {
        "new": in_styles(parts["validation"], [NEW_STYLE], seed),
        "old": in_styles(parts["validation"], OLD_STYLES, seed),
    }
    found = {
        name: np.zeros((len(powers), len(rollbacks))) for name in validation
    }
    started = time.monotonic()
    for row, power in enumerate(powers):
        for column, rollback in enumerate(rollbacks):
            model.set_weights(pretrained)
            optimizer = DualOpt(
                LEARNING_RATE, mode="finetune", rollback=rollback, power=power
            )
            # The ten classes stay, so the last layer is pretrained as well.
            optimizer.bind(model, head=())
            train(model, optimizer, tuning, epochs["finetune"], seed)
            for name, data in validation.items():
                found[name][row, column] = accuracy(model, data)
            print(
                f"{time.monotonic() - started:4.0f} s  power {power:g}, "
                f"rollback {rollback:g}: new {found['new'][row, column]:.1f} "
                f"%, old kept {found['old'][row, column]:.1f} %",
                flush=True,
            )
    return found


def choose(found):
    """Return the pair (row, column) that keeps most at a small loss."""
    allowed = found["new"] >= found["new"].max() - MAXIMUM_LOSS
    kept = np.where(allowed, found["old"], -np.inf)
    row, column = np.unravel_index(np.argmax(kept), kept.shape)
    return int(row), int(column)


def print_table(title, table, rollbacks, powers):
    print(f"\n{title}, accuracy in %")
    print("power \\ rollback" + "".join(f"{r:>8g}" for r in rollbacks))
    for power, row in zip(powers, table, strict=True):
        print(f"{power:>16g}" + "".join(f"{value:8.1f}" for value in row))


def draw(found, rollbacks, powers, best, path):
    """Draw one line a power, for what is learned and for what is kept."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), dpi=150, layout="constrained")
    titles = {"new": "new style: learned", "old": "old styles: kept"}
    # Okabe and Ito's colours, told apart by their marks as well.
    looks = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"))
    for axes, (name, title) in zip(
        figure.subplots(1, 2), titles.items(), strict=True
    ):
        for power, row, (colour, mark) in zip(
            powers, found[name], looks[: len(powers)], strict=True
        ):
            axes.plot(
                rollbacks,
                row,
                color=colour,
                marker=mark,
                label=f"γ = {power:g}",
            )
        axes.plot(
            rollbacks[best[1]],
            found[name][best],
            "o",
            markersize=15,
            markerfacecolor="none",
            markeredgecolor="black",
            label="chosen",
        )
        axes.set_xscale("log")
        axes.set_xlabel("rollback ι₁ (share of the way back per step)")
        axes.set_ylabel("validation accuracy (%)")
        axes.set_title(title)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="see that it runs, learn nothing"
    )
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args(arguments)
    rollbacks, powers, epochs = ROLLBACKS, POWERS, EPOCHS
    if options.quick:
        rollbacks, powers = ROLLBACKS[::6], POWERS[:1]
        epochs = dict.fromkeys(EPOCHS, 1)

    found = search(rollbacks, powers, epochs)
    print_table("New style", found["new"], rollbacks, powers)
    print_table("Old styles, kept", found["old"], rollbacks, powers)
    best = choose(found)
    print(
        f"\nChosen: power {powers[best[0]]:g}, rollback "
        f"{rollbacks[best[1]]:g}, which keeps most with at most "
        f"{MAXIMUM_LOSS:g} points less on the new style than the best."
    )
    draw(found, rollbacks, powers, best, options.picture)
    print(f"Picture: {options.picture}")


if __name__ == "__main__":
    sys.exit(main())
