"""What `build` decides for every weight: one row each, and rows by layer."""

import dataclasses
import functools
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, TypeVar

import keras
import numpy as np
import numpy.typing as npt

from keras_dualopt.caller import stacklevel
from keras_dualopt.depth import (
    DepthRow,
    LayerDepth,
    depth_from_patterns,
    layer_depth,
    place_keys,
)
from keras_dualopt.pull import Level, compute_dtype
from keras_dualopt.settings import Head, Settings
from keras_dualopt.wrapping import concrete

# The names that Keras gives to LoRA's factors (`Layer.enable_lora`).
_LORA_ZERO = ("lora_kernel_b", "lora_embeddings_b")
_LORA_FREE = ("lora_kernel_a", "lora_embeddings_a")


def role(variable: keras.Variable) -> Literal["anchor", "zero", "free"]:
    """Return what a pretrained layer's weight is pulled to in fine-tune mode.

    `"anchor"`: its θ₀. `"zero"`: LoRA's factor b, whose product with a is a
    delta that starts at 0. `"free"`: nothing; a's random start is no anchor,
    and float8 scales are overwritten with their gradient.
    """
    name = variable.path.rpartition("/")[2]
    overwritten = getattr(variable, "overwrite_with_gradient", False)
    if overwritten or name in _LORA_FREE:
        return "free"
    return "zero" if name in _LORA_ZERO else "anchor"


@dataclasses.dataclass(eq=False)
class Row:
    """One trained weight.

    Args:
        variable: The weight.
        key: Its place in the model, the same in every copy of it.
        layer: The path of the layer that owns it, or, where others have that,
            the names of the layers around it as well: no other has it.
        pretrained: Whether it counts as pretrained.
        excluded: Whether `exclude` names it.
        relative: Its relative depth in [0, 1]; `None` for the head.
        strength: What sets its pull: the share of the way back per step at the
            reference learning rate, the weight decay, or R with `reach` (in
            the unit of weights, or of `unit`).
        rate: The share of the learning rate that it moves at.
        pulled: Whether it is pulled at all.
        anchored: Whether it gets a θ₀.
        unit: Which layer's size R is measured in; `None`: the unit of weights.
        anchor: The optimizer variable that holds θ₀, while there is one.
    """

    variable: keras.Variable
    key: str
    layer: str
    pretrained: bool
    excluded: bool
    relative: float | None = None
    strength: float = 0.0
    rate: float = 1.0
    pulled: bool = False
    anchored: bool = False
    unit: int | None = None
    anchor: keras.Variable | None = None

    @property
    def path(self) -> str:
        """The weight's Keras path."""
        path: str = self.variable.path
        return path

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.variable.shape)

    def level(self, reach: bool) -> Level:
        """Return what `Pull` is to do with it."""
        nothing = math.inf if reach else 0.0
        amount = self.strength if self.pulled else nothing
        return Level(amount, self.rate, self.unit if self.pulled else None)


def make_rows(
    settings: Settings,
    model: keras.Model | None,
    head: Head,
    variables: Sequence[keras.Variable],
    aliases: Mapping[int, str],
) -> tuple[LayerDepth, list[Row]]:
    """Return the depths in force, and one row for each variable to train.

    `model` owns them, if it is known; `head` is what `bind` was told, and
    `aliases` are the paths that patterns speak of (`aliases_of`).
    """
    scratch = settings.mode == "scratch"
    known = [*variables] if model is None else [*model.weights]
    excluded = _by_name(
        functools.partial(_excluded, settings.exclude, known, variables),
        aliases,
    )
    depth = find_depth(settings, model, head, variables, aliases)
    places: Sequence[DepthRow] = depth.rows  # Of patterns, in order.
    if model is not None:
        places = depth.place(model, variables)
    one_layer = len({row.index for row in depth.rows}) == 1
    patterns = isinstance(settings.depth, Mapping)
    output_only = scratch and one_layer and not patterns
    rows = []
    for variable, place, free in zip(variables, places, excluded, strict=True):
        row = Row(variable, place.key, place.layer, place.pretrained, free)
        rows.append(row)
        if not place.pretrained or place.relative is None:
            continue
        row.relative = 1.0 if output_only else place.relative
        row.strength = settings.amount(row.relative)
        row.rate = settings.rate(row.relative)
        nothing = math.inf if settings.reach is not None else 0.0
        kind = role(variable)
        row.pulled = not free and kind != "free" and row.strength != nothing
        row.anchored = kind == "anchor" and not scratch
    if isinstance(settings.reach, str):
        _measure_in_layers(rows)
    if not scratch:
        _check_something_is_pretrained(rows, depth)
    return depth, rows


def find_depth(
    settings: Settings,
    model: keras.Model | None,
    head: Head,
    variables: Sequence[keras.Variable],
    aliases: Mapping[int, str],
) -> LayerDepth:
    """Return the depths that `make_rows` decides by, from the same things."""
    given = settings.depth
    if isinstance(given, LayerDepth):
        return given
    if given is None:
        return layer_depth(
            model, head=() if settings.mode == "scratch" else head
        )
    return _by_name(
        functools.partial(depth_from_patterns, given, variables, model),
        aliases,
    )


_Decided = TypeVar("_Decided")


def _by_name(
    decide: Callable[[Mapping[int, str]], _Decided], aliases: Mapping[int, str]
) -> _Decided:
    """Let patterns speak of earlier names, or, if they do not, of today's."""
    try:
        return decide(aliases)
    except ValueError:
        if not aliases:
            raise
        return decide({})


def names_of(model: keras.Model | None) -> dict[str, str]:
    """Return the path of every weight of a model, by place."""
    if model is None:
        return {}
    keys = place_keys(model, model.weights)
    return {key: w.path for key, w in zip(keys, model.weights, strict=True)}


def aliases_of(
    names: Mapping[str, str] | None,
    today: Mapping[str, str],
    model: keras.Model | None,
) -> dict[int, str]:
    """Return, by the variable's id, the path that each weight had before.

    A reloaded or cloned model loses a prefix, and automatic names are numbered
    otherwise: `dense_1` may be another layer now. Nothing where the same names
    stand in other places, or other names: then it is another model. `names`
    are those of a model that this one may be a copy of.
    """
    if not names or not today or model is None:
        return {}
    paths = [*today.values()]
    old = [names.get(key, path) for key, path in today.items()]
    ends = [_ends(*pair) for pair in zip(old, paths, strict=True)]
    before, now = zip(*ends, strict=True)
    # The same names in other places are names that a person gave.
    exchanged = before != now and {*before} == {*now}
    if old == paths or exchanged or not all(map(_alike, old, paths)):
        return {}
    return {id(v): path for v, path in zip(model.weights, old, strict=True)}


def _ends(one: str, other: str) -> tuple[str, str]:
    """Return two paths without what only one model puts before them."""
    first, second = one.split("/"), other.split("/")
    length = min(len(first), len(second))
    if len(first) == len(second) > 1:
        length -= 1
    return "/".join(first[-length:]), "/".join(second[-length:])


def _alike(one: str, other: str) -> bool:
    """Tell whether paths differ in a prefix and in automatic numbers alone."""
    short, long = sorted(
        (
            [re.sub(r"_\d+$", "", part) for part in path.split("/")]
            for path in (one, other)
        ),
        key=len,
    )
    return long[len(long) - len(short) :] == short


def _excluded(
    patterns: Sequence[str],
    known: Sequence[keras.Variable],
    variables: Sequence[keras.Variable],
    aliases: Mapping[int, str],
) -> list[bool]:
    paths = {id(v): aliases.get(id(v), v.path) for v in known}
    excluded = set()
    for pattern in patterns:
        found = [k for k, path in paths.items() if re.fullmatch(pattern, path)]
        if not found:
            raise ValueError(
                "Every pattern of `exclude` must match the whole path of at "
                f"least one weight. Received: {pattern!r}, which matches none "
                f"of {len(known)}, such as {[*paths.values()][:3]}. For a part "
                f"of a path write '.*{pattern}.*'."
            )
        excluded.update(found)
    return [id(variable) in excluded for variable in variables]


def _measure_in_layers(rows: Sequence[Row]) -> None:
    """Number the layers whose size R is a share of, shallowest first."""
    for row in rows:
        if row.pulled and role(row.variable) == "zero":
            raise ValueError(
                "`reach` as a share is measured in the size of θ₀, and "
                f"{row.path!r} has none: LoRA's factors start at 0. Give "
                "`reach` as a distance."
            )
    sized = [
        layer
        for layer in layers_of(rows)
        if any(row.pulled or row.anchored for row in layer)
    ]
    for unit, layer in enumerate(sized):
        for row in layer:
            row.unit = unit


def layers_of(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows by layer, shallowest first, the head last."""
    # Not all weights that a layer owns need lie at one depth.
    groups: dict[tuple[str, float | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.layer, row.relative), []).append(row)
    return sorted(
        groups.values(),
        key=lambda layer: (
            math.inf if layer[0].relative is None else layer[0].relative
        ),
    )


def _check_something_is_pretrained(
    rows: Sequence[Row], depth: LayerDepth
) -> None:
    anchored = [row for row in rows if row.anchored]
    if not any(row.pretrained for row in depth.rows):
        layers = ", ".join(sorted({row.layer for row in depth.rows}))
        raise ValueError(
            "Every layer of the model was taken for a new head "
            f"({layers}), and there is nothing to roll back. If the whole "
            "model is pretrained, say so: `optimizer.bind(model, head=())`; "
            "for a model that is not pretrained use mode='scratch'."
        )
    text = ""
    if any(row.pulled for row in rows):
        return
    if anchored and all(row.excluded for row in anchored):
        text = (
            "`exclude` names every pretrained weight that is trained: nothing "
            "is pulled. Give narrower patterns; weights that are to stay as "
            "they are can be frozen."
        )
    elif not anchored and any(role(row.variable) != "free" for row in rows):
        text = (
            "None of the trainable weights was pretrained (all of them belong "
            "to the new head, or are named as such): weight rollback does "
            "nothing until pretrained layers are made trainable."
        )
    if text:
        warnings.warn(text, stacklevel=stacklevel())


# What Keras' initializers put there, and training moves at once.
_STARTS = {"bias": 0.0, "beta": 0.0, "gamma": 1.0}
# Some models start their biases beside 0 (ViT: at 1e-6).
_NEARLY = 1e-4


def look_new(rows: Sequence[Row], values: Sequence[npt.ArrayLike]) -> list[str]:
    """Return the deepest layers whose biases and scales never moved.

    A bias of zeros, a γ of ones with a β of zeros: what is put on top of a
    pretrained model looks like that, where layers below it do not. Inside of
    one it is no sign: attention may have been trained without a key's bias.
    """
    new: dict[str, float] = {}
    moved: set[str] = set()
    trained: list[float] = []
    for row, distance in _from_start(rows, values):
        assert row.relative is not None
        if distance:
            moved.add(row.layer)
        else:
            new[row.layer] = row.relative
        if distance > _NEARLY:
            trained.append(row.relative)
    deepest = max(trained, default=math.inf)
    return [
        layer
        for layer, depth in new.items()
        if layer not in moved and depth > deepest
    ]


def look_merged(variables: Sequence[keras.Variable]) -> list[str]:
    """Return LoRA's factors a that are all 0, as their b: they were loaded.

    Keras saves a kernel with the product of its factors in it, and loads both
    as 0. Else a starts at random, and b = 0 would be the pretrained model.
    """

    def named(names: Sequence[str]) -> list[keras.Variable]:
        return [v for v in variables if v.path.rpartition("/")[2] in names]

    pairs = zip(named(_LORA_FREE), named(_LORA_ZERO))  # As layers make them.
    values = ((a.path, concrete(a), concrete(b)) for a, b in pairs)
    return [
        path
        for path, a, b in values
        if not (a is None or b is None or np.any(a) or np.any(b))
    ]


def look_untrained(
    rows: Sequence[Row], values: Sequence[npt.ArrayLike]
) -> bool:
    """Tell whether no bias and no scale has left the place it starts from."""
    distances = [distance for _, distance in _from_start(rows, values)]
    return bool(distances) and max(distances) <= _NEARLY


def _from_start(
    rows: Sequence[Row], values: Sequence[npt.ArrayLike]
) -> Iterator[tuple[Row, float]]:
    """Yield biases and scales, and how far from their start they are."""
    for row, value in zip(rows, values, strict=True):
        start = _STARTS.get(row.path.rpartition("/")[2])
        if start is not None and row.relative is not None:
            array = np.asarray(value)
            wide = array.astype(compute_dtype(array.dtype.name))
            yield row, float(np.max(np.abs(wide - start), initial=0.0))
