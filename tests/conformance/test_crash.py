"""A run killed 20 times, anywhere, equals one that never was, bit for bit."""

import json
import os

import processes
import pytest

from conformance.crash_worker import BATCHES, CASES, EPOCHS, KILLS

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="the chain of processes is forked"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crash")
    printed = processes.run("conformance/crash_worker.py", folder)
    # All that is left is nothing: no backup, and no part of one.
    assert not list(folder.iterdir())
    return json.loads(printed.splitlines()[-1])


def states(link):
    """Return the state at the start and after every epoch of a process."""
    found = {}
    for report in link["reports"]:
        epoch = report.get("restored", report.get("written"))
        if epoch is not None:
            found[epoch] = report["state"]
    return found


@pytest.mark.parametrize("case", CASES)
def test_every_resume_and_the_end_equal_the_uninterrupted_run(case, runs):
    run = runs[case]
    never = states(run["never"])
    assert [*never] == [*range(EPOCHS + 1)]
    assert len({str(state) for state in never.values()}) == EPOCHS + 1
    resumed = 0
    for link in [*run["killed"], run["last"]]:
        for epoch, state in states(link).items():
            if epoch:  # Before there is a file, every start is its own.
                assert state == never[epoch]
        resumed += min(states(link), default=0) > 0
    assert resumed >= KILLS - 1
    assert run["last"]["status"] == run["never"]["status"] == 0
    assert (
        run["last"]["reports"][-1]
        == run["never"]["reports"][-1]
        == {"ended": True, "state": never[EPOCHS]}
    )


@pytest.mark.parametrize("case", CASES)
def test_a_kill_costs_the_epoch_in_which_it_falls(case, runs):
    run = runs[case]
    assert [link["status"] for link in run["killed"]] == [-9] * KILLS
    written = 0
    for link in [*run["killed"], run["last"]]:
        restored = min(states(link), default=None)
        assert restored is not None
        # A kill after the new name was given, before it was reported.
        assert written <= restored <= written + 1
        written = max(states(link))
    for link in run["killed"][1::2]:  # These fell inside of a write.
        assert link["reports"][-1]["batch"] == BATCHES - 1
