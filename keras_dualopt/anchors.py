"""The life of θ₀: captured once, kept, moved on request, dropped to ship.

What is captured is what the weights happen to be at the first step. What looks
wrong with it is said there: weights that are not finite, that look new, or
that another DualOpt has moved already.
"""

import logging
import warnings
import weakref
import zlib
from collections.abc import Callable, Sequence

import keras
import ml_dtypes
import numpy as np
from keras import ops

from keras_dualopt.backend import Array, Strategy, Tensor, engine
from keras_dualopt.caller import stacklevel
from keras_dualopt.plan import Row, layers_of, look_new
from keras_dualopt.sources import check_finite
from keras_dualopt.wrapping import concrete

_log = logging.getLogger("keras_dualopt")

# What the anchors hold; saved with them.
NOT_TAKEN, TAKEN, DROPPED = 0, 1, 2


class Anchors:
    """θ₀ of every anchored weight, and whether it was taken.

    θ₀ is the value of a weight when the optimizer takes its first step. Until
    then the weights may still be loaded, so that nothing is copied in `build`.

    Args:
        rows: What was decided for each weight; `Row.anchor` is kept here.
        add: Makes a tracked optimizer variable like a given one.
        remove: Untracks one.
        flag: A scalar integer variable, 0.
        units: A variable for the size of θ₀ in each layer; `None` where
            nothing is measured in it.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        add: Callable[[keras.Variable], keras.Variable],
        remove: Callable[[keras.Variable], None],
        flag: keras.Variable,
        units: keras.Variable | None,
    ) -> None:
        self.rows = rows
        self.anchored = [row for row in rows if row.anchored]
        self.flag = flag
        self.units = units
        # θ₀ of weights without a row here, by their place in the model, on
        # the host: for the optimizer that trains them again.
        self.carried: dict[str, Array] = {}
        self._add = add
        self._remove = remove
        self._known_taken = False
        self._looked = False
        # Some weights as `fit` left them: (row, value, distance from θ₀).
        self._left: list[tuple[Row, Array, float]] = []
        self.make()

    def make(self) -> None:
        """Make room for θ₀, the first time and after `drop`."""
        self.dropped = False
        for row in self.anchored:
            row.anchor = self._add(row.variable)

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

        Args:
            new_stage: Whether a person has said that the weights are what to
                anchor at, whoever has trained them.
        """
        if self.dropped:
            raise ValueError(
                "The anchors were dropped (`drop_anchors`), and there is "
                "nothing to pull the weights to. Call `optimizer.anchor_at()` "
                "to anchor at the current weights, or "
                "`optimizer.anchor_at(model_or_weights_file)`."
            )
        if self._left:
            self._warn_if_exchanged()
        if self._known_taken:
            return
        flag = concrete(self.flag)
        if flag is None:
            return
        if flag != NOT_TAKEN:
            self._known_taken = True
            return
        found = [concrete(row.variable) for row in self.anchored]
        values = [value for value in found if value is not None]
        if len(values) == len(found):
            for row, value in zip(self.anchored, values, strict=True):
                assert row.anchor is not None
                check_exact(value, row.anchor.dtype, row)
            self._check_sizes(values)
            self._look_at(values, new_stage)
        elif any(
            row.anchor is not None and row.anchor.dtype != row.variable.dtype
            for row in self.anchored
        ):
            raise ValueError(
                "`anchor_dtype` needs the weights at hand to prove that it "
                "holds θ₀ exactly. Received: weights that are spread over "
                "other processes. Pass `anchor_dtype=None`."
            )

    def _check_sizes(self, values: Sequence[Array]) -> None:
        """Refuse to measure a distance in weights that are all 0."""
        if self.units is not None and not any(np.any(v) for v in values):
            raise ValueError(
                "`reach` as a share is measured in the size of θ₀, which is 0 "
                "in every weight to be trained. Give `reach` as a distance."
            )

    def capture(self, strategy: Strategy) -> None:
        """Take θ₀, before a step moves anything, if it is the first."""

        def values() -> list[Tensor]:
            weights = [row.variable.value for row in self.anchored]
            sizes = [] if self.units is None else [self._sizes(weights)]
            return weights + sizes

        units = [] if self.units is None else [self.units]
        engine.capture(self.flag, self.slots + units, values, strategy)

    @property
    def slots(self) -> list[keras.Variable]:
        """The optimizer variables that hold θ₀."""
        return [row.anchor for row in self.anchored if row.anchor is not None]

    def refresh(self) -> None:
        """Show the current weights until the first step."""
        if self.state == NOT_TAKEN:
            for row in self.anchored:
                assert row.anchor is not None
                engine.copy_value(row.anchor, row.variable)
            self.measure()

    def measure(self) -> None:
        """Take the size of θ₀ in each layer from the anchors."""
        if self.units is not None:
            sizes = self._sizes([slot.value for slot in self.slots])
            engine.copy_value(self.units, sizes)

    def _sizes(self, values: Sequence[Tensor]) -> Tensor:
        """Return the rms of θ₀ by unit; where it is 0, its neighbours'."""
        assert self.units is not None
        count = self.units.shape[0]
        squares: list[Tensor] = [0.0] * count
        numbers = [0] * count
        depth = [0.0] * count
        for row in self.rows:
            if row.unit is not None:
                depth[row.unit] = row.relative or 0.0
        for row, value in zip(self.anchored, values, strict=True):
            assert row.unit is not None
            square = ops.square(ops.cast(value, "float32"))
            squares[row.unit] = ops.add(squares[row.unit], ops.sum(square))
            numbers[row.unit] += int(np.prod(row.variable.shape))
        sizes = ops.sqrt(
            ops.stack(
                [
                    ops.cast(ops.divide(square, max(number, 1)), "float32")
                    for square, number in zip(squares, numbers, strict=True)
                ]
            )
        )
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
        self, values: Sequence[Array | None], carried: dict[str, Array]
    ) -> None:
        """Anchor at other values, one for each row; `None`: not anchored.

        Raises:
            ValueError: If the anchors' dtype does not hold them exactly;
                nothing is changed then.
        """
        moved = [
            (row, row.anchor, value)
            for row, value in zip(self.rows, values, strict=True)
            if row.anchor is not None and value is not None
        ]
        for row, anchor, value in moved:
            check_exact(value, anchor.dtype, row)
        self._check_sizes([value for _, _, value in moved])
        for _, anchor, value in moved:
            engine.copy_value(anchor, value)
        self.carried = carried
        self.measure()
        self.set_state(TAKEN)
        self.expect_new_weights()

    def drop(self) -> None:
        """Free the memory of θ₀."""
        if not self.dropped:
            self.refresh()  # What was measured in it stays.
        for row in self.anchored:
            if row.anchor is not None:
                self._remove(row.anchor)
                row.anchor = None
        self.carried = {}
        self.dropped = True
        self.set_state(DROPPED)

    # What looks wrong.

    def _look_at(self, values: Sequence[Array], new_stage: bool) -> None:
        """Say at the first step what is anchored; warn where it looks wrong."""
        for row, value in zip(self.anchored, values, strict=True):
            check_finite(value, row.path, "Load the weights again.")
        if self._looked:
            return  # A step is traced more than once.
        self._looked = True
        layers = layers_of(self.rows)
        head = [layer[0].layer for layer in layers if layer[0].relative is None]
        _log.info(
            "%d of %d trained layers are anchored at their present weights; "
            "taken for the new head: %s.",
            sum(any(row.anchored for row in layer) for layer in layers),
            len(layers),
            ", ".join(head) or "none",
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
        moved = [
            row.path
            for row, value in zip(self.anchored, values, strict=True)
            if _was_moved(row, value)
        ]
        if moved and not new_stage:
            warnings.warn(
                "Another DualOpt has trained these weights already, and the "
                "new one anchors at where it left them: "
                f"{_some(moved)}. To keep the pretrained weights as anchors, "
                "call `new.anchor_at(old)` before training; `anchor_at()` says "
                "that a new stage is meant.",
                stacklevel=stacklevel(),
            )

    def note_left(self) -> None:
        """Remember where training has left some of the weights."""
        self._left = []
        for row in self._watched():
            value = concrete(row.variable)
            anchor = None
            if row.anchor is not None:
                anchor = concrete(row.anchor)
            if value is None or anchor is None:
                continue
            value = np.array(value)
            way = float(np.max(np.abs(value - anchor.astype(value.dtype))))
            if way > 0.0:
                self._left.append((row, value, way))
                _note(row, value, moved=True)

    def note_restored(self) -> None:
        """Remember that any weights but θ₀ were moved, as they are read."""
        for row in self._watched():
            anchor = np.asarray(concrete(row.anchor))
            _note(row, anchor.astype(row.variable.dtype), moved=False)

    def expect_new_weights(self) -> None:
        """Find nothing wrong with weights that are not those left behind."""
        self._left = []

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

    def _watched(self) -> list[Row]:
        """Return a few small weights: all would be a copy of the model."""
        sizes = [int(np.prod(row.variable.shape)) for row in self.anchored]
        order = sorted(range(len(sizes)), key=sizes.__getitem__)
        return [self.anchored[i] for i in order if sizes[i] > 1][:_WATCHED]


_WATCHED = 16

# Values by which a new optimizer tells tuned weights from pretrained ones: by
# the variable's id, the variable, a digest, and whether it is of a value that a
# DualOpt has moved the weight to, or of the one that it has moved it from.
_noted: dict[int, tuple[weakref.ref[keras.Variable], int, bool]] = {}


def _note(row: Row, value: Array, moved: bool) -> None:
    key = id(row.variable)
    gone = weakref.ref(row.variable, lambda _: _noted.pop(key, None))
    _noted[key] = gone, _digest(value), moved


def _was_moved(row: Row, value: Array) -> bool:
    if id(row.variable) not in _noted:
        return False
    variable, digest, moved = _noted[id(row.variable)]
    return variable() is row.variable and (_digest(value) == digest) == moved


def _digest(value: Array) -> int:
    return zlib.crc32(np.ascontiguousarray(value).tobytes())


def _some(names: Sequence[str]) -> str:
    more = len(names) - 5
    return ", ".join(names[:5]) + (f" and {more} more" if more > 0 else "")


def check_exact(value: Array, dtype: str, row: Row) -> None:
    """Refuse to hold θ₀ in a dtype that would round it."""
    if dtype == row.variable.dtype:
        return
    wide = np.asarray(value).astype("float32")
    # In NumPy: the proof may run while a step is traced.
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    with np.errstate(over="ignore"):
        narrow = wide.astype(kind).astype("float32")
    wrong = wide != narrow
    if wrong.any():
        off = np.max(np.abs(wide.astype("float64") - narrow)[wrong])
        raise ValueError(
            f"`anchor_dtype={dtype!r}` does not hold θ₀ exactly. Received: "
            f"{row.path!r}, {int(wrong.sum())} of whose {wide.size} values "
            f"would be off by up to {off:.3g}. Pass `anchor_dtype=None`, or "
            "load weights that were published in this dtype."
        )
