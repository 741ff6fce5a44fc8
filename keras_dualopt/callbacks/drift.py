"""`Drift`: what rollback does to every layer, while it does it."""

import os
from typing import Any

import keras

from keras_dualopt.callbacks.measure import (
    LOG_KEYS,
    OF_A_STEP,
    Measure,
    Sample,
    Snapshot,
    iterations_of,
    rate_of,
)
from keras_dualopt.callbacks.record import DriftRecord
from keras_dualopt.lookup import optimizer_of
from keras_dualopt.settings import check_whole


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
            epoch. Default `None`: in memory only.

    Attributes:
        record: The `DriftRecord` of the run: `record.matrix("drift")` is one
            row a layer, one column a sample. It goes on with the next `fit`
            if that trains the same layers.

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
        self._measure: Measure | None = None
        self._open: Snapshot | None = None
        self._next = self._passed = self._position = 0
        self._block: int = self.model.steps_per_execution
        self._length: int | None = (self.params or {}).get("steps")
        self._latest: dict[str, float] = {}

    # `on_train_batch_end` stays Keras' own: a callback that overrides it makes
    # `fit` wait for the device after every step (torch, JAX). What a step did
    # is seen just as well before the next one begins.
    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        """Close a sample, open one; between samples, do nothing."""
        self._position = batch
        step = self._passed + batch
        last = self._length is not None and (
            batch + self._block >= self._length
        )
        due = step >= self._next or last
        if self._open is None and not due:
            return
        # JAX brings the state back here.
        optimizer = optimizer_of(self.model, beside_others=True)
        if self._open is not None:
            self._close()
        if due:
            self._next = (step // self.every + 1) * self.every
        if self._open is not None:
            # No update yet; the learning rate may be another by now.
            values, iterations, _ = self._open
            self._open = Snapshot(values, iterations, rate_of(optimizer))
        elif due:
            # TensorFlow builds the optimizer in the first step.
            measure = self._measured()
            variables = (
                self.model.trainable_variables
                if measure is None
                else measure.variables
            )
            self._open = Snapshot.of(optimizer, variables)

    def on_epoch_end(
        self, epoch: int, logs: dict[str, float] | None = None
    ) -> None:
        """Write the numbers into `logs`, and the record to its file."""
        if self._open is not None:
            self._close()
            self._open = None
        self._length = self._position + self._block
        self._passed += self._length
        self._position = 0
        measure = self._measured()
        if measure is None or self.record is None:
            return
        if self.record.last_step != iterations_of(measure.optimizer):
            self._add(measure(None), watched=False)
        if logs is not None and measure.names:
            logs.update(self._latest)
            if measure.optimizer.reach is None:
                del logs["reach_used"]
        if self.file is not None:
            self.record.save(self.file)

    def _close(self) -> None:
        """Measure, if the step has taken place."""
        assert self._open is not None
        measure = self._measured()
        if measure is None or (
            self._open.iterations == iterations_of(measure.optimizer)
        ):
            return
        self._add(measure(self._open), watched=True)
        self._open = None

    def _measured(self) -> Measure | None:
        """Return the measure once the optimizer is built."""
        optimizer = optimizer_of(self.model, beside_others=True)
        if self._measure is None and optimizer.built:
            self._measure = Measure(optimizer)
            mode, places = self._measure.mode, self._measure.places
            if self.record is None or not self.record.continues(mode, places):
                self.record = DriftRecord(
                    mode, self._measure.names, self._measure.relative, places
                )
        return self._measure

    def _add(self, sample: Sample, watched: bool) -> None:
        assert self.record is not None
        self.record.add(sample)
        for key in LOG_KEYS:
            if watched or key not in OF_A_STEP or key not in self._latest:
                self._latest[key] = sample.totals[key]

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
