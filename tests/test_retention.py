"""`Retention`: the old task beside the new one, and a rule over both."""

import keras
import networks
import numpy as np
import pytest

from keras_dualopt.callbacks import Retention

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def tasks(seed):
    """Return arrays of another task than `networks.data()`."""
    return networks.data(batches=2, seed=seed)


def model_for(optimizer=None):
    return networks.compiled(optimizer, metrics=["mae"])


def error(weights, x, y):
    """Return the mean squared and the mean absolute error, in NumPy."""
    for index in range(networks.LAYERS):
        x = x @ weights[2 * index] + weights[2 * index + 1]
        if index < networks.LAYERS - 1:
            x = np.tanh(x)
    return np.mean((x - y) ** 2), np.mean(np.abs(x - y))


class Weights(keras.callbacks.Callback):
    """Keeps the weights of every epoch."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def on_epoch_end(self, epoch, logs=None):
        self.kept.append(networks.arrays(self.model.trainable_variables))


def train(model, callbacks, epochs=4, **arguments):
    return networks.epochs(model, epochs, callbacks, **arguments)


def test_one_old_task_is_measured_after_every_epoch():
    watched, old = Weights(), tasks(20)
    retention = Retention(old)
    history = train(model_for(), [retention, watched], epochs=3)
    expected = [error(weights, *old) for weights in watched.kept]
    np.testing.assert_allclose(
        history["kept_loss"], [mse for mse, _ in expected], **CLOSE
    )
    np.testing.assert_allclose(
        history["kept_mae"], [mae for _, mae in expected], **CLOSE
    )
    before, _ = error(networks.weights(), *old)
    np.testing.assert_allclose(retention.before["kept_loss"], before, **CLOSE)
    assert retention.best_epoch is None


def test_watching_changes_no_weight():
    watched, plain = model_for(), model_for()
    train(watched, [Retention(tasks(20))], validation_data=tasks(21))
    train(plain, [], validation_data=tasks(21))
    networks.assert_same(
        networks.arrays(watched.weights), networks.arrays(plain.weights)
    )


def test_several_old_tasks_and_any_optimizer():
    watched, tables = Weights(), {"first": tasks(20), "second": tasks(22)}
    history = train(
        model_for(keras.optimizers.SGD(0.1)),
        [Retention(tables), watched],
        epochs=2,
    )
    for name, table in tables.items():
        np.testing.assert_allclose(
            history[f"kept_{name}_loss"],
            [error(weights, *table)[0] for weights in watched.kept],
            **CLOSE,
        )


def test_a_model_that_shares_the_layers_is_measured_instead():
    model = model_for()
    features = keras.Model(model.inputs, model.layers[0].output)
    features.compile(loss="mse")
    x, _ = tasks(20)
    target = np.ones((len(x), networks.WIDTHS[1]), "float32")
    watched = Weights()
    history = train(
        model, [Retention((x, target), model=features), watched], epochs=2
    )
    expected = [
        np.mean((np.tanh(x @ kernel + bias) - target) ** 2)
        for kernel, bias, *_ in watched.kept
    ]
    np.testing.assert_allclose(history["kept_loss"], expected, **CLOSE)


@pytest.mark.parametrize(
    "rule",
    [
        {"loss": 0.5, "kept_loss": 1.0},
        lambda logs: logs["kept_loss"] + 0.5 * logs["loss"],
    ],
    ids=["weights", "function"],
)
def test_early_stopping_by_the_score_puts_the_best_epoch_back(rule):
    watched = Weights()
    retention = Retention(tasks(20), rule=rule)
    model = model_for(networks.dual_opt(0.2))
    stopping = keras.callbacks.EarlyStopping(
        "retention_score", mode="max", patience=2, restore_best_weights=True
    )
    history = train(model, [retention, watched, stopping], epochs=40)
    score = np.array(history["kept_loss"]) + 0.5 * np.array(history["loss"])
    np.testing.assert_allclose(history["retention_score"], score)
    best = int(np.argmax(score))
    assert retention.best_epoch == best
    assert len(score) == best + 1 + 2 < 40
    networks.assert_same(
        networks.arrays(model.trainable_variables), watched.kept[best]
    )


def test_an_undefined_value_is_never_the_best():
    values = iter([float("nan"), 1.0, float("nan"), 2.0, float("nan")])
    retention = Retention(tasks(20), rule=lambda logs: next(values))
    stopping = keras.callbacks.EarlyStopping(
        "retention_score", mode="max", patience=5
    )
    train(model_for(), [retention, stopping], epochs=5)
    assert retention.best_epoch == 3
    assert stopping.best == 2.0


def test_a_rule_over_a_metric_that_is_not_there_is_refused():
    retention = Retention(tasks(20), rule={"kept_accuracy": 1.0})
    with pytest.raises(ValueError, match=r"kept_loss.*'kept_accuracy'"):
        train(model_for(), [retention])


@pytest.mark.parametrize(
    ("arguments", "error_type", "match"),
    [
        ({"rule": "best"}, TypeError, "Received: str 'best'"),
        ({"rule": {}}, TypeError, "A rule"),
        ({"rule": {"loss": "low"}}, TypeError, "A rule"),
        ({"data": {}}, ValueError, r"keys \[\]"),
        ({"data": {3: tasks(20)}}, ValueError, r"keys \[3\]"),
    ],
)
def test_arguments_are_checked(arguments, error_type, match):
    with pytest.raises(error_type, match=match):
        Retention(**{"data": tasks(20), **arguments})


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y: Retention(x, y),
        lambda x, y: Retention(x),
        lambda x, y: Retention({"old": keras.ops.array(x)}),
    ],
    ids=["two arrays", "no labels", "no labels by name"],
)
def test_arrays_that_are_no_tuple_are_refused(make):
    with pytest.raises(TypeError, match=r"Retention\(\(x_old, y_old\)\)"):
        make(*tasks(11))


def test_a_model_that_shares_no_weight_is_refused():
    other = networks.compiled(keras.optimizers.SGD(), networks.weights())
    with pytest.raises(ValueError, match=r"`model`.*share"):
        train(model_for(), [Retention(tasks(20), model=other)])
