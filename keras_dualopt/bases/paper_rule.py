"""What the paper's rules share: float32 arithmetic, and the pull inside."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

import keras
from keras import ops

from keras_dualopt.backend import Tensor, engine
from keras_dualopt.pull import Pull, Steps, compute_dtype

# What Keras takes: a number, a schedule of steps, or a function of nothing.
LearningRate: TypeAlias = (
    float
    | keras.optimizers.schedules.LearningRateSchedule
    | Callable[[], Tensor]
)

# OLOR, "Implementation Details", names 1e-4 (ViT, Adam) and 1e-2 (ConvNeXt,
# SGD); DualOpt has defaults of its own for each mode. Keras wants a number.
_UNSET_LEARNING_RATE = 1e-3


def add_like(
    optimizer: keras.optimizers.Optimizer,
    variable: keras.Variable,
    dtype: str,
    name: str,
) -> keras.Variable:
    """Track a variable like a weight, perhaps of another dtype."""
    if dtype == variable.dtype:
        return optimizer.add_variable_from_reference(variable, name=name)
    return optimizer.add_variable(
        shape=variable.shape,
        dtype=dtype,
        # As over its devices, which the other way keeps by itself.
        layout=getattr(variable, "_layout", None),
        name=f"{variable.path.replace('/', '_')}_{name}",
    )


class _Shared(NamedTuple):
    """What the variables of one step share."""

    # By share of the learning rate.
    scalars: dict[float | None, tuple[Tensor, ...]]
    steps: Steps | None


class PaperRule(keras.optimizers.Optimizer, abc.ABC):
    """A Keras optimizer whose step is computed in float32 and cast once.

    Subclasses say what one variable's step is (`pre_weight`) and which scalars
    all variables of a step share (`scalars`). If a `Pull` is attached, it acts
    on θ_pre before the cast, in the same pass over memory.
    """

    # Which fused kernel of torch computes this very rule. It is not inherited:
    # a subclass may have another `pre_weight`.
    kernel: ClassVar[str | None] = None

    def __init__(
        self,
        learning_rate: LearningRate | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            learning_rate=(
                _UNSET_LEARNING_RATE if learning_rate is None else learning_rate
            ),
            name=name or type(self).__name__.lower(),
            **kwargs,
        )
        self.learning_rate_given = learning_rate is not None
        self.pull: Pull | None = None

    def add_state(
        self, variables: Sequence[keras.Variable], name: str
    ) -> list[keras.Variable | None]:
        """Create one slot per variable, in float32 or wider.

        `None` for variables that are overwritten with their gradient (float8
        scales): they never reach `update_step`.
        """
        return [
            None
            if getattr(variable, "overwrite_with_gradient", False)
            else add_like(self, variable, compute_dtype(variable.dtype), name)
            for variable in variables
        ]

    def scalars(self, learning_rate: Tensor) -> tuple[Tensor, ...]:
        """Return what the rule of all variables shares, float32 scalars."""
        return (ops.cast(learning_rate, "float32"),)

    def _shared(self, learning_rate: Tensor, indices: Sequence[int]) -> _Shared:
        if self.pull is None:
            return _Shared({None: self.scalars(learning_rate)}, None)
        steps = self.pull.steps(learning_rate, indices)
        scalars: dict[float | None, tuple[Tensor, ...]] = {}
        for level, rate in steps.rates.items():
            if level.rate not in scalars:
                scalars[level.rate] = self.scalars(rate)
        return _Shared(scalars, steps)

    @abc.abstractmethod
    def pre_weight(
        self,
        gradient: Tensor,
        variable: keras.Variable,
        index: int,
        scalars: tuple[Tensor, ...],
    ) -> Tensor:
        """Advance the state and return θ_pre, in float32 or wider."""

    @abc.abstractmethod
    def state_of(self, index: int) -> tuple[keras.Variable | None, ...]:
        """Return a variable's averages, in the order the kernel takes them."""

    def update_step(
        self,
        gradient: Tensor,
        variable: keras.Variable,
        learning_rate: Tensor | _Shared,
    ) -> None:
        """Move one variable. `learning_rate`: η_t, or what the step shares."""
        index = self._get_variable_index(variable)
        shared = (
            learning_rate
            if isinstance(learning_rate, _Shared)
            else self._shared(learning_rate, [index])
        )
        pull = self.pull
        rate = None if pull is None else pull.levels[index].rate
        dtype = compute_dtype(keras.backend.standardize_dtype(variable.dtype))
        gradient = ops.cast(engine.dense(gradient), dtype)
        value = self.pre_weight(gradient, variable, index, shared.scalars[rate])
        if pull is not None and shared.steps is not None:
            value = pull(index, value, shared.steps)
        self.assign(variable, ops.cast(value, variable.dtype))

    def _backend_update_step(
        self,
        grads: Sequence[Tensor],
        trainable_variables: Sequence[keras.Variable],
        learning_rate: Tensor,
    ) -> None:
        gradients, variables = engine.batched_step(
            self, grads, trainable_variables, learning_rate
        )
        if variables:
            indices = [self._get_variable_index(v) for v in variables]
            shared = self._shared(learning_rate, indices)
            super()._backend_update_step(gradients, variables, shared)
