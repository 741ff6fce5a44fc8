"""The benchmarks run, print their tables, and compare what they say."""

import subprocess
import sys

import numpy as np
import pytest
import scripts
from cases import BACKEND

if BACKEND == "jax":
    pytest.importorskip("optax", reason="the benchmarks extra is not installed")


@pytest.fixture
def load(monkeypatch):
    with scripts.importing("benchmarks", monkeypatch) as load:
        yield load


def rows(printed):
    """Return the cells of the Markdown tables, without their heads."""
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    return [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in lines
    ]


def test_update_prints_four_tables(load, capsys):
    load("update").main(["--quick"])
    printed = capsys.readouterr().out
    for title in ("One update", "The start", "Memory", "One training step"):
        assert title in printed
    assert BACKEND in printed.lower()
    cells = rows(printed)
    rivals = {"jax": 1, "tensorflow": 0, "torch": 3}[BACKEND]
    assert len(cells[0]) == 3 + 3 + 2 * rivals
    assert [row[0] for row in cells[-2:]] == ["ViT", "ResNet"]


def test_contenders_take_the_steps_they_are_named_for(load):
    """The same first step from the same gradients: else it is other work."""
    contenders, models = load("contenders"), load("models")
    import keras

    moves = {}
    for name in contenders.KERAS:
        keras.utils.set_random_seed(3)
        model = models.chain(1e3, 4)
        before = model.get_weights()
        optimizer = contenders.KERAS[name]()
        if name == contenders.FINETUNE:
            optimizer.bind(model, head=())
        variables = model.trainable_variables
        gradients = [keras.ops.ones(v.shape) for v in variables]
        optimizer.apply(gradients, variables)
        moves[name] = np.concatenate(
            [(a - b).ravel() for a, b in zip(model.get_weights(), before)]
        )
    for one, other in (
        (contenders.FINETUNE, contenders.ADAM),
        (contenders.SCRATCH, contenders.ADAMW),
    ):
        np.testing.assert_allclose(moves[one], moves[other], rtol=0.02)


def test_ratio_is_formed_within_a_round(load):
    timing = load("timing")
    times = {"ours": [2.0, 30.0, 4.0], "rival": [1.0, 10.0, 1.0]}
    ratio = timing.ratio(times, "ours", "rival")
    assert (ratio.median, ratio.low, ratio.high) == (3.0, 2.5, 3.5)


def test_every_contender_runs_in_every_round(load):
    calls = []

    def contender(name):
        return lambda count: calls.append(name)

    times = load("timing").interleaved(
        {name: contender(name) for name in "abc"}, rounds=12, sample=0.0
    )
    assert {name: len(found) for name, found in times.items()} == {
        "a": 12,
        "b": 12,
        "c": 12,
    }
    # Warmed up, timed once for the count; then the rounds.
    rounds = ["".join(calls[at : at + 3]) for at in range(6, 42, 3)]
    assert {"".join(sorted(one)) for one in rounds} == {"abc"}
    assert len(set(rounds)) > 2


def test_memory_of_a_step_is_what_it_needs_for_a_while():
    # In a process of its own, as the benchmark is: where much has been freed,
    # a step may find its memory there, and malloc cannot always hand it back.
    program = """
import memory, numpy as np

kept = np.ones(1 << 20)

def run(count):
    for _ in range(count):
        np.add(kept, 1.0).sum()  # 8 MiB

print(memory.transient_bytes(run))
"""
    found = subprocess.run(
        [sys.executable, "-c", program],
        cwd=scripts.ROOT / "benchmarks",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    if found == "None":
        pytest.skip("the system has no high-water mark that can be reset")
    assert 7e6 < int(found) < 12e6


def test_depth_prints_what_finding_costs(load, capsys, monkeypatch):
    small = "depth.py --blocks 2 --width 64 --image-size 32 --batch 2"
    monkeypatch.setattr(sys, "argv", small.split())
    load("depth").main()
    assert "layer_depth, first call" in capsys.readouterr().out
