"""`Retention`: what the model still knows, beside what it learns."""

import os
from typing import Any

import keras
import numpy as np

from keras_dualopt.interpolation.curve import (
    Rule,
    check_rule,
    evaluate,
    named_data,
    score,
)

# The log key of what the rule says of an epoch.
SCORE = "retention_score"


class Retention(keras.callbacks.Callback):
    """Evaluates the old task after every epoch, beside the new one.

    Changes no weight. Use it to choose `rollback` by what is kept as well as by
    what is learned. Works with any optimizer.

    The metrics of the old task go into the epoch's `logs` as `kept_loss`,
    `kept_accuracy` and so on, with several tasks as `kept_<name>_loss`; what
    `rule` makes of them and of the new task's as `retention_score`. List it
    before the callbacks that are to see them, such as `CSVLogger`, or Keras'
    own early stopping, to stop where forgetting costs more than learning
    brings and to go back to the best epoch:
    `EarlyStopping("retention_score", mode="max", patience=3,
    restore_best_weights=True)`. `History` always sees them.

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
            best; NaN is the lowest.

    Attributes:
        before: The metrics of the old task before the first epoch.
        epochs: The logs of every epoch.
        best_epoch: Which of `epochs` is the best by the rule, from 0; `None`
            without one.

    Raises:
        ValueError: At the start of `fit`, if `model` shares no weight with the
            one that is trained.
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
    ) -> None:
        super().__init__()
        self._data = named_data(data)
        if model is not None and not isinstance(model, keras.Model):
            raise TypeError(
                "`model` must be a Keras model. Received: "
                f"{type(model).__name__}. Arrays belong in one tuple: "
                "`Retention((x_old, y_old))`."
            )
        for one in self._data.values():
            if hasattr(one, "shape"):
                raise TypeError(
                    "Data must be the inputs with their labels. Received: one "
                    f"{type(one).__name__} of shape {tuple(one.shape)}. Pass a "
                    "tuple: `Retention((x_old, y_old))`."
                )
        if rule is not None:
            check_rule(rule)
        self._evaluated = model
        self._batch_size = batch_size
        self.rule = rule
        self.before: dict[str, float] = {}
        self.epochs: list[dict[str, float]] = []

    @property
    def best_epoch(self) -> int | None:
        """Which of `epochs` is the best by the rule; `None` without one."""
        if self.rule is None or not self.epochs:
            return None
        return int(np.argmax([logs[SCORE] for logs in self.epochs]))

    def on_train_begin(self, logs: object = None) -> None:
        """Evaluate the old task before anything is forgotten."""
        other = self._evaluated or self.model
        trained = {id(weight) for weight in self.model.weights}
        if other.weights and trained.isdisjoint(map(id, other.weights)):
            raise ValueError(
                "`model` must share weights with the model that is trained, "
                f"{self.model.name!r}; what {other.name!r} keeps would never "
                f"change. Received: {other.name!r}, which shares none of its "
                f"{len(other.weights)}. Build it of the same layers."
            )
        self.epochs = []
        self.before = self._kept()

    def on_epoch_end(
        self, epoch: int, logs: dict[str, float] | None = None
    ) -> None:
        """Evaluate the old task, and judge the epoch."""
        found = {**(logs or {}), **self._kept()}
        if self.rule is not None:
            found[SCORE] = score(self.rule, found)
        self.epochs.append(found)
        if logs is not None:
            logs.update(found)

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
                "`plot` needs a `Retention` that has watched a `fit`. "
                "Received: one without an epoch. Pass it in `callbacks` first."
            )
        new, kept = self._axes(new, kept)
        return plots.draw_trade_off(
            [logs[new] for logs in self.epochs],
            [logs[kept] for logs in self.epochs],
            self.before[kept],
            self.best_epoch,
            (new, kept),
            path,
        )

    def _axes(self, new: str | None, kept: str | None) -> tuple[str, str]:
        keys = list(self.epochs[-1])
        for key in (new, kept):
            if key is not None and key not in keys:
                raise ValueError(
                    f"`new` and `kept` must be among {keys}. Received: {key!r}."
                )
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
            "Both tasks must have one metric. Received: "
            f"{keys}. Name one of each: `plot(new=..., kept=...)`."
        )
