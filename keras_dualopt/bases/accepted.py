"""Which optimizers may be the base of a DualOpt, and what is known of them."""

import difflib
import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_dualopt.bases.adam import Adam
from keras_dualopt.bases.paper_rule import PaperRule
from keras_dualopt.bases.sgd import SGD
from keras_dualopt.caller import stacklevel

_PAPER_RULES = {"adam": Adam, "sgd": SGD}

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


def make_base(base: object, mode: str) -> keras.optimizers.Optimizer:
    """Return the base optimizer that `DualOpt(base=...)` asks for."""
    if isinstance(base, str) and base in _PAPER_RULES:
        return _PAPER_RULES[base]()
    if not isinstance(base, keras.optimizers.Optimizer):
        error = ValueError if isinstance(base, str) else TypeError
        raise error(
            "`base` must be 'adam', 'sgd' or a `keras.optimizers.Optimizer` "
            f"instance. Received: {base!r}. For other optimizers pass an "
            "instance, such as `base=keras.optimizers.Lion()`."
        )
    for kind in type(base).__mro__:
        if kind.__name__ in _REFUSED:
            raise ValueError(
                "`base` must take steps that a pull can follow. Received: "
                f"{type(base).__name__}; {_REFUSED[kind.__name__]}."
            )
    for name in ("apply", "apply_gradients", "stateless_apply"):
        # As SAM and gradient centralization are often written.
        kinds = (kind for kind in type(base).__mro__ if name in vars(kind))
        if not _is_of_keras(next(kinds)):
            raise ValueError(
                "`base` must take its step in `update_step`. Received: "
                f"{type(base).__name__}, whose own `{name}` DualOpt would "
                "never call. Override `update_step(gradient, variable, "
                "learning_rate)` instead."
            )
    if base.built:
        raise ValueError(
            "`base` must be a fresh optimizer. Received: a "
            f"{type(base).__name__} that is already built (its state belongs "
            "to other variables or another optimizer). Make a new instance."
        )
    for name, unset in _OWNED_BY_DUALOPT.items():
        value = getattr(base, name, unset)
        if value is not unset and value != unset:
            raise ValueError(
                f"`base` must have no `{name}` of its own. Received: "
                f"{type(base).__name__}({name}={value!r}). It concerns the "
                f"whole step: pass it to DualOpt, `DualOpt({name}={value!r})`."
            )
    for name in _DECAYS if mode == "scratch" else ():
        value = getattr(base, name, None)
        if value:
            raise ValueError(
                "`base` must have no weight decay in scratch mode, where "
                f"DualOpt's own acts. Received: {type(base).__name__}({name}="
                f"{value!r}): two decays. Pass 0.0, `{type(base).__name__}("
                f"{name}=0.0)`, and `DualOpt(weight_decay=...)`."
            )
    return base


def label(base: keras.optimizers.Optimizer) -> str:
    """Return a name that tells the paper's rules from Keras' namesakes."""
    name = type(base).__name__
    return name if isinstance(base, PaperRule) else f"keras.{name}"


def warn_if_narrow(
    base: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]
) -> None:
    """Warn of weights that are stored in half precision."""
    for variable in variables:
        if variable.dtype in ("float16", "bfloat16"):
            warnings.warn(
                f"{variable.path!r} is stored in {variable.dtype}, and small "
                "steps and pulls round to nothing when it is, however they "
                "are computed"
                + (
                    ""
                    if isinstance(base, PaperRule)
                    else f" ({type(base).__name__} also computes in it)"
                )
                + f". Use the policy 'mixed_{variable.dtype}', which keeps "
                "the weights in float32.",
                stacklevel=stacklevel(),
            )
            return


def base_to_config(base: keras.optimizers.Optimizer) -> dict[str, Any]:
    """Return the base's part of the config."""
    config: dict[str, Any] = keras.optimizers.serialize(base)
    # On torch Keras makes an instance of a class of its torch backend, and
    # would write a name that other backends cannot import. A user's subclass
    # keeps its own name.
    for kind in type(base).__mro__ if _is_of_keras(type(base)) else ():
        if getattr(keras.optimizers, kind.__name__, None) is kind:
            config["module"] = "keras.optimizers"
            config["class_name"] = kind.__name__
            config["registered_name"] = None
            break
    # The learning rate is DualOpt's; a callable or a schedule would be written
    # twice, and read back as two objects.
    config["config"]["learning_rate"] = 0.001
    config["config"]["gradient_accumulation_steps"] = None
    return config


def base_from_config(
    config: str | Mapping[str, Any], custom_objects: Mapping[str, type] | None
) -> str | keras.optimizers.Optimizer:
    """Return what `base_to_config` was made from."""
    if isinstance(config, str):
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


def check_owner(
    given: Mapping[str, object],
    base: type[keras.optimizers.Optimizer],
    own: Sequence[str],
) -> None:
    """Refuse what DualOpt has no argument for, and show where it belongs."""
    # The backend's own constructor passes everything on.
    common = {
        name
        for kind in keras.optimizers.Optimizer.__mro__
        for name in inspect.signature(kind.__init__).parameters
    } - {"self", "args", "kwargs"}
    for name, value in given.items():
        if name in common:
            continue
        for kind in (base, Adam, SGD, *_NAMESAKES):
            if name in inspect.signature(kind).parameters:
                raise ValueError(
                    f"`{name}` is an argument of the base. Received: "
                    f"DualOpt({name}={value!r}). Pass it there: "
                    f"`base={_place_of(kind)}.{kind.__name__}"
                    f"({name}={value!r})`."
                )
        remedy = _REMEDIES.get(name)
        if remedy is None:
            near = difflib.get_close_matches(name, [*own, *common], 1, 0.6)
            remedy = (
                f"Did you mean `{near[0]}`?"
                if near
                else (
                    "Its arguments are: "
                    + ", ".join(f"`{n}`" for n in own)
                    + "."
                )
            )
        raise ValueError(
            f"DualOpt has no argument `{name}`. Received: {name}={value!r}. "
            f"{remedy}"
        )


# Whose arguments are looked for, beside those of the base in use.
_NAMESAKES = (keras.optimizers.Adam, keras.optimizers.SGD)

_REMEDIES = {
    "lr": "Did you mean `learning_rate`?",
    "head": "Name the head with `optimizer.bind(model, head=...)`.",
    "layer_decay": "Did you mean `shallow_rate`? It is dⁿ for a decay d a "
    "block over n blocks.",
    "gamma": "Did you mean `power`?",
}


def _place_of(kind: type) -> str:
    if kind in (Adam, SGD):
        return "keras_dualopt.bases"
    return "keras.optimizers" if _is_of_keras(kind) else kind.__module__


def _is_of_keras(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "keras"


# How long a step may be: what `reach` is a bound with.


def step_bound(base: keras.optimizers.Optimizer) -> float:
    """Return c, how far a weight may be moved in a step of learning rate 1.

    With |u_t| ≤ c in every step, d_t = (1 − ρ)(d_{t−1} − η_t u_t) and ρ = η_t /
    (η_t + R), a weight is never farther than c R from θ₀: |d_{t−1}| ≤ c R gives
    |d_t| ≤ (1 − ρ)(c R + η_t c) = c R.

    | base | c |
    |---|---|
    | Adam, AdamW, Nadam | sup over t of √Σ aᵢ²/bᵢ |
    | Adamax | (1 − β₁)/(1 − β₁/β₂), at least 1 |
    | RMSprop | 1/√(1 − ρ) |
    | Lion, Adagrad | 1 |

    where the step of an Adam is Σ aᵢ gᵢ / √(Σ bᵢ gᵢ²) over the gradients gᵢ so
    far, a and b the weights of its two averages: by the inequality of Cauchy
    and Schwarz (Σ aᵢ gᵢ)² ≤ Σ aᵢ²/bᵢ Σ bᵢ gᵢ². For long runs that is (1 − β₁) /
    √((1 − β₂)(1 − β₁²/β₂)), 7.3 at the usual values, which only gradients that
    grow by β₂/β₁ in each step reach; those of training stay near 1. A
    decoupled decay λ of the base's own adds λ |θ₀|, weight by weight.

    Raises:
        ValueError: For a base whose steps have no such bound; it says why.
    """
    kind = _keras_kind(base)
    if kind in ("Adam", "AdamW", "Nadam"):
        return _adam_bound(base, kind)
    if kind in ("Lion", "Adagrad"):
        return 1.0  # Adagrad's |g| ≤ √Σg², its own square among them.
    if kind == "Adamax":
        ratio = base.beta_1 / base.beta_2
        if ratio >= 1.0:
            raise _unbounded(base, "`beta_1` is not below `beta_2`")
        # The first step is of length 1, later ones grow up to this.
        return max(1.0, (1.0 - float(base.beta_1)) / (1.0 - float(ratio)))
    if kind == "RMSprop":
        if base.momentum:
            raise _unbounded(
                base,
                "its `momentum` adds up steps of earlier learning rates, so "
                "that no bound follows a schedule down",
            )
        if base.centered:
            raise _unbounded(
                base,
                "`centered=True` divides by a variance, which may be 0",
            )
        return 1.0 / math.sqrt(1.0 - float(base.rho))
    raise _unbounded(base, _UNBOUNDED.get(kind, _UNKNOWN))


_UNKNOWN = "nothing is known of the length of its steps"
_UNBOUNDED = {
    "SGD": "its steps are as long as the gradient",
    "Muon": "it moves whole matrices, not weights",
    "Lamb": "its steps are a share of the layer's size",
    "Adadelta": "its steps grow with the steps before",
    "Adafactor": "its steps are a share of the weights' size",
}


def _unbounded(base: keras.optimizers.Optimizer, why: str) -> ValueError:
    return ValueError(
        "`reach` needs a base whose steps are bounded by the learning rate. "
        f"Received: {type(base).__name__}; {why}. Use `rollback=` with it, or "
        "one of Adam, AdamW, Nadam, Adamax, Lion, RMSprop, Adagrad."
    )


def _keras_kind(base: keras.optimizers.Optimizer) -> str:
    """Return the name of Keras' class, or of the paper's rule.

    Empty for a subclass of a user's own, which may do anything.
    """
    known = type(base) in (Adam, SGD) or _is_of_keras(type(base))
    return type(base).__name__ if known else ""


def _adam_bound(base: keras.optimizers.Optimizer, kind: str) -> float:
    beta_1, beta_2 = float(base.beta_1), float(base.beta_2)
    ratio = beta_1**2 / beta_2
    if ratio >= 1.0:
        raise _unbounded(base, "`beta_1`² is not below `beta_2`")
    # Until the averages have forgotten where they began.
    last = math.ceil(40.0 / min(1.0 - beta_1, 1.0 - beta_2))
    t = np.arange(1, min(last, 1_000_000) + 1, dtype="float64")
    # Σ aᵢ²/bᵢ: b of the gradient k steps ago is (1 − β₂) β₂ᵏ / (1 − β₂ᵗ).
    ages = (1.0 - ratio**t) / (1.0 - ratio)
    scale = (1.0 - beta_2**t) / (1.0 - beta_2)
    if kind != "Nadam":
        first = ((1.0 - beta_1) / (1.0 - beta_1**t)) ** 2
        return float(np.sqrt(np.max(first * scale * ages)))
    # Keras' Nadam: μ_{t+1} m_t/(1 − Πμ) + (1 − μ_t) g_t/(1 − Πμ).
    mu = beta_1 * (1.0 - 0.5 * 0.96**t)
    mu_next = beta_1 * (1.0 - 0.5 * 0.96 ** (t + 1.0))
    product = np.cumprod(mu)
    old = mu_next * (1.0 - beta_1) / (1.0 - product * mu_next)
    new = (1.0 - mu) / (1.0 - product)
    total = (old + new) ** 2 + old**2 * (ages - 1.0)
    return float(np.sqrt(np.max(total * scale)))
