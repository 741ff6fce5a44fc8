"""What is installed: the right files, in the right order of dependence."""

import ast
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

import keras_dualopt

LIBRARY = Path(keras_dualopt.__file__).parent
REPOSITORY = Path(__file__).parents[1]
MODULES = sorted(LIBRARY.rglob("*.py"))

under_tox = pytest.mark.skipif(
    "TOX_ENV_NAME" not in os.environ,
    reason="only tox promises that the package is installed",
)


@under_tox
def test_tests_run_on_the_installed_package():
    assert REPOSITORY / "keras_dualopt" != LIBRARY
    assert (LIBRARY / "py.typed").is_file()


@under_tox
def test_version_is_the_installed_one():
    installed = importlib.metadata.version("keras-dualopt")
    assert installed == keras_dualopt.__version__


def test_version_is_the_cited_one():
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {keras_dualopt.__version__}\n" in citation


def test_every_public_name_exists():
    missing = [
        name
        for name in keras_dualopt.__all__
        if not hasattr(keras_dualopt, name)
    ]
    assert not missing


def test_dir_shows_the_public_names_alone():
    assert dir(keras_dualopt) == sorted(keras_dualopt.__all__)


def test_few_modules_lie_on_top():
    assert len([m for m in MODULES if m.parent == LIBRARY]) <= 14


@pytest.mark.parametrize(
    "module", MODULES, ids=lambda path: path.relative_to(LIBRARY).as_posix()
)
def test_nothing_imports_the_optimizer_when_it_is_imported(module):
    if module == LIBRARY / "__init__.py":
        return  # the one door through which users come
    tree = ast.parse(module.read_text(encoding="utf-8"))
    imported = [
        name
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [f"{node.module}.{alias.name}" for alias in node.names]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
    ]
    optimizer = "keras_dualopt.optimizer"
    assert not [name for name in imported if name.startswith(optimizer)]


def test_import_brings_only_keras_and_its_backend():
    program = """
import sys
import keras
before = set(sys.modules)
import keras_dualopt
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""
    brought = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=True,
        text=True,
        cwd=LIBRARY.parent,
    ).stdout.split()
    optional = {"keras_hub", "matplotlib", "sklearn", "tensorflow", "torch"}
    optional -= {os.environ.get("KERAS_BACKEND")}
    assert "keras_dualopt" in brought
    assert not optional & set(brought)
