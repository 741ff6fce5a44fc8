"""Reviewing: the way back to the pretrained weights, and what it changes."""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_dualopt.caller import stacklevel
from keras_dualopt.interpolation.between import Way, find_way, put
from keras_dualopt.interpolation.metrics import (
    Rule,
    check_rule,
    evaluate,
    named_data,
    score,
)
from keras_dualopt.settings import check_whole
from keras_dualopt.sources import Source
from keras_dualopt.wrapping import settle


def review(
    model: keras.Model, steps: int = 50, source: Source = None
) -> Iterator[float]:
    """Walk the weights back to θ₀ in equal steps; restore them at the end.

    Yields α = 1, 1 − 1/steps, …, 0: 1 is fine-tuned, 0 is pretrained. While it
    waits at α, the pretrained weights are θ₀ + α (θ − θ₀) as `interpolate` sets
    them, and the head stays; do with the model what is to be measured there,
    but do not train it. Leaving the loop early, an error in it, and dropping
    the iterator restore the weights, too.

    Source: OLOR, "Knowledge Forgetting Test" and Fig. 3, zero-shot reviewing
    in 50 steps. Differences: it counts α down, the paper its steps up.

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
    >>> [alpha for alpha in review(model, steps=4)]
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    check_whole("steps", steps)
    # Here and not in the generator: an error belongs to the call.
    return _walk(model, find_way(model, source), steps)


def _walk(model: keras.Model, way: Way, steps: int) -> Iterator[float]:
    tuned, clock = way.present(), _clock(model)
    try:
        for step in range(steps + 1):
            alpha = 1.0 - step / steps
            if step:
                put(way.variables, way.at(alpha, tuned))
            yield alpha
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


_Clock: TypeAlias = tuple[keras.optimizers.Optimizer | None, int]


def _clock(model: keras.Model) -> _Clock:
    """Return the optimizer that trains a model, and how many steps it took."""
    settle(model)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return None, 0
    return optimizer, int(keras.ops.convert_to_numpy(optimizer.iterations))


def _trained_since(clock: _Clock, model: keras.Model) -> bool:
    (before, first), (now, steps) = clock, _clock(model)
    return steps != (first if now is before else 0)


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
