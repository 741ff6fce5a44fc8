"""Files: without the anchors, to ship; and into a compiled model, to go on."""

import os
from collections.abc import Sequence

import keras
import numpy as np

from keras_dualopt import checkpoint
from keras_dualopt.backend import Array
from keras_dualopt.lookup import optimizer_of, read_waiting
from keras_dualopt.wrapping import settle

_KERAS, _WEIGHTS = ".keras", ".weights.h5"
# Where Keras writes an optimizer's state, in all of Keras 3: the names of
# attributes, the second inside of a `LossScaleOptimizer`.
_PLACES = ("optimizer", "inner_optimizer")


def save_without_anchors(
    model: keras.Model, path: str | os.PathLike[str]
) -> None:
    """Save a model without θ₀, which takes as much room as the weights.

    The model in memory stays as it is and can be trained on. The file loads
    and evaluates; if θ₀ was there, from a first step or by `anchor_at`, a
    training step on the loaded model is an error that names `anchor_at`. Under
    `LossScaleOptimizer`, Keras warns when it loads the file, and the loss scale
    starts anew.

    Args:
        model: A model compiled with `DualOpt(mode="finetune")`.
        path: A `.keras` file (the model) or a `.weights.h5` file (its weights);
            one that exists is overwritten.

    Raises:
        ValueError: If the model is not compiled with DualOpt, or in scratch
            mode, or for another kind of file; or if a state was read that
            does not fit.

    Example:
    >>> import tempfile
    >>> from keras_dualopt import DualOpt
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)]
    ... )
    >>> model.compile(DualOpt(1e-3), "mse")
    >>> _ = model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_without_anchors(model, f"{folder}/model.keras")
    """
    kind = _kind(path)
    optimizer = optimizer_of(model)
    if optimizer.mode != "finetune":
        raise ValueError(
            "`save_without_anchors` needs fine-tune mode. Received: scratch "
            "mode, where there are no anchors. Call `model.save`."
        )
    read_waiting(model)
    settle(model)
    outer = model.optimizer
    rows = optimizer.rows if optimizer.built else []
    kept = {id(row.anchor) for row in rows}

    def save_outer(store: checkpoint.Store) -> None:
        shipped = [v for v in outer.variables if id(v) not in kept]
        for number, variable in enumerate(shipped):
            store[str(number)] = keras.ops.convert_to_numpy(variable.value)

    if outer is not optimizer:
        # LossScaleOptimizer writes its inner optimizer's variables once more.
        vars(outer)["save_own_variables"] = save_outer
    try:
        with optimizer.without_anchors():
            if kind == _KERAS:
                model.save(path)
            else:
                model.save_weights(path)
    finally:
        vars(outer).pop("save_own_variables", None)


def restore_optimizer(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Put the optimizer's state of a file into a compiled model.

    For models that `load_model` does not compile, so that the step counter,
    the averages and θ₀ in the file are lost: KerasHub's tasks, and any with a
    `compile` of its own. Load, compile as before, restore; training then goes
    on as if it had never stopped. The model's weights stay as they are.

    Args:
        model: A model compiled with a DualOpt like the one that was saved.
        path: A `.keras` or `.weights.h5` file.

    Raises:
        ValueError: If the file has no state of a DualOpt, or one that does not
            fit; nothing is changed then.

    Example:
    >>> import tempfile
    >>> from keras_dualopt import DualOpt
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)]
    ... )
    >>> model.compile(DualOpt(1e-3), "mse")
    >>> _ = model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(f"{folder}/model.keras")
    ...     model.compile(DualOpt(1e-3), "mse")
    ...     restore_optimizer(model, f"{folder}/model.keras")
    >>> int(model.optimizer.iterations)
    1
    """
    optimizer = optimizer_of(model)
    _kind(path)
    reader = _Reader()
    keras.saving.load_weights(reader, path)
    own, inside = reader.optimizer.found, reader.optimizer.inner_optimizer.found
    found = next(filter(checkpoint.read, (own, inside)), None)
    if found is None:
        count = len(own) + len(inside)
        raise ValueError(
            f"{os.fspath(path)!r} must hold the state of a DualOpt. Received: "
            + (f"{count} arrays of another optimizer" if count else "none")
            + ". Save the model, or its weights, while it is compiled with "
            "DualOpt."
        )
    settle(model)
    outer = model.optimizer
    if not outer.built:
        outer.build(model.trainable_variables)
    optimizer.load_own_variables(found)
    if outer is not optimizer and found is inside:
        # LossScaleOptimizer's own variables come first.
        known = {id(variable) for variable in optimizer.variables}
        rest = [v for v in outer.variables if id(v) not in known]
        for number, variable in enumerate(rest):
            variable.assign(own[str(number)])


class _Reader(keras.layers.Layer):
    """Is given by Keras what a file holds for an optimizer."""

    def __init__(self, inside: Sequence[str] = _PLACES) -> None:
        super().__init__()
        self.built = True
        self.found: dict[str, Array] = {}
        if inside:
            setattr(self, inside[0], _Reader(inside[1:]))

    def load_own_variables(self, store: checkpoint.Store) -> None:
        keys = list(store.keys())
        self.found = {key: np.array(store[key]) for key in keys}


def _kind(path: str | os.PathLike[str]) -> str:
    for kind in (_KERAS, _WEIGHTS):
        if os.fspath(path).endswith(kind):
            return kind
    raise ValueError(
        f"`path` must end in '{_KERAS}' or '{_WEIGHTS}'. Received: "
        f"{os.fspath(path)!r}."
    )
