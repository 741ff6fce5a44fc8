"""What people use against forgetting, behind one interface.

A method makes an optimizer and a loss from one number, its *setting*. Every
method that has one chooses from six.
"""

import dataclasses
import functools
import re
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from keras_dualopt import DualOpt, layer_depth

from .adapters import low_rank, with_prompts
from .loop import BACKEND

# The deepest layers are held less tightly than the shallowest, and by how much
# is not searched: `rollback_min` is this share of `rollback`; `reach_max` is
# left at its default, three times `reach`.
DEEPEST = 0.3
# Memory of the methods that keep old data, and of their old problem.
MEMORY = 0.05
FISHER_EXAMPLES = 1000


def cross_entropy(labels, logits):
    losses = keras.losses.sparse_categorical_crossentropy(
        labels, logits, from_logits=True
    )
    return ops.mean(losses)


def plain_loss(problem, setting):
    """Return the new task's loss alone."""
    return lambda x, y: problem.loss(
        y, problem.model(x, training=problem.training)
    )


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to fine-tune.

    Args:
        name: What it is called on the command line and in files.
        label: What it is called in tables and pictures.
        knob: What its setting is.
        settings: The values it may choose from.
        optimizer: `(problem, rate, setting)` to an optimizer.
        loss: `(problem, setting)` to a loss of a batch.
        data: `(problem, seed)` to arrays with a row for each new example, that
            the loss takes after inputs and labels.
        after: `(problem, setting)`: changes the weights after training, and
            is then all that the setting is for.
        sets_rate: Whether its setting is the learning rate.
        uses_old_data: Whether it sees data of the old problem.
        adapt: Adds weights to the network that are trained in place of its
            own; see `adapters`.
    """

    name: str
    label: str
    knob: str
    settings: tuple
    optimizer: Callable
    loss: Callable = plain_loss
    data: Callable = lambda problem, seed: ()
    after: Callable | None = None
    sets_rate: bool = False
    uses_old_data: bool = False
    adapt: Callable | None = None


# --- other optimizers ------------------------------------------------------


def adam(problem, rate, setting):
    return keras.optimizers.Adam(rate, epsilon=1e-8)


class LayerwiseAdam(keras.optimizers.Adam):
    """Adam with a learning rate of its own for each layer.

    Args:
        rate: The learning rate.
        problem: Its model and new head.
        setting: A number for `share`.
        share: `(setting, relative depth)` to the share of the rate; the new
            head moves at all of it.
    """

    def __init__(self, rate, problem, setting, share):
        super().__init__(rate, epsilon=1e-8)
        self.setting = setting
        self._share, self._relative = share, depths(problem)

    def update_step(self, gradient, variable, learning_rate):
        """Take Adam's step at the layer's own rate."""
        depth = self._relative[self._get_variable_index(variable)]
        if depth is not None:
            share = self._share(self.setting, depth)
            learning_rate = learning_rate * ops.cast(share, "float32")
        super().update_step(gradient, variable, learning_rate)


def depths(problem):
    """Return each trained weight's relative depth, `None` in the new head."""
    table = layer_depth(problem.model, head=problem.head)
    rows = {row.path: row.relative for row in table.rows}
    return [rows[v.path] for v in problem.model.trainable_variables]


def layerwise(problem, rate, setting):
    """Return Adam with BEiT's geometric profile of learning rates."""
    return LayerwiseAdam(rate, problem, setting, lambda s, r: s ** (1 - r))


def frozen(problem, rate, setting):
    """Return Adam for the layers from a depth on; all above it are frozen."""
    return LayerwiseAdam(rate, problem, setting, lambda s, r: r >= s)


# --- penalties and old data ------------------------------------------------


def l2_sp_loss(problem, setting):
    """Return the loss with L2-SP's penalty, setting/2 · ‖θ − θ₀‖².

    Li, Grandvalet and Davoine, "Explicit Inductive Bias for Transfer Learning
    with Convolutional Networks", ICML 2018, Eq. 3; the new head's own decay β
    is 0.
    """
    return _penalized(problem, setting, [1.0] * len(problem.start))


def ewc_loss(problem, setting):
    """Return the loss with EWC's penalty, setting/2 · Σ F (θ − θ₀)².

    Kirkpatrick et al., "Overcoming catastrophic forgetting in neural
    networks", PNAS 2017, Eq. 3. F: squared gradients of the old problem.
    """
    return _penalized(problem, setting, problem.fisher)


def _penalized(problem, setting, importance):
    plain = plain_loss(problem, setting)

    def loss(x, y):
        far = sum(
            ops.sum(weight * ops.square(variable - start))
            for variable, start, weight in zip(
                problem.pretrained, problem.start, importance
            )
        )
        return plain(x, y) + setting / 2 * far

    return loss


def replay_loss(problem, setting):
    """Return the new loss and `setting` times the loss on old examples."""

    def loss(x, y, old_x, old_y):
        # One pass through the network for both.
        both = ops.concatenate([x, old_x])
        features = problem.backbone(both, training=problem.training)
        new, old = ops.split(features, 2)
        return problem.loss(
            y, problem.new_answer(new)
        ) + setting * problem.loss(old_y, problem.old_head(old))

    return loss


def replay_data(problem, seed):
    """Return an old example beside each new one, from 5 % of the old data."""
    old, count = problem.task.old["train"], len(problem.task.new["train"])
    random = np.random.default_rng(seed)
    memory = random.permutation(len(old))[: int(MEMORY * len(old))]
    rows = random.choice(memory, count, replace=count > len(memory))
    return old.inputs[rows], old.labels[rows]


def without_forgetting_loss(problem, setting):
    """Return the new loss and `setting` times the distillation of old answers.

    Li and Hoiem, "Learning without Forgetting", ECCV 2016: on new examples,
    at temperature 2.
    """

    def loss(x, y, answers):
        features = problem.backbone(x, training=True)
        logits = problem.old_head(features)
        kept = -ops.sum(
            ops.softmax(answers / 2) * ops.log_softmax(logits / 2), axis=-1
        )
        new = cross_entropy(y, problem.new_answer(features))
        return new + setting * ops.mean(kept)

    return loss


def old_answers(problem, seed):
    """Return the pretrained network's answers to the new examples."""
    return (problem.answer(problem.reviewer, problem.task.new["train"].inputs),)


def toward_start(problem, alpha):
    """Set pretrained weights to θ₀ + alpha (θ − θ₀), as WiSE-FT does.

    Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022.
    """
    for variable, start in zip(problem.pretrained, problem.start):
        start = np.array(start)
        variable.assign(start + alpha * (np.array(variable) - start))


# --- ours ------------------------------------------------------------------


class Searched(DualOpt):
    """DualOpt, made at setting 1, whose strengths are `setting` times as large.

    It reads them in every step: one compiled program serves all settings.
    """

    setting = 1.0

    def build(self, variables):
        """Let ρ be of the strength times the setting."""
        super().build(variables)
        pull, ratio = self.pull, self.pull.ratio

        def searched(amount, rate, factor):
            if "rollback" in self.settings.level_names:
                # Each run's own rate is the one that `rollback` is meant at.
                rate = np.float32(pull.reference)
            return ratio(ops.multiply(amount, self.setting), rate, factor)

        pull.ratio = searched


def ours(problem, rate, setting, strengths, **others):
    """Return DualOpt with each of `strengths` times the setting."""
    if BACKEND != "torch":
        setting, kind = 1.0, Searched
    else:
        kind = DualOpt
    strengths = {name: setting * value for name, value in strengths.items()}
    if others.pop("relative", False):
        strengths = {name: f"{100 * v:g}%" for name, v in strengths.items()}
    if "rollback" in strengths:
        others["reference_learning_rate"] = rate
    optimizer = kind(rate, **strengths, **others)
    if optimizer.mode == "finetune":
        optimizer.anchor_at()  # Every run begins at weights of its own.
    if "depth" in others:
        return optimizer
    return optimizer.bind(problem.model, head=problem.head)


def reversed_rollback(problem, rate, setting):
    """Return `rollback` with shallow and deep layers exchanged: a control."""
    depth = {
        re.escape(variable.path): None if relative is None else 1 - relative
        for variable, relative in zip(
            problem.model.trainable_variables, depths(problem)
        )
    }
    return ours(problem, rate, setting, HELD, depth=depth)


HELD = {"rollback": 1.0, "rollback_min": DEEPEST}
UNIFORM = {"rollback": 1.0, "rollback_min": 1.0}
PAPER = {"rollback": 1.0}
REACH = {"reach": 1.0}
REACH_HELD = {"reach": 1.0, "reach_max": 1.0}


def by(strengths, **others):
    return functools.partial(ours, strengths=strengths, **others)


RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
ROLLBACKS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
REACHES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
WEIGHTS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
ALPHAS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8)

METHODS = {
    method.name: method
    for method in (
        Method("adam", "Adam", "", (0.0,), adam),
        Method(
            "adam_rates",
            "Adam, over rates",
            "learning rate",
            RATES,
            adam,
            sets_rate=True,
        ),
        Method(
            "adamw_rates",
            "AdamW, over rates",
            "learning rate",
            RATES,
            lambda problem, rate, setting: keras.optimizers.AdamW(
                rate, weight_decay=0.05, epsilon=1e-8
            ),
            sets_rate=True,
        ),
        Method(
            "sgd_rates",
            "SGD, over rates",
            "learning rate",
            tuple(30 * rate for rate in RATES),
            lambda problem, rate, setting: keras.optimizers.SGD(
                rate, momentum=0.9
            ),
            sets_rate=True,
        ),
        Method(
            "probe",
            "linear probe",
            "",
            (0.0,),
            lambda problem, rate, setting: LayerwiseAdam(
                rate,
                problem,
                setting,
                # A head that is shared is the deepest pretrained layer.
                lambda s, r: problem.task.shared_head and r == 1,
            ),
        ),
        Method(
            "frozen",
            "frozen shallow layers",
            "frozen above",
            (0.15, 0.3, 0.45, 0.6, 0.75, 0.9),
            frozen,
        ),
        Method(
            "layerwise",
            "layer-wise rates",
            "rate at the input",
            (0.3, 0.1, 0.03, 0.01, 0.003, 0.001),
            layerwise,
        ),
        Method(
            "lora",
            "LoRA",
            "learning rate",
            (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
            adam,
            sets_rate=True,
            adapt=low_rank,
        ),
        Method(
            "prompts",
            "visual prompts",
            "learning rate",
            (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3),
            adam,
            sets_rate=True,
            adapt=with_prompts,
        ),
        Method(
            "l2_sp",
            "L2-SP",
            "penalty",
            (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
            adam,
            l2_sp_loss,
        ),
        Method("wise_ft", "WiSE-FT", "alpha", ALPHAS, adam, after=toward_start),
        Method(
            "without_forgetting",
            "LwF",
            "weight",
            WEIGHTS,
            adam,
            without_forgetting_loss,
            data=old_answers,
        ),
        Method(
            "ewc",
            "EWC",
            "penalty",
            (1.0, 3.0, 10.0, 30.0, 100.0, 300.0),
            adam,
            ewc_loss,
            uses_old_data=True,
        ),
        Method(
            "replay",
            "replay of 5 %",
            "weight",
            WEIGHTS,
            adam,
            replay_loss,
            data=replay_data,
            uses_old_data=True,
        ),
        Method(
            "uniform",
            "uniform rollback",
            "rollback",
            ROLLBACKS,
            by(UNIFORM),
        ),
        Method(
            "reversed",
            "reversed rollback",
            "rollback",
            ROLLBACKS,
            reversed_rollback,
        ),
        Method(
            "paper",
            "DualOpt, rollback_min=0",
            "rollback",
            ROLLBACKS,
            by(PAPER),
        ),
        Method(
            "rollback",
            "DualOpt, rollback",
            "rollback",
            ROLLBACKS,
            by(HELD),
        ),
        Method(
            "paper_power_1",
            "rollback_min=0, power=1",
            "rollback",
            ROLLBACKS,
            by(PAPER, power=1.0),
        ),
        Method(
            "paper_power_4",
            "rollback_min=0, power=4",
            "rollback",
            ROLLBACKS,
            by(PAPER, power=4.0),
        ),
        Method("reach", "DualOpt, reach", "reach", REACHES, by(REACH)),
        Method(
            "reach_held",
            "reach, deepest layers held as well",
            "reach",
            REACHES,
            by(REACH_HELD),
        ),
        Method(
            "relative_reach",
            "DualOpt, reach in %",
            "reach",
            (0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
            by(REACH, relative=True),
        ),
        Method(
            "reach_rates",
            "reach, shallow_rate=0.1",
            "reach",
            REACHES,
            by(REACH, shallow_rate=0.1),
        ),
        Method(
            "reach_wise_ft",
            "reach=0.2, then WiSE-FT",
            "alpha",
            ALPHAS,
            lambda problem, rate, setting: (
                DualOpt(rate, reach=0.2)
                .bind(problem.model, head=problem.head)
                .anchor_at()
            ),
            after=toward_start,
        ),
        Method(
            "reach_replay",
            "reach and replay",
            "reach",
            REACHES,
            by(REACH),
            lambda problem, setting: replay_loss(problem, 1.0),
            data=replay_data,
            uses_old_data=True,
        ),
    )
}
