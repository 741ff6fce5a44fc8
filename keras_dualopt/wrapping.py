"""Which optimizers may be the base of a DualOpt, and how one is held.

The base proposes θ_pre with its own update; everything that concerns the whole
step (learning rate, step counter, clipping, averages, accumulation) is
DualOpt's. What Keras offers for that is partly private. This is the one place
that touches those names; they were tested on Keras 3.13.2 to 3.15.1:

- `Optimizer._iterations`, `Optimizer._learning_rate`: shared with the base, so
  that both see one clock;
- `Optimizer._backend_update_step`: the base's whole step. `update_step` alone
  skips what it does once a step (Nadam's product, TensorFlow's all-reduce, the
  batched kernels on torch);
- `Optimizer._apply_weight_decay`: the base's own decoupled decay;
- `Optimizer._track_variable`, `Optimizer._untrack_variable`: the base's state
  is saved with DualOpt's, once;
- `Optimizer._distribution_strategy` (TensorFlow): the base may have been made
  outside of the strategy's scope;
- `Optimizer._exclude_from_weight_decay_pattern`: saved with the config.

DualOpt's own classes override `_backend_update_step`, `_apply_weight_decay` and
`_check_variables_are_known`, and read `_trainable_variables`, `_variables`,
`_get_variable_index`, `_var_key`, `_trainable_variables_indices` and
`_model_variables_moving_average`. Elsewhere: `Variable._layout` (bases), what
concerns one backend (backend/), layers and graphs (depth/keras_hooks.py).
"""

import warnings
from collections.abc import Sequence
from typing import Any

import keras

from keras_dualopt import bases
from keras_dualopt.caller import stacklevel
from keras_dualopt.reference_rate import shortest

_PAPER_RULES = {"adam": bases.Adam, "sgd": bases.SGD}

# Keras optimizers whose weights a pull cannot reach, and why.
_REFUSED = {
    "Ftrl": (
        "its weights are a function of its accumulators, so that a pull would "
        "be lost in the next step"
    ),
    "ScheduleFreeAdamW": (
        "it keeps a second copy of the weights that a pull would not reach"
    ),
    "DualOpt": "one pull is enough",
    "LossScaleOptimizer": (
        "loss scaling goes around DualOpt: "
        "`keras.optimizers.LossScaleOptimizer(DualOpt(...))`"
    ),
    "MultiOptimizer": (
        "a DualOpt may be one of the optimizers inside of a MultiOptimizer"
    ),
}

# A base argument that concerns the whole step: (attribute, value if unset).
_OWNED_BY_DUALOPT = {
    "clipnorm": None,
    "clipvalue": None,
    "global_clipnorm": None,
    "use_ema": False,
    "loss_scale_factor": None,
    "gradient_accumulation_steps": None,
}

# Decoupled decays of Keras' optimizers (Muon has two).
_DECAYS = ("weight_decay", "adam_weight_decay")


class Holder:
    """Holds the base optimizer.

    Keras' saver walks every attribute of an optimizer and would save a base
    kept as an attribute a second time; this object it does not enter.
    """

    def __init__(self, base: keras.optimizers.Optimizer) -> None:
        self.base = base


def make_base(base: Any, mode: str) -> keras.optimizers.Optimizer:
    """Return the base optimizer that `DualOpt(base=...)` asks for.

    Raises:
        TypeError: If it is neither a name nor a Keras optimizer.
        ValueError: If it is a name or an optimizer that cannot be wrapped.
    """
    if isinstance(base, str):
        if base not in _PAPER_RULES:
            raise ValueError(
                "Expected: `base` to be 'adam', 'sgd' or a "
                f"`keras.optimizers.Optimizer` instance. Received: {base!r}. "
                "For other optimizers pass an instance, such as "
                "`base=keras.optimizers.Lion()`."
            )
        return _PAPER_RULES[base]()
    if not isinstance(base, keras.optimizers.Optimizer):
        raise TypeError(
            "Expected: `base` to be 'adam', 'sgd' or a "
            f"`keras.optimizers.Optimizer` instance. Received: {base!r}."
        )
    _check_base(base, mode)
    return base


def _check_base(base: keras.optimizers.Optimizer, mode: str) -> None:
    for kind in type(base).__mro__:
        if kind.__name__ in _REFUSED:
            raise ValueError(
                "Expected: a `base` whose step a pull can follow. Received: "
                f"{type(base).__name__}; {_REFUSED[kind.__name__]}."
            )
    if base.built:
        raise ValueError(
            "Expected: a fresh `base` optimizer. Received: "
            f"{type(base).__name__} that is already built (its state belongs "
            "to other variables or another optimizer). Make a new instance."
        )
    for name, unset in _OWNED_BY_DUALOPT.items():
        value = getattr(base, name, unset)
        if value is not unset and value != unset:
            raise ValueError(
                f"Expected: a `base` without `{name}`. Received: "
                f"{type(base).__name__}({name}={value!r}). It concerns the "
                f"whole step: pass it to DualOpt, `DualOpt({name}={value!r})`."
            )
    if mode == "scratch":
        for name in _DECAYS:
            value = getattr(base, name, None)
            if value:
                raise ValueError(
                    "Expected: a `base` without weight decay in scratch mode, "
                    "where DualOpt's own acts. Received: "
                    f"{type(base).__name__}({name}={value!r}): two decays. "
                    f"Pass 0.0, `{type(base).__name__}({name}=0.0)`, and "
                    "`DualOpt(weight_decay=...)`."
                )


def own_learning_rate(base: keras.optimizers.Optimizer, mode: str) -> Any:
    """Return the learning rate where `DualOpt(learning_rate=None)`."""
    if isinstance(base, bases.PaperRule) and not base.learning_rate_given:
        if isinstance(base, bases.SGD):
            return 1e-2
        return 1e-4 if mode == "finetune" else 1e-3
    rate = base._learning_rate
    if isinstance(rate, keras.Variable):
        return shortest(keras.ops.convert_to_numpy(rate))
    return rate


def share_clock(
    optimizer: keras.optimizers.Optimizer, base: keras.optimizers.Optimizer
) -> None:
    """Let the base read DualOpt's step counter and learning rate."""
    for name in ("_iterations", "_learning_rate"):
        old, new = getattr(base, name), getattr(optimizer, name)
        if old is new:
            continue
        if isinstance(old, keras.Variable):
            base._untrack_variable(old)
        setattr(base, name, new)
    if hasattr(optimizer, "_distribution_strategy"):
        base._distribution_strategy = optimizer._distribution_strategy


def check_unbuilt(base: keras.optimizers.Optimizer) -> None:
    """Refuse a base that two optimizers share.

    Raises:
        ValueError: If another one has built it.
    """
    if base.built:
        raise ValueError(
            "Expected: a `base` of this DualOpt's own. Received: "
            f"{type(base).__name__} that was built meanwhile (by another "
            "optimizer or model). Make a new instance for each DualOpt."
        )


def track_in_order(
    optimizer: keras.optimizers.Optimizer, wanted: Sequence[keras.Variable]
) -> None:
    """Track variables in a given order: Keras' wrappers save by position."""
    for variable in optimizer.variables:
        optimizer._untrack_variable(variable)
    for variable in wanted:
        optimizer._track_variable(variable)


def label(base: keras.optimizers.Optimizer) -> str:
    """Return a name that tells the paper's rules from Keras' namesakes."""
    name = type(base).__name__
    return name if isinstance(base, bases.PaperRule) else f"keras.{name}"


def build_base(
    optimizer: keras.optimizers.Optimizer,
    base: keras.optimizers.Optimizer,
    variables: Sequence[keras.Variable],
) -> None:
    """Build the base, and track its state as DualOpt's."""
    share_clock(optimizer, base)
    base.build(list(variables))
    # After the build: the base must not make accumulators of its own, but its
    # `iterations` must count real updates as DualOpt's does.
    base.gradient_accumulation_steps = optimizer.gradient_accumulation_steps
    known = {id(variable) for variable in optimizer.variables}
    for variable in state_of(base):
        if id(variable) not in known:
            known.add(id(variable))
            optimizer._track_variable(variable)


def state_of(base: keras.optimizers.Optimizer) -> list[keras.Variable]:
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


def base_step(
    base: keras.optimizers.Optimizer,
    gradients: Sequence[Any],
    variables: Sequence[keras.Variable],
    learning_rate: Any,
) -> None:
    """Let the base decay and move the weights, as it would unwrapped."""
    base._apply_weight_decay(variables)
    base._backend_update_step(gradients, variables, learning_rate)


def warn_if_narrow(
    base: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]
) -> None:
    """Warn where a Keras optimizer computes in half precision."""
    if isinstance(base, bases.PaperRule):
        return
    for variable in variables:
        if variable.dtype in ("float16", "bfloat16"):
            warnings.warn(
                f"{type(base).__name__} computes in the dtype of the weights, "
                f"and {variable.path!r} is {variable.dtype}: small steps round "
                "to nothing, the step counter sticks at 256 in bfloat16. Use "
                "base='adam' or 'sgd', which compute in float32, or a mixed "
                "precision policy, which keeps the weights in float32.",
                stacklevel=stacklevel(),
            )
            return


def base_to_config(base: keras.optimizers.Optimizer) -> dict[str, Any]:
    """Return the base's part of the config."""
    config: dict[str, Any] = keras.optimizers.serialize(base)
    # On torch Keras makes an instance of a class of its torch backend, and
    # would write a name that other backends cannot import. A user's subclass
    # keeps its own name.
    own = type(base).__module__.partition(".")[0] == "keras"
    for kind in type(base).__mro__ if own else ():
        if getattr(keras.optimizers, kind.__name__, None) is kind:
            config["module"] = "keras.optimizers"
            config["class_name"] = kind.__name__
            config["registered_name"] = None
            break
    # The learning rate is DualOpt's; a callable or a schedule would be written
    # twice, and read back as two objects.
    config["config"]["learning_rate"] = 0.001
    config["config"]["gradient_accumulation_steps"] = None
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


def base_from_config(config: Any, custom_objects: Any = None) -> Any:
    """Return what `base_to_config` was made from."""
    if not isinstance(config, dict):
        return config
    config = dict(config)
    pattern = config.pop("exclude_from_weight_decay", None)
    # Not `keras.optimizers.deserialize`: it goes by the bare class name, which
    # takes our Adam for Keras' own and does not know Lamb.
    base = keras.saving.deserialize_keras_object(
        config, custom_objects=custom_objects
    )
    if pattern is not None:
        base.exclude_from_weight_decay(var_names=[pattern])
    return base
