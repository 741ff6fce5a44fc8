"""From a model to the graph of its layers' calls.

A Functional model is its own graph. A layer that hides others (an encoder of
twelve blocks, a subclassed model) is a chain: the order in which its weights
are first read is the order of its layers.
"""

import collections
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras

from keras_dualopt.caller import stacklevel
from keras_dualopt.depth import keras_hooks as hooks
from keras_dualopt.depth.chain import chain_of
from keras_dualopt.depth.order import Order
from keras_dualopt.depth.structure import Owner, Structure, graph_nodes
from keras_dualopt.depth.trace import Reads, reads_of_call, reads_of_model

# Where a tensor comes from: the calls one reads when one reads it.
Sources = tuple[int, ...]


def order_of(structure: Structure) -> Order:
    """Return the graph of a model's layer calls.

    Layers that nothing reads are missing from it.
    """
    flow = _Flow(structure)
    graph = hooks.graph_of(structure.model)
    if graph is not None:
        flow.graph(structure.model, [() for _ in graph.inputs])
    else:
        flow.chain(structure.model, None, ())
    return flow.order


class _Flow:
    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        self.order = Order()
        # How often each layer is called by the graphs of the model.
        self._calls = collections.Counter(
            id(node.operation)
            for owner in structure.owners.values()
            if hooks.graph_of(owner.layer) is not None
            for node in graph_nodes(hooks.graph_of(owner.layer))
        )
        self._placed: set[int] = set()
        self._read: set[int] = set()
        self._whole: Reads | None = None

    # Functional models.

    def graph(self, model: Any, inputs: Sequence[Sources]) -> list[Sources]:
        """Add the calls of a Functional model; return what its outputs are."""
        graph = hooks.graph_of(model)
        made: dict[int, Sources] = {
            id(tensor): sources
            for tensor, sources in zip(graph.inputs, inputs, strict=True)
        }
        for node in graph_nodes(graph):
            if any(id(tensor) not in made for tensor in node.outputs):
                results = self._node(node, made)
                made.update(zip(map(id, node.outputs), results, strict=True))
        return [made.get(id(tensor), ()) for tensor in graph.outputs]

    def _node(self, node: Any, made: dict[int, Sources]) -> list[Sources]:
        layer = node.operation
        weights = layer.weights if isinstance(layer, keras.layers.Layer) else []
        inputs = _sources(node.input_tensors, made)
        if hooks.graph_of(layer) is not None and weights:
            return self._nested(node, made)
        if not weights:
            end = self._weightless(layer, inputs)
        elif len(self.structure.units_of(weights)) < 2:
            end = self._leaf(node, inputs)
        else:
            end = self.chain(layer, node, inputs)
        return [end] * len(node.outputs)

    def _weightless(self, layer: Any, inputs: Sources) -> Sources:
        if len(inputs) < 2:
            return inputs
        return (self.order.add((), inputs, adds=type(layer).__name__ == "Add"),)

    def _nested(self, node: Any, made: dict[int, Sources]) -> list[Sources]:
        model = node.operation
        inputs = hooks.graph_of(model).inputs
        args, kwargs = hooks.node_arguments(node)
        given = _matched(model, inputs, args[0] if args else kwargs)
        if given is None:
            everything = self.order.join(_sources(node.input_tensors, made))
            results = self.graph(model, [everything for _ in inputs])
        else:
            results = self.graph(
                model, [made.get(id(tensor), ()) for tensor in given]
            )
        if len(results) != len(node.outputs):
            results = [_flat(results)] * len(node.outputs)
        return results

    def _leaf(self, node: Any, inputs: Sources) -> Sources:
        """Add a call of a layer that is one unit."""
        layer = node.operation
        reads: Iterable[int] = [id(weight) for weight in layer.weights]
        again = self._calls[id(layer)] > 1 or not self._placed.isdisjoint(
            self.structure.units_of(layer.weights)
        )
        if again and len(layer.weights) > 1:
            known = reads_of_call(layer, *hooks.node_arguments(node))
            reads = known.variables if known.complete else reads
        return (self._call(reads, inputs),)

    def _call(self, reads: Iterable[int], inputs: Sources) -> int:
        """Add a call that reads some weights.

        A weight of a known unit that is read only now is a unit of its own:
        the untied output weights of a reversible embedding lie where the
        output is made.
        """
        weights = [
            self.structure.by_variable[variable]
            for variable in reads
            if variable in self.structure.by_variable
        ]
        late = [
            weight
            for weight in weights
            if weight.unit in self._placed
            and id(weight.variable) not in self._read
        ]
        self.structure.split(late)
        units = dict.fromkeys(weight.unit for weight in weights)
        self._placed.update(units)
        self._read.update(id(weight.variable) for weight in weights)
        return self.order.add(units, inputs)

    # Layers that hide others.

    def chain(
        self, layer: keras.layers.Layer, node: Any, inputs: Sources
    ) -> Sources:
        """Add a layer that hides several, as the chain that its call reads."""
        end = inputs
        for item in chain_of(self.structure, layer, self._reads(layer, node)):
            if isinstance(item, Owner):
                start = self.order.join(end)
                model = item.layer
                end = self.order.join(
                    _flat(
                        self.graph(
                            model, [start for _ in hooks.graph_of(model).inputs]
                        )
                    )
                )
            else:
                end = (self._call(item, end),)
        return end

    def _reads(self, layer: keras.layers.Layer, node: Any) -> list[int]:
        """Return the weights that a layer reads, in order of first use."""
        own = {id(weight): None for weight in layer.weights}
        for known in self._attempts(layer, node):
            if known.known_for(own):
                break
        reads = known.variables
        if not known.known_for(own):
            self._warn(layer)
            # What is known of its start, then the rest as it was made.
            reads = [*dict.fromkeys([*reads, *own])]
        return [
            variable
            for variable in reads
            if variable in own and variable in self.structure.by_variable
        ]

    def _attempts(
        self, layer: keras.layers.Layer, node: Any
    ) -> Iterator[Reads]:
        """Yield what is known of a layer's reads, the best way first."""
        if node is not None and self._shares(layer):
            yield reads_of_call(layer, *hooks.node_arguments(node))
        # One trace of the model serves all of its layers, with the shapes that
        # really flow: what a layer says of the shape of its output, on which a
        # trace of the next one alone would rest, is wrong in some models.
        if self._whole is None:
            self._whole = reads_of_model(self.structure.model)
        yield self._whole
        if node is not None:
            yield reads_of_call(layer, *hooks.node_arguments(node))
        if self._whole.refused:
            self._whole = reads_of_model(self.structure.model, compute=True)
        yield self._whole

    def _shares(self, layer: keras.layers.Layer) -> bool:
        """Tell whether a graph calls a layer twice, or a part of it alone."""
        if self._calls[id(layer)] > 1:
            return True
        for weight in layer.weights:
            alone = anywhere = False
            for around in self.structure.by_variable[id(weight)].owner.chain():
                if around.layer is layer:
                    break
                # The layers of a graph inside are called by that graph.
                is_graph = hooks.graph_of(around.layer) is not None
                called = self._calls[id(around.layer)] > 0
                alone = not is_graph and (alone or called)
                anywhere = anywhere or (called and not is_graph)
            else:
                # A part of something else, as an embedding that a head uses.
                alone = anywhere
            if alone:
                return True
        return False

    def _warn(self, layer: keras.layers.Layer) -> None:
        owner = self.structure.owners.get(id(layer))
        path = layer.name if owner is None else owner.path
        warnings.warn(
            f"The call of {path!r} ({type(layer).__name__}) could not be "
            "traced: its layers are taken in the order in which they were "
            "made. Where that is not the order in which they run, give the "
            "optimizer `depth=`.",
            stacklevel=stacklevel(),
        )


def _sources(tensors: Iterable[Any], made: dict[int, Sources]) -> Sources:
    return _flat(made.get(id(tensor), ()) for tensor in tensors)


def _flat(sources: Iterable[Sources]) -> Sources:
    return tuple(dict.fromkeys(call for calls in sources for call in calls))


def _matched(
    model: Any, inputs: Sequence[Any], argument: Any
) -> list[Any] | None:
    """Return the argument for each input of a Functional model."""
    if isinstance(argument, dict):
        struct = model.input if isinstance(model, keras.Function) else None
        names = (
            {id(tensor): name for name, tensor in struct.items()}
            if isinstance(struct, dict)
            else {id(tensor): tensor.name for tensor in inputs}
        )
        keys = [names.get(id(tensor)) for tensor in inputs]
        if any(key not in argument for key in keys):
            return None
        given = [argument[key] for key in keys]
    else:
        given = keras.tree.flatten(argument)
    return given if len(given) == len(inputs) else None
