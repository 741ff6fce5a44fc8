"""Bases that cannot be wrapped rightly are refused, with the reason."""

import math

import keras
from cases import make_variables
from refusals import assert_refuses, made, refused, row

from keras_dualopt import DualOpt, bases

_optimizers = keras.optimizers
NAN = math.nan


def built_base():
    base = _optimizers.Adam()
    base.build(make_variables())
    return base


def overriding(name):
    """Return a class that changes its gradients in a method that is Keras'."""

    def method(self, gradients, *arguments):
        return getattr(_optimizers.Adam, name)(self, gradients, *arguments)

    own = type("Own", (_optimizers.Adam,), {name: method})
    return type("Inherited", (own,), {})


def with_base(make, **arguments):
    return lambda: DualOpt(base=make(), **arguments)


BASE = [
    row(
        "momentum beside a base by name",
        made(base="sgd", momentum=0.8),
        "is an argument of the base",
        "momentum=0.8",
        "`base=keras_dualopt.bases.SGD(momentum=0.8)`",
    ),
    row(
        "beta_1 without a base",
        made(beta_1=0.5),
        "is an argument of the base",
        "beta_1=0.5",
        "`base=keras_dualopt.bases.Adam(beta_1=0.5)`",
    ),
    row(
        "beta_1 of a Keras base",
        with_base(_optimizers.Lion, beta_1=0.5),
        "is an argument of the base",
        "beta_1=0.5",
        "`base=keras.optimizers.Lion(beta_1=0.5)`",
    ),
    row(
        "unknown base",
        made(base="adamw"),
        "`base` must be 'adam', 'sgd' or a `keras.optimizers.Optimizer`",
        "'adamw'",
        "pass an instance, such as `base=keras.optimizers.Lion()`",
    ),
    row(
        "base a class",
        made(base=_optimizers.Lion),
        "a `keras.optimizers.Optimizer` instance",
        "Lion",
        "instance",
        TypeError,
    ),
    row(
        "base built",
        with_base(built_base),
        "`base` must be a fresh optimizer",
        "Adam that is already built",
        "Make a new instance",
    ),
    row(
        "base Ftrl",
        with_base(_optimizers.Ftrl),
        "steps that a pull can follow",
        "Ftrl",
        "its weights are a function of its accumulators",
    ),
    row(
        "base DualOpt",
        with_base(DualOpt),
        "steps that a pull can follow",
        "DualOpt",
        "one pull is enough",
    ),
    row(
        "base LossScaleOptimizer",
        with_base(lambda: _optimizers.LossScaleOptimizer(_optimizers.Adam())),
        "steps that a pull can follow",
        "LossScaleOptimizer",
        "LossScaleOptimizer(DualOpt(...))",
    ),
    *(
        row(
            f"base with an {name} of its own",
            with_base(overriding(name)),
            "`base` must take its step in `update_step`",
            f"Inherited, whose own `{name}`",
            "Override `update_step(gradient, variable, learning_rate)`",
        )
        for name in ("apply", "apply_gradients", "stateless_apply")
    ),
    *(
        row(
            f"base with {name}",
            with_base(
                lambda name=name, value=value: _optimizers.SGD(**{name: value})
            ),
            f"`base` must have no `{name}` of its own",
            f"SGD({name}={value!r})",
            f"DualOpt({name}={value!r})",
        )
        for name, value in (
            ("clipnorm", 1.0),
            ("clipvalue", 0.5),
            ("global_clipnorm", 2.0),
            ("use_ema", True),
            ("loss_scale_factor", 128.0),
            ("gradient_accumulation_steps", 4),
        )
    ),
    *(
        row(
            f"{name}'s {decay} in scratch mode",
            with_base(make, mode="scratch"),
            "no weight decay in scratch mode",
            f"{name}({decay}=0.004): two decays",
            "Pass 0.0",
        )
        for name, decay, make in (
            ("AdamW", "weight_decay", _optimizers.AdamW),
            ("Muon", "weight_decay", _optimizers.Muon),
            (
                "Muon",
                "adam_weight_decay",
                lambda: _optimizers.Muon(weight_decay=0.0),
            ),
        )
    ),
    row(
        "beta_1 of the paper's Adam",
        lambda: bases.Adam(beta_1=1.0),
        "`beta_1` must be in [0, 1)",
        "1.0",
        "[0, 1)",
    ),
    row(
        "beta_2 of the paper's Adam",
        lambda: bases.Adam(beta_2=NAN),
        "`beta_2` must be in [0, 1)",
        "nan",
        "[0, 1)",
    ),
    row(
        "epsilon of the paper's Adam",
        lambda: bases.Adam(epsilon=0.0),
        "`epsilon` must be finite and > 0",
        "0.0",
        "0/0",
    ),
    row(
        "momentum of the paper's SGD",
        lambda: bases.SGD(momentum=-0.1),
        "`momentum` must be in [0, 1)",
        "-0.1",
        "[0, 1)",
    ),
]
if hasattr(_optimizers, "MultiOptimizer"):
    BASE.append(
        row(
            "base MultiOptimizer",
            with_base(lambda: _optimizers.MultiOptimizer([_optimizers.Adam()])),
            "steps that a pull can follow",
            "MultiOptimizer",
            "one of the optimizers inside of a MultiOptimizer",
        )
    )
if hasattr(_optimizers, "ScheduleFreeAdamW"):
    BASE.append(
        row(
            "base ScheduleFreeAdamW",
            with_base(_optimizers.ScheduleFreeAdamW),
            "steps that a pull can follow",
            "ScheduleFreeAdamW",
            "second copy of the weights",
        )
    )


@refused(BASE)
def test_constructor_refuses_the_base(action, error, words):
    assert_refuses(action, error, words)
