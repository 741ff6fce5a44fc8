"""What is installed: the right files, in the right order of dependence."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
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


# Where Keras' private names may stand; each of these says what they are for.
HOOKS = {"wrapping.py", "depth/keras_hooks.py"}
# And at most four lines elsewhere: the paper's rules are Keras optimizers, with
# a whole step of their own.
ELSEWHERE = [
    ("bases/paper_rule.py", "_backend_update_step"),
    ("bases/paper_rule.py", "_backend_update_step"),
    ("bases/paper_rule.py", "_get_variable_index"),
]
# Not of Keras: of Python, and of torch and its tensors.
OTHERS = re.compile(
    "_getframe|_version|_seen_taken_at|_fused_(adam|sgd)_|_foreach_[a-z]+_"
)


def private_names_in(tree):
    """Yield the private names that a module reads or overrides."""
    for node in ast.walk(tree):
        name = ""
        if isinstance(node, ast.Attribute):
            name = node.attr
        elif isinstance(node, ast.FunctionDef):
            name = node.name
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("getattr", "hasattr", "setattr")
            and isinstance(node.args[1], ast.Constant)
        ):
            name = node.args[1].value
        if re.match("_[^_]", name) and not OTHERS.fullmatch(name):
            yield name


def names_defined_in(tree):
    """Return the names that a module gives to things of its own."""
    names = set()
    for node in ast.walk(tree):
        stored = isinstance(getattr(node, "ctx", None), ast.Store)
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif stored and isinstance(node, ast.Name):
            names.add(node.id)
        elif stored:
            names |= {*re.findall(r"^self\.(\w+)$", ast.unparse(node))}
    return names


def test_private_names_of_keras_stand_in_two_files_and_four_lines():
    of_optimizers = {*dir(keras.optimizers.Optimizer)}
    wrapping = names_defined_in(parsed(LIBRARY / "wrapping.py"))
    found = []
    for module in MODULES:
        if within(module) in HOOKS:
            continue
        tree = parsed(module)
        own = names_defined_in(tree)
        if within(module) == "optimizer.py":  # What it inherits is its own.
            own |= wrapping
        foreign = of_optimizers | ({*private_names_in(tree)} - own)
        found += [
            (within(module), name)
            for name in private_names_in(tree)
            if name in foreign
        ]
    assert sorted(found) == ELSEWHERE
    assert len(ELSEWHERE) <= 4


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
