"""`summary()`: the table that is read before training starts."""

import keras
import networks
import pytest

from keras_dualopt import DualOpt
from keras_dualopt.callbacks import Drift


def table(optimizer):
    """Return the title, and the cells of every row by its first one."""
    printed = []
    assert optimizer.summary(print_fn=printed.append) is None
    title, *lines = printed[0].splitlines()
    rows = [line.split("  ") for line in lines if set(line) != {"-"}]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    return title, cells


def built(optimizer, model=None):
    model = networks.network(networks.weights()) if model is None else model
    optimizer.bind(model).build(model.trainable_variables)
    return optimizer


def test_every_layer_has_a_row_and_the_totals_add_up():
    title, (header, *rows, total) = table(built(networks.dual_opt()))
    for part in ("finetune", "rollback 0.21", "power 1.7", "rate 0.03"):
        assert part in title
    assert header == [
        "layer",
        "depth",
        "strength",
        "anchored",
        "parameters",
        "bytes of θ₀",
    ]
    assert [row[0].rpartition("/")[2] for row in rows] == [
        f"dense_{index}" for index in range(networks.LAYERS)
    ]
    # ι₂ + (1 − r)^γ (ι₁ − ι₂); the head is not pulled.
    assert [row[1:3] for row in rows] == [
        ["0.000", "0.21"],
        ["0.500", "0.0736"],
        ["1.000", "0.013"],
        ["head", "0"],
    ]
    assert [row[3] for row in rows] == ["yes", "yes", "yes", "no"]
    assert [row[4:] for row in rows] == [
        ["20", "80"],
        ["24", "96"],
        ["20", "80"],
        ["10", "0"],
    ]
    assert total == ["total", "6 of 8", "74", "256"]


@pytest.mark.parametrize("mode", ["dropped", "scratch"])
def test_what_has_no_anchors_takes_no_bytes(mode):
    if mode == "dropped":
        optimizer = built(DualOpt(networks.RATE))
        optimizer.drop_anchors()
    else:
        optimizer = built(DualOpt(mode="scratch"))
    _, (_, *rows, total) = table(optimizer)
    assert {row[3] for row in rows} == {"no"}
    assert total == ["total", "0 of 8", "74", "0"]


def test_excluded_weights_show_beside_the_others_of_their_layer():
    _, (_, *rows, _) = table(
        built(DualOpt(rollback=0.5, rollback_min=0.25, exclude=".*bias"))
    )
    assert [row[2] for row in rows[:3]] == ["0 / 0.5", "0 / 0.312", "0 / 0.25"]


def test_layers_of_one_name_at_two_depths_have_two_rows():
    def part():
        inputs = keras.Input((4,))
        outputs = keras.layers.Dense(4, name="same")(inputs)
        return keras.Model(inputs, outputs)

    inputs = keras.Input((4,))
    body = keras.Model(inputs, part()(part()(inputs)))
    model = keras.Sequential([inputs, body, keras.layers.Dense(2)])
    paths = [variable.path for variable in model.trainable_variables]
    assert len(set(paths)) < len(paths)
    _, (_, *rows, _) = table(built(DualOpt(rollback=0.5), model))
    assert [row[1:4] for row in rows] == [
        ["0.000", "0.5", "yes"],
        ["1.000", "0", "yes"],
        ["head", "0", "no"],
    ]


def test_layers_of_one_name_at_one_depth_have_rows_and_names_of_their_own():
    model = networks.towers(0.6, 0.6)
    _, (_, *rows, _) = table(built(DualOpt(rollback=0.5), model))
    assert [(row[0], row[4]) for row in rows[:-1]] == [
        ("tower_0/mid", "20"),
        ("tower_1/mid", "20"),
        ("tower_0/proj", "24"),
        ("tower_1/proj", "24"),
    ]
    # Elsewhere the path says which layer it is.
    assert rows[-1][0] == model.layers[-1].path
    drift = Drift()
    networks.compile(model, DualOpt(rollback=0.5))
    networks.fit(model, 1, callbacks=[drift])
    assert drift.record.layers == [row[0] for row in rows[:-1]]
