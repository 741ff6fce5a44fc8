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

from keras_dualopt.backend.defaults import Array, Pull, Strategy, Tensor


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


def concrete(variable: keras.Variable) -> Array | None:
    """Return a variable's value on the host, also while a step is traced."""
    with tf.init_scope():
        if not tf.executing_eagerly():
            return None
        value: Array = variable.value.numpy()
        return value


def copy_value(
    target: keras.Variable, source: keras.Variable | Tensor | npt.ArrayLike
) -> None:
    """Write a value at once; `assign` copies on TensorFlow."""
    value = source.value if isinstance(source, keras.Variable) else source
    with tf.init_scope():
        target.assign(tf.cast(value, target.dtype))


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
    function: Callable[[Tensor, Tensor], None],
    argument: Tensor | tuple[Tensor, ...],
) -> None:
    """Call a function for a variable's copy on every replica."""
    if not tf.distribute.has_strategy():
        function(target, argument)  # The same, and quicker to trace.
        return
    distribution.extended.update(
        target, function, args=(argument,), group=False
    )


def _across_replicas(
    strategy: Strategy, function: Callable[..., None], *arguments: Any
) -> None:
    tf.__internal__.distribute.interim.maybe_merge_call(
        function, strategy, *arguments
    )


def capture(
    flag: keras.Variable,
    anchors: Sequence[keras.Variable],
    variables: Sequence[keras.Variable],
    units: keras.Variable | None,
    measure: Callable[[Sequence[Tensor]], Tensor],
    strategy: Strategy,
) -> None:
    """Copy `variables` into `anchors` in the first step."""
    if tf.executing_eagerly() and int(flag.value) != 0:
        return

    def copy(distribution: Strategy) -> None:
        def take() -> None:
            for anchor, variable in zip(anchors, variables, strict=True):
                _update(distribution, anchor.value, _assign, variable.value)
            if units is not None:
                sizes = measure([variable.value for variable in variables])
                _update(distribution, units.value, _assign, sizes)
            _update(distribution, flag.value, _assign, tf.ones_like(flag.value))

        tf.cond(tf.equal(flag.value, 0), take, lambda: None)

    _across_replicas(strategy, copy)


def _assign(target: Tensor, value: Tensor) -> None:
    target.assign(tf.cast(value, target.dtype))


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


def kept(variable: keras.Variable) -> Tensor:
    """Return the value of now, which the step will write over."""
    return tf.identity(variable.value)


def pull_each(
    pull: Pull,
    variables: Sequence[keras.Variable],
    indices: Sequence[int],
    learning_rate: Tensor,
    before: Sequence[Tensor],
    strategy: Strategy,
) -> None:
    """Shorten and pull what is to be, on every replica."""

    def run(
        distribution: Strategy, steps: Any, before: Sequence[Tensor]
    ) -> None:
        for index, variable, past in zip(
            indices, variables, before, strict=True
        ):
            if not (pull.pulls[index] or pull.slows[index]):
                continue

            def move(target: Tensor, given: Any, index: int = index) -> None:
                steps, past = given
                _assign(target, pull(index, target, steps, past))

            _update(distribution, variable.value, move, (steps, past))

    steps = pull.steps(learning_rate, indices)
    _across_replicas(strategy, run, steps, list(before))
