"""The same model under the base optimizer alone, with the pull in NumPy.

For models whose gradients are too long to write by hand: both take the same
steps, and the twin's weights are pulled in float64 after each.
"""

import networks
import numpy as np
import reference
from cases import BACKEND
from loops import tensors


class Twin:
    """A model that is trained without DualOpt and pulled by hand.

    Args:
        model: The model, compiled with the unwrapped base.
        ratios: ρ for each trainable variable.
        anchors: a for each; `None`: the present value.
    """

    def __init__(self, model, ratios, anchors=None):
        self.model = model
        self.ratios = ratios
        starts = networks.arrays(model.trainable_variables)
        self.anchors = starts if anchors is None else anchors

    def train_on_batch(self, x, y):
        self.model.train_on_batch(x, y)
        self.pull()

    def pull(self):
        variables = self.model.trainable_variables
        for variable, value, ratio, anchor in zip(
            variables,
            networks.arrays(variables),
            self.ratios,
            self.anchors,
            strict=True,
        ):
            if ratio:
                variable.assign(
                    reference.pulled(value, anchor, ratio).astype("float32")
                )


def ratios(optimizer, wanted):
    """Return ρ at the reference learning rate, given depths by name.

    Args:
        optimizer: A DualOpt in fine-tune mode with float learning rate.
        wanted: For each variable, its relative depth; `None`: not pulled.
    """
    return [
        0.0
        if depth is None
        else reference.f(
            depth, optimizer.rollback, optimizer.rollback_min, optimizer.power
        )
        for depth in wanted
    ]


class Followed(reference.Weight):
    """A weight of the reference whose step a Keras optimizer proposes."""

    def __init__(self, theta_0, lambda_i, group, anchor=None):
        super().__init__(theta_0, lambda_i, anchor)
        self.group = group

    def step(self, g_t, eta_t):
        self.group.step(self, g_t, eta_t)


class Group:
    """An unwrapped Keras optimizer and the weights that follow it.

    All of them take one step when the last of them is asked to.

    Args:
        optimizer: A fresh optimizer.
        variables: Its variables, at θ₀.
        strengths: λ for each.
        anchor: As in `reference.Weight`.
    """

    def __init__(self, optimizer, variables, strengths, anchor=None):
        self.variables = variables
        self.propose = stepper(optimizer, variables)
        self.weights = [
            Followed(theta, strength, self, anchor)
            for theta, strength in zip(
                networks.arrays(variables), strengths, strict=True
            )
        ]
        self.gradients = []

    def step(self, weight, g_t, eta_t):
        self.gradients.append(g_t)
        if weight is not self.weights[-1]:
            return
        for variable, one in zip(self.variables, self.weights, strict=True):
            variable.assign(np.float32(one.theta))
        self.propose(tensors(self.gradients, self.variables))
        self.gradients = []
        for theta_pre, one in zip(
            networks.arrays(self.variables), self.weights, strict=True
        ):
            one.overwrite(
                reference.pulled(theta_pre, one.anchor, one.rho(eta_t))
            )


def stepper(optimizer, variables):
    """Return `optimizer.apply`, compiled where that is faster."""
    optimizer.build(variables)
    if BACKEND != "jax":
        return lambda gradients: optimizer.apply(gradients, variables)
    import jax

    compiled = jax.jit(optimizer.stateless_apply)

    def step(gradients):
        found = compiled(
            [variable.value for variable in optimizer.variables],
            gradients,
            [variable.value for variable in variables],
        )
        for owned, values in zip(
            (variables, optimizer.variables), found, strict=True
        ):
            for variable, value in zip(owned, values, strict=True):
                variable.assign(value)

    return step
