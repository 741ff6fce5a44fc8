"""Which layer owns which weight, and a name for each that outlives names.

Automatic names change from run to run, and the order in which attributes were
tracked differs between backends. The places used here do neither: a layer of a
Functional graph is known by its position in the graph, every other one by the
attribute that holds it.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras

from keras_dualopt.depth import keras_hooks as hooks


@dataclasses.dataclass(eq=False)
class Owner:
    """A layer, and where in the model it is."""

    layer: keras.layers.Layer
    key: str  # From the model down: graph positions and attributes.
    parent: "Owner | None"  # The layer that holds it.

    @property
    def path(self) -> str:
        """The layer's Keras path, or its name before Keras knows one."""
        return str(getattr(self.layer, "path", None) or self.layer.name)

    def chain(self) -> Iterator["Owner"]:
        """Yield this owner and those around it, innermost first."""
        owner: Owner | None = self
        while owner is not None:
            yield owner
            owner = owner.parent


@dataclasses.dataclass(eq=False)
class Weight:
    """A weight of the model."""

    variable: keras.Variable
    key: str  # Its place in the model, unique in it.
    owner: Owner  # The layer that owns it directly.
    unit: int  # Weights of one unit share one depth.


class Structure:
    """The layers and weights of one model."""

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        self.owners: dict[int, Owner] = {}
        self.weights: list[Weight] = []
        self.by_variable: dict[int, Weight] = {}
        self.unit_roots: list[Owner] = []
        self._units: dict[int, int] = {}
        self._walk()

    def new_unit(self, root: Owner) -> int:
        """Return the number of a new unit."""
        self.unit_roots.append(root)
        return len(self.unit_roots) - 1

    def split(self, weights: Sequence[Weight]) -> None:
        """Make weights that belong to a unit so far one of their own."""
        if weights:
            unit = self.new_unit(weights[0].owner)
            for weight in weights:
                weight.unit = unit

    def units_of(self, weights: Iterable[keras.Variable]) -> dict[int, None]:
        """Return the units of some variables, in order, each once."""
        return {
            self.by_variable[id(weight)].unit: None
            for weight in weights
            if id(weight) in self.by_variable
        }

    def names(self) -> dict[int, str]:
        """Return a name for each owner of weights that no other one has.

        The path is not unique: that of a layer in a nested model begins there.
        """
        owners = {id(w.owner): w.owner for w in self.weights}
        paths = collections.Counter(owner.path for owner in owners.values())
        found: dict[int, str] = {}
        used: set[str] = set()
        for key, owner in owners.items():
            name = owner.path
            if paths[name] > 1:
                *inside, _ = [around.layer.name for around in owner.chain()]
                name = "/".join(reversed(inside)) or name
            found[key] = _unused(name, used)
        return found

    def _walk(self) -> None:
        # Breadth first: a layer is known by the shortest way to it.
        left = {id(weight): weight for weight in self.model.weights}
        root = Owner(self.model, "", None)
        self.owners[id(self.model)] = root
        queue = collections.deque([root])
        while queue:
            owner = queue.popleft()
            own = [
                left.pop(id(variable))
                for variable in hooks.own_variables(owner.layer)
                if id(variable) in left
            ]
            for name, variable in _named_variables(owner.layer, own):
                self._add(variable, _join(owner.key, name), owner)
            names: set[str] = set()
            for name, layer in _children(owner.layer):
                if id(layer) in self.owners:
                    continue
                name = _unused(name, names)
                child = Owner(layer, _join(owner.key, name), owner)
                self.owners[id(layer)] = child
                queue.append(child)
        for index, variable in enumerate(self.model.weights):
            if id(variable) in left:
                self._add(variable, f"weights.{index}", root)

    def _add(self, variable: keras.Variable, key: str, owner: Owner) -> None:
        root = _unit_root(owner)
        if id(root) not in self._units:
            self._units[id(root)] = self.new_unit(root)
        weight = Weight(variable, key, owner, self._units[id(root)])
        self.weights.append(weight)
        self.by_variable[id(variable)] = weight


def graph_operations(graph: Any) -> list[Any]:
    """Return what a Functional graph calls, each after what it reads.

    In the order in which the outputs need them, which is the same for the
    same architecture on every backend.
    """
    bounds = {id(tensor) for tensor in graph.inputs}
    entered: set[Any] = set()
    ordered: dict[Any, None] = {}
    stack = [*reversed(graph.outputs)]
    while stack:
        tensor = stack[-1]
        node = None if id(tensor) in bounds else hooks.producer(tensor)
        if node is None or node in entered:
            stack.pop()
            if node is not None:
                ordered.setdefault(node)
        else:
            entered.add(node)
            stack.extend(reversed(node.input_tensors))
    return [*dict.fromkeys(node.operation for node in ordered)]


def _children(
    layer: keras.layers.Layer,
) -> Iterator[tuple[str, keras.layers.Layer]]:
    graph = hooks.graph_of(layer)
    in_order: list[Any] = []
    if graph is not None:
        in_order = graph_operations(graph)
    elif isinstance(layer, keras.Sequential):
        in_order = layer.layers
    # Layers without weights are left out of the count: a copy may lack an
    # input layer or have another.
    with_weights = [one for one in in_order if getattr(one, "weights", None)]
    yield from ((str(i), inner) for i, inner in enumerate(with_weights))
    for place, inner in _held(layer, keras.layers.Layer):
        if inner.weights:
            yield place, inner
    for index, inner in enumerate(hooks.tracked_layers(layer)):
        yield f"layers.{index}", inner


def _held(layer: keras.layers.Layer, kind: type) -> Iterator[tuple[str, Any]]:
    """Yield what a layer's attributes hold of a kind, by its place in them."""
    for name, value in hooks.attributes(layer):
        yield from _leaves(value, name.lstrip("_"), kind)


def _leaves(value: Any, name: str, kind: type) -> Iterator[tuple[str, Any]]:
    """Yield what is of a kind in a value and the containers it is made of."""
    if isinstance(value, kind):
        yield name, value
    elif isinstance(value, dict):
        for key in value:
            if isinstance(key, str | int):
                yield from _leaves(value[key], f"{name}.{key}", kind)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{name}.{index}", kind)


def _named_variables(
    layer: keras.layers.Layer, variables: list[keras.Variable]
) -> Iterator[tuple[str, keras.Variable]]:
    """Yield each variable with a name that is unique in its layer.

    The attribute rather than the variable's name, which may be automatic.
    """
    names: dict[int, str] = {}
    for name, variable in _held(layer, keras.Variable):
        names.setdefault(id(variable), name)
    used: set[str] = set()
    for index, variable in enumerate(variables):
        name = names.get(id(variable), f"variables.{index}")
        yield _unused(name, used), variable


def _unused(name: str, used: set[str]) -> str:
    """Return a name that is not used yet, and note it: `_a` may meet `a`."""
    while name in used:
        name += "'"
    used.add(name)
    return name


def _unit_root(owner: Owner) -> Owner:
    """Return the layer whose weights share one depth with this owner's."""
    root = owner
    for around in owner.chain():
        if _is_one_layer(around.layer):
            root = around
    return root


def _is_one_layer(layer: keras.layers.Layer) -> bool:
    """Tell a layer whose parts lie at one depth: a real attention layer.

    A model may be called so too, and a block of an attention layer and more:
    it has only projections and norms of its own.
    """
    if isinstance(layer, keras.layers.Bidirectional):
        # Its two directions read the same input side by side.
        return True
    if isinstance(layer, keras.Model):
        return False
    names = [kind.__name__ for kind in type(layer).__mro__]
    return any(name.endswith(_ATTENTION) for name in names) and all(
        _is_projection(part) for part in hooks.tracked_layers(layer)
    )


_ATTENTION = (
    "Attention",
    "AttentionWithDownsampling",
    "Attention2d",
    "AttentionWithRelativePE",
)
_PROJECTIONS = {"Dense", "EinsumDense", "BaseConv", "BaseDepthwiseConv"}


def _is_projection(layer: keras.layers.Layer) -> bool:
    """Tell a projection from a block; norms and scales have vectors alone."""
    kinds = {kind.__name__ for kind in type(layer).__mro__}
    return bool(kinds & _PROJECTIONS) or all(
        len(weight.shape) < 2 for weight in layer.weights
    )


def _join(key: str, name: str) -> str:
    return f"{key}/{name}" if key else name
