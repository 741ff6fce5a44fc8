"""The Python blocks of README.md and docs/, as a reader would run them.

The blocks of a page run one after another, in one namespace. A comment in the
line before a block says where it does not run:

    <!-- only: jax -->              on one backend
    <!-- only: hub -->              where KerasHub is installed
    <!-- not run: no such file -->  nowhere, for the reason given

Of a notebook the cells run, without their magics.
"""

import dataclasses
import inspect
import json
import re
from pathlib import Path

import keras
import numpy as np

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs").glob("*.ipynb")),
]
BACKENDS = ("jax", "tensorflow", "torch")
_BLOCK = re.compile(
    r"(?:^<!-- (?P<key>only|not run): (?P<value>[^\n]+?) -->\n)?"
    r"^```python\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of code and where it runs."""

    page: str
    line: int
    code: str
    place: str | None
    # What a notebook shows below the cell.
    output: str | None = None

    def run(self, names):
        # Empty lines keep the numbers of a traceback those of the page.
        source = "\n" * self.line + self.code
        exec(compile(source, self.page, "exec"), names)


def cells(page, kind):
    notebook = json.loads(page.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def prose(page):
    """Return a page's Markdown."""
    if page.suffix == ".ipynb":
        return "\n".join("".join(c["source"]) for c in cells(page, "markdown"))
    return page.read_text(encoding="utf-8")


def blocks(page):
    name = page.relative_to(ROOT).as_posix()
    found = []
    if page.suffix == ".ipynb":
        for number, cell in enumerate(cells(page, "code")):
            code = re.sub("(?m)^%.*", "", "".join(cell["source"]))
            printed = "".join(
                line
                for output in cell["outputs"]
                if output.get("name") == "stdout"
                for line in output["text"]
            )
            found.append(Block(f"{name}[{number}]", 0, code, None, printed))
    text = prose(page)
    for match in _BLOCK.finditer(text):
        place = match["value"] if match["key"] == "only" else None
        if match["key"] == "not run":
            place = "nowhere"
        line = text.count("\n", 0, match.start("code"))
        found.append(Block(name, line, match["code"], place))
    return found


# --- what a reader downloads --------------------------------------------------


def small_images(*_):
    """Stand in for `keras.datasets.*.load_data()`: 16 random images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 32, 32, 3), dtype="uint8")
    labels = rng.integers(0, 10, (16, 1), dtype="uint8")
    return (images, labels), (images, labels)


def small_application(real):
    """Stand in for a network of `keras.applications`, weights included."""

    def build(*args, **kwargs):
        # The page's arguments must be those of the real one.
        inspect.signature(real).bind(*args, **kwargs)
        return keras.Sequential(
            [
                keras.Input((None, None, 3)),
                keras.layers.Rescaling(1 / 127.5, -1.0),
                keras.layers.Conv2D(4, 3, name="conv_1"),
                keras.layers.Conv2D(4, 3, name="conv_2"),
                keras.layers.GlobalAveragePooling2D(),
            ],
            name="pretrained",
        )

    return build


def small_preset(cls, preset, **options):
    """Stand in for `from_preset` of a BERT classifier."""
    import keras_hub

    # The page's preset must be one of the real ones.
    assert preset in cls.presets
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = keras_hub.models.BertTokenizer(vocabulary=marks)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=len(marks),
        num_layers=2,
        num_heads=2,
        hidden_dim=4,
        intermediate_dim=8,
        max_sequence_length=8,
    )
    return keras_hub.models.BertTextClassifier(
        backbone,
        preprocessor=keras_hub.models.BertTextClassifierPreprocessor(
            tokenizer, sequence_length=8
        ),
        **options,
    )


def stand_in(monkeypatch):
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", small_images)
    name = "MobileNetV3Small"
    real = getattr(keras.applications, name)
    monkeypatch.setattr(keras.applications, name, small_application(real))
