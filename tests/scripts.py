"""Programs of another folder, imported as Python does when they are run."""

import contextlib
import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


@contextlib.contextmanager
def importing(folder, monkeypatch):
    """Give what imports from a folder; forget its modules at the end."""
    path = ROOT / folder
    monkeypatch.syspath_prepend(path)
    loaded = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - loaded:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(path):
            del sys.modules[name]
