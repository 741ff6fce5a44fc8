"""What XLA makes of an update: no copy, no further pass, few kernels.

A pass over memory is what an update costs. These tests read the optimized
program of a chain of equal layers beside the one of Keras' Adam.
"""

import re
from collections import Counter

import keras
import pytest
from cases import BACKEND

from keras_dualopt import DualOpt

pytestmark = pytest.mark.skipif(
    BACKEND == "torch", reason="PyTorch's updates are not compiled"
)

WIDTH = 48  # No other array of the program has this many numbers.
ADAM = "Adam"
OPTIMIZERS = {
    ADAM: lambda: keras.optimizers.Adam(0.01),
    "finetune": lambda: DualOpt(0.01, rollback=0.2, rollback_min=0.1),
    "scratch": lambda: DualOpt(
        0.01, mode="scratch", weight_decay=0.2, weight_decay_min=0.1
    ),
}
OURS = [name for name in OPTIMIZERS if name != ADAM]


def program(name, layers=4):
    """Return the optimized program of one update of equal layers."""
    model = keras.Sequential(
        [
            keras.Input((WIDTH,)),
            *(keras.layers.Dense(WIDTH, use_bias=False) for _ in range(layers)),
        ]
    )
    optimizer = OPTIMIZERS[name]()
    if name == "finetune":
        optimizer.bind(model, head=())
    variables = model.trainable_variables
    optimizer.build(variables)
    gradients = [keras.ops.ones(v.shape) for v in variables]
    if BACKEND == "tensorflow":
        import tensorflow as tf

        step = tf.function(
            lambda gradients: optimizer.apply(gradients, variables),
            jit_compile=True,
        )
        return step.experimental_get_compiler_ir(gradients)("optimized_hlo")
    import jax

    def step(weights, state, gradients):
        return optimizer.stateless_apply(state, gradients, weights)

    arguments = [
        [v.value for v in variables],
        [v.value for v in optimizer.variables],
        gradients,
    ]
    jitted = jax.jit(step, donate_argnums=(0, 1))
    return jitted.lower(*arguments).compile().as_text()


@pytest.fixture(scope="module")
def programs():
    return {name: program(name) for name in OPTIMIZERS}


def computations(text):
    return re.split(r"\n(?=%|ENTRY)", text)


def entry(text):
    """Return the lines of a program's main computation."""
    (found,) = [c for c in computations(text) if c.startswith("ENTRY")]
    return found.splitlines()


def passes(text):
    """Count what the main computation does to whole weights, by kind."""
    whole = rf"= f32\[{WIDTH},{WIDTH}\]\S* ([a-z-]+)\("
    found = Counter(
        match.group(1)
        for line in entry(text)
        if (match := re.search(whole, line))
    )
    # Names for what is there already.
    return found - Counter(
        {n: found[n] for n in ("parameter", "get-tuple-element", "bitcast")}
    )


def kernels(text):
    """Return the different kernels: the same but for names are one."""
    bodies = [c for c in computations(text) if c.startswith("%fused")]
    assert bodies
    plain = [re.sub(r", metadata=\{[^}]*\}", "", body) for body in bodies]
    return {re.sub(r"%?[A-Za-z_][\w-]*(\.\d+)+", "x", body) for body in plain}


@pytest.mark.parametrize("name", OURS)
def test_no_pass_more_than_keras_adam(name, programs):
    """The pull is in the kernel of the step; nothing is copied around it.

    The capture's copies are in a branch of their own, of the first step.
    """
    assert passes(programs[name]) == passes(programs[ADAM])
    assert set(passes(programs[name])) == {"fusion"}


@pytest.mark.parametrize("name", OURS)
def test_kernels_do_not_grow_with_the_layers(name, programs):
    """Each layer has another strength, which no kernel may contain."""
    assert len(kernels(program(name, 8))) == len(kernels(programs[name]))


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX donates buffers")
@pytest.mark.parametrize("name", OURS)
def test_every_donated_buffer_is_its_own_result(name, programs):
    header = programs[name].splitlines()[0]
    (aliases,) = re.findall(r"input_output_alias=\{(.*?\)) \}", header)
    pairs = re.findall(r"\{(\d+)\}: \((\d+),", aliases)
    # θ, m, v and θ₀ of four layers; the steps, the rate and the flag.
    count = 4 * (4 if name == "finetune" else 3) + 3
    assert pairs == [(str(index), str(index)) for index in range(count)]
