"""The DualOpt that a model was compiled with."""

import keras

from keras_dualopt.anchored import AnchoredOptimizer, unwrapped


def optimizer_of(
    model: keras.Model, beside_others: bool = False
) -> AnchoredOptimizer:
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
        if isinstance(part, AnchoredOptimizer)
    ]
    if parts and not beside_others:
        raise ValueError(
            "Expected: a model all of whose weights DualOpt trains. Received: "
            "one compiled with a MultiOptimizer, whose other optimizers have "
            "no anchors. Call `model.compile(DualOpt(...), ...)`."
        )
    if len(parts) == 1:
        return parts[0]
    if not isinstance(optimizer, AnchoredOptimizer):
        received = (
            "one that is not compiled"
            if optimizer is None
            else f"one compiled with {type(optimizer).__name__}"
        )
        raise ValueError(
            "Expected: a model compiled with DualOpt. Received: "
            f"{received}. Call `model.compile(DualOpt(...), ...)`."
        )
    return optimizer


def settle(model: keras.Model) -> None:
    """Bring a model's variables up to date inside of JAX's `fit`."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()
