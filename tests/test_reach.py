"""`reach`: a distance that no weight goes beyond, at any learning rate.

The reference is OLOR's Algorithm 2 with another ρ, in float64.
"""

import keras
import networks
import numpy as np
import pytest
import reference
from cases import (
    DEPTHS,
    LONG,
    SCHEDULES,
    initial_weights,
    make_variables,
    quadratic_gradient,
)
from loops import apply_steps, compiled_steps, values

from keras_dualopt import DualOpt, bases
from keras_dualopt.bases.accepted import step_bound
from keras_dualopt.pull import reach_at

POWER = 1.7
INFINITE = float("inf")


def distance(relative, reach, reach_max):
    """Return R by the definition, with 1/0 and 1/∞ as they are meant."""
    if relative is None:
        return INFINITE
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = np.float64(1.0) / reach_max, np.float64(1.0) / reach
        share = (1.0 - relative) ** POWER
        inverse = low + (share * (high - low) if share else 0.0)
        return 1.0 / inverse


class Reaching(reference.OlorAdam):
    """Algorithm 2 at a layer's own rate, with ρ = η/(η + R)."""

    def __init__(self, theta_0, far, rate):
        super().__init__(theta_0, 0.0)
        self.far, self.rate = far, rate

    def step(self, g_t, eta_t):
        return super().step(g_t, eta_t * self.rate)

    def rho(self, eta_t):
        return eta_t / (eta_t + self.far) if eta_t > 0.0 else 0.0


def sizes():
    """Return the rms of θ₀ of each layer, for each row of `LAYERS`."""
    layers = {}
    for name, theta in zip(DEPTHS, initial_weights(), strict=True):
        layers.setdefault(name.rpartition("/")[0], []).append(
            theta.astype("float32").ravel()
        )
    rms = {
        layer: np.sqrt(np.mean(np.square(np.concatenate(parts))))
        for layer, parts in layers.items()
    }
    return [rms[name.rpartition("/")[0]] for name in DEPTHS]


def weights_of(reach, reach_max, shallow_rate=1.0, relative=False):
    units = sizes() if relative else [1.0] * len(DEPTHS)
    return [
        Reaching(
            theta,
            distance(depth, reach, reach_max) * unit,
            1.0 if depth is None else shallow_rate ** (1.0 - depth),
        )
        for theta, depth, unit in zip(
            initial_weights(), DEPTHS.values(), units, strict=True
        )
    ]


# name: (arguments of DualOpt, arguments of the reference).
CASES = {
    "absolute": (
        {"reach": 0.07},
        {"reach": 0.07, "reach_max": 0.21},
    ),
    "a share of the weights' size": (
        {"reach": "7%", "reach_max": "31%"},
        {"reach": 0.07, "reach_max": 0.31, "relative": True},
    ),
    "the same everywhere": (
        {"reach": 0.07, "reach_max": 0.07},
        {"reach": 0.07, "reach_max": 0.07},
    ),
    "free at the output": (
        {"reach": 0.07, "reach_max": INFINITE},
        {"reach": 0.07, "reach_max": INFINITE},
    ),
    "with layer-wise rates": (
        {"reach": 0.07, "reach_max": 0.5, "shallow_rate": 0.05},
        {"reach": 0.07, "reach_max": 0.5, "shallow_rate": 0.05},
    ),
    "a share, with layer-wise rates": (
        {"reach": "7%", "reach_max": "20%", "shallow_rate": 0.3},
        {
            "reach": 0.07,
            "reach_max": 0.2,
            "shallow_rate": 0.3,
            "relative": True,
        },
    ),
}


def dualopt(rate, **arguments):
    return DualOpt(rate, power=POWER, depth=DEPTHS, **arguments)


def assert_trajectory(got, wanted):
    for step, (one, other) in enumerate(zip(got, wanted, strict=True)):
        for name, a, b in zip(DEPTHS, one, other, strict=True):
            np.testing.assert_allclose(a, b, **LONG, err_msg=f"{step} {name}")


@pytest.mark.parametrize("steps", [apply_steps, compiled_steps])
@pytest.mark.parametrize("case", CASES)
def test_trajectory_is_the_references(case, steps):
    arguments, meant = CASES[case]
    schedule = SCHEDULES["cosine with warm-up from 0"]
    got = steps(
        dualopt(schedule.make(), **arguments),
        make_variables(),
        quadratic_gradient(),
        200 if steps is compiled_steps else 40,
    )
    wanted = reference.train(
        weights_of(**meant), quadratic_gradient(), schedule.rate, len(got)
    )
    assert_trajectory(got, wanted)


def test_no_weight_is_lost_where_a_rate_is_assigned_in_the_middle():
    """The reach is the same at every rate: there is nothing to refer to."""
    rates = [0.01] * 10 + [0.2] * 10 + [0.003] * 10
    optimizer = dualopt(0.01, reach=0.07)
    usual = quadratic_gradient()

    def gradient(step, thetas):
        optimizer.learning_rate = rates[step]
        return usual(step, thetas)

    got = apply_steps(optimizer, make_variables(), gradient, 30)
    wanted = reference.train(
        weights_of(0.07, 0.21), quadratic_gradient(), rates.__getitem__, 30
    )
    assert_trajectory(got, wanted)
    assert optimizer.reference_learning_rate is None


@pytest.mark.parametrize("base", ["adam", "Nadam", "Lion"])
def test_an_infinite_reach_is_the_base_to_the_last_bit(base):
    def make():
        if base == "adam":
            return bases.Adam()
        return getattr(keras.optimizers, base)(0.02)

    alone = make()
    alone.learning_rate = 0.02
    free = apply_steps(alone, make_variables(), quadratic_gradient(), 5)
    got = apply_steps(
        dualopt(0.02, base=make(), reach=INFINITE),
        make_variables(),
        quadratic_gradient(),
        5,
    )
    for one, other in zip(got, free, strict=True):
        networks.assert_same(one, other)


@pytest.mark.parametrize("base", ["adam", "Lion"])
def test_no_reach_is_the_pretrained_weights(base):
    made = base if base == "adam" else keras.optimizers.Lion()
    start = make_variables()
    got = apply_steps(
        dualopt(0.02, base=made, reach=0.0, reach_max=0.0),
        start,
        quadratic_gradient(),
        4,
    )[-1]
    for value, theta, depth in zip(
        got, initial_weights(), DEPTHS.values(), strict=True
    ):
        if depth is None:
            assert np.abs(value - theta).min() > 0.0
        else:
            np.testing.assert_array_equal(value, theta.astype("float32"))


def test_a_layer_of_zeros_takes_the_size_of_its_neighbours():
    start = initial_weights()
    start[2] = np.zeros_like(start[2])  # middle/kernel, alone at depth 0.37.
    optimizer = dualopt(0.01, reach="10%", reach_max="10%")
    apply_steps(optimizer, make_variables(start), quadratic_gradient(), 1)
    found = [optimizer.pull.distance(level) for level in optimizer.pull.levels]
    np.testing.assert_allclose(found[2], found[0], rtol=1e-6)  # 0 is nearer.
    np.testing.assert_allclose(found[0], 0.1 * sizes()[0], rtol=1e-6)
    lines = []
    optimizer.summary(lines.append)
    assert f"{found[2]:.3g}" in lines[0]


def test_reach_at_the_ends_and_between():
    assert reach_at(0.0, 0.2, 0.6, POWER) == pytest.approx(0.2)
    assert reach_at(1.0, 0.2, 0.6, POWER) == 0.6
    assert reach_at(0.3, 0.2, 0.6, POWER) == pytest.approx(
        distance(0.3, 0.2, 0.6)
    )
    assert reach_at(1.0, 0.2, INFINITE, POWER) == INFINITE
    assert dualopt(0.1, reach="20%").reach_max == "60%"
    assert dualopt(0.1, reach=0.5).reach_max == 1.5


# The bound.

BOUNDED = {
    "the paper's Adam": lambda: bases.Adam(0.8, 0.97),
    "Adam": lambda: keras.optimizers.Adam(beta_1=0.8, beta_2=0.97),
    "AdamW": lambda: keras.optimizers.AdamW(weight_decay=0.0),
    "Nadam": lambda: keras.optimizers.Nadam(beta_1=0.8, beta_2=0.97),
    "Adamax": lambda: keras.optimizers.Adamax(beta_1=0.8, beta_2=0.97),
    "Lion": lambda: keras.optimizers.Lion(),
    "RMSprop": lambda: keras.optimizers.RMSprop(rho=0.8),
    "Adagrad": lambda: keras.optimizers.Adagrad(),
}


def worst(step):
    """Gradients of many kinds side by side, each a torment to some base."""
    random = np.random.default_rng([5, step])
    spike = 1e3 if step % 67 == 66 else 1e-6
    grows = 1.22 ** (step % 80) * 1e-8
    return np.array(
        [
            1.0,
            (-1.0) ** (step // 40),
            spike,
            grows,
            -grows,
            random.normal(),
            random.normal() ** 5,
            1.0 if step % 2 else -0.99,
            0.0 if step % 50 else 1.0,
            1e-12,
        ],
        dtype="float32",
    )


def rate_of(step):
    """A rate that jumps by 100, and falls to 0 in between."""
    return [0.1, 0.003, 0.0, 0.3, 0.01][step // 23 % 5]


class Jumping(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        rates = keras.ops.convert_to_tensor(
            np.array([rate_of(n) for n in range(115)], dtype="float32")
        )
        return keras.ops.take(rates, keras.ops.cast(step, "int32") % 115)

    def get_config(self):
        return {}


@pytest.mark.parametrize("base", BOUNDED)
def test_no_weight_goes_beyond_its_reach(base):
    steps = 5000 if base == "Lion" else 460
    made = BOUNDED[base]()
    bound = step_bound(made)
    theta = np.linspace(-2.0, 2.0, 10)
    variable = keras.Variable(theta, dtype="float32", name="weight")
    optimizer = DualOpt(Jumping(), base=made, reach=0.04, depth={"weight": 0.0})
    got = compiled_steps(
        optimizer, [variable], lambda step, _: [worst(step)], steps
    )
    far = np.max([np.abs(weights[0] - theta) for weights in got], axis=0)
    assert far.max() <= bound * 0.04 * (1.0 + 1e-4)
    # Some weight has gone as far as it may where steps have full length.
    assert far.max() >= (0.6 if base == "Adagrad" else 0.9) * 0.04
    if base == "Lion":
        np.testing.assert_allclose(far[0], 0.04, rtol=1e-4)


def test_layers_of_one_name_and_depth_have_each_their_own_reach():
    model = networks.towers(1.0, 0.01)
    base = keras.optimizers.Lion()
    networks.compile(model, DualOpt(0.1, base=base, reach="20%"))
    optimizer, variables = model.optimizer, model.trainable_variables
    optimizer.build(variables)
    start, rows = networks.arrays(variables), optimizer.rows
    networks.fit(model, 12)
    far = [
        np.max(np.abs(now - theta))
        for now, theta in zip(networks.arrays(variables), start, strict=True)
    ]
    for layer in (slice(n, n + 2) for n in range(0, 8, 2)):
        numbers = np.concatenate([theta.ravel() for theta in start[layer]])
        size = np.sqrt(np.mean(np.square(numbers)))
        share = 0.2 if rows[layer][0].relative == 0.0 else 0.6
        assert 0.2 < max(far[layer]) / (share * size) < 1.0 + 1e-5


@pytest.mark.parametrize("name", ["the paper's Adam", "Adam", "Nadam"])
def test_the_bound_of_a_step_is_reached_by_the_worst_gradients(name):
    """Cauchy and Schwarz: equality where gᵢ is proportional to aᵢ/bᵢ."""
    made = BOUNDED[name]()
    bound = step_bound(made)
    optimizer = BOUNDED[name]()
    optimizer.learning_rate = 1.0
    variable = keras.Variable([0.0], dtype="float32")
    longest = 0.0
    for step in range(280):
        # After a silence, since bias correction hides the worst at first.
        gradient = 1e-6 * (0.97 / 0.8) ** (step - 200) if step >= 200 else 0.0
        before = values([variable])[0]
        optimizer.apply(
            [keras.ops.convert_to_tensor([np.float32(gradient)])], [variable]
        )
        moved = float(np.abs(values([variable])[0] - before)[0])
        longest = max(longest, moved)
    assert longest <= bound * (1.0 + 1e-4)
    assert longest >= (0.8 if name == "Nadam" else 0.97) * bound


def test_usual_values_of_the_bound():
    assert step_bound(bases.Adam()) == pytest.approx(7.27, abs=0.01)
    assert step_bound(keras.optimizers.Lion()) == 1.0
    assert step_bound(keras.optimizers.RMSprop()) == pytest.approx(10**0.5)
    assert step_bound(keras.optimizers.Adamax()) == pytest.approx(1.009, 1e-3)


UNBOUNDED = {
    "SGD": (keras.optimizers.SGD, "as long as the gradient"),
    "sgd": (lambda: "sgd", "as long as the gradient"),
    "Muon": (keras.optimizers.Muon, "matrices"),
    "Lamb": (keras.optimizers.Lamb, "layer's size"),
    "Adadelta": (keras.optimizers.Adadelta, "steps before"),
    "Adafactor": (keras.optimizers.Adafactor, "weights' size"),
    "RMSprop with momentum": (
        lambda: keras.optimizers.RMSprop(momentum=0.5),
        "momentum",
    ),
    "centered RMSprop": (
        lambda: keras.optimizers.RMSprop(centered=True),
        "variance",
    ),
    "Adam whose averages do not fit": (
        lambda: keras.optimizers.Adam(beta_1=0.99, beta_2=0.9),
        "beta_2",
    ),
    "a class of one's own": (
        lambda: type("Own", (keras.optimizers.Adam,), {})(),
        "nothing is known",
    ),
}


@pytest.mark.parametrize("case", UNBOUNDED)
def test_a_base_without_a_bound_is_refused_in_words(case):
    make, words = UNBOUNDED[case]
    with pytest.raises(ValueError, match=f"`reach` needs.*{words}.*rollback="):
        DualOpt(reach=0.1, base=make())


WRONG = {
    "reach and rollback": ({"reach": 0.1, "rollback": 0.1}, "two ways"),
    "reach and rollback_min": ({"reach": 0.1, "rollback_min": 0.1}, "two ways"),
    "reach_max alone": ({"reach_max": 0.1}, "needs `reach`"),
    "below 0": ({"reach": -0.1}, "≥ 0"),
    "not a number": ({"reach": float("nan")}, "≥ 0"),
    "no percent sign": ({"reach": "0.2"}, "'20%'"),
    "no number": ({"reach": "far%"}, "'20%'"),
    "two units": ({"reach": 0.1, "reach_max": "20%"}, "one unit"),
    "max below": ({"reach": 0.3, "reach_max": 0.2}, "≥ `reach`"),
    "a reference": (
        {"reach": 0.3, "reference_learning_rate": 0.1},
        "every learning rate",
    ),
    "scratch mode": ({"reach": 0.3, "mode": "scratch"}, "belongs to mode"),
    "a rate of 0": ({"shallow_rate": 0.0}, r"\(0, 1\]"),
    "a rate above 1": ({"shallow_rate": 1.5}, r"\(0, 1\]"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_refused(case):
    arguments, words = WRONG[case]
    with pytest.raises(ValueError, match=words):
        DualOpt(**arguments)


# Layer-wise rates.


@pytest.mark.parametrize("mode", ["finetune", "scratch"])
def test_a_rate_of_1_is_no_change_to_the_last_bit(mode):
    trajectories = [
        compiled_steps(
            DualOpt(0.02, mode=mode, depth=networks_depths(mode), **arguments),
            make_variables(),
            quadratic_gradient(),
            5,
        )
        for arguments in ({}, {"shallow_rate": 1.0})
    ]
    for one, other in zip(*trajectories, strict=True):
        networks.assert_same(one, other)


def networks_depths(mode):
    if mode == "finetune":
        return DEPTHS
    return {k: 1.0 if r is None else r for k, r in DEPTHS.items()}


BASES = {
    "adam": lambda rate: bases.Adam(learning_rate=rate),
    "sgd": lambda rate: bases.SGD(learning_rate=rate),
    "adam, decay": lambda rate: bases.Adam(learning_rate=rate, weight_decay=2),
    "sgd, decay": lambda rate: bases.SGD(learning_rate=rate, weight_decay=2),
    "AdamW": lambda rate: keras.optimizers.AdamW(rate, weight_decay=0.3),
    "Nadam": lambda rate: keras.optimizers.Nadam(rate),
    "SGD": lambda rate: keras.optimizers.SGD(rate, momentum=0.8),
}


@pytest.mark.parametrize("steps", [apply_steps, compiled_steps])
@pytest.mark.parametrize("base", BASES)
def test_each_layer_moves_at_its_own_rate(base, steps):
    """As the base does alone, at that rate, in each layer."""
    got = steps(
        DualOpt(
            0.02,
            base=BASES[base](0.02),
            rollback=0.0,
            shallow_rate=0.2,
            depth=DEPTHS,
        ),
        make_variables(),
        quadratic_gradient(),
        8,
    )
    for index, depth in enumerate(DEPTHS.values()):
        share = 1.0 if depth is None else 0.2 ** (1.0 - depth)
        alone = apply_steps(
            BASES[base](0.02 * share),
            make_variables(),
            quadratic_gradient(),
            8,
        )
        for step in range(8):
            np.testing.assert_allclose(
                got[step][index], alone[step][index], rtol=2e-5, atol=2e-6
            )


@pytest.mark.parametrize("steps", [apply_steps, compiled_steps])
def test_a_slowed_layer_coasts_on_at_a_rate_of_0(steps):
    """As momentum does, whose step is not in proportion to the rate."""

    def schedule(share):
        return keras.optimizers.schedules.PiecewiseConstantDecay(
            [2], [0.02 * share, 0.0]
        )

    got, alone = (
        steps(optimizer, make_variables(), quadratic_gradient(), 6)
        for optimizer in (
            DualOpt(
                schedule(1.0),
                base=BASES["SGD"](0.02),
                rollback=0.0,
                shallow_rate=0.2,
                depth={".*": 0.5},
            ),
            BASES["SGD"](schedule(0.2**0.5)),
        )
    )
    for one, other in zip(got, alone, strict=True):
        networks.assert_close(one, other)


def test_rollback_is_as_strong_as_without_layer_wise_rates():
    """ρ is the paper's; the step alone is shorter."""

    class Slowed(reference.OlorAdam):
        def step(self, g_t, eta_t):
            self.eta_t = eta_t
            return super().step(g_t, eta_t * share)

        def rho(self, eta_t):
            return super().rho(self.eta_t)

    got = compiled_steps(
        DualOpt(0.03, shallow_rate=0.1, rollback=0.21, depth={".*": 0.4}),
        make_variables(),
        quadratic_gradient(),
        60,
    )
    share = 0.1 ** (1.0 - 0.4)
    strength = reference.f(0.4, 0.21, 0.0, 2.0) / 0.03
    wanted = reference.train(
        [Slowed(theta, strength) for theta in initial_weights()],
        quadratic_gradient(),
        lambda step: 0.03,
        60,
    )
    assert_trajectory(got, wanted)


# Files and pictures know it.


@pytest.mark.parametrize("arguments", [{"reach": 0.3}, {"reach": "30%"}])
def test_a_saved_run_goes_on_as_if_it_had_never_stopped(tmp_path, arguments):
    def run(stop):
        model = networks.network(networks.weights())
        optimizer = DualOpt(networks.RATE, shallow_rate=0.4, **arguments)
        networks.compile(model, optimizer.bind(model, head=()))
        networks.fit(model, 4)
        if stop:
            model.save(tmp_path / "run.keras")
            model = keras.saving.load_model(tmp_path / "run.keras")
            assert model.optimizer.reach == arguments["reach"]
            assert model.optimizer.shallow_rate == 0.4
        networks.fit(model, 4, start=4)
        return networks.arrays(model.weights)

    networks.assert_same(run(True), run(False))


def test_config_brings_everything_back():
    made = DualOpt(0.1, reach="20%", reach_max=INFINITE, shallow_rate=0.3)
    again = DualOpt.from_config(made.get_config())
    assert (again.reach, again.reach_max) == ("20%", INFINITE)
    assert again.shallow_rate == 0.3
    assert again.get_config() == made.get_config()
    assert "reach='20%'" in repr(again)


def test_sizes_belong_to_layers_and_not_to_their_numbers(tmp_path):
    """Read where the depths are others, they are measured anew."""
    path = tmp_path / "run.weights.h5"

    def model_of(depth):
        model = networks.network(networks.weights())
        networks.compile(model, DualOpt(0.01, reach="10%", depth=depth))
        return model

    first = {".*dense_0/.*": 0.0, ".*dense_1/.*": 0.5, ".*": 1.0}
    turned = {".*dense_0/.*": 1.0, ".*dense_1/.*": 0.5, ".*": 0.0}
    model = model_of(first)
    networks.fit(model, 1)
    model.save_weights(path)
    other = model_of(turned)
    other.optimizer.build(other.trainable_variables)
    other.load_weights(path)

    def size(optimizer):
        level = optimizer.pull.levels[0]
        return optimizer.pull.distance(level) / level.amount

    assert size(other.optimizer) == pytest.approx(size(model.optimizer), 1e-5)


def test_a_share_of_nothing_is_refused():
    model = networks.network([0.0 * w for w in networks.weights()])
    networks.compile(model, DualOpt(0.01, reach="10%").bind(model, head=()))
    with pytest.raises(ValueError, match="which is 0 in every weight"):
        networks.fit(model, 1)


def test_a_default_follows_what_it_is_the_default_of():
    optimizer = DualOpt(reach=0.05)
    optimizer.reach = 0.01
    assert optimizer.reach_max == pytest.approx(0.03)
    optimizer.reach = "20%"
    assert optimizer.reach_max == "60%"
    optimizer.reach = None
    assert (optimizer.rollback, optimizer.reach) == (0.01, None)
    optimizer.learning_rate = 0.3
    assert optimizer.reference_learning_rate == 0.3


def test_a_derived_reference_is_derived_after_a_reload_too(tmp_path):
    model = networks.compiled(DualOpt(1e-4, rollback=0.05), networks.weights())
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    again.optimizer.learning_rate = 1e-2
    assert again.optimizer.reference_learning_rate == 1e-2
