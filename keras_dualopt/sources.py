"""Where anchors come from when a person says so.

Every function returns one value per variable, `None` where none is wanted, and
has read and checked all of them before anything is written.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_dualopt.depth import layer_depth


def numpy_value(variable: keras.Variable) -> Any:
    """Return a copy of a variable's value.

    On torch and TensorFlow `convert_to_numpy` may return the live buffer,
    which changes with the next assignment.
    """
    return np.array(keras.ops.convert_to_numpy(variable.value))


@dataclasses.dataclass(frozen=True)
class Anchored:
    """The anchors of an optimizer, for another one to take over.

    Args:
        variables: The variables it was built on.
        keys: Their places in the model (`Place.key`).
        anchors: θ₀ for each, or `None`.
        model: The model that owns the variables, if it is known.
        carried: θ₀ of weights that it does not pull, by their places.
    """

    variables: Sequence[keras.Variable]
    keys: Sequence[str]
    anchors: Sequence[keras.Variable | None]
    model: keras.Model | None
    carried: Mapping[str, Any]


def values_from(
    source: keras.Model | Anchored | str | os.PathLike[str] | None,
    model: keras.Model | None,
    variables: Sequence[keras.Variable],
    keys: Sequence[str],
    wanted: Sequence[bool],
) -> list[Any]:
    """Return the values to anchor `variables` at.

    Args:
        source: `None` for the current weights, a model, the anchors of another
            optimizer, or the path of a weights file.
        model: The model that owns `variables`, if it is known.
        variables: The optimizer's variables.
        keys: Their places in the model.
        wanted: Which of them have an anchor.

    Raises:
        ValueError: If a value is missing, has another shape or is not finite.
        TypeError: If the source is none of the above.
    """
    if source is None:
        values = _values(variables, wanted)
    elif isinstance(source, Anchored):
        values = _values_of_optimizer(source, model, variables, keys, wanted)
    elif isinstance(source, keras.Model):
        values = _values_of_model(source, model, variables, wanted)
    else:
        values = _values_of_file(source, model, variables, wanted)
    _check_finite(values, variables)
    return values


def carried_from(
    source: Any,
    model: keras.Model | None,
    variables: Sequence[keras.Variable],
    keys: Sequence[str],
    wanted: Sequence[bool],
) -> dict[str, Any]:
    """Return θ₀ of what another optimizer anchors and this one does not.

    By place in the model; nothing from any other source, with which a new
    stage begins. The arguments are those of `values_from`.
    """
    if not isinstance(source, Anchored) or not _same_places(
        source, model, variables, keys
    ):
        return {}
    own = {key for key, needed in zip(keys, wanted, strict=True) if needed}
    kept = {k: array for k, array in source.carried.items() if k not in own}
    for key, anchor in zip(source.keys, source.anchors, strict=True):
        if anchor is not None and key not in own:
            kept[key] = numpy_value(anchor)
    return kept


def _same_places(
    source: Anchored,
    model: keras.Model | None,
    variables: Sequence[keras.Variable],
    keys: Sequence[str],
) -> bool:
    """Return whether a place is the same weight on both sides.

    It is not in a model that has the other one as a part.
    """
    if source.model is None or model is None:
        return False  # Bare variables are numbered as they come.
    theirs = {
        id(variable): key
        for variable, key in zip(source.variables, source.keys, strict=True)
    }
    return all(
        theirs.get(id(variable), key) == key
        for variable, key in zip(variables, keys, strict=True)
    )


def check_source(source: Any) -> None:
    """Refuse what no anchors can be read from.

    Raises:
        TypeError: If it is neither `None`, a model nor a path.
    """
    if source is not None and not isinstance(
        source, keras.Model | str | os.PathLike
    ):
        raise TypeError(
            "Expected: None, a model, the path of a weights file, or another "
            f"DualOpt. Received: {type(source).__name__} {source!r}."
        )


def _values_of_optimizer(
    source: Anchored,
    model: keras.Model | None,
    variables: Sequence[keras.Variable],
    keys: Sequence[str],
    wanted: Sequence[bool],
) -> list[Any]:
    same = {
        id(variable): anchor
        for variable, anchor in zip(
            source.variables, source.anchors, strict=True
        )
    }
    by_key = dict(zip(source.keys, source.anchors, strict=True))
    # The same variables, or (a clone, a reloaded model) the same places.
    shared = any(id(variable) in same for variable in variables)
    carried = (
        source.carried if _same_places(source, model, variables, keys) else {}
    )
    # Of one model they may have trained different parts.
    known = shared or (model is not None and source.model is model)
    if not known and not any(key in by_key or key in carried for key in keys):
        raise ValueError(
            "Expected: the optimizer of this model or of a copy of it. "
            "Received: one that shares no weight with it."
        )
    values: list[Any] = []
    for variable, key, needed in zip(variables, keys, wanted, strict=True):
        anchor = same.get(id(variable)) if shared else by_key.get(key)
        if anchor is None:
            anchor = carried.get(key)
        if not needed:
            values.append(None)
        elif anchor is None:
            values.append(numpy_value(variable))
        elif tuple(anchor.shape) != tuple(variable.shape):
            raise ValueError(
                f"Expected: an anchor of shape {tuple(variable.shape)} for "
                f"{variable.path!r}. Received: {tuple(anchor.shape)}. The "
                "other optimizer belongs to another model."
            )
        elif isinstance(anchor, np.ndarray):
            values.append(anchor)
        else:
            values.append(numpy_value(anchor))
    return values


def _values_of_model(
    source: keras.Model,
    model: keras.Model | None,
    variables: Sequence[keras.Variable],
    wanted: Sequence[bool],
) -> list[Any]:
    """Return what another model has in the same places."""
    if model is None:
        raise ValueError(
            "Expected: a DualOpt that knows its model, to find the same places "
            "in another one. Received: one built on bare variables. Use "
            "`bind(model)` before it is built."
        )
    if source is model:
        return _values(variables, wanted)
    part = _counterpart(source, model)
    theirs = {
        place.key: variable
        for place, variable in _placed(source, source.weights)
    }
    inside = {id(weight) for weight in part.weights}
    own = [v for v in variables if id(v) in inside]
    keys = {id(variable): place.key for place, variable in _placed(part, own)}
    values: list[Any] = []
    for variable, needed in zip(variables, wanted, strict=True):
        if not needed:
            values.append(None)
            continue
        key = keys.get(id(variable))
        found = theirs.get(key) if key is not None else None
        if found is None or tuple(found.shape) != tuple(variable.shape):
            raise ValueError(
                f"Expected: a weight of shape {tuple(variable.shape)} in "
                f"{source.name!r} for {variable.path!r}. Received: "
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


def _placed(
    model: keras.Model, variables: Sequence[keras.Variable]
) -> list[Any]:
    places = layer_depth(model, head=()).place(model, variables)
    return list(zip(places, variables, strict=True))


def _counterpart(source: keras.Model, model: keras.Model) -> keras.Model:
    """Return the part of `model` that `source` stands for."""
    shapes = sorted(tuple(weight.shape) for weight in source.weights)
    parts = [model]
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, keras.Model):
            parts.append(layer)
    for part in parts:
        if sorted(tuple(weight.shape) for weight in part.weights) == shapes:
            return part
    return model


def _values_of_file(
    path: Any,
    model: keras.Model | None,
    variables: Sequence[keras.Variable],
    wanted: Sequence[bool],
) -> list[Any]:
    """Return what a weights file holds for them.

    The file is read into the model itself, which works for every model that
    Keras can load, and the model's own weights are put back.
    """
    if model is None:
        raise ValueError(
            "Expected: a DualOpt that knows its model, to read a weights file "
            "for it. Received: one built on bare variables. Use "
            "`bind(model)` before it is built."
        )
    before = [numpy_value(weight) for weight in model.weights]
    optimizer = getattr(model, "optimizer", None)
    # Keras would read the file's optimizer state into ours as well.
    model.optimizer = None
    try:
        model.load_weights(path)
        return _values(variables, wanted)
    finally:
        model.optimizer = optimizer
        for weight, value in zip(model.weights, before, strict=True):
            weight.assign(value)


def _values(
    variables: Sequence[keras.Variable], wanted: Sequence[bool]
) -> list[Any]:
    return [
        numpy_value(variable) if needed else None
        for variable, needed in zip(variables, wanted, strict=True)
    ]


def _check_finite(
    values: Sequence[Any], variables: Sequence[keras.Variable]
) -> None:
    """Refuse anchors that would make every weight NaN.

    Raises:
        ValueError: Naming the first weight with a value that is not finite.
    """
    for value, variable in zip(values, variables, strict=True):
        if value is None:
            continue
        finite = np.isfinite(np.asarray(value, dtype="float32"))
        if not finite.all():
            raise ValueError(
                f"Expected: finite weights to anchor at. Received: "
                f"{int((~finite).sum())} values of {variable.path!r} that are "
                "NaN or infinite. The anchors are as they were."
            )
