"""Where a warning should point: at the line that a person wrote."""

import sys
from types import FrameType

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
