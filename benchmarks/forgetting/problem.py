"""A network before a task: what is trained, what is measured."""

import dataclasses
import functools

import keras
import numpy as np

from .adapters import fresh
from .loop import BACKEND, Loop, batches, gradients
from .methods import FISHER_EXAMPLES, cross_entropy
from .tasks import Task
from .texts import found_first

BATCH_SIZE = 16
# Pretraining: Adam, its rate a tenth in the last fifth of the way.
PRETRAINING_STEPS = 10_000
PRETRAINING_RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run begins.

    Args:
        task: A `Task`.
        weights: The pretrained weights of `Problem.reviewer`.
        setting: The value of a method's knob.
        rate: The learning rate.
        seed: Of the new output layer and of the order of the batches.
    """

    task: Task
    weights: list
    setting: float
    rate: float
    seed: int


class Problem:
    """A backbone with its old output layer, and a task's new one.

    Args:
        backbone: A Keras model from inputs to features, not yet pretrained.
        task: A `Task`. Other tasks of the same kind can take its place, so
            that programs compiled once serve all seeds.
        adapt: A function that adds weights to the backbone, freezes others and
            returns it; see `adapters`.

    Attributes:
        model: Inputs to the new problem's logits: what is fine-tuned.
        reviewer: Inputs to the old problem's logits, by the same backbone.
        pretrained: The weights of `model` that were pretrained.
        start: Their pretrained values, as variables.
        fisher: How much the old problem depends on each, for EWC.
        head: What was not pretrained, for `DualOpt.bind`.
    """

    batch = BATCH_SIZE
    # Whether layers behave while training as Keras has them do then.
    training = True
    # `(labels, answer)` to a loss.
    loss = staticmethod(cross_entropy)

    def __init__(self, backbone, task, adapt=None):
        self.backbone, self.task = backbone, task
        inputs = backbone.input
        features = backbone(inputs)
        self.reviewer = self._reviewer(inputs, features)
        # What `pretrain` learns, in this order.
        self.known_by = list(self.reviewer.weights)
        self.added = []
        if adapt is not None:
            self._adapt(adapt)
            features = self.backbone(inputs)
        if task.shared_head:
            self.model, self.head = self.reviewer, ()
            self.new_head, self.new_answer = None, self.old_head
        else:
            self.new_head = keras.layers.Dense(
                task.new_classes, name="new_head"
            )
            self.new_answer = self.new_head
            self.model = keras.Model(inputs, self.new_head(features))
            self.head = [self.new_head]
        learned = {id(v) for v in self.known_by}
        self.pretrained = [
            v for v in self.model.trainable_variables if id(v) in learned
        ]
        self.start, self.fisher = (
            [
                keras.Variable(np.zeros(v.shape, "float32"), trainable=False)
                for v in self.pretrained
            ]
            for _ in range(2)
        )
        # The old output layer, where it is not trained on.
        trained = {id(v) for v in [*self.pretrained, *self.added]}
        self.untrained = [
            v for v in self.reviewer.variables if id(v) not in trained
        ]
        self.loops = {}

    def _adapt(self, adapt):
        self.backbone = adapt(self.backbone)
        # A shared one would forget the old problem by itself.
        self.old_head.trainable = False
        inputs = self.backbone.input
        self.reviewer = keras.Model(
            inputs, self.old_head(self.backbone(inputs))
        )
        learned = {id(v) for v in self.known_by}
        self.added = [v for v in self.reviewer.weights if id(v) not in learned]

    def _reviewer(self, inputs, features):
        self.old_head = keras.layers.Dense(
            self.task.old_classes, name="old_head"
        )
        return keras.Model(inputs, self.old_head(features))

    def pretrain(self, seeds, steps=PRETRAINING_STEPS):
        """Learn the old problem; return all weights of `reviewer` by seed."""
        old = self.task.old["train"]
        data, first = (old.inputs, old.labels), steps * 4 // 5
        loop = self._loop(
            "pretraining",
            lambda: Loop(
                lambda rate, setting: keras.optimizers.Adam(rate),
                self.reviewer.trainable_variables,
                lambda setting: (
                    lambda x, y: self.loss(
                        y, self.reviewer(x, training=self.training)
                    )
                ),
            ),
        )
        learned, runs = {}, []
        for seed in seeds:
            self.begin_pretraining(seed)
            rows = batches(len(old), steps, self.batch, seed)
            loop.start(PRETRAINING_RATE)
            if BACKEND == "jax":
                runs.append(loop.taken(data, rows))
                continue
            loop.run(data, rows, 0, first)
            loop.optimizer.learning_rate = PRETRAINING_RATE / 10
            loop.run(data, rows, first)
            learned[seed] = self.reviewer.get_weights()
        if runs:
            runs = loop.run_together(runs, 0, first)
            for i, (moving, fixed) in enumerate(runs):
                loop.put((moving, fixed))
                loop.optimizer.learning_rate = PRETRAINING_RATE / 10
                runs[i] = loop.taken(data, fixed[-1])
            runs = loop.run_together(runs, first, steps)
        for seed, run in zip(seeds, runs):
            loop.put(run)
            learned[seed] = self.reviewer.get_weights()
        return learned

    def begin_pretraining(self, seed):
        """Set weights at random."""
        set_fresh(self.reviewer, seed)

    def begin(self, weights, seed):
        """Set the pretrained weights, and what is new at random."""
        for variable, value in zip(self.known_by, weights, strict=True):
            variable.assign(value)
        fresh(self.added, seed)
        for variable, start in zip(self.pretrained, self.start):
            start.assign(np.array(variable))
        if self.new_head is not None:
            set_fresh(self.new_head, seed)

    def weigh(self):
        """Set `fisher`: the mean square of the old loss's gradients."""
        old = self.task.old["train"][:FISHER_EXAMPLES]
        sums = [0.0] * len(self.pretrained)
        # Where the old head is not trained on, it cannot forget either.
        compute = self._loop(
            "fisher",
            lambda: gradients(
                self.pretrained,
                lambda x, y: cross_entropy(y, self.reviewer(x)),
                self.untrained,
            ),
        )
        for i in range(len(old)):
            one = old[i : i + 1]
            for k, gradient in enumerate(compute(one.inputs, one.labels)):
                sums[k] = sums[k] + gradient**2
        for variable, total in zip(self.fisher, sums):
            variable.assign(total / len(old))

    def _loop(self, key, make):
        if key not in self.loops:
            self.loops[key] = make()
        return self.loops[key]

    def loop_of(self, method):
        """Return the loop that trains `model` with a method."""
        return self._loop(
            method.name,
            lambda: Loop(
                functools.partial(method.optimizer, self),
                self.model.trainable_variables,
                functools.partial(method.loss, self),
                held=[*self.start, *self.fisher, *self.untrained],
            ),
        )

    def fine_tune(self, method, starts, points):
        """Yield each run's number, steps and measures, at each of `points`.

        While one is yielded, the variables have its weights.

        Args:
            method: A `Method`.
            starts: A `Start` for each run.
            points: Lengths of training, rising.
        """
        loop = self.loop_of(method)
        weighed, groups, runs = {}, self._alike(method, starts), []
        for group in groups:
            start = starts[group[0]]
            self._begin(start)
            if method.name == "ewc":
                self._weigh_once(start.seed, weighed)
            rate = start.setting if method.sets_rate else start.rate
            loop.start(rate, start.setting)
            new = self.task.new["train"]
            data = (new.inputs, new.labels, *method.data(self, start.seed))
            rows = batches(len(new), points[-1], self.batch, start.seed)
            if BACKEND == "jax":
                runs.append(loop.taken(data, rows))
                continue
            for begin, end in zip((0, *points), points):
                loop.run(data, rows, begin, end)
                trained = [np.array(v) for v in self.pretrained]
                for i in group:
                    yield i, end, self._measure_after(method, starts[i])
                    for variable, value in zip(self.pretrained, trained):
                        variable.assign(value)
        if BACKEND != "jax":
            return
        for begin, end in zip((0, *points), points):
            runs = loop.run_together(runs, begin, end)
            for group, run in zip(groups, runs):
                for i in group:
                    self._begin(starts[i])
                    loop.put(run)
                    yield i, end, self._measure_after(method, starts[i])

    @staticmethod
    def _alike(method, starts):
        """Return the numbers of the runs that one training serves."""
        groups = {}
        for i, start in enumerate(starts):
            # A setting that is used after training makes no other training.
            setting = start.setting if method.after is None else None
            key = (start.seed, start.rate, setting)
            groups.setdefault(key, []).append(i)
        return list(groups.values())

    def _weigh_once(self, seed, weighed):
        if seed not in weighed:
            self.weigh()
            weighed[seed] = [np.array(v) for v in self.fisher]
        for variable, value in zip(self.fisher, weighed[seed]):
            variable.assign(value)

    def _begin(self, start):
        self.task = start.task
        self.begin(start.weights, start.seed)

    def _measure_after(self, method, start):
        if method.after is not None:
            method.after(self, start.setting)
        return self.measure()

    def measure(self):
        """Return accuracies in percent, and how far the weights went."""
        old, new = self.task.old, self.task.new
        return {
            "kept_validation": self.known(old["validation"]),
            "new_validation": self.accuracy(self.model, new["validation"]),
            "kept": self.known(old["test"]),
            "new": self.accuracy(self.model, new["test"]),
            "moved": self.moved(),
        }

    def moved(self):
        """Return ‖θ − θ₀‖ in percent of ‖θ₀‖."""
        far = size = 0.0
        for variable, start in zip(self.pretrained, self.start):
            start = np.array(start)
            far += np.sum((np.array(variable) - start) ** 2)
            size += np.sum(start**2)
        # Of frozen weights none goes anywhere.
        return 100 * float(np.sqrt(far / size)) if size else 0.0

    def known(self, part):
        """Return how much is known of a part of the old problem, in percent."""
        return self.accuracy(self.reviewer, part)

    def accuracy(self, model, part):
        """Return the share of examples that a model names rightly."""
        return accuracy(functools.partial(self.answer, model), part)

    def answer(self, model, inputs):
        """Return a model's logits as an array."""
        return self._loop(id(model), lambda: answering(model))(inputs)


class CamePretrained(Problem):
    """A network that came with what it knows, and is large."""

    def __init__(self, backbone, task):
        super().__init__(backbone, task)
        # Read before anything is trained.
        self._came_with = self.reviewer.get_weights()

    def pretrain(self, seeds, steps=PRETRAINING_STEPS):
        """Return the weights that the network came with."""
        return dict.fromkeys(seeds, self._came_with)

    def answer(self, model, inputs):
        """Return a model's output, a hundred examples at a time."""
        parts = np.split(inputs, range(100, len(inputs), 100))
        answer = super().answer
        return np.concatenate([answer(model, part) for part in parts])


class Retrieval(CamePretrained):
    """A text encoder: what it knew is which headline belongs to which article.

    Old parts have headlines first, then their articles in the same order.
    """

    def _reviewer(self, inputs, features):
        return self.backbone

    def known(self, part):
        """Return the share of headlines that find their article first."""
        return found_first(
            *np.split(self.answer(self.reviewer, part.inputs), 2)
        )


def accuracy(answer, part):
    """Return the share of examples named rightly, in percent."""
    named = answer(part.inputs).argmax(axis=-1)
    return 100 * float(np.mean(named == part.labels))


def answering(model):
    if BACKEND != "jax":
        return model.predict_on_batch
    import jax

    @jax.jit
    def answer(weights, inputs):
        mapping = list(zip(model.variables, weights))
        with keras.StatelessScope(state_mapping=mapping):
            return model(inputs, training=False)

    return lambda inputs: np.asarray(
        answer([v.value for v in model.variables], inputs)
    )


def set_fresh(layer, seed):
    """Give a layer or model new random weights, the same for equal seeds."""
    random = np.random.default_rng(seed)
    for variable in layer.trainable_variables:
        value = np.array(variable)
        if variable.path.endswith("kernel"):
            # Glorot's uniform distribution, as Keras' default.
            fans = np.prod(value.shape[:-2]) * sum(value.shape[-2:])
            limit = np.sqrt(6 / fans)
            value = random.uniform(-limit, limit, value.shape)
        elif variable.path.endswith(("bias", "beta")):
            value = np.zeros_like(value)
        elif variable.path.endswith("gamma"):
            value = np.ones_like(value)
        else:
            # A transformer's class token and its places.
            value = random.normal(0, 0.02, value.shape)
        variable.assign(value.astype("float32"))
