"""The same model under the base optimizer alone, with the pull in NumPy.

For models whose gradients are too long to write by hand: both take the same
steps, and the twin's weights are pulled in float64 after each.
"""

import networks
import numpy as np
import reference


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


def assert_close(got, wanted, rtol=1e-5, atol=1e-6):
    for value, other in zip(got, wanted, strict=True):
        np.testing.assert_allclose(
            np.asarray(value, dtype="float64"),
            np.asarray(other, dtype="float64"),
            rtol=rtol,
            atol=atol,
        )
