"""TensorFlow: optimizers are built inside of traces, replicas must agree.

Everything that writes a variable in a step goes through
`distribution.extended.update`, as Keras' own optimizers do: it reaches the
copy of the variable on every replica.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import tensorflow as tf

from keras_dualopt.backend.defaults import batched_step as batched_step
from keras_dualopt.backend.defaults import forget_compiled as forget_compiled
from keras_dualopt.backend.defaults import starting_model as starting_model
from keras_dualopt.backend.defaults import uncompiled as uncompiled


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Leave the graph that `fit` is tracing when it builds the optimizer.

    The variables are none of its own: a `tf.function` that has made some is
    traced twice, and if it then fails in its first trace, it does nothing when
    it is called again, without a word.
    """
    with tf.init_scope(), tf.variable_creator_scope(_not_lifted):
        yield


def _not_lifted(next_creator: Any, **arguments: Any) -> Any:
    arguments["experimental_enable_variable_lifting"] = False
    return next_creator(**arguments)


def replicated(strategy: Any) -> AbstractContextManager[Any]:
    """A context in which variables get a copy on every replica."""
    if strategy is None or tf.distribute.get_strategy() is strategy:
        return contextlib.nullcontext()
    scope: AbstractContextManager[Any] = strategy.scope()
    return scope


def check_engine(
    model: keras.Model | None,
    variables: Sequence[keras.Variable],
    strategy: Any,
    accumulates: bool,
) -> None:
    """Refuse a strategy on which a step would be wrong.

    Raises:
        ValueError: For parameter servers, and for accumulation on mirrors.
    """
    servers = (
        tf.distribute.ParameterServerStrategy,
        tf.distribute.experimental.ParameterServerStrategy,
    )
    if isinstance(strategy, servers):
        raise ValueError(
            "DualOpt does not train under `tf.distribute."
            "ParameterServerStrategy`: its workers step one by one on weights "
            "that others move meanwhile, so that none of them sees θ₀. Use "
            "`MirroredStrategy` or `MultiWorkerMirroredStrategy`."
        )
    mirrors = (
        tf.distribute.MirroredStrategy,
        tf.distribute.MultiWorkerMirroredStrategy,
    )
    if accumulates and isinstance(strategy, mirrors):
        raise ValueError(
            "`gradient_accumulation_steps` must be None under "
            f"`{type(strategy).__name__}`, where no Keras optimizer can "
            "accumulate: replicas cannot meet inside of a `tf.cond`. Add up "
            "the gradients of several batches in a `strategy.run` step of "
            "your own, and apply them once."
        )


def concrete(variable: keras.Variable) -> Any:
    """Return a variable's value on the host, also while a step is traced."""
    with tf.init_scope():
        if not tf.executing_eagerly():
            return None
        return variable.value.numpy()


def copy_value(target: keras.Variable, source: Any) -> None:
    """Write a value at once; `assign` copies on TensorFlow."""
    value = source.value if isinstance(source, keras.Variable) else source
    with tf.init_scope():
        target.assign(tf.cast(value, target.dtype))


def dense(gradient: Any) -> Any:
    """Return the `IndexedSlices` of an embedding as a dense tensor."""
    if isinstance(gradient, tf.IndexedSlices):
        return tf.math.unsorted_segment_sum(
            gradient.values, gradient.indices, gradient.dense_shape[0]
        )
    return gradient


def _update(
    distribution: Any, target: Any, function: Any, argument: Any
) -> None:
    """Call a function for a variable's copy on every replica."""
    if not tf.distribute.has_strategy():
        function(target, argument)  # The same, and quicker to trace.
        return
    distribution.extended.update(
        target, function, args=(argument,), group=False
    )


def _across_replicas(strategy: Any, function: Any, *arguments: Any) -> None:
    tf.__internal__.distribute.interim.maybe_merge_call(
        function, strategy, *arguments
    )


def capture(
    flag: keras.Variable,
    anchors: Sequence[keras.Variable],
    variables: Sequence[keras.Variable],
    units: keras.Variable | None = None,
    measure: Any = None,
    strategy: Any = None,
) -> None:
    """Copy `variables` into `anchors` in the first step."""
    if tf.executing_eagerly() and int(flag.value) != 0:
        return

    def copy(distribution: Any) -> None:
        def take() -> None:
            for anchor, variable in zip(anchors, variables, strict=True):
                _update(distribution, anchor.value, _assign, variable.value)
            if units is not None:
                sizes = measure([variable.value for variable in variables])
                _update(distribution, units.value, _assign, sizes)
            _update(distribution, flag.value, _assign, tf.ones_like(flag.value))

        tf.cond(tf.equal(flag.value, 0), take, lambda: None)

    _across_replicas(strategy, copy)


def _assign(target: Any, value: Any) -> None:
    target.assign(tf.cast(value, target.dtype))


def hidden_scalars(values: Any, used: Any) -> Sequence[Any]:
    """Return numbers that XLA does not see; 0 where they are not used.

    As on JAX. What comes out of a `case` is no constant to XLA; what comes out
    of a `cond` may be one.
    """
    if isinstance(values, keras.Variable):
        values = [*tf.unstack(values.value, num=values.shape[0])]
    devices = {
        device.device_type for device in tf.config.list_logical_devices()
    }
    if not values or tf.executing_eagerly() or devices != {"CPU"}:
        return list(values)
    scalars: list[Any] = tf.switch_case(
        tf.cast(used, tf.int32),
        [
            lambda: [tf.constant(0.0)] * len(values),
            lambda: [tf.cast(value, tf.float32) for value in values],
        ],
    )
    return scalars


def before_step(
    pull: Any, variables: Sequence[keras.Variable], indices: Sequence[int]
) -> list[Any]:
    """Return θ_{t−1} of the variables whose step will be shortened."""
    return [
        tf.identity(variable.value) if pull.slows[index] else None
        for index, variable in zip(indices, variables, strict=True)
    ]


def pull_each(
    pull: Any,
    variables: Sequence[keras.Variable],
    indices: Sequence[int],
    learning_rate: Any,
    before: Sequence[Any],
    strategy: Any = None,
) -> None:
    """Shorten and pull what is to be, on every replica."""

    def run(distribution: Any, steps: Any, before: Any) -> None:
        for index, variable, past in zip(
            indices, variables, before, strict=True
        ):
            if not (pull.pulls[index] or pull.slows[index]):
                continue

            def move(target: Any, given: Any, index: int = index) -> None:
                steps, past = given
                _assign(target, pull(index, target, steps, past))

            _update(distribution, variable.value, move, (steps, past))

    steps = pull.steps(learning_rate, indices)
    _across_replicas(strategy, run, steps, list(before))
