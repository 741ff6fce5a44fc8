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


def parsed(module):
    return ast.parse(module.read_text(encoding="utf-8"))


def within(module):
    return module.relative_to(LIBRARY).as_posix()


every_module = pytest.mark.parametrize("module", MODULES, ids=within)


# A module imports what stands before it, and nothing else of the package.
ORDER = [
    "caller",
    "backend",
    "pull",
    "bases",
    "depth",
    "wrapping",
    "settings",
    "plan",
    "sources",
    "anchors",
    "checkpoint",
    "summary",
    "optimizer",
    "lookup",
    "files",
    "plots",
    "interpolation",
    "callbacks",
    "recipes",
    "__init__",
]


def imports_of(module):
    """Return the parts of the package that a module imports, its own apart."""
    own = within(module).removesuffix(".py").partition("/")[0]
    names = set()
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they lead"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = {
        name.split(".")[1]
        for name in names
        if name.startswith("keras_dualopt.")
    }
    return own, parts - {own}


@every_module
def test_imports_run_one_way(module):
    own, parts = imports_of(module)
    assert parts <= {*ORDER[: ORDER.index(own)]}


@pytest.mark.parametrize("alone", ["backend", "depth"])
def test_neither_end_of_the_house_knows_the_other(alone):
    for module in (LIBRARY / alone).glob("*.py"):
        assert imports_of(module)[1] <= {"caller"}


# Where Keras' private names may be read; each file says what they are for.
HOOKS = {
    "wrapping.py",
    "bases/accepted.py",
    "bases/paper_rule.py",
    "depth/keras_hooks.py",
}
PRIVATE = {
    # Where `fit` begins; Keras' own BackupAndRestore sets it.
    ("callbacks/backup.py", "_initial_epoch"),
    # Not of Keras: who called.
    ("caller.py", "_getframe"),
    ("depth/find.py", "_getframe"),
}


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def names_defined_in(tree):
    """Return the names of what a module's own classes have."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute):
            if isinstance(node.ctx, ast.Store) and is_self(node.value):
                names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def is_self(node):
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def private_names_read_in(tree):
    """Yield the private attributes that a module reads: name, and of itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            yield node.attr, is_self(node.value)
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("getattr", "hasattr", "setattr")
            and isinstance(node.args[1], ast.Constant)
            and is_private(node.args[1].value)
        ):
            yield node.args[1].value, is_self(node.args[0])


@every_module
def test_private_names_of_others_are_read_in_their_places_only(module):
    name = within(module)
    if name in HOOKS or name.startswith("backend/"):
        return
    tree = parsed(module)
    here = names_defined_in(tree)
    # An optimizer may use what it inherits from its own half.
    wrapping = names_defined_in(parsed(LIBRARY / "wrapping.py"))
    inherited = wrapping if name == "optimizer.py" else set()
    read = {
        (name, attribute)
        for attribute, of_itself in private_names_read_in(tree)
        if attribute not in here and not (of_itself and attribute in inherited)
    }
    assert read <= PRIVATE


def test_no_exception_is_out_of_use():
    for name, attribute in PRIVATE:
        tree = parsed(LIBRARY / name)
        assert attribute in {found for found, _ in private_names_read_in(tree)}


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
