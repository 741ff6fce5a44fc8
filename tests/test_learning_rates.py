"""Every way to give a learning rate, and what the pull makes of it.

ρ_t = strength · η_t / η: η_t may be a number, a schedule, a callable or what a
callback sets; η, the reference learning rate, is fixed when the optimizer is
made.
"""

import keras
import networks
import numpy as np
import pytest
import reference
from cases import (
    BASES,
    FINETUNE,
    LONG,
    SCHEDULES,
    SHARES,
    initial_weights,
    make_variables,
    quadratic_gradient,
)
from loops import apply_steps, compiled_steps, values

from keras_dualopt import DualOpt, bases

schedules = keras.optimizers.schedules

NO_STRENGTH = {**FINETUNE, "rollback": 0.0, "rollback_min": 0.0}


def reference_trajectory(eta, rate, steps):
    return reference.train(
        [
            reference.OlorSgd(theta_0, share / eta)
            for theta_0, share in zip(initial_weights(), SHARES, strict=True)
        ],
        quadratic_gradient(),
        rate,
        steps,
    )


def assert_trajectory(got, wanted):
    for step, thetas in zip(got, wanted, strict=True):
        for value, theta in zip(step, thetas, strict=True):
            np.testing.assert_allclose(value, theta, **LONG)


@pytest.mark.parametrize("name", SCHEDULES)
def test_pull_follows_the_learning_rate(name):
    schedule = SCHEDULES[name]
    optimizer = DualOpt(schedule.make(), base="sgd", **FINETUNE)
    trajectory = compiled_steps(
        optimizer, make_variables(), quadratic_gradient(), 24
    )
    assert_trajectory(
        trajectory, reference_trajectory(schedule.peak, schedule.rate, 24)
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_reference_rate_is_the_highest_rate(name):
    schedule = SCHEDULES[name]
    optimizer = DualOpt(schedule.make())
    assert optimizer.reference_learning_rate == schedule.peak
    # The NumPy schedule, which the test above has compared with Keras' own.
    rates = [schedule.rate(step) for step in range(300)]
    np.testing.assert_allclose(max(rates), schedule.peak, rtol=1e-12)


@pytest.mark.parametrize("rate", [3e-5, 0.01, 0.1, 1, 7.3])
def test_reference_rate_is_the_float_to_the_last_digit(rate):
    optimizer = DualOpt(rate)
    assert optimizer.reference_learning_rate == rate
    assert isinstance(optimizer.reference_learning_rate, float)


def _peak_in_base():
    return keras.optimizers.Lion(schedules.CosineDecay(3e-4, 100))


# What `learning_rate=None` means: (mode, base, expected reference or rate).
UNSET = {
    "finetune, adam": ("finetune", lambda: "adam", 1e-4),
    "finetune, sgd": ("finetune", lambda: "sgd", 1e-2),
    "scratch, adam": ("scratch", lambda: "adam", 1e-3),
    "scratch, sgd": ("scratch", lambda: "sgd", 1e-2),
    "finetune, bases.Adam()": ("finetune", bases.Adam, 1e-4),
    "the rule's own": ("finetune", lambda: bases.SGD(learning_rate=0.7), 0.7),
    "Lion's own": ("finetune", lambda: keras.optimizers.Lion(3e-5), 3e-5),
    "AdamW's default": ("finetune", keras.optimizers.AdamW, 1e-3),
    "Lion's schedule": ("finetune", _peak_in_base, 3e-4),
}


@pytest.mark.parametrize("case", UNSET)
def test_learning_rate_is_the_bases_or_the_modes_when_unset(case):
    mode, base, rate = UNSET[case]
    optimizer = DualOpt(mode=mode, base=base())
    np.testing.assert_allclose(float(optimizer.learning_rate), rate, rtol=1e-6)
    wanted = rate if mode == "finetune" else None
    assert optimizer.reference_learning_rate == wanted


def test_learning_rate_overrides_the_bases_own():
    base = keras.optimizers.SGD(5.0)
    optimizer = DualOpt(0.03, base=base, rollback=0.0, depth={".*": 0.0})
    variables = make_variables()
    start = values(variables)
    gradient = quadratic_gradient()
    apply_steps(optimizer, variables, gradient, 1)
    for value, theta, g in zip(
        values(variables), start, gradient(0, start), strict=True
    ):
        np.testing.assert_allclose(value, theta - 0.03 * g, rtol=1e-5)
    assert optimizer.reference_learning_rate == 0.03


class OwnSchedule(schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.02 / (1.0 + 0.1 * keras.ops.cast(step, "float32"))

    def get_config(self):
        return {}


class OwnCosine(schedules.CosineDecay):
    """A subclass may do anything in `__call__`: no peak is known."""


NO_PEAK = {
    "callable": lambda: lambda: 0.02,
    "a schedule of one's own": OwnSchedule,
    "a subclass of a schedule": lambda: OwnCosine(0.02, 10),
    "restarts that grow": lambda: schedules.CosineDecayRestarts(
        0.02, 10, m_mul=1.1
    ),
    "exponential growth": lambda: schedules.ExponentialDecay(0.02, 10, 1.2),
    "inverse time growth": lambda: schedules.InverseTimeDecay(0.02, 10, -0.01),
}


@pytest.mark.parametrize("case", NO_PEAK)
def test_reference_rate_must_be_given_where_no_peak_is_known(case):
    with pytest.raises(ValueError, match="which is not known") as error:
        DualOpt(NO_PEAK[case]())
    assert "Pass `reference_learning_rate=`" in str(error.value)
    optimizer = DualOpt(NO_PEAK[case](), reference_learning_rate=0.04)
    assert optimizer.reference_learning_rate == 0.04
    # It cancels in scratch mode, so none is needed there.
    DualOpt(NO_PEAK[case](), mode="scratch")


def test_pull_follows_a_schedule_of_ones_own():
    optimizer = DualOpt(
        OwnSchedule(), base="sgd", reference_learning_rate=0.05, **FINETUNE
    )
    trajectory = compiled_steps(
        optimizer, make_variables(), quadratic_gradient(), 12
    )
    assert_trajectory(
        trajectory,
        reference_trajectory(0.05, lambda step: 0.02 / (1 + 0.1 * step), 12),
    )


def test_pull_follows_a_callable():
    rates = [0.01, 0.04, 0.02, 0.007, 0.03]
    now = {"step": 0}
    optimizer = DualOpt(
        lambda: rates[now["step"]],
        base="sgd",
        reference_learning_rate=0.04,
        **FINETUNE,
    )
    usual = quadratic_gradient()

    def gradient(step, thetas):
        now["step"] = step
        return usual(step, thetas)

    trajectory = apply_steps(optimizer, make_variables(), gradient, 5)
    assert_trajectory(
        trajectory, reference_trajectory(0.04, rates.__getitem__, 5)
    )


def test_pull_follows_an_assigned_learning_rate():
    rates = [0.01, 0.04, 0.02]
    optimizer = DualOpt(
        0.02, base="sgd", reference_learning_rate=0.02, **FINETUNE
    )
    usual = quadratic_gradient()

    def gradient(step, thetas):
        optimizer.learning_rate = rates[step]
        return usual(step, thetas)

    trajectory = apply_steps(optimizer, make_variables(), gradient, 3)
    assert_trajectory(
        trajectory, reference_trajectory(0.02, rates.__getitem__, 3)
    )


def test_base_and_pull_follow_a_schedule_assigned_later():
    optimizer = DualOpt(
        0.05, base=bases.SGD(), reference_learning_rate=0.05, **FINETUNE
    )
    schedule = SCHEDULES["cosine"]
    optimizer.learning_rate = schedule.make()
    trajectory = apply_steps(
        optimizer, make_variables(), quadratic_gradient(), 4
    )
    assert_trajectory(trajectory, reference_trajectory(0.05, schedule.rate, 4))


def test_bases_own_decay_follows_a_schedule_assigned_later():
    """The base reads the rate of its decay from its own attribute."""
    trajectories = []
    for optimizer in (
        DualOpt(0.05, base=BASES["AdamW"](0.05), **NO_STRENGTH),
        BASES["AdamW"](0.05),
    ):
        variables, gradient = make_variables(), quadratic_gradient()
        apply_steps(optimizer, variables, gradient, 1)
        optimizer.learning_rate = SCHEDULES["cosine"].make()
        trajectories.append(apply_steps(optimizer, variables, gradient, 2))
    for got, wanted in zip(*trajectories, strict=True):
        networks.assert_same(got, wanted)


@pytest.mark.parametrize("base", ["adam", "sgd", keras.optimizers.Nadam])
def test_first_step_of_a_warm_up_from_zero_moves_nothing(base):
    optimizer = DualOpt(
        SCHEDULES["cosine with warm-up from 0"].make(),
        base=base if isinstance(base, str) else base(),
        **FINETUNE,
    )
    variables = make_variables()
    start = values(variables)
    first, second = compiled_steps(
        optimizer, variables, quadratic_gradient(), 2
    )
    for value, theta in zip(first, start, strict=True):
        np.testing.assert_array_equal(value, theta)
    for value, theta in zip(second, start, strict=True):
        assert np.isfinite(value).all()
        assert not np.array_equal(value, theta)


# In the tests below no gradient moves the weights, so that fit() is the pull
# alone: the distance to θ₀ shrinks by 1 − strength · η_t/η in every epoch.
RATE = 0.01
OFFSET = 0.5


def no_loss(_, prediction):
    return 0.0 * keras.ops.mean(prediction)


@pytest.fixture(scope="module")
def still_model():
    """A model of one Dense layer that nothing but a pull moves."""
    return keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(3, name="only")]
    )


def fit_still(model, optimizer, epochs, callbacks):
    """Return distance to θ₀ at the end, relative to that at the start."""
    model.compile(optimizer, no_loss, jit_compile=False)
    optimizer.build(model.trainable_variables)
    optimizer.anchor_at()
    start = networks.arrays(model.trainable_variables)
    model.set_weights([theta + OFFSET for theta in start])
    model.fit(
        np.ones((4, 2)),
        np.ones((4, 3)),
        batch_size=4,
        epochs=epochs,
        callbacks=callbacks,
        verbose=0,
    )
    end = networks.arrays(model.trainable_variables)
    return [(b - a) / OFFSET for a, b in zip(start, end, strict=True)]


def still_optimizer(**arguments):
    return DualOpt(
        RATE,
        rollback=0.2,
        depth={".*": 0.0},
        reference_learning_rate=RATE,
        **arguments,
    )


class Seen(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.rates = []

    def on_train_batch_begin(self, batch, logs=None):
        rate = self.model.optimizer.learning_rate
        self.rates.append(float(keras.ops.convert_to_numpy(rate)))


CALLBACKS = {
    "LearningRateScheduler": (
        lambda: keras.callbacks.LearningRateScheduler(
            lambda epoch: [0.01, 0.004, 0.03, 0.0005][epoch]
        ),
        [0.01, 0.004, 0.03, 0.0005],
    ),
    "ReduceLROnPlateau": (
        lambda: keras.callbacks.ReduceLROnPlateau(
            monitor="loss", factor=0.3, patience=1
        ),
        [0.01, 0.01, 0.003, 0.0009],
    ),
}


@pytest.mark.parametrize("base", ["adam", keras.optimizers.Adagrad])
@pytest.mark.parametrize("name", CALLBACKS)
def test_pull_follows_what_a_callback_sets(still_model, name, base):
    callback, rates = CALLBACKS[name]
    optimizer = still_optimizer(base=base if base == "adam" else base())
    seen = Seen()
    left = fit_still(still_model, optimizer, 4, [callback(), seen])
    np.testing.assert_allclose(seen.rates, rates, rtol=1e-6)
    wanted = np.prod([1.0 - 0.2 * rate / RATE for rate in rates])
    for share in left:
        np.testing.assert_allclose(share, wanted, rtol=1e-5)
    # η is not what the callback says, and is not what float32 makes of it.
    assert optimizer.reference_learning_rate == RATE
    assert optimizer.get_config()["reference_learning_rate"] == RATE


def fit_at(model, optimizer, rates):
    """Train with a callback that sets each epoch's learning rate."""
    model.compile(optimizer, no_loss, jit_compile=False)
    callback = keras.callbacks.LearningRateScheduler(rates.__getitem__)
    x, y = np.ones((4, 2)), np.ones((4, 3))
    model.fit(x, y, epochs=len(rates), callbacks=[callback], verbose=0)


def fit_at_once(model):
    """Train on one batch, in the step that is compiled already."""
    model.fit(np.ones((4, 2)), np.ones((4, 3)), verbose=0)


def unmeasured():
    """Return an optimizer that was given no reference rate."""
    optimizer = DualOpt(RATE, rollback=0.2, depth={".*": 0.0})
    return optimizer.anchor_at()  # Earlier tests have moved the model.


@pytest.mark.parametrize("built", [False, True])
def test_rate_assigned_before_the_first_step_is_the_reference(
    still_model, built
):
    for optimizer, wanted in (
        (unmeasured(), 0.25 * RATE),
        (still_optimizer().anchor_at(), RATE),
    ):
        if built:
            optimizer.build(still_model.trainable_variables)
        optimizer.learning_rate = 0.25 * RATE
        assert optimizer.reference_learning_rate == wanted
        # And not one that a plateau leaves later.
        fit_at(still_model, optimizer, [0.1 * RATE])
        assert optimizer.reference_learning_rate == wanted


@pytest.mark.parametrize(
    ("rates", "wanted"),
    [([0.1 * RATE, RATE], RATE), ([3.0 * RATE, 2.0 * RATE], 3.0 * RATE)],
    ids=["warm-up", "above"],
)
def test_callback_before_the_first_step_only_raises_the_reference(
    still_model, rates, wanted
):
    optimizer = unmeasured()
    fit_at(still_model, optimizer, rates)
    assert optimizer.reference_learning_rate == wanted
    # Compiled steps know it, too.
    start = networks.arrays(still_model.trainable_variables)
    still_model.set_weights([theta + OFFSET for theta in start])
    fit_at_once(still_model)
    for now, theta in zip(
        networks.arrays(still_model.trainable_variables), start, strict=True
    ):
        left = 1.0 - 0.2 * rates[-1] / wanted
        np.testing.assert_allclose((now - theta) / OFFSET, left, rtol=1e-5)


def test_rate_raised_above_the_reference_later_warns_once(still_model):
    optimizer = unmeasured()
    with pytest.warns(UserWarning, match="above the reference") as caught:
        fit_at(still_model, optimizer, [RATE, 1.005 * RATE, 3 * RATE, 4 * RATE])
    texts = [str(warning.message) for warning in caught]
    (text,) = [text for text in texts if "above the reference" in text]
    assert "3 times as strong" in text
    assert optimizer.reference_learning_rate == RATE


def test_share_is_never_more_than_the_whole_way(still_model):
    callback = keras.callbacks.LearningRateScheduler(lambda epoch: 1000 * RATE)
    left = fit_still(still_model, still_optimizer(), 1, [callback])
    for share in left:
        np.testing.assert_array_equal(share, np.zeros_like(share))


def test_pull_of_a_reloaded_optimizer_is_measured_against_the_first_rate(
    still_model,
):
    first = DualOpt(RATE, rollback=0.2, depth={".*": 0.0})
    fit_still(still_model, first, 1, [])
    first.learning_rate = 0.25 * RATE  # what a plateau has left of it
    again = DualOpt.from_config(first.get_config())
    assert again.reference_learning_rate == RATE
    (kernel, bias) = fit_still(still_model, again, 1, [])
    np.testing.assert_allclose(kernel, 1.0 - 0.2 * 0.25, rtol=1e-5)
    np.testing.assert_allclose(bias, 1.0 - 0.2 * 0.25, rtol=1e-5)


@pytest.mark.parametrize("rate", [0.01, 3e-5, 0.1])
def test_config_keeps_the_reference_rate_exactly(rate):
    config = DualOpt(rate).get_config()
    assert config["reference_learning_rate"] == rate
    again = DualOpt.from_config(config)
    assert again.reference_learning_rate == rate
    assert again.get_config() == config
    given = DualOpt(rate, reference_learning_rate=0.3 * rate)
    assert given.get_config()["reference_learning_rate"] == 0.3 * rate


def test_schedule_cannot_be_overwritten_by_a_callback(still_model):
    optimizer = DualOpt(schedules.CosineDecay(RATE, 10), depth={".*": 0.0})
    callback = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1)
    with pytest.raises(TypeError, match="LearningRateSchedule"):
        fit_still(still_model, optimizer, 1, [callback])
