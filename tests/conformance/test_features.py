"""Every feature of Keras' training, in `fit`, against the slow reference."""

import networks
import numpy as np
import pytest
import reference
from cases import (
    BASES,
    DECAYS,
    FINETUNE,
    LONG,
    SCRATCH,
    SHARES,
    make_variables,
    quadratic_gradient,
)
from loops import compiled_steps
from twins import Group

from keras_dualopt import DualOpt

STEPS = 7

# name: (arguments of DualOpt, those of the reference)
FEATURES = {
    "accumulation": (
        {"gradient_accumulation_steps": 3},
        {"accumulate": 3},
    ),
    "averages": (
        {"use_ema": True, "ema_momentum": 0.7},
        {"ema": (0.7, None)},
    ),
    "averages that overwrite": (
        {"use_ema": True, "ema_momentum": 0.7, "ema_overwrite_frequency": 3},
        {"ema": (0.7, 3)},
    ),
    "clipnorm": ({"clipnorm": 0.1}, {"clip": reference.by_norm(0.1)}),
    "clipvalue": ({"clipvalue": 0.03}, {"clip": reference.by_value(0.03)}),
    "global_clipnorm": (
        {"global_clipnorm": 0.2},
        {"clip": reference.by_global_norm(0.2)},
    ),
    "loss_scale_factor": ({"loss_scale_factor": 128.0}, {}),
    "all together": (
        {
            "gradient_accumulation_steps": 2,
            "use_ema": True,
            "ema_momentum": 0.7,
            "ema_overwrite_frequency": 2,
            "global_clipnorm": 0.2,
            "loss_scale_factor": 0.25,
        },
        {
            "accumulate": 2,
            "ema": (0.7, 2),
            "clip": reference.by_global_norm(0.2),
        },
    ),
}
ROWS = [("finetune", "sgd", feature) for feature in FEATURES] + [
    ("finetune", "adam", "all together"),
    ("scratch", "adam", "all together"),
]
RULES = {"adam": reference.OlorAdam, "sgd": reference.OlorSgd}


def averages(trajectory, momentum, every, accumulate):
    """Return the averages that `fit` leaves in the weights at its end."""
    found = None
    for step, thetas in enumerate(trajectory):
        update = step // accumulate
        if found is None or update == 0:
            found = thetas
        elif every and (update + 1) % every == 0:
            found = thetas  # Overwritten: the weights are the averages.
        else:
            found = [
                momentum * average + (1.0 - momentum) * theta
                for average, theta in zip(found, thetas, strict=True)
            ]
    return found


@pytest.mark.parametrize(("mode", "rule", "feature"), ROWS)
def test_feature_acts_as_in_the_reference(mode, rule, feature):
    given, by = FEATURES[feature]
    arguments = {"finetune": networks.FINETUNE, "scratch": networks.SCRATCH}
    model = networks.compiled(
        DualOpt(networks.RATE, base=rule, **arguments[mode], **given),
        networks.weights(),
    )
    networks.fit(model, STEPS)
    trajectory = networks.expected(STEPS, mode=mode, rule=RULES[rule], **by)
    wanted = trajectory[-1]
    if "ema" in by:
        wanted = averages(trajectory, *by["ema"], by.get("accumulate", 1))
        assert np.abs(wanted[0] - trajectory[-1][0]).max() > 1e-4 or (
            feature == "all together"
        )
    networks.assert_close(model, wanted)
    if mode == "finetune":
        networks.assert_anchored_at(model.optimizer, networks.weights())


def test_every_feature_of_the_table_changes_something():
    """Otherwise its row would pass without it."""
    plain = networks.expected(STEPS, rule=reference.OlorSgd)[-1]
    for _, by in FEATURES.values():
        if by and by != {"ema": (0.7, None)}:  # Seen at the end of `fit`.
            other = networks.expected(STEPS, rule=reference.OlorSgd, **by)
            assert np.abs(plain[0] - other[-1][0]).max() > 1e-3


# With every base, in a loop: the features stand around step and pull.
COMBINED = {
    "finetune": (
        {
            "gradient_accumulation_steps": 2,
            "use_ema": True,
            "ema_momentum": 0.7,
            "ema_overwrite_frequency": 2,
            "global_clipnorm": 0.8,
        },
        {
            "accumulate": 2,
            "ema": (0.7, 2),
            "clip": reference.by_global_norm(0.8),
        },
    ),
    "scratch": (
        {"use_ema": True, "ema_momentum": 0.7, "clipnorm": 0.6},
        {"ema": (0.7, None), "clip": reference.by_norm(0.6)},
    ),
}


# In scratch mode, those with a decay to switch off or a state of their own.
WRAPPED = [("finetune", base) for base in BASES] + [
    ("scratch", base) for base in ("AdamW", "Muon", "Nadam")
]


@pytest.mark.parametrize(("mode", "base"), WRAPPED)
def test_features_act_around_a_wrapped_base(mode, base):
    given, by = COMBINED[mode]
    decay = mode == "finetune"
    rate = 0.03
    arguments = FINETUNE if decay else SCRATCH
    optimizer = DualOpt(
        rate, base=BASES[base](rate, decay), **arguments, **given
    )
    variables = make_variables()
    gradient = quadratic_gradient()
    trajectory = compiled_steps(optimizer, variables, gradient, STEPS)

    group = Group(
        BASES[base](rate, decay),
        make_variables(),
        [share / rate for share in SHARES] if decay else DECAYS,
        anchor=None if decay else 0.0,
    )
    wanted = reference.train(
        group.weights, gradient, lambda step: rate, STEPS, **by
    )
    for got, thetas in zip(trajectory, wanted, strict=True):
        for value, theta in zip(got, thetas, strict=True):
            np.testing.assert_allclose(value, theta, **LONG)
