"""Checkpoints of KerasHub tasks whose weights backends list differently.

Keras reads the weights by the structure of the task, DualOpt its state by the
place of each weight. The files hold θ₀ = θ, m = θ/10 and v = θ²/1000, so that
a state that went to another weight would show.
"""

import h5py
import networks
import numpy as np
import pytest
from conformance.checkpoint_worker import BACKENDS, manifest, unpacked
from task_checkpoint_worker import TASKS, compiled, file_of


@pytest.fixture(scope="module", params=TASKS)
def model(request):
    return request.param, compiled(request.param)


@pytest.mark.parametrize("backend", BACKENDS)
def test_state_finds_its_weight_again(backend, model, tmp_path):
    name, task = model
    task.load_weights(unpacked(file_of(name, backend), tmp_path))
    weights = networks.arrays(task.trainable_variables)
    assert all(weight.min() > 0 for weight in weights)
    networks.assert_same(networks.anchors(task.optimizer), weights)
    store = {}
    task.optimizer.save_own_variables(store)
    for index, weight in enumerate(weights):
        for slot, value in (
            ("momentums", 0.1 * weight),
            ("velocities", 0.001 * np.square(weight)),
        ):
            # torch's fused kernel computes 1 − 0.999 in float32.
            np.testing.assert_allclose(
                store[f"{slot}.{index}"], value, rtol=2e-5
            )


def test_backends_order_the_weights_differently(model, tmp_path):
    """Otherwise the test above would show nothing."""
    name, _ = model
    orders = []
    for backend in ("jax", "torch"):
        path = unpacked(file_of(name, backend), tmp_path)
        with h5py.File(path) as file:
            owners = manifest(file["optimizer/vars"])["owners"]
        orders.append([owner["key"] for owner in owners])
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])
