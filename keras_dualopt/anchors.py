"""The life of θ₀: captured once, kept, moved on request, dropped to ship.

What is captured is what the weights happen to be at the first step. What looks
wrong with it is said there: weights that are not finite, that look new, or
that another DualOpt has moved already.
"""

import logging
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import TypeAlias

import keras
import ml_dtypes
import numpy as np
from keras import ops

from keras_dualopt.backend import Array, Tensor, engine
from keras_dualopt.caller import stacklevel
from keras_dualopt.plan import (
    Row,
    layers_of,
    look_merged,
    look_new,
    look_untrained,
)
from keras_dualopt.pull import compute_dtype
from keras_dualopt.sources import check_finite
from keras_dualopt.wrapping import WrappingOptimizer, concrete

_log = logging.getLogger("keras_dualopt")

# What the anchors hold; saved with them.
NOT_TAKEN, TAKEN, DROPPED = 0, 1, 2


class Anchors:
    """θ₀ of every anchored weight, and whether it was taken.

    θ₀ is the value of a weight when the optimizer takes its first step. Until
    then the weights may still be loaded, so that nothing is copied in `build`.

    Args:
        optimizer: Whose variables hold θ₀.
        rows: What was decided for each weight; `Row.anchor` is kept here.
        dtype: What θ₀ is held in; `None`: the weights' own.
        changed: Called when other variables hold θ₀ than before, or none.
    """

    def __init__(
        self,
        optimizer: WrappingOptimizer,
        rows: Sequence[Row],
        dtype: str | None,
        changed: Callable[[], None],
    ) -> None:
        self.rows = list(rows)
        self.anchored = [row for row in rows if row.anchored]
        # θ₀ of weights without a row here, by their place in the model, on
        # the host: for the optimizer that trains them again.
        self.carried: dict[str, Array] = {}
        self._optimizer = optimizer
        self._dtype = dtype
        self._changed = changed
        self._known_taken = False
        self._looked = False
        self._merged: list[str] = []
        self._said_merged = False
        # Some weights as `fit` left them: (row, value, distance from θ₀).
        self._left: list[tuple[Row, Array, float]] = []
        self.flag = self._scalars((), "int32", "anchors_taken")
        # The size of θ₀ in each layer, where R is a share of it.
        count = len({row.unit for row in rows} - {None})
        self.units: keras.Variable | None = None
        if count:
            self.units = self._scalars((count,), "float32", "reach_units")
        self._make()

    def _scalars(
        self, shape: tuple[int, ...], dtype: str, name: str
    ) -> keras.Variable:
        with engine.replicated(self._optimizer.strategy):
            return self._optimizer.add_variable(
                shape=shape,
                dtype=dtype,
                name=name,
                aggregation="only_first_replica",
            )

    def _make(self) -> None:
        self.dropped = False
        for row in self.anchored:
            row.anchor = self._optimizer.add_like(row.variable, self._dtype)

    @property
    def slots(self) -> list[keras.Variable]:
        """The optimizer variables that hold θ₀."""
        return [row.anchor for row in self.anchored if row.anchor is not None]

    @property
    def state(self) -> int:
        """What the anchors hold: `NOT_TAKEN`, `TAKEN` or `DROPPED`."""
        return int(ops.convert_to_numpy(self.flag.value))

    def set_state(self, state: int) -> None:
        """Say what the anchors hold."""
        self._known_taken = False
        engine.copy_value(self.flag, state)

    def check(self, new_stage: bool) -> None:
        """Refuse what cannot be anchored at, before a step moves anything.

        `new_stage`: a person has said that the weights are what to anchor at.
        """
        if self.dropped:
            raise ValueError(
                "The anchors were dropped (`drop_anchors`), and there is "
                "nothing to pull the weights to. Call `optimizer.anchor_at()` "
                "to anchor at the current weights, or "
                "`optimizer.anchor_at(model_or_weights_file)`."
            )
        self._warn_if_exchanged()
        self._warn_if_merged()
        if self._known_taken:
            return
        flag = concrete(self.flag)
        self._known_taken = flag is not None and flag != NOT_TAKEN
        if self._known_taken and not self._looked:
            # θ₀ came from elsewhere, and the weights move away from it now.
            for row, anchor in self._watched():
                _note(row, anchor, moved=False)
        if flag is None or self._known_taken:
            return
        found = [concrete(row.variable) for row in self.anchored]
        values = [value for value in found if value is not None]
        if len(values) == len(found):
            self._check_values(values)
            self._look_at(values, new_stage)
        elif any(self._dtype_of(r) != r.variable.dtype for r in self.anchored):
            raise ValueError(
                "`anchor_dtype` needs the weights at hand to prove that it "
                "holds θ₀ exactly. Received: weights that are spread over "
                "other processes. Pass `anchor_dtype=None`."
            )

    def _dtype_of(self, row: Row) -> str:
        return self._dtype or row.variable.dtype

    def _check_values(self, values: Sequence[Array]) -> None:
        """Refuse θ₀ that cannot be held, or be measured in."""
        for row, value in zip(self.anchored, values, strict=True):
            _check_exact(value, self._dtype_of(row), row)
        if self.units is not None and not any(np.any(v) for v in values):
            raise ValueError(
                "`reach` as a share is measured in the size of θ₀, which is 0 "
                "in every weight to be trained. Give `reach` as a distance."
            )

    def capture(self) -> None:
        """Take θ₀, before a step moves anything, if it is the first."""

        def values() -> list[Tensor]:
            weights = [row.variable.value for row in self.anchored]
            sizes = [] if self.units is None else [self._sizes(weights)]
            return weights + sizes

        units = [] if self.units is None else [self.units]
        engine.capture(
            self.flag, self.slots + units, values, self._optimizer.strategy
        )

    def refresh(self) -> None:
        """Show the current weights until the first step."""
        if not self.dropped and self.state == NOT_TAKEN:
            for slot, row in zip(self.slots, self.anchored, strict=True):
                engine.copy_value(slot, row.variable)
            self._measure()

    def _measure(self) -> None:
        """Take the size of θ₀ in each layer from the anchors."""
        if self.units is not None:
            sizes = self._sizes([slot.value for slot in self.slots])
            engine.copy_value(self.units, sizes)

    def _sizes(self, values: Sequence[Tensor]) -> Tensor:
        """Return the rms of θ₀ by unit; where it is 0, its neighbours'."""
        assert self.units is not None
        count = self.units.shape[0]
        inside = np.zeros((count, len(values)), "float32")
        depth = np.zeros(count)
        for index, row in enumerate(self.anchored):
            inside[row.unit, index] = 1.0
            depth[row.unit] = row.relative
        numbers = inside @ [row.size for row in self.anchored]
        squares = ops.stack(
            [ops.sum(ops.square(ops.cast(v, "float32"))) for v in values]
        )
        sums = ops.sum(ops.multiply(inside, squares[None, :]), axis=1)
        least = np.maximum(numbers, 1.0).astype("float32")
        sizes = ops.sqrt(ops.divide(sums, least))
        there = ops.greater(sizes, 0.0)
        apart = np.abs(np.subtract.outer(depth, depth)).astype("float32")
        apart = ops.where(there[None, :], apart, np.float32(np.inf))
        nearest = ops.equal(apart, ops.min(apart, axis=1, keepdims=True))
        chosen = ops.cast(nearest, "float32")
        around = ops.divide(
            ops.sum(ops.multiply(chosen, sizes[None, :]), axis=1),
            ops.sum(chosen, axis=1),
        )
        return ops.where(there, sizes, around)

    def move_to(
        self, values: Sequence[Array], carried: dict[str, Array]
    ) -> None:
        """Anchor at other values, one for each anchored row.

        Raises:
            ValueError: If the anchors' dtype does not hold them exactly;
                nothing is changed then.
        """
        self._check_values(values)
        self._revive()
        for slot, value in zip(self.slots, values, strict=True):
            engine.copy_value(slot, value)
        self.carried = carried
        self._measure()
        self.set_state(TAKEN)
        self.expect_new_weights()

    def restore(
        self, state: int, values: Sequence[Array], carried: dict[str, Array]
    ) -> None:
        """Be what a file says; `values` are there if they were taken."""
        if self.outlive(state):
            warnings.warn(
                "The file was written without anchors; those in memory stay, "
                "and the pull leads to them. To anchor at other weights, call "
                "`optimizer.anchor_at(...)`.",
                stacklevel=stacklevel(),
            )
        elif state == DROPPED:
            self.drop()
        elif state == TAKEN:
            self.move_to(values, carried)
            for row, anchor in self._watched():
                _note(row, anchor, moved=False)
        else:
            self._revive()
            self.set_state(NOT_TAKEN)
        self.expect_new_weights()

    def outlive(self, state: int) -> bool:
        """Tell whether θ₀ stays where a file of that state is read."""
        # The weights in such a file are tuned: none could be taken from them.
        return state == DROPPED and self.state == TAKEN

    def _revive(self) -> None:
        if self.dropped:
            self._make()
            self._changed()

    def drop(self) -> None:
        """Free the memory of θ₀."""
        if not self.dropped:
            self.refresh()  # What was measured in it stays.
            for slot in self.slots:
                self._optimizer.forget(slot)
            for row in self.anchored:
                row.anchor = None
            self.dropped = True
            self._changed()
        self.carried = {}
        self.set_state(DROPPED)

    # What looks wrong.

    def _look_at(self, values: Sequence[Array], new_stage: bool) -> None:
        """Say at the first step what is anchored; warn where it looks wrong."""
        pairs = [*zip(self.anchored, values, strict=True)]
        for row, value in pairs:
            check_finite(value, row.path, "Load the weights again.")
        if self._looked:
            return  # A step is traced more than once.
        self._looked = True
        layers = layers_of(self.rows)
        head = [layer[0].layer for layer in layers if layer[0].relative is None]
        # A program's own tests may train random weights: no `warnings.warn`.
        untrained = look_untrained(self.anchored, values)
        _log.log(
            logging.WARNING if untrained else logging.INFO,
            "%d of %d trained layers are anchored at their present weights; "
            "taken for the new head: %s.%s",
            sum(any(row.anchored for row in layer) for layer in layers),
            len(layers),
            ", ".join(head) or "none",
            " None of them looks as if it was ever trained: were the "
            "pretrained weights loaded? To train from random weights, pass "
            "`mode='scratch'`."
            if untrained
            else "",
        )
        fresh = look_new(self.anchored, values)
        if fresh:
            warnings.warn(
                "These layers count as pretrained, but look as if they were "
                f"never trained: {_some(fresh)}. They are anchored at their "
                "random weights. If they are new, name them: "
                "`optimizer.bind(model, head=[...])` before training.",
                stacklevel=stacklevel(),
            )
        moved = [r for r, v in pairs if _was_moved(r, v) and not new_stage]
        # At once: `train_on_batch`, a loop of one's own and a `fit` that is
        # interrupted do not come to `note_left`.
        small = {row for row, _ in self._small()}
        for row, value in pairs:
            if row in small:
                _note(row, value, moved=row in moved)
        if moved:
            paths = [row.path for row in moved]
            warnings.warn(
                "Another DualOpt has trained these weights already, from "
                "other values, and the new one anchors at the present ones: "
                f"{_some(paths)}. To keep the pretrained weights as anchors, "
                "call `new.anchor_at(old)` before training; `anchor_at()` says "
                "that the present ones are meant.",
                stacklevel=stacklevel(),
            )

    def note_left(self) -> None:
        """Remember where training has left some of the weights."""
        self._warn_if_merged()  # TensorFlow has compiled the step before.
        self._left = []
        clock = self._optimizer.clock["iterations"]
        for row, anchor in self._watched():
            value = concrete(row.variable)
            if value is None:
                continue
            value = np.array(value)
            way = float(np.max(np.abs(value - anchor.astype(value.dtype))))
            if way > 0.0:
                self._left.append((row, value, way))
                _note(row, value, True, clock)

    def expect_new_weights(self) -> None:
        """Find nothing wrong with weights that are not those left behind."""
        self._left = []
        self._merged, self._said_merged = [], False
        self.find_merged()  # A step may move them, by an earlier momentum.

    def _warn_if_exchanged(self) -> None:
        """Warn where weights were exchanged since, and θ₀ was not."""
        left, self._left = self._left, []
        for row, value, way in left:
            now = concrete(row.variable)
            # Not what interpolation or an earlier epoch's weights are.
            if now is not None and np.max(np.abs(now - value)) > 4.0 * way:
                warnings.warn(
                    f"{row.path!r} and perhaps others were given new values "
                    "after training began; the pull leads back to the anchors "
                    "of before. Call `optimizer.anchor_at()` to anchor at the "
                    "new weights.",
                    stacklevel=stacklevel(),
                )
                return

    def find_merged(self) -> list[str]:
        """Return LoRA's factors whose way back Keras has merged away."""
        if not self._merged:
            pretrained = [row.variable for row in self.rows if row.pretrained]
            self._merged = look_merged(pretrained)
        return self._merged

    def _warn_if_merged(self) -> None:
        if self._said_merged:
            return
        self._said_merged = True
        merged = self.find_merged()
        if merged:
            warnings.warn(
                "Keras has added LoRA's factors to their kernels when the "
                "model was saved, and set both to 0 when it was loaded: "
                f"{_some(merged)}. Factors of 0 have no gradients, and the "
                "pull leads to the kernels of the file. To train on from "
                "these, give the factors a random values and call "
                "`optimizer.anchor_at()`; `callbacks.AtomicBackup` keeps a "
                "run's factors as they are.",
                stacklevel=stacklevel(),
            )

    def _small(self) -> list[tuple[Row, keras.Variable]]:
        """Return a few small weights: all would be a copy of θ₀."""
        pairs = zip(self.anchored, self.slots, strict=not self.dropped)
        small = sorted(
            ((row, slot) for row, slot in pairs if row.size > 1),
            key=lambda pair: pair[0].size,
        )
        return small[:_WATCHED]

    def _watched(self) -> list[tuple[Row, Array]]:
        """Return the same with θ₀."""
        found = [(row, concrete(slot)) for row, slot in self._small()]
        return [(row, anchor) for row, anchor in found if anchor is not None]


_WATCHED = 16

# By which a new optimizer tells tuned weights from pretrained ones: by the
# variable's id, the variable, a hash of the value that a DualOpt has moved it
# from, and where a `fit` has left it: the hash of that value, the step counter
# and what it was. If that has gone on since, so has the weight.
_Left: TypeAlias = tuple[int, keras.Variable, int | None]
_noted: dict[
    int, tuple[weakref.ref[keras.Variable], int | None, _Left | None]
] = {}


def _note(
    row: Row, value: Array, moved: bool, clock: keras.Variable | None = None
) -> None:
    """Note what a weight is moved from, or has been moved to already.

    `clock`: the step counter, where it is left there.
    """
    key = id(row.variable)
    gone = weakref.ref(row.variable, lambda _: _noted.pop(key, None))
    if not moved:
        _noted[key] = gone, _hash(value), None
        return
    _, start, _ = _noted.get(key, (gone, None, None))
    left = None if clock is None else (_hash(value), clock, _count(clock))
    _noted[key] = gone, start, left


def _was_moved(row: Row, value: Array) -> bool:
    if id(row.variable) not in _noted:
        return False
    _, start, left = _noted[id(row.variable)]
    if left is not None and left[2] == _count(left[1]):
        return left[0] == _hash(value)
    return start != _hash(value)


def _count(clock: keras.Variable) -> int | None:
    count = concrete(clock)
    return None if count is None else int(count)


def _hash(value: Array) -> int:
    # θ₀ may be of another dtype than its weight, and the same.
    return hash(value.astype("float64").tobytes())


def _some(names: Sequence[str]) -> str:
    more = len(names) - 5
    return ", ".join(names[:5]) + (f" and {more} more" if more > 0 else "")


def _check_exact(value: Array, dtype: str, row: Row) -> None:
    """Refuse to hold θ₀ in a dtype that would round it."""
    if dtype == row.variable.dtype:
        return
    wide = value.astype(compute_dtype(value.dtype.name))
    # In NumPy: the proof may run while a step is traced.
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    with np.errstate(over="ignore"):
        narrow = wide.astype(kind).astype(wide.dtype)
    wrong = wide != narrow
    if wrong.any():
        off = np.max(np.abs(wide.astype("float64") - narrow)[wrong])
        raise ValueError(
            f"`anchor_dtype={dtype!r}` does not hold θ₀ exactly. Received: "
            f"{row.path!r}, {int(wrong.sum())} of whose {wide.size} values "
            f"would be off by up to {off:.3g}. Pass `anchor_dtype=None`, or "
            "load weights that were published in this dtype."
        )
