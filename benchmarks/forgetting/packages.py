"""Where real networks and data come from: packages that anyone can install.

Nothing is kept in this repository. Each function returns the path of a file or
folder in an installed package; where the package is missing, the error names
it and says how to get it.
"""

import importlib
import importlib.util
import os
from pathlib import Path

FASHION = "dataset-fashion-mnist"
STAMPS = "tuxpaint-stamps-default"

# Where Debian's packages are looked for: a folder of one's own, then the
# system's. `dpkg -x` unpacks one without root.
DEBIAN_ROOT = "FORGETTING_DEBIAN_ROOT"


class MissingPackageError(ImportError):
    """A package with a network or a data set is not installed."""


def python_package(module, package):
    """Return the folder of an installed Python package.

    Args:
        module: The name it is imported by.
        package: The name it is installed by.
    """
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(
            f"The package `{package}` is not installed. "
            f"Call `pip install {package}`, or "
            "`pip install 'keras-dualopt[benchmarks-data]'` for all of them."
        )
    return Path(next(iter(spec.submodule_search_locations)))


def imported(name, package):
    """Return an installed Python package, imported.

    Args:
        name: The name it is imported by.
        package: The name it is installed by.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"The package `{package}` is not installed. "
            f"Call `pip install {package}`."
        ) from error


def debian_package(folder, package):
    """Return a folder of a Debian package, installed or unpacked.

    Args:
        folder: Its path from the root of the file system.
        package: The package's name.
    """
    roots = [os.environ.get(DEBIAN_ROOT), "out/debian", "/"]
    for root in roots:
        if root and (path := Path(root) / folder).is_dir():
            return path
    raise MissingPackageError(
        f"The Debian package `{package}` is not installed. Call `apt install "
        f"{package}`, or without root `apt-get download {package}` and "
        f"`dpkg -x {package}_*.deb out/debian`. Another folder than "
        f"out/debian is named by the variable {DEBIAN_ROOT}."
    )
