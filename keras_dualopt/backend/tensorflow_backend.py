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
                distribution.extended.update(
                    anchor.value,
                    lambda target, source: target.assign(
                        tf.cast(source, target.dtype)
                    ),
                    args=(variable.value,),
                    group=False,
                )
            distribution.extended.update(
                flag.value,
                lambda target: target.assign(tf.ones_like(target)),
                group=False,
            )

        tf.cond(tf.equal(flag.value, 0), take, lambda: None)

    _across_replicas(strategy, copy)


def pull_each(
    pull: Any,
    variables: Sequence[keras.Variable],
    indices: Sequence[int],
    learning_rate: Any,
    strategy: Any = None,
) -> None:
    """Pull every variable that has a target, on every replica."""

    def run(distribution: Any, rate: Any) -> None:
        for index, variable in zip(indices, variables, strict=True):
            if not pull.strengths[index]:
                continue

            def move(target: Any, rate: Any, index: int = index) -> None:
                value = pull(index, target, pull.share(rate))
                target.assign(tf.cast(value, target.dtype))

            distribution.extended.update(
                variable.value, move, args=(rate,), group=False
            )

    _across_replicas(strategy, run, learning_rate)


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
