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
        layout=engine.layout(variable),  # The other way keeps it by itself.
        name=f"{variable.path.replace('/', '_')}_{name}",
    )


class _Shared(NamedTuple):
    """What the variables of one step share."""

    # By share of the learning rate.
    scalars: dict[float, Sequence[Tensor]]
    steps: Steps | None


class PaperRule(keras.optimizers.Optimizer, abc.ABC):
    """A Keras optimizer whose step is computed in float32 and cast once.

    Subclasses say how far one variable moves (`move`) and which scalars all
    variables of a step share (`scalars`). If a `Pull` is attached, it acts on
    θ_pre before the cast, in the same pass over memory.
    """

    # Which fused kernel of torch computes this very rule. It is not inherited:
    # a subclass may have another `move`.
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

    def index_of(self, variable: keras.Variable) -> int:
        """Return which of the optimizer's variables it is."""
        index: int = self._get_variable_index(variable)
        return index

    @abc.abstractmethod
    def state_of(self, index: int) -> Sequence[keras.Variable]:
        """Return a variable's averages, in the order the kernel takes them."""

    def scalars(self, learning_rate: Tensor) -> Sequence[Tensor]:
        """Return what the rule of all variables shares, float32 scalars."""
        return [ops.cast(learning_rate, "float32")]

    @abc.abstractmethod
    def move(
        self, g: Tensor, state: Sequence[Tensor], scalars: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return η_t u_t and the new averages, for a gradient and the old."""

    def _shared(self, learning_rate: Tensor, indices: Sequence[int]) -> _Shared:
        if self.pull is None:
            return _Shared({1.0: self.scalars(learning_rate)}, None)
        steps = self.pull.steps(learning_rate, indices)
        rates = {level.rate: rate for level, rate in steps.rates.items()}
        return _Shared({s: self.scalars(r) for s, r in rates.items()}, steps)

    def update_step(
        self,
        gradient: Tensor,
        variable: keras.Variable,
        learning_rate: Tensor | _Shared,
    ) -> None:
        """Move one variable. `learning_rate`: η_t, or what the step shares."""
        index = self.index_of(variable)
        shared = (
            learning_rate
            if isinstance(learning_rate, _Shared)
            else self._shared(learning_rate, [index])
        )
        dtype = compute_dtype(keras.backend.standardize_dtype(variable.dtype))
        share = 1.0 if self.pull is None else self.pull.levels[index].rate
        slots = self.state_of(index)
        step, *averages = self.move(
            ops.cast(engine.dense(gradient), dtype),
            [ops.cast(slot, dtype) for slot in slots],
            [ops.cast(scalar, dtype) for scalar in shared.scalars[share]],
        )
        for slot, average in zip(slots, averages, strict=True):
            self.assign(slot, average)
        value = ops.cast(variable, dtype) - step
        if self.pull is not None and shared.steps is not None:
            value = self.pull(index, value, shared.steps)
        self.assign(variable, ops.cast(value, variable.dtype))

    def _backend_update_step(
        self,
        grads: Sequence[Tensor],
        trainable_variables: Sequence[keras.Variable],
        learning_rate: Tensor,
    ) -> None:
        left = engine.batched_step(
            self, grads, trainable_variables, learning_rate
        )
        if left:
            gradients, variables = zip(*left, strict=True)
            indices = [self.index_of(variable) for variable in variables]
            shared = self._shared(learning_rate, indices)
            super()._backend_update_step(gradients, variables, shared)
