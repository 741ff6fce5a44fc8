"""The optimizer's state in a file: what it is, whose it is, and unharmed.

Keras writes optimizer variables as a numbered list. That loses the state of an
optimizer that is not built yet, takes any list of the right length, and
depends on the order of the weights, which differs between backends for some
KerasHub tasks. Here every entry says what it is (`momentum`, `anchor`, …) and
which weight it belongs to, by the weight's place in the model's structure, and
has a checksum: HDF5 would hand out a damaged θ₀ without a word.
"""

import dataclasses
import json
import warnings
import zlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_dualopt.anchors import TAKEN

_MANIFEST = "dualopt"
_FLAG = "anchors_taken"
_FORMAT = 2
_CHECKSUM_BYTES = 4
_DAMAGED = "The file is damaged; use an earlier checkpoint."


@dataclasses.dataclass(frozen=True)
class Owner:
    """A weight that optimizer state belongs to."""

    key: str
    path: str
    shape: tuple[int, ...]


@dataclasses.dataclass
class Table:
    """An optimizer's variables by what they are.

    Args:
        owners: The trained weights, in the optimizer's order.
        scalars: Variables that belong to no weight, by name.
        slots: Lists aligned with `owners`, by name; `None` where a weight has
            no such state.
    """

    owners: list[Owner]
    scalars: dict[str, keras.Variable]
    slots: dict[str, list[keras.Variable | None]]


def write(
    table: Table,
    store: Any,
    flag: int,
    settings: Mapping[str, Any],
    carried: Mapping[str, Any],
) -> None:
    """Write the state into a mapping of arrays (Keras' store or a dict).

    `carried` is θ₀ of weights that are not in the table, by their keys.
    """
    slots = dict(table.slots)
    if flag != TAKEN:
        slots.pop("anchors", None)
        carried = {}
    entries: dict[str, Any] = dict(table.scalars)
    for name, column in slots.items():
        for index, slot in enumerate(column):
            if slot is not None:
                entries[f"{name}.{index}"] = slot
    for index, value in enumerate(carried.values()):
        entries[f"carried.{index}"] = value
    checksums = {}
    for key, entry in entries.items():
        array = _array(entry)
        checksums[key] = _checksum(array)
        store[key] = array
    manifest = {
        "format": _FORMAT,
        "settings": dict(settings),
        "owners": [dataclasses.asdict(owner) for owner in table.owners],
        "scalars": list(table.scalars),
        "slots": {
            name: [index for index, v in enumerate(column) if v is not None]
            for name, column in slots.items()
        },
        "checksums": checksums,
    }
    if carried:
        manifest["carried"] = list(carried)
    _write_manifest(manifest, store)


def rewrite(state: Mapping[str, Any], store: Any) -> None:
    """Write a state that was read, unchanged."""
    for key, array in state["arrays"].items():
        store[key] = array
    _write_manifest(state["manifest"], store)


def _write_manifest(manifest: Mapping[str, Any], store: Any) -> None:
    text = json.dumps(manifest).encode()
    text += zlib.crc32(text).to_bytes(_CHECKSUM_BYTES, "big")
    store[_MANIFEST] = np.frombuffer(text, dtype="uint8")


def _array(entry: Any) -> Any:
    if isinstance(entry, np.ndarray):
        return entry
    # A copy: on torch and TensorFlow the array may share the live buffer.
    return np.array(keras.ops.convert_to_numpy(entry.value))


def read(store: Any) -> dict[str, Any] | None:
    """Read a state into memory; `None` if another optimizer wrote it.

    Raises:
        ValueError: If the state is DualOpt's but damaged.
    """
    keys = set(store.keys())
    if _MANIFEST not in keys:
        if _FLAG in keys:  # A name of ours: other optimizers count theirs.
            raise ValueError(
                "Expected: a description of DualOpt's state beside it. "
                f"Received: {len(keys)} arrays without one. {_DAMAGED}"
            )
        return None
    manifest = _manifest(bytes(np.asarray(store[_MANIFEST])))
    version = manifest["format"]
    if version != _FORMAT:
        raise ValueError(
            f"Expected: DualOpt's state in format {_FORMAT}. Received: format "
            f"{version!r}. Read it with the keras-dualopt that wrote it."
        )
    arrays = {}
    for key, checksum in manifest["checksums"].items():
        if key not in keys:
            raise ValueError(
                f"Expected: {key!r} in DualOpt's state. Received: a file "
                f"without it. {_DAMAGED}"
            )
        arrays[key] = np.array(store[key])
        if _checksum(arrays[key]) != checksum:
            raise ValueError(
                f"Expected: {key!r} of DualOpt's state as it was written. "
                f"Received: one with another checksum. {_DAMAGED}"
            )
    return {"manifest": manifest, "arrays": arrays}


def _manifest(data: bytes) -> dict[str, Any]:
    text, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    # The checksum of nothing is 0, which zeros would pass.
    if not text or zlib.crc32(text) != int.from_bytes(checksum, "big"):
        raise ValueError(
            "Expected: an intact description of DualOpt's state. Received: "
            f"{len(data)} bytes with another checksum. {_DAMAGED}"
        )
    manifest: dict[str, Any] = json.loads(text)
    return manifest


def _checksum(array: Any) -> int:
    # What the bytes mean as well: in HDF5 one bit turns their order around.
    meaning = f"{array.dtype.str} {array.dtype.name} {array.shape}"
    return zlib.crc32(
        np.ascontiguousarray(array).reshape(-1).view("uint8").data,
        zlib.crc32(meaning.encode()),
    )


def flag_of(state: Mapping[str, Any]) -> int:
    """Return what the anchors of a state hold."""
    return int(state["arrays"][_FLAG])


def carried_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return θ₀ of weights that were not trained, by their keys."""
    keys = state["manifest"].get("carried", ())
    return {
        key: state["arrays"][f"carried.{index}"]
        for index, key in enumerate(keys)
    }


def warn_foreign(count: int, trained: bool) -> None:
    """Say that a file held no state of ours, where that may surprise."""
    if not count and not trained:
        return  # Pretrained weights, read before training: nothing is lost.
    warnings.warn(
        "Expected: the state of a DualOpt. Received: a file with "
        + (f"{count} arrays of another optimizer" if count else "none")
        + ". The weights are read; DualOpt's step counter, averages and "
        + (
            "anchors keep their present values (`anchor_at()` anchors at the "
            "weights just read)."
            if trained
            else "anchors start fresh with the first step."
        ),
        stacklevel=2,
    )
