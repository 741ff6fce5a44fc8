"""TensorFlow: optimizers are built inside of traces, replicas must agree.

Everything that writes a variable in a step goes through
`distribution.extended.update`, as Keras' own optimizers do: it reaches the
copy of the variable on every replica.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy.typing as npt
import tensorflow as tf

from keras_dualopt.backend import defaults
from keras_dualopt.backend.defaults import (
    Array,
    Moved,
    Pull,
    Strategy,
    Tensor,
)


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


def unwatched(variable: keras.Variable) -> Tensor:
    """Return a variable's value, which no trace that runs takes note of.

    A `tf.function` notes what is read while it is traced, in `init_scope` too,
    and may not run any more once that is gone, as an earlier optimizer's
    anchors are when a new one has taken them over.
    """
    value = variable.value
    if isinstance(value, tf.distribute.DistributedValues) or not isinstance(
        value, tf.Variable
    ):
        return value
    return tf.raw_ops.ReadVariableOp(resource=value.handle, dtype=value.dtype)


def replicated(strategy: Strategy) -> AbstractContextManager[object]:
    """A context in which variables get a copy on every replica."""
    if strategy is None or tf.distribute.get_strategy() is strategy:
        return contextlib.nullcontext()
    scope: AbstractContextManager[object] = strategy.scope()
    return scope


def check_engine(
    model: keras.Model | None,
    variables: Sequence[keras.Variable],
    strategy: Strategy,
    accumulates: bool,
) -> None:
    """Refuse a strategy on which a step would be wrong."""
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


def on_host(value: Tensor) -> Array | None:
    """Return a variable's own value, also while a step is traced."""
    with tf.init_scope():
        if not tf.executing_eagerly():
            return None
        return defaults.on_host(value)


def copy_value(
    target: keras.Variable, source: keras.Variable | Tensor | npt.ArrayLike
) -> None:
    """Write a copy at once, also while a graph is traced."""
    with tf.init_scope():
        defaults.copy_value(target, source)


def dense(gradient: Tensor) -> Tensor:
    """Return the `IndexedSlices` of an embedding as a dense tensor."""
    if isinstance(gradient, tf.IndexedSlices):
        return tf.math.unsorted_segment_sum(
            gradient.values, gradient.indices, gradient.dense_shape[0]
        )
    return gradient


def _update(
    distribution: Strategy,
    target: Tensor,
    function: Callable[..., None],
    *arguments: Any,
) -> None:
    """Call a function for a variable's copy on every replica."""
    if not tf.distribute.has_strategy():
        function(target, *arguments)  # The same, and quicker to trace.
        return
    distribution.extended.update(target, function, args=arguments, group=False)


def _across_replicas(
    strategy: Strategy, function: Callable[..., None], *arguments: Any
) -> None:
    tf.__internal__.distribute.interim.maybe_merge_call(
        function, strategy, *arguments
    )


def _assign(target: Tensor, value: Tensor) -> None:
    target.assign(tf.cast(value, target.dtype))


def capture(
    flag: keras.Variable,
    targets: Sequence[keras.Variable],
    values: Callable[[], Sequence[Tensor]],
    strategy: Strategy,
) -> None:
    """Write values into the targets in the first step."""
    if tf.executing_eagerly() and int(flag.value) != 0:
        return

    def copy(distribution: Strategy) -> None:
        def take() -> None:
            for target, value in zip(targets, values(), strict=True):
                _update(distribution, target.value, _assign, value)
            _update(distribution, flag.value, _assign, tf.ones_like(flag.value))

        tf.cond(tf.equal(flag.value, 0), take, lambda: None)

    _across_replicas(strategy, copy)


def hidden_scalars(values: Sequence[Tensor], used: Tensor) -> Sequence[Tensor]:
    """Return numbers that XLA does not see; 0 where they are not used.

    As on JAX. What comes out of a `case` is no constant to XLA; what comes out
    of a `cond` may be one.
    """
    devices = {
        device.device_type for device in tf.config.list_logical_devices()
    }
    if not values or tf.executing_eagerly() or devices != {"CPU"}:
        return values
    scalars: list[Tensor] = tf.switch_case(
        tf.cast(used, tf.int32),
        [
            lambda: [tf.constant(0.0)] * len(values),
            lambda: [tf.cast(value, tf.float32) for value in values],
        ],
    )
    return scalars


def pull_each(
    pull: Pull,
    moved: Sequence[Moved],
    learning_rate: Tensor,
    strategy: Strategy,
) -> None:
    """Shorten and pull what is to be, on every replica."""

    def run(
        distribution: Strategy, steps: Any, before: Sequence[Tensor]
    ) -> None:
        for (index, variable, _), past in zip(moved, before, strict=True):

            def move(
                target: Tensor, steps: Any, past: Tensor, index: int = index
            ) -> None:
                _assign(target, pull(index, target, steps, past))

            _update(distribution, variable.value, move, steps, past)

    steps = pull.steps(learning_rate, [index for index, *_ in moved])
    _across_replicas(strategy, run, steps, [before for *_, before in moved])
