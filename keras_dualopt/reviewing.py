"""Reviewing: the way back to the pretrained weights, and what it changes."""

import os
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_dualopt.caller import stacklevel
from keras_dualopt.evaluation import (
    Rule,
    check_rule,
    evaluate,
    named_data,
    score,
)
from keras_dualopt.interpolation import Source, Way, put
from keras_dualopt.wrapping import settle


def review(
    model: keras.Model, steps: int = 50, source: Source = None
) -> Iterator[float]:
    """Walk the weights back to θ₀ in equal steps; restore them at the end.

    Yields the share of the way back: 0, 1/steps, …, 1. While it waits at
    fraction f, the pretrained weights are θ + f (θ₀ − θ), and the head stays;
    do with the model what is to be measured there, but do not train it.
    Leaving the loop early, an error in it, and dropping the iterator restore
    the weights, too.

    Source: OLOR, "Knowledge Forgetting Test" and Fig. 3, zero-shot reviewing
    in 50 steps. Differences: none.

    Args:
        model: A model compiled with `DualOpt(mode="finetune")`; with a
            `source`, any built model.
        steps: The number of steps ≥ 1.
        source: As in `interpolate`.

    Returns:
        An iterator over `steps` + 1 numbers.

    Memory: two copies of the pretrained weights in main memory.

    Raises:
        ValueError: If `steps` < 1, or a pretrained weight has no anchor and
            no value in `source`; in the next step, if the model was trained.
        TypeError: If `source` is of another kind.

    Example:
    >>> from keras_dualopt import DualOpt
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)]
    ... )
    >>> model.compile(DualOpt(1e-3), "mse")
    >>> _ = model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)
    >>> [fraction for fraction in review(model, steps=4)]
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(
            f"Expected: `steps` to be a whole number ≥ 1. Received: {steps!r}."
        )
    # Here and not in the generator: an error belongs to the call.
    return _walk(model, Way.of(model, source), steps)


def _walk(model: keras.Model, way: Way, steps: int) -> Iterator[float]:
    tuned, clock = way.present(), _clock(model)
    try:
        for step in range(steps + 1):
            if step:
                put(way.variables, way.at(1.0 - step / steps, tuned))
            yield step / steps
            if _trained_since(clock, model):
                raise ValueError(_TRAINED)
    except GeneratorExit:
        # Nobody would hear an error when a loop is left early.
        if _trained_since(clock, model):
            warnings.warn(_TRAINED, stacklevel=stacklevel())
        raise
    finally:
        put(way.variables, tuned)


_TRAINED = (
    "The model was trained inside of `review`. What its pretrained weights "
    "learned there is lost: they are what they were before; the head stays as "
    "it was trained. To train from a point on the way, leave the loop and use "
    "`interpolate(model, alpha)`, or `copy=True` for a copy."
)


def _clock(model: keras.Model) -> tuple[Any, int]:
    """Return the optimizer that trains a model, and how many steps it took."""
    settle(model)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return None, 0
    return optimizer, int(keras.ops.convert_to_numpy(optimizer.iterations))


def _trained_since(clock: tuple[Any, int], model: keras.Model) -> bool:
    (before, first), (now, steps) = clock, _clock(model)
    return steps != (first if now is before else 0)


class ReviewCurve:
    """The metrics at every step of the way back.

    Args:
        fractions: The share of the way back, 0 to 1.
        metrics: For each metric, one number a step: `accuracy`, or with
            several data sets `name_accuracy`.
    """

    def __init__(self, fractions: Any, metrics: dict[str, Any]) -> None:
        self.fractions = np.asarray(fractions)
        self.metrics = {name: np.asarray(m) for name, m in metrics.items()}
        self._chosen: float | None = None

    def choose(self, rule: Rule) -> float:
        """Return the α at which a rule over the metrics is highest.

        With two validation sets, one of the old task and one of the new:
        `curve.choose({"old_accuracy": 1.0, "new_accuracy": 1.0})`. Of equal
        ones it takes the one nearest the fine-tuned weights.

        Args:
            rule: A dict {metric: weight} (negative for a loss), or a function
                of the metrics at one step.

        Returns:
            α for `interpolate`.

        Raises:
            ValueError: If the rule weighs a metric that is not there.
            TypeError: If it is of another kind.
        """
        check_rule(rule)
        scores = [
            score(rule, {name: float(m[i]) for name, m in self.metrics.items()})
            for i in range(len(self.fractions))
        ]
        self._chosen = float(self.fractions[int(np.argmax(scores))])
        return 1.0 - self._chosen

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        metrics: list[str] | None = None,
    ) -> Any:
        """Draw the metrics over the way back, and the chosen α.

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
                    f"Expected: one of {sorted(self.metrics)}. Received: "
                    f"{name!r}."
                )
        readable = [n for n in self.metrics if not n.endswith("loss")]
        chosen = metrics or readable or list(self.metrics)
        return plots.draw_review(
            self.fractions,
            {name: self.metrics[name] for name in chosen},
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
    fractions: list[float] = []
    metrics: dict[str, list[float]] = {}
    for fraction in review(model, steps, source):
        fractions.append(fraction)
        for name, value in evaluate(model, sets, batch_size).items():
            metrics.setdefault(name, []).append(value)
    return ReviewCurve(fractions, metrics)
