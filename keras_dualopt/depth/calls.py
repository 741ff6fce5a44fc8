"""From a model to the graph of its layers' calls.

The model is called on symbolic tensors, and so is every layer that hides
others, down to layers that are one unit: what each call reads is then known,
parallel branches included, and nothing is computed. Code that refuses symbolic
tensors is run on the backend's own: its layers lie in the order in which it
calls them.
"""

import collections
import contextlib
import functools
import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import keras
from keras.layers import Layer

from keras_dualopt.caller import stacklevel
from keras_dualopt.depth import keras_hooks as hooks
from keras_dualopt.depth.arguments import arguments_to_try
from keras_dualopt.depth.graph import Graph, Sources
from keras_dualopt.depth.structure import Structure


def graph_of_calls(structure: Structure) -> Graph:
    """Return the graph of a model's layer calls, the least doubtful.

    A layer may take some lengths of sequences and images and refuse others.
    Layers that nothing reads are missing from it.
    """
    best, reason = None, "its inputs are not known"
    with hooks.left_as_it_was(structure.model):
        for args, kwargs in arguments_to_try(structure.model):
            calls = _Calls(structure)
            try:
                calls.add_model(args, kwargs)
            except Exception as error:
                # Layers raise what they like where a length does not suit.
                reason = _reason(error)
                continue
            if best is None or calls.doubt < best.doubt:
                best = calls
            if best.doubt == (0, 0):
                break
    if best is None:
        best = _Calls(structure)
        best.add_as_made(structure.model, (), reason)
    best.warn()
    return best.graph


class _Calls:
    """One symbolic call of a model.

    Args:
        structure: The model's structure; a weight that turns out to belong to
            a second call of its layer becomes a unit of its own in it.
    """

    def __init__(self, structure: Structure) -> None:
        self.graph = Graph()
        self._structure = structure
        # Where tensors come from. They are kept, so that no id comes back.
        self._sources: dict[int, tuple[Any, Sources]] = {}
        # Weights read since the last call; none where only shapes matter.
        self._reads: dict[int, None] = {}
        self._only_shapes = False
        # By layer and the kind of arguments: what a unit has read, and the
        # outputs and calls of a layer that hides others.
        self._read_by: dict[int, dict[str, tuple[Any, list[int]]]] = (
            collections.defaultdict(dict)
        )
        self._made_by: dict[int, list[Any]] = collections.defaultdict(list)
        # The layers whose order is a guess, and why.
        self._as_made: dict[str, str] = {}
        self._in_a_row: dict[str, str] = {}

    @property
    def doubt(self) -> tuple[int, int]:
        """How many layers lie as they were made, how many in a row."""
        return len(self._as_made), len(self._in_a_row)

    def add_model(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Add a call of the whole model."""
        model = self._structure.model
        if "training" in inspect.signature(model.call).parameters:
            kwargs = {**kwargs, "training": False}
        with hooks.symbolic_calls(
            self._call, self._either, self._note
        ) as self._stack:
            model(*args, **kwargs)

    def _note(self, variable: keras.Variable) -> None:
        if not self._only_shapes:
            self._reads.setdefault(id(variable))

    def _call(self, operation: Any, args: Any, kwargs: Any) -> Any:
        """Add a call of a layer or of an operation; return its outputs."""
        if self._only_shapes:
            return hooks.outputs_of(operation, args, kwargs)
        if not isinstance(operation, Layer):
            outputs = hooks.outputs_of(operation, args, kwargs)
            reads = [*self._reads, *_variables((args, kwargs))]
        elif self._is_one(operation):
            with self._shapes():
                outputs = hooks.outputs_of(operation, args, kwargs)
            own = self._reads_of(operation, args, kwargs)
            # What it hands out is read where it is used.
            later = _variables(outputs)
            reads = [*self._reads, *_variables((args, kwargs))]
            reads += [read for read in own if read not in later]
        else:
            return self._open(operation, args, kwargs)
        end = self._of(args, kwargs)
        if any(map(callable, keras.tree.flatten((args, kwargs)))):
            # A loop or a scan: in the order in which its function reads them.
            for read in reads:
                end = self._add([read], end)
        return self._made(outputs, self._add(reads, end, _adds(operation)))

    def _either(self, condition: Any, first: Any, second: Any) -> Any:
        """Return the outputs of the two branches of a condition as one."""
        if self._only_shapes:
            return first
        return self._made(first, self._of((condition, first, second)))

    # Layers that are one unit.

    def _is_one(self, layer: Layer) -> bool:
        """Tell a layer that is one unit from one that holds others."""
        units = [*self._structure.units_of(layer.weights)]
        if len(units) > 1 or isinstance(layer, keras.Model):
            return False
        if hooks.package(type(layer)) == "keras" or hooks.own_variables(layer):
            return True
        return layer in [self._structure.unit_roots[u].layer for u in units]

    def _reads_of(self, layer: Layer, args: Any, kwargs: Any) -> list[int]:
        """Return the weights that a call of a layer reads.

        A weight that is read by a second call alone is a unit of its own: the
        untied output weights of a reversible embedding lie where the output
        is made.
        """
        own = [id(weight) for weight in layer.weights]
        earlier = self._read_by[id(layer)]
        key = _kind((args, kwargs))
        if key not in earlier:
            earlier[key] = (args, kwargs), own
            if len(earlier) > 1 and len(own) > 1:
                *before, reads = [
                    self._traced_reads(layer, own, *call)
                    for call, _ in earlier.values()
                ]
                late = {*reads}.difference(*before)
                weights = self._structure.by_variable
                self._structure.split([weights[v] for v in own if v in late])
                earlier[key] = (args, kwargs), reads
        _, found = earlier[key]
        return found

    def _traced_reads(
        self, layer: Layer, own: list[int], args: Any, kwargs: Any
    ) -> list[int]:
        kept, self._reads = self._reads, {}
        try:
            hooks.run_abstractly(layer.call, args, kwargs)
            return [read for read in own if read in self._reads] or own
        except Exception:
            return own
        finally:
            self._reads = kept

    # Layers that hide others.

    def _open(self, layer: Layer, args: Any, kwargs: Any) -> Any:
        """Add what a layer calls, or its two first calls once more."""
        kind = _kind((args, kwargs))
        earlier = self._made_by[id(layer)]
        for known, outputs, calls in earlier[1:]:
            if known == kind:
                return self._again(outputs, calls, args, kwargs)
        start, reads = len(self.graph.calls), dict(self._reads)
        try:
            outputs = layer.call(*args, **kwargs)
        except Exception as error:
            self._forget(start, reads)
            take = functools.partial(self._function, layer, error)
            if hooks.hand_over_refusing(self._stack, error, layer, take):
                return self._open(layer, args, kwargs)
            if not self._structure.units_of(layer.weights):
                outputs = hooks.outputs_of(layer, args, kwargs)
                return self._made(outputs, self._of(args, kwargs))
            try:
                outputs = self._function(
                    layer, error, layer.call, *args, **kwargs
                )
            except Exception as refused:
                self._forget(start, reads)
                try:
                    outputs = layer.compute_output_spec(*args, **kwargs)
                except Exception:
                    if not hasattr(layer, "output"):
                        raise error from None
                    # As it was when a Functional model called it.
                    outputs = layer.output
                end = self._of(args, kwargs)
                end = self.add_as_made(layer, end, _reason(refused))
                outputs = self._made(outputs, end)
        earlier.append((kind, outputs, (start, len(self.graph.calls))))
        return outputs

    def _again(
        self, outputs: Any, calls: Sources, args: Any, kwargs: Any
    ) -> Any:
        """Add a call like an earlier one, in one: nested calls multiply."""
        inner = self.graph.calls[slice(*calls)]
        units = dict.fromkeys(unit for call in inner for unit in call.units)
        end = self.graph.add(units, self._of(args, kwargs), again=calls)
        return self._made(outputs, (end,))

    def _forget(self, start: int, reads: dict[int, None]) -> None:
        self._reads = dict(reads)
        self.graph.cut(start)
        for earlier in self._made_by.values():
            earlier[:] = [one for one in earlier if one[2][1] <= start]

    def _function(
        self,
        layer: Layer,
        why: Exception,
        function: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Add what code of a layer that refuses symbolic tensors calls.

        It is run on the backend's own tensors. What it calls and reads lies in
        a row, what is new in each.
        """
        leaves = keras.tree.flatten((args, kwargs))
        if not any(isinstance(leaf, keras.KerasTensor) for leaf in leaves):
            return function(*args, **kwargs)
        if self._only_shapes:
            return hooks.run_abstractly(function, args, kwargs)
        with self._shapes():
            inner, outputs = hooks.calls_inside(function, args, kwargs)
        weights = self._structure.by_variable
        end = self._of(args, kwargs)
        done: set[int] = set()
        count = 0
        for one in inner:
            if isinstance(one, int):
                units = {weights[one].unit} if one in weights else set()
            else:
                units = {*self._structure.units_of(one[0].weights)}
            if units <= done:
                continue
            done |= units
            count += 1
            if isinstance(one, int):
                end = self._add([one], end)
            else:
                a, k = self._made(one[1:], end)
                end = self._of((one[0](*a, **k),)) or end
        # Keras' own recurrent layers do call one cell after another.
        if count > 1 and hooks.package(type(layer)) != "keras":
            self._in_a_row[self._path(layer)] = _reason(why)
        return self._made(outputs, end)

    def add_as_made(self, layer: Layer, end: Sources, reason: str) -> Sources:
        """Add the layers of a layer in the order in which they were made."""
        self._as_made[self._path(layer)] = reason
        for unit in self._structure.units_of(layer.weights):
            end = (self.graph.add([unit], end),)
        return end

    # Tensors.

    def _add(
        self, reads: list[int], inputs: Sources, adds: bool = False
    ) -> Sources:
        """Add a call that reads some weights; return what it ends in."""
        weights = self._structure.by_variable
        units = dict.fromkeys(weights[v].unit for v in reads if v in weights)
        self._reads.clear()
        if not units and len(inputs) < 2:
            return inputs
        return (self.graph.add(units, inputs, adds),)

    def _of(self, args: Any, kwargs: Any = None) -> Sources:
        """Return where the tensors among some arguments come from."""
        return tuple(
            dict.fromkeys(
                source
                for leaf in keras.tree.flatten((args, kwargs))
                for source in self._sources.get(id(leaf), (None, ()))[1]
            )
        )

    def _made(self, outputs: Any, end: Sources) -> Any:
        """Return new symbolic tensors for outputs, and note their source.

        What a layer makes of its weights alone is a tensor of the backend, and
        what it hands on is its input.
        """
        outputs = hooks.fresh(outputs)
        for leaf in keras.tree.flatten(outputs):
            if isinstance(leaf, keras.KerasTensor):
                self._sources[id(leaf)] = leaf, end
        return outputs

    @contextlib.contextmanager
    def _shapes(self) -> Iterator[None]:
        """Take calls for shapes alone, as those inside of a unit."""
        self._only_shapes = True
        try:
            yield
        finally:
            self._only_shapes = False

    # What was not to be known.

    def _path(self, layer: Layer) -> str:
        owner = self._structure.owners.get(id(layer))
        name = layer.name if owner is None else owner.path
        return f"{name!r} ({type(layer).__name__})"

    def warn(self) -> None:
        """Say which layers' order is a guess, all in one warning."""
        if self._as_made:
            text = (
                f"The call of {_listed(self._as_made)} could not be traced. "
                "Its layers are taken in the order in which they were made. "
                "Where that is not the order in which they run, the depths "
                "are wrong, and the head that is found may be: give the "
                "optimizer `depth=`, or name the head (`head=` of "
                "`layer_depth` or `bind`)."
            )
        elif self._in_a_row:
            text = (
                f"The call of {_listed(self._in_a_row)} takes no symbolic "
                "tensors. Its layers are taken one after another, in the "
                "order in which it calls them. Where some run side by side, "
                "give the optimizer `depth=`, or write the call with "
                "`keras.ops`."
            )
        else:
            return
        warnings.warn(text, stacklevel=stacklevel())


def _variables(values: Any) -> list[int]:
    """Return the ids of the variables among some values."""
    leaves = keras.tree.flatten(values)
    return [id(leaf) for leaf in leaves if isinstance(leaf, keras.Variable)]


def _adds(operation: Any) -> bool:
    """Tell an addition: the layer of Keras or the operation."""
    return type(operation).__name__ == "Add"


def _listed(found: dict[str, str]) -> str:
    name, reason = next(iter(found.items()))
    more = f" and of {len(found) - 1} more" if len(found) > 1 else ""
    return f"{name}{more} ({reason})"


def _reason(error: Exception) -> str:
    """Return what a layer said, without what Keras wraps round it."""
    text = str(error).rpartition("Error encountered:\n\n")[2]
    text = text.replace("\x1b[1m", "").replace("\x1b[0m", "")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith("Exception enc")]
    first = (said or lines or [""])[0][:200]
    return f"{type(error).__name__}: {first}"


def _kind(arguments: Any) -> str:
    """Return what two calls that do the same have in common."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, keras.KerasTensor):
            return leaf.shape, leaf.dtype
        return leaf if isinstance(leaf, str | int | float) else id(leaf)

    return str(keras.tree.map_structure(one, arguments))
