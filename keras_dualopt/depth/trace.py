"""Arguments to call a model with, and what a layer's own code calls.

Nothing is assigned, and nothing is drawn at random: training after it is the
same bit for bit.
"""

import dataclasses
import inspect
import itertools
import math
from collections.abc import Iterator
from typing import Any

import keras

from keras_dualopt.depth import keras_hooks as hooks

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

# Tried in turn for the lengths that a model leaves open: of sequences, and of
# the sides of images. Small ones first: torch may have to compute. Tables of
# positions may be shorter than a first guess, images and sound too short for
# the last convolution.
_OPEN_LENGTHS = (
    (8, 32),
    (8, 8),
    (4, 64),
    (2, 128),
    (1, 256),
    (16, 224),
    (2048, 512),
)


@dataclasses.dataclass(frozen=True)
class Inner:
    """A call of a layer inside of another one's code, with its arguments."""

    layer: keras.layers.Layer
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def arguments_to_try(model: keras.Model) -> Iterator[Arguments]:
    """Yield symbolic arguments of known shapes, the likeliest first."""
    for given in _symbolic_inputs(model):
        tried: set[tuple[Any, ...]] = set()
        tensors = [*filter(_is_symbolic, keras.tree.flatten(given))]
        for sequence, side in _OPEN_LENGTHS:
            made = {id(t): _closed(t, sequence, side) for t in tensors}
            shapes = tuple(tensor.shape for tensor in made.values())
            if shapes not in tried:
                tried.add(shapes)
                yield keras.tree.map_structure(
                    lambda leaf, made=made: made.get(id(leaf), leaf), given
                )


def in_inference(
    layer: keras.layers.Layer, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Return keyword arguments that say that a layer is not being trained."""
    if "training" in inspect.signature(layer.call).parameters:
        return {**kwargs, "training": False}
    return kwargs


def inner_calls(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Inner | int], Any]:
    """Return what a function calls and reads itself, and its outputs.

    It runs on the backend's own abstract tensors, where torch has none
    on real ones. A layer or a weight (its id) is named where it is first used.
    """
    found: dict[int, Inner | int] = {}
    inside: list[keras.layers.Layer] = []

    def read(variable: keras.Variable) -> None:
        if not inside:
            found.setdefault(id(variable), id(variable))

    def called(inner: Any, args: Any, kwargs: Any, proceed: Any) -> Any:
        if not inside and inner.weights and id(inner) not in found:
            found[id(inner)] = Inner(inner, *fresh((args, kwargs)))
        inside.append(inner)
        try:
            return proceed()
        finally:
            inside.pop()

    def run(*args: Any, **kwargs: Any) -> Any:
        # Torch runs what failed on its meta device again on the real one.
        found.clear()
        inside.clear()
        return function(*args, **kwargs)

    with hooks.real_calls(called, read):
        outputs = hooks.run_abstractly(run, args, kwargs)
    return [*found.values()], outputs


def fresh(values: Any) -> Any:
    """Return values with a new symbolic tensor for every tensor in them."""

    def one(leaf: Any) -> Any:
        if not (_is_symbolic(leaf) or hooks.is_backend_tensor(leaf)):
            return leaf
        dtype = keras.backend.standardize_dtype(leaf.dtype)
        return keras.KerasTensor(tuple(leaf.shape), dtype)

    return keras.tree.map_structure(one, values)


def _is_symbolic(value: Any) -> bool:
    return isinstance(value, keras.KerasTensor)


def _closed(tensor: Any, sequence: int, side: int) -> keras.KerasTensor:
    """Return a symbolic tensor of the same kind whose shape is known."""
    batch, *rest = tensor.shape
    # The sides of an image are open together; what is open alone, or before
    # them, is a count or the length of a sequence.
    last = len(rest) - 1
    sides = {last - 1, last - 2} if last > 1 else set()
    if any(rest[i] is not None for i in sides):
        sides = set()
    shape = [_batch_size() if batch is None else batch]
    for position, size in enumerate(rest):
        open_size = side if position in sides else sequence
        shape.append(open_size if size is None else size)
    return keras.KerasTensor(shape, dtype=tensor.dtype)


def _batch_size() -> int:
    """Return a batch size that suits layers, and devices that share a batch."""
    distribution = keras.distribution.distribution()
    mesh = getattr(distribution, "device_mesh", None)
    # A batch of one is a special case to some layers.
    return 2 * math.prod(mesh.shape if mesh is not None else ())


def _symbolic_inputs(model: keras.Model) -> Iterator[Arguments]:
    """Yield arguments for a model's call, their open lengths open."""
    if hooks.graph_of(model) is not None or isinstance(model, keras.Function):
        inputs = model.input if isinstance(model, keras.Function) else None
        yield (model.inputs[0] if inputs is None else inputs,), {}
        return
    config = model.get_build_config() or {}
    shapes = config.get("shapes_dict", {})
    # Keras records shapes, not types: token ids are told by trial.
    for dtype in ("float32", "int32"):
        if "input_shape" in config:
            first = _symbolic(config["input_shape"], dtype)
            for others in _shapes_of_others(model, config["input_shape"]):
                yield (first, *(_symbolic(s, dtype) for s in others)), {}
        elif shapes:
            names = {name: name.removesuffix("_shape") for name in shapes}
            yield (
                (),
                {names[n]: _symbolic(s, dtype) for n, s in shapes.items()},
            )


def _shapes_of_others(model: keras.Model, first: Any) -> Iterator[Any]:
    """Yield shapes for the arguments of a call that Keras has not recorded.

    Of several positional tensors it records the first one's: the others have
    the shape of that one, or one that a layer of the model was built with.
    """
    required = [
        parameter
        for parameter in inspect.signature(model.call).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind == parameter.POSITIONAL_OR_KEYWORD
    ][1:]
    shapes = [first]
    for layer in hooks.tracked_layers(model):
        shape = (layer.get_build_config() or {}).get("input_shape")
        if shape and shape not in shapes:
            shapes.append(shape)
    yield from itertools.product(shapes[:8], repeat=min(len(required), 2))


def _symbolic(shape: Any, dtype: str) -> Any:
    if shape is None:
        return None
    if isinstance(shape, dict):
        return {name: _symbolic(inner, dtype) for name, inner in shape.items()}
    if all(length is None or isinstance(length, int) for length in shape):
        return keras.KerasTensor(tuple(shape), dtype=dtype)
    return [_symbolic(inner, dtype) for inner in shape]
