"""An optimizer that carries out another one's step, and says when.

The base proposes θ_pre with its own update; everything that concerns the whole
step (learning rate, step counter, clipping, averages, accumulation) is the
wrapping optimizer's. What Keras offers for that is partly private. This is the
one place that touches those names; they were tested on Keras 3.13.2 to 3.15.1.

What each is for, and what breaks if it changes:

- `Optimizer._iterations`, `_learning_rate`: shared with the base, so that both
  see one clock. The base would count and schedule for itself.
- `_backend_update_step`: the base's whole step; `update_step` alone skips what
  it does once a step (Nadam's product, TensorFlow's all-reduce, torch's batched
  kernels). Trajectories would differ.
- `_apply_weight_decay`: the base's own decoupled decay, which would act twice
  or never.
- `_track_variable`, `_untrack_variable`: the base's state is saved with ours,
  once. It would not be saved.
- `_distribution_strategy` (TensorFlow): the base may have been made outside of
  the strategy's scope. Replicas would diverge.
- `_trainable_variables`, `_get_variable_index`, `_var_key`,
  `_trainable_variables_indices`: which weight is which. Errors at once.
- `_check_variables_are_known`: refuses other weights before a step. Keras' own
  text would come instead of ours.
- `_model_variables_moving_average`: unshares buffers after `fit` on JAX, where
  a second `fit` would fail.
- `Model.jax_state_sync`: brings variables up to date inside of JAX's `fit`. Old
  values would be read.
- `JAXTrainer._get_jax_state`, `_purge_model_variables`: where JAX's `fit` is
  about to empty the variables. What it then refuses would lose the weights.
- `Variable._value`: what a variable holds, whatever stands for it while a step
  is traced. Checks of the first step would be skipped.
- `_exclude_from_weight_decay_pattern`, `_exclude_from_weight_decay`: the base's
  exclusions, which would be lost on reload.

- `Model._initial_epoch`: where `fit` begins; Keras' BackupAndRestore sets it,
  too. A resumed run would begin at the first epoch.

Elsewhere: `_backend_update_step`, `_get_variable_index` (bases/paper_rule, for
the same); layers and graphs (depth/keras_hooks).
"""

import abc
import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_dualopt.backend import Array, Strategy, Tensor, engine
from keras_dualopt.bases import SGD, PaperRule, accepted
from keras_dualopt.bases.paper_rule import LearningRate, add_like
from keras_dualopt.caller import frames, stacklevel
from keras_dualopt.depth import training_model
from keras_dualopt.pull import Pull

# A weak reference to a model, or to nothing.
_Reference: TypeAlias = Callable[[], keras.Model | None]


def _nothing() -> None:
    """Refer to no model."""


class WrappingOptimizer(keras.optimizers.Optimizer, abc.ABC):
    """Takes the step of another optimizer, and pulls in the same step.

    A subclass says what is to happen around it: `decide`, `add_state` and
    `resume` in `build`, `check_start` before `fit` begins, `before_step` and
    `pull` before and after each base step.
    """

    def __init__(
        self,
        base: keras.optimizers.Optimizer,
        learning_rate: LearningRate,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, **kwargs)
        # Keras' saver walks every attribute of an optimizer, and would save a
        # base kept as one a second time; such an object it does not enter.
        self._holder = SimpleNamespace(base=base)
        self._share_clock()
        # The model whose `fit` runs, and the one whose weights are trained.
        self._trainer_reference: _Reference = _nothing
        self._model_reference: _Reference = _nothing
        # The one whose step was compiled for this optimizer (JAX).
        self._started: _Reference = _nothing
        # One that trained exactly these variables when this was built.
        self._trained_by: _Reference = _nothing
        self._looked = False
        self._refused = False

    @abc.abstractmethod
    def decide(self, variables: Sequence[keras.Variable]) -> None:
        """Decide what concerns each variable, before anything is made."""

    @abc.abstractmethod
    def add_state(self, variables: Sequence[keras.Variable]) -> None:
        """Create state beside the base's, which comes after it."""

    @abc.abstractmethod
    def resume(self) -> None:
        """Do what was asked for before there were variables."""

    @abc.abstractmethod
    def check_start(self) -> None:
        """Refuse to train, before a step moves anything."""

    @abc.abstractmethod
    def before_step(self) -> None:
        """Do what comes before the base's step, inside of the step."""

    @property
    @abc.abstractmethod
    def pull(self) -> Pull:
        """What follows the base's step."""

    # The clock.

    def set_learning_rate(self, learning_rate: LearningRate) -> None:
        """Assign η_t, for the base as well."""
        keras.optimizers.Optimizer.learning_rate.fset(self, learning_rate)
        self._share_clock()

    @property
    def clock(self) -> dict[str, keras.Variable | LearningRate]:
        """The step counter and the learning rate, as they are kept.

        The counter counts micro-steps; the rate may be a schedule.
        """
        return {
            "iterations": self._iterations,
            "learning_rate": self._learning_rate,
        }

    def learning_rate_is_variable(self) -> bool:
        """Tell a number that can be assigned from a schedule or a callable."""
        return isinstance(self._learning_rate, keras.Variable)

    def _share_clock(self) -> None:
        base = self._holder.base
        for name in ("_iterations", "_learning_rate"):
            old, new = getattr(base, name), getattr(self, name)
            if old is new:
                continue
            if isinstance(old, keras.Variable):
                base._untrack_variable(old)
            setattr(base, name, new)
        if hasattr(self, "_distribution_strategy"):
            base._distribution_strategy = self._distribution_strategy

    # Building.

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Decide each variable's depth, strength and anchor; make the state.

        Raises:
            ValueError: If the model cannot be found, or depths, patterns or a
                loaded state do not fit it.
        """
        if self.built:
            return
        with self._retraced_if_refused(), engine.eager():
            base = self._holder.base
            if base.built:
                raise ValueError(
                    f"The `base`, {type(base).__name__}, was built meanwhile "
                    "by another optimizer or model. Make a new instance for "
                    "each DualOpt."
                )
            self._refused = True
            self.decide(variables)
            super().build([*variables])
            self.add_state(variables)
            self._share_clock()
            base.build([*variables])
            # After the build: the base must not make accumulators of its own,
            # but its `iterations` must count real updates as ours does.
            base.gradient_accumulation_steps = self.gradient_accumulation_steps
            self.track_base()
            for model in self.models():
                if self._trains_exactly(model):
                    self._trained_by = weakref.ref(model)
            self._refused = False
            self.resume()

    def track_base(self) -> None:
        """Track the base's state, behind everything else.

        The order is part of the file's format: LossScaleOptimizer saves
        variables by number.
        """
        shared = {id(variable) for variable in self.clock.values()}
        state = {id(v): v for v in _state_of(self._holder.base)}
        for key, variable in state.items():
            if key not in shared:
                self._untrack_variable(variable)
                self._track_variable(variable)

    def add_like(
        self, variable: keras.Variable, dtype: str | None
    ) -> keras.Variable:
        """Track a new variable like a weight, perhaps of another dtype."""
        with engine.replicated(self.strategy):
            return add_like(self, variable, dtype or variable.dtype, "anchor")

    def forget(self, variable: keras.Variable) -> None:
        """Track a variable no more."""
        self._untrack_variable(variable)

    @property
    def strategy(self) -> Strategy:
        """TensorFlow's distribution strategy; `None` on other backends."""
        return getattr(self, "_distribution_strategy", None)

    # The step.

    @engine.uncompiled
    def apply(
        self,
        grads: Sequence[Tensor],
        trainable_variables: Sequence[keras.Variable] | None = None,
    ) -> None:
        """Move and pull the weights (Keras' `Optimizer.apply`)."""
        with self._retraced_if_refused():
            super().apply(grads, trainable_variables)

    def _backend_update_step(
        self,
        grads: Sequence[Tensor],
        trainable_variables: Sequence[keras.Variable],
        learning_rate: Tensor,
    ) -> None:
        if self._refused:
            raise ValueError(
                "The optimizer's `build` was refused. Make a new one."
            )
        if self._trainer_reference() is None and not self._looked:
            self._looked = True
            self.note_trainer()
        self.check_start()
        self.before_step()
        base = self._holder.base
        if isinstance(base, PaperRule) and base.pull is not None:
            # It pulls within its own step.
            base._backend_update_step(grads, trainable_variables, learning_rate)
            return
        pull, moved = self.pull, []
        for variable in trainable_variables:
            index = self._get_variable_index(variable)
            if pull.slows[index]:
                moved.append((index, variable, keras.ops.copy(variable)))
            elif pull.pulls[index]:
                moved.append((index, variable, None))
        base._apply_weight_decay(trainable_variables)
        base._backend_update_step(grads, trainable_variables, learning_rate)
        engine.pull_each(pull, moved, learning_rate, self.strategy)

    def _apply_weight_decay(self, variables: Sequence[keras.Variable]) -> None:
        """Leave decay to the base's own step and to the pull after it."""

    def stateless_apply(
        self,
        optimizer_variables: Sequence[Tensor],
        grads: Sequence[Tensor],
        trainable_variables: Sequence[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the new variables and state (JAX)."""
        if self.built:
            self.note_trainer()
            self._check_trained(training_model())
            count = len(trainable_variables)
            if count != len(self._trainable_variables):
                raise ValueError(self._changed(f"{count} variables"))
        new: tuple[list[Tensor], list[Tensor]] = super().stateless_apply(
            optimizer_variables, grads, trainable_variables
        )
        return new

    def finalize_variable_values(
        self, var_list: Sequence[keras.Variable]
    ) -> None:
        """At the end of `fit`, put the averaged weights into the model."""
        super().finalize_variable_values(var_list)
        if self.use_ema:
            # On JAX Keras' `assign` makes weight and average one buffer, which
            # the next `fit` would donate twice.
            for average in self._model_variables_moving_average:
                if average is not None:
                    engine.copy_value(average, average)

    @contextlib.contextmanager
    def _retraced_if_refused(self) -> Iterator[None]:
        """Let TensorFlow trace a step anew that has failed in its trace.

        Where a `LossScaleOptimizer` had made its variables in it, the step
        would do nothing when it is called again, without a word.
        """
        try:
            yield
        except Exception:
            self.note_trainer()
            self.retrace()
            raise

    # Which weights these are.

    @property
    def variables(self) -> list[keras.Variable]:
        """The optimizer's state.

        `fit` on JAX reads it just before it empties every variable: the last
        moment at which training can be refused and nothing be lost.
        """
        model = _starting_model()
        if model is not None and self.built and self._is_optimizer_of(model):
            self._check_trained(model)
            self.check_start()
            if self._started() is not model:
                # What was compiled before is another optimizer's step.
                self._started = weakref.ref(model)
                engine.forget_compiled(model)
        state: list[keras.Variable] = super().variables
        return state

    def _check_variables_are_known(
        self, variables: Sequence[keras.Variable]
    ) -> None:
        if len(variables) < len(self._trainable_variables):
            # A step of one's own may train a part; else a layer was frozen
            # after `compile`.
            model = training_model()
            if (
                model is not None
                and self._is_optimizer_of(model)
                and not self.trains(model)
            ):
                raise ValueError(self._changed(f"{len(variables)} variables"))
        for variable in variables:
            if self._var_key(variable) not in self._trainable_variables_indices:
                name = getattr(variable, "path", variable.name)
                raise ValueError(self._changed(repr(name)))

    def _check_trained(self, model: keras.Model | None) -> None:
        """Refuse a model that trains other weights than these."""
        if model is None or not self._is_optimizer_of(model):
            return
        known = {id(variable) for variable in model.variables}
        for variable in self._trainable_variables:
            if id(variable) not in known:
                raise ValueError(
                    "One optimizer holds the anchors of one model. Received: "
                    f"{model.name!r}, which has no {variable.path!r}. Make a "
                    "new DualOpt for this model."
                )
        if not self.trains(model):
            raise ValueError(self._changed("another choice of its weights"))

    def trains(self, model: keras.Model) -> bool:
        """Tell whether a model trains these variables, as it did at first.

        They are all that it trains, or a part, where others have the rest: its
        `train_step`, or the other optimizers of several.
        """
        if self._trains_exactly(model):
            return True
        own_step = type(model).train_step is not keras.Model.train_step
        return (
            hasattr(unwrapped(model.optimizer), "optimizers")
            or (own_step and self._trained_by() is not model)
        ) and {*map(id, self._trainable_variables)}.issubset(
            map(id, model.trainable_variables)
        )

    def _trains_exactly(self, model: keras.Model) -> bool:
        return [*map(id, model.trainable_variables)] == [
            *map(id, self._trainable_variables)
        ]

    def _changed(self, received: str) -> str:
        return (
            f"The {len(self._trainable_variables)} variables this optimizer "
            f"was built on are not those to be trained. Received: {received}. "
            "Layers were frozen, unfrozen, given LoRA or quantized since, or "
            "it is another model: compile again with a new DualOpt, and keep "
            "the anchors with `new.anchor_at(old)`. No weight was changed."
        )

    def note_trainer(self) -> None:
        """Remember the model whose `fit` is running."""
        model = training_model()
        if model is not None and self._is_optimizer_of(model):
            self._trainer_reference = weakref.ref(model)

    def _is_optimizer_of(self, model: keras.Model) -> bool:
        inner = unwrapped(getattr(model, "optimizer", None))
        return any(
            unwrapped(part) is self
            for part in getattr(inner, "optimizers", [inner])
        )

    def models(self) -> list[keras.Model]:
        """Return the model whose weights are trained, and the one in `fit`."""
        found = [self._model_reference(), self._trainer_reference()]
        models = [model for model in found if model is not None]
        return list({id(model): model for model in models}.values())

    def settle(self) -> None:
        """Bring the variables up to date inside of JAX's `fit`."""
        for model in self.models():
            settle(model)

    def retrace(self) -> None:
        """Make compiled steps see other variables or settings."""
        for model in self.models():
            engine.forget_compiled(model)


def settle(model: keras.Model) -> None:
    """Bring a model's variables up to date inside of JAX's `fit`."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


def _starting_model() -> keras.Model | None:
    """Return the model whose `fit` is about to take the weights out of it.

    Keras' `fit` on JAX empties the variables before a step, to have their
    memory: an error afterwards may lose every weight, and a step compiled for
    other variables of the same shapes would run on them. What it reads just
    before is `optimizer.variables`, perhaps through a wrapper's property.
    """
    for frame, _ in zip(frames(), range(6)):
        if frame.f_code.co_name == "_purge_model_variables":
            return None  # Called by the same, for the second time.
        if frame.f_code.co_name == "_get_jax_state":
            model: keras.Model = frame.f_locals["self"]
            return model
    return None


def begin_at(model: keras.Model, epoch: int | None) -> None:
    """Let `fit` begin at an epoch; `None`: at the one it is told."""
    model._initial_epoch = epoch


def concrete(variable: keras.Variable) -> Array | None:
    """Return a variable's value on the host, also while a step is traced.

    `None` where it is not at hand.
    """
    array: Array | None = engine.on_host(variable._value)
    return array


def unwrapped(optimizer: Any) -> Any:
    """Return the optimizer inside of a `LossScaleOptimizer`; else itself."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer.inner_optimizer
    return optimizer


def own_learning_rate(
    base: keras.optimizers.Optimizer, mode: str
) -> LearningRate:
    """Return the learning rate where `DualOpt(learning_rate=None)`."""
    if isinstance(base, PaperRule) and not base.learning_rate_given:
        if isinstance(base, SGD):
            return 1e-2
        return 1e-4 if mode == "finetune" else 1e-3
    rate = base._learning_rate
    if isinstance(rate, keras.Variable):
        # The shortest number that float32 stores so: 0.01 is read back as
        # 0.009999999776482582.
        return float(str(np.float32(keras.ops.convert_to_numpy(rate))))
    return rate


def _state_of(base: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Return every variable of an optimizer, also those Keras lost track of.

    Under `LossScaleOptimizer`, `build` runs with Keras' tracking switched off:
    Nadam's product would be neither saved nor carried through JAX's steps.
    """
    found = list(base.variables)
    for value in vars(base).values():
        members = value if isinstance(value, list | tuple) else [value]
        found += [m for m in members if isinstance(m, keras.Variable)]
    trained = {id(variable) for variable in base._trainable_variables}
    return [variable for variable in found if id(variable) not in trained]


def base_to_config(base: keras.optimizers.Optimizer) -> dict[str, Any]:
    """Return the base's part of the config, with its exclusions."""
    config = accepted.base_to_config(base)
    pattern = getattr(base, "_exclude_from_weight_decay_pattern", None)
    if pattern is not None:
        config["exclude_from_weight_decay"] = pattern.pattern
    if getattr(base, "_exclude_from_weight_decay", None):
        warnings.warn(
            f"{type(base).__name__}.exclude_from_weight_decay(var_list=...) "
            "names variables, which cannot be written to a config. Use "
            "`var_names=[...]` if the optimizer is to be saved.",
            stacklevel=stacklevel(),
        )
    return config
