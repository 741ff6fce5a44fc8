"""Measuring a model on several tasks, and weighing what was measured."""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import keras

Rule: TypeAlias = Mapping[str, float] | Callable[[Mapping[str, float]], float]


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
        arrays = one if isinstance(one, tuple | list) else (one,)
        metrics = model.evaluate(
            *arrays[:2],
            sample_weight=arrays[2] if len(arrays) > 2 else None,
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
