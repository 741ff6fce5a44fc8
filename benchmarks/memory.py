"""The memory that a step needs beside what is there before and after it."""

import ctypes
import gc
from pathlib import Path

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def transient_bytes(run):
    """Return the peak of a step over the memory at rest, in bytes.

    The high-water mark of the process's resident memory; `None` where the
    system is not Linux with glibc and has no such mark to reset.

    Args:
        run: `run(count)` makes `count` steps and waits for them to end.
    """
    gc.collect()  # Not in the middle of the step.
    run(3)  # What a backend makes once and keeps is there before.
    try:
        # What malloc holds in reserve would hide what the step takes of it.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        _RESET.write_text("5")  # The mark falls to the present size.
    except (AttributeError, OSError):
        return None
    before = _kilobytes("VmHWM")
    run(1)
    return 1024 * max(0, _kilobytes("VmHWM") - before)


def _kilobytes(name):
    for line in _STATUS.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise RuntimeError(f"Expected: {name} in {_STATUS}. Received: none.")
