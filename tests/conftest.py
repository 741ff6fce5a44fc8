"""What every test process needs before a backend starts."""

import os
import tempfile

import pytest

# XLA compiles the same small programs again for every model and process; a
# cache that lives as long as the test run halves its time. The variables are
# inherited by the workers of xdist and by the processes that tests start.
if os.environ.get("KERAS_BACKEND") == "jax":
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        _folder = tempfile.TemporaryDirectory(prefix="keras_dualopt_xla_")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = _folder.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


@pytest.fixture(autouse=True)
def seeded():
    """Draw the same initial weights however the tests are divided."""
    import keras

    keras.utils.set_random_seed(1)


def pytest_addoption(parser):
    parser.addoption(
        "--quick",
        action="store_true",
        help="one case of each test: every law, not every number",
    )


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--quick"):
        return
    chosen, others = {}, []
    for item in items:
        law = item.path, item.cls, getattr(item, "originalname", item.name)
        if law in chosen:
            others.append(item)
        else:
            chosen[law] = item
    items[:] = chosen.values()
    config.hook.pytest_deselected(items=others)
