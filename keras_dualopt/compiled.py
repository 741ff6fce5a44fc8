"""The DualOpt that a model was compiled with."""

import keras

from keras_dualopt.anchored import AnchoredOptimizer, unwrapped


def optimizer_of(model: keras.Model) -> AnchoredOptimizer:
    """Return the DualOpt of a compiled model, also a wrapped one.

    Raises:
        ValueError: If the model is not compiled, or with another optimizer.
    """
    optimizer = unwrapped(getattr(model, "optimizer", None))
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
