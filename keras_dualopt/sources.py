"""Where anchors come from when a person says so.

Every function returns one value per variable, `None` where none is wanted, and
has read and checked all of them before anything is written.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_dualopt.depth import place_keys
from keras_dualopt.depth.keras_hooks import nested_models
from keras_dualopt.plan import Row


def numpy_value(variable: keras.Variable) -> Any:
    """Return a copy of a variable's value.

    On torch and TensorFlow `convert_to_numpy` may return the live buffer,
    which changes with the next assignment.
    """
    return np.array(keras.ops.convert_to_numpy(variable.value))


class Earlier(NamedTuple):
    """The anchors of an optimizer, for another one to take over.

    Args:
        rows: What it was built on.
        carried: θ₀ of weights that it does not train, by their places.
        model: The model that owns the weights, if it is known.
    """

    rows: Sequence[Row]
    carried: Mapping[str, Any]
    model: keras.Model | None


def values_from(
    source: Any, model: keras.Model | None, rows: Sequence[Row]
) -> list[Any]:
    """Return the values to anchor each row at.

    Args:
        source: `None` for the current weights, a model, the path of a weights
            file, or the anchors of another optimizer.
        model: The model that owns the weights, if it is known.
        rows: The weights; those that are not anchored get `None`.

    Raises:
        ValueError: If a value is missing, has another shape or is not finite.
        TypeError: If the source is none of the above.
    """
    if source is None:
        values = _present(rows)
    elif isinstance(source, Earlier):
        values = _values_of_optimizer(source, model, rows)
    elif isinstance(source, keras.Model):
        values = _values_of_model(source, model, rows)
    else:
        values = _values_of_file(source, model, rows)
    _check_finite(values, rows)
    return values


def carried_from(
    source: Any, model: keras.Model | None, rows: Sequence[Row]
) -> dict[str, Any]:
    """Return θ₀ of what another optimizer anchors and this one does not.

    By place in the model; nothing from any other source, with which a new
    stage begins. The arguments are those of `values_from`.
    """
    if not isinstance(source, Earlier) or not _same_places(source, model, rows):
        return {}
    own = {row.key for row in rows if row.anchored}
    kept = {k: array for k, array in source.carried.items() if k not in own}
    for row in source.rows:
        if row.anchor is not None and row.key not in own:
            kept[row.key] = numpy_value(row.anchor)
    return kept


def _same_places(
    source: Earlier, model: keras.Model | None, rows: Sequence[Row]
) -> bool:
    """Return whether a place is the same weight on both sides.

    It is not in a model that has the other one as a part.
    """
    if source.model is None or model is None:
        return False  # Bare variables are numbered as they come.
    theirs = {id(row.variable): row.key for row in source.rows}
    return all(theirs.get(id(row.variable), row.key) == row.key for row in rows)


def check_source(source: Any) -> None:
    """Refuse what no anchors can be read from.

    Raises:
        TypeError: If it is neither `None`, a model nor a path.
    """
    if source is not None and not isinstance(
        source, keras.Model | str | os.PathLike
    ):
        raise TypeError(
            "`source` must be None, a model, the path of a weights file, or "
            f"another DualOpt. Received: {type(source).__name__} {source!r}."
        )


def _values_of_optimizer(
    source: Earlier, model: keras.Model | None, rows: Sequence[Row]
) -> list[Any]:
    same = {id(row.variable): row.anchor for row in source.rows}
    by_key = {row.key: row.anchor for row in source.rows}
    # The same variables, or (a clone, a reloaded model) the same places.
    shared = any(id(row.variable) in same for row in rows)
    carried = source.carried if _same_places(source, model, rows) else {}
    # Of one model they may have trained different parts.
    known = shared or (model is not None and source.model is model)
    if not known and not any(
        row.key in by_key or row.key in carried for row in rows
    ):
        raise ValueError(
            "`anchor_at` takes the optimizer of this model or of a copy of it. "
            "Received: one that shares no weight with it."
        )
    values: list[Any] = []
    for row in rows:
        anchor: Any = (
            same.get(id(row.variable)) if shared else by_key.get(row.key)
        )
        if anchor is None:
            anchor = carried.get(row.key)
        if not row.anchored:
            values.append(None)
        elif anchor is None:
            values.append(numpy_value(row.variable))
        elif tuple(anchor.shape) != tuple(row.variable.shape):
            raise ValueError(
                f"The anchor of {row.path!r} must have shape "
                f"{tuple(row.variable.shape)}. Received: "
                f"{tuple(anchor.shape)}. The other optimizer belongs to "
                "another model."
            )
        elif isinstance(anchor, np.ndarray):
            values.append(anchor)
        else:
            values.append(numpy_value(anchor))
    return values


def _values_of_model(
    source: keras.Model, model: keras.Model | None, rows: Sequence[Row]
) -> list[Any]:
    """Return what another model has in the same places."""
    if model is None:
        raise ValueError(_BARE.format("find the same places in another model"))
    if source is model:
        return _present(rows)
    part = _counterpart(source, model)
    theirs = dict(
        zip(place_keys(source, source.weights), source.weights, strict=True)
    )
    inside = {id(weight) for weight in part.weights}
    own = [row.variable for row in rows if id(row.variable) in inside]
    keys = {id(v): key for v, key in zip(own, place_keys(part, own))}
    values: list[Any] = []
    for row in rows:
        if not row.anchored:
            values.append(None)
            continue
        found = theirs.get(keys.get(id(row.variable), ""))
        if found is None or tuple(found.shape) != tuple(row.variable.shape):
            raise ValueError(
                f"{source.name!r} must have a weight of shape "
                f"{tuple(row.variable.shape)} for {row.path!r}. Received: "
                + (
                    "none in its place"
                    if found is None
                    else f"{found.path!r} of shape {tuple(found.shape)}"
                )
                + ". The source must be a model of the same architecture, or "
                "the pretrained part of it."
            )
        values.append(numpy_value(found))
    return values


def _counterpart(source: keras.Model, model: keras.Model) -> keras.Model:
    """Return the part of `model` that `source` stands for."""
    shapes = sorted(tuple(weight.shape) for weight in source.weights)
    for part in (model, *nested_models(model)):
        if sorted(tuple(weight.shape) for weight in part.weights) == shapes:
            return part
    return model


_BARE = (
    "The optimizer was built on bare variables and does not know their model, "
    "which it needs to {}. Call `bind(model)` before it is built."
)


def _values_of_file(
    path: Any, model: keras.Model | None, rows: Sequence[Row]
) -> list[Any]:
    """Return what a weights file holds for them.

    The file is read into the model itself, which works for every model that
    Keras can load, and the model's own weights are put back.
    """
    if model is None:
        raise ValueError(_BARE.format("read a weights file"))
    before = [numpy_value(weight) for weight in model.weights]
    optimizer = getattr(model, "optimizer", None)
    # Keras would read the file's optimizer state into ours as well.
    model.optimizer = None
    try:
        model.load_weights(path)
        return _present(rows)
    finally:
        model.optimizer = optimizer
        for weight, value in zip(model.weights, before, strict=True):
            weight.assign(value)


def _present(rows: Sequence[Row]) -> list[Any]:
    return [numpy_value(row.variable) if row.anchored else None for row in rows]


def _check_finite(values: Sequence[Any], rows: Sequence[Row]) -> None:
    """Refuse anchors that would make every weight NaN.

    Raises:
        ValueError: Naming the first weight with a value that is not finite.
    """
    for value, row in zip(values, rows, strict=True):
        if value is None:
            continue
        finite = np.isfinite(np.asarray(value, dtype="float32"))
        if not finite.all():
            raise ValueError(
                "The weights to anchor at must be finite. Received: "
                f"{int((~finite).sum())} values of {row.path!r} that are NaN "
                "or infinite. The anchors are as they were."
            )
