"""A training loop that spends its time on arithmetic.

Small networks take a tenth of a millisecond a step; what calls them must not
take longer. On JAX a program is compiled once for all seeds, rates and
settings, and takes thousands of steps of several runs side by side. The other
backends take one step of one run at a time; TensorFlow compiles it once too.
"""

import keras
import numpy as np

BACKEND = keras.backend.backend()


def batches(examples, steps, size, seed):
    """Return the rows of each step: shuffled anew in every epoch."""
    random = np.random.default_rng(seed)
    epochs = -(-steps * size // examples)
    order = [random.permutation(examples) for _ in range(epochs)]
    return np.concatenate(order)[: steps * size].reshape(steps, size)


class Loop:
    """Trains variables on a loss.

    Args:
        make_optimizer: `(rate, setting)` to a new optimizer. On JAX it is
            called once, and has to read `setting`, its own attribute, in every
            step; on TensorFlow too, where that is a variable.
        variables: Keras variables to train.
        make_loss: `setting` to `loss(*batch)`, a function of a batch and of
            `variables` and `held`, written with Keras operations.
        held: Keras variables that the loss reads and that another run may
            give another value.
    """

    def __init__(self, make_optimizer, variables, make_loss, held=()):
        self._make_optimizer = make_optimizer
        self._variables = list(variables)
        self._held = list(held)
        self._make_loss = make_loss
        self._compiled = None
        self.optimizer = None

    def start(self, rate, setting=0.0):
        """Begin a run from the variables' present values."""
        if BACKEND == "tensorflow" and self._compiled is not None:
            self._setting.assign(setting)
        elif BACKEND == "tensorflow":
            self._setting = keras.Variable(
                np.float32(setting), trainable=False
            ).value
        else:
            self._setting = np.float32(setting)
        if BACKEND != "torch" and self._compiled is not None:
            # The program is the same; only the state begins anew.
            for variable, value in zip(self.optimizer.variables, self._fresh):
                variable.assign(value)
        else:
            self.optimizer = self._make_optimizer(rate, setting)
            self.optimizer.setting = self._setting
            self._loss = self._make_loss(self._setting)
            self.optimizer.build(self._variables)
            self._fresh = [np.array(v) for v in self.optimizer.variables]
            self._compiled = _COMPILERS[BACKEND](self)
        self.optimizer.learning_rate = rate

    def run(self, data, rows, begin=0, end=None):
        """Take the steps from `begin` to `end`.

        Args:
            data: Arrays with an example in each row.
            rows: Integers, `steps × batch size`: the examples of each step.
            begin: The first step.
            end: One more than the last.
        """
        end = len(rows) if end is None else end
        if BACKEND == "jax":
            (run,) = self.run_together([self.taken(data, rows)], begin, end)
            self.put(run)
            return
        data = [keras.ops.convert_to_tensor(array) for array in data]
        self._compiled(data, rows[begin:end])

    # Several runs at once, on JAX.

    def taken(self, data, rows):
        """Return a run that was started, as arrays."""
        weights, state, held = (
            [v.value for v in variables]
            for variables in (
                self._variables,
                self.optimizer.variables,
                self._held,
            )
        )
        data = [np.asarray(array) for array in data]
        return (weights, state), (held, self._setting, data, rows)

    def each(self, settings, begin, data, rows):
        """Yield each setting when its run has ended, the weights in place.

        Args:
            settings: Numbers; one run each.
            begin: Called with a setting; sets the weights and starts.
            data: As of `run`.
            rows: As of `run`.
        """
        runs = []
        for setting in settings:
            begin(setting)
            if BACKEND == "jax":
                runs.append(self.taken(data, rows))
                continue
            self.run(data, rows)
            yield setting
        if runs:
            runs = self.run_together(runs, 0, len(rows))
        for setting, run in zip(settings, runs):
            self.put(run)
            yield setting

    def put(self, run):
        """Set the variables to where a run is."""
        weights, state = run[0]
        for variable, value in zip(
            [*self._variables, *self.optimizer.variables], [*weights, *state]
        ):
            variable.assign(value)

    def run_together(self, runs, begin, end):
        """Return runs, `end` − `begin` steps further on."""
        import jax

        moving, fixed = jax.tree.map(lambda *parts: np.stack(parts), *runs)
        moved = jax.tree.map(
            np.asarray, self._compiled(moving, fixed, begin, end)
        )
        return [
            (jax.tree.map(lambda part, i=i: part[i], moved), run[1])
            for i, run in enumerate(runs)
        ]


def _compile_jax(loop):
    import jax

    def value_of(weights, held, setting, batch):
        mapping = [
            *zip(loop._variables, weights),
            *zip(loop._held, held),
        ]
        with keras.StatelessScope(state_mapping=mapping):
            return loop._make_loss(setting)(*batch)

    def step(moving, fixed, i):
        weights, state = moving
        held, setting, data, rows = fixed
        loop.optimizer.setting = setting
        batch = [array[rows[i]] for array in data]
        gradients = jax.grad(value_of)(weights, held, setting, batch)
        return loop.optimizer.stateless_apply(state, gradients, weights)

    def steps(moving, fixed, begin, end):
        def body(i, moving):
            return jax.vmap(step, in_axes=(0, 0, None))(moving, fixed, i)

        return jax.lax.fori_loop(begin, end, body, moving)

    return jax.jit(steps)


def _compile_tensorflow(loop):
    import tensorflow as tf

    variables = [v.value for v in loop._variables]

    @tf.function
    def step(data, chosen):
        with tf.GradientTape() as tape:
            value = loop._loss(*[tf.gather(array, chosen) for array in data])
        gradients = tape.gradient(value, variables)
        loop.optimizer.apply(gradients, loop._variables)

    def call(data, rows):
        for chosen in rows:
            step(data, tf.convert_to_tensor(chosen))

    return call


def _compile_torch(loop):
    import torch

    def call(data, rows):
        for chosen in rows:
            chosen = torch.as_tensor(chosen)
            weights = [v.value for v in loop._variables]
            value = loop._loss(*[array[chosen] for array in data])
            gradients = torch.autograd.grad(value, weights)
            with torch.no_grad():
                loop.optimizer.apply(gradients, loop._variables)

    return call


_COMPILERS = {
    "jax": _compile_jax,
    "tensorflow": _compile_tensorflow,
    "torch": _compile_torch,
}


def gradients(variables, loss, held=()):
    """Return a function of a batch to the gradients of a loss, as arrays."""
    if BACKEND == "jax":
        import jax

        def value_of(weights, constants, batch):
            mapping = [*zip(variables, weights), *zip(held, constants)]
            with keras.StatelessScope(state_mapping=mapping):
                return loss(*batch)

        compiled = jax.jit(jax.grad(value_of))
        return lambda *batch: [
            np.asarray(g)
            for g in compiled(
                [v.value for v in variables], [v.value for v in held], batch
            )
        ]
    if BACKEND == "tensorflow":
        import tensorflow as tf

        def compute(*batch):
            with tf.GradientTape() as tape:
                value = loss(*batch)
            return [
                np.asarray(g)
                for g in tape.gradient(value, [v.value for v in variables])
            ]

        return compute
    import torch

    return lambda *batch: [
        g.numpy()
        for g in torch.autograd.grad(
            loss(*map(keras.ops.convert_to_tensor, batch)),
            [v.value for v in variables],
        )
    ]
