"""SGD with momentum as OLOR's Algorithm 1 uses it."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_dualopt.backend import Tensor
from keras_dualopt.bases.paper_rule import LearningRate, PaperRule


@keras.saving.register_keras_serializable(package="keras_dualopt")
class SGD(PaperRule):
    """Moves weights along an average of the gradient.

    The base rule of `DualOpt(base="sgd")`, and an optimizer of its own. The
    arithmetic is float32, for float64 weights float64, and so is the state;
    η_t is float32.

        m_t = β m_{t−1} + (1 − β) g_t
        θ_pre = θ_{t−1} − η_t m_t

    with β = `momentum`, η_t = `learning_rate` (OLOR, arXiv:2401.10962,
    Algorithm 1). Differences from the paper: none. Difference from Keras' and
    PyTorch's SGD: the gradient enters with weight 1 − β, so the same learning
    rate makes steps that are 1 − β times as long.

    Args:
        momentum: β in [0, 1). Default 0.9.
        learning_rate: A float, schedule or callable. `None`: what `DualOpt`
            takes for its mode; 1e-3 where used alone.
        **kwargs: Keras' optimizer arguments.

    Raises:
        ValueError: If `momentum` is out of its range.

    Example:
    >>> weight = keras.Variable([1.0, 2.0])
    >>> optimizer = keras_dualopt.bases.SGD(learning_rate=0.1)
    >>> optimizer.apply([keras.ops.ones(2)], [weight])
    >>> print(weight.numpy())
    [0.99 1.99]
    """

    kernel = "sgd"

    def __init__(
        self,
        momentum: float = 0.9,
        learning_rate: LearningRate | None = None,
        **kwargs: Any,
    ) -> None:
        if not 0.0 <= momentum < 1.0:
            raise ValueError(
                f"`momentum` must be in [0, 1). Received: {momentum!r}."
            )
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.momentum = float(momentum)  # It may be NumPy's.

    def build(self, variables: list[keras.Variable]) -> None:
        """Create m for every variable: 4 bytes per parameter."""
        if self.built:
            return
        super().build(variables)
        self._momentums = self.add_state(variables, "momentum")

    def state_of(self, index: int) -> Sequence[keras.Variable]:
        """Return m of one variable."""
        return (self._momentums[index],)

    def move(
        self, g: Tensor, state: Sequence[Tensor], scalars: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return η_t m_t and m_t (OLOR Algorithm 1)."""
        (m,) = state
        (rate,) = scalars
        m = m + (g - m) * (1.0 - self.momentum)
        return rate * m, m

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal optimizer."""
        config: dict[str, Any] = super().get_config()
        config.update(momentum=self.momentum)
        return config
