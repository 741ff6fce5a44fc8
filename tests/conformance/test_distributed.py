"""Two devices or four: every copy takes the same θ₀ and the same step.

The global batch is that of the other tests, so that they must arrive where the
reference does.
"""

import networks
import numpy as np
import processes
import pytest
import reference
from cases import BACKEND

from conformance.distributed_worker import (
    EPOCHS,
    ROWS,
    STEPS,
    devices_of,
    optimizer_of,
    start_of,
    steps_of,
)
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
    results = {}
    for count in (2, 4):
        rows = [row for row in ROWS if devices_of(row) == count]
        processes.run(
            "conformance/distributed_worker.py",
            folder / "results.npz",
            pretrained,
            ",".join(rows),
            XLA_FLAGS=f"--xla_force_host_platform_device_count={count}",
        )
        with np.load(folder / "results.npz") as found:
            results.update(found)
    return results


def column(results, row, name):
    found = []
    while (key := f"{row}.{name}.{len(found)}") in results:
        found.append(results[key])
    return found


def expected(row):
    """Return the reference's weights, or those of one device."""
    if row == "anchored again":
        return reanchored(STEPS // 2, STEPS - STEPS // 2)
    if row in ("wrapped", "mixed precision"):
        policy = None if row == "wrapped" else "mixed_float16"
        model = networks.compiled(optimizer_of(row), PRETRAINED, dtype=policy)
        networks.fit(model, STEPS)
        return networks.arrays(model.trainable_variables)
    mode = "scratch" if row == "scratch" else "finetune"
    rule = reference.OlorSgd if row == "sgd" else reference.OlorAdam
    accumulate = 2 if row == "accumulation" else 1
    steps = EPOCHS * networks.BATCHES if row == "resumed" else steps_of(row)
    return networks.expected(
        steps, start_of(row), mode, rule, accumulate=accumulate
    )[-1]


@pytest.mark.parametrize("row", ROWS)
def test_devices_arrive_where_one_does(row, results):
    weights = column(results, row, "weight")
    wanted = expected(row)
    assert len(weights) == len(wanted) == len(PRETRAINED)
    for value, theta in zip(weights, wanted, strict=True):
        # The gradients of half a batch are rounded to float16.
        rtol, atol = (1e-5, 2e-6) if row != "mixed precision" else (0, 4e-3)
        np.testing.assert_allclose(value, theta, rtol=rtol, atol=atol)


@pytest.mark.parametrize("row", ROWS)
def test_devices_take_the_same_anchors(row, results):
    anchors = column(results, row, "anchor")
    wanted = [] if row == "scratch" else start_of(row)[:-2]
    if row == "anchored again":
        wanted = column(results, row, "stage")[:-2]
        assert all(
            not np.array_equal(value, first)
            for value, first in zip(wanted, PRETRAINED[:-2], strict=True)
        )
    networks.assert_same(anchors, wanted)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's strategies")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("parameter servers", ["ParameterServerStrategy", "MultiWorker"]),
        ("accumulation", ["MirroredStrategy", "strategy.run"]),
    ],
)
def test_strategy_on_which_a_step_would_be_wrong_is_refused(
    name, words, results
):
    said = str(results[f"refused.{name}"])
    assert all(word in said for word in words)
