"""Which entry of a saved state goes into which variable, checked beforehand."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras

from keras_dualopt.anchors import TAKEN
from keras_dualopt.state_file import Owner, Table, flag_of


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
