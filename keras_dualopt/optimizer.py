"""DualOpt: any Keras optimizer's step, and a pull in the same step."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Self

import keras

from keras_dualopt import backend, sources, state, wrapping
from keras_dualopt.anchors import DROPPED, TAKEN, Anchors
from keras_dualopt.arguments import Arguments
from keras_dualopt.bases import PaperRule
from keras_dualopt.depth import (
    LayerDepth,
    find_model,
    layer_depth,
    training_model,
)
from keras_dualopt.plan import Plan, make_plan
from keras_dualopt.pull import Pull
from keras_dualopt.reference_rate import check_reference, peak_learning_rate
from keras_dualopt.summary import summary_table

_SETTINGS = (
    "mode",
    "rollback",
    "rollback_min",
    "weight_decay",
    "weight_decay_min",
    "power",
    "depth",
    "exclude",
)


def _setting(name: str) -> Any:
    """Return a property that can be read, and be set until `build`."""

    def read(self: "DualOpt") -> Any:
        return getattr(self._arguments, name)

    def write(self: "DualOpt", value: Any) -> None:
        self._change_setting(name, value)

    return property(read, write, doc=f"The argument `{name}`.")


@keras.saving.register_keras_serializable(package="keras_dualopt")
class DualOpt(keras.optimizers.Optimizer):
    """Takes a base optimizer's step, then pulls each weight to its anchor.

    Use `mode="finetune"` on a pretrained model: every pretrained weight is
    pulled a little back towards its pretrained value, strongly in shallow
    layers, weakly in deep ones (*weight rollback*). Use `mode="scratch"` on a
    fresh one: the same pull, towards 0, weak in shallow layers, strong in deep
    ones (*real-time layer-wise weight decay*).

        θ_pre = θ_{t−1} − η_t u_t           (the base optimizer's step)
        θ_t   = θ_pre − ρ (θ_pre − a)       0 ≤ ρ ≤ 1

    | | finetune | scratch |
    |---|---|---|
    | a | θ₀, the value at this optimizer's first step | 0 |
    | ρ | (ι₂ + (1−r)^γ (ι₁−ι₂)) η_t/η | η_t (w₂ + r^γ (w₁−w₂)) |

    with u_t = `base`'s direction, η_t = `learning_rate`, η =
    `reference_learning_rate`, ι₁ = `rollback`, ι₂ = `rollback_min`, w₁ =
    `weight_decay`, w₂ = `weight_decay_min`, γ = `power`, and r = the relative
    depth of the weight's layer (`depth`): 0 at the shallowest, 1 at the
    deepest. Source: Huang et al., "One Step Learning, One Step Review", AAAI
    2024, arXiv:2401.10962 (OLOR), Eq. 3 to 9; Ning et al., "Neural Network
    Optimization Reimagined", arXiv:2604.22838. Difference: r takes the place
    of the papers' i/n, so that it is exactly 0 and 1 at the ends.

    The model is found by itself in `fit`, `train_on_batch` and in a loop of
    one's own that has the model at hand; `bind` names it explicitly.

    Args:
        learning_rate: A float, schedule or callable. `None`: the base's own
            if `base` is a Keras optimizer; else 1e-4 (Adam) or 1e-2 (SGD) in
            fine-tune mode and 1e-3 or 1e-2 in scratch mode.
        mode: `"finetune"` or `"scratch"`.
        base: `"adam"`, `"sgd"` (the paper's rules, `keras_dualopt.bases`), or
            a fresh `keras.optimizers.Optimizer`. Its own decoupled weight
            decay is carried out in fine-tune mode and refused in scratch mode.
        rollback: ι₁ in [0, 1], the share of the way back to θ₀ in one step at
            the shallowest layer. Fine-tune only. Default 0.01.
        rollback_min: ι₂ in [0, ι₁], the same at the deepest pretrained layer.
            Fine-tune only. Default 0.
        weight_decay: w₁ ≥ 0, at the deepest layer, in AdamW's units (it is
            multiplied by the learning rate). Scratch only. Default 0.05.
        weight_decay_min: w₂ in [0, w₁], the same at the shallowest layer.
            Scratch only. Default 0.
        power: γ > 0, how fast the strength changes with depth. Default 2 in
            fine-tune mode, 1 in scratch mode.
        depth: `None`: from the model's layer graph. A `LayerDepth`. Or a dict
            {regular expression, matched in full against a weight's path:
            relative depth in [0, 1], or `None` for a weight that was not
            pretrained}; the first match wins.
        exclude: Regular expressions (matched in full) of weights that are
            never pulled.
        reference_learning_rate: η > 0, the learning rate at which `rollback`
            is meant. Default: the float, or the schedule's highest value.
            Fine-tune only: it cancels in scratch mode.
        clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum,
            ema_overwrite_frequency, loss_scale_factor,
            gradient_accumulation_steps, name: As in every Keras optimizer.

    Memory: the base's state, and in fine-tune mode one copy of the weights
    that are pretrained and trained.

    Raises:
        ValueError: If an argument is out of its range, belongs to the other
            mode, or matches nothing.
        TypeError: If an argument is of a kind that it does not take.

    Example:
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)]
    ... )
    >>> model.compile(DualOpt(1e-3, mode="finetune", rollback=0.05), "mse")
    """

    def __init__(
        self,
        learning_rate: Any = None,
        mode: str = "finetune",
        base: Any = "adam",
        rollback: float | None = None,
        rollback_min: float | None = None,
        weight_decay: float | None = None,
        weight_decay_min: float | None = None,
        power: float | None = None,
        depth: Any = None,
        exclude: Any = None,
        reference_learning_rate: float | None = None,
        *,
        name: str = "dual_opt",
        **kwargs: Any,
    ) -> None:
        arguments = Arguments(
            mode=mode,
            rollback=rollback,
            rollback_min=rollback_min,
            weight_decay=weight_decay,
            weight_decay_min=weight_decay_min,
            power=power,
            depth=depth,
            exclude=exclude,
        )
        base_optimizer = wrapping.make_base(base, mode)
        if learning_rate is None:
            learning_rate = wrapping.own_learning_rate(base_optimizer, mode)
        if isinstance(learning_rate, int) and not isinstance(
            learning_rate, bool
        ):
            learning_rate = float(learning_rate)
        reference = _reference(mode, reference_learning_rate, learning_rate)
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self._arguments = arguments
        self._reference = reference
        self._given_base = base
        self._holder = wrapping.Holder(base_optimizer)
        wrapping.share_clock(self, base_optimizer)
        self._model_reference: Callable[[], keras.Model | None] = _nothing
        self._head: Any = None
        self._parts: _Parts | None = None
        self._pending_state: dict[str, Any] | None = None
        self._pending_source: tuple[Any] | None = None

    # What can be read, and set until build.
    mode = _setting("mode")
    rollback = _setting("rollback")
    rollback_min = _setting("rollback_min")
    weight_decay = _setting("weight_decay")
    weight_decay_min = _setting("weight_decay_min")
    power = _setting("power")
    exclude = _setting("exclude")

    @property
    def depth(self) -> Any:
        """The `LayerDepth` in force; before `build`, the argument."""
        if self._parts is None:
            return self._arguments.depth
        return self._parts.plan.depth

    @depth.setter
    def depth(self, value: Any) -> None:
        self._change_setting("depth", value)

    @property
    def reference_learning_rate(self) -> float | None:
        """η, the learning rate at which `rollback` is meant."""
        return self._reference

    def _change_setting(self, name: str, value: Any) -> None:
        if "_arguments" not in self.__dict__:
            return  # Keras' constructor sets `weight_decay`; ours comes later.
        if self.built:
            raise ValueError(
                f"Expected: `{name}` to stay as it was when the optimizer was "
                f"built ({getattr(self, name)!r}). Received: {value!r}. Steps "
                "that are compiled already would not see it. Make a new "
                f"DualOpt({name}=...), call `new.anchor_at(old)` on it to keep "
                "the anchors, and compile again."
            )
        values = {key: getattr(self._arguments, key) for key in _SETTINGS}
        self._arguments = Arguments(**{**values, name: value})

    @property
    def learning_rate(self) -> Any:
        """η_t: the variable, or the schedule's present value."""
        return super().learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        keras.optimizers.Optimizer.learning_rate.fset(self, learning_rate)
        wrapping.share_clock(self, self._holder.base)

    def bind(self, model: keras.Model, head: Any = None) -> Self:
        """Name the model whose weights will be trained; return the optimizer.

        Needed only where the model cannot be found by itself, or where its
        head is not where `layer_depth` looks for it.

        Args:
            model: The model. No reference keeps it alive.
            head: What was not pretrained, as in `layer_depth`: layers,
                variables or patterns; `()`: nothing. Fine-tune mode only.

        Raises:
            ValueError: After `build`, or for arguments that contradict.
        """
        if self.built:
            if model is self._model_reference() and head is None:
                return self
            raise ValueError(
                "Expected: `bind` before the optimizer is built. Received: "
                f"{model.name!r} for an optimizer that was built on the "
                "variables of another model or head. Make a new DualOpt for "
                "each model."
            )
        if head is not None and self.mode == "scratch":
            raise ValueError(
                "Expected: no `head` in scratch mode, where the output layer "
                f"counts as the deepest. Received: head={head!r}."
            )
        if head is not None and self._arguments.depth is not None:
            raise ValueError(
                "Expected: either `depth=` or `bind(head=...)`. Received: both. "
                "Give the head to `layer_depth(model, head=...)` and pass the "
                "result as `depth`."
            )
        self._model_reference = weakref.ref(model)
        self._head = head
        return self

    # Build.

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
        model = self._find_model(variables)
        plan = make_plan(self._arguments, model, self._head, variables)
        base = self._holder.base
        wrapping.warn_if_narrow(base, variables)
        super().build(variables)
        anchors = Anchors(
            variables,
            plan.anchored,
            add=lambda v: self.add_variable_from_reference(v, name="anchor"),
            remove=self._untrack_variable,
            flag=self.add_variable(
                shape=(),
                dtype="int32",
                aggregation="only_first_replica",
                name="anchors_taken",
            ),
        )
        wrapping.build_base(self, base, variables)
        self._parts = _Parts(plan, anchors)
        self._attach_pull()
        if model is not None:
            self._model_reference = weakref.ref(model)
        if self._pending_state is not None:
            self._restore(self._pending_state)
        if self._pending_source is not None:
            (source,), self._pending_source = self._pending_source, None
            self.anchor_at(source)

    def _find_model(
        self, variables: Sequence[keras.Variable]
    ) -> keras.Model | None:
        model = self._model_reference()
        if model is None:
            try:
                return find_model(variables)
            except ValueError:
                # A dict of depths needs no model; to know it is better.
                if isinstance(self._arguments.depth, dict):
                    return None
                raise
        own = {id(variable) for variable in model.variables}
        for variable in variables:
            if id(variable) not in own:
                raise ValueError(
                    f"Expected: variables of {model.name!r}, the model this "
                    f"optimizer is bound to. Received: {variable.path!r} of "
                    "another. Make a new DualOpt for each model."
                )
        return model

    def _attach_pull(self) -> None:
        """Give the base what it pulls to; compiled steps must see it anew."""
        assert self._parts is not None
        self._parts.pull = Pull(
            self._parts.plan.strengths,
            self._parts.anchors.slots,
            1.0 if self._reference is None else self._reference,
        )
        base = self._holder.base
        if isinstance(base, PaperRule):
            base.pull = self._parts.pull
        model = self._model_reference()
        if model is not None:
            backend.forget_compiled(model)

    # One step.

    def _backend_update_step(
        self, grads: Any, trainable_variables: Any, learning_rate: Any
    ) -> None:
        assert self._parts is not None and self._parts.pull is not None
        if self._pending_state is not None:
            raise ValueError(
                "Expected: the loaded state to fit the model. Received: one "
                "that was refused when the optimizer was built. Load a file "
                "that fits, or make a new optimizer."
            )
        base = self._holder.base
        strategy = getattr(self, "_distribution_strategy", None)
        if self.mode == "finetune":
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
        if self.built:
            self._check_model(training_model())
            if len(trainable_variables) != len(self._trainable_variables):
                raise ValueError(_changed_list(len(trainable_variables), self))
        return super().stateless_apply(
            optimizer_variables, grads, trainable_variables
        )

    def _check_variables_are_known(self, variables: Any) -> None:
        for variable in variables:
            key = self._var_key(variable)
            if key not in self._trainable_variables_indices:
                name = getattr(variable, "path", variable.name)
                raise ValueError(_changed_list(f"{name!r}", self))

    def _check_model(self, model: keras.Model | None) -> None:
        if model is None:
            return
        known = {id(variable) for variable in model.variables}
        for variable in self._trainable_variables:
            if id(variable) not in known:
                raise ValueError(
                    "Expected: the model this optimizer was built on (its "
                    f"{variable.path!r} is not here). Received: {model.name!r}. "
                    "One optimizer holds the anchors of one model: make a new "
                    "DualOpt for this one."
                )

    # Anchors.

    @property
    def anchors(self) -> list[keras.Variable | None]:
        """θ₀ for each variable the optimizer was built on; `None`: none.

        Between `build` and the first step these are the current weights.

        Raises:
            ValueError: Before `build`.
        """
        built = self._built_parts("anchors")
        self._settle()
        built.anchors.refresh()
        return list(built.anchors.slots)

    def anchor_at(self, source: Any = None) -> Self:
        """Choose new anchors; return the optimizer.

        Args:
            source: `None`: the current weights (a new stage). A model of the
                same architecture or its pretrained part, or a weights file.
                Another `DualOpt`, whose anchors are taken over (freeze → fit →
                unfreeze → compile again); variables it has no anchor for take
                their current weights. Before `build` the source is kept, and
                read when the optimizer is built.

        Raises:
            ValueError: In scratch mode; if the source lacks a weight, has one
                of another shape, or one that is not finite. The anchors are
                as they were then.
            TypeError: If the source is none of these.
        """
        self._only_in_finetune("anchor_at")
        source = unwrapped(source)
        if isinstance(source, DualOpt):
            source = source._anchored()
        else:
            sources.check_source(source)
        if self._parts is None:
            self._pending_source = (source,)
            return self
        self._settle()
        plan, anchors = self._parts.plan, self._parts.anchors
        values = sources.values_from(
            source,
            self._model_reference(),
            self._trainable_variables,
            [place.key for place in plan.places],
            plan.anchored,
        )
        anchors.move_to(values)
        self._attach_pull()
        return self

    def _anchored(self) -> sources.Anchored:
        self._only_in_finetune("anchor_at(optimizer)")
        built = self._built_parts("anchors")
        if built.anchors.dropped:
            raise ValueError(
                "Expected: a DualOpt that has anchors. Received: one whose "
                "anchors were dropped."
            )
        keys = [place.key for place in built.plan.places]
        return sources.Anchored(self._trainable_variables, keys, self.anchors)

    def drop_anchors(self) -> None:
        """Forget θ₀, to ship a file without a second copy of the weights.

        It is saved: the file loads and evaluates, and the next training step
        is an error that names `anchor_at`.

        Raises:
            ValueError: Before `build`, and in scratch mode.
        """
        self._only_in_finetune("drop_anchors")
        built = self._built_parts("anchors")
        self._settle()
        built.anchors.drop()
        self._attach_pull()

    def _only_in_finetune(self, name: str) -> None:
        if self.mode != "finetune":
            raise ValueError(
                f"Expected: `{name}` in fine-tune mode. Received: scratch "
                "mode, where every weight is pulled towards 0 and there are "
                "no anchors."
            )

    def _built_parts(self, what: str) -> "_Parts":
        if self._parts is None:
            raise ValueError(
                "Expected: a built optimizer. Received: one that has not seen "
                f"its variables, so that it has no {what} yet. Call "
                "`optimizer.build(model.trainable_variables)` or train first."
            )
        return self._parts

    def _settle(self) -> None:
        """Bring the variables up to date inside of JAX's `fit`."""
        model = self._model_reference()
        if model is not None and hasattr(model, "jax_state_sync"):
            model.jax_state_sync()

    # Files.

    def save_own_variables(self, store: Any) -> None:
        """Write the state, each entry by what it is and which weight it has."""
        if self._parts is None:
            if self._pending_state is not None:
                state.rewrite(self._pending_state, store)
            return
        self._settle()
        flag = self._parts.anchors.state
        state.write(self._table(), store, flag, self._labels())

    def load_own_variables(self, store: Any) -> None:
        """Read the state; before `build`, keep it until then.

        Raises:
            ValueError: If the state does not fit; it names the first
                difference, and no variable has been written then.
        """
        found = state.read(store)
        if found is None:
            trained = (
                self._parts is not None and self._parts.anchors.state == TAKEN
            )
            state.warn_foreign(len(list(store.keys())), trained)
        elif self._parts is None:
            self._pending_state = found
        else:
            self._restore(found)

    def _restore(self, found: dict[str, Any]) -> None:
        assert self._parts is not None
        anchors = self._parts.anchors
        flag = state.flag_of(found)
        pairs = state.match(self._table(), found, self._labels())
        if flag == TAKEN and anchors.dropped:
            anchors.revive()
            pairs = state.match(self._table(), found, self._labels())
        for variable, array in pairs:
            backend.copy_value(
                variable, keras.ops.convert_to_tensor(array, variable.dtype)
            )
        if flag == DROPPED:
            anchors.drop()
        else:
            anchors.revive()
            anchors.set_state(flag)
        self._pending_state = None
        self._attach_pull()

    def _table(self) -> state.Table:
        assert self._parts is not None
        owners = [
            state.Owner(place.key, place.path, tuple(variable.shape))
            for place, variable in zip(
                self._parts.plan.places, self._trainable_variables, strict=True
            )
        ]
        return state.table(
            owners,
            self._variables,
            holders=(self, self._holder.base),
            anchors=self._parts.anchors.slots,
            scalars={
                "iterations": self._iterations,
                "learning_rate": self._learning_rate,
                "anchors_taken": self._parts.anchors.flag,
            },
        )

    def _labels(self) -> dict[str, Any]:
        return {"mode": self.mode, "base": type(self._holder.base).__name__}

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal optimizer."""
        config: dict[str, Any] = super().get_config()
        depth = self._arguments.depth
        if self._head is not None:
            # What was bound by hand would not be found by itself.
            model = self._model_reference()
            depth = (
                self._parts.plan.depth
                if self._parts is not None
                else layer_depth(model, head=self._head)
            )
        if isinstance(depth, LayerDepth):
            depth = keras.saving.serialize_keras_object(depth)
        elif depth is not None:
            # A list: the order of the patterns decides.
            depth = [[pattern, value] for pattern, value in depth.items()]
        config.update(
            mode=self.mode,
            base=wrapping.base_to_config(self._holder.base, self._given_base),
            rollback=self.rollback,
            rollback_min=self.rollback_min,
            weight_decay=self.weight_decay,
            weight_decay_min=self.weight_decay_min,
            power=self.power,
            depth=depth,
            exclude=list(self.exclude),
            reference_learning_rate=self._reference,
        )
        return config

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> "DualOpt":
        """Return an optimizer equal to the one `get_config` was called on."""
        config = dict(config)
        config["base"] = wrapping.base_from_config(
            config["base"], custom_objects
        )
        depth = config.get("depth")
        if isinstance(depth, list):
            config["depth"] = {pattern: value for pattern, value in depth}
        elif isinstance(depth, dict) and "class_name" in depth:
            config["depth"] = keras.saving.deserialize_keras_object(
                depth, custom_objects=custom_objects
            )
        optimizer: DualOpt = super().from_config(
            config, custom_objects=custom_objects
        )
        return optimizer

    def summary(self, print_fn: Callable[[str], Any] = print) -> None:
        """Print one table: what is pulled, how strongly, at what memory.

        Raises:
            ValueError: Before `build`.
        """
        built = self._built_parts("depths")
        print_fn(
            summary_table(
                built.plan,
                self._arguments,
                self._reference,
                type(self._holder.base).__name__,
                self._trainable_variables,
                built.anchors.slots,
            )
        )

    def exclude_from_weight_decay(
        self, var_list: Any = None, var_names: Any = None
    ) -> None:
        """Raise: patterns belong to the argument `exclude`."""
        raise ValueError(
            "Expected: `DualOpt(exclude=[...])`, regular expressions matched "
            "in full against the weights' paths, which is saved with the "
            "optimizer. Received: exclude_from_weight_decay("
            f"var_list={var_list!r}, var_names={var_names!r})."
        )


class _Parts:
    """What `build` makes; one object, for Keras' trackers to leave alone."""

    def __init__(self, plan: Plan, anchors: Anchors) -> None:
        self.plan = plan
        self.anchors = anchors
        self.pull: Pull | None = None


def unwrapped(optimizer: Any) -> Any:
    """Return the DualOpt inside of a `LossScaleOptimizer`."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer.inner_optimizer
    return optimizer


def _nothing() -> None:
    return None


def _reference(mode: str, given: Any, learning_rate: Any) -> float | None:
    if mode == "scratch":
        if given is not None:
            raise ValueError(
                "Expected: no `reference_learning_rate` in scratch mode, where "
                "it cancels (the pull is learning rate × weight decay). "
                f"Received: {given!r}."
            )
        return None
    if given is None:
        return peak_learning_rate(learning_rate)
    return check_reference(given, "`reference_learning_rate`")


def _changed_list(received: Any, optimizer: DualOpt) -> str:
    return (
        f"Expected: the {len(optimizer._trainable_variables)} variables this "
        f"optimizer was built on. Received: {received}. Layers were frozen, "
        "unfrozen, given LoRA or quantized since, or it is another model: "
        "compile again with a new DualOpt, and keep the anchors with "
        "`new.anchor_at(old)`."
    )
