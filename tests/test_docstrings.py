"""The examples in the docstrings run, and print what they say they print."""

import doctest
import importlib
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_dualopt

LIBRARY = Path(keras_dualopt.__file__).parent
# What a reader of an example has imported without being told.
NAMES = {"keras": keras, "keras_dualopt": keras_dualopt, "np": np}


def modules_with_examples():
    """Modules without any may need a backend that is not installed."""
    for path in sorted(LIBRARY.rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8"):
            parts = path.relative_to(LIBRARY.parent).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__")


@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_examples_print_what_they_say(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    result = doctest.testmod(
        module,
        extraglobs=NAMES,
        optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS,
    )
    assert result.attempted
    assert not result.failed
