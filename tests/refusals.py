"""Rows for the tables of bad arguments, and what a message must say.

A row: its name, what is done, what is expected, what was received (nothing of
a state that is named already) and the way out, as they must stand in the
message, and the exception.
"""

import keras
import pytest
from cases import FINETUNE, make_variables

from keras_dualopt import DualOpt


def row(name, action, expected, received, way_out, error=ValueError):
    return pytest.param(action, error, (expected, received, way_out), id=name)


def refused(rows):
    return pytest.mark.parametrize(("action", "error", "words"), rows)


def assert_refuses(action, error, words):
    with pytest.raises(error) as raised:
        action()
    assert type(raised.value) is error
    text = str(raised.value)
    expected, received, way_out = words
    _, _, after = text.partition("Received: ")
    assert expected in text
    assert received in after
    assert way_out in text


def made(**arguments):
    return lambda: DualOpt(**arguments)


def scratch(**arguments):
    return lambda: DualOpt(mode="scratch", **arguments)


def built(**arguments):
    optimizer = DualOpt(**{**FINETUNE, **arguments})
    optimizer.build(make_variables())
    return optimizer


def small_model():
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, name="first"),
            keras.layers.Dense(2, name="last"),
        ],
        name="small",
    )
