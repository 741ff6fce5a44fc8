"""A checkpoint that one backend wrote goes on with the two others.

`tests/data` holds what each backend wrote; `checkpoint_worker.py` writes it
anew. Each backend reads all three, and checks that its own still is what it
would write today, so that the three together stand for live processes.
"""

import h5py
import networks
import numpy as np
import pytest
from cases import BACKEND

from conformance.checkpoint_worker import (
    BACKENDS,
    CASES,
    STEPS,
    STOP,
    compiled,
    file_of,
    manifest,
    trained,
    unpacked,
)

CLOSE = {"rtol": 1e-5, "atol": 2e-6}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """Return a case, and what an uninterrupted run of it arrives at."""
    model = trained(request.param)
    networks.fit(model, STEPS - STOP, start=STOP)
    return request.param, state(model)


def state(model):
    optimizer = model.optimizer
    taken = [anchor for anchor in optimizer.anchors if anchor is not None]
    return networks.arrays(
        [*model.trainable_variables, *optimizer.variables, *taken]
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_checkpoint_of_every_backend_goes_on(backend, case, tmp_path):
    name, wanted = case
    model = compiled(name, networks.weights(seed=99))
    model.load_weights(unpacked(file_of(name, backend), tmp_path))
    networks.fit(model, STEPS - STOP, start=STOP)
    networks.assert_anchored_at(model.optimizer, networks.weights())
    for value, other in zip(state(model), wanted, strict=True):
        np.testing.assert_allclose(value, other, **CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_checkpoint_in_the_repository_is_what_is_written_today(name, tmp_path):
    trained(name).save_weights(tmp_path / "new.weights.h5")
    with (
        h5py.File(tmp_path / "new.weights.h5") as new,
        h5py.File(unpacked(file_of(name, BACKEND), tmp_path)) as old,
    ):
        written, kept = new["optimizer/vars"], old["optimizer/vars"]
        assert manifest(written) == manifest(kept)
        assert set(written) == set(kept)
        for key in set(written) - {"dualopt"}:
            np.testing.assert_allclose(written[key], kept[key], **CLOSE)
