"""Bad numbers, modes and learning rates are refused by the constructor."""

import math

import keras
import networks
import numpy as np
import pytest
from cases import DEPTHS, make_variables
from refusals import assert_refuses, made, refused, row, scratch

from keras_dualopt import DualOpt

NAN, INFINITY = math.nan, math.inf

OTHER_MODE = [
    row(
        f"{name} in {mode} mode",
        made(mode=mode, **{name: value}),
        f"`{name}` belongs to mode",
        f"{name}={value!r} in mode {mode!r}",
        way_out,
    )
    for mode, names, way_out in (
        (
            "finetune",
            ("weight_decay", "weight_decay_min"),
            "Use `rollback` or `reach`",
        ),
        (
            "scratch",
            ("rollback", "rollback_min"),
            "Use `weight_decay` and `weight_decay_min`",
        ),
    )
    for name in names
    # The other mode's default, too: it was given a value.
    for value in (0.0, 0.01)
]

LEVELS = [
    row(
        "rollback above 1",
        made(rollback=1.01),
        "`rollback` must be in [0, 1]",
        "1.01",
        "share of the way",
    ),
    row(
        "rollback_min above 1",
        made(rollback=1.0, rollback_min=2.5),
        "`rollback_min` must be in [0, 1]",
        "2.5",
        "share of the way",
    ),
    row(
        "rollback below 0",
        made(rollback=-0.01),
        "`rollback` must be in [0, 1]",
        "-0.01",
        "share of the way",
    ),
    row(
        "rollback_min below 0",
        made(rollback_min=-1e-9),
        "`rollback_min` must be in [0, 1]",
        "-1e-09",
        "share of the way",
    ),
    row(
        "rollback_min above rollback",
        made(rollback=0.1, rollback_min=0.2),
        "`rollback_min` must be ≤ `rollback`",
        "rollback_min=0.2, rollback=0.1",
        "≤",
    ),
    row(
        "rollback_min above the default rollback",
        made(rollback_min=0.5),
        "`rollback_min` must be ≤ `rollback`",
        "rollback=0.01",
        "≤",
    ),
    row(
        "weight_decay below 0",
        scratch(weight_decay=-0.05),
        "`weight_decay` must be ≥ 0",
        "-0.05",
        "≥ 0",
    ),
    row(
        "weight_decay_min above weight_decay",
        scratch(weight_decay=0.1, weight_decay_min=0.11),
        "`weight_decay_min` must be ≤ `weight_decay`",
        "weight_decay_min=0.11, weight_decay=0.1",
        "≤",
    ),
    row(
        "weight_decay infinite",
        scratch(weight_decay=INFINITY),
        "`weight_decay` must be finite",
        "inf",
        "finite",
    ),
    row(
        "power 0",
        made(power=0.0),
        "`power` must be > 0",
        "0.0",
        "set the minimum equal to the maximum",
    ),
    row(
        "power below 0",
        scratch(power=-1.5),
        "`power` must be > 0",
        "-1.5",
        "set the minimum equal to the maximum",
    ),
    row(
        "power a word",
        made(power="2"),
        "`power` must be a number",
        "str '2'",
        "number",
        TypeError,
    ),
    row(
        "rollback True",
        made(rollback=True),
        "`rollback` must be a number",
        "bool True",
        "number",
        TypeError,
    ),
    *(
        row(
            f"{name} NaN",
            made(mode=mode, **{name: NAN}),
            f"`{name}` must be finite",
            "nan",
            "finite",
        )
        for mode, name in (
            ("finetune", "rollback"),
            ("finetune", "rollback_min"),
            ("finetune", "power"),
            ("scratch", "weight_decay"),
            ("scratch", "weight_decay_min"),
            ("scratch", "power"),
        )
    ),
]

MODE_AND_RATE = [
    row(
        "unknown mode",
        made(mode="pretrain"),
        "`mode` must be 'finetune' or 'scratch'",
        "'pretrain'",
        "'finetune' or 'scratch'",
    ),
    row(
        "learning rate 0",
        made(learning_rate=0.0),
        "the peak of `learning_rate` must be a finite number > 0",
        "0.0",
        "Pass `reference_learning_rate=`",
    ),
    row(
        "learning rate NaN",
        made(learning_rate=NAN),
        "`learning_rate` must be finite",
        "nan",
        "finite",
    ),
    *(
        row(
            f"learning rate below 0, {how}",
            lambda arguments=arguments: DualOpt(-1e-3, **arguments),
            "`learning_rate` must be ≥ 0",
            "-0.001",
            "≥ 0",
        )
        for how, arguments in {
            "rollback": {},
            "reach": {"reach": 0.1},
            "scratch": {"mode": "scratch"},
        }.items()
    ),
    row(
        "learning rate a word",
        made(learning_rate="1e-3"),
        "`learning_rate` must be a float, a schedule or a callable",
        "str '1e-3'",
        "float",
        TypeError,
    ),
    row(
        "learning rate an optimizer",
        lambda: DualOpt(keras.optimizers.Lion()),
        "`learning_rate` must be a float, a schedule or a callable",
        "the optimizer Lion",
        "`DualOpt(base=keras.optimizers.Lion(...))`",
        TypeError,
    ),
    *(
        row(
            f"reference_learning_rate {value!r}",
            made(reference_learning_rate=value),
            "`reference_learning_rate` must be a finite number > 0",
            repr(value),
            "usually the highest one of the run",
        )
        for value in (0.0, -1e-3, NAN, INFINITY, "1e-3", True)
    ),
    row(
        "reference_learning_rate in scratch mode",
        scratch(reference_learning_rate=1e-3),
        "`reference_learning_rate` has no meaning in scratch mode",
        "0.001",
        "it cancels",
    ),
]


@refused(OTHER_MODE + LEVELS + MODE_AND_RATE)
def test_constructor_refuses(action, error, words):
    assert_refuses(action, error, words)


def test_settings_can_be_read_and_be_set_before_build():
    optimizer = DualOpt(rollback=0.3, rollback_min=0.1, power=1.7)
    assert (optimizer.mode, optimizer.rollback) == ("finetune", 0.3)
    assert (optimizer.rollback_min, optimizer.power) == (0.1, 1.7)
    assert optimizer.weight_decay is None
    optimizer.rollback = 0.4
    optimizer.depth = DEPTHS
    with pytest.raises(ValueError, match="`rollback` must be in \\[0, 1\\]"):
        optimizer.rollback = 4.0
    optimizer.build(make_variables())
    assert optimizer.rollback == 0.4
    strengths = networks.strengths_of(optimizer)
    np.testing.assert_allclose(max(strengths), 0.4)


DEFAULTS = {
    "finetune": {
        "rollback": 0.01,
        "rollback_min": 0.0,
        "power": 2.0,
        "weight_decay": None,
        "weight_decay_min": None,
    },
    "scratch": {
        "weight_decay": 0.05,
        "weight_decay_min": 0.0,
        "power": 1.0,
        "rollback": None,
        "rollback_min": None,
    },
}


@pytest.mark.parametrize("mode", DEFAULTS)
def test_defaults_are_the_specified_ones(mode):
    optimizer = DualOpt(mode=mode)
    for name, value in DEFAULTS[mode].items():
        assert getattr(optimizer, name) == value
        assert optimizer.get_config()[name] == value
