"""The DualOpt that a model was compiled with."""

import keras

from keras_dualopt.optimizer import DualOpt
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
    if not isinstance(optimizer, DualOpt):
        received = (
            "one that is not compiled"
            if optimizer is None
            else f"one compiled with {type(optimizer).__name__}"
        )
        raise ValueError(
            f"The model must be compiled with DualOpt. Received: {received}. "
            "Call `model.compile(DualOpt(...), ...)`."
        )
    return optimizer
