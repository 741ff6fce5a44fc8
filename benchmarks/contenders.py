"""The updates that are compared, each as its backend's users run it.

JAX: `stateless_apply`, jitted, weights and state donated, as Keras' trainer
does. TensorFlow: `apply` in a `tf.function` compiled by XLA, Keras' default.
PyTorch: `apply`, eager. Every contender has weights and state of its own and
gradients in common.
"""

import keras
import numpy as np
from timing import seconds

from keras_dualopt import DualOpt

BACKEND = keras.backend.backend()
RATE = 1e-5  # Small: after thousands of steps the weights are still numbers.
FINETUNE, SCRATCH = "fine-tune", "scratch"
NARROW = "fine-tune, bfloat16 θ₀"
ADAM, ADAMW = "Keras Adam", "Keras AdamW"

# Every layer has another strength, none is 0.
KERAS = {
    FINETUNE: lambda: DualOpt(RATE, rollback_min=0.001),
    ADAM: lambda: keras.optimizers.Adam(RATE, epsilon=1e-8),
    SCRATCH: lambda: DualOpt(RATE, mode="scratch", weight_decay_min=0.01),
    ADAMW: lambda: keras.optimizers.AdamW(
        RATE, weight_decay=0.05, epsilon=1e-8
    ),
}
# Its weights have to fit: it takes part where there is nothing but an update.
UPDATES = {
    **KERAS,
    NARROW: lambda: DualOpt(RATE, rollback_min=0.001, anchor_dtype="bfloat16"),
}
OTHERS = {
    "jax": ("optax.adamw",),
    "torch": tuple(
        f"torch AdamW {kind}" for kind in ("single", "foreach", "fused")
    ),
}.get(BACKEND, ())

# What is compared with what.
PAIRS = [(FINETUNE, ADAM), (SCRATCH, ADAMW), (NARROW, ADAM)] + [
    (name, other) for other in OTHERS for name in (FINETUNE, SCRATCH)
]


class Update:
    """One contender's update of one model.

    Args:
        name: Which optimizer.
        model: Its own model, whose weights it moves.
        gradients: NumPy arrays, one for each trainable variable.

    Attributes:
        build_seconds: Time of `optimizer.build`, with the search for depths.
        start_seconds: Time to trace and compile, or of the first update.
        run: `run(count)` makes `count` updates and waits for them to end.
        state_bytes: Size of weights and optimizer state.
        weight_bytes: Size of the weights.
    """

    def __init__(self, name, model, gradients):
        variables = model.trainable_variables
        gradients = [keras.ops.convert_to_tensor(g) for g in gradients]
        if name in UPDATES:
            optimizer = UPDATES[name]()
            if name in (FINETUNE, NARROW):
                _publish(variables)
                optimizer.bind(model, head=())  # Every weight is pulled.
            self.build_seconds, _ = seconds(optimizer.build, variables)
            state = optimizer.variables
            self.state_bytes = _bytes([*variables, *state])
            start = _KERAS_STARTS[BACKEND]
            self.start_seconds, self.run = seconds(
                start, optimizer, variables, gradients
            )
        else:
            self.build_seconds = 0.0
            start = _OTHER_STARTS[BACKEND]
            self.start_seconds, (self.run, state) = seconds(
                start, name, variables, gradients
            )
            self.state_bytes = _bytes([*variables, *state])
        self.weight_bytes = _bytes(variables)


def updates(make_model, names, advance=None):
    """Return each named contender's `Update` of a model of its own."""
    gradients, result = None, {}
    for name in names:
        model = make_model()
        if gradients is None:
            random = np.random.default_rng(0)
            gradients = [
                random.standard_normal(v.shape, dtype="float32")
                for v in model.trainable_variables
            ]
        result[name] = Update(name, model, gradients)
        if advance is not None:
            advance()
    return result


def _publish(variables):
    """Round weights to bfloat16, as most that are published were."""
    for variable in variables:
        narrow = keras.ops.cast(variable, "bfloat16")
        variable.assign(keras.ops.cast(narrow, "float32"))


def _bytes(variables):
    return sum(
        (2 if "bfloat16" in str(v.dtype) else 4) * int(np.prod(v.shape))
        for v in variables
    )


def _jax_runner(step, weights, state, gradients):
    import jax

    # Donated buffers are gone: these must not be the variables' own.
    weights, state = jax.tree.map(lambda x: x.copy(), (weights, state))
    # Donated in the order of the results, as by Keras' trainer: XLA gives the
    # first result the first buffer of its shape, and copies where that is
    # another weight's.
    jitted = jax.jit(step, donate_argnums=(0, 1))
    compiled = jitted.lower(weights, state, gradients).compile()

    def run(count):
        nonlocal weights, state
        for _ in range(count):
            weights, state = compiled(weights, state, gradients)
        jax.block_until_ready((weights, state))

    return run


def _start_jax(optimizer, variables, gradients):
    def step(weights, state, gradients):
        return optimizer.stateless_apply(state, gradients, weights)

    return _jax_runner(
        step,
        [variable.value for variable in variables],
        [variable.value for variable in optimizer.variables],
        gradients,
    )


def _start_optax(name, variables, gradients):
    import jax
    import optax

    rule = optax.adamw(RATE, weight_decay=0.05)
    weights = [variable.value for variable in variables]

    def step(weights, state, gradients):
        moves, state = rule.update(gradients, state, weights)
        return optax.apply_updates(weights, moves), state

    state = rule.init(weights)
    run = _jax_runner(step, weights, state, gradients)
    return run, jax.tree.leaves(state)


def _start_tensorflow(optimizer, variables, gradients):
    import tensorflow as tf

    @tf.function(jit_compile=True)
    def step(gradients):
        optimizer.apply(gradients, variables)

    def run(count):
        for _ in range(count):
            step(gradients)
        variables[-1].numpy()  # On a GPU this waits.

    run(1)
    return run


def _start_torch(optimizer, variables, gradients):
    def run(count):
        for _ in range(count):
            optimizer.apply(gradients, variables)
        _wait_for(gradients)

    run(1)
    return run


def _start_torch_optim(name, variables, gradients):
    import torch

    kind = name.split()[-1]
    weights = [variable.value for variable in variables]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    optimizer = torch.optim.AdamW(
        weights,
        lr=RATE,
        weight_decay=0.05,
        foreach=kind == "foreach",
        fused=kind == "fused",
    )

    def run(count):
        for _ in range(count):
            optimizer.step()
        _wait_for(gradients)

    run(1)
    state = [
        tensor
        for slots in optimizer.state.values()
        for tensor in slots.values()
    ]
    return run, state


def _wait_for(tensors):
    if tensors[0].is_cuda:
        import torch

        torch.cuda.synchronize()


_KERAS_STARTS = {
    "jax": _start_jax,
    "tensorflow": _start_tensorflow,
    "torch": _start_torch,
}
_OTHER_STARTS = {"jax": _start_optax, "torch": _start_torch_optim}
