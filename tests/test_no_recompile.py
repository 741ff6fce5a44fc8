"""Steps are compiled once: changed numbers do not compile them again."""

import keras
import networks
import numpy as np
import pytest
from cases import (
    BACKEND,
    BASES,
    FINETUNE,
    SCHEDULES,
    SCRATCH,
    make_variables,
    quadratic_gradient,
)
from loops import compiled_steps, values

from keras_dualopt import DualOpt

pytestmark = pytest.mark.skipif(
    BACKEND == "torch", reason="torch compiles no step unless it is asked to"
)

OPTIMIZERS = {
    "finetune": lambda: networks.dual_opt(0.03),
    "scratch": lambda: DualOpt(0.03, **networks.SCRATCH),
    "schedule": lambda: networks.dual_opt(
        SCHEDULES["cosine with warm-up from 0"].make()
    ),
    "Nadam": lambda: networks.dual_opt(None, base=BASES["Nadam"](0.03)),
}


class Counter(DualOpt):
    """Counts how often a step is traced: once for each compilation."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.traces = 0

    def _backend_update_step(self, *args):
        self.traces += 1
        super()._backend_update_step(*args)


def counted(case):
    config = OPTIMIZERS[case]().get_config()
    return Counter.from_config(config)


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_second_fit_does_not_compile_again(case):
    optimizer = counted(case)
    model = networks.compiled(optimizer, networks.weights())
    networks.fit(model, 1)
    first = optimizer.traces
    assert first == 1
    networks.fit(model, 1)
    networks.fit(model, 4)
    assert optimizer.traces == first
    assert int(optimizer.iterations) == 6


def test_changed_learning_rate_does_not_compile_again():
    optimizer = counted("finetune")
    model = networks.compiled(optimizer, networks.weights())
    networks.fit(model, 1)
    first = optimizer.traces
    before = networks.arrays(model.trainable_variables)
    optimizer.learning_rate = 0.0
    networks.fit(model, 2)
    networks.assert_same(networks.arrays(model.trainable_variables), before)
    assert optimizer.traces == first


def test_new_anchors_do_not_compile_again():
    optimizer = counted("finetune")
    model = networks.compiled(optimizer, networks.weights())
    networks.fit(model, 1)
    first = optimizer.traces
    optimizer.anchor_at()
    networks.fit(model, 2)
    assert optimizer.traces == first


@pytest.mark.parametrize(
    "arguments", [FINETUNE, SCRATCH], ids=["finetune", "scratch"]
)
def test_step_of_ones_own_is_compiled_once(arguments):
    """`compiled_steps` asserts that later steps do not compile."""
    optimizer = Counter(0.03, **arguments)
    variables = make_variables()
    compiled_steps(optimizer, variables, quadratic_gradient(), 5)
    # TensorFlow traces a function that makes variables twice.
    assert optimizer.traces <= (1 if BACKEND == "jax" else 2)
    assert int(keras.ops.convert_to_numpy(optimizer.iterations)) == 5
    assert all(np.isfinite(value).all() for value in values(variables))
