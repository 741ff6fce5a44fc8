"""Symbolic arguments of known shapes to call a model with."""

import inspect
import itertools
import math
from collections.abc import Iterator
from typing import Any

import keras

from keras_dualopt.depth import keras_hooks as hooks

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

# Tried in turn for the lengths that a model leaves open. Small ones first:
# torch may have to compute. Tables of positions may be shorter than a first
# guess, images and sound too short for the last convolution.
_OPEN_LENGTHS = (8, 32, 4, 2, 1, 64, 224, 2048)


def arguments_to_try(model: keras.Model) -> Iterator[Arguments]:
    """Yield arguments for a model's call, the likeliest first."""
    for given in _open_arguments(model):
        shapes = [
            getattr(leaf, "shape", ()) for leaf in keras.tree.flatten(given)
        ]
        is_open = any(None in shape[1:] for shape in shapes)
        for length in _OPEN_LENGTHS if is_open else _OPEN_LENGTHS[:1]:
            yield keras.tree.map_structure(
                lambda leaf, length=length: _closed(leaf, length), given
            )


def _closed(leaf: Any, length: int) -> Any:
    """Return a symbolic tensor of the same kind whose shape is known."""
    if not isinstance(leaf, keras.KerasTensor):
        return leaf
    batch, *rest = leaf.shape
    shape = [_batch_size() if batch is None else batch]
    shape += [length if size is None else size for size in rest]
    return keras.KerasTensor(shape, dtype=leaf.dtype)


def _batch_size() -> int:
    """Return a batch size that suits layers, and devices that share a batch."""
    distribution = keras.distribution.distribution()
    mesh = getattr(distribution, "device_mesh", None)
    # A batch of one is a special case to some layers.
    return 2 * math.prod(mesh.shape if mesh is not None else ())


def _open_arguments(model: keras.Model) -> Iterator[Arguments]:
    """Yield arguments for a model's call, their open lengths open."""
    graph = model if isinstance(model, keras.Function) else None
    graph = hooks.graph_of(model) or graph
    if graph is not None:
        yield (graph.input,), {}
        return
    config = model.get_build_config() or {}
    # Keras records shapes, not types: token ids are told by trial.
    for dtype in ("float32", "int32"):
        if "input_shape" in config:
            first = config["input_shape"]
            for others in _shapes_of_others(model, first):
                yield tuple(_symbolic(s, dtype) for s in (first, *others)), {}
        elif config.get("shapes_dict"):
            yield (
                (),
                {
                    name.removesuffix("_shape"): _symbolic(shape, dtype)
                    for name, shape in config["shapes_dict"].items()
                },
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
