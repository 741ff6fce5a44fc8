"""A learning rate given after the optimizer was made: what η it makes.

`rollback` is meant at the reference learning rate η. A rate assigned by hand
before the first step is η; one that a callback sets there can only raise it;
one raised above it later makes the pull stronger, and that is said once.
"""

import re
import warnings

import keras
import networks
import numpy as np
import pytest
from networks import dual_opt

from keras_dualopt import DualOpt

PRETRAINED = networks.weights()
STEPS = 4
NEW = networks.RATE * 3.7


class Rates(keras.callbacks.Callback):
    """Sets the rate before each step."""

    def __init__(self, *rates):
        super().__init__()
        self.rates = rates

    def on_train_batch_begin(self, batch, logs=None):
        self.model.optimizer.learning_rate = self.rates[batch]


def compile_first(model, optimizer, rate):
    networks.compile(model, optimizer)
    optimizer.learning_rate = rate


def build_first(model, optimizer, rate):
    networks.compile(model, optimizer)
    optimizer.build(model.trainable_variables)
    optimizer.learning_rate = rate


def rate_first(model, optimizer, rate):
    optimizer.learning_rate = rate
    networks.compile(model, optimizer)


def twice(model, optimizer, rate):
    compile_first(model, optimizer, 5.0 * rate)
    optimizer.learning_rate = rate


ORDERS = [compile_first, build_first, rate_first, twice]


@pytest.mark.parametrize("rate", [NEW, networks.RATE / 3.7])
@pytest.mark.parametrize("order", ORDERS)
def test_a_rate_assigned_before_the_first_step_is_the_reference(order, rate):
    model, optimizer = networks.network(PRETRAINED), dual_opt()
    order(model, optimizer, rate)
    assert_trains_at(model, rate)


def assert_trains_at(model, rate):
    """Train; the rate is obeyed, and the pull is measured against it."""
    networks.fit(model, STEPS)
    found = model.optimizer.reference_learning_rate
    assert found == pytest.approx(rate, rel=1e-6)
    wanted = networks.expected(
        STEPS,
        PRETRAINED,
        rate=rate,
        lambdas=networks.strengths(eta=rate),
    )
    networks.assert_close(model, wanted[-1])


@pytest.mark.parametrize(
    "kind", [np.float32, np.array, keras.ops.convert_to_tensor, keras.Variable]
)
def test_a_rate_in_an_array_is_its_number(kind, tmp_path):
    model = networks.compiled(dual_opt(), PRETRAINED)
    rate = kind(NEW)
    model.optimizer.learning_rate = rate
    assert all(v is not rate for v in model.optimizer.variables)
    model.optimizer.learning_rate = model.optimizer.learning_rate
    assert_trains_at(model, NEW)
    # Before the state of a file has its variables, and as Keras' idiom.
    model.save_weights(tmp_path / "x.weights.h5")
    again = networks.compiled(dual_opt(), PRETRAINED)
    again.load_weights(tmp_path / "x.weights.h5")
    again.optimizer.learning_rate = kind(NEW / 4.0)
    again.optimizer.learning_rate = again.optimizer.learning_rate * 0.5
    networks.fit(again, 1)
    assert float(again.optimizer.learning_rate) == pytest.approx(NEW / 8.0)


@pytest.mark.parametrize(
    "rate", ["1e-3", None, True, np.ones(2), keras.optimizers.SGD()]
)
@pytest.mark.parametrize("mode", ["finetune", "scratch"])
def test_what_is_no_rate_is_refused_and_changes_nothing(rate, mode):
    optimizer = DualOpt(NEW, mode=mode)
    with pytest.raises(TypeError, match=r"number, a schedule.*Received: "):
        optimizer.learning_rate = rate
    assert float(optimizer.learning_rate) == pytest.approx(NEW)
    assert len(optimizer.variables) == 2  # The counter and the rate.


def test_an_assigned_reference_is_saved(tmp_path):
    optimizer = dual_opt()
    optimizer.learning_rate = NEW
    again = DualOpt.from_config(optimizer.get_config())
    assert again.reference_learning_rate == pytest.approx(NEW, rel=1e-6)
    model = networks.compiled(optimizer, PRETRAINED)
    networks.fit(model, 1)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras").optimizer
    assert loaded.reference_learning_rate == optimizer.reference_learning_rate


def test_the_peak_of_an_assigned_schedule_is_the_reference():
    optimizer = dual_opt(keras.optimizers.schedules.CosineDecay(0.01, 100))
    optimizer.learning_rate = keras.optimizers.schedules.CosineDecay(
        0.0, 100, warmup_target=NEW, warmup_steps=3
    )
    assert optimizer.reference_learning_rate == NEW


def test_a_reference_that_was_given_stays():
    optimizer = dual_opt(reference_learning_rate=networks.RATE)
    with warnings.catch_warnings():
        # Whether so strong a pull is said is the affair of another test.
        warnings.simplefilter("ignore")
        optimizer.learning_rate = 2.0 * networks.RATE
        model = networks.compiled(optimizer, PRETRAINED)
        networks.fit(model, STEPS)
    assert optimizer.reference_learning_rate == networks.RATE
    wanted = networks.expected(STEPS, PRETRAINED, rate=2.0 * networks.RATE)
    networks.assert_close(model, wanted[-1])


def test_a_rate_assigned_to_the_variable_itself_is_obeyed_and_no_reference():
    """Past the setter: not noticed, so that the pull goes with the rate."""
    rates = [NEW, 1.9 * NEW]
    model = networks.compiled(dual_opt(), PRETRAINED)
    for step, rate in enumerate(rates):
        model.optimizer.learning_rate.assign(rate)
        networks.fit(model, 1, start=step)
    assert model.optimizer.reference_learning_rate == networks.RATE
    wanted = networks.expected(2, PRETRAINED, rate=lambda step: rates[step])
    networks.assert_close(model, wanted[-1])


def test_a_warm_up_by_callback_leaves_the_reference():
    rates = [networks.RATE * (step + 1) / STEPS for step in range(STEPS)]
    model = networks.compiled()
    networks.fit(model, STEPS, callbacks=[Rates(*rates)])
    assert model.optimizer.reference_learning_rate == networks.RATE
    wanted = networks.expected(STEPS, PRETRAINED, rate=lambda step: rates[step])
    networks.assert_close(model, wanted[-1])


@pytest.mark.parametrize("hook", ["epoch", "batch"])
def test_a_higher_rate_set_by_callback_before_the_first_step_is_the_reference(
    hook,
):
    def set_rate(number, logs=None):
        model.optimizer.learning_rate = NEW

    model = networks.compiled()
    callback = keras.callbacks.LambdaCallback(
        **{
            "on_epoch_begin": set_rate if hook == "epoch" else None,
            "on_train_batch_begin": set_rate if hook == "batch" else None,
        }
    )
    networks.fit(model, STEPS, callbacks=[callback])
    found = model.optimizer.reference_learning_rate
    assert found == pytest.approx(NEW, rel=1e-6)
    wanted = networks.expected(
        STEPS, PRETRAINED, rate=NEW, lambdas=networks.strengths(eta=NEW)
    )
    networks.assert_close(model, wanted[-1])


def test_keras_schedule_callback_sets_the_reference_the_same_way():
    model = networks.compiled()
    callback = keras.callbacks.LearningRateScheduler(lambda epoch: NEW)
    networks.fit(model, STEPS, callbacks=[callback])
    found = model.optimizer.reference_learning_rate
    assert found == pytest.approx(NEW, rel=1e-6)


def test_a_rate_raised_above_the_reference_later_is_said_once():
    """The weights are as the specification has it; the person is told."""
    factors = (1.0, 0.5, 4.0, 8.0)
    rates = [networks.RATE * factor for factor in factors]
    model = networks.compiled()
    with pytest.warns(UserWarning, match="reference_learning_rate") as caught:
        networks.fit(model, STEPS, callbacks=[Rates(*rates)])
    (text,) = networks.told(caught)
    assert re.search(r"\b4(\.0+)?\b", text)
    assert "\n" not in text
    assert model.optimizer.reference_learning_rate == networks.RATE
    wanted = networks.expected(STEPS, PRETRAINED, rate=lambda step: rates[step])
    networks.assert_close(model, wanted[-1])


def test_a_rate_raised_by_hand_between_two_fits_is_said_once():
    model = networks.compiled()
    networks.fit(model, 1)
    with pytest.warns(UserWarning, match="reference_learning_rate"):
        model.optimizer.learning_rate = 2.0 * networks.RATE
    model.optimizer.learning_rate = 3.0 * networks.RATE
    networks.fit(model, 1)


def test_no_word_of_a_lower_rate_or_of_scratch_mode():
    """Warnings are errors here."""
    model = networks.compiled()
    networks.fit(model, 2, callbacks=[Rates(0.03, 0.02)])
    model.optimizer.learning_rate = 0.01
    model.optimizer.learning_rate = networks.RATE
    scratch = networks.compiled(DualOpt(0.01, **networks.SCRATCH), PRETRAINED)
    networks.fit(scratch, 2, callbacks=[Rates(0.01, 0.04)])
    scratch.optimizer.learning_rate = 0.09


def row(optimizer, layer):
    lines = []
    optimizer.summary(print_fn=lines.append)
    text = "\n".join(lines)
    (found,) = [line for line in text.splitlines() if layer in line]
    return found.split()


def test_summary_shows_the_strength_at_the_present_rate():
    model = networks.compiled()
    networks.fit(model, 1)
    assert "0.21" in row(model.optimizer, "dense_0")
    model.optimizer.learning_rate = networks.RATE / 2
    found = row(model.optimizer, "dense_0")
    assert "0.105" in found
    assert "0.21" not in found
