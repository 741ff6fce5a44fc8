"""The frameworks' own engines arrive where one device does.

What runs is the examples, on any number of devices: 100 steps, stopped in the
middle (or killed) and gone on with another number. All must end where Keras'
`fit` on one device ends, with the same θ₀ to the last bit.
"""

import contextlib
import itertools
import json
import random
import re
import shutil
import socket
import subprocess
import sys
import time

import networks
import numpy as np
import processes
import pytest
import scripts
from cases import BACKEND

from keras_dualopt import interpolate
from keras_dualopt.callbacks import AtomicBackup, Drift

EPOCHS, HALF = 10, 5
KILLED_IN = 4  # An epoch with time enough left to be killed in.
XLA_DEVICES = "--xla_force_host_platform_device_count"
# As in the worker, which imports JAX.
CHAINS = (
    "data",
    "tensor",
    "full",
    "data on 8, then 4",
    "tensor on 8, then 1",
    "one, then full on 8",
)


@pytest.fixture(scope="module")
def task():
    with (
        pytest.MonkeyPatch.context() as patch,
        scripts.importing("examples", patch) as load,
    ):
        yield load("distributed_task")


def fit(task, epochs, **arguments):
    model = task.make_model()
    model.compile(
        task.make_optimizer(),
        task.make_loss(),
        jit_compile=BACKEND == "jax",
    )
    tokens, labels = map(np.concatenate, task.data())
    model.fit(
        tokens,
        labels,
        batch_size=task.BATCH,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        **arguments,
    )
    return model


@pytest.fixture(scope="module")
def single(task, tmp_path_factory):
    """Train on one device; return the model and its file from the middle."""
    path = tmp_path_factory.mktemp("single") / "half.weights.h5"
    fit(task, HALF, callbacks=[AtomicBackup(path, keep=True)])
    return fit(task, EPOCHS), path


def assert_arrived(model, single, task):
    wanted, _ = single
    start = networks.arrays(task.make_model().trainable_variables)
    weights = networks.arrays(model.trainable_variables)
    networks.assert_close(weights, networks.arrays(wanted.trainable_variables))
    for value, first in zip(weights, start, strict=True):
        assert np.abs(value - first).max() > 1e-3
    networks.assert_anchored_at(model.optimizer, start)


def assert_file_arrived(path, single, task):
    model = task.make_model()
    model.compile(task.make_optimizer())
    model.optimizer.build(model.trainable_variables)
    model.load_weights(path)
    assert int(model.optimizer.iterations) == EPOCHS * task.BATCHES
    assert_arrived(model, single, task)


def resumed_here(path, task):
    """Go on from a file on one device, by Keras' `fit`."""
    model = task.make_model()
    model.compile(task.make_optimizer(), task.make_loss())
    model.optimizer.build(model.trainable_variables)
    model.load_weights(path)
    steps = int(model.optimizer.iterations)
    assert 0 < steps < EPOCHS * task.BATCHES
    tokens, labels = map(np.concatenate, task.data())
    model.fit(
        tokens,
        labels,
        batch_size=task.BATCH,
        initial_epoch=steps // task.BATCHES,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
    )
    return model


# --- processes --------------------------------------------------------------


def free_ports(count):
    """Return ports that nobody listens at now.

    They are below those that systems give to connections, of which the
    processes of another test open many before these are listened at.
    """
    found = set()
    while len(found) < count:
        # Not by a seed, which would give the same ports to every test process.
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("localhost", port))
            found.add(port)
    return [*found]


def run(folder, workers, script, arguments, kill=False):
    """Run one script in several processes, to the end or to their death.

    Args:
        folder: Where their output goes.
        workers: What is in the environment of each.
        script: A path in this repository.
        arguments: What all are called with.
        kill: Whether to kill them all in the middle.
    """
    command = [sys.executable, "-u", scripts.ROOT / script, *arguments]
    logs = [folder / f"log_{n}.txt" for n in range(len(workers))]
    with contextlib.ExitStack() as stack:
        started = []
        for log, changes in zip(logs, workers, strict=True):
            output = stack.enter_context(open(log, "w", encoding="utf-8"))
            started.append(
                subprocess.Popen(
                    [*map(str, command)],
                    env=processes.environment(**changes),
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
            stack.callback(end, started[-1])
        deadline = time.monotonic() + 300.0
        middle = re.compile(rf"Epoch {KILLED_IN}/{EPOCHS}")
        while None in [process.poll() for process in started]:
            assert time.monotonic() < deadline, written(logs)
            assert not any(process.poll() for process in started), written(logs)
            if kill and middle.search(logs[0].read_text(encoding="utf-8")):
                return
            time.sleep(0.02)
        assert not any(process.returncode for process in started), written(logs)
        assert not kill, "ended before the kill"


def end(process):
    if process.poll() is None:
        process.kill()
    process.wait()


def written(logs):
    return "\n\n".join(log.read_text(encoding="utf-8") for log in logs)


def devices(count):
    """Return the environment of one process with some JAX devices."""
    return [{"XLA_FLAGS": f"{XLA_DEVICES}={count}"}]


# --- JAX --------------------------------------------------------------------

only_jax = pytest.mark.skipif(BACKEND != "jax", reason="keras.distribution")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jax")
    processes.run(
        "conformance/engines_worker.py",
        folder,
        timeout=500,
        XLA_FLAGS=f"{XLA_DEVICES}=8",
    )
    with np.load(folder / "found.npz") as file:
        found = dict(file)
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    assert {name for name in facts if "programs" not in name} == {*CHAINS}
    return found, facts


def column(found, name):
    return [
        found[f"{name}.{index}"]
        for index in itertools.takewhile(
            lambda index: f"{name}.{index}" in found, itertools.count()
        )
    ]


@only_jax
@pytest.mark.parametrize("name", CHAINS)
def test_keras_distribution_arrives_where_one_device_does(
    name, sharded, single, task
):
    found, _ = sharded
    model, _ = single
    weights = networks.arrays(model.trainable_variables)
    networks.assert_close(column(found, f"{name}.weight"), weights)
    start = networks.arrays(task.make_model().trainable_variables)
    networks.assert_same(column(found, f"{name}.anchor"), start[:-2])


@only_jax
@pytest.mark.parametrize("name", CHAINS)
def test_anchors_lie_on_the_devices_as_their_weights_do(name, sharded):
    _, facts = sharded
    layouts = facts[name].values()
    assert all(layout["same"] for layout in layouts)
    # The part of a sharded weight that one device holds.
    part = {"tensor": 1 / 4, "full": 1 / 8, "one, then full on 8": 1 / 8}
    shares = {layout["share"] for layout in layouts}
    assert shares == {1.0, part.get(name, 1.0)}


@only_jax
@pytest.mark.parametrize("name", ["data", "tensor", "full"])
def test_compiled_update_has_no_collective(name, sharded):
    """The step and the pull, θ₀ included; the gradients before have some."""
    _, facts = sharded
    programs = facts[f"{name}, programs"]
    assert programs["update"] == []
    assert "all-reduce" in programs["gradients"]


@only_jax
def test_review_and_interpolate_under_sharding(sharded):
    found, _ = sharded
    tuned = column(found, "tensor.weight")
    origins = column(found, "tensor.anchor")
    for name, alpha in (
        ("review step 0", 1.0),
        ("review step 1", 0.5),
        ("review step 2", 0.0),
        ("interpolated", 0.25),
    ):
        weights = column(found, f"tensor, {name}.weight")
        networks.assert_close(
            weights[:-2],
            [
                origin + alpha * (theta - origin)
                for origin, theta in zip(origins, tuned)
            ],
            rtol=1e-6,
            atol=1e-7,
        )
        networks.assert_same(weights[-2:], tuned[-2:])  # The head stays.


@only_jax
def test_drift_under_sharding_is_that_of_one_device(sharded, task):
    found, _ = sharded
    model = fit(task, EPOCHS)
    drift = Drift()
    interpolate(model, 0.25)
    tokens, labels = map(np.concatenate, task.data())
    history = model.fit(
        tokens,
        labels,
        batch_size=task.BATCH,
        shuffle=False,
        verbose=0,
        callbacks=[drift],
    ).history
    for name in ("drift", "drift_shallow", "drift_deep", "pull_share"):
        np.testing.assert_allclose(
            found[f"tensor, {name}"], history[name], rtol=1e-4
        )
        assert np.all(found[f"tensor, {name}"] > 0.0)


@only_jax
def test_killed_on_8_devices_and_gone_on_with_on_4(single, task, tmp_path):
    path = tmp_path / "run.weights.h5"
    script = "examples/distributed_jax.py"
    words = ["--parallel", "full", "--backup", path]
    run(tmp_path, devices(8), script, words, kill=True)
    run(tmp_path, devices(4), script, words)
    assert_file_arrived(path, single, task)


@only_jax
def test_two_hosts_go_on_where_one_device_stopped(single, task, tmp_path):
    """`keras.distribution.initialize`, on loopback, two devices each."""
    for host in range(2):
        shutil.copy(single[1], tmp_path / f"host{host}_run.weights.h5")
    (port,) = free_ports(1)
    words = ["--backup", tmp_path / "run.weights.h5", "--hosts", "2"]
    words += ["--coordinator", f"localhost:{port}"]
    hosts = [{**devices(2)[0], "JAX_HOST": str(host)} for host in range(2)]
    run(tmp_path, hosts, "examples/distributed_jax.py", words)
    for host in range(2):
        assert_file_arrived(
            tmp_path / f"host{host}_run.weights.h5", single, task
        )


# --- TensorFlow -------------------------------------------------------------

only_tensorflow = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="tf.distribute"
)


def cluster(count):
    """Return the environments of workers on loopback."""
    workers = [f"localhost:{port}" for port in free_ports(count)]
    return [
        {
            "TF_CONFIG": json.dumps(
                {
                    "cluster": {"worker": workers},
                    "task": {"type": "worker", "index": index},
                }
            )
        }
        for index in range(count)
    ]


@only_tensorflow
def test_killed_on_4_mirrors_and_gone_on_with_on_2(single, task, tmp_path):
    path = tmp_path / "run.weights.h5"
    script = "examples/distributed_tensorflow.py"
    words = ["--backup", path, "--logical-devices"]
    run(tmp_path, [{}], script, [*words, "4"], kill=True)
    half = tmp_path / "half.weights.h5"
    shutil.copy(path, half)
    run(tmp_path, [{}], script, [*words, "2"])
    assert_file_arrived(path, single, task)
    assert_arrived(resumed_here(half, task), single, task)


@only_tensorflow
def test_two_workers_go_on_where_one_device_stopped(single, task, tmp_path):
    path = tmp_path / "run.weights.h5"
    shutil.copy(single[1], path)
    script = "examples/distributed_tensorflow.py"
    run(tmp_path, cluster(2), script, ["--backup", path])
    assert_file_arrived(path, single, task)


@only_tensorflow
def test_two_workers_are_killed_and_one_device_goes_on(single, task, tmp_path):
    path = tmp_path / "run.weights.h5"
    script = "examples/distributed_tensorflow.py"
    run(tmp_path, cluster(2), script, ["--backup", path], kill=True)
    assert_arrived(resumed_here(path, task), single, task)


# --- PyTorch ----------------------------------------------------------------

only_torch = pytest.mark.skipif(
    BACKEND != "torch", reason="DistributedDataParallel"
)


def ranks(count):
    """Return the environments that `torchrun` gives to its processes."""
    (port,) = free_ports(1)
    return [
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port),
        }
        for rank in range(count)
    ]


@only_torch
def test_four_ranks_are_killed_and_two_go_on(single, task, tmp_path):
    path = tmp_path / "run.weights.h5"
    script = "examples/distributed_torch.py"
    run(tmp_path, ranks(4), script, ["--backup", path], kill=True)
    half = tmp_path / "half.weights.h5"
    shutil.copy(path, half)
    run(tmp_path, ranks(2), script, ["--backup", path])
    assert_file_arrived(path, single, task)
    assert_arrived(resumed_here(half, task), single, task)


@only_torch
def test_four_ranks_go_on_where_one_device_stopped(single, task, tmp_path):
    path = tmp_path / "run.weights.h5"
    shutil.copy(single[1], path)
    script = "examples/distributed_torch.py"
    run(tmp_path, ranks(4), script, ["--backup", path])
    assert_file_arrived(path, single, task)
