"""Who is calling: the line that a person wrote, and what it asked for."""

import sys
from types import FrameType
from typing import Any

# What lies between that line and this package.
_PACKAGES = {"keras_dualopt", "keras", "tensorflow", "jax", "torch"}


def stacklevel() -> int:
    """Return the `stacklevel` of the nearest frame outside of the packages.

    For `warnings.warn` in the calling function. `skip_file_prefixes` would do
    the same from Python 3.12 on.
    """
    frame: FrameType | None = sys._getframe(1)
    level = 1
    try:
        while frame is not None:
            name = frame.f_globals.get("__name__", "")
            if name.partition(".")[0] not in _PACKAGES:
                return level
            frame = frame.f_back
            level += 1
        return 2
    finally:
        del frame


def argument(name: str) -> Any:
    """Return what the nearest caller that has such a local calls so.

    Keras does not hand `load_weights(skip_mismatch=True)` on to what it loads.
    """
    frame: FrameType | None = sys._getframe(1)
    try:
        while frame is not None:
            if name in frame.f_locals:
                return frame.f_locals[name]
            frame = frame.f_back
        return None
    finally:
        del frame
