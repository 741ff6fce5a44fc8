"""Everything of Keras that this folder uses and Keras does not document.

Read, never written. Tried with Keras 3.13 to 3.15 on all three backends. Where
a public name can do the job, the other files use it (`keras.Function`,
`keras.Operation`, `keras.StatelessScope`, `keras.tree`).
"""

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import keras

# A model's own bookkeeping: it holds layers without owning them.
_BOOKKEEPING = frozenset(
    {
        "_functional",
        "_inbound_nodes",
        "_layers",
        "_metrics",
        "_modules",
        "_nodes",
        "_nodes_by_depth",
        "_non_trainable_variables",
        "_operations",
        "_operations_by_depth",
        "_outbound_nodes",
        "_seed_generators",
        "_tracker",
        "_trainable_variables",
    }
)


def own_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Return the weights that a layer holds itself, not through a sublayer."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def identity(variable: Any) -> int:
    """Return what a variable of Keras and the backend's own share.

    A loop on TensorFlow or torch may hand over the backend's variables.
    """
    value = getattr(variable, "_value", None)
    # A variable that Keras has not initialized yet has no value.
    return id(variable if value is None else value)


def tracked_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Return the sublayers that Keras has seen assigned to a layer."""
    return [*layer._layers]


def nested_models(model: keras.Model) -> list[keras.Model]:
    """Return the models that are layers of a model, at any depth."""
    layers = model._flatten_layers(include_self=False)
    return [layer for layer in layers if isinstance(layer, keras.Model)]


def attributes(layer: keras.layers.Layer) -> Iterator[tuple[str, Any]]:
    """Yield a layer's attributes by name, bookkeeping left out.

    Sorted, because the order of assignment is not the same on every backend:
    torch keeps layers in `_modules`, apart from the other attributes.
    """
    own = vars(layer)
    merged = {**own, **(own.get("_modules") or {})}
    for name in sorted(merged):
        # `_self_…` is TensorFlow's own list of everything that is tracked.
        if name not in _BOOKKEEPING and not name.startswith("_self_"):
            yield name, merged[name]


def is_graph(layer: Any) -> bool:
    """Tell whether a layer is a Functional model that runs its own graph."""
    return (
        isinstance(layer, keras.Model)
        and isinstance(layer, keras.Function)
        and _runs_as_keras_does(layer)
    )


def graph_of(layer: Any) -> Any:
    """Return the Functional graph that calling a layer runs, or `None`."""
    if is_graph(layer):
        return layer
    if isinstance(layer, keras.Sequential) and _runs_as_keras_does(layer):
        return getattr(layer, "_functional", None)
    return None


def _runs_as_keras_does(layer: Any) -> bool:
    for kind in type(layer).__mro__:
        if "call" in vars(kind):
            return kind.__module__.partition(".")[0] == "keras"
    return False


def producer(tensor: Any) -> Any:
    """Return the node (the call of a layer) that made a symbolic tensor."""
    history = getattr(tensor, "_keras_history", None)
    if history is None or history.operation is None:
        return None
    return history.operation._inbound_nodes[history.node_index]


def node_arguments(node: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call, symbolic tensors in their places."""
    return node.arguments.args, node.arguments.kwargs


def recording_scope(seen: dict[int, None]) -> Any:
    """Return a scope that notes, in order, which variables are read in it.

    Every backend's `Variable.value` asks the innermost `keras.StatelessScope`
    for a value before it uses its own.
    """

    class Recording(keras.StatelessScope):
        def get_current_value(self, variable: keras.Variable) -> Any:
            seen.setdefault(id(variable))
            return super().get_current_value(variable)

    return Recording()


class _Probe(keras.Operation):
    """A function for Keras to trace: `compute_output_spec` runs it once."""

    def __init__(self, function: Any) -> None:
        super().__init__(name="dualopt_probe")
        self._function = function

    def call(self, *tensors: Any) -> Any:
        return self._function(*tensors)


@contextlib.contextmanager
def losses_kept(layers: Iterable[keras.layers.Layer]) -> Iterator[None]:
    """Give layers their losses back: calling a model empties them."""
    kept = [
        (layer, [*layer._losses], {*layer._loss_ids})
        for layer in layers
        if layer._losses
    ]
    try:
        yield
    finally:
        for layer, losses, names in kept:
            layer._losses[:] = losses
            layer._loss_ids.update(names)


def trace(function: Any, tensors: list[Any]) -> None:
    """Run a function on symbolic tensors, leaving every variable as it is."""
    with warnings.catch_warnings():
        # Of the layers, about a call that is not one: and where warnings are
        # errors, they would end the trace.
        warnings.simplefilter("ignore")
        _Probe(function).compute_output_spec(*tensors)
