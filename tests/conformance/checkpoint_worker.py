"""Writes the checkpoints in `tests/data`, each with one backend.

Run once with each `KERAS_BACKEND` when the format of the state changes:
`python tests/conformance/checkpoint_worker.py`, with `tests` on the path.
They are compressed, because HDF5 pads every small array to kilobytes.
"""

import gzip
import shutil
import tempfile
from pathlib import Path

import keras
import networks
from cases import BACKEND

from keras_dualopt import DualOpt

DATA = Path(__file__).parent.parent / "data"
BACKENDS = ("jax", "tensorflow", "torch")
STOP, STEPS = 4, 9

CASES = {
    "adam": lambda: DualOpt(
        networks.RATE,
        gradient_accumulation_steps=3,
        use_ema=True,
        ema_momentum=0.8,
        **networks.FINETUNE,
    ),
    "nadam": lambda: DualOpt(
        0.03, base=keras.optimizers.Nadam(beta_1=0.8), **networks.FINETUNE
    ),
}


def file_of(case, backend):
    return DATA / f"{case}-{backend}.weights.h5.gz"


def compiled(case, start):
    return networks.compiled(CASES[case](), start)


def trained(case):
    """Return a model that has taken `STOP` steps."""
    model = compiled(case, networks.weights())
    # Without the end of `fit`, which writes averages into the weights.
    x, y = networks.data()
    for step in range(STOP):
        rows = slice(networks.BATCH * step, networks.BATCH * (step + 1))
        model.train_on_batch(x[rows], y[rows])
    return model


def unpacked(path, folder):
    """Return the path of the uncompressed file, under a name Keras takes."""
    target = Path(folder) / path.name.removesuffix(".gz")
    with gzip.open(path) as source, target.open("wb") as plain:
        shutil.copyfileobj(source, plain)
    return target


def main():
    DATA.mkdir(exist_ok=True)
    for case in CASES:
        model = trained(case)
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "x.weights.h5"
            model.save_weights(plain)
            with (
                plain.open("rb") as source,
                gzip.GzipFile(file_of(case, BACKEND), "wb", mtime=0) as packed,
            ):
                shutil.copyfileobj(source, packed)


if __name__ == "__main__":
    main()
