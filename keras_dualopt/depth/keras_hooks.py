"""Everything of Keras' layers and graphs that Keras does not document.

Read, and while a model is called on symbolic tensors replaced: in this thread
alone, and put back. Tried with Keras 3.13 to 3.15 on all three backends. Where
a public name can do the job, the other files use it (`keras.Function`,
`keras.Operation`, `keras.tree`).
"""

import contextlib
import functools
import inspect
import itertools
import sys
import threading
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
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


def package(kind: type | types.ModuleType) -> str:
    """Return the package of a class or module, such as "keras_hub"."""
    module = kind.__module__ if isinstance(kind, type) else kind.__name__
    return module.partition(".")[0]


def is_backend_tensor(value: Any) -> bool:
    """Tell a tensor of the backend, abstract or real; variables are none."""
    return keras.ops.is_tensor(value) and not isinstance(value, keras.Variable)


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
    elif not isinstance(operation, keras.layers.Layer):
        # An index that is a tensor has no shape by Keras' own rule.
        ways = [*ways, traced]
    for way in ways[:-1]:
        with contextlib.suppress(Exception):
            outputs = way(*args, **kwargs)
            leaves = keras.tree.flatten(outputs)
            if not any(None in getattr(t, "shape", ()) for t in leaves):
                return outputs
    return ways[-1](*args, **kwargs)


class _Probe(keras.Operation):
    """A function for Keras to trace: `compute_output_spec` runs it once."""

    def __init__(self, function: Any) -> None:
        super().__init__(name="dualopt_probe")
        self.call = function


def run_abstractly(function: Any, args: Any, kwargs: Any) -> Any:
    """Run a function on the backend's abstract tensors, assigning nothing.

    Keras makes tensors of numbers in containers, which may be sizes: only the
    symbolic tensors are handed over.
    """
    leaves = keras.tree.flatten((args, kwargs))
    symbolic = [leaf for leaf in leaves if isinstance(leaf, keras.KerasTensor)]

    def run(*tensors: Any) -> Any:
        made = dict(zip(map(id, symbolic), tensors, strict=True))
        a, k = keras.tree.map_structure(
            lambda leaf: made.get(id(leaf), leaf), (args, kwargs)
        )
        return function(*a, **k)

    return _Probe(run).compute_output_spec(*symbolic)


@contextlib.contextmanager
def symbolic_calls(
    call: Callable[[Any, Any, Any], Any],
    either: Callable[[Any, Any, Any], Any],
    read: Callable[[keras.Variable], None],
) -> Iterator[contextlib.ExitStack]:
    """Hand over every call on symbolic tensors, and every weight read.

    Yields the stack that ends it.

    Args:
        call: Gets an operation or a layer, the arguments and the keyword
            arguments of its call; returns symbolic outputs.
        either: Gets a condition and what its two branches have returned, as
            both are taken; returns one of the two.
        read: Gets each variable whose value is asked for.
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

    layers = sys.modules[keras.layers.Layer.__module__]
    conditions = vars(sys.modules[keras.ops.cond.__module__])["Cond"]
    symbolic = vars(keras.KerasTensor)
    with contextlib.ExitStack() as stack:
        _note_reads(stack, read)
        replace = functools.partial(_replaced, stack)
        replace(keras.Operation, "symbolic_call", symbolic_call)
        # JAX would trace both branches, and torch run one.
        replace(conditions, "__call__", branches)
        if "symbolic_call" in vars(keras.layers.Layer):
            replace(keras.layers.Layer, "symbolic_call", symbolic_call)
        # The graph of a Functional model keeps every call: not of these.
        if hasattr(layers, "Node"):
            replace(layers, "Node", lambda original, *args, **kwargs: None)
        for kind in keras.Variable.__mro__:
            for name in _ARITHMETIC & vars(kind).keys():
                if kind is not object:
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
    layer: keras.layers.Layer,
    take: Callable[..., Any],
) -> bool:
    """Hand over the function of a layer's package that raised an error.

    Such a function leaves `keras.ops` for the backend, and takes no symbolic
    tensors. Methods and functions inside of others are passed over: nobody
    else could call another in their place.

    Args:
        stack: What puts the original back.
        error: What its call in the layer's code has raised.
        layer: The layer.
        take: Gets the function and the arguments of each call from now on.

    Returns:
        Whether there is one.
    """
    libraries = ("keras", "keras_dualopt", keras.backend.backend())
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for caller, frame in reversed([*itertools.pairwise(frames)]):
        module = sys.modules.get(frame.f_globals.get("__name__", ""))
        if module is None or package(module) in libraries:
            continue
        code = frame.f_code
        function = inspect.unwrap(vars(module).get(code.co_name, max))
        if getattr(function, "__code__", None) is not code:
            continue
        users = {module, sys.modules.get(caller.f_globals.get("__name__", ""))}
        found = [
            (owner, name)
            for owner in (*users, layer)
            for name, value in getattr(owner, "__dict__", {}).items()
            if value is function
        ]
        for owner, name in found:
            _replaced(stack, owner, name, take)
        if found:
            return True
    return False


@contextlib.contextmanager
def real_calls(
    called: Callable[[Any, Any, Any, Any], Any],
    read: Callable[[keras.Variable], None],
) -> Iterator[None]:
    """Hand over every call of a layer, and every weight read.

    Args:
        called: Gets a layer, the arguments and keyword arguments of its call,
            and a function that makes the call.
        read: Gets each variable whose value is asked for.
    """

    def layer_call(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        proceed = functools.partial(original, self, *args, **kwargs)
        return called(self, args, kwargs, proceed)

    with contextlib.ExitStack() as stack:
        _note_reads(stack, read)
        _replaced(stack, keras.layers.Layer, "__call__", layer_call)
        yield


@contextlib.contextmanager
def left_as_it_was(model: keras.Model) -> Iterator[None]:
    """Leave a model's layers as they were, whatever is called meanwhile.

    Calling a model empties its losses, and builds what is not built: a layer
    without weights is unbuilt again, one with weights refuses.
    """
    layers: dict[int, keras.layers.Layer] = {}
    stack = [model]
    while stack:
        layer = stack.pop()
        if id(layer) not in layers:
            layers[id(layer)] = layer
            stack.extend(tracked_layers(layer))
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
        with contextlib.ExitStack() as stack_, warnings.catch_warnings():
            # Of the layers, about a call that is not one: and where warnings
            # are errors, they would end the trace.
            warnings.simplefilter("ignore")
            replace = functools.partial(_replaced, stack_, keras.layers.Layer)
            replace("add_weight", add_weight)
            replace("add_loss", lambda original, self, loss: None)
            stack_.callback(setattr, keras.Operation, "__init__", original)
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
    """Replace a function in this thread until the stack ends.

    Args:
        stack: What puts the original back.
        owner: The class or the module that has it.
        name: Its name.
        function: Gets the original and the arguments of the call.
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
