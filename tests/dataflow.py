"""The data flow itself, to hold depths against: which weight feeds which.

Two ways that know nothing of how the depths were found: the edges of a model's
Functional graph (any backend), and the compiled program of its forward pass
(JAX), which sees into every layer.
"""

import itertools

import keras

NOTHING = frozenset()


def graph_edges(model):
    """Yield pairs of layers: the second reads what the first has made.

    Between layers that own weights, those without looked through, and nested
    Functional models entered. Layers that hide others and read or make several
    tensors are left to the program.
    """
    edges = set()
    _outputs(model, [NOTHING for _ in model.inputs], edges)
    return edges


def _outputs(model, inputs, edges):
    graph = getattr(model, "_functional", None) or model
    known = dict(zip(map(id, graph.inputs), inputs, strict=True))

    def of(tensor):
        if id(tensor) not in known:
            operation, node_index, _ = tensor._keras_history
            node = operation._inbound_nodes[node_index]
            sources = [of(t) for t in node.input_tensors]
            for output, made in zip(
                node.outputs, _call(operation, node, sources), strict=True
            ):
                known[id(output)] = made
        return known[id(tensor)]

    def _call(operation, node, sources):
        union = NOTHING.union(*sources)
        if not getattr(operation, "weights", None):
            return [union] * len(node.outputs)
        if isinstance(operation, keras.Sequential | keras.Function):
            same = len(sources) == len(operation.inputs)
            results = _outputs(
                operation,
                sources if same else [union] * len(operation.inputs),
                edges,
            )
            same = len(results) == len(node.outputs)
            return (
                results
                if same
                else [NOTHING.union(*results)] * len(node.outputs)
            )
        # A layer that hides others may use one input before another, and make
        # one output before another.
        hides = bool(operation._layers)
        if len(sources) == 1 or not hides:
            edges.update((source, operation) for source in union)
        if hides and len(node.outputs) > 1:
            return [NOTHING] * len(node.outputs)
        return [frozenset({operation})] * len(node.outputs)

    return [of(tensor) for tensor in graph.outputs]


def program_edges(model, inputs):
    """Return pairs of indices into `model.variables` (JAX only).

    The second weight is used on what the first was last used on.
    """
    import jax

    trainable = model.trainable_variables
    others = model.non_trainable_variables

    def forward(trainable_values, other_values, values):
        return model.stateless_call(
            trainable_values, other_values, values, training=False
        )[0]

    program = jax.make_jaxpr(forward)(
        [v.value for v in trainable], [v.value for v in others], inputs
    ).jaxpr
    count = len(trainable) + len(others)
    # (Whether a value depends on the input, the weights it was last made of.)
    values = [
        (False, frozenset({i})) if i < count else (True, NOTHING)
        for i in range(len(program.invars))
    ]
    edges = set()
    _run(program, values, edges)
    return edges, [*trainable, *others]


def _run(program, values, edges):
    known = dict(zip(program.invars, values, strict=True))
    known.update(dict.fromkeys(program.constvars, (False, NOTHING)))

    def read(atom):
        return (False, NOTHING) if hasattr(atom, "val") else known[atom]

    for equation in program.eqns:
        read_values = [read(atom) for atom in equation.invars]
        inner = _inner(equation)
        if inner is not None and len(inner.invars) == len(read_values):
            results = _run(inner, read_values, edges)
        else:
            result = _use(read_values, edges)
            results = [result] * len(equation.outvars)
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in program.outvars]


def _inner(equation):
    """Return the program of a call, which runs once and as it stands."""
    if equation.primitive.name in ("cond", "scan", "while"):
        return None
    for value in equation.params.values():
        program = getattr(value, "jaxpr", value)
        if hasattr(program, "eqns"):
            return program
    return None


def _use(values, edges):
    weights = NOTHING.union(*(w for is_data, w in values if not is_data))
    if not any(is_data for is_data, _ in values):
        return (False, weights)
    before = NOTHING.union(*(w for is_data, w in values if is_data))
    edges.update(itertools.product(before, weights))
    return (True, weights or before)
