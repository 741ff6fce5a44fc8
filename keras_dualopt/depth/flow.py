"""From a model to the graph of its layers' calls.

A Functional model is its own graph. A layer that hides others (an encoder of
twelve blocks, a subclassed model) is traced once: the order in which its
weights are first read is the order of its layers.
"""

import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import keras

from keras_dualopt.depth import keras_hooks as hooks
from keras_dualopt.depth.order import Order
from keras_dualopt.depth.structure import Owner, Structure, graph_nodes

# Tried in turn where a model leaves a dimension open. The batch is 2: a batch
# of one is a special case to some layers.
_OPEN_SIZES = (8, 64, 224)

Calls = tuple[int, ...]


def order_of(structure: Structure) -> Order:
    """Return the graph of a model's layer calls.

    Layers that nothing reads are missing from it.
    """
    flow = _Flow(structure)
    model = structure.model
    if hooks.graph_of(model) is not None:
        flow.graph(model, [() for _ in hooks.graph_of(model).inputs])
    else:
        args, kwargs = _symbolic_inputs(model)
        flow.opaque(model, args, kwargs, ())
    return flow.order


class _Flow:
    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        self.order = Order()
        # The weights read by the calls of a layer so far, by layer.
        self._read: dict[int, set[int]] = {}
        self._first_call: dict[int, tuple[Any, Any]] = {}

    def graph(self, model: Any, sources: Sequence[Calls]) -> list[Calls]:
        """Add the calls of a Functional model, given what its inputs read.

        Returns:
            For each of its outputs, the calls that make it.
        """
        graph = hooks.graph_of(model)
        made: dict[int, Calls] = {
            id(tensor): calls
            for tensor, calls in zip(graph.inputs, sources, strict=True)
        }
        for node in graph_nodes(graph):
            self._node(node, made)
        return [made.get(id(tensor), ()) for tensor in graph.outputs]

    def _node(self, node: Any, made: dict[int, Calls]) -> None:
        if all(id(tensor) in made for tensor in node.outputs):
            return
        layer = node.operation
        args, kwargs = hooks.node_arguments(node)
        inputs = [
            call
            for tensor in node.input_tensors
            for call in made.get(id(tensor), ())
        ]
        units: dict[int, None] = {}
        if isinstance(layer, keras.layers.Layer):
            units = self.structure.units_of(layer.weights)
        results: list[Calls]
        if not units:
            results = [self._weightless(layer, inputs)] * len(node.outputs)
        elif hooks.graph_of(layer) is not None:
            results = self._nested(layer, args, kwargs, made)
        elif len(units) == 1:
            results = [self._leaf(layer, args, kwargs, inputs)] * len(
                node.outputs
            )
        else:
            end = self.opaque(layer, args, kwargs, tuple(inputs))
            results = [end] * len(node.outputs)
        for tensor, calls in zip(node.outputs, results):
            made[id(tensor)] = calls

    def _weightless(self, layer: Any, inputs: list[int]) -> Calls:
        sources = tuple(dict.fromkeys(inputs))
        if len(sources) < 2:
            return sources
        adds = type(layer).__name__ == "Add"
        return (self.order.add((), sources, adds),)

    def _nested(
        self,
        model: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        made: dict[int, Calls],
    ) -> list[Calls]:
        inputs = hooks.graph_of(model).inputs
        given = _matched(model, inputs, args[0] if args else kwargs)
        if given is None:
            tensors = _tensors((args, kwargs))
            everything = self.order.join(
                call for tensor in tensors for call in made.get(id(tensor), ())
            )
            return self.graph(model, [everything for _ in inputs])
        return self.graph(model, [made.get(id(tensor), ()) for tensor in given])

    def _leaf(
        self,
        layer: keras.layers.Layer,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: Sequence[int],
    ) -> Calls:
        """Add a call of a layer that is one unit.

        What only a later call reads is a unit of its own: the untied output
        weights of a reversible embedding lie where the output is made.
        """
        structure = self.structure
        here = [w for w in layer.weights if id(w) in structure.by_variable]
        if id(layer) not in self._first_call:
            self._first_call[id(layer)] = (args, kwargs)
        elif len(here) > 1:
            if id(layer) not in self._read:
                first = self._first_call[id(layer)]
                self._read[id(layer)] = {*self._touched(layer, *first)}
            read = self._read[id(layer)]
            now = self._touched(layer, args, kwargs)
            self._split([v for v in now if v not in read])
            read.update(now)
            here = [w for w in here if id(w) in now] or here
        return (self.order.add(structure.units_of(here), inputs),)

    def _split(self, variables: Sequence[int]) -> None:
        weights = [
            self.structure.by_variable[v]
            for v in variables
            if v in self.structure.by_variable
        ]
        if weights:
            unit = self.structure.new_unit(weights[0].owner)
            for weight in weights:
                weight.unit = unit

    def opaque(
        self,
        layer: keras.layers.Layer,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: Calls,
    ) -> Calls:
        """Add a layer that hides several, as the chain its call reads."""
        touched = [
            v
            for v in self._touched(layer, args, kwargs)
            if v in self.structure.by_variable
        ]
        end = inputs
        for item in self._items(layer, touched):
            if isinstance(item, Owner):
                model = item.layer
                here = self.order.join(end)
                results = self.graph(
                    model, [here for _ in hooks.graph_of(model).inputs]
                )
                end = self.order.join(call for made in results for call in made)
            else:
                end = (self.order.add((item,), end),)
        return end

    def _items(
        self, layer: keras.layers.Layer, touched: Sequence[int]
    ) -> list[int | Owner]:
        """Return the units, and the Functional models run whole, in order."""
        structure = self.structure
        items: list[int | Owner] = []
        done: set[int] = set()
        last_at: dict[int, int] = {}
        position = 0
        while position < len(touched):
            weight = structure.by_variable[touched[position]]
            model = _outermost_graph(weight.owner, layer)
            if model is not None:
                size = self._whole(model, touched, position)
                if size:
                    items.append(model)
                    position += size
                    continue
            unit = weight.unit
            if unit in done and self._left(unit, last_at[unit], items):
                self._split([touched[position]])
                unit = weight.unit
            if unit not in done:
                done.add(unit)
                last_at[unit] = len(items)
                items.append(unit)
            position += 1
        return items

    def _left(
        self, unit: int, since: int, items: Sequence[int | Owner]
    ) -> bool:
        """Tell whether the calls since a unit's first lie outside its layer.

        Then a weight of it that is read only now belongs to a second call.
        """
        root = self.structure.unit_roots[unit]
        return any(
            root
            not in (
                item
                if isinstance(item, Owner)
                else self.structure.unit_roots[item]
            ).chain()
            for item in items[since + 1 :]
        )

    def _whole(
        self, model: Owner, touched: Sequence[int], position: int
    ) -> int:
        """Return how many touches a whole run of a Functional model makes."""
        own = {id(w) for w in model.layer.weights}
        size = 0
        while (
            position + size < len(touched) and touched[position + size] in own
        ):
            size += 1
        # A model whose layers are called one by one does not run its graph.
        scattered = any(v in own for v in touched[position + size :])
        before = any(v in own for v in touched[:position])
        return 0 if scattered or before else size

    def _touched(
        self,
        layer: keras.layers.Layer,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> list[int]:
        """Return the weights that a call reads, in order of the first read."""
        touched = _trace(layer, args, kwargs)
        if touched is None:
            owner = self.structure.owners.get(id(layer))
            warnings.warn(
                f"The call of {owner.path if owner else layer.name!r} "
                f"({type(layer).__name__}) could not be traced, so the order "
                "of its layers is the order in which they were made. If that "
                "is not the order in which they run, give the optimizer "
                "`depth=`.",
                stacklevel=2,
            )
            return [id(w) for w in _static_order(layer)]
        return touched


def _trace(
    layer: keras.layers.Layer,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> list[int] | None:
    if args is None:
        return None
    kwargs = dict(kwargs)
    if "training" in inspect.signature(layer.call).parameters:
        kwargs["training"] = False
    tensors = _tensors((args, kwargs))
    if not tensors:
        return None
    sizes = _OPEN_SIZES if any(None in t.shape[1:] for t in tensors) else (0,)
    for size in sizes:
        seen: dict[int, None] = {}
        try:
            hooks.trace(
                _caller(layer, args, kwargs, tensors, seen),
                [_closed(tensor, size) for tensor in tensors],
            )
        except Exception:
            # Layers raise what they like when a size does not suit them.
            continue
        return list(seen)
    return None


def _caller(
    layer: keras.layers.Layer,
    args: Any,
    kwargs: Any,
    tensors: Sequence[Any],
    seen: dict[int, None],
) -> Any:
    """Return a function that calls a layer as a node of a graph does."""

    def call(*values: Any) -> Any:
        # torch runs a function twice, and again where its first try failed.
        seen.clear()
        made = {id(t): value for t, value in zip(tensors, values)}

        def fill(argument: Any) -> Any:
            return made.get(id(argument), argument)

        filled, named = keras.tree.map_structure(fill, (args, kwargs))
        with hooks.recording_scope(seen):
            layer(*filled, **named)
        return values[0]

    return call


def _closed(tensor: Any, size: int) -> keras.KerasTensor:
    """Return a symbolic tensor of the same kind whose shape is known."""
    batch, *rest = tensor.shape
    shape = (
        2 if batch is None else batch,
        *(size if length is None else length for length in rest),
    )
    return keras.KerasTensor(shape, dtype=tensor.dtype)


def _tensors(arguments: Any) -> list[Any]:
    unique = {
        id(leaf): leaf
        for leaf in keras.tree.flatten(arguments)
        if isinstance(leaf, keras.KerasTensor)
    }
    return list(unique.values())


def _matched(
    model: Any, inputs: Sequence[Any], argument: Any
) -> list[Any] | None:
    """Return the argument for each input of a Functional model."""
    if isinstance(argument, dict):
        names = (
            dict(model.input)
            if isinstance(getattr(model, "input", None), dict)
            else {tensor.name: tensor for tensor in inputs}
        )
        by_input = {id(tensor): name for name, tensor in names.items()}
        keys = [by_input.get(id(tensor)) for tensor in inputs]
        if any(key not in argument for key in keys):
            return None
        given = [argument[key] for key in keys]
    else:
        given = keras.tree.flatten(argument)
    return given if len(given) == len(inputs) else None


def _outermost_graph(owner: Owner, layer: keras.layers.Layer) -> Owner | None:
    """Return the largest Functional model around an owner, inside a layer."""
    found = None
    for around in owner.chain():
        if around.layer is layer:
            return found
        if hooks.graph_of(around.layer) is not None:
            found = around
    return None


def _static_order(layer: keras.layers.Layer) -> list[keras.Variable]:
    return list(layer.weights)


def _symbolic_inputs(
    model: keras.Model,
) -> tuple[tuple[Any, ...] | None, dict[str, Any]]:
    """Return what a subclassed model was built on, as symbolic tensors."""
    if isinstance(model, keras.Function):
        return (model.input,), {}
    config = model.get_build_config() or {}
    if "input_shape" in config:
        return (_symbolic(config["input_shape"]),), {}
    if "shapes_dict" in config:
        return (), {
            name.removesuffix("_shape"): _symbolic(shape)
            for name, shape in config["shapes_dict"].items()
        }
    return None, {}


def _symbolic(shape: Any) -> Any:
    if isinstance(shape, dict):
        return {name: _symbolic(inner) for name, inner in shape.items()}
    if all(length is None or isinstance(length, int) for length in shape):
        return keras.KerasTensor(tuple(shape))
    return [_symbolic(inner) for inner in shape]
