"""DualOpt: any Keras optimizer's step, and a pull in the same step."""

import contextlib
import dataclasses
import inspect
import math
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import keras

from keras_dualopt import checkpoint, sources, wrapping
from keras_dualopt.anchors import DROPPED, NOT_TAKEN, TAKEN, Anchors
from keras_dualopt.backend import Array, Tensor, engine
from keras_dualopt.bases import PaperRule, accepted
from keras_dualopt.bases.paper_rule import LearningRate
from keras_dualopt.caller import argument, stacklevel
from keras_dualopt.depth import (
    LayerDepth,
    check_head,
    find_model,
    no_weights,
    training_model,
)
from keras_dualopt.plan import Row, aliases_of, find_depth, make_rows, names_of
from keras_dualopt.pull import Pull
from keras_dualopt.settings import (
    Depth,
    Head,
    Mode,
    Reach,
    Settings,
    check_learning_rate,
    peak_learning_rate,
    rate_in,
    reference_rate,
)
from keras_dualopt.sources import Source
from keras_dualopt.summary import summary_table


@dataclasses.dataclass
class _Pending:
    """What was asked for before there were variables to do it with.

    An object, because Keras' saver would enter a model kept as an attribute.
    """

    state: checkpoint.State | None = None
    # Whether one that does not fit is to be passed over.
    may_mismatch: bool = False
    source: Source | sources.Earlier = None
    has_source: bool = False
    # What was said after the state was read, and wins over it.
    learning_rate: float | None = None


def _setting(name: str) -> Any:
    """Return a property that can be read, and be set until `build`."""

    def read(self: "DualOpt") -> Any:
        return getattr(self.settings, name)

    def write(self: "DualOpt", value: Any) -> None:
        self._change_setting(name, value)

    return property(read, write, doc=f"The argument `{name}`.")


@keras.saving.register_keras_serializable(package="keras_dualopt")
class DualOpt(wrapping.WrappingOptimizer):
    """Takes a base optimizer's step, then pulls each weight to its anchor.

    Use `mode="finetune"` on a pretrained model: every pretrained weight is
    pulled a little back towards its pretrained value, strongly in shallow
    layers, weakly in deep ones (*weight rollback*). Use `mode="scratch"` on a
    fresh one: the same pull, towards 0, weak in shallow layers, strong in deep
    ones (*real-time layer-wise weight decay*).

        θ_pre = θ_{t−1} − η_t u_t           (the base optimizer's step)
        θ_t   = θ_pre − ρ (θ_pre − a)       0 ≤ ρ ≤ 1

    | | a | ρ |
    |---|---|---|
    | finetune | θ₀, as found at step 1 | (ι₂ + (1−r)^γ (ι₁−ι₂)) η_t/η |
    | with `reach` | the same θ₀ | η_t/(η_t + R) |
    | scratch | 0 | η_t (w₂ + r^γ (w₁−w₂)) |

    with u_t = `base`'s direction, η_t = `learning_rate`, η =
    `reference_learning_rate`, ι₁ = `rollback`, ι₂ = `rollback_min`, w₁ =
    `weight_decay`, w₂ = `weight_decay_min`, γ = `power`, r = the relative
    depth of the weight's layer (`depth`): 0 at the shallowest, 1 at the
    deepest, and 1/R = 1/R₂ + (1−r)^γ (1/R₁ − 1/R₂) with R₁ = `reach`, R₂ =
    `reach_max`. With `shallow_rate` s the layer moves at η_t s^(1−r), which
    takes the place of η_t in η_t/(η_t + R) too. Source: Huang et al., "One
    Step Learning, One Step Review", AAAI 2024, arXiv:2401.10962 (OLOR), Eq. 3
    to 9; Ning et al., "Neural Network Optimization Reimagined",
    arXiv:2604.22838. Differences: r takes the place of the papers' i/n, so
    that it is exactly 0 and 1 at the ends; `reach` and `shallow_rate` are not
    in the papers.

    With `reach` no weight that starts within c R of θ₀, as all do whose θ₀ was
    taken at the first step, is ever farther, at any learning rate and after any
    number of steps, where c bounds the base's steps: 1 for Lion, 7.3 for Adam
    (`bases.accepted.step_bound` derives c), with which most weights stay within
    R and single ones within about 2 R. A decoupled decay λ of the base's own
    adds λ |θ₀| to c, weight by weight. Of LoRA's factors b alone is held, so
    that their product has no bound.

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
            is meant. Default: the float, or the schedule's highest value; a
            rate that is assigned before the first step takes its place. Not
            with `reach` or in scratch mode, which need none.
        reach: R₁ ≥ 0, how far a weight of the shallowest layer may go from
            θ₀: a distance, or a share of the size (rms) of the layer's θ₀,
            such as `"20%"`; infinity: as far as it likes. Instead of
            `rollback`. Fine-tune only, for a base whose steps are bounded
            (Adam, AdamW, Nadam, Adamax, Lion, RMSprop, Adagrad).
        reach_max: R₂ ≥ R₁, the same at the deepest pretrained layer. Default
            3 R₁.
        shallow_rate: In (0, 1], the share of the learning rate at the
            shallowest layer: layer-wise learning rates. Default 1.
        anchor_dtype: `None`: θ₀ is held in the weights' dtype; `"bfloat16"` or
            `"float16"`: in half the bytes, where that holds it exactly (an
            error at the first step says where not). Fine-tune only.
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
    >>> model.compile(DualOpt(1e-3, mode="finetune", reach=0.05), "mse")
    """

    def __init__(
        self,
        learning_rate: LearningRate | None = None,
        mode: Mode = "finetune",
        base: str | keras.optimizers.Optimizer = "adam",
        rollback: float | None = None,
        rollback_min: float | None = None,
        weight_decay: float | None = None,
        weight_decay_min: float | None = None,
        power: float | None = None,
        depth: Depth = None,
        exclude: str | Sequence[str] | None = None,
        reference_learning_rate: float | None = None,
        reach: Reach | None = None,
        reach_max: Reach | None = None,
        shallow_rate: float = 1.0,
        anchor_dtype: str | None = None,
        *,
        name: str = "dual_opt",
        **kwargs: Any,
    ) -> None:
        settings = Settings(
            mode=mode,
            rollback=rollback,
            rollback_min=rollback_min,
            weight_decay=weight_decay,
            weight_decay_min=weight_decay_min,
            power=power,
            depth=depth,
            exclude=exclude,  # type: ignore[arg-type]
            reach=reach,
            reach_max=reach_max,
            shallow_rate=shallow_rate,
            anchor_dtype=anchor_dtype,
        )
        learning_rate = check_learning_rate(learning_rate)
        base_optimizer = accepted.make_base(base, mode)
        if reach is not None:
            accepted.step_bound(base_optimizer)
        own = [*inspect.signature(DualOpt).parameters]
        accepted.check_owner(kwargs, type(base_optimizer), own[:-1])
        if learning_rate is None:
            learning_rate = wrapping.own_learning_rate(base_optimizer, mode)
        reference = reference_rate(
            settings, reference_learning_rate, learning_rate
        )
        super().__init__(
            base_optimizer, learning_rate=learning_rate, name=name, **kwargs
        )
        self._settings = settings
        self._reference = reference
        self._reference_given = reference_learning_rate is not None
        self._warned_of_rate = False
        self._stage_is_meant = False
        # Apart from the attributes: Keras would take its variables for state.
        self._holder.head = None
        # The paths that patterns speak of, by the weight's place.
        self._names: dict[str, str] | None = None
        self._pending = _Pending()
        # What `build` makes.
        self._depth: LayerDepth
        self._anchors: Anchors
        self._pull: Pull
        # The name only: Keras' saver would enter an optimizer kept here.
        self._base_name = base if isinstance(base, str) else None

    # What was asked for: to be read, and set until `build`.

    mode = _setting("mode")
    rollback = _setting("rollback")
    rollback_min = _setting("rollback_min")
    weight_decay = _setting("weight_decay")
    weight_decay_min = _setting("weight_decay_min")
    power = _setting("power")
    exclude = _setting("exclude")
    reach = _setting("reach")
    reach_max = _setting("reach_max")
    shallow_rate = _setting("shallow_rate")
    anchor_dtype = _setting("anchor_dtype")

    @property
    def settings(self) -> Settings:
        """The arguments that say how strongly which weights are pulled."""
        return self._settings

    @property
    def depth(self) -> Depth:
        """The `LayerDepth` in force; before `build`, the argument."""
        return self._depth if self.built else self.settings.depth

    @depth.setter
    def depth(self, value: Depth) -> None:
        self._change_setting("depth", value)

    @property
    def reference_learning_rate(self) -> float | None:
        """η, the learning rate at which `rollback` is meant; `None`: none."""
        return self._reference

    @property
    def learning_rate(self) -> Tensor:
        """η_t: the variable, or the schedule's present value."""
        return super().learning_rate

    @learning_rate.setter
    def learning_rate(
        self, learning_rate: LearningRate | keras.Variable
    ) -> None:
        follows = self._reference is not None and not self._reference_given
        peak = None
        if not callable(learning_rate):  # A schedule is.
            peak = rate_in(learning_rate)
            if isinstance(learning_rate, keras.Variable) and (
                learning_rate is not self.clock["learning_rate"]
            ):
                self.forget(learning_rate)  # Keras tracks all it is given.
            learning_rate = peak
        elif follows:
            peak = peak_learning_rate(learning_rate)
        self.set_learning_rate(learning_rate)
        if peak is not None and self._pending.state is not None:
            self._pending.learning_rate = peak
        if follows and peak is not None and 0.0 < peak < math.inf:
            self._follow_rate(peak)

    def _follow_rate(self, rate: float) -> None:
        """Let η follow a rate given before the first step; warn of a later."""
        assert self._reference is not None
        if not self._has_stepped():
            # A callback that warms up begins below the rate that is meant.
            if training_model() is None or rate > self._reference:
                self._reference = rate
                if self.built:
                    self._remake_pull()
        elif rate > 1.01 * self._reference and not self._warned_of_rate:
            self._warned_of_rate = True
            times = rate / self._reference
            warnings.warn(
                f"The learning rate was set to {rate:g}, above the reference "
                f"learning rate {self._reference:g}: the pull is {times:.3g} "
                "times as strong. If that is not meant, pass "
                "`reference_learning_rate=`, the highest rate there will be, "
                "or `reach=`, which holds at every rate.",
                stacklevel=stacklevel(),
            )

    def _has_stepped(self) -> bool:
        if not self.built:
            return self._pending.state is not None
        self.settle()
        return self._anchors.state != NOT_TAKEN

    def _change_setting(self, name: str, value: object) -> None:
        if "_settings" not in self.__dict__:
            return  # Keras' constructor sets `weight_decay`; ours comes later.
        if name == "mode":
            raise ValueError(
                f"`mode` stays {self.mode!r}: the other arguments were chosen "
                f"for it. Received: {value!r}. Make a new DualOpt(mode=...)."
            )
        if (
            name == "depth"
            and value is not None
            and self._holder.head is not None
        ):
            raise ValueError(
                "The head was named by `bind(head=...)`. Received: `depth` as "
                "well. Give one of the two."
            )
        if self.built:
            raise ValueError(
                f"`{name}` cannot be changed after the optimizer was built: "
                "compiled steps would not see it. Received: "
                f"{value!r}. Make a new DualOpt({name}=...), call "
                "`new.anchor_at(old)` to keep the anchors, and compile again."
            )
        settings = self.settings.changed(name, value)
        if settings.reach is not None:
            accepted.step_bound(self._holder.base)
        if (settings.reach is None) != (self.reach is None):
            rate = wrapping.own_learning_rate(self, self.mode)
            self._reference = reference_rate(settings, None, rate)
            self._reference_given = False
        self._settings = settings
        if name in ("exclude", "depth"):
            self._names = None  # It was said of today's names.

    def bind(self, model: keras.Model, head: Head = None) -> Self:
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
                "`bind` comes before the optimizer is built. Received: "
                f"{model.name!r} for an optimizer that was built on the "
                "variables of another model or head. Make a new DualOpt for "
                "each model."
            )
        if head is not None and self.mode == "scratch":
            raise ValueError(
                "`head` has no meaning in scratch mode, where the output layer "
                f"counts as the deepest. Received: head={head!r}."
            )
        if head is not None and self.settings.depth is not None:
            raise ValueError(
                "`depth` says already which weights are new. Received: "
                "`bind(head=...)` as well. Give the head to "
                "`layer_depth(model, head=...)` and pass the result as "
                "`depth`."
            )
        if head is not None and model.built and model.weights:
            check_head(model, head)
        if head is not None or self._is_bound:
            self._holder.head = head  # Else it may be the one of a config.
        self._model_reference = weakref.ref(model)
        return self

    @property
    def _is_bound(self) -> bool:
        """Whether a model was named, be it gone."""
        return isinstance(self._model_reference, weakref.ref)

    # Building.

    def decide(self, variables: Sequence[keras.Variable]) -> None:
        """Decide each variable's depth, strength and anchor."""
        model = self._find_model(variables)
        today = names_of(model) if self.settings.has_patterns else {}
        aliases = aliases_of(self._names, today, model)
        self._depth, self._rows = make_rows(
            self.settings, model, self._holder.head, variables, aliases
        )
        if not aliases:
            self._names = today
        accumulates = bool(self.gradient_accumulation_steps)
        engine.check_engine(model, variables, self.strategy, accumulates)
        accepted.warn_if_narrow(self._holder.base, variables)
        if model is not None:
            self._model_reference = weakref.ref(model)
        self.note_trainer()

    def depth_in(self, model: keras.Model) -> LayerDepth:
        """Return the depths in force; before `build`, what it would decide."""
        if self.built:
            return self._depth
        settings, trained = self.settings, model.trainable_variables
        aliases = aliases_of(self._names, names_of(model), model)
        return find_depth(settings, model, self._holder.head, trained, aliases)

    def add_state(self, variables: Sequence[keras.Variable]) -> None:
        """Create θ₀ and what belongs to it."""
        self._anchors = Anchors(
            self, self._rows, self.anchor_dtype, self._remake_pull
        )
        self._make_pull()
        living.add(self)

    def resume(self) -> None:
        """Read the state and the anchors that were given before `build`."""
        pending = self._pending
        if pending.state is not None:
            try:
                self._restore(pending.state)
            except ValueError as error:
                if not pending.may_mismatch:
                    raise
                warnings.warn(
                    "The state of DualOpt was passed over, as `skip_mismatch="
                    "True` says; θ₀ will be the weights of the first step. "
                    f"{error}",
                    stacklevel=stacklevel(),
                )
            else:
                rate = pending.learning_rate
                if rate is not None and self.learning_rate_is_variable():
                    self.learning_rate = rate
        if pending.has_source:
            self._move_anchors(pending.source)
        self._pending = _Pending()

    def _find_model(
        self, variables: Sequence[keras.Variable]
    ) -> keras.Model | None:
        if self._holder.head is not None:
            self._bound_model()
        model = self._model_reference()
        if model is None:
            try:
                return find_model(variables)
            except ValueError:
                # A dict of depths needs no model; to know it is better.
                if variables and isinstance(self.settings.depth, dict):
                    return None
                raise
        if not variables and not model.weights:
            raise no_weights()
        own = {id(variable) for variable in model.variables}
        for variable in variables:
            if id(variable) not in own:
                raise ValueError(
                    f"The optimizer is bound to {model.name!r}. Received: "
                    f"{variable.path!r} of another model. Make a new DualOpt "
                    "for each model."
                )
        return model

    def _bound_model(self) -> keras.Model | None:
        """Return the model given to `bind`; `None`: a config named the head."""
        model = self._model_reference()
        if model is None and self._is_bound:
            raise ValueError(
                "The model given to `bind(model, head=...)` no longer exists. "
                "Call `bind` with the model that is to be trained."
            )
        return model

    @property
    def waits(self) -> bool:
        """Whether a state or anchors were given that were not taken yet."""
        return self._pending.state is not None or self._pending.has_source

    def check_taken(self) -> None:
        """Refuse to go on after `build` without what was to be taken."""
        if self.waits:
            raise ValueError(
                "The state or the anchors given before did not fit the model "
                "and were refused. Load a file that fits, or compile with a "
                "new DualOpt: `new.anchor_at(old)` keeps the anchors of a "
                "state, `new.anchor_at(model_or_weights_file)` gives others."
            )

    def _check_built(self, what: str) -> None:
        if not self.built:
            why = f"so that it has no {what} yet"
            if self.waits:
                why = "and the state or the anchors given before wait for them"
            raise ValueError(
                f"The optimizer has not seen its variables, {why}. Call "
                "`optimizer.build(model.trainable_variables)` or train first."
            )

    # The step: θ₀, the base's step, the pull.

    def check_start(self) -> None:
        """Refuse to train, before a step moves anything."""
        self.check_taken()
        if self.mode == "finetune":
            self._anchors.check(self._stage_is_meant)

    def before_step(self) -> None:
        """Take θ₀ in the first step."""
        if self.mode == "finetune":
            self._anchors.capture()

    @property
    def pull(self) -> Pull:
        """θ_pre ↦ θ_pre − ρ (θ_pre − a), for every variable."""
        self._check_built("pull")
        return self._pull

    def _make_pull(self) -> None:
        reach = self.settings.reach is not None
        self._pull = Pull(
            [row.level(reach) for row in self._rows],
            [row.anchor for row in self._rows],
            1.0 if self._reference is None else self._reference,
            reach,
            self._anchors.units,
        )
        base = self._holder.base
        # Where a rule has a decay of its own, that comes before its step, and
        # what comes after both is shortened and pulled as for any base.
        if isinstance(base, PaperRule) and not base.weight_decay:
            base.pull = self._pull

    def _remake_pull(self) -> None:
        """Pull otherwise from now on, also in compiled steps."""
        self.track_base()  # Behind the anchors, as in `build`.
        self._make_pull()
        self.retrace()

    def finalize_variable_values(
        self, var_list: Sequence[keras.Variable]
    ) -> None:
        """At the end of `fit`: averages into the model, and a last look."""
        super().finalize_variable_values(var_list)
        model = training_model()
        # JAX' `fit` comes here after an error, too, which has said it then.
        failed = sys.exc_info()[0] is not None
        if not (failed or model is None or self.trains(model)):
            # TensorFlow has compiled the step and went on with the old list.
            warnings.warn(
                "Layers were frozen or unfrozen without a new `compile`, and "
                "TensorFlow went on training the weights of before. Call "
                "`model.compile` with a new DualOpt, and `new.anchor_at(old)` "
                "to keep the anchors.",
                stacklevel=stacklevel(),
            )
        if self.built and self.mode == "finetune":
            self._anchors.note_left()

    # The anchors' public life.

    @property
    def rows(self) -> list[Row]:
        """One row for each variable the optimizer was built on.

        Raises:
            ValueError: Before `build`.
        """
        self._check_built("rows")
        return list(self._rows)

    @property
    def anchors(self) -> list[keras.Variable | None]:
        """θ₀ for each variable the optimizer was built on; `None`: none.

        Between `build` and the first step these are the current weights.

        Raises:
            ValueError: Before `build`.
        """
        self._settle_anchors("anchors")
        return [row.anchor for row in self._rows]

    def _settle_anchors(self, what: str) -> None:
        """Bring θ₀ up to date, also before the first step."""
        self._check_built(what)
        self.check_taken()
        self.settle()
        self._anchors.refresh()

    @property
    def has_anchors(self) -> bool:
        """Whether θ₀ was taken in a step, or `anchor_at` said what it is."""
        return self._stage_is_meant or self._has_stepped()

    @property
    def carried(self) -> dict[str, Array]:
        """θ₀ of weights that are not trained now, by place, on the host."""
        return dict(self._anchors.carried) if self.built else {}

    @property
    def merged(self) -> list[str]:
        """LoRA's factors that Keras merged into a file and loaded as 0."""
        return list(self._anchors.find_merged()) if self.built else []

    def anchor_at(self, source: Source = None) -> Self:
        """Choose new anchors; return the optimizer.

        Args:
            source: `None`: the current weights (a new stage). A model of the
                same architecture or its pretrained part, or a weights file.
                Another `DualOpt`, whose anchors are taken over (freeze → fit →
                unfreeze → compile again), also those of weights that are
                frozen now; variables it has no anchor for take their current
                weights. Before `build` the source is kept, and read when the
                optimizer is built.

        Raises:
            ValueError: In scratch mode; if the source lacks a weight, has one
                of another shape, or one that is not finite. The anchors are
                as they were then.
            TypeError: If the source is none of these.
        """
        self._only_in_finetune("anchor_at")
        source = wrapping.unwrapped(source)
        if isinstance(source, DualOpt):
            source = source._earlier()
        else:
            sources.check_source(source)
        self._stage_is_meant = True
        if self.built:
            self._move_anchors(source)
        else:
            self._pending.source = source
            # The weights of the first step are what is taken anyway.
            self._pending.has_source = not (
                source is None and self._pending.state is None
            )
        return self

    def _move_anchors(self, source: Source | sources.Earlier) -> None:
        self.settle()
        model = self._model_reference()
        self._anchors.move_to(*sources.anchors_from(source, model, self._rows))
        self._pending = _Pending()  # What is said last counts.

    def _earlier(self) -> sources.Earlier:
        self._only_in_finetune("anchor_at(optimizer)")
        waiting = self._pending.state if self.built else None
        if waiting is None:
            self._settle_anchors("anchors")
            dropped = self._anchors.dropped
            # Copies: what the new optimizer was given is not dropped with ours.
            rows = [dataclasses.replace(row) for row in self._rows]
            carried = self._anchors.carried
        else:
            # It did not fit; where each θ₀ belongs is known all the same.
            dropped = waiting.flag == DROPPED
            rows, carried = [], waiting.origins
        if dropped:
            raise ValueError(
                "The anchors of the other DualOpt were dropped. Give a model "
                "or a weights file instead."
            )
        return sources.Earlier(rows, carried, self._model_reference())

    def drop_anchors(self) -> None:
        """Forget θ₀, to ship a file without a second copy of the weights.

        It is saved: the file loads and evaluates, and the next training step
        is an error that names `anchor_at`.

        Raises:
            ValueError: Before `build`, and in scratch mode.
        """
        self._only_in_finetune("drop_anchors")
        self._check_built("anchors")
        self.settle()
        self._anchors.drop()

    @contextlib.contextmanager
    def without_anchors(self) -> Iterator[None]:
        """Let the optimizer be saved, for a moment, as if it had no anchors.

        They stay: dropping and remaking them would leave compiled steps with
        variables that are no longer there.
        """
        # Those that were neither taken nor given are not written anyway.
        before = self._anchors.state if self.built else NOT_TAKEN
        hidden = before != NOT_TAKEN or (self.built and self.waits)
        if hidden:
            self._anchors.set_state(DROPPED)
        try:
            yield
        finally:
            if hidden:
                self._anchors.set_state(before)

    def _only_in_finetune(self, name: str) -> None:
        if self.mode != "finetune":
            raise ValueError(
                f"`{name}` needs fine-tune mode. Received: scratch mode, where "
                "every weight is pulled towards 0 and there are no anchors."
            )

    # Config and files.

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal optimizer."""
        config: dict[str, Any] = super().get_config()
        depth: Any = self.settings.depth
        if self._holder.head is not None:
            # What was bound by hand would not be found by itself.
            model = None if self.built else self._bound_model()
            if self.built:
                depth = self.depth
            elif model is not None and model.built and model.weights:
                depth = self.depth_in(model)
            else:
                config["head"] = _head_names(self._holder.head)
        if isinstance(depth, LayerDepth):
            depth = keras.saving.serialize_keras_object(depth)
        elif depth is not None:
            # A list: the order of the patterns decides.
            depth = [[pattern, value] for pattern, value in depth.items()]
        config.update(
            vars(self.settings),
            base=self._base_name or wrapping.base_to_config(self._holder.base),
            depth=depth,
            exclude=list(self.exclude),
            reference_learning_rate=self._reference,
            reference_given=self._reference_given,
        )
        if self._names and self.settings.has_patterns:
            # Patterns speak of paths, and a reloaded model may lose a prefix.
            config["names"] = self._names
        return config

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any],
        custom_objects: Mapping[str, type] | None = None,
    ) -> "DualOpt":
        """Return an optimizer equal to the one `get_config` was called on."""
        config = dict(config)
        config["base"] = accepted.base_from_config(
            config.get("base", "adam"), custom_objects
        )
        depth = config.get("depth")
        if isinstance(depth, list):
            config["depth"] = {pattern: value for pattern, value in depth}
        elif isinstance(depth, dict) and "class_name" in depth:
            config["depth"] = keras.saving.deserialize_keras_object(
                depth, custom_objects=custom_objects
            )
        names, head = config.pop("names", None), config.pop("head", None)
        given = config.pop(
            "reference_given", config.get("reference_learning_rate") is not None
        )
        optimizer: DualOpt = super().from_config(
            config, custom_objects=custom_objects
        )
        optimizer._names = names
        optimizer._holder.head = None if head is None else tuple(head)
        optimizer._reference_given = given
        return optimizer

    def save_own_variables(self, store: checkpoint.Store) -> None:
        """Write the state, each entry by what it is and which weight it has."""
        if self._pending.has_source:
            self._read_source_to_save()
        pending = self._pending
        if pending.state is not None:
            checkpoint.rewrite(pending.state, store, pending.learning_rate)
        elif self.built:
            self.settle()
            # Who trains on the file is told, where anchors are not in it.
            lacking = self.without_anchors if pending.has_source else None
            with lacking() if lacking else contextlib.nullcontext():
                checkpoint.write(self._table(), store)

    def _read_source_to_save(self) -> None:
        """Build, so that the anchors given to `anchor_at` are saved.

        No error leaves this: Keras has emptied the file that was there.
        """
        model = argument("model")  # The one that Keras is saving.
        if not (
            isinstance(model, keras.Model) and self._is_optimizer_of(model)
        ):
            model = self._model_reference()
        try:
            if not self.built and model is not None and model.built:
                compiled = self._is_optimizer_of(model)
                whole = model.optimizer if compiled else self
                whole.build(model.trainable_variables)
            self._check_built("anchors")
            self.check_taken()
        except Exception as error:
            warnings.warn(
                "The anchors given to `anchor_at` could not be read, and are "
                f"not in the file. {error}",
                stacklevel=stacklevel(),
            )

    def load_own_variables(self, store: checkpoint.Store) -> None:
        """Read the state; before `build`, keep it until then.

        A state that does not fit a model which is being loaded itself, with
        `load_model` or in a `deepcopy`, waits with a warning: nobody can make
        the model fit before. Until then the optimizer takes no step.

        Raises:
            ValueError: If the state does not fit; it names the first
                difference, and no variable has been written then.
        """
        found = checkpoint.read(store)
        if found is not None and self.built:
            try:
                self._restore(found)
            except ValueError as error:
                if argument("safe_mode") is None:  # Not in `load_model`.
                    raise
                self._pending = _Pending(found)
                checkpoint.warn_misfit(error)
            else:
                self._pending = _Pending()
        elif found is not None:
            # What is said last counts.
            self._pending = _Pending(found, bool(argument("skip_mismatch")))
        elif self._pending.state is not None:
            self._pending.state = None
            warnings.warn(
                "The state of a DualOpt read before was discarded: a file "
                "without one was read over it. Its weights will be the "
                "anchors, from step 0. To go on from the earlier state, load "
                "its file last; to anchor at other weights, call `anchor_at`.",
                stacklevel=stacklevel(),
            )
        else:
            trained = self.built and self._anchors.state == TAKEN
            if self.built:
                self._anchors.expect_new_weights()
            checkpoint.warn_foreign(len(list(store.keys())), trained)

    def _restore(self, found: checkpoint.State) -> None:
        checkpoint.restore(self._table(), found)
        # η belongs to the learning rate: ρ is to be as before.
        reference = found.manifest["settings"].get("reference")
        if self._reference_given or self._reference is None:
            return
        if reference in (None, self._reference):
            return
        if "learning_rate" in found.arrays and self.learning_rate_is_variable():
            self._reference = reference
            self._remake_pull()
            return
        warnings.warn(
            f"The state was written at reference learning rate {reference!r}, "
            "with a learning rate of another kind (a schedule on one side). "
            f"The pull is measured against {self._reference!r}; pass "
            "`reference_learning_rate=` to choose.",
            stacklevel=stacklevel(),
        )

    def _table(self) -> checkpoint.Table:
        labels = {"mode": self.mode, "reference": self._reference}
        return checkpoint.table(self, self._holder.base, self._anchors, labels)

    # What a person sees.

    def summary(self, print_fn: Callable[[str], object] = print) -> None:
        """Print one table: what is pulled, how strongly, at what memory.

        Strengths are those at the present learning rate.

        Raises:
            ValueError: Before `build`.
        """
        self._settle_anchors("depths")
        print_fn(
            summary_table(
                self._rows,
                self._pull,
                self.settings,
                float(keras.ops.convert_to_numpy(self.learning_rate)),
                type(self._holder.base).__name__,
                self._anchors.carried,
            )
        )

    def __repr__(self) -> str:
        """Name the arguments that say what is done."""
        rate = type(self.clock["learning_rate"]).__name__
        if self.learning_rate_is_variable():
            rate = f"{float(keras.ops.convert_to_numpy(self.learning_rate)):g}"
        base = self._base_name or type(self._holder.base).__name__
        names = (*self.settings.level_names, "power")
        said = " ".join(f"{name}={getattr(self, name)!r}" for name in names)
        first = f"<DualOpt mode={self.mode!r} base={base!r}"
        return f"{first} learning_rate={rate} {said}>"

    def exclude_from_weight_decay(
        self, var_list: object = None, var_names: object = None
    ) -> None:
        """Raise: patterns belong to the argument `exclude`."""
        raise ValueError(
            "`DualOpt(exclude=[...])` takes regular expressions, matched in "
            "full against the weights' paths, and is saved with the optimizer. "
            "Received: exclude_from_weight_decay("
            f"var_list={var_list!r}, var_names={var_names!r})."
        )


def _head_names(head: Any) -> list[str]:
    """Return the head of a model that is not built, for a config."""
    several = isinstance(head, list | tuple | set | frozenset)
    return [
        one.name
        if isinstance(one, keras.layers.Layer)
        else getattr(one, "path", one)
        for one in (head if several else [head])
    ]


# Those that may have θ₀ of a model that knows nothing of them.
living: "weakref.WeakSet[DualOpt]" = weakref.WeakSet()
