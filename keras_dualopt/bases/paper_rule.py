"""What the paper's rules share: float32 arithmetic, and the pull inside."""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import keras
from keras import ops

from keras_dualopt.backend import engine
from keras_dualopt.pull import Pull, Steps, compute_dtype

# OLOR, "Implementation Details", names 1e-4 (ViT, Adam) and 1e-2 (ConvNeXt,
# SGD); DualOpt has defaults of its own for each mode. Keras wants a number.
_UNSET_LEARNING_RATE = 1e-3


class _Shared(NamedTuple):
    """What the variables of one step share.

    Args:
        scalars: `PaperRule.scalars` by share of the learning rate.
        steps: What the pull does in this step.
    """

    scalars: dict[Any, tuple[Any, ...]]
    steps: Steps | None


class PaperRule(keras.optimizers.Optimizer):
    """A Keras optimizer whose step is computed in float32 and cast once.

    Subclasses say what one variable's step is (`pre_weight`) and which scalars
    all variables of a step share (`scalars`). If a `Pull` is attached, it acts
    on θ_pre before the cast, in the same pass over memory.
    """

    # Which fused kernel of torch computes this very rule. It is not inherited:
    # a subclass may have another `pre_weight`.
    kernel: ClassVar[str | None] = None

    def __init__(
        self, learning_rate: Any = None, name: str | None = None, **kwargs: Any
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
        slots: list[keras.Variable | None] = []
        for variable in variables:
            if getattr(variable, "overwrite_with_gradient", False):
                slots.append(None)
            elif variable.dtype == compute_dtype(variable.dtype):
                slots.append(
                    self.add_variable_from_reference(variable, name=name)
                )
            else:
                # The reference's dtype is too narrow to add up averages in;
                # its sharding layout is kept.
                slots.append(
                    self.add_variable(
                        shape=variable.shape,
                        dtype=compute_dtype(variable.dtype),
                        layout=getattr(variable, "_layout", None),
                        name=f"{variable.path.replace('/', '_')}_{name}",
                    )
                )
        return slots

    def scalars(self, learning_rate: Any) -> tuple[Any, ...]:
        """Return what the rule of all variables shares, float32 scalars."""
        return (ops.cast(learning_rate, "float32"),)

    def _shared(self, learning_rate: Any, indices: Sequence[int]) -> "_Shared":
        if self.pull is None:
            return _Shared({None: self.scalars(learning_rate)}, None)
        steps = self.pull.steps(learning_rate, indices)
        scalars: dict[Any, tuple[Any, ...]] = {}
        for level, rate in steps.rates.items():
            if level.rate not in scalars:
                scalars[level.rate] = self.scalars(rate)
        return _Shared(scalars, steps)

    def pre_weight(
        self, gradient: Any, variable: Any, index: int, scalars: tuple[Any, ...]
    ) -> Any:
        """Advance the state and return θ_pre, in float32 or wider."""
        raise NotImplementedError

    def state_of(self, index: int) -> tuple[keras.Variable | None, ...]:
        """Return a variable's averages, in the order the kernel takes them."""
        raise NotImplementedError

    def update_step(
        self, gradient: Any, variable: Any, learning_rate: Any
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
        self, grads: Any, trainable_variables: Any, learning_rate: Any
    ) -> None:
        gradients, variables = engine.batched_step(
            self, grads, trainable_variables, learning_rate
        )
        if variables:
            indices = [self._get_variable_index(v) for v in variables]
            shared = self._shared(learning_rate, indices)
            super()._backend_update_step(gradients, variables, shared)
