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
) -> tuple[list[Array], dict[str, Array]]:
    """Return what to anchor each anchored row at, and what to carry.

    That is θ₀ of weights without a row, by place in the model, which another
    optimizer may have; with any other source a new stage begins.
    """
    anchored = [row for row in rows if row.anchored]
    variables = [row.variable for row in anchored]
    if not isinstance(source, Earlier):
        return values_of(source, model, variables), {}
    own = {id(row.variable): row.key for row in rows}
    both = [row for row in source.rows if id(row.variable) in own]
    # Whether a place is the same weight on both sides. It is not in a model
    # that has the other one as a part; bare variables are numbered as they
    # come.
    alike = None not in (source.model, model) and all(
        own[id(row.variable)] == row.key for row in both
    )
    carried = source.carried if alike else {}

    def identity(row: Row) -> object:
        # The same variable, or (a clone, a reloaded model) the same place.
        return id(row.variable) if both else row.key

    theirs = {identity(row): row.anchor for row in source.rows}
    # Of one model they may have trained different parts.
    if (model is None or model is not source.model) and not any(
        identity(row) in theirs or row.key in carried for row in rows
    ):
        raise ValueError(
            "`anchor_at` takes the optimizer of this model or of a copy of it. "
            "Received: one that shares no weight with it."
        )
    found: list[keras.Variable | Array | None] = []
    for row in anchored:
        anchor = theirs.get(identity(row))
        if anchor is None:
            anchor = carried.get(row.key, row.variable)
        found.append(anchor)
    held = {**carried}
    if alike:
        held |= {r.key: r.anchor for r in source.rows if r.anchor is not None}
    places = {row.key for row in anchored}
    kept = {k: numpy_value(a) for k, a in held.items() if k not in places}
    return _checked(found, variables, "The other optimizer"), kept


def values_of(
    source: Source,
    model: keras.Model | None,
    variables: Sequence[keras.Variable],
) -> list[Array]:
    """Return the values that a model or a weights file has for variables.

    `None`: their own. `model` is the one that owns them, if it is known.
    """
    found: Sequence[keras.Variable | Array | None] = variables
    if isinstance(source, keras.Model) and source is not model:
        found = _in_model(source, model, variables)
    elif source is not None and source is not model:
        found = _in_file(source, model, variables)
    return _checked(found, variables, f"`source`, {source!r},")


def _checked(
    found: Sequence[keras.Variable | Array | None],
    variables: Sequence[keras.Variable],
    source: str,
) -> list[Array]:
    """Return copies of what was found for variables, if it fits them."""
    values = []
    for one, variable in zip(found, variables, strict=True):
        shape = None if one is None else tuple(one.shape)
        if one is None or shape != tuple(variable.shape):
            raise ValueError(
                f"{source} must have a weight of shape {tuple(variable.shape)} "
                f"for {variable.path!r}. Received: "
                + ("none" if one is None else f"one of shape {shape}")
                + " in its place. It belongs to another model, and must be of "
                "the same architecture, or of the pretrained part of it."
            )
        values.append(numpy_value(one))
        check_finite(values[-1], variable.path, "The anchors are as they were.")
    return values


_BARE = (
    "The optimizer was built on bare variables and does not know their model, "
    "which it needs to {}. Call `bind(model)` before it is built."
)


def _in_model(
    source: keras.Model,
    model: keras.Model | None,
    variables: Sequence[keras.Variable],
) -> list[keras.Variable | None]:
    """Return what another model has in the same places."""
    if model is None:
        raise ValueError(_BARE.format("find the same places in another model"))
    shapes = _shapes(source)
    parts = [p for p in (model, *nested_models(model)) if _shapes(p) == shapes]
    theirs = dict(zip(place_keys(source, source.weights), source.weights))
    # By their weights: one model may be all that another one holds.
    found: dict[frozenset[int], list[keras.Variable | None]] = {}
    for part in parts or [model]:
        keys = place_keys(part, part.weights)
        places = {id(w): theirs.get(key) for w, key in zip(part.weights, keys)}
        values = [places.get(id(variable)) for variable in variables]
        known = sum(value is not None for value in values)
        if known == len(values):
            return values
        if known:
            found.setdefault(frozenset(places), values)
    if len(found) > 1:
        raise ValueError(
            "`source` must stand for one part of the model. Received: "
            f"{source.name!r}, which may be any of "
            f"{', '.join(repr(part.name) for part in parts)}. Pass a model, or "
            "a weights file, of the whole architecture."
        )
    return next(iter(found.values()), [None] * len(variables))


def _shapes(model: keras.Model) -> list[tuple[int, ...]]:
    return sorted(tuple(weight.shape) for weight in model.weights)


def _in_file(
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


def numpy_value(value: keras.Variable | Array) -> Array:
    """Return a copy of a variable's value; an array as it is.

    On torch and TensorFlow `convert_to_numpy` may return the live buffer,
    which changes with the next assignment.
    """
    if isinstance(value, np.ndarray):
        return value
    return np.array(keras.ops.convert_to_numpy(engine.unwatched(value)))


def check_finite(value: Array, path: str, remedy: str) -> None:
    """Refuse anchors that would make every weight NaN."""
    finite = np.isfinite(value)
    if not finite.all():
        raise ValueError(
            "The weights to anchor at must be finite. Received: "
            f"{int((~finite).sum())} values of {path!r} that are NaN or "
            f"infinite. {remedy}"
        )
