"""Every example in a docstring of the library runs and prints what it says."""

import doctest
import importlib
import pkgutil

import keras
import numpy as np
import pytest

import keras_dualopt

_OTHER_BACKENDS = {"jax", "tensorflow", "torch"} - {keras.backend.backend()}


def _modules():
    for module in pkgutil.walk_packages(
        keras_dualopt.__path__, "keras_dualopt."
    ):
        # A backend's own file can be imported on that backend alone.
        backend = module.name.rpartition(".")[2].partition("_")[0]
        if not (".backend." in module.name and backend in _OTHER_BACKENDS):
            yield module.name


def _examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in ["keras_dualopt", *_modules()]:
        module = importlib.import_module(name)
        names = {
            "keras": keras,
            "keras_dualopt": keras_dualopt,
            "np": np,
            **{n: getattr(keras_dualopt, n) for n in keras_dualopt.__all__},
        }
        for test in finder.find(module, name, extraglobs=names):
            if test.examples:
                yield pytest.param(test, id=test.name)


@pytest.mark.parametrize("example", list(_examples()))
def test_example_prints_what_it_says(example):
    runner = doctest.DocTestRunner(
        optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    )
    results = runner.run(example)
    assert results.attempted
    assert not results.failed


def test_the_public_classes_have_examples():
    names = {param.id for param in _examples()}
    for name in ("optimizer.DualOpt", "bases.adam.Adam", "bases.sgd.SGD"):
        assert f"keras_dualopt.{name}" in names
