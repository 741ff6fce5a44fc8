"""Depths of random models, held against the plan they were made from.

A plan is a tree of layers, chains and branches. It says what feeds what, and
the depths that follow; the model is made from it with parts put at random into
Functional models, Sequentials, subclassed models and opaque layers, which must
not change any depth, on any backend. `DUALOPT_RANDOM_MODELS=500` tries more.
"""

import os
import random

import dataflow
import keras
import numpy as np
import pytest
from keras import layers

from keras_dualopt.depth import layer_depth

COUNT = int(os.environ.get("DUALOPT_RANDOM_MODELS", "60"))
PART = 6


class Plan:
    """A random tree: ("layer", name), ("chain" or "branch", parts, holder)."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.names = []
        self.tree = ("chain", [self.part(3) for _ in range(2)], "inline")
        self.tree[1].append(self.layer())

    def layer(self):
        # Now and then one that was used before.
        if self.names and self.random.random() < 0.1:
            return ("layer", self.random.choice(self.names))
        self.names.append(f"d{len(self.names)}")
        return ("layer", self.names[-1])

    def part(self, levels):
        if not levels or self.random.random() < 0.2:
            return self.layer()
        kind = self.random.choice(["chain", "chain", "branch"])
        parts = [
            self.part(levels - 1) for _ in range(self.random.choice([1, 2, 3]))
        ]
        holder = self.random.choice(list(HOLDERS))
        return (kind, parts, holder)

    def depths(self):
        """Return the depth of each layer: longest ways in and out."""
        calls = []  # (name, calls before)

        def run(node, before):
            if node[0] == "layer":
                calls.append((node[1], before))
                return {len(calls) - 1}
            if node[0] == "chain":
                for part in node[1]:
                    before = run(part, before)
                return before
            return set().union(*(run(part, before) for part in node[1]))

        run(self.tree, set())
        return depths_of(calls)


def depths_of(calls):
    """Return the depth of each layer from its calls: a name, and those before.

    By the longest ways in and out, of all calls of a layer the widest.
    """
    into = [0] * len(calls)
    out = [0] * len(calls)
    for i, (_, before) in enumerate(calls):
        into[i] = max((into[b] + 1 for b in before), default=0)
    for i, (_, before) in reversed([*enumerate(calls)]):
        for b in before:
            out[b] = max(out[b], out[i] + 1)
    shared = {}
    for i, (name, _) in enumerate(calls):
        first, last = shared.get(name, (into[i], out[i]))
        shared[name] = min(first, into[i]), max(last, out[i])
    ratio = {n: a and a / (a + b) for n, (a, b) in shared.items()}
    low, high = min(ratio.values()), max(ratio.values())
    return {n: (r - low) / ((high - low) or 1) for n, r in ratio.items()}


def calls_in_the_program(model, dense):
    """Return the calls of layers that JAX's program of a model shows."""
    uses, variables = dataflow.uses(model, np.ones((2, 4), "float32"))
    names = {
        id(weight): name
        for name, layer in dense.items()
        for weight in layer.weights
    }
    numbers, calls = {}, []
    for (weight, call), earlier in uses:
        name = names[id(variables[weight])]
        if call not in numbers:
            numbers[call] = len(calls)
            calls.append((name, set()))
        before = {numbers[other] for _, other in earlier}
        calls[numbers[call]][1].update(before - {numbers[call]})
    return calls


def run(node, made, inputs):
    """Call what a node of a plan stands for."""
    if node[0] == "layer":
        return made[node[1]](inputs)
    if id(node) in made:
        return made[id(node)](inputs)
    return inside(node, made, inputs)


def inside(node, made, inputs):
    if node[0] == "chain":
        for part in node[1]:
            inputs = run(part, made, inputs)
        return inputs
    # Not added up: a shortcut has a rule of its own.
    outputs = [run(part, made, inputs) for part in node[1]]
    result = outputs[0]
    for other in outputs[1:]:
        result = keras.ops.maximum(result, other)
    return result


def parts_of(node, made):
    if node[0] == "layer":
        return [made[node[1]]]
    if id(node) in made:
        return [made[id(node)]]
    return [layer for part in node[1] for layer in parts_of(part, made)]


class Held:
    def __init__(self, node, made, **options):
        super().__init__(**options)
        # Tracked in another order than they are called in.
        for i, layer in enumerate(
            reversed([p for part in node[1] for p in parts_of(part, made)])
        ):
            setattr(self, f"part_{i}", layer)
        self.inside = lambda inputs: inside(node, made, inputs)

    def call(self, inputs):
        return self.inside(inputs)


class HeldLayer(Held, layers.Layer):
    def build(self, shape):
        self.built = True

    def compute_output_shape(self, shape):
        return shape


class HeldModel(Held, keras.Model):
    pass


def functional(node, made):
    inputs = layers.Input((4,))
    return keras.Model(inputs, inside(node, made, inputs))


def sequential(node, made):
    if node[0] == "branch":
        return functional(node, made)
    return keras.Sequential(
        [layer for part in node[1] for layer in parts_of(part, made)]
    )


HOLDERS = {
    "inline": None,
    "functional": functional,
    "sequential": sequential,
    "layer": HeldLayer,
    "model": HeldModel,
}


def model_of(plan, whole):
    """Return a model of a plan, and the layers by name."""
    made = {
        name: layers.Dense(4, name=name, kernel_initializer="ones")
        for name in plan.names
    }
    dense = dict(made)
    for layer in dense.values():
        layer.build((None, 4))

    def has_branches(node):
        inline = [p for p in node[1] if p[0] != "layer" and id(p) not in made]
        return any(p[0] == "branch" or has_branches(p) for p in inline)

    def hold(node):
        if node[0] == "layer":
            return
        for part in node[1]:
            hold(part)
        holder = HOLDERS[node[2]]
        if node[2] == "sequential" and has_branches(node):
            # One that is inline is more than a layer.
            holder = functional
        if holder is not None:
            made[id(node)] = holder(node, made)

    hold(plan.tree)
    model = HOLDERS[whole](plan.tree, made)
    model(np.ones((2, 4), "float32"))
    return model, dense


def found_depths(model, dense):
    places = layer_depth(model, head=()).place(model, model.weights)
    by_weight = {
        id(weight): place.relative
        for weight, place in zip(model.weights, places, strict=True)
    }
    found = {}
    for name, layer in dense.items():
        kernel, bias = (by_weight[id(weight)] for weight in layer.weights)
        assert kernel == bias
        found[name] = kernel
    return found


@pytest.mark.parametrize("part", range(PART))
def test_depths_are_those_of_the_plan_whatever_holds_the_layers(part):
    for seed in range(part, COUNT, PART):
        plan = Plan(seed)
        whole = ("functional", "model")[seed // PART % 2]
        model, dense = model_of(plan, whole)
        found = found_depths(model, dense)
        assert found == pytest.approx(plan.depths(), abs=1e-12), seed
        if keras.backend.backend() == "jax":
            calls = calls_in_the_program(model, dense)
            assert found == pytest.approx(depths_of(calls), abs=1e-12), seed
