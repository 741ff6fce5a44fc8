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


# What `--quick` leaves out: programs that are started, and modules that
# compile for most of their time. Their laws are held, with fewer numbers, by
# tests that stay.
SLOW = {
    "test_across_backends": "compares three processes",
    "test_benchmarks": "runs the benchmarks",
    "test_crash": "kills processes",
    "test_damaged_files": "reads hundreds of files",
    "test_ddp": "starts processes",
    "test_depth_tracing": "trains each network twice",
    "test_distributed": "starts processes",
    "test_engines": "starts processes",
    "test_examples": "runs the examples",
    "test_forgetting": "runs the benchmarks",
    "test_resume": "starts processes",
    "test_scale": "runs the benchmarks",
    "test_walks": "walks at random",
}


def pytest_addoption(parser):
    parser.addoption(
        "--quick",
        action="store_true",
        help="one case of each test, and none of the slow modules",
    )
    parser.addoption(
        "--rest", action="store_true", help="what --quick leaves out"
    )


def pytest_collection_modifyitems(config, items):
    quick, rest = config.getoption("--quick"), config.getoption("--rest")
    if quick == rest:
        return
    chosen, others = {}, []
    for item in items:
        law = item.path, item.cls, getattr(item, "originalname", item.name)
        if item.path.stem in SLOW or law in chosen:
            others.append(item)
        else:
            chosen[law] = item
    chosen = [*chosen.values()]
    items[:], others = (chosen, others) if quick else (others, chosen)
    config.hook.pytest_deselected(items=others)
