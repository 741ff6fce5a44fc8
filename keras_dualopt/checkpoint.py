"""The optimizer's state in a file: what it is, whose it is, and unharmed.

Keras writes optimizer variables as a numbered list. That loses the state of an
optimizer that is not built yet, takes any list of the right length, and
depends on the order of the weights, which differs between backends for some
KerasHub tasks. Here every entry says what it is (`momentum`, `anchor`, …) and
which weight it belongs to, by the weight's place in the model's structure, and
has a checksum: HDF5 would hand out a damaged θ₀ without a word.
"""

import json
import warnings
import zlib
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import keras
import numpy as np

from keras_dualopt.anchors import TAKEN, check_exact
from keras_dualopt.backend import Array
from keras_dualopt.caller import stacklevel
from keras_dualopt.plan import Row
from keras_dualopt.sources import numpy_value

# What Keras hands to `save_own_variables`: an entry of its own, or a dict.
Store: TypeAlias = MutableMapping[str, Array]

_MANIFEST = "dualopt"
_FLAG = "anchors_taken"
_FORMAT = 2
_CHECKSUM_BYTES = 4


class State(NamedTuple):
    """A state that was read: what its arrays are, and the arrays."""

    manifest: dict[str, Any]
    arrays: dict[str, Array]

    @property
    def flag(self) -> int:
        """What the anchors hold."""
        return int(self.arrays[_FLAG])

    @property
    def carried(self) -> dict[str, Array]:
        """θ₀ of weights that were not trained, by their keys."""
        keys = self.manifest.get("carried", ())
        return {k: self.arrays[f"carried.{n}"] for n, k in enumerate(keys)}


class Table(NamedTuple):
    """An optimizer's variables by what they are.

    Args:
        rows: The trained weights, in the optimizer's order.
        scalars: Variables that belong to no weight, by name.
        slots: Lists aligned with `rows`, by name; `None` where a weight has
            no such state.
    """

    rows: Sequence[Row]
    scalars: dict[str, keras.Variable]
    slots: dict[str, list[keras.Variable | None]]


def table(
    rows: Sequence[Row],
    variables: Sequence[keras.Variable],
    holders: Sequence[keras.optimizers.Optimizer],
    scalars: Mapping[str, object],
) -> Table:
    """Return every optimizer variable by what it is.

    `holders` have attributes with lists of `variables`; of `scalars`, what is
    no variable (a learning rate schedule) is passed over.
    """
    slots: dict[str, list[keras.Variable | None]] = {}
    own = {id(variable) for variable in variables}
    for holder in holders:
        slots.update(_slots_of(holder, len(rows), own))
    slots["anchors"] = [row.anchor for row in rows]
    named = {
        name: value
        for name, value in scalars.items()
        if isinstance(value, keras.Variable)
    }
    placed = {id(slot) for column in slots.values() for slot in column}
    placed |= {id(variable) for variable in named.values()}
    rest = [v for v in variables if id(v) not in placed]
    named.update({f"base_{n}": variable for n, variable in enumerate(rest)})
    return Table(rows, named, slots)


def _slots_of(
    holder: keras.optimizers.Optimizer, count: int, own: set[int]
) -> dict[str, list[keras.Variable | None]]:
    """Return the attributes of an optimizer that hold one variable a weight.

    Keras' optimizers keep `self._momentums[i]` for weight i; the attribute's
    name is the same on every backend, which a variable's name is not.
    """
    slots = {}
    for name, value in vars(holder).items():
        if not isinstance(value, list | tuple) or len(value) != count:
            continue
        filled = [v for v in value if v is not None]
        if filled and all(
            isinstance(v, keras.Variable) and id(v) in own for v in filled
        ):
            slots[name.strip("_")] = list(value)
    return slots


def match(
    table: Table, state: State, settings: Mapping[str, Any]
) -> list[tuple[keras.Variable, Array]]:
    """Return which array goes into which variable, having checked all.

    Raises:
        ValueError: Naming the first thing that does not fit. Nothing has been
            written then.
    """
    manifest, arrays = state
    saved_settings = manifest["settings"]
    for name in ("mode", "base"):
        if settings[name] != saved_settings.get(name):
            raise _misfit(
                f"It must be that of a DualOpt with {name}="
                f"{settings[name]!r}. Received: one with {name}="
                f"{saved_settings.get(name)!r}. Compile with the same {name} "
                "before loading, or load the weights alone."
            )
    order = _match_owners(table.rows, manifest["owners"])
    # Sizes of layers are numbered by depth, which may be another here.
    same_units = all(
        manifest["owners"][place].get("unit") == row.unit
        for place, row in zip(order, table.rows, strict=True)
    )
    found: list[tuple[str, keras.Variable, Array]] = []
    for name, variable in table.scalars.items():
        if name == "learning_rate" and name not in arrays:
            continue  # The file's rate was a schedule, this one is a number.
        if name == "reach_units" and not (name in arrays and same_units):
            continue  # Measured anew in the anchors.
        if name not in arrays:
            raise _misfit(
                f"It has no {name!r}: it was written by an optimizer with "
                "another base."
            )
        found.append((name, variable, arrays[name]))
    without_anchors = state.flag != TAKEN
    for name, column in table.slots.items():
        if name == "anchors" and without_anchors:
            continue
        saved = set(manifest["slots"].get(name, ()))
        for index, slot in enumerate(column):
            place = order[index]
            row = table.rows[index]
            if (slot is None) != (place not in saved):
                raise _misfit(
                    f"It must have {'no' if slot is None else 'a'} {name!r} "
                    f"for weight {row.path!r}. Received: a file "
                    f"{'without' if slot is not None else 'with'} one. It was "
                    "written by an optimizer with other arguments (base, "
                    "exclude, depth, head, use_ema, "
                    "gradient_accumulation_steps)."
                )
            if slot is not None:
                array = arrays[f"{name}.{place}"]
                if name == "anchors":
                    check_exact(array, slot.dtype, row)
                found.append((f"{name} of {row.path}", slot, array))
    unknown = [n for n in manifest["slots"] if n not in table.slots]
    if unknown:
        raise _misfit(
            f"It holds {unknown[0]!r} beside {sorted(table.slots)}: it was "
            "written by an optimizer with other arguments. Build this one "
            "with the same."
        )
    for name, variable, array in found:
        if tuple(array.shape) != tuple(variable.shape):
            raise _misfit(
                f"The {name} must have shape {tuple(variable.shape)}. "
                f"Received: shape {tuple(array.shape)}."
            )
    return [(variable, array) for _, variable, array in found]


def _misfit(text: str) -> ValueError:
    return ValueError(f"The state in the file does not fit. {text}")


def _match_owners(
    rows: Sequence[Row], saved: Sequence[Mapping[str, Any]]
) -> list[int]:
    """Return, for each weight, its position in the file."""
    position = {entry["key"]: index for index, entry in enumerate(saved)}
    for row in rows:
        shape = tuple(row.variable.shape)
        if row.key not in position:
            raise _misfit(
                f"It must have the state of weight {row.path!r} (place "
                f"{row.key!r}). Received: a file of {len(saved)} weights "
                "without it: another model, or another choice of trainable "
                f"weights; this one has {len(rows)}."
            )
        entry = saved[position[row.key]]
        if tuple(entry["shape"]) != shape:
            raise _misfit(
                f"Weight {row.path!r} must have shape {shape}. "
                f"Received: {entry['path']!r} of shape "
                f"{tuple(entry['shape'])} in its place. If the head is new "
                "(`skip_mismatch=True`), load the weights into the model "
                "before it is compiled, or `anchor_at(old_optimizer)`."
            )
    if len(saved) != len(rows):
        own = {row.key for row in rows}
        first = next(entry for entry in saved if entry["key"] not in own)
        raise _misfit(
            f"It must have the state of {len(rows)} weights. Received: a file "
            f"of {len(saved)}; {first['path']!r} is not trained here. Make "
            "the same weights trainable before loading, or carry the anchors "
            "over with `anchor_at(old_optimizer)`."
        )
    return [position[row.key] for row in rows]


def write(
    table: Table,
    store: Store,
    flag: int,
    settings: Mapping[str, Any],
    carried: Mapping[str, Array],
) -> None:
    """Write the state into a mapping of arrays (Keras' store or a dict).

    `carried` is θ₀ of weights that are not in the table, by their keys.
    """
    slots = dict(table.slots)
    if flag != TAKEN:
        slots.pop("anchors", None)
        carried = {}
    entries: dict[str, keras.Variable | Array] = dict(table.scalars)
    for name, column in slots.items():
        for index, slot in enumerate(column):
            if slot is not None:
                entries[f"{name}.{index}"] = slot
    for index, value in enumerate(carried.values()):
        entries[f"carried.{index}"] = value
    manifest = {
        "format": _FORMAT,
        "settings": dict(settings),
        "owners": [
            {
                "key": row.key,
                "path": row.path,
                "shape": tuple(row.variable.shape),
                **({} if row.unit is None else {"unit": row.unit}),
            }
            for row in table.rows
        ],
        "scalars": list(table.scalars),
        "slots": {
            name: [index for index, v in enumerate(column) if v is not None]
            for name, column in slots.items()
        },
    }
    if carried:
        manifest["carried"] = list(carried)
    _put(manifest, entries, store)


def rewrite(state: State, store: Store, learning_rate: float | None) -> None:
    """Write a state that was read, with a rate that was assigned since."""
    arrays = dict(state.arrays)
    if learning_rate is not None and "learning_rate" in arrays:
        rate = np.full_like(arrays["learning_rate"], learning_rate)
        arrays["learning_rate"] = rate
    _put(state.manifest, arrays, store)


def _put(
    manifest: Mapping[str, Any],
    entries: Mapping[str, keras.Variable | Array],
    store: Store,
) -> None:
    checksums = {}
    for key, entry in entries.items():
        array = numpy_value(entry)
        checksums[key] = _checksum(array)
        store[key] = array
    text = json.dumps({**manifest, "checksums": checksums}).encode()
    text += zlib.crc32(text).to_bytes(_CHECKSUM_BYTES, "big")
    store[_MANIFEST] = np.frombuffer(text, dtype="uint8")


def read(store: Store) -> State | None:
    """Read a state into memory; `None` if another optimizer wrote it.

    Raises:
        ValueError: If the state is DualOpt's but damaged.
    """
    keys = set(store.keys())
    if _MANIFEST not in keys:
        if _FLAG in keys:  # A name of ours: other optimizers count theirs.
            raise _damaged(
                f"It must have a description. Received: {len(keys)} arrays "
                "without one."
            )
        return None
    data = bytes(np.asarray(store[_MANIFEST]))
    text, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    # The checksum of nothing is 0, which zeros would pass.
    if not text or zlib.crc32(text) != int.from_bytes(checksum, "big"):
        raise _damaged(
            f"The checksum of its description ({len(data)} bytes) is not the "
            "one it was written with."
        )
    manifest = json.loads(text)
    version = manifest["format"]
    if version != _FORMAT:
        raise ValueError(
            f"DualOpt's state must be in format {_FORMAT}. Received: format "
            f"{version!r}. Read it with the keras-dualopt that wrote it."
        )
    arrays = {}
    for key, expected in manifest["checksums"].items():
        if key not in keys:
            raise _damaged(
                f"It must have {key!r}. Received: a file without it."
            )
        arrays[key] = np.array(store[key])
        if _checksum(arrays[key]) != expected:
            raise _damaged(
                f"The checksum of {key!r} is not the one it was written with."
            )
    return State(manifest, arrays)


def _damaged(text: str) -> ValueError:
    return ValueError(
        f"DualOpt's state in the file is damaged. {text} Use an earlier "
        "checkpoint."
    )


def _checksum(array: Array) -> int:
    # What the bytes mean as well: in HDF5 one bit turns their order around.
    meaning = f"{array.dtype.str} {array.dtype.name} {array.shape}"
    return zlib.crc32(
        np.ascontiguousarray(array).reshape(-1).view("uint8").data,
        zlib.crc32(meaning.encode()),
    )


def warn_foreign(count: int, trained: bool) -> None:
    """Say that a file held no state of ours, where that may surprise."""
    if not count and not trained:
        return  # Pretrained weights, read before training: nothing is lost.
    warnings.warn(
        "The file has no state of a DualOpt. Received: "
        + (
            f"{count} arrays of another optimizer, or of a LossScaleOptimizer "
            "around one (`restore_optimizer` reads that)"
            if count
            else "none"
        )
        + ". The weights are read; DualOpt's step counter, averages and "
        + (
            "anchors keep their present values (`anchor_at()` anchors at the "
            "weights just read)."
            if trained
            else "anchors start fresh with the first step."
        ),
        stacklevel=stacklevel(),
    )
