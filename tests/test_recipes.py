"""The paper's tables, as printed."""

import pytest

from keras_dualopt import DualOpt
from keras_dualopt.recipes import RECIPES, recipe

# Table 6 as it stands in the paper: ι₁, ι₂, γ for ViT, then for ConvNeXt.
TABLE_6 = """
Cifar-100     5e-3 0 2  5e-3 0 2
SVHN          5e-3 0 2  1e-4 0 2
CUB-200       5e-2 0 2  1e-2 0 2
StanfordCars  1e-2 0 4  1e-4 0 2
Places-LT     1e-1 0 4  1e-2 0 4
IP102         1e-1 0 1  5e-3 0 1
OfficeHome    1e-2 0 1  1 0 1
PACS          1e-1 0 4  5e-2 0 4
COCO2017      - - -     1e-2 0 2
ADE20K        1e-4 0 1  - - -
"""
CASES = [
    (name, backbone, cells[start : start + 3])
    for name, *cells in map(str.split, TABLE_6.strip().splitlines())
    for backbone, start in (("vit", 0), ("cnn", 3))
]


@pytest.mark.parametrize(("name", "backbone", "cells"), CASES)
def test_table_6(name, backbone, cells):
    if cells[0] == "-":
        with pytest.raises(ValueError, match=f"Received: '{name}'"):
            recipe(name, backbone)
        return
    arguments = recipe(name, backbone)
    assert [
        arguments["rollback"],
        arguments["rollback_min"],
        arguments["power"],
    ] == [float(cell) for cell in cells]
    assert arguments["base"] == {"vit": "adam", "cnn": "sgd"}[backbone]
    # They are arguments of DualOpt, whose learning rates are the paper's.
    optimizer = DualOpt(mode="finetune", **arguments)
    assert optimizer.reference_learning_rate == {"vit": 1e-4, "cnn": 1e-2}.get(
        backbone
    )


@pytest.mark.parametrize("name", ["supervised", "openclip", "mae", "pacs"])
def test_table_7_gives_pacs_other_values(name):
    found = recipe(name, table=7)
    assert found == {
        "base": "adam",
        "rollback": 1e-2,
        "rollback_min": 0.0,
        "power": 2.0,
    }
    assert found != recipe("pacs", table=6)


def test_names_are_taken_as_people_write_them():
    assert recipe("cifar100") == recipe("CIFAR-100") == recipe("Cifar-100")


def test_every_row_says_where_it_stands():
    assert len(RECIPES) == 18 + 3
    assert len({row.source for row in RECIPES}) == len(RECIPES)
    assert "Table 7, MAE" in RECIPES[-1].source


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"dataset": "mnist"}, r"cifar-100, svhn.*pacs.*Received: 'mnist'"),
        ({"dataset": "pacs", "backbone": "rnn"}, r"\['cnn', 'vit'\].*'rnn'"),
        ({"dataset": "pacs", "table": 5}, r"\[6, 7\].*Received: 5"),
        ({"dataset": "svhn", "table": 7}, r"supervised, openclip, mae"),
        (
            {"dataset": "pacs", "backbone": "cnn", "table": 7},
            "it has none.*'pacs'",
        ),
    ],
)
def test_what_the_paper_does_not_have_is_an_error(arguments, match):
    with pytest.raises(ValueError, match=match):
        recipe(**arguments)
