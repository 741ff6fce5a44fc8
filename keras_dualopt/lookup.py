"""Which DualOpt belongs to a model."""

import gc

import keras

from keras_dualopt.optimizer import DualOpt, living
from keras_dualopt.wrapping import unwrapped


def optimizer_of(model: keras.Model, beside_others: bool = False) -> DualOpt:
    """Return the DualOpt of a compiled model, also a wrapped one.

    Args:
        model: The model.
        beside_others: Whether the only DualOpt inside of a `MultiOptimizer`
            will do. It has neither state nor anchors of the weights that the
            others move.

    Raises:
        ValueError: If the model is not compiled, or with another optimizer.
    """
    optimizer = unwrapped(getattr(model, "optimizer", None))
    parts = [
        part
        for part in map(unwrapped, getattr(optimizer, "optimizers", ()))
        if isinstance(part, DualOpt)
    ]
    if parts and not beside_others:
        raise ValueError(
            "The model must be one all of whose weights DualOpt trains. "
            "Received: one compiled with a MultiOptimizer, whose other "
            "optimizers have no anchors. Call `model.compile(DualOpt(...))`."
        )
    if len(parts) == 1:
        return parts[0]
    if isinstance(optimizer, DualOpt):
        return optimizer
    kind = "nothing" if optimizer is None else type(optimizer).__name__
    raise ValueError(
        f"The model must be compiled with DualOpt. Received: one compiled with "
        f"{kind}. Call `model.compile(DualOpt(...), ...)`."
    )


def read_waiting(model: keras.Model) -> None:
    """Build a model's DualOpt for which a state or anchors wait.

    Raises:
        ValueError: If they do not fit.
    """
    optimizer = unwrapped(getattr(model, "optimizer", None))
    if isinstance(optimizer, DualOpt):
        if optimizer.waits and not optimizer.built:
            model.optimizer.build(model.trainable_variables)
        optimizer.check_taken()


def holder_of(model: keras.Model) -> DualOpt:
    """Return the DualOpt that has θ₀ of a model's weights.

    That is the one it was compiled with; where that has not taken a step, or
    the model was trained in a loop of one's own, the one that has.

    Raises:
        ValueError: If there is none, or more than one.
    """
    read_waiting(model)
    own = unwrapped(getattr(model, "optimizer", None))
    if hasattr(own, "optimizers") or (
        isinstance(own, DualOpt) and own.has_anchors
    ):
        return optimizer_of(model)
    found = _holders(model)
    if len(found) > 1:
        del found
        gc.collect()  # Not those that nobody could name any more.
        found = _holders(model)
    if len(found) > 1:
        raise ValueError(
            "One DualOpt must have the anchors of the model. Received: "
            + ", ".join(sorted(f"{one.name!r} {one!r}" for one in found))
            + ". Pass the one that is meant as `source=`, or compile with a "
            "new one: `model.compile(DualOpt(...).anchor_at(old), ...)`."
        )
    return found[0] if found else optimizer_of(model)


def _holders(model: keras.Model) -> list[DualOpt]:
    trained = {id(variable) for variable in model.trainable_variables}
    held = (
        (one, {id(r.variable) for r in one.rows if r.anchor is not None})
        for one in list(living)
    )
    return [one for one, own in held if own & trained and one.has_anchors]
