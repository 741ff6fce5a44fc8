"""What the page on scale says of memory and traffic holds."""

import os

import processes
import pytest
import scripts
from cases import BACKEND


@pytest.fixture
def scale(monkeypatch):
    with scripts.importing("benchmarks", monkeypatch) as load:
        yield load("scale")


def table(printed):
    return [
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in printed.splitlines()
        if line.startswith("|")
    ]


def test_page_has_the_tables_that_the_script_prints(scale, capsys):
    scale.main([])
    page = (scripts.ROOT / "docs/scale.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() in page


@pytest.mark.parametrize(
    ("way", "devices", "memory", "anchors"),
    [
        ("data", 64, 160e9, 32e9),
        ("tensor", 4, 40e9, 8e9),
        ("tensor", 64, 20e9, 4e9),
        ("full", 64, 2.5e9, 0.5e9),
    ],
)
def test_memory_of_8_billion_weights(way, devices, memory, anchors, scale):
    cost = scale.Cost(8e9, scale.sharing(way, devices))
    assert cost.memory == memory
    assert cost.anchors == anchors


def test_what_is_not_split_is_on_every_device(scale):
    assert scale.Cost(1000.0, sharing=4, split=0.75).on_device == 437.5


@pytest.mark.skipif(BACKEND != "jax", reason="keras.distribution")
def test_formula_is_what_8_devices_hold_and_read():
    printed = processes.run(
        os.path.join("..", "benchmarks", "scale.py"),
        "--measure",
        "--width",
        "64",
        "--layers",
        "2",
        XLA_FLAGS="--xla_force_host_platform_device_count=8",
    )
    rows = table(printed)[2:]
    assert len(rows) == 3 * 2 * 3
    for _, _, name, formula, measured, collectives in rows:
        formula, measured = (
            int(cell.replace(",", "")) for cell in (formula, measured)
        )
        # The scalars that an update reads besides.
        slack = 200 if name == "read" else 0
        assert formula <= measured <= formula + slack
        assert collectives == "none"
