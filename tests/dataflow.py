"""The data flow itself, read from JAX's own program of a forward pass.

It knows nothing of how depths are found. Every value of a weight is marked
with the weight and with the call of a layer that reads it, and what a layer
returns is marked as data. A weight taints the data it is used on: it follows
what the data was tainted with before.
"""

import functools
import itertools
from unittest import mock

import keras

NOTHING = frozenset()


@functools.cache
def marker():
    """Return an operation that does nothing and is seen in the program."""
    from jax.extend.core import Primitive
    from jax.interpreters import batching

    mark = Primitive("mark")
    mark.def_impl(lambda value, node: value)
    mark.def_abstract_eval(lambda value, node: value)
    batching.primitive_batchers[mark] = lambda values, axes, node: (
        mark.bind(*values, node=node),
        axes[0],
    )
    return mark


def uses(model, inputs):
    """Return every use of a weight, and the uses that it follows.

    A use is a pair: the index of the weight in `variables`, and the number of
    the call in which it is read. Each comes after those it follows.

    Args:
        model: A built model.
        inputs: What to call it with: arrays, or their shapes.

    Returns:
        A list of (use, uses before it), and the model's variables.
    """
    import jax

    parts = [model.trainable_variables, model.non_trainable_variables]
    variables = [*itertools.chain(*parts)]
    index = {id(variable): i for i, variable in enumerate(variables)}
    numbers, running = itertools.count(), []
    layer_call = keras.layers.Layer.__call__
    value_in = keras.StatelessScope.get_current_value

    def data(value):
        if not isinstance(value, jax.Array):
            return value
        marked = marker().bind(value, node=None)
        if getattr(value, "_keras_mask", None) is not None:
            marked._keras_mask = value._keras_mask
        return marked

    def call(layer, *args, **kwargs):
        running.append(next(numbers))
        try:
            outputs = layer_call(layer, *args, **kwargs)
        finally:
            running.pop()
        return keras.tree.map_structure(data, outputs)

    def read(scope, variable):
        value = value_in(scope, variable)
        if value is None or not running or id(variable) not in index:
            return value
        return marker().bind(value, node=(index[id(variable)], running[-1]))

    def forward(trainable, others, inputs):
        return model.stateless_call(trainable, others, inputs)

    with (
        mock.patch.object(keras.layers.Layer, "__call__", call),
        mock.patch.object(keras.StatelessScope, "get_current_value", read),
    ):
        program = jax.make_jaxpr(forward)(
            *([v.value for v in part] for part in parts), inputs
        ).jaxpr
    # Whether a value depends on the input, and the last uses it is made of.
    values = [
        (i >= len(variables), NOTHING) for i in range(len(program.invars))
    ]
    found = []
    _run(program, values, found)
    return found, variables


def _run(program, values, found):
    known = dict(zip(program.invars, values, strict=True))
    known.update(dict.fromkeys(program.constvars, (False, NOTHING)))

    def read(atom):
        return (False, NOTHING) if hasattr(atom, "val") else known[atom]

    for equation in program.eqns:
        values = [read(atom) for atom in equation.invars]
        inner, first = _inside(equation)
        if equation.primitive is marker():
            node = equation.params["node"]
            nodes = values[0][1] if node is None else frozenset({node})
            results = [(node is None, nodes)]
        elif inner and all(len(p.invars) == len(values) - first for p in inner):
            ways = [_run(p, values[first:], found) for p in inner]
            results = [_joined(outputs) for outputs in zip(*ways, strict=True)]
        else:
            results = [_used(values, found)] * len(equation.outvars)
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in program.outvars]


def _inside(equation):
    """Return the programs that an equation runs, and their first input.

    A loop's once: what a second round uses has been used in the first.
    """
    params = equation.params
    if equation.primitive.name == "cond":
        return [branch.jaxpr for branch in params["branches"]], 1
    if equation.primitive.name == "while":
        return [params["body_jaxpr"].jaxpr], params["cond_nconsts"]
    programs = [getattr(value, "jaxpr", value) for value in params.values()]
    return [p for p in programs if hasattr(p, "eqns")][:1], 0


def _joined(values):
    is_data = any(is_data for is_data, _ in values)
    return is_data, NOTHING.union(*(nodes for _, nodes in values))


def _used(values, found):
    is_data, weights = _joined([value for value in values if not value[0]])
    data = [value for value in values if value[0]]
    if not data:
        return is_data, weights
    _, before = _joined(data)
    found.extend((use, before) for use in weights)
    return True, weights or before
