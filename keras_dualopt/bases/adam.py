"""Adam as OLOR's Algorithm 2 uses it."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_dualopt.backend import Tensor
from keras_dualopt.bases.paper_rule import LearningRate, PaperRule


@keras.saving.register_keras_serializable(package="keras_dualopt")
class Adam(PaperRule):
    """Moves weights along bias-corrected averages of the gradient.

    The base rule of `DualOpt(base="adam")`, and an optimizer of its own. The
    arithmetic is float32, for float64 weights float64, and so is the state;
    what all weights share (η_t and the bias corrections) is float32.

        m_t = β₁ m_{t−1} + (1 − β₁) g_t
        v_t = β₂ v_{t−1} + (1 − β₂) g_t²
        u_t = m̂_t / (√v̂_t + ε),   m̂_t = m_t/(1 − β₁ᵗ),  v̂_t = v_t/(1 − β₂ᵗ)
        θ_pre = θ_{t−1} − η_t u_t

    with β₁ = `beta_1`, β₂ = `beta_2`, ε = `epsilon`, η_t = `learning_rate`
    (OLOR, arXiv:2401.10962, Algorithm 2). One difference from the paper's
    text: it prints √(v̂ + ε); its published code and Kingma & Ba (2014) have
    √v̂ + ε, as here.

    Args:
        beta_1: Decay rate of the first moment, in [0, 1). Default 0.9.
        beta_2: Decay rate of the second moment, in [0, 1). Default 0.999.
        epsilon: Added to √v̂, > 0. Default 1e-8.
        learning_rate: A float, schedule or callable. `None`: what `DualOpt`
            takes for its mode; 1e-3 where used alone.
        **kwargs: Keras' optimizer arguments.

    Raises:
        ValueError: If a rate or `epsilon` is out of its range.

    Example:
    >>> weight = keras.Variable([1.0, 2.0])
    >>> optimizer = keras_dualopt.bases.Adam(learning_rate=0.1)
    >>> optimizer.apply([keras.ops.ones(2)], [weight])
    >>> print(weight.numpy())
    [0.9 1.9]
    """

    kernel = "adam"

    def __init__(
        self,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        learning_rate: LearningRate | None = None,
        **kwargs: Any,
    ) -> None:
        for name, rate in (("beta_1", beta_1), ("beta_2", beta_2)):
            if not 0.0 <= rate < 1.0:
                raise ValueError(
                    f"`{name}` must be in [0, 1). Received: {rate!r}."
                )
        if not (epsilon > 0.0 and math.isfinite(epsilon)):
            raise ValueError(
                "`epsilon` must be finite and > 0 (it keeps a weight without "
                f"gradient from 0/0). Received: {epsilon!r}."
            )
        super().__init__(learning_rate=learning_rate, **kwargs)
        # As JSON takes them; they may be NumPy's.
        self.beta_1 = float(beta_1)
        self.beta_2 = float(beta_2)
        self.epsilon = float(epsilon)

    def build(self, variables: list[keras.Variable]) -> None:
        """Create m and v for every variable: 2 × 4 bytes per parameter."""
        if self.built:
            return
        super().build(variables)
        self._momentums = self.add_state(variables, "momentum")
        self._velocities = self.add_state(variables, "velocity")

    def state_of(self, index: int) -> Sequence[keras.Variable]:
        """Return m and v of one variable."""
        return (self._momentums[index], self._velocities[index])

    def scalars(self, learning_rate: Tensor) -> Sequence[Tensor]:
        """Return η_t/(1 − β₁ᵗ) and 1/(1 − β₂ᵗ): one division a weight less."""
        (rate,) = super().scalars(learning_rate)
        t = ops.cast(self.iterations + 1, "float32")
        return (
            rate / _bias_correction(self.beta_1, t),
            ops.reciprocal(_bias_correction(self.beta_2, t)),
        )

    def move(
        self, g: Tensor, state: Sequence[Tensor], scalars: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return η_t m̂_t/(√v̂_t + ε), m_t and v_t (OLOR Algorithm 2)."""
        m, v = state
        rate, correction = scalars
        # m + (1 − β)(g − m) has the exact average as its fixed point; with β
        # rounded to float32, βm + (1 − β)g is off by 1e-5 of v for β₂ = 0.999.
        m = m + (g - m) * (1.0 - self.beta_1)
        v = v + (g * g - v) * (1.0 - self.beta_2)
        step = m * rate / (ops.sqrt(v * correction) + self.epsilon)
        return step, m, v

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal optimizer."""
        config: dict[str, Any] = super().get_config()
        config.update(
            beta_1=self.beta_1, beta_2=self.beta_2, epsilon=self.epsilon
        )
        return config


def _bias_correction(beta: float, t: Tensor) -> Tensor:
    """Return 1 − βᵗ, to float32 precision also where βᵗ is close to 1."""
    if beta == 0.0:
        return ops.ones_like(t)
    return -ops.expm1(t * math.log(beta))
