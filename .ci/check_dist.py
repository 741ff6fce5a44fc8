"""Check what the built wheel and sdist in a folder hold.

A wheel without `py.typed` loses its types and an sdist without tests cannot be
verified by those who package it; neither fails a build.
"""

import sys
import tarfile
import zipfile
from pathlib import Path


def main(folder: Path) -> None:
    """Exit with a message that names each file missing or out of place."""
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    root = Path(__file__).parent.parent
    library = {
        path.relative_to(root).as_posix()
        for path in root.glob("keras_dualopt/**/*.py")
    } | {"keras_dualopt/py.typed"}
    beside = {
        path.relative_to(root).as_posix()
        for part in ("tests", "examples", "benchmarks")
        for path in root.glob(f"{part}/**/*.py")
    } | {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "tox.ini"}
    problems = [
        *(f"wheel lacks {name}" for name in sorted(library - in_wheel)),
        *(
            f"wheel should not hold {name}"
            for name in sorted(in_wheel)
            if not name.startswith(("keras_dualopt/", "keras_dualopt-"))
        ),
        *(
            f"sdist lacks {name}"
            for name in sorted((library | beside) - in_sdist)
        ),
    ]
    if problems:
        sys.exit("\n".join(problems))
    print(f"{wheel.name}: {len(in_wheel)} files; {sdist.name}: {len(in_sdist)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
