"""The optimizer's state in a file: what it is, whose it is, and unharmed.

Keras writes optimizer variables as a numbered list. That loses the state of an
optimizer that is not built yet, takes any list of the right length, and
depends on the order of the weights, which differs between backends for some
KerasHub tasks. Here every entry says what it is (`momentum`, `anchor`, …) and
which weight it belongs to, by the weight's place in the model's structure, and
has a checksum: HDF5 would hand out a damaged θ₀ without a word.
"""

import itertools
import json
import warnings
import zlib
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import keras
import numpy as np

from keras_dualopt.anchors import TAKEN, Anchors
from keras_dualopt.backend import Array, engine
from keras_dualopt.bases import accepted
from keras_dualopt.caller import stacklevel
from keras_dualopt.plan import Row
from keras_dualopt.sources import numpy_value
from keras_dualopt.wrapping import WrappingOptimizer

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

    @property
    def origins(self) -> dict[str, Array]:
        """θ₀ of every weight that has one here, by their keys."""
        keys = [entry["key"] for entry in self.manifest["owners"]]
        held = self.manifest["slots"].get("anchors", ())
        own = {keys[n]: self.arrays[f"anchors.{n}"] for n in held}
        return {**self.carried, **own}


class Table(NamedTuple):
    """An optimizer's variables by what they are, θ₀ apart.

    Args:
        anchors: θ₀, and the trained weights in the optimizer's order.
        scalars: Variables that belong to no weight, by name.
        slots: Lists aligned with the weights, by name; `None` where a weight
            has no such state.
        settings: `mode` and `base`, which must be the same where the state is
            read, and the reference learning rate.
    """

    anchors: Anchors
    scalars: dict[str, keras.Variable]
    slots: dict[str, list[keras.Variable | None]]
    settings: Mapping[str, str | float | None]


def table(
    optimizer: WrappingOptimizer,
    base: keras.optimizers.Optimizer,
    anchors: Anchors,
    settings: Mapping[str, str | float | None],
) -> Table:
    """Return every optimizer variable by what it is.

    Keras' optimizers keep `self._momentums[i]` for weight i; an attribute's
    name is the same on every backend, which a variable's name is not.
    """
    held = {id(slot) for slot in anchors.slots}
    rest = {id(v): v for v in optimizer.variables if id(v) not in held}
    slots: dict[str, list[keras.Variable | None]] = {}
    for name, value in [*vars(optimizer).items(), *vars(base).items()]:
        if isinstance(value, list | tuple) and len(value) == len(anchors.rows):
            filled = {id(slot) for slot in value if slot is not None}
            if filled and filled <= rest.keys():
                slots[name.strip("_")] = [*value]
    scalars = {
        name: value
        for name, value in (
            *optimizer.clock.items(),
            (_FLAG, anchors.flag),
            ("reach_units", anchors.units),
        )
        # The learning rate may be a schedule.
        if isinstance(value, keras.Variable)
    }
    for placed in itertools.chain(scalars.values(), *slots.values()):
        rest.pop(id(placed), None)
    scalars |= {f"base_{n}": value for n, value in enumerate(rest.values())}
    settings = {**settings, "base": accepted.label(base)}
    return Table(anchors, scalars, slots, settings)


def restore(table: Table, state: State) -> None:
    """Put a state into an optimizer's variables.

    Raises:
        ValueError: Naming the first thing that does not fit. Nothing has been
            written then.
    """
    rows, (manifest, arrays) = table.anchors.rows, state
    for name in ("mode", "base"):
        own, saved = table.settings[name], manifest["settings"].get(name)
        if own != saved:
            raise _misfit(
                f"It must be that of a DualOpt with {name}={own!r}. Received: "
                f"one with {name}={saved!r}. Compile with the same {name} "
                "before loading, or load the weights alone."
            )
    order = _match_owners(rows, manifest["owners"])
    columns = {**table.slots}
    if state.flag == TAKEN:
        # In the place of θ₀, which may have been dropped here, the weight.
        columns["anchors"] = [r.variable if r.anchored else None for r in rows]
    wanted = {
        f"{name}.{place}": slot
        for name, column in columns.items()
        for place, slot in zip(order, column, strict=True)
        if slot is not None
    }
    held = {
        f"{name}.{place}"
        for name, places in manifest["slots"].items()
        for place in places
    }
    paths = {str(n): row.path for n, row in zip(order, rows, strict=True)}
    for key in [*wanted, *sorted(held)]:
        if key not in wanted or key not in held:
            name, _, place = key.partition(".")
            here, there = (
                ("has", "none") if key in wanted else ("has no", "one")
            )
            raise _misfit(
                f"This optimizer {here} {name!r} for weight {paths[place]!r}; "
                f"the file has {there}. It was written with other arguments "
                "(base, exclude, depth, use_ema, gradient_accumulation_steps) "
                "or another head. Compile with those of the run that wrote it, "
                "`bind(model, head=...)` included, before loading."
            )
    # Not where the file's rate was a schedule; and sizes of layers, which are
    # measured anew where they are numbered otherwise.
    passed = {"learning_rate", "reach_units"} - arrays.keys()
    units = [manifest["owners"][place].get("unit") for place in order]
    kept = table.anchors.outlive(state.flag)
    if kept or units != [row.unit for row in rows]:
        passed.add("reach_units")
    if kept:
        passed.add(_FLAG)
    wanted |= {k: v for k, v in table.scalars.items() if k not in passed}
    for key, variable in wanted.items():
        shape = tuple(variable.shape)
        if key not in arrays or tuple(arrays[key].shape) != shape:
            found = arrays[key].shape if key in arrays else "none"
            raise _misfit(
                f"It must have {key!r} of shape {shape}. Received: {found}. It "
                "was written by an optimizer with another base."
            )
    origins = [arrays[key] for key in wanted if key.startswith("anchors.")]
    table.anchors.restore(state.flag, origins, state.carried)
    for key, variable in wanted.items():
        if not key.startswith("anchors."):
            engine.copy_value(variable, arrays[key])


def _misfit(text: str) -> ValueError:
    return ValueError(f"The state in the file does not fit. {text}")


def _match_owners(
    rows: Sequence[Row], saved: Sequence[Mapping[str, Any]]
) -> list[int]:
    """Return, for each weight, its position in the file."""
    position = {entry["key"]: index for index, entry in enumerate(saved)}
    order = []
    for row in rows:
        index, shape = position.pop(row.key, None), tuple(row.variable.shape)
        if index is None:
            raise _misfit(
                f"It must have the state of weight {row.path!r} (place "
                f"{row.key!r}). Received: a file of {len(saved)} weights "
                "without it: another model, or another choice of trainable "
                f"weights; this one has {len(rows)}."
            )
        entry = saved[index]
        if tuple(entry["shape"]) != shape:
            raise _misfit(
                f"Weight {row.path!r} must have shape {shape}. Received: "
                f"{entry['path']!r} of shape {tuple(entry['shape'])} in its "
                "place. If the head is new (`skip_mismatch=True`), load the "
                "weights into the model before it is compiled, or "
                "`anchor_at(old_optimizer)`."
            )
        order.append(index)
    for index in position.values():
        raise _misfit(
            f"It must have the state of {len(rows)} weights. Received: a file "
            f"of {len(saved)}; {saved[index]['path']!r} is not trained here. "
            "Make the same weights trainable before loading, or carry the "
            "anchors over with `anchor_at(old_optimizer)`."
        )
    return order


def write(table: Table, store: Store) -> None:
    """Write the state into a mapping of arrays (Keras' store or a dict)."""
    rows, carried = table.anchors.rows, table.anchors.carried
    columns = {**table.slots}
    if table.anchors.state == TAKEN:
        columns["anchors"] = [row.anchor for row in rows]
    else:
        carried = {}
    slots = {
        name: {n: slot for n, slot in enumerate(column) if slot is not None}
        for name, column in columns.items()
    }
    entries: dict[str, keras.Variable | Array] = {**table.scalars}
    for name, column in slots.items():
        entries |= {f"{name}.{n}": slot for n, slot in column.items()}
    manifest = {
        "format": _FORMAT,
        "settings": dict(table.settings),
        "owners": [
            {
                "key": row.key,
                "path": row.path,
                "shape": tuple(row.variable.shape),
                **({} if row.unit is None else {"unit": row.unit}),
            }
            for row in rows
        ],
        "scalars": list(table.scalars),
        "slots": {name: list(column) for name, column in slots.items()},
    }
    if carried:
        manifest["carried"] = list(carried)
        values = carried.values()
        entries |= {f"carried.{n}": value for n, value in enumerate(values)}
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


def warn_misfit(error: ValueError) -> None:
    """Say that a model was loaded, and that its optimizer's state waits."""
    warnings.warn(
        "The model is loaded, evaluates and predicts, but takes no training "
        f"step yet: the state of its DualOpt waits. {error} Perhaps layers "
        "were frozen, unfrozen, given LoRA or quantized after the training. "
        "To train on, compile with a new DualOpt: "
        "`new.anchor_at(model.optimizer)` keeps the anchors of the file. To go "
        "on as if nothing had been, make the same weights trainable, compile "
        "as in the run that was saved, and `restore_optimizer(model, path)`.",
        stacklevel=stacklevel(),
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
