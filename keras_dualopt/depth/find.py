"""Reaching the model from inside an optimizer.

Keras hands an optimizer a list of variables and never the model. The model is
on the call stack, though: in `fit` it is the `self` of a frame, in a loop of
the user's own a local variable. No frame and no model is kept.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import keras

from keras_dualopt.depth import keras_hooks as hooks
from keras_dualopt.depth.layer_depth import layer_depth


def find_model(variables: Sequence[keras.Variable]) -> keras.Model:
    """Return the model that is being trained, found on the call stack.

    The nearest frame that holds a built model to which all the variables, or
    more, belong; of several in it, one that trains exactly these; in a method
    of a model, the model itself first. Globals are not searched, but a script's
    own loop runs in a frame whose locals they are.
    """
    wanted = [hooks.identity(variable) for variable in variables]
    for _, names in _on_the_stack():
        found = _in_frame(names, wanted)
        # An empty list may be the one of a model that is not built.
        sure = wanted or found == [names.get("self")]
        if not sure and not all(model.built for model in _models(names)):
            raise no_weights()
        if found:
            return _the_one(found, variables)
    if not variables:
        raise no_weights()
    first = variables[0].path
    raise ValueError(
        "The model that owns the variables was not found: it must be in a "
        "function that is running (`fit`, or a loop that has it in a local "
        f"variable). Received: {len(variables)} variables, the first of which "
        f"is {first!r}. Call `optimizer.bind(model)` first, or give the "
        "optimizer `depth=`."
    )


def no_weights() -> ValueError:
    """Return the error for an empty list that no frozen model explains."""
    return ValueError(
        "The variables must be the trainable ones of a built model. Received: "
        "none; the model has no weights yet: call it once on a batch "
        "(`model(x[:1])`) first. If all of its weights are frozen, name it: "
        "`optimizer.bind(model)`."
    )


def training_model() -> keras.Model | None:
    """Return the model whose `fit` is running, or `None`.

    The nearest `self` on the call stack that is a compiled Keras model in one
    of its training methods.
    """
    for function, names in _on_the_stack():
        owner = names.get("self")
        if function not in _TRAINING_METHODS:
            continue
        # One that is not compiled trains itself in a loop of its own.
        if isinstance(owner, keras.Model) and owner.compiled:
            return owner
    return None


def _on_the_stack() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the running functions' names and locals, the nearest first."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame.f_code.co_name, frame.f_locals
        frame = frame.f_back


_TRAINING_METHODS = frozenset({"fit", "train_on_batch", "train_step"})


def _in_frame(
    names: Mapping[str, Any], wanted: Sequence[int]
) -> list[keras.Model]:
    owner = names.get("self")
    if isinstance(owner, keras.Model) and _covers(owner, wanted):
        return [owner]
    found: dict[int, keras.Model] = {}
    for model in _models(names):
        if id(model) not in found and _covers(model, wanted):
            found[id(model)] = model
    exactly = [
        model
        for model in found.values()
        if {*map(hooks.identity, model.trainable_variables)} == {*wanted}
    ]
    return exactly if len(exactly) == 1 else [*found.values()]


def _models(names: Mapping[str, Any]) -> Iterator[keras.Model]:
    values = [*names.values()]
    owner = names.get("self")
    if not isinstance(owner, keras.optimizers.Optimizer):
        # A trainer of the user's own that keeps the model as an attribute.
        values += getattr(owner, "__dict__", {}).values()
    yield from (v for v in values if isinstance(v, keras.Model))


def _covers(model: keras.Model, wanted: Sequence[int]) -> bool:
    if not getattr(model, "built", False):
        return False
    own = {hooks.identity(variable) for variable in model.variables}
    return bool(own) and own.issuperset(wanted)


def _the_one(
    found: Sequence[keras.Model], variables: Sequence[keras.Variable]
) -> keras.Model:
    if len(found) == 1:
        return found[0]
    depths = [
        [
            (place.relative, place.pretrained)
            for place in layer_depth(model).place(model, variables)
        ]
        for model in found
    ]
    if all(depth == depths[0] for depth in depths):
        return found[0]
    names = ", ".join(repr(model.name) for model in found)
    raise ValueError(
        "One model of the function that is running must own the variables. "
        f"Received: {len(found)} ({names}), in which they lie at different "
        "depths. Say which: `optimizer.bind(model)`."
    )
