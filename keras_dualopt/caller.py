"""Who is calling: the line that a person wrote, and what it asked for."""

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

# What lies between that line and this package.
_PACKAGES = {"keras_dualopt", "keras", "tensorflow", "jax", "torch"}


def frames() -> Iterator[FrameType]:
    """Yield what runs now, beginning with the caller of who asks."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back


def stacklevel() -> int:
    """Return the `stacklevel` of the nearest frame outside of the packages.

    For `warnings.warn` in the calling function. `skip_file_prefixes` would do
    the same from Python 3.12 on.
    """
    for level, frame in enumerate(frames(), 1):
        name = frame.f_globals.get("__name__", "")
        if name.partition(".")[0] not in _PACKAGES:
            return level
    return 2


def argument(name: str) -> Any:
    """Return what the nearest caller that has such a local calls so.

    Keras does not hand `load_weights(skip_mismatch=True)` on to what it loads.
    """
    for frame in frames():
        if name in frame.f_locals:
            return frame.f_locals[name]
    return None
