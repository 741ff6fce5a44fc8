"""DualOpt: any Keras optimizer's step, and a pull in the same step."""

import inspect
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Self

import keras

from keras_dualopt import bases, wrapping
from keras_dualopt.anchored import AnchoredOptimizer
from keras_dualopt.arguments import Arguments
from keras_dualopt.depth import LayerDepth, check_head, layer_depth
from keras_dualopt.plan import Decisions
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
class DualOpt(AnchoredOptimizer):
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
        _check_learning_rate(learning_rate)
        base_optimizer = wrapping.make_base(base, mode)
        _check_owner(kwargs, type(base_optimizer))
        if learning_rate is None:
            learning_rate = wrapping.own_learning_rate(base_optimizer, mode)
        if isinstance(learning_rate, int) and not isinstance(
            learning_rate, bool
        ):
            learning_rate = float(learning_rate)
        reference = _reference(mode, reference_learning_rate, learning_rate)
        super().__init__(
            arguments,
            base_optimizer,
            reference,
            learning_rate=learning_rate,
            name=name,
            **kwargs,
        )
        # The name only: Keras' saver would enter an optimizer kept here.
        self._base_name = base if isinstance(base, str) else None

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
        if name == "mode":
            raise ValueError(
                f"Expected: `mode` to stay {self.mode!r}; the other arguments "
                f"were chosen for it. Received: {value!r}. Make a new "
                "DualOpt(mode=...)."
            )
        if name == "depth" and value is not None and self._head is not None:
            raise ValueError(
                "Expected: either `depth` or `bind(head=...)`. Received: both."
            )
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

    def bind(self, model: keras.Model, head: Any = None) -> Self:
        """Name the model whose weights will be trained; return the optimizer.

        Needed only where the model cannot be found by itself, or where its
        head is not where `layer_depth` looks for it.

        Args:
            model: The model. No reference keeps it alive.
            head: What was not pretrained, as in `layer_depth`: layers,
                variables, names or patterns; `()`: nothing. Fine-tune mode
                only.

        Raises:
            ValueError: After `build`, for arguments that contradict, or if
                `head` names nothing in the model (unless that is not built
                yet: then at `build`).
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
                "Expected: either `depth=` or `bind(head=...)`. Received: "
                "both. Give the head to `layer_depth(model, head=...)` and "
                "pass the result as `depth`."
            )
        if head is not None and model.built and model.weights:
            check_head(model, head)
        self._model_reference = weakref.ref(model)
        self._head = head
        return self

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal optimizer."""
        config: dict[str, Any] = super().get_config()
        depth: Any = self._arguments.depth
        if self._head is not None:
            # What was bound by hand would not be found by itself.
            if self._parts is not None:
                depth = self._parts.plan.depth
            else:
                depth = self._depth_of_bound_model()
        if isinstance(depth, LayerDepth):
            depth = keras.saving.serialize_keras_object(depth)
        elif depth is not None:
            # A list: the order of the patterns decides.
            depth = [[pattern, value] for pattern, value in depth.items()]
        config.update(
            mode=self.mode,
            base=self._base_name or wrapping.base_to_config(self._holder.base),
            rollback=self.rollback,
            rollback_min=self.rollback_min,
            weight_decay=self.weight_decay,
            weight_decay_min=self.weight_decay_min,
            power=self.power,
            depth=depth,
            exclude=list(self.exclude),
            reference_learning_rate=self._reference,
        )
        decided = self._decided
        if self._parts is not None and self._parts.plan.lasting:
            decided = self._parts.plan.decisions()
        if decided and (self.exclude or isinstance(depth, list)):
            # Paths may be others after a reload; places are not.
            config["decided"] = decided
        return config

    def _depth_of_bound_model(self) -> LayerDepth:
        model = self._model_reference()
        if model is None or not model.built:
            raise ValueError(
                "Expected: a built model, to write the head given to "
                "`bind(model, head=...)` into the config. Received: "
                + ("none any more" if model is None else "one not built yet")
                + ". Build the model first."
            )
        return layer_depth(model, head=self._head)

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> "DualOpt":
        """Return an optimizer equal to the one `get_config` was called on."""
        config = dict(config)
        config["base"] = wrapping.base_from_config(
            config.get("base", "adam"), custom_objects
        )
        depth = config.get("depth")
        if isinstance(depth, list):
            config["depth"] = {pattern: value for pattern, value in depth}
        elif isinstance(depth, dict) and "class_name" in depth:
            config["depth"] = keras.saving.deserialize_keras_object(
                depth, custom_objects=custom_objects
            )
        decided = config.pop("decided", None)
        optimizer: DualOpt = super().from_config(
            config, custom_objects=custom_objects
        )
        optimizer._remember(decided)
        return optimizer

    def _remember(self, decided: Decisions | None) -> None:
        self._decided = decided

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
                built.anchors.carried,
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


def _check_owner(
    given: Mapping[str, Any], base: type[keras.optimizers.Optimizer]
) -> None:
    """Refuse arguments of the base, and show where they belong."""
    # The backend's own constructor passes everything on.
    common = {
        name
        for kind in keras.optimizers.Optimizer.__mro__
        for name in inspect.signature(kind.__init__).parameters
    }
    for name, value in given.items():
        if name in common:
            continue
        for kind in (base, *_BASES):
            if name in inspect.signature(kind).parameters:
                raise ValueError(
                    "Expected: arguments of DualOpt. Received: "
                    f"{name}={value!r}, which belongs to the base: "
                    f"`base={_place_of(kind)}.{kind.__name__}"
                    f"({name}={value!r})`."
                )


# Whose arguments are looked for, beside those of the base in use.
_BASES = (
    bases.Adam,
    bases.SGD,
    keras.optimizers.Adam,
    keras.optimizers.SGD,
)


def _place_of(kind: type) -> str:
    for package in ("keras_dualopt.bases", "keras.optimizers"):
        if kind.__module__.startswith(package.partition(".")[0] + "."):
            return package
    return kind.__module__


def _check_learning_rate(value: Any) -> None:
    if isinstance(value, keras.optimizers.Optimizer):
        raise TypeError(
            "Expected: `learning_rate` to be a float, a schedule or a "
            f"callable. Received: the optimizer {type(value).__name__}. To "
            "take its steps pass it as the base: "
            f"`DualOpt(base=keras.optimizers.{type(value).__name__}(...))`."
        )
    if isinstance(value, bool | str) or not (
        value is None or isinstance(value, int | float) or callable(value)
    ):
        raise TypeError(
            "Expected: `learning_rate` to be a float, a schedule or a "
            f"callable. Received: {type(value).__name__} {value!r}."
        )
