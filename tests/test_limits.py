"""Settings in which DualOpt must equal something known, bit for bit or nearly.

Strength 0 is the base optimizer; ρ = 1 is the anchor; equal decay everywhere
has a closed form; and a wrapped base is its own step followed by one pull.
"""

import keras
import networks
import numpy as np
import pytest
import reference
from cases import (
    BACKEND,
    BASES,
    DECAYS,
    DEPTHS,
    FINETUNE,
    SCRATCH,
    SCRATCH_DEPTHS,
    SHARES,
    SHORT,
    initial_weights,
    make_variables,
    quadratic_gradient,
)
from loops import compiled_steps, tensors, values

from keras_dualopt import DualOpt, bases

RATE = 0.03

# No strength in either mode; everything else is as it always is.
NOTHING = {
    "finetune": {**FINETUNE, "rollback": 0.0, "rollback_min": 0.0},
    "scratch": {**SCRATCH, "weight_decay": 0.0, "weight_decay_min": 0.0},
}
EVERY_BASE = {
    **BASES,
    "paper's Adam": lambda rate, decay=True: bases.Adam(learning_rate=rate),
    "paper's SGD": lambda rate, decay=True: bases.SGD(learning_rate=rate),
}


# Scratch mode adds nothing to fine-tune mode but an anchor that is 0: bases
# with a decay to switch off, with state of their own per step, and the paper's.
STRENGTH_ZERO = [("finetune", base) for base in EVERY_BASE] + [
    ("scratch", base)
    for base in ("AdamW", "Muon", "Nadam", "paper's Adam", "paper's SGD")
]


@pytest.mark.parametrize(("mode", "base"), STRENGTH_ZERO)
def test_base_is_unchanged_when_strength_is_zero(mode, base):
    decay = mode == "finetune"
    make = EVERY_BASE[base]
    wrapped = DualOpt(RATE, base=make(RATE, decay), **NOTHING[mode])
    trajectory = compiled_steps(
        wrapped, make_variables(), quadratic_gradient(), 8
    )
    alone = compiled_steps(
        make(RATE, decay), make_variables(), quadratic_gradient(), 8
    )
    for got, wanted in zip(trajectory, alone, strict=True):
        networks.assert_same(got, wanted)
    assert not np.array_equal(alone[-1][0], alone[-2][0])


@pytest.mark.parametrize("base", EVERY_BASE)
def test_base_is_unchanged_in_fit_when_strength_is_zero(base):
    make = EVERY_BASE[base]
    trained = []
    nothing = {**networks.FINETUNE, "rollback": 0.0, "rollback_min": 0.0}
    for optimizer in (DualOpt(RATE, base=make(RATE), **nothing), make(RATE)):
        model = networks.compiled(optimizer, networks.weights())
        networks.fit(model, 6)
        trained.append(networks.arrays(model.trainable_variables))
    networks.assert_same(*trained)
    assert not np.array_equal(trained[0][0], networks.weights()[0])


def assert_pull_follows_base(dual, alone, anchored, rhos, steps):
    """For every step: θ_pre from the base alone, the pull from NumPy."""
    gradient = quadratic_gradient()
    pulled, free = make_variables(), make_variables()
    anchors = values(pulled) if anchored else [0.0] * len(pulled)
    for step in range(steps):
        gradients = gradient(step, values(pulled))
        dual.apply(tensors(gradients, pulled), pulled)
        alone.apply(tensors(gradients, free), free)
        for got, theta_pre, anchor, rho in zip(
            values(pulled), values(free), anchors, rhos, strict=True
        ):
            wanted = reference.pulled(theta_pre, anchor, rho)
            np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-7)
        for variable, value in zip(free, values(pulled), strict=True):
            variable.assign(value)


@pytest.mark.parametrize("base", BASES)
def test_step_is_the_bases_own_then_one_pull(base):
    make = BASES[base]
    dual = DualOpt(
        RATE, base=make(RATE), reference_learning_rate=0.05, **FINETUNE
    )
    rhos = [share * RATE / 0.05 for share in SHARES]
    assert_pull_follows_base(dual, make(RATE), True, rhos, steps=4)


@pytest.mark.parametrize("base", ["AdamW", "Muon", "SGD Nesterov"])
def test_step_is_the_bases_own_then_one_decay_in_scratch_mode(base):
    make = BASES[base]
    dual = DualOpt(RATE, base=make(RATE, False), **SCRATCH)
    rhos = [decay * RATE for decay in DECAYS]
    assert_pull_follows_base(dual, make(RATE, False), False, rhos, steps=3)


@pytest.mark.skipif(BACKEND != "torch", reason="compares with torch's own Adam")
@pytest.mark.parametrize(
    ("betas", "epsilon"), [((0.9, 0.999), 1e-8), ((0.7, 0.95), 1e-3)]
)
def test_papers_adam_is_torchs_adam(betas, epsilon):
    import torch

    optimizer = DualOpt(
        RATE,
        base=bases.Adam(*betas, epsilon=epsilon),
        **NOTHING["finetune"],
    )
    gradient = quadratic_gradient()
    trajectory = compiled_steps(optimizer, make_variables(), gradient, 100)

    weights = [
        torch.nn.Parameter(torch.tensor(w, dtype=torch.float32))
        for w in initial_weights()
    ]
    theirs = torch.optim.Adam(weights, lr=RATE, betas=betas, eps=epsilon)
    for step, got in enumerate(trajectory):
        now = [weight.detach().numpy().copy() for weight in weights]
        for weight, g in zip(weights, gradient(step, now), strict=True):
            weight.grad = torch.tensor(g, dtype=torch.float32)
        theirs.step()
        for value, weight in zip(got, weights, strict=True):
            np.testing.assert_allclose(value, weight.detach().numpy(), **SHORT)


@pytest.mark.parametrize("size", [1.0, 1e15], ids=["usual", "huge"])
@pytest.mark.parametrize("base", ["adam", "sgd", "Lion", "Nadam", "Muon"])
def test_weights_are_their_anchors_when_rho_is_one(base, size):
    made = BASES[base](RATE) if base in BASES else base
    optimizer = DualOpt(
        RATE,
        base=made,
        rollback=1.0,
        rollback_min=1.0,
        power=1.7,
        depth=DEPTHS,
    )
    variables = make_variables()
    start = values(variables)
    usual = quadratic_gradient()
    trajectory = compiled_steps(
        optimizer,
        variables,
        lambda step, theta: [g * size for g in usual(step, initial_weights())],
        4,
    )
    for got in trajectory:
        networks.assert_same(got[:-1], start[:-1])
        # The head has no anchor and goes where the base sends it.
        assert not np.array_equal(got[-1], start[-1])


@pytest.mark.parametrize("base", ["adam", "sgd", "Lion"])
def test_weights_are_zero_when_rho_is_one_in_scratch_mode(base):
    made = BASES[base](RATE) if base in BASES else base
    # A power of two, so that η_t · w is exactly 1.
    optimizer = DualOpt(
        0.03125,
        mode="scratch",
        base=made,
        weight_decay=32.0,
        weight_decay_min=32.0,
        depth=SCRATCH_DEPTHS,
    )
    variables = make_variables()
    compiled_steps(optimizer, variables, quadratic_gradient(), 2)
    for value in values(variables):
        np.testing.assert_array_equal(value, np.zeros_like(value))


def test_scratch_with_equal_decay_has_a_closed_form():
    """OLOR-SGD: θ_t = cᵗ θ_0 − η Σ c^(t−k+1) m_k, with c = 1 − η w."""
    decay, beta, steps = 0.7, 0.9, 60
    optimizer = DualOpt(
        RATE,
        mode="scratch",
        base="sgd",
        weight_decay=decay,
        weight_decay_min=decay,
        power=1.7,
        depth=SCRATCH_DEPTHS,
    )
    variables = make_variables()
    random = np.random.default_rng(5)
    gradients = [
        [random.normal(size=theta.shape) for theta in initial_weights()]
        for _ in range(steps)
    ]
    trajectory = compiled_steps(
        optimizer, variables, lambda step, _: gradients[step], steps
    )
    keep = 1.0 - RATE * decay
    for index, theta_0 in enumerate(initial_weights()):
        wanted = keep**steps * theta_0
        for k in range(1, steps + 1):
            m_k = sum(
                (1 - beta) * beta ** (k - j) * gradients[j - 1][index]
                for j in range(1, k + 1)
            )
            wanted = wanted - RATE * keep ** (steps - k + 1) * m_k
        np.testing.assert_allclose(
            trajectory[-1][index], wanted, rtol=1e-5, atol=1e-6
        )


def test_untouched_weights_shrink_geometrically_in_scratch_mode():
    """Without a gradient signal θ_t = (1 − η w)ᵗ θ_0 at each depth's own w."""
    optimizer = DualOpt(RATE, base="adam", **SCRATCH)
    variables = make_variables()
    compiled_steps(
        optimizer,
        variables,
        lambda step, theta: [np.zeros_like(value) for value in theta],
        25,
    )
    for value, theta_0, decay in zip(
        values(variables), initial_weights(), DECAYS, strict=True
    ):
        keep = 1.0 - RATE * decay
        np.testing.assert_allclose(value, keep**25 * theta_0, rtol=1e-5)


@pytest.mark.parametrize("mode", NOTHING)
@pytest.mark.parametrize("base", ["adam", "Lion"])
def test_excluded_variables_follow_the_base_alone(base, mode):
    arguments = {"finetune": FINETUNE, "scratch": SCRATCH}[mode]
    steps = []
    for given in (
        {**arguments, "exclude": ["deep/.*", "middle/kernel"]},
        arguments,
        NOTHING[mode],
    ):
        made = BASES[base](RATE) if base in BASES else base
        variables = make_variables()
        optimizer = DualOpt(RATE, base=made, **given)
        gradient = quadratic_gradient()
        gradients = tensors(gradient(0, values(variables)), variables)
        optimizer.apply(gradients, variables)
        steps.append(values(variables))
    for name, excluded, pulled, free in zip(DEPTHS, *steps, strict=True):
        alone = name.startswith(("deep", "middle"))
        np.testing.assert_array_equal(excluded, free if alone else pulled)
        if DEPTHS[name] is not None:
            assert not np.array_equal(pulled, free)


def single_layer(mode):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    optimizer = DualOpt(RATE, mode=mode)
    if mode == "finetune":
        optimizer.bind(model, head=())
    optimizer.build(model.trainable_variables)
    return networks.strengths_of(optimizer)


def test_only_layer_has_the_full_strength_in_both_modes():
    assert single_layer("finetune") == [0.01, 0.01]
    assert single_layer("scratch") == [0.05, 0.05]


def test_variables_without_gradient_are_not_pulled():
    optimizer = DualOpt(RATE, base="adam", **FINETUNE)
    variables = make_variables()
    gradient = quadratic_gradient()
    compiled_steps(optimizer, variables, gradient, 3)
    before = values(variables)
    gradients = gradient(3, before)
    gradients[0] = None
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply(tensors(gradients, variables), variables)
    after = values(variables)
    np.testing.assert_array_equal(after[0], before[0])
    assert all(
        not np.array_equal(new, old)
        for new, old in zip(after[1:], before[1:], strict=True)
    )


def test_constraints_act_after_the_pull():
    kernel = keras.Variable(
        np.array([0.9, -1.4, 2.0]), dtype="float32", name="kernel"
    )
    kernel.constraint = keras.constraints.NonNeg()
    optimizer = DualOpt(RATE, rollback=1.0, depth={"kernel": 0.0})
    optimizer.apply(tensors([np.ones(3)], [kernel]), [kernel])
    np.testing.assert_array_equal(
        values([kernel])[0], np.float32([0.9, 0.0, 2.0])
    )
