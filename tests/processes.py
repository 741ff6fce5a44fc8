"""Another Python process, as a resumed run or a second device needs one."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def environment(**changes):
    """Return an environment in which the tests' own modules are found."""
    path = [str(TESTS), str(TESTS / "conformance"), *filter(None, sys.path)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        **changes,
    }


def run(script, *arguments, timeout=300, **changes):
    """Run a script of this folder to its end; return what it printed."""
    done = subprocess.run(
        [sys.executable, str(TESTS / script), *map(str, arguments)],
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
