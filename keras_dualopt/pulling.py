"""An optimizer that lets another one step, and pulls in the same step."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_dualopt import backend, wrapping
from keras_dualopt.anchors import Anchors
from keras_dualopt.arguments import Arguments
from keras_dualopt.bases import PaperRule
from keras_dualopt.depth import find_model, no_weights, training_model
from keras_dualopt.plan import Decisions, Plan, make_plan
from keras_dualopt.pull import Pull


class Parts:
    """What `build` makes; one object, for Keras' trackers to leave alone."""

    def __init__(self, plan: Plan, anchors: Anchors, pull: Pull) -> None:
        self.plan = plan
        self.anchors = anchors
        self.pull = pull
        # How many of the optimizer's variables come before the anchors.
        self.anchors_at = 0


class PullingOptimizer(keras.optimizers.Optimizer):
    """The step of DualOpt: build, base step, pull.

    Args:
        arguments: What is pulled, and how strongly.
        base: The optimizer that proposes θ_pre.
        reference: η; `None` in scratch mode.
        learning_rate: A float, schedule or callable.
        **kwargs: Keras' optimizer arguments.
    """

    def __init__(
        self,
        arguments: Arguments,
        base: keras.optimizers.Optimizer,
        reference: float | None,
        learning_rate: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, **kwargs)
        self._arguments = arguments
        self._reference = reference
        self._holder = wrapping.Holder(base)
        wrapping.share_clock(self, base)
        self._model_reference: Callable[[], keras.Model | None] = _nothing
        # The model whose `fit` runs, where it is not the one bound to.
        self._trainer_reference: Callable[[], keras.Model | None] = _nothing
        self._head: Any = None
        self._decided: Decisions | None = None
        self._looked = False
        self._parts: Parts | None = None

    @property
    def learning_rate(self) -> Any:
        """η_t: the variable, or the schedule's present value."""
        return super().learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        keras.optimizers.Optimizer.learning_rate.fset(self, learning_rate)
        wrapping.share_clock(self, self._holder.base)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Decide each variable's depth, strength and anchor; make the state.

        Args:
            variables: The model's trainable variables.

        Raises:
            ValueError: If the model cannot be found, or depths, patterns or a
                loaded state do not fit it.
        """
        if self.built:
            return
        with backend.eager():
            self._build([*variables])

    def _build(self, variables: list[keras.Variable]) -> None:
        base = self._holder.base
        wrapping.check_unbuilt(base)
        model = self._find_model(variables)
        plan = make_plan(
            self._arguments, model, self._head, variables, self._decided
        )
        wrapping.warn_if_narrow(base, variables)
        super().build(variables)
        anchors = Anchors(
            variables,
            plan.anchored,
            add=self._add_anchor,
            remove=self._untrack_variable,
            flag=self.add_variable(
                shape=(),
                dtype="int32",
                aggregation="only_first_replica",
                name="anchors_taken",
            ),
        )
        wrapping.build_base(self, base, variables)
        self._parts = Parts(plan, anchors, self._make_pull(plan, anchors))
        if anchors.taken:
            own = [id(variable) for variable in self._variables]
            self._parts.anchors_at = own.index(id(anchors.taken[0]))
        if model is not None:
            self._model_reference = weakref.ref(model)
        self._note_trainer()
        self._after_build()

    def _add_anchor(self, variable: keras.Variable) -> keras.Variable:
        with backend.replicated(self._strategy):
            return self.add_variable_from_reference(variable, name="anchor")

    @property
    def _strategy(self) -> Any:
        """TensorFlow's distribution strategy; `None` on other backends."""
        return getattr(self, "_distribution_strategy", None)

    def _after_build(self) -> None:
        """What was asked for before there were variables."""

    def _find_model(
        self, variables: Sequence[keras.Variable]
    ) -> keras.Model | None:
        model = self._model_reference()
        if model is None and self._head is not None:
            raise ValueError(
                "Expected: the model given to `bind(model, head=...)`. "
                "Received: variables, but that model no longer exists. Call "
                "`bind` with the model that is to be trained."
            )
        if model is None:
            try:
                return find_model(variables)
            except ValueError:
                # A dict of depths needs no model; to know it is better.
                if variables and isinstance(self._arguments.depth, dict):
                    return None
                raise
        if not variables and not model.weights:
            raise no_weights()
        own = {id(variable) for variable in model.variables}
        for variable in variables:
            if id(variable) not in own:
                raise ValueError(
                    f"Expected: variables of {model.name!r}, the model this "
                    f"optimizer is bound to. Received: {variable.path!r} of "
                    "another. Make a new DualOpt for each model."
                )
        return model

    def _make_pull(self, plan: Plan, anchors: Anchors) -> Pull:
        reference = 1.0 if self._reference is None else self._reference
        pull = Pull(plan.strengths, anchors.slots, reference)
        base = self._holder.base
        if isinstance(base, PaperRule):
            base.pull = pull
        return pull

    def _attach_anchors(self) -> None:
        """Pull to the anchors as they are now, also in compiled steps."""
        assert self._parts is not None
        present, wanted = self._parts.pull.anchors, self._parts.anchors.slots
        if all(a is b for a, b in zip(present, wanted, strict=True)):
            return  # The same variables: compiled steps see their new values.
        self._remake_pull()

    def _remake_pull(self) -> None:
        assert self._parts is not None
        self._parts.pull = self._make_pull(
            self._parts.plan, self._parts.anchors
        )
        for model in self._models():
            backend.forget_compiled(model)

    def _models(self) -> list[keras.Model]:
        """Return the model whose weights are trained, and the one in `fit`."""
        found = [self._model_reference(), self._trainer_reference()]
        models = [model for model in found if model is not None]
        return list({id(model): model for model in models}.values())

    def _note_trainer(self) -> None:
        model = training_model()
        if model is not None and self._is_optimizer_of(model):
            self._trainer_reference = weakref.ref(model)

    def _is_optimizer_of(self, model: keras.Model) -> bool:
        optimizer = getattr(model, "optimizer", None)
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        return any(
            part is self for part in getattr(inner, "optimizers", [inner])
        )

    def _settle(self) -> None:
        """Bring the variables up to date inside of JAX's `fit`."""
        for model in self._models():
            if hasattr(model, "jax_state_sync"):
                model.jax_state_sync()

    @backend.uncompiled
    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Move and pull the weights (Keras' `Optimizer.apply`)."""
        super().apply(grads, trainable_variables)

    def _backend_update_step(
        self, grads: Any, trainable_variables: Any, learning_rate: Any
    ) -> None:
        if self._parts is None:
            raise ValueError(
                "Expected: a built optimizer. Received: one whose `build` was "
                "refused. Make a new one."
            )
        base = self._holder.base
        strategy = self._strategy
        if self._trainer_reference() is None and not self._looked:
            self._looked = True
            self._note_trainer()
        if self._arguments.mode == "finetune":
            self._parts.anchors.capture(strategy)
        wrapping.base_step(base, grads, trainable_variables, learning_rate)
        if not isinstance(base, PaperRule):
            indices = [
                self._get_variable_index(variable)
                for variable in trainable_variables
            ]
            backend.pull_each(
                self._parts.pull,
                trainable_variables,
                indices,
                learning_rate,
                strategy,
            )

    def _apply_weight_decay(self, variables: Any) -> None:
        """Leave decay to the base's own step and to the pull after it."""

    def update_step(
        self, gradient: Any, variable: Any, learning_rate: Any
    ) -> None:
        """Move one variable: what `apply` does for all of them together."""
        self._backend_update_step([gradient], [variable], learning_rate)

    def stateless_apply(
        self, optimizer_variables: Any, grads: Any, trainable_variables: Any
    ) -> Any:
        """Return the new variables and state (JAX)."""
        try:
            if self.built:
                self._note_trainer()
                self._check_model(training_model())
                self._check_count(trainable_variables)
            return super().stateless_apply(
                optimizer_variables, grads, trainable_variables
            )
        except Exception:
            backend.keep_state()
            raise

    def _check_count(self, variables: Sequence[Any]) -> None:
        if len(variables) != len(self._trainable_variables):
            raise ValueError(_changed_list(len(variables), self))

    def finalize_variable_values(self, var_list: Any) -> None:
        """At the end of `fit`, put the averaged weights into the model."""
        super().finalize_variable_values(var_list)
        if self.use_ema:
            # On JAX Keras' `assign` makes weight and average one buffer, which
            # the next `fit` would donate twice.
            for average in self._model_variables_moving_average:
                if average is not None:
                    backend.copy_value(average, average)

    def _check_variables_are_known(self, variables: Any) -> None:
        if len(variables) < len(self._trainable_variables):
            # A loop of one's own may train a part; in `fit` a layer was frozen
            # after `compile`.
            model = training_model()
            if model is not None and model.optimizer is self:
                raise ValueError(_changed_list(len(variables), self))
        for variable in variables:
            key = self._var_key(variable)
            if key not in self._trainable_variables_indices:
                name = getattr(variable, "path", variable.name)
                raise ValueError(_changed_list(f"{name!r}", self))

    def _check_model(self, model: keras.Model | None) -> None:
        if model is None or not self._is_optimizer_of(model):
            return
        known = {id(variable) for variable in model.variables}
        for variable in self._trainable_variables:
            if id(variable) not in known:
                raise ValueError(
                    "Expected: the model this optimizer was built on (its "
                    f"{variable.path!r} is not here). Received: "
                    f"{model.name!r}. One optimizer holds the anchors of one "
                    "model: make a new DualOpt for this one."
                )


def _nothing() -> None:
    return None


def _changed_list(received: Any, optimizer: PullingOptimizer) -> str:
    return (
        f"Expected: the {len(optimizer._trainable_variables)} variables this "
        f"optimizer was built on. Received: {received}. Layers were frozen, "
        "unfrozen, given LoRA or quantized since, or it is another model: "
        "compile again with a new DualOpt, and keep the anchors with "
        "`new.anchor_at(old)`."
    )
