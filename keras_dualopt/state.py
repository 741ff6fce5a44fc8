"""The optimizer's state in a file: by name and by weight, checked, then read.

Keras writes optimizer variables as a numbered list. That loses the state of an
optimizer that is not built yet, takes any list of the right length, and
depends on the order of the weights, which differs between backends for some
KerasHub tasks. Here every entry says what it is (`momentum`, `anchor`, …) and
which weight it belongs to, by the weight's place in the model's structure.
"""

import dataclasses
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_dualopt.anchors import TAKEN

_MANIFEST = "dualopt"
_FORMAT = 1


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


def _slots_of(
    holder: Any, count: int, members: Iterable[keras.Variable]
) -> dict[str, list[keras.Variable | None]]:
    """Return the attributes of an optimizer that hold one variable a weight.

    Keras' optimizers keep `self._momentums[i]` for weight i; the attribute's
    name is the same on every backend, which a variable's name is not.
    """
    own = {id(variable) for variable in members}
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


def write(
    table: Table, store: Any, flag: int, settings: Mapping[str, Any]
) -> None:
    """Write the state into a mapping of arrays (Keras' store or a dict)."""
    slots = dict(table.slots)
    if flag != TAKEN:
        slots.pop("anchors", None)
    manifest = {
        "format": _FORMAT,
        "settings": dict(settings),
        "owners": [dataclasses.asdict(owner) for owner in table.owners],
        "scalars": list(table.scalars),
        "slots": {
            name: [index for index, v in enumerate(column) if v is not None]
            for name, column in slots.items()
        },
    }
    text = json.dumps(manifest).encode()
    store[_MANIFEST] = np.frombuffer(text, dtype="uint8")
    for name, variable in table.scalars.items():
        store[name] = _array(variable)
    for name, column in slots.items():
        for index, slot in enumerate(column):
            if slot is not None:
                store[f"{name}.{index}"] = _array(slot)


def _array(variable: keras.Variable) -> Any:
    # A copy: on torch and TensorFlow the array may share the live buffer.
    return np.array(keras.ops.convert_to_numpy(variable.value))


def read(store: Any) -> dict[str, Any] | None:
    """Read a state into memory; `None` if another optimizer wrote it.

    Raises:
        ValueError: If the state is DualOpt's but damaged.
    """
    keys = set(store.keys())
    if _MANIFEST not in keys:
        return None
    try:
        manifest = json.loads(bytes(np.asarray(store[_MANIFEST])))
        version = manifest["format"]
        wanted = [*manifest["scalars"]] + [
            f"{name}.{index}"
            for name, indices in manifest["slots"].items()
            for index in indices
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            "Expected: an intact description of DualOpt's state. Received: one "
            f"that cannot be read ({error}). The file is damaged; use an "
            "earlier checkpoint."
        ) from error
    if version != _FORMAT:
        raise ValueError(
            f"Expected: DualOpt's state in format {_FORMAT}. Received: format "
            f"{version!r}. Read it with the keras-dualopt that wrote it."
        )
    missing = [key for key in wanted if key not in keys]
    if missing:
        raise ValueError(
            f"Expected: {missing[0]!r} in DualOpt's state. Received: a file "
            "without it. The file is damaged; use an earlier checkpoint."
        )
    arrays = {key: np.array(store[key]) for key in wanted}
    return {"manifest": manifest, "arrays": arrays}


def rewrite(state: Mapping[str, Any], store: Any) -> None:
    """Write a state that was read, unchanged."""
    text = json.dumps(state["manifest"]).encode()
    store[_MANIFEST] = np.frombuffer(text, dtype="uint8")
    for key, array in state["arrays"].items():
        store[key] = array


def flag_of(state: Mapping[str, Any]) -> int:
    """Return what the anchors of a state hold."""
    return int(state["arrays"]["anchors_taken"])


def match(
    table: Table, state: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[tuple[keras.Variable, Any]]:
    """Return which array goes into which variable, having checked all.

    Raises:
        ValueError: Naming the first thing that does not fit. Nothing has been
            written then.
    """
    manifest, arrays = state["manifest"], state["arrays"]
    _match_settings(settings, manifest["settings"])
    order = _match_owners(table.owners, manifest["owners"])
    pairs: list[tuple[keras.Variable, Any]] = []
    for name, variable in table.scalars.items():
        if name == "learning_rate" and name not in arrays:
            continue  # The file's rate was a schedule, this one is a number.
        if name not in arrays:
            raise ValueError(
                f"Expected: the state {name!r}. Received: a file without it. "
                "It was written by an optimizer with another base."
            )
        pairs.append((variable, _fitting(name, variable, arrays[name])))
    without_anchors = flag_of(state) != TAKEN
    for name, column in table.slots.items():
        if name == "anchors" and without_anchors:
            continue
        saved = set(manifest["slots"].get(name, ()))
        for index, slot in enumerate(column):
            place = order[index]
            owner = table.owners[index]
            if (slot is None) != (place not in saved):
                raise ValueError(
                    f"Expected: {'no' if slot is None else 'a'} {name!r} for "
                    f"weight {owner.path!r}. Received: a file "
                    f"{'without' if slot is not None else 'with'} one. It was "
                    "written by an optimizer with other arguments (base, "
                    "exclude, depth, head, use_ema, "
                    "gradient_accumulation_steps)."
                )
            if slot is not None:
                label = f"{name} of {owner.path}"
                array = arrays[f"{name}.{place}"]
                pairs.append((slot, _fitting(label, slot, array)))
    unknown = [n for n in manifest["slots"] if n not in table.slots]
    if unknown:
        raise ValueError(
            f"Expected: the state {sorted(table.slots)}. Received: a file that "
            f"holds {unknown[0]!r} besides. It was written by an optimizer "
            "with other arguments; build this one with the same."
        )
    return pairs


def _match_settings(
    settings: Mapping[str, Any], saved: Mapping[str, Any]
) -> None:
    for name in ("mode", "base"):
        if settings[name] != saved.get(name):
            raise ValueError(
                f"Expected: the state of a DualOpt with {name}="
                f"{settings[name]!r}. Received: one with {name}="
                f"{saved.get(name)!r}. Compile with the same {name} before "
                "loading, or load the weights alone."
            )


def _match_owners(
    owners: Sequence[Owner], saved: Sequence[Mapping[str, Any]]
) -> list[int]:
    """Return, for each weight, its position in the file."""
    position = {entry["key"]: index for index, entry in enumerate(saved)}
    for owner in owners:
        if owner.key not in position:
            raise ValueError(
                f"Expected: the state of weight {owner.path!r} (place "
                f"{owner.key!r}). Received: a file of {len(saved)} weights "
                "without it: another model, or another choice of trainable "
                f"weights; this one has {len(owners)}."
            )
        entry = saved[position[owner.key]]
        if tuple(entry["shape"]) != owner.shape:
            raise ValueError(
                f"Expected: weight {owner.path!r} of shape {owner.shape}. "
                f"Received: {entry['path']!r} of shape "
                f"{tuple(entry['shape'])} in its place."
            )
    if len(saved) != len(owners):
        own = {owner.key for owner in owners}
        first = next(entry for entry in saved if entry["key"] not in own)
        raise ValueError(
            f"Expected: the state of {len(owners)} weights. Received: a file "
            f"of {len(saved)}; {first['path']!r} is not trained here. Make "
            "the same weights trainable before loading, or carry the anchors "
            "over with `anchor_at(old_optimizer)`."
        )
    return [position[owner.key] for owner in owners]


def _fitting(name: str, variable: keras.Variable, array: Any) -> Any:
    if tuple(array.shape) != tuple(variable.shape):
        raise ValueError(
            f"Expected: {name} of shape {tuple(variable.shape)}. Received: "
            f"shape {tuple(array.shape)}."
        )
    return array


def table(
    owners: list[Owner],
    variables: Sequence[keras.Variable],
    holders: Sequence[Any],
    anchors: Sequence[keras.Variable | None],
    scalars: Mapping[str, Any],
) -> Table:
    """Return every optimizer variable by what it is.

    Args:
        owners: The trained weights.
        variables: The optimizer's variables, all of them.
        holders: The objects whose attributes hold lists of them.
        anchors: θ₀ for each weight.
        scalars: Known single variables; entries that are not variables (a
            learning rate schedule) are passed over.
    """
    slots: dict[str, list[keras.Variable | None]] = {}
    for holder in holders:
        slots.update(_slots_of(holder, len(owners), variables))
    slots["anchors"] = list(anchors)
    named = {
        name: value
        for name, value in scalars.items()
        if isinstance(value, keras.Variable)
    }
    placed = {id(slot) for column in slots.values() for slot in column}
    placed |= {id(variable) for variable in named.values()}
    rest = [v for v in variables if id(v) not in placed]
    named.update({f"base_{n}": variable for n, variable in enumerate(rest)})
    return Table(owners, named, slots)


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
