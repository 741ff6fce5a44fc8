"""Everything of Keras' layers and graphs that Keras does not document.

Read, and while a model is called on symbolic tensors replaced: in this thread
alone, and put back. Tried with Keras 3.13 to 3.15 on all three backends. Where
a public name can do the job, the other files use it (`keras.Function`,
`keras.Operation`, `keras.tree`).
"""

import contextlib
import functools
import itertools
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras.layers import Layer

# A model's own bookkeeping: it holds layers without owning them. `_self_…` is
# TensorFlow's own list of everything that is tracked.
_BOOKKEEPING = re.compile(
    "_(functional|inbound_nodes|layers|metrics|modules|nodes|nodes_by_depth|"
    "non_trainable_variables|operations|operations_by_depth|outbound_nodes|"
    "seed_generators|tracker|trainable_variables|self_.*)"
)


def own_variables(layer: Layer) -> list[keras.Variable]:
    """Return the weights that a layer holds itself, not through a sublayer."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def identity(variable: Any) -> int:
    """Return what a variable of Keras and the backend's own share.

    A loop on TensorFlow or torch may hand over the backend's variables.
    """
    value = getattr(variable, "_value", None)
    # A variable that Keras has not initialized yet has no value.
    return id(variable if value is None else value)


def tracked_layers(layer: Layer) -> list[Layer]:
    """Return the sublayers that Keras has seen assigned to a layer."""
    return [*layer._layers]


def nested_models(model: keras.Model) -> list[keras.Model]:
    """Return the models that are layers of a model, at any depth."""
    layers = model._flatten_layers(include_self=False)
    return [layer for layer in layers if isinstance(layer, keras.Model)]


def with_lora(model: keras.Model) -> list[Layer]:
    """Return the layers of a model that have LoRA, at any depth."""
    layers = model._flatten_layers()
    return [layer for layer in layers if getattr(layer, "lora_enabled", False)]


def attributes(layer: Layer) -> Iterator[tuple[str, Any]]:
    """Yield a layer's attributes by name, bookkeeping left out.

    Sorted, because the order of assignment is not the same on every backend:
    torch keeps layers in `_modules`, apart from the other attributes.
    """
    own = vars(layer)
    merged = {**own, **(own.get("_modules") or {})}
    for name in sorted(merged):
        if not _BOOKKEEPING.fullmatch(name):
            yield name, merged[name]


def graph_of(layer: Any) -> Any:
    """Return the Functional graph that calling a layer runs, or `None`."""
    kinds = type(layer).__mro__
    runs = next((kind for kind in kinds if "call" in vars(kind)), object)
    if not isinstance(layer, keras.Model) or package(runs) != "keras":
        return None
    if isinstance(layer, keras.Sequential):
        return getattr(layer, "_functional", None)
    return layer if isinstance(layer, keras.Function) else None


def producer(tensor: Any) -> Any:
    """Return the node (the call of a layer) that made a symbolic tensor."""
    history = getattr(tensor, "_keras_history", None)
    if history is None or history.operation is None:
        return None
    return history.operation._inbound_nodes[history.node_index]


def package(kind: Any) -> str:
    """Return the package of a class or a function, such as "keras_hub"."""
    return str(kind.__module__).partition(".")[0]


def fresh(values: Any) -> Any:
    """Return values with a new symbolic tensor for every tensor in them."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, keras.Variable) or not (
            isinstance(leaf, keras.KerasTensor) or keras.ops.is_tensor(leaf)
        ):
            return leaf
        dtype = keras.backend.standardize_dtype(leaf.dtype)
        return keras.KerasTensor(tuple(leaf.shape), dtype)

    return keras.tree.map_structure(one, values)


def outputs_of(operation: Any, args: Any, kwargs: Any) -> Any:
    """Return symbolic outputs of a call on symbolic tensors.

    What a layer says of the shape of its output is wrong in some packages:
    the calls of layers that are not Keras' own are asked first.
    """

    def traced(*args: Any, **kwargs: Any) -> Any:
        return run_abstractly(operation.call, args, kwargs)

    ways = [operation.compute_output_spec]
    if package(type(operation)) != "keras":
        ways = [operation.call, traced, *ways]
    elif not isinstance(operation, Layer):
        # An index that is a tensor has no shape by Keras' own rule.
        ways = [*ways, traced]
    for way in ways[:-1]:
        with contextlib.suppress(Exception):
            outputs = way(*args, **kwargs)
            leaves = keras.tree.flatten(outputs)
            if not any(None in getattr(t, "shape", ()) for t in leaves):
                return outputs
    return ways[-1](*args, **kwargs)


def run_abstractly(function: Any, args: Any, kwargs: Any) -> Any:
    """Run a function on the backend's abstract tensors, assigning nothing.

    Keras would make tensors of numbers in containers, which may be sizes: only
    symbolic tensors are handed over. Torch, where its meta device fails, runs
    the function again on real ones.
    """
    leaves = keras.tree.flatten((args, kwargs))
    symbolic = [leaf for leaf in leaves if isinstance(leaf, keras.KerasTensor)]

    def run(*tensors: Any) -> Any:
        made = dict(zip(map(id, symbolic), tensors, strict=True))
        a, k = keras.tree.map_structure(
            lambda leaf: made.get(id(leaf), leaf), (args, kwargs)
        )
        return function(*a, **k)

    probe = keras.Operation(name="dualopt_probe")
    probe.call = run
    return probe.compute_output_spec(*symbolic)


def calls_inside(
    function: Any, args: Any, kwargs: Any
) -> tuple[list[Any], Any]:
    """Return what a function calls and reads itself, and its outputs.

    A weight is named by its id, a layer with symbolic tensors for the arguments
    of its call, where it is first used.
    """
    found: dict[int, Any] = {}
    inside: list[Layer] = []

    def read(variable: keras.Variable) -> None:
        if not inside:
            found.setdefault(id(variable), id(variable))

    def called(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        if not inside and self.weights and id(self) not in found:
            found[id(self)] = (self, *fresh((args, kwargs)))
        inside.append(self)
        try:
            return original(self, *args, **kwargs)
        finally:
            inside.pop()

    def run(*args: Any, **kwargs: Any) -> Any:
        found.clear()
        inside.clear()
        return function(*args, **kwargs)

    with contextlib.ExitStack() as stack:
        _note_reads(stack, read)
        _replaced(stack, Layer, "__call__", called)
        outputs = run_abstractly(run, args, kwargs)
    return [*found.values()], outputs


@contextlib.contextmanager
def symbolic_calls(
    call: Callable[[Any, Any, Any], Any],
    either: Callable[[Any, Any, Any], Any],
    read: Callable[[keras.Variable], None],
) -> Iterator[contextlib.ExitStack]:
    """Hand over every call on symbolic tensors, and every weight read.

    A condition takes both branches, and `either` returns one's outputs. Yields
    the stack that ends it all.
    """

    def symbolic_call(
        original: Any, self: Any, *args: Any, **kwargs: Any
    ) -> Any:
        return call(self, args, kwargs)

    def arithmetic(original: Any, self: Any, other: Any) -> Any:
        # Left to the symbolic tensor, which has the mirrored operator.
        symbolic = isinstance(other, keras.KerasTensor)
        return NotImplemented if symbolic else original(self, other)

    def branches(
        original: Any, self: Any, condition: Any, *functions: Any
    ) -> Any:
        return either(condition, *(function() for function in functions))

    layers = sys.modules[Layer.__module__]
    conditions = vars(sys.modules[keras.ops.cond.__module__])["Cond"]
    symbolic = vars(keras.KerasTensor)
    with contextlib.ExitStack() as stack:
        _note_reads(stack, read)
        replace = functools.partial(_replaced, stack)
        replace(keras.Operation, "symbolic_call", symbolic_call)
        # JAX would trace both branches, and torch run one.
        replace(conditions, "__call__", branches)
        if "symbolic_call" in vars(Layer):
            replace(Layer, "symbolic_call", symbolic_call)
        # The graph of a Functional model keeps every call: not of these.
        if hasattr(layers, "Node"):
            replace(layers, "Node", lambda original, *args, **kwargs: None)
        for kind in keras.Variable.__mro__[:-1]:
            for name in _ARITHMETIC & vars(kind).keys():
                replace(kind, name, arithmetic)
        # JAX asks it before it lets the symbolic tensor's operators try.
        if "__jax_array__" in symbolic:
            asked = symbolic["__jax_array__"]
            stack.callback(setattr, keras.KerasTensor, "__jax_array__", asked)
            del keras.KerasTensor.__jax_array__
        stack.enter_context(keras.StatelessScope())
        yield stack


def hand_over_refusing(
    stack: contextlib.ExitStack,
    error: Exception,
    layer: Layer,
    take: Callable[..., Any],
) -> bool:
    """Hand over the function that has raised an error in a layer's call.

    Such a function leaves `keras.ops` for the backend, and takes no symbolic
    tensors. It is replaced where its module, its caller's and the layer hold
    it, until the stack ends; not so a method, or a function inside of another.
    Returns whether there is one.
    """
    libraries = ("keras", "keras_dualopt", keras.backend.backend())
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for caller, frame in reversed([*itertools.pairwise(frames)]):
        module, user = (
            sys.modules.get(one.f_globals.get("__name__", ""))
            for one in (frame, caller)
        )
        function = vars(module).get(frame.f_code.co_name) if module else None
        # It may have been replaced before, for another layer.
        function = getattr(function, "__wrapped__", function)
        if (
            getattr(function, "__code__", None) is not frame.f_code
            or package(function) in libraries
        ):
            continue
        found = [
            (owner, name)
            for owner in {module, user, layer}
            for name, value in getattr(owner, "__dict__", {}).items()
            if value is function
        ]
        for owner, name in found:
            _replaced(stack, owner, name, take)
        if found:
            return True
    return False


@contextlib.contextmanager
def left_as_it_was(model: keras.Model) -> Iterator[None]:
    """Leave a model's layers as they were, whatever is called meanwhile.

    Calling a model empties its losses, and builds what is not built: a layer
    without weights is unbuilt again, one with weights refuses.
    """
    layers: dict[int, Layer] = {}
    queue = [model]
    while queue:
        layer = queue.pop()
        if id(layer) not in layers:
            layers[id(layer)] = layer
            queue.extend(tracked_layers(layer))
    unbuilt = [layer for layer in layers.values() if not layer.built]
    losses = [
        (layer, [*layer._losses], {*layer._loss_ids})
        for layer in layers.values()
        if layer._losses
    ]

    def add_weight(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(f"the layer {self.name!r} is not built yet")

    thread = threading.get_ident()
    original = keras.Operation.__init__

    # Keras reads the signature of an `__init__`.
    def named(self: Any, name: str | None = None) -> None:
        # An automatic name would advance those of the user's next layers.
        inside = threading.get_ident() == thread
        original(self, name or "traced" if inside else name)

    try:
        with contextlib.ExitStack() as stack, warnings.catch_warnings():
            # Of the layers, about a call that is not one: and where warnings
            # are errors, they would end the trace.
            warnings.simplefilter("ignore")
            replace = functools.partial(_replaced, stack, Layer)
            replace("add_weight", add_weight)
            replace("add_loss", lambda original, self, loss: None)
            stack.callback(setattr, keras.Operation, "__init__", original)
            keras.Operation.__init__ = named
            yield
    finally:
        for layer in unbuilt:
            layer.built = False
        for layer, kept, ids in losses:
            layer._losses[:] = kept
            layer._loss_ids.update(ids)


_ARITHMETIC = {
    f"__{side}{name}__"
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
    for side in ("", "r")
} | {"__matmul__", "__rmatmul__"}


def _note_reads(
    stack: contextlib.ExitStack, read: Callable[[keras.Variable], None]
) -> None:
    """Hand over every variable whose value is asked for in a scope."""

    def value(original: Any, scope: Any, variable: keras.Variable) -> Any:
        read(variable)
        return original(scope, variable)

    # Every backend's `Variable.value` asks the innermost scope first.
    _replaced(stack, keras.StatelessScope, "get_current_value", value)


def _replaced(
    stack: contextlib.ExitStack, owner: Any, name: str, function: Any
) -> None:
    """Replace a function in this thread, until the stack ends.

    The function in its place gets the original and the call's arguments.
    """
    original = vars(owner)[name]
    thread = threading.get_ident()

    @functools.wraps(original)
    def replacement(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == thread:
            return function(original, *args, **kwargs)
        return original(*args, **kwargs)

    stack.callback(setattr, owner, name, original)
    setattr(owner, name, replacement)
