"""PyTorch's DistributedDataParallel: two processes arrive where one does."""

import networks
import numpy as np
import processes
import pytest
from cases import BACKEND

if BACKEND != "torch":
    pytest.skip("torch's own way to distribute", allow_module_level=True)

from conformance.ddp_worker import MODES, PROCESSES, SHARDED, STEPS


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    processes.run("conformance/ddp_worker.py", folder)
    found = []
    for part in range(PROCESSES):
        with np.load(folder / f"{part}.npz") as file:
            found.append(dict(file))
    return found


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_arrive_where_one_does(mode, results):
    wanted = networks.expected(STEPS, mode=mode)[-1]
    for found in results:
        for index, theta in enumerate(wanted):
            np.testing.assert_allclose(
                found[f"{mode}.weight.{index}"], theta, rtol=1e-5, atol=2e-6
            )


def test_both_processes_take_the_weights_that_were_sent(results):
    for found in results:
        anchors = [found[f"finetune.anchor.{i}"] for i in range(6)]
        networks.assert_same(anchors, networks.weights()[:-2])


def test_both_processes_hold_the_same_numbers(results):
    first, second = results
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value)


@pytest.mark.parametrize("name", SHARDED)
def test_sharded_parameters_are_refused(name, results):
    """Keras' layers go on computing with the variables they hold."""
    for found in results:
        said = str(found[f"refused.{name}"])
        for word in ("dense_", "fully_shard", "DistributedDataParallel"):
            assert word in said
