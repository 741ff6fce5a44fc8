"""TensorFlow: optimizers are built inside of traces, replicas must agree.

Everything that writes a variable in a step goes through
`distribution.extended.update`, as Keras' own optimizers do: it reaches the
copy of the variable on every replica.
"""

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import tensorflow as tf


def eager() -> AbstractContextManager[Any]:
    """Leave the graph that `fit` is tracing when it builds the optimizer."""
    scope: AbstractContextManager[Any] = tf.init_scope()
    return scope


def replicated(strategy: Any) -> AbstractContextManager[Any]:
    """A context in which variables get a copy on every replica."""
    if strategy is None or tf.distribute.get_strategy() is strategy:
        return contextlib.nullcontext()
    scope: AbstractContextManager[Any] = strategy.scope()
    return scope


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
    strategy: Any = None,
) -> None:
    """Copy `variables` into `anchors` in the first step."""
    if tf.executing_eagerly() and int(flag.value) != 0:
        return

    def copy(distribution: Any) -> None:
        def take() -> None:
            for anchor, variable in zip(anchors, variables, strict=True):
                _update(distribution, anchor.value, _assign, variable.value)
            _update(distribution, flag.value, _assign, tf.ones_like(flag.value))

        tf.cond(tf.equal(flag.value, 0), take, lambda: None)

    _across_replicas(strategy, copy)


def _assign(target: Any, value: Any) -> None:
    target.assign(tf.cast(value, target.dtype))


def hidden_scalars(values: Sequence[float], used: Any) -> Sequence[Any]:
    """Return numbers that XLA does not see; 0 where they are not used.

    As on JAX. What comes out of a `case` is no constant to XLA; what comes out
    of a `cond` may be one.
    """
    devices = {
        device.device_type for device in tf.config.list_logical_devices()
    }
    if tf.executing_eagerly() or devices != {"CPU"}:
        return values
    scalars: list[Any] = tf.switch_case(
        tf.cast(used, tf.int32),
        [
            lambda: [tf.constant(0.0)] * len(values),
            lambda: [tf.constant(value, tf.float32) for value in values],
        ],
    )
    return scalars


def pull_each(
    pull: Any,
    variables: Sequence[keras.Variable],
    indices: Sequence[int],
    learning_rate: Any,
    strategy: Any = None,
) -> None:
    """Pull every variable that has a target, on every replica."""

    def run(distribution: Any, ways: Any) -> None:
        for index, variable in zip(indices, variables, strict=True):
            if not pull.strengths[index]:
                continue

            def move(target: Any, ways: Any, index: int = index) -> None:
                _assign(target, pull(index, target, ways))

            _update(distribution, variable.value, move, ways)

    _across_replicas(strategy, run, pull.ways(learning_rate, indices))


def batched_step(
    rule: Any,
    gradients: Sequence[Any],
    variables: Sequence[Any],
    learning_rate: Any,
) -> tuple[Sequence[Any], Sequence[Any]]:
    """XLA fuses the plain path: there is nothing to batch."""
    return gradients, variables


def uncompiled(function: Any) -> Any:
    """XLA compiles whatever the whole step is made of."""
    return function


def forget_compiled(model: Any) -> None:
    """Make the next step compile anew, also in the middle of `fit`."""
    if getattr(model, "train_function", None) is not None:
        model.make_train_function(force=True)


def keep_state() -> None:
    """Nothing is lost in an error: the variables keep their values."""
