"""The order in which a call reads its weights, found without computing.

A model or a layer is called on symbolic tensors while a scope notes every
variable that is read. Nothing is assigned, and nothing is drawn at random:
training after it is the same bit for bit.
"""

import dataclasses
import inspect
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import keras

from keras_dualopt.depth import keras_hooks as hooks

# Tried in turn for the lengths that a model leaves open: of sequences, and of
# the sides of images. Small ones first: torch may have to compute. Tables of
# positions may be shorter than a first guess, images and sound too short for
# the last convolution.
_OPEN_LENGTHS = ((8, 32), (4, 64), (2, 128), (1, 256), (16, 224), (2048, 512))


def _batch_size() -> int:
    """Return a batch size that suits layers, and devices that share a batch."""
    distribution = keras.distribution.distribution()
    mesh = getattr(distribution, "device_mesh", None)
    # A batch of one is a special case to some layers.
    return 2 * math.prod(mesh.shape if mesh is not None else ())


@dataclasses.dataclass(frozen=True)
class Reads:
    """What a call reads.

    Args:
        variables: The ids of the variables, in order of first use.
        complete: Whether the call came to its end.
        refused: Whether computing for real, on torch, might come further.
    """

    variables: list[int]
    complete: bool
    refused: bool = False

    def known_for(self, own: Collection[int]) -> bool:
        """Tell whether the order of these variables is known.

        A call that failed further on has made all the calls before.
        """
        if self.complete:
            return True
        return any(v in own for v in self.variables) and (
            self.variables[-1] not in own
        )


def reads_of_model(model: keras.Model, compute: bool = False) -> Reads:
    """Return what a model reads when it is called.

    Args:
        model: The model.
        compute: As in `reads_of_call`.
    """
    best = Reads([], False)
    for args, kwargs in _symbolic_inputs(model):
        reads = reads_of_call(model, args, kwargs, compute)
        if reads.complete:
            return reads
        best = max(best, reads, key=lambda r: len(r.variables))
    return best


def reads_of_call(
    layer: keras.layers.Layer,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    compute: bool = True,
) -> Reads:
    """Return what one call of a layer reads.

    Args:
        layer: The layer.
        args: Its arguments, symbolic tensors among them.
        kwargs: Its keyword arguments.
        compute: Whether the call may be made on real tensors where torch has
            no symbolic form of an operation, as Keras itself does.
    """
    if "training" in inspect.signature(layer.call).parameters:
        kwargs = {**kwargs, "training": False}
    tensors = _tensors((args, kwargs))
    best = Reads([], False)
    if not tensors:
        return best
    tried: set[tuple[tuple[int, ...], ...]] = set()
    for sequence, side in (*_OPEN_LENGTHS, *_position_lengths(layer)):
        closed = [_closed(tensor, sequence, side) for tensor in tensors]
        shapes = tuple(tuple(tensor.shape) for tensor in closed)
        if shapes in tried:
            continue
        tried.add(shapes)
        call = _Call(layer, args, kwargs, tensors, 2 if compute else 1)
        try:
            hooks.trace(call, closed)
        except Exception:
            # Layers raise what they like when a length does not suit them.
            reads = Reads([*call.seen], False, call.refused)
            best = max(best, reads, key=lambda r: len(r.variables))
            continue
        return Reads([*call.seen], True)
    return best


def _position_lengths(
    layer: keras.layers.Layer,
) -> Iterator[tuple[int, int]]:
    """Yield the lengths of a layer's tables of positions.

    Some models take only sequences that are exactly as long.
    """
    for weight in layer.weights:
        if "position" in weight.path and len(weight.shape) > 1:
            yield weight.shape[-2], 64


class _Call:
    """A function of tensors alone that makes a call and notes its reads.

    Args:
        layer: The layer to call.
        args: Its arguments.
        kwargs: Its keyword arguments.
        tensors: The symbolic tensors among them.
        tries: How often it may be called: torch calls what failed on its meta
            device again on the real one, which computes.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: Sequence[Any],
        tries: int,
    ) -> None:
        self.seen: dict[int, None] = {}
        self.refused = False
        self._layer = layer
        self._arguments = args, kwargs
        self._tensors = tensors
        self._tries = tries

    def __call__(self, *values: Any) -> Any:
        if not self._tries:
            self.refused = True
            raise RuntimeError("not on real tensors")
        self._tries -= 1
        self.seen.clear()
        made = {id(t): v for t, v in zip(self._tensors, values, strict=True)}

        def fill(argument: Any) -> Any:
            return made.get(id(argument), argument)

        args, kwargs = keras.tree.map_structure(fill, self._arguments)
        with hooks.recording_scope(self.seen):
            self._layer(*args, **kwargs)
        return values[0]


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


def _tensors(arguments: Any) -> list[Any]:
    unique = {
        id(leaf): leaf
        for leaf in keras.tree.flatten(arguments)
        if isinstance(leaf, keras.KerasTensor)
    }
    return list(unique.values())


def _symbolic_inputs(
    model: keras.Model,
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return arguments to try a model's call with."""
    if hooks.graph_of(model) is not None or isinstance(model, keras.Function):
        inputs = model.input if isinstance(model, keras.Function) else None
        return [((model.inputs[0] if inputs is None else inputs,), {})]
    # Keras records shapes, not types: token ids are told by trial.
    config = model.get_build_config() or {}
    if "input_shape" in config:
        shape = config["input_shape"]
        return [((_symbolic(shape, t),), {}) for t in ("float32", "int32")]
    if "shapes_dict" in config:
        return [
            (
                (),
                {
                    name.removesuffix("_shape"): _symbolic(shape, dtype)
                    for name, shape in config["shapes_dict"].items()
                },
            )
            for dtype in ("float32", "int32")
        ]
    return []


def _symbolic(shape: Any, dtype: str) -> Any:
    if shape is None:
        return None
    if isinstance(shape, dict):
        return {name: _symbolic(inner, dtype) for name, inner in shape.items()}
    if all(length is None or isinstance(length, int) for length in shape):
        return keras.KerasTensor(tuple(shape), dtype=dtype)
    return [_symbolic(inner, dtype) for inner in shape]
