"""The slow reference: OLOR's two algorithms, line by line, in float64.

Huang et al., "One Step Learning, One Step Review", AAAI 2024, arXiv:2401.10962,
in the paper's own letters and in its d-form: the paper carries the discrepancy
d_t = θ_t − θ₀ from step to step, where the library holds θ₀. So the two check
each other. Nothing of the library is imported here.

Two differences from what the paper prints, both part of the specification:
Algorithm 2 prints √(v̂ + ε), its code has √v̂ + ε, as Adam has, and so has this
file; ρ = η_t λ_i is kept in [0, 1] whatever the learning rate does.
"""

import numpy as np


def f(i_over_n, iota_1, iota_2, gamma):
    """Return OLOR Eq. 8 with Eq. 9: ι₂ + (1 − i/n)^γ (ι₁ − ι₂)."""
    return iota_2 + (1.0 - i_over_n) ** gamma * (iota_1 - iota_2)


def w(i_over_n, w_1, w_2, gamma):
    """Return the decay rate of scratch mode: w₂ + (i/n)^γ (w₁ − w₂)."""
    return w_2 + i_over_n**gamma * (w_1 - w_2)


class Weight:
    """What both algorithms carry for one weight, and its anchor.

    Args:
        theta_0: The weight before the first step.
        lambda_i: The penalty factor: f(…)/η in fine-tune mode, w(…) in scratch
            mode, 0 for a weight that is not pulled.
        anchor: What the weight is pulled to; `None`: θ₀, so that d_0 = 0 as in
            the paper. 0 in scratch mode, so that d_t = θ_t.
    """

    def __init__(self, theta_0, lambda_i, anchor=None):
        self.theta = np.array(theta_0, dtype="float64")
        self.anchor = self.theta if anchor is None else np.float64(anchor)
        self.d = self.theta - self.anchor
        self.lambda_i = lambda_i
        self.t = 0

    def step(self, g_t, eta_t):
        """Move the weight and return it."""
        raise NotImplementedError

    def overwrite(self, theta):
        """Put another value in the place of θ_t (an average, a constraint)."""
        self.theta = np.array(theta, dtype="float64")
        self.d = self.theta - self.anchor

    def rho(self, eta_t):
        return min(max(eta_t * self.lambda_i, 0.0), 1.0)


class OlorSgd(Weight):
    """Algorithm 1."""

    def __init__(self, theta_0, lambda_i, anchor=None, beta=0.9):
        super().__init__(theta_0, lambda_i, anchor)
        self.beta = beta
        self.m = np.zeros_like(self.theta)

    def step(self, g_t, eta_t):
        beta, rho, d = self.beta, self.rho(eta_t), self.d
        self.t = self.t + 1  # line 4
        self.m = m_t = beta * self.m + (1 - beta) * g_t  # 7
        self.theta = self.theta - rho * d - (1 - rho) * eta_t * m_t  # 8
        self.d = (1 - rho) * (d - eta_t * m_t)  # 9
        return self.theta


class OlorAdam(Weight):
    """Algorithm 2."""

    def __init__(
        self,
        theta_0,
        lambda_i,
        anchor=None,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
    ):
        super().__init__(theta_0, lambda_i, anchor)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.m = np.zeros_like(self.theta)
        self.v = np.zeros_like(self.theta)

    def step(self, g_t, eta_t):
        beta_1, beta_2 = self.beta_1, self.beta_2
        rho, d = self.rho(eta_t), self.d
        self.t = t = self.t + 1  # line 4
        self.m = m_t = beta_1 * self.m + (1 - beta_1) * g_t  # 7
        self.v = v_t = beta_2 * self.v + (1 - beta_2) * g_t**2  # 8
        m_hat = m_t / (1 - beta_1**t)  # 9
        v_hat = v_t / (1 - beta_2**t)  # 10
        step = eta_t * m_hat / (np.sqrt(v_hat) + self.epsilon)
        self.theta = self.theta - rho * d - (1 - rho) * step  # 11
        self.d = (1 - rho) * (d - step)  # 12
        return self.theta


def train(
    weights,
    gradient,
    schedule,
    steps,
    clip=None,
    accumulate=1,
    ema=None,
):
    """Train and return the weights after every step.

    Args:
        weights: One `Weight` for each variable.
        gradient: A function of (step, [θ]) that returns one gradient each.
        schedule: A function of the raw step (0, 1, …) that returns η_t.
        steps: How many gradients are taken.
        clip: A function of the list of gradients, such as `by_norm(1.0)`.
        accumulate: An update every so many gradients, with their mean.
        ema: (momentum, overwrite frequency or `None`) of an average of the
            weights; an overwritten weight is pulled to its old anchor.
    """
    trajectory = []
    averages = [None] * len(weights)
    kept = []
    for step in range(steps):
        kept.append(gradient(step, [weight.theta for weight in weights]))
        if len(kept) == accumulate:
            g = [np.mean(parts, axis=0) for parts in zip(*kept, strict=True)]
            g = g if clip is None else clip(g)
            for weight, g_t in zip(weights, g, strict=True):
                weight.step(g_t, schedule(step))
            kept = []
        if ema is not None:
            # Keras averages after every gradient and counts updates.
            averages = _averaged(weights, averages, step // accumulate, *ema)
        trajectory.append([weight.theta.copy() for weight in weights])
    return trajectory


def _averaged(weights, averages, step, momentum, overwrite_frequency):
    averages = [
        weight.theta
        if step == 0
        else momentum * average + (1 - momentum) * weight.theta
        for weight, average in zip(weights, averages, strict=True)
    ]
    if overwrite_frequency and (step + 1) % overwrite_frequency == 0:
        for weight, average in zip(weights, averages, strict=True):
            weight.overwrite(average)
    return averages


def by_value(limit):
    return lambda gradients: [np.clip(g, -limit, limit) for g in gradients]


def by_norm(limit):
    return lambda gradients: [_shortened(g, g, limit) for g in gradients]


def by_global_norm(limit):
    def clip(gradients):
        together = np.concatenate([g.ravel() for g in gradients])
        return [_shortened(g, together, limit) for g in gradients]

    return clip


def _shortened(gradient, measured, limit):
    return gradient * min(1.0, limit / max(np.linalg.norm(measured), 1e-300))


def pulled(theta_pre, anchor, rho):
    """Return OLOR Eq. 6: (1 − ρ) θ_pre + ρ a."""
    theta_pre, anchor = np.float64(theta_pre), np.float64(anchor)
    return (1.0 - rho) * theta_pre + rho * anchor
