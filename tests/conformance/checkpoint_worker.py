"""Writes the checkpoints in `tests/data`, each with one backend.

Run once with each `KERAS_BACKEND` when the format of the state changes:
`python tests/conformance/checkpoint_worker.py`, with `tests` on the path.
They are compressed, because HDF5 pads every small array to kilobytes.
"""

import gzip
import json
import shutil
import tempfile
from pathlib import Path

import keras
import networks
from cases import BACKEND

DATA = Path(__file__).parent.parent / "data"
BACKENDS = ("jax", "tensorflow", "torch")
STOP, STEPS = 4, 9

CASES = {
    "adam": lambda: networks.dual_opt(
        gradient_accumulation_steps=3, use_ema=True, ema_momentum=0.8
    ),
    "nadam": lambda: networks.dual_opt(
        0.03, base=keras.optimizers.Nadam(beta_1=0.8)
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


def manifest(group):
    """Return what a state says of itself, but for names and checksums."""
    found = json.loads(bytes(group["dualopt"])[:-4])
    del found["checksums"]
    for owner in found["owners"]:
        owner["path"] = owner["path"].partition("/")[2]  # The model's name.
    return found


def pack(model, path):
    """Write a weights file, compressed, the same for the same weights."""
    DATA.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "x.weights.h5"
        model.save_weights(plain)
        # The same bytes whenever it is written: no time in the header.
        path.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))


def main():
    for case in CASES:
        pack(trained(case), file_of(case, BACKEND))


if __name__ == "__main__":
    main()
