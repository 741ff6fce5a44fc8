"""Measuring a model on the way back, and weighing what was measured."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_dualopt.interpolation.between import review
from keras_dualopt.sources import Source

Rule: TypeAlias = Mapping[str, float] | Callable[[Mapping[str, float]], float]


class ReviewCurve:
    """The metrics at every step of the way back.

    Args:
        alphas: Where they were measured: 1 is fine-tuned, 0 is pretrained.
        metrics: For each metric, one number for each α: `accuracy`, or with
            several data sets `name_accuracy`.
    """

    def __init__(
        self, alphas: Sequence[float], metrics: Mapping[str, Sequence[float]]
    ) -> None:
        self.alphas = np.asarray(alphas)
        self.metrics = {name: np.asarray(m) for name, m in metrics.items()}
        self._chosen: float | None = None

    def __repr__(self) -> str:
        """Name the metrics, with their values at both ends."""
        ends = ", ".join(
            f"{name} {values[0]:.4g} to {values[-1]:.4g}"
            for name, values in self.metrics.items()
        )
        first, last = self.alphas[0], self.alphas[-1]
        return f"<ReviewCurve α {first:g} to {last:g}: {ends}>"

    def choose(self, rule: Rule) -> float:
        """Return the α at which a rule over the metrics is highest.

        With two validation sets, one of the old task and one of the new:
        `curve.choose({"old_accuracy": 1.0, "new_accuracy": 1.0})`. Of equal
        ones it takes the one nearest the fine-tuned weights.

        Args:
            rule: A dict {metric: weight} (negative for a loss), or a function
                of the metrics at one α.

        Returns:
            α for `interpolate`; `plot` marks it.

        Raises:
            ValueError: If the rule weighs a metric that is not there.
            TypeError: If it is of another kind.
        """
        check_rule(rule)
        found = [
            (score(rule, {n: float(m[i]) for n, m in self.metrics.items()}), a)
            for i, a in enumerate(self.alphas)
        ]
        self._chosen = float(max(found)[1])
        return self._chosen

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        metrics: list[str] | None = None,
    ) -> Any:
        """Draw the metrics over α, pretrained on the left, and the chosen α.

        Args:
            path: Where to save the picture. Default: nowhere.
            metrics: Which to draw, of one unit. Default: all but the losses,
                or the losses where there is nothing else.

        Returns:
            The matplotlib figure.

        Raises:
            ValueError: For unknown metrics.
            ImportError: Without matplotlib.
        """
        from keras_dualopt import plots

        for name in metrics or ():
            if name not in self.metrics:
                raise ValueError(
                    f"`metrics` must be some of {sorted(self.metrics)}. "
                    f"Received: {name!r}."
                )
        readable = [n for n in self.metrics if not n.endswith("loss")]
        shown = metrics or readable or list(self.metrics)
        return plots.draw_review(
            self.alphas,
            {name: self.metrics[name] for name in shown},
            self._chosen,
            path,
        )


def review_curve(
    model: keras.Model,
    data: Any,
    steps: int = 50,
    source: Source = None,
    batch_size: int | None = None,
) -> ReviewCurve:
    """Evaluate a model at every step of `review`; its weights stay.

    Args:
        model: As in `review`; compiled with the metrics to be measured.
        data: Whatever `model.evaluate` takes, arrays as a tuple `(x, y)`; or a
            dict {name: data} of several: `{"old": ..., "new": ...}`.
        steps: The number of steps ≥ 1.
        source: As in `interpolate`.
        batch_size: As in `model.evaluate`.

    Returns:
        The curve: its numbers, the choice of α, the picture.

    Raises:
        ValueError: As `review`.
        TypeError: As `review`.
    """
    sets = named_data(data)
    alphas: list[float] = []
    metrics: dict[str, list[float]] = {}
    for alpha in review(model, steps, source):
        alphas.append(alpha)
        for name, value in evaluate(model, sets, batch_size).items():
            metrics.setdefault(name, []).append(value)
    return ReviewCurve(alphas, metrics)


def named_data(data: Any) -> dict[str, Any]:
    """Return data sets by name; a single one has the name `""`."""
    if not isinstance(data, Mapping):
        return {"": data}
    if not data or not all(isinstance(n, str) and n for n in data):
        raise ValueError(
            "Data must be what `evaluate` takes, or a dict {name: data}. "
            f"Received: a dict with the keys {list(data)}."
        )
    return dict(data)


def evaluate(
    model: keras.Model, data: Mapping[str, Any], batch_size: int | None = None
) -> dict[str, float]:
    """Return the metrics on each data set: `accuracy`, or `name_accuracy`."""
    results = {}
    for name, one in data.items():
        x, y, weights = keras.utils.unpack_x_y_sample_weight(one)
        metrics = model.evaluate(
            x,
            y,
            sample_weight=weights,
            batch_size=batch_size,
            verbose=0,
            return_dict=True,
        )
        start = f"{name}_" if name else ""
        for metric, value in metrics.items():
            results[f"{start}{metric}"] = float(value)
    return results


def check_rule(rule: object) -> None:
    """Refuse what cannot weigh metrics."""
    numbers = isinstance(rule, Mapping) and all(
        isinstance(weight, int | float) for weight in rule.values()
    )
    if not (callable(rule) or (numbers and rule)):
        raise TypeError(
            "A rule must be a dict {metric: weight} (negative for a loss) or "
            "a function of the metrics; the highest value is the best. "
            f"Received: {type(rule).__name__} {rule!r}."
        )


def score(rule: Rule, metrics: Mapping[str, float]) -> float:
    """Return how good some metrics are; the higher, the better."""
    if isinstance(rule, Mapping):
        value = 0.0
        for name, weight in rule.items():
            if name not in metrics:
                raise ValueError(
                    f"A rule must weigh some of {sorted(metrics)}. Received: "
                    f"{name!r}."
                )
            value += weight * metrics[name]
    else:
        value = float(rule(metrics))
    return -math.inf if math.isnan(value) else value
