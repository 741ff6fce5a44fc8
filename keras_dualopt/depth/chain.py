"""What is known of a layer that hides others: the order of its reads."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_dualopt.depth import keras_hooks as hooks
from keras_dualopt.depth.structure import Owner, Structure, Weight

# Weights of one unit that are read together, or a Functional model run whole.
Step = list[int] | Owner


def chain_of(
    structure: Structure, layer: keras.layers.Layer, reads: Sequence[int]
) -> list[Step]:
    """Return the steps of a layer's call, in the order in which they run.

    Args:
        structure: The model's structure; a weight that turns out to belong to
            a second call of its layer becomes a unit of its own in it.
        layer: The layer.
        reads: The weights it reads, in order of first use.
    """
    chain = _Chain(structure)
    runs: dict[Owner, int] = {}
    position = 0
    while position < len(reads):
        weight = structure.by_variable[reads[position]]
        model = _outermost_graph(weight.owner, layer)
        if model is not None and model not in runs:
            runs[model] = _run(model, reads, position)
        size = 0 if model is None else runs[model]
        if model is not None and size:
            chain.steps.append(model)
            position += size
        else:
            chain.add(weight)
            position += 1
    return chain.steps


class _Chain:
    """The steps of a chain while it is being read."""

    def __init__(self, structure: Structure) -> None:
        self.steps: list[Step] = []
        self._structure = structure
        self._by_unit: dict[int, list[int]] = {}
        self._owners: set[int] = set()

    def add(self, weight: Weight) -> None:
        """Add the first read of a weight."""
        step = self._by_unit.get(weight.unit)
        if step is not None:
            since = self.steps[_index(self.steps, step) + 1 :]
            root = self._structure.unit_roots[weight.unit]
            owners = [self._owner(other) for other in since]
            handed = [o is not root and o in root.chain() for o in owners]
            inside = [root in o.chain() for o in owners]
            if since and all(handed):
                # An outer layer's weight, handed to this one as an argument,
                # is read when the call begins on one backend, and in its
                # middle on another.
                del self.steps[_index(self.steps, step)]
                self.steps.append(step)
            elif not all(inside) and id(weight.owner) in self._owners:
                # Read again after layers outside: in a second call.
                self._structure.split([weight])
                step = None
        if step is None:
            step = self._by_unit[weight.unit] = []
            self.steps.append(step)
        step.append(id(weight.variable))
        self._owners.add(id(weight.owner))

    def _owner(self, step: Step) -> Owner:
        if isinstance(step, Owner):
            return step
        return self._structure.by_variable[step[0]].owner


def _index(steps: Sequence[Any], wanted: Any) -> int:
    # By identity: two lists of reads may be equal while they grow.
    return next(i for i, step in enumerate(steps) if step is wanted)


def _outermost_graph(owner: Owner, layer: keras.layers.Layer) -> Owner | None:
    """Return the largest Functional model around an owner, inside a layer."""
    found = None
    for around in owner.chain():
        if around.layer is layer:
            return found
        if hooks.graph_of(around.layer) is not None:
            found = around
    return None


def _run(model: Owner, reads: Sequence[int], position: int) -> int:
    """Return how many reads in a row are a whole run of a Functional model.

    None, if its weights are read elsewhere too: then its layers are called one
    by one, and its graph is not what runs.
    """
    own = {id(weight) for weight in model.layer.weights}
    inside = [variable in own for variable in reads]
    size = sum(inside)
    return size if all(inside[position : position + size]) else 0
