"""Two devices: every copy takes the same θ₀ and the same step.

The global batch is that of the other tests, so that two devices must arrive
where the reference does.
"""

import networks
import numpy as np
import processes
import pytest
import reference
from cases import BACKEND

from conformance.distributed_worker import EPOCHS, ROWS, STEPS, optimizer_of
from conformance.test_stages import reanchored

PRETRAINED = networks.weights()

pytestmark = pytest.mark.skipif(
    BACKEND == "torch", reason="Keras distributes on TensorFlow and JAX"
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    pretrained = folder / "pretrained.weights.h5"
    networks.network(PRETRAINED).save_weights(pretrained)
    processes.run(
        "conformance/distributed_worker.py",
        folder / "results.npz",
        pretrained,
        ",".join(ROWS),
        XLA_FLAGS="--xla_force_host_platform_device_count=2",
    )
    with np.load(folder / "results.npz") as found:
        return dict(found)


def column(results, row, name):
    found = []
    while (key := f"{row}.{name}.{len(found)}") in results:
        found.append(results[key])
    return found


def expected(row):
    """Return the reference's weights, or those of one device."""
    if row == "anchored again":
        return reanchored(STEPS // 2, STEPS - STEPS // 2)
    if row == "wrapped":
        model = networks.compiled(optimizer_of(row), PRETRAINED)
        networks.fit(model, STEPS)
        return networks.arrays(model.trainable_variables)
    mode = "scratch" if row == "scratch" else "finetune"
    rule = reference.OlorSgd if row == "sgd" else reference.OlorAdam
    accumulate = 2 if row == "accumulation" else 1
    steps = EPOCHS * networks.BATCHES if row == "resumed" else STEPS
    return networks.expected(
        steps, PRETRAINED, mode, rule, accumulate=accumulate
    )[-1]


@pytest.mark.parametrize("row", ROWS)
def test_two_devices_arrive_where_one_does(row, results):
    weights = column(results, row, "weight")
    wanted = expected(row)
    assert len(weights) == len(wanted) == len(PRETRAINED)
    for value, theta in zip(weights, wanted, strict=True):
        np.testing.assert_allclose(value, theta, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("row", ROWS)
def test_two_devices_take_the_same_anchors(row, results):
    anchors = column(results, row, "anchor")
    wanted = [] if row == "scratch" else PRETRAINED[:-2]
    if row == "anchored again":
        wanted = column(results, row, "stage")[:-2]
        assert all(
            not np.array_equal(value, first)
            for value, first in zip(wanted, PRETRAINED[:-2], strict=True)
        )
    networks.assert_same(anchors, wanted)
