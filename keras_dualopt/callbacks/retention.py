"""`Retention`: what the model still knows, beside what it learns."""

import math
import os
from typing import Any

import keras

from keras_dualopt.backend import engine
from keras_dualopt.evaluation import (
    Rule,
    check_rule,
    evaluate,
    named_data,
    score,
)
from keras_dualopt.sources import numpy_value


class Retention(keras.callbacks.Callback):
    """Evaluates the old task after every epoch; may stop, or keep the best.

    Changes no weight, except that `keep_best` puts the best ones back at the
    end. Use it to choose `rollback` by what is kept as well as by what is
    learned, or to stop where forgetting costs more than learning brings. Works
    with any optimizer.

    The metrics of the old task go into the epoch's `logs` as `kept_loss`,
    `kept_accuracy` and so on, with several tasks as `kept_<name>_loss`. List
    it before the callbacks that are to see them (`CSVLogger`). `History` always
    does.

    Args:
        data: The old task: whatever `model.evaluate` takes, arrays as a tuple
            `(x, y)` or `(x, y, sample_weight)`. Or a dict {name: data} of
            several.
        model: The compiled model to evaluate, if not the one that is trained:
            one that shares its layers and has the old task's head.
        batch_size: As in `model.evaluate`.
        rule: What is good: a dict {log key: weight}, such as
            `{"val_accuracy": 1.0, "kept_accuracy": 1.0}` (negative for a
            loss), or a function of the epoch's logs. The highest value is the
            best.
        patience: Stop after so many epochs without a better value. Default
            `None`: never. Needs a `rule`.
        keep_best: Whether to put the weights of the best epoch back at the end
            of `fit`. The optimizer's state stays. Needs a `rule`.

    Attributes:
        before: The metrics of the old task before the first epoch.
        epochs: The logs of every epoch.
        best_epoch: The number of the best epoch, from 0; `None` without rule.

    Memory: with `keep_best`, one copy of the weights in main memory.

    Raises:
        ValueError: If `patience` or `keep_best` has no `rule`; at the start of
            `fit`, if `model` shares no weight with the one that is trained.
        TypeError: If the rule, the data or the model is of another kind.

    Example:
    >>> import numpy as np
    >>> old = np.ones((8, 4)), np.zeros((8, 1))
    >>> retention = Retention(old, rule={"loss": -1.0, "kept_loss": -1.0})
    """

    def __init__(
        self,
        data: Any,
        model: keras.Model | None = None,
        batch_size: int | None = None,
        rule: Rule | None = None,
        patience: int | None = None,
        keep_best: bool = False,
    ) -> None:
        super().__init__()
        self._data = named_data(data)
        _check_task(self._data, model)
        if rule is not None:
            check_rule(rule)
        elif patience is not None or keep_best:
            raise ValueError(
                "Expected: a `rule` that says which epoch is the best. "
                f"Received: None, with patience={patience!r} and keep_best="
                f"{keep_best!r}. Such as rule={{'val_accuracy': 1.0, "
                "'kept_accuracy': 1.0}."
            )
        if patience is not None and (
            isinstance(patience, bool)
            or not isinstance(patience, int)
            or patience < 1
        ):
            raise ValueError(
                "Expected: `patience` to be a whole number of epochs ≥ 1. "
                f"Received: {patience!r}."
            )
        self._evaluated = model
        self._batch_size = batch_size
        self.rule = rule
        self.patience = patience
        self.keep_best = keep_best
        self._reset()

    def _reset(self) -> None:
        self.before: dict[str, float] = {}
        self.epochs: list[dict[str, float]] = []
        self.best_epoch: int | None = None
        self._best_index = -1
        self._best_score = -math.inf
        self._best_weights: list[Any] = []

    def on_train_begin(self, logs: Any = None) -> None:
        """Evaluate the old task before anything is forgotten."""
        self._reset()
        self._check_shared()
        self.before = self._kept()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Evaluate the old task, and judge the epoch."""
        kept = self._kept()
        if logs is not None:
            logs.update(kept)
        self.epochs.append({**(logs or {}), **kept})
        if self.rule is None:
            return
        value = score(self.rule, self.epochs[-1])
        if value > self._best_score or self.best_epoch is None:
            self._best_score = value
            self.best_epoch = epoch
            self._best_index = len(self.epochs) - 1
            if self.keep_best:
                self._best_weights = [numpy_value(w) for w in self._weights()]
        waited = len(self.epochs) - 1 - self._best_index
        if self.patience is not None and waited >= self.patience:
            self.model.stop_training = True

    def on_train_end(self, logs: Any = None) -> None:
        """Put the best weights back, where that was asked for."""
        if self._best_index < len(self.epochs) - 1:
            for weight, value in zip(self._weights(), self._best_weights):
                engine.copy_value(weight, keras.ops.convert_to_tensor(value))
        self._best_weights = []

    def _check_shared(self) -> None:
        other = self._evaluated
        if other is None or not other.weights:
            return
        trained = {id(weight) for weight in self.model.weights}
        if not any(id(weight) in trained for weight in other.weights):
            raise ValueError(
                "`model` must share weights with the model that is trained, "
                f"{self.model.name!r}; what {other.name!r} keeps would never "
                f"change. Received: {other.name!r}, which shares none of its "
                f"{len(other.weights)}. Build it of the same layers."
            )

    def _weights(self) -> list[keras.Variable]:
        weights: list[keras.Variable] = self.model.weights
        return weights

    def _kept(self) -> dict[str, float]:
        model = self.model  # On JAX this brings the state back.
        found = evaluate(self._evaluated or model, self._data, self._batch_size)
        return {f"kept_{name}": value for name, value in found.items()}

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        new: str | None = None,
        kept: str | None = None,
    ) -> Any:
        """Draw the trade-off: the new task across, the old one up, by epoch.

        Args:
            path: Where to save the picture. Default: nowhere.
            new: The log key of the new task. Default: the validation metric
                that the old task has, too, or the training metric.
            kept: The log key of the old task. Default: the one that goes with
                `new`; of several tasks, the first.

        Returns:
            The matplotlib figure.

        Raises:
            ValueError: Before the first epoch, or for unknown keys.
            ImportError: Without matplotlib.
        """
        from keras_dualopt import plots

        if not self.epochs:
            raise ValueError(
                "Expected: a `Retention` that has watched a `fit`. Received: "
                "one without an epoch. Pass it in `callbacks` first."
            )
        new, kept = self._axes(new, kept)
        return plots.draw_trade_off(
            [logs[new] for logs in self.epochs],
            [logs[kept] for logs in self.epochs],
            self.before[kept],
            self._best_index if self.rule is not None else None,
            (new, kept),
            path,
        )

    def _axes(self, new: str | None, kept: str | None) -> tuple[str, str]:
        keys = list(self.epochs[-1])
        for key in (new, kept):
            if key is not None and key not in keys:
                raise ValueError(f"Expected: one of {keys}. Received: {key!r}.")
        old = [key for key in keys if key in self.before]
        # What is easier to read than a loss comes first.
        old.sort(key=lambda key: key.endswith("loss"))
        for key in [kept] if kept else old:
            metric = key.removeprefix("kept_")
            for name in self._data:
                metric = metric.removeprefix(f"{name}_") if name else metric
            for other in [new] if new else (f"val_{metric}", metric):
                if other in keys:
                    return other, key
        raise ValueError(
            "Expected: a metric that both tasks have, or `new` and `kept` by "
            f"name. Received: {keys}."
        )


def _check_task(data: dict[str, Any], model: Any) -> None:
    """Refuse arrays that are not in one tuple with their labels."""
    if model is not None and not isinstance(model, keras.Model):
        raise TypeError(
            "Expected: `model` to be a Keras model. Received: "
            f"{type(model).__name__}. Arrays belong in one tuple: "
            "`Retention((x_old, y_old))`."
        )
    for one in data.values():
        if hasattr(one, "shape"):
            raise TypeError(
                "Expected: the inputs with their labels. Received: one "
                f"{type(one).__name__} of shape {tuple(one.shape)}. Pass a "
                "tuple: `Retention((x_old, y_old))`."
            )
