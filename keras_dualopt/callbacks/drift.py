"""`Drift`: what rollback does to every layer, while it does it."""

import math
import os
import warnings
from typing import Any, NamedTuple, Self, TypeAlias

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_dualopt.backend import Array, Tensor
from keras_dualopt.caller import stacklevel
from keras_dualopt.lookup import optimizer_of
from keras_dualopt.optimizer import DualOpt
from keras_dualopt.plan import layers_of
from keras_dualopt.settings import check_whole

# What is measured of every layer, and what is logged of all of them together.
QUANTITIES = ("drift", "strength", "pull_share", "update_ratio", "reach_used")
LOG_KEYS = (
    "drift",
    "drift_shallow",
    "drift_deep",
    "reach_used",
    "pull_share",
    "update_ratio",
)


class Drift(keras.callbacks.Callback):
    """Watches how far each layer has drifted and what the pull takes back.

    Changes no weight. Use it to see whether rollback is too weak (the shallow
    layers drift away) or too strong (the pull takes every step back).

    At every sample, for each layer that is pulled or has an anchor:

    | | finetune | scratch |
    |---|---|---|
    | drift | ‖θ_t − θ₀‖ / ‖θ₀‖ | ‖θ_t‖ |
    | strength | ρ | ρ |
    | pull_share | ‖ρ (θ_pre − θ₀)‖ / ‖θ_pre − θ_{t−1}‖ | the same, θ₀ = 0 |
    | update_ratio | ‖θ_t − θ_{t−1}‖ / ‖θ_{t−1}‖ | the same |
    | reach_used | with `reach`: max |θ_t − θ₀| / R; 1: all of it | NaN |

    with the norm over all weights of the layer. The epoch's `logs` get five
    numbers: `drift`, `pull_share` and `update_ratio` over all these layers
    together, `drift_shallow` over those of relative depth below 0.5,
    `drift_deep` over the others; with `reach` also `reach_used`, the largest of
    all layers. History, `CSVLogger`, TensorBoard and others
    show them without more ado: those that are listed after `Drift`. A callback
    that sets the learning rate in every step belongs before it. A stage that
    trains no such layer (only a new head) has none of the five.

    What a sample is: the one update that follows the moment at which it is
    taken; with gradient accumulation, that is the micro-step that moves the
    weights. The pull is worked out from θ_{t−1}, θ_t and ρ, exactly for an
    ordinary step; a constraint or an overwriting average (`use_ema`) counts
    as part of the step. It is NaN where ρ = 1, which leaves no trace of θ_pre,
    and of pulled weights stored in bfloat16 or float16, whose rounding hides it
    (the total is of the other weights), and with `steps_per_execution` > 1,
    where several pulls lie in between; `update_ratio` is then that of all of
    them together. Other things not defined are NaN, too: the relative drift of
    weights that were 0, the share of a layer that got no gradient. A share
    above 1 is a step that ends nearer to θ₀ than it began.

    Every k-th step and the last step of every epoch are sampled. The other
    steps are left alone: on JAX the state is not even brought back. There the
    first sample is compiled for every shape of weight, which takes seconds.

    Args:
        every: k ≥ 1: sample one step in k. Default 100.
        file: Where to keep the record, an `.npz` file, written after every
            epoch; a run that is resumed in another process goes on with it.
            Default `None`: in memory only.

    Attributes:
        record: The `DriftRecord` of the run: `record.matrix("drift")` is one
            row a layer, one column a sample. It goes on with the next `fit`
            if that trains the same layers; samples of steps that are taken
            once more, in a new run say, are dropped.

    Memory: one copy of these layers, during a sampled step only.

    Inside of a `MultiOptimizer` it watches the weights of its only DualOpt.

    Raises:
        ValueError: If `every` < 1, `file` has another ending, or the model is
            not compiled with DualOpt.

    Example:
    >>> drift = Drift(every=50)
    >>> drift.record is None
    True
    """

    def __init__(
        self, every: int = 100, file: str | os.PathLike[str] | None = None
    ) -> None:
        super().__init__()
        check_whole("every", every, " of steps")
        if file is not None and not os.fspath(file).endswith(".npz"):
            raise ValueError(
                "`file` must end in '.npz', which is what is written. "
                f"Received: {os.fspath(file)!r}. For a table of the epochs' "
                "numbers list `keras.callbacks.CSVLogger` after `Drift`."
            )
        self.every = every
        self.file = file
        self.record: DriftRecord | None = None

    def on_train_begin(self, logs: object = None) -> None:
        """Find the optimizer, before any time is spent."""
        optimizer_of(self.model, beside_others=True)
        self._measure: _Measure | None = None
        self._before: _Before | None = None
        self._next = self._passed = self._position = 0
        self._block: int = self.model.steps_per_execution
        self._length: float = (self.params or {}).get("steps") or math.inf
        self._latest = {"pull_share": math.nan, "update_ratio": math.nan}

    # `on_train_batch_end` stays Keras' own: a callback that overrides it makes
    # `fit` wait for the device after every step (torch, JAX). What a step did
    # is seen just as well before the next one begins.
    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        """Close a sample, open one; between samples, do nothing."""
        self._position = batch
        step = self._passed + batch
        due = step >= self._next or batch + self._block >= self._length
        if self._before is None and not due:
            return
        measure = self._measured()
        if measure is None:
            return
        self._close(measure)
        if due:
            self._next = (step // self.every + 1) * self.every
        if self._before is not None:
            # No update yet; the learning rate may be another by now.
            self._before = _Before(*self._before[:2], rate=measure.rate)
        elif due:
            self._before = measure.before()

    def on_epoch_end(
        self, epoch: int, logs: dict[str, float] | None = None
    ) -> None:
        """Write the numbers into `logs`, and the record to its file."""
        self._length = self._position + self._block
        self._passed += self._position + self._block
        measure = self._measured()
        if measure is None or self.record is None:
            return
        self._close(measure)
        self._before = None
        if measure.iterations not in self.record.steps[-1:]:
            self._add(measure(None))
        if logs is not None:
            logs.update(self._latest)
        if self.file is not None:
            self.record.save(self.file)

    def _measured(self) -> "_Measure | None":
        """Return what measures; `None` where nothing is there to measure."""
        model = self.model  # JAX brings the state back here.
        optimizer = optimizer_of(model, beside_others=True)
        if self._measure is None and model.built:
            if not optimizer.built:
                # TensorFlow would do so in the first step.
                model.optimizer.build(model.trainable_variables)
            self._measure = _Measure(optimizer)
            first = [layer[0] for layer in self._measure.layers]
            # Names change when a model is reloaded, places do not.
            places = [row.key for row in first]
            done, old, file = self._measure.iterations, self.record, self.file
            resumed = bool(first) and bool(done) and old is None
            if resumed and file is not None and os.path.exists(file):
                old = DriftRecord.load(file)
            if first:
                self.record = DriftRecord(
                    optimizer.mode,
                    [row.layer for row in first],
                    np.array([row.relative for row in first]),
                    places,
                )
            if first and old is not None:
                if (old.mode, old.places) == (optimizer.mode, places):
                    self.record = old.until(done)
                elif resumed:
                    warnings.warn(
                        f"{str(file)!r} is written anew: it holds a "
                        "record of other layers than those trained now. Give "
                        "`Drift` another `file` to keep it.",
                        stacklevel=stacklevel(),
                    )
        measure = self._measure
        return measure if measure is not None and measure.layers else None

    def _close(self, measure: "_Measure") -> None:
        """Measure, if the step has taken place."""
        before = self._before
        if before is not None and before.iterations != measure.iterations:
            self._add(measure(before))
            self._before = None

    def _add(self, sample: "Sample") -> None:
        assert self.record is not None
        self.record.add(sample)
        self._latest |= sample.totals

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        quantity: str = "drift",
    ) -> Any:
        """Draw a heat map of depth over time, with the totals beside it.

        Args:
            path: Where to save the picture. Default: nowhere.
            quantity: What the colours show: `"drift"`, `"strength"`,
                `"pull_share"`, `"update_ratio"` or `"reach_used"`.

        Returns:
            The matplotlib figure.

        Raises:
            ValueError: If nothing was measured yet.
            ImportError: Without matplotlib.
        """
        from keras_dualopt import plots

        if self.record is None or not len(self.record):
            raise ValueError(
                "`plot` needs a `Drift` that has watched a `fit`. Received: "
                "one without measurements. Pass it in `callbacks` first."
            )
        return plots.draw_drift(self.record, quantity, path)


class Sample(NamedTuple):
    """What one look at the weights found; absent or NaN: not defined.

    Args:
        step: The number of updates so far.
        layers: For each quantity, one number a layer.
        totals: One number for each of `LOG_KEYS`.
    """

    step: int
    layers: dict[str, Array]
    totals: dict[str, float]


class DriftRecord:
    """The measurements of a run, shallowest layer first.

    Args:
        mode: `"finetune"` or `"scratch"`.
        layers: The layers' names.
        relative: Their relative depths.
        places: Their places in the model, which outlive their names.
    """

    def __init__(
        self,
        mode: str,
        layers: list[str],
        relative: npt.ArrayLike,
        places: list[str] | None = None,
    ) -> None:
        self.mode = mode
        self.layers = list(layers)
        self.relative = np.asarray(relative, dtype="float64")
        self.places = places
        self._samples: list[Sample] = []

    def __repr__(self) -> str:
        """Name what was measured, and when."""
        steps = self.steps
        when = f" of steps {steps[0]} to {steps[-1]}" if len(steps) else ""
        return (
            f"<DriftRecord {self.mode}: {len(self.layers)} layers, "
            f"{len(steps)} samples{when}>"
        )

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, sample: Sample) -> None:
        """Append a column."""
        self._samples.append(sample)

    def until(self, step: int) -> "DriftRecord":
        """Return this record, or one without what comes after a step."""
        if not len(self) or self.steps[-1] <= step:
            return self
        record = DriftRecord(self.mode, self.layers, self.relative, self.places)
        record._samples = [s for s in self._samples if s.step <= step]
        return record

    @property
    def steps(self) -> Array:
        """The number of updates at each sample."""
        return np.array([s.step for s in self._samples], dtype="int64")

    def matrix(self, quantity: str = "drift") -> Array:
        """Return one row a layer, one column a sample; NaN: not defined.

        Args:
            quantity: `"drift"`, `"strength"`, `"pull_share"`,
                `"update_ratio"` or `"reach_used"`.

        Raises:
            ValueError: For another one.
        """
        if quantity not in QUANTITIES:
            raise ValueError(
                f"`quantity` must be one of {QUANTITIES}. Received: "
                f"{quantity!r}."
            )
        matrix = np.full((len(self.layers), len(self)), np.nan)
        for column, sample in enumerate(self._samples):
            matrix[:, column] = sample.layers.get(quantity, np.nan)
        return matrix

    @property
    def totals(self) -> dict[str, Array]:
        """For each of the log keys, one number a sample."""
        return {
            key: np.array([s.totals.get(key, np.nan) for s in self._samples])
            for key in LOG_KEYS
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to an `.npz` file, all of it or nothing."""
        part = f"{os.fspath(path)}.part"
        found: dict[str, Any] = {name: self.matrix(name) for name in QUANTITIES}
        found |= {f"total_{key}": v for key, v in self.totals.items()}
        with open(part, "wb") as file:
            np.savez_compressed(
                file,
                mode=np.array(self.mode),
                layers=np.array(self.layers),
                relative=self.relative,
                places=np.array(self.places or []),
                steps=self.steps,
                **found,
            )
        os.replace(part, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, or no record.
        """
        try:
            with open(path, "rb") as opened, np.load(opened) as file:
                names = [str(name) for name in file["layers"]]
                # Files of version 0.1 have no `places` and no `reach_used`.
                places = [str(p) for p in file.get("places", ())] or None
                record = cls(str(file["mode"]), names, file["relative"], places)
                # The last axis: samples.
                found = {name: array.T for name, array in file.items()}
                steps = found["steps"]
        except FileNotFoundError:
            raise
        except Exception as error:
            # NumPy, zipfile and zlib have an error of their own for each place
            # that may be damaged.
            raise ValueError(
                f"{os.fspath(path)!r} must be what `Drift(file=...)` or "
                "`DriftRecord.save` wrote. Received: a file that is damaged or "
                f"of another kind ({error!r}). Move it away, or name another "
                "`file`."
            ) from error
        for number, step in enumerate(steps):
            layers = {n: found[n][number] for n in QUANTITIES if n in found}
            totals = {
                key: float(found[f"total_{key}"][number])
                for key in LOG_KEYS
                if f"total_{key}" in found
            }
            record.add(Sample(int(step), layers, totals))
        return record


class _Before(NamedTuple):
    """θ_{t−1}, and what the step from there to θ_t will be taken with."""

    # Copies: the live buffer is moved in place on torch, donated on JAX.
    values: list[Tensor]
    iterations: int
    rate: float


# What each weight has for a quantity that several have together: that is the
# largest of them, or of two √(Σ first / Σ second), or of a single one √Σ.
_Parts: TypeAlias = Array | tuple[Array, ...]

_NARROW = ("bfloat16", "float16")
# The distance from 1 to the next number of the arithmetic here.
_ROUNDING = 2.0**-23


class _Measure:
    """Measures the layers of one optimizer that have something to measure.

    In fine-tune mode these are the layers with an anchor or a pull, in scratch
    mode all that have a depth.
    """

    def __init__(self, optimizer: DualOpt) -> None:
        self.optimizer = optimizer
        self.scratch = optimizer.mode == "scratch"
        self.layers = layers_of(
            [
                row
                for row in optimizer.rows
                if row.relative is not None
                and (self.scratch or row.anchored or row.pulled)
                and not getattr(row.variable, "overwrite_with_gradient", False)
            ]
        )
        self._rows = [row for layer in self.layers for row in layer]
        self._layer = np.repeat(
            np.arange(len(self.layers)), [len(layer) for layer in self.layers]
        )

    @property
    def iterations(self) -> int:
        """The number of updates so far; micro-steps do not count."""
        return int(ops.convert_to_numpy(self.optimizer.iterations))

    @property
    def rate(self) -> float:
        """η_t of the next step."""
        return float(ops.convert_to_numpy(self.optimizer.learning_rate))

    def before(self) -> _Before:
        """Copy the weights."""
        values = [ops.copy(_present(row.variable)) for row in self._rows]
        return _Before(values, self.iterations, self.rate)

    @np.errstate(divide="ignore", invalid="ignore")
    def __call__(self, before: _Before | None) -> Sample:
        """Measure now; what concerns a step only if one was watched."""
        iterations, parts = self.iterations, self._parts(before)
        depth = np.array([row.relative for row in self._rows])
        groups = [self._layer == number for number in range(len(self.layers))]
        layers = {
            name: np.array([_together(own, group) for group in groups])
            for name, own in parts.items()
        }
        totals = {
            name: _together(own, depth >= 0.0)
            for name, own in parts.items()
            if name in LOG_KEYS
        }
        totals["drift_shallow"] = _together(parts["drift"], depth < 0.5)
        totals["drift_deep"] = _together(parts["drift"], depth >= 0.5)
        if "pull_share" in parts:
            # Where the proposed step is lost, the others speak for it.
            known = ~np.isnan(parts["pull_share"][1])
            totals["pull_share"] = _together(parts["pull_share"], known)
        return Sample(iterations, layers, totals)

    def _parts(self, before: _Before | None) -> dict[str, _Parts]:
        pull = self.optimizer.pull
        levels = [row.level(pull.reach) for row in self._rows]
        undone = np.zeros(len(levels))
        parts: dict[str, _Parts] = {}
        if before is not None:
            # In the arithmetic of the step itself.
            found = pull.host_ratios(before.rate)
            ratio = np.array([found[level] for level in levels])
            parts["strength"] = ratio
            undone = ratio / (1.0 - ratio)
            # Stored so, θ_t is rounded by as much as the pull moves it.
            narrow = np.array([r.variable.dtype in _NARROW for r in self._rows])
            undone[(ratio == 1.0) | (narrow & (ratio > 0.0))] = np.nan
            if self.iterations - before.iterations != 1:
                # Several pulls in between: their sum is not known.
                undone[:] = np.nan
        table = self._sums_of_squares(before, undone)
        farthest, distance, anchor = table[:3]
        # LoRA's second factor is pulled to 0, which is no pretrained value.
        drifts = np.array([self.scratch or row.anchored for row in self._rows])
        parts["drift"] = (np.where(drifts, distance, 0.0),)
        if not self.scratch:
            parts["drift"] += (np.where(drifts, anchor, 0.0),)
        if pull.reach:
            found = {level: pull.distance(level) for level in {*levels}}
            # Where R is 0, a weight at θ₀ has used nothing that there is.
            parts["reach_used"] = farthest / [found[level] for level in levels]
        if before is not None:
            step, past, proposed = table[3:]
            # No gradient, no pull: the weight did not move at all. And JAX
            # hands out zeros as gradients of weights that are not used: there
            # the pull is all of the step, and what else there seems to be is
            # rounding.
            idle = (step == 0.0) & np.isfinite(proposed)
            still = idle | (proposed <= np.square(4.0 * _ROUNDING) * past)
            parts["update_ratio"] = step, past
            parts["pull_share"] = (
                np.where(idle, 0.0, np.square(undone) * distance),
                np.where(still, 0.0, proposed),
            )
        return parts

    def _sums_of_squares(self, before: _Before | None, undone: Array) -> Array:
        """Return max |θ−a|, Σ(θ−a)², Σa² and the parts of Σ(θ_t−θ_{t−1})².

        Computed on the device; one array comes back. An ordinary step is
        undone exactly: with k = ρ/(1−ρ), the pull ρ(θ_pre−a) is k(θ_t−a), and
        the proposed step θ_pre−θ_{t−1} is (θ_t−θ_{t−1}) + k(θ_t−a).
        """
        columns = []
        for number, row in enumerate(self._rows):
            now = ops.cast(_present(row.variable), "float32")
            anchor = ops.zeros_like(now)
            if row.anchor is not None:
                anchor = ops.cast(_present(row.anchor), "float32")
            distance = ops.subtract(now, anchor)
            tensors = [distance, anchor]
            if before is not None:
                past = ops.cast(before.values[number], "float32")
                step = ops.subtract(now, past)
                pull = ops.multiply(distance, float(undone[number]))
                tensors += [step, past, ops.add(step, pull)]
            squares = [ops.sum(ops.square(tensor)) for tensor in tensors]
            columns.append(ops.stack([ops.max(ops.abs(distance)), *squares]))
        table: Array = ops.convert_to_numpy(ops.stack(columns, axis=1))
        return table.astype("float64")


def _together(parts: _Parts, chosen: Array) -> float:
    """Return a quantity of some weights together; NaN: not defined."""
    if not chosen.any():
        return math.nan
    if isinstance(parts, np.ndarray):
        return float(np.fmax.reduce(parts[chosen]))
    above, *below = (part[chosen].sum() for part in parts)
    total = below[0] if below else 1.0
    return math.sqrt(above / total) if total > 0.0 else math.nan


def _present(variable: keras.Variable) -> Tensor:
    """Return a variable's value, outside of torch's gradient tape."""
    return ops.stop_gradient(variable.value)
