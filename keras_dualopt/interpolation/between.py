"""Between the pretrained and the fine-tuned weights: θ₀ + α (θ − θ₀)."""

import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import keras
import numpy as np

from keras_dualopt.backend import Array, engine
from keras_dualopt.caller import stacklevel
from keras_dualopt.depth import layer_depth
from keras_dualopt.lookup import holder_of
from keras_dualopt.optimizer import DualOpt
from keras_dualopt.plan import look_new, role
from keras_dualopt.pull import compute_dtype
from keras_dualopt.settings import check_whole, is_number
from keras_dualopt.sources import (
    Source,
    check_source,
    numpy_value,
    values_of,
)
from keras_dualopt.wrapping import settle, unwrapped


class Way(NamedTuple):
    """The pretrained weights of a model, and θ₀ for each."""

    variables: list[keras.Variable]
    origins: list[Array]

    def present(self) -> list[Array]:
        """Return copies of the weights as they are now."""
        return [numpy_value(variable) for variable in self.variables]

    def at(self, alpha: float, tuned: list[Array]) -> list[Array]:
        """Return θ₀ + α (θ − θ₀), where `tuned` is θ."""
        if alpha == 1.0:
            return tuned
        values = []
        for origin, theta in zip(self.origins, tuned, strict=True):
            value = origin
            # 0 · NaN is NaN, and θ₀ is the way back from NaN.
            if alpha != 0.0:
                # Half precision would round the difference.
                wide = compute_dtype(theta.dtype.name)
                start, end = origin.astype(wide), theta.astype(wide)
                value = start + alpha * (end - start)
            values.append(value.astype(theta.dtype))
        return values


def put(
    variables: Sequence[keras.Variable],
    values: Sequence[keras.Variable | Array],
) -> None:
    """Write values into variables."""
    for variable, value in zip(variables, values, strict=True):
        engine.copy_value(variable, value)


def interpolate(
    model: keras.Model,
    alpha: float,
    source: Source = None,
    copy: bool = False,
) -> keras.Model:
    """Set the pretrained weights to θ₀ + α (θ − θ₀); the head stays.

    Use it after fine-tuning, to get back some of what was forgotten: weights
    between the two are often better on both tasks than either end. `review`
    measures the way, `review_curve` chooses α.

    Formula: θ ← θ₀ + α (θ − θ₀), with α = `alpha`; exact at α = 0 and α = 1.
    Source: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR
    2022, arXiv:2109.01903 (WiSE-FT). Difference: the head is not interpolated,
    because it has no pretrained value.

    Args:
        model: A model that `DualOpt(mode="finetune")` has trained, in `fit`
            or in a loop of one's own; with a `source`, any built model.
        alpha: 0 is pretrained, 1 is fine-tuned.
        source: Where θ₀ comes from, if not from the anchors of the optimizer
            that trained the model: another `DualOpt`; or a model of the same
            architecture or its pretrained part, or a weights file, which also
            give values to what is not trained: moving statistics and layers
            that are frozen now. Anchors leave those as they are.
        copy: Whether to leave `model` as it is, and to return a copy. It is
            not compiled; a KerasHub task stays one, with its preprocessor.

    Returns:
        The model, or the copy.

    Memory: two copies of the pretrained weights in main memory while it runs.

    Warns: Where a layer looks as if its θ₀ was never trained (`bind`).

    Raises:
        ValueError: If `alpha` is not in [0, 1], or a pretrained weight has no
            anchor and no value in `source`, as kernels have none that Keras
            has merged with LoRA's factors (it does so in every file).
        TypeError: If `source` is of another kind.

    Example:
    >>> from keras_dualopt import DualOpt
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)]
    ... )
    >>> model.compile(DualOpt(1e-3), "mse")
    >>> _ = model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)
    >>> halfway = interpolate(model, 0.5, copy=True)
    """
    if not is_number(alpha) or not 0.0 <= alpha <= 1.0:
        raise ValueError(
            "`alpha` must be in [0, 1]: 0 is pretrained, 1 is fine-tuned. "
            f"Received: {alpha!r}."
        )
    way = find_way(model, source)
    values = way.at(float(alpha), way.present())
    if copy:
        return _copy(model, way, values)
    put(way.variables, values)
    return model


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
            no value in `source` (LoRA: as in `interpolate`); in the next step,
            if the model was trained.
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
    tuned, (optimizer, start) = way.present(), _clock(model)

    def trained() -> bool:
        now, count = _clock(model)
        return count != (start if now is optimizer else 0)

    try:
        for step in range(steps + 1):
            alpha = 1.0 - step / steps
            if step:
                put(way.variables, way.at(alpha, tuned))
            yield alpha
            if trained():
                raise ValueError(_TRAINED)
    except GeneratorExit:
        # Nobody would hear an error when a loop is left early.
        if trained():
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


def _clock(
    model: keras.Model,
) -> tuple[keras.optimizers.Optimizer | None, int]:
    """Return the optimizer that trains a model, and how many steps it took."""
    settle(model)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return None, 0
    return optimizer, int(keras.ops.convert_to_numpy(optimizer.iterations))


def find_way(model: keras.Model, source: Source) -> Way:
    """Find θ₀ for every pretrained weight."""
    settle(model)
    optimizer = holder_of(model) if source is None else unwrapped(source)
    if isinstance(optimizer, DualOpt):
        return _from_anchors(model, optimizer)
    check_source(source)
    return _from_source(model, source)


def _from_anchors(model: keras.Model, optimizer: DualOpt) -> Way:
    if optimizer.mode != "finetune":
        raise ValueError(
            "The optimizer must be in fine-tune mode, whose anchors are θ₀. "
            "Received: scratch mode, which has none. Pass `source=`, the "
            "pretrained model or its weights file."
        )
    anchors = {
        id(row.variable): anchor
        for anchor, row in zip(optimizer.anchors, optimizer.rows, strict=True)
    }
    if optimizer.merged:
        raise ValueError(
            "LoRA's factors must hold all that was learned. Received: "
            f"{optimizer.merged[0]!r} and its factor b, which were loaded as "
            "0: Keras has added them to the kernel when the model was saved, "
            "and the way back is lost from it. Pass `source=`, the pretrained "
            "model or its weights file."
        )
    own = {id(weight) for weight in model.weights}
    rows = [
        row
        for row in optimizer.rows
        if row.pretrained
        and role(row.variable) != "free"
        and id(row.variable) in own
    ]
    missing = [v for v in model.trainable_variables if id(v) not in anchors]
    origins = []
    for row in rows:
        anchor = anchors[id(row.variable)]
        if role(row.variable) == "zero":
            origins.append(_zero(row.variable))
        elif anchor is not None:
            origins.append(numpy_value(anchor))
        else:
            missing.append(row.variable)
    if missing:
        raise ValueError(
            "Every pretrained weight must have an anchor. Received: none for "
            f"{missing[0].path!r}. Pass `source=`, the pretrained model or its "
            "weights file, or give the optimizer anchors with `anchor_at`."
        )
    new = look_new(rows, origins)
    if new:
        warnings.warn(
            f"θ₀ of {', '.join(new)} looks like an initializer's: the way back "
            "to it destroys what such layers have learned. If they belong to "
            "the new head, train with `optimizer.bind(model, head=[...])`; or "
            "pass `source=`.",
            stacklevel=stacklevel(),
        )
    return Way([row.variable for row in rows], origins)


def _zero(variable: keras.Variable) -> Array:
    """Return θ₀ of LoRA's factor b."""
    return np.zeros(variable.shape, dtype="float32")


def _from_source(model: keras.Model, source: Source) -> Way:
    weights = [w for w in model.weights if "float" in w.dtype]
    optimizer = unwrapped(getattr(model, "optimizer", None))
    if isinstance(optimizer, DualOpt) and optimizer.mode == "finetune":
        depth = optimizer.depth_in(model)
    else:
        depth = layer_depth(model)
    anchored, zero = [], []
    for weight, place in zip(weights, depth.place(model, weights), strict=True):
        if place.pretrained and role(weight) == "anchor":
            anchored.append(weight)
        elif place.pretrained and role(weight) == "zero":
            zero.append(weight)
    origins = values_of(source, model, anchored)
    return Way([*anchored, *zero], [*origins, *map(_zero, zero)])


def _copy(model: keras.Model, way: Way, values: list[Array]) -> keras.Model:
    """Return a copy of a model in which some weights have other values."""
    copy = _not_compiled(model)
    shapes = [[tuple(w.shape) for w in m.weights] for m in (model, copy)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"The model must be one that Keras can copy. Received: "
            f"{model.name!r}, whose copy has {len(shapes[1])} weights instead "
            f"of {len(shapes[0])}. Save it, interpolate in place, and load the "
            "file for the other one."
        )
    put(copy.weights, model.weights)
    counterparts = dict(zip(map(id, model.weights), copy.weights))
    put([counterparts[id(variable)] for variable in way.variables], values)
    return copy


def _not_compiled(model: keras.Model) -> keras.Model:
    """Return a copy of a model, of fresh weights, that is not compiled."""
    kind = type(model)
    # Keras copies optimizer, loss and metrics of one that is.
    compiled, model.compiled = model.compiled, False
    try:
        # Of a model with a config of its own `clone_model` keeps the graph
        # alone: no task and no preprocessor.
        if kind.get_config.__module__.partition(".")[0] == "keras":
            return keras.models.clone_model(model)
        copy = keras.saving.deserialize_keras_object(
            keras.saving.serialize_keras_object(model),
            custom_objects={kind.__name__: kind},
        )
    finally:
        model.compiled = compiled
    # The constructor of a KerasHub task compiles it in a way of its own.
    copy.compiled = False
    copy.optimizer = None
    return copy
