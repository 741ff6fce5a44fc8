"""Where anchors come from when a person says so.

All values have been read and checked before anything is written.
"""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import keras
import numpy as np

from keras_dualopt.backend import Array, engine
from keras_dualopt.depth import place_keys
from keras_dualopt.depth.keras_hooks import nested_models
from keras_dualopt.plan import Row

# A model, the path of a weights file, or an optimizer with anchors; `None`:
# what is at hand.
Source: TypeAlias = (
    keras.Model | str | os.PathLike[str] | keras.optimizers.Optimizer | None
)


def numpy_value(value: keras.Variable | Array) -> Array:
    """Return a copy of a variable's value; an array as it is.

    On torch and TensorFlow `convert_to_numpy` may return the live buffer,
    which changes with the next assignment.
    """
    if isinstance(value, np.ndarray):
        return value
    return np.array(keras.ops.convert_to_numpy(engine.unwatched(value)))


class Earlier(NamedTuple):
    """The anchors of an optimizer, for another one to take over."""

    rows: Sequence[Row]
    # θ₀ of weights that it does not train, by their places.
    carried: Mapping[str, Array]
    model: keras.Model | None


def check_source(source: object) -> None:
    """Refuse what no anchors can be read from."""
    if source is not None and not isinstance(
        source, keras.Model | str | os.PathLike
    ):
        raise TypeError(
            "`source` must be None, a model, the path of a weights file, or "
            f"another DualOpt. Received: {type(source).__name__} {source!r}."
        )


def anchors_from(
    source: Source | Earlier, model: keras.Model | None, rows: Sequence[Row]
) -> tuple[list[Array | None], dict[str, Array]]:
    """Return what to anchor each row at, and θ₀ of weights without a row.

    Rows that are not anchored get `None`. Of weights without a row it is what
    the other optimizer anchors, by place in the model; nothing from another
    source, with which a new stage begins.
    """
    if isinstance(source, Earlier):
        return _from_optimizer(source, model, rows)
    anchored = [row.variable for row in rows if row.anchored]
    found = iter(values_of(source, model, anchored))
    return [next(found) if row.anchored else None for row in rows], {}


def values_of(
    source: Source,
    model: keras.Model | None,
    variables: Sequence[keras.Variable],
) -> list[Array]:
    """Return the values that a model or a weights file has for variables.

    `None`: their own. `model` is the one that owns them, if it is known.
    """
    if source is None or source is model:
        values = [numpy_value(variable) for variable in variables]
    elif isinstance(source, keras.Model):
        values = _values_of_model(source, model, variables)
    else:
        values = _values_of_file(source, model, variables)
    for value, variable in zip(values, variables, strict=True):
        check_finite(value, variable.path, _UNCHANGED)
    return values


def _from_optimizer(
    source: Earlier, model: keras.Model | None, rows: Sequence[Row]
) -> tuple[list[Array | None], dict[str, Array]]:
    same = {id(row.variable): row for row in source.rows}
    by_key = {row.key: row for row in source.rows}
    # The same variables, or (a clone, a reloaded model) the same places.
    shared = any(id(row.variable) in same for row in rows)
    # Whether a place is the same weight on both sides. It is not in a model
    # that has the other one as a part; bare variables are numbered as they
    # come.
    alike = (
        source.model is not None
        and model is not None
        and all(same.get(id(row.variable), row).key == row.key for row in rows)
    )
    carried = source.carried if alike else {}
    # Of one model they may have trained different parts.
    known = shared or (model is not None and source.model is model)
    if not known and not any(
        row.key in by_key or row.key in carried for row in rows
    ):
        raise ValueError(
            "`anchor_at` takes the optimizer of this model or of a copy of it. "
            "Received: one that shares no weight with it."
        )
    values: list[Array | None] = []
    for row in rows:
        if not row.anchored:
            values.append(None)
            continue
        other = same.get(id(row.variable)) if shared else by_key.get(row.key)
        anchor = None if other is None else other.anchor
        if anchor is None:
            anchor = carried.get(row.key, row.variable)
        if tuple(anchor.shape) != tuple(row.variable.shape):
            raise ValueError(
                f"The anchor of {row.path!r} must have shape "
                f"{tuple(row.variable.shape)}. Received: "
                f"{tuple(anchor.shape)}. The other optimizer belongs to "
                "another model."
            )
        value = numpy_value(anchor)
        values.append(value)
        check_finite(value, row.path, _UNCHANGED)
    held = {**carried}
    if alike:
        held |= {r.key: r.anchor for r in source.rows if r.anchor is not None}
    own = {row.key for row in rows if row.anchored}
    kept = {k: numpy_value(a) for k, a in held.items() if k not in own}
    return values, kept


_UNCHANGED = "The anchors are as they were."
_BARE = (
    "The optimizer was built on bare variables and does not know their model, "
    "which it needs to {}. Call `bind(model)` before it is built."
)


def _values_of_model(
    source: keras.Model,
    model: keras.Model | None,
    variables: Sequence[keras.Variable],
) -> list[Array]:
    """Return what another model has in the same places."""
    if model is None:
        raise ValueError(_BARE.format("find the same places in another model"))
    part = _counterpart(source, model)
    weights = source.weights
    theirs = dict(zip(place_keys(source, weights), weights, strict=True))
    inside = {id(weight) for weight in part.weights}
    own = [variable for variable in variables if id(variable) in inside]
    keys = {id(v): key for v, key in zip(own, place_keys(part, own))}
    values = []
    for variable in variables:
        found = theirs.get(keys.get(id(variable), ""))
        if found is None or tuple(found.shape) != tuple(variable.shape):
            raise ValueError(
                f"{source.name!r} must have a weight of shape "
                f"{tuple(variable.shape)} for {variable.path!r}. Received: "
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


def _values_of_file(
    path: str | os.PathLike[str],
    model: keras.Model | None,
    variables: Sequence[keras.Variable],
) -> list[Array]:
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
        return [numpy_value(variable) for variable in variables]
    finally:
        model.optimizer = optimizer
        for weight, value in zip(model.weights, before, strict=True):
            weight.assign(value)


def check_finite(value: Array, path: str, remedy: str) -> None:
    """Refuse anchors that would make every weight NaN."""
    finite = np.isfinite(np.asarray(value, dtype="float32"))
    if not finite.all():
        raise ValueError(
            "The weights to anchor at must be finite. Received: "
            f"{int((~finite).sum())} values of {path!r} that are NaN or "
            f"infinite. {remedy}"
        )
