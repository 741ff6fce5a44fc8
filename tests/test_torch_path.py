"""PyTorch: which path an update takes, and that both give the same numbers.

The fused path moves what torch's kernels can take, the plain path the rest. A
test that compared numbers alone would not notice that all went one way.
"""

import itertools
import weakref

import keras
import numpy as np
import pytest
from cases import (
    BACKEND,
    FINETUNE,
    LONG,
    SCRATCH,
    make_variables,
    quadratic_gradient,
)
from loops import apply_steps, tensors, values

from keras_dualopt import DualOpt, bases

if BACKEND != "torch":
    pytest.skip("torch's own path", allow_module_level=True)

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from keras_dualopt.backend import torch_fused

STEPS = 12
COUNT = 6  # variables of `make_variables`


class PlainAdam(bases.Adam):
    """No kernel: a subclass may have another rule."""


class PlainSGD(bases.SGD):
    """No kernel: a subclass may have another rule."""


RULES = {
    "adam": (bases.Adam, PlainAdam, "_fused_adam_"),
    "sgd": (bases.SGD, PlainSGD, "_fused_sgd_"),
}
MODES = {"finetune": FINETUNE, "scratch": SCRATCH}
table = pytest.mark.parametrize(
    ("rule", "mode"), [(r, m) for r in RULES for m in MODES]
)


@pytest.fixture
def paths(monkeypatch):
    """Count the weights, or pieces of them, that each path moves."""
    counts = {"fused": 0, "plain": 0, "kernels": 0}

    def fused(function):
        def counted(weights, *args, **kwargs):
            counts["fused"] += len(weights)
            counts["kernels"] += 1
            return function(weights, *args, **kwargs)

        return counted

    def plain(function):
        def counted(self, *args):
            counts["plain"] += 1
            return function(self, *args)

        return counted

    for _, _, kernel in RULES.values():
        monkeypatch.setattr(torch, kernel, fused(getattr(torch, kernel)))
    monkeypatch.setattr(
        bases.PaperRule, "update_step", plain(bases.PaperRule.update_step)
    )
    return counts


def made(base, mode):
    return DualOpt(0.03, base=base(), **MODES[mode])


def trained(base, mode, change=None, **arguments):
    """Return the weights after `STEPS` steps on variables of their own."""
    variables = make_variables(**arguments)
    optimizer = made(base, mode)
    optimizer.build(variables)
    if change is not None:
        change(variables)
    apply_steps(optimizer, variables, quadratic_gradient(), STEPS)
    return values(variables)


def assert_close(got, wanted):
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one, other, **LONG)


@table
def test_all_weights_go_the_fused_way_and_arrive_where_the_plain_leads(
    rule, mode, paths
):
    ours, plain, _ = RULES[rule]
    got = trained(ours, mode)
    assert paths == {"fused": COUNT * STEPS, "plain": 0, "kernels": STEPS}
    wanted = trained(plain, mode)
    assert paths["plain"] == COUNT * STEPS
    assert_close(got, wanted)


@table
def test_large_weights_are_cut_and_small_ones_share_a_block(
    rule, mode, paths, monkeypatch
):
    ours, _, _ = RULES[rule]
    whole = trained(ours, mode)
    monkeypatch.setitem(torch_fused.LIMITS, "cpu", 16)
    paths.update(fused=0, kernels=0)
    cut = trained(ours, mode)
    # 54 and 20 numbers in four and two pieces, each a block of its own; then
    # 3, 15, and 4 with 8.
    assert paths == {"fused": 10 * STEPS, "plain": 0, "kernels": 9 * STEPS}
    for one, other in zip(cut, whole, strict=True):
        np.testing.assert_array_equal(one, other)


@table
def test_scalars_that_stay_on_the_device(rule, mode, paths, monkeypatch):
    """As on a GPU, where a number read off a tensor would wait for it."""
    ours, plain, _ = RULES[rule]
    monkeypatch.setattr(torch_fused, "HOSTS", ())
    got = trained(ours, mode)
    assert paths["fused"] == COUNT * STEPS
    assert_close(got, trained(plain, mode))


@table
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_dtypes_go_the_plain_way(rule, mode, dtype, paths):
    ours, plain, _ = RULES[rule]
    got = trained(ours, mode, dtype=dtype)
    assert paths == {"fused": 0, "plain": COUNT * STEPS, "kernels": 0}
    for one, other in zip(got, trained(plain, mode, dtype=dtype), strict=True):
        np.testing.assert_array_equal(one, other)


def channels_last(variables):
    """What `module.to(memory_format=torch.channels_last)` does."""
    kernel = variables[0]._value
    kernel.data = kernel.data.to(memory_format=torch.channels_last)
    assert not kernel.is_contiguous()


def moved(variables):
    """What `module.to(device)` does: the same tensor in other memory."""
    for variable in variables:
        variable._value.data = variable._value.data.clone()


@table
@pytest.mark.parametrize(
    ("change", "plain_ones"), [(channels_last, 1), (moved, 0)]
)
def test_weights_laid_out_otherwise(rule, mode, change, plain_ones, paths):
    ours, plain, _ = RULES[rule]
    got = trained(ours, mode, change)
    assert paths["plain"] == plain_ones * STEPS
    assert paths["fused"] == (COUNT - plain_ones) * STEPS
    assert_close(got, trained(plain, mode))


@table
def test_weights_that_move_between_two_steps(rule, mode):
    """A slot of the old memory would move weights that nobody sees."""
    ours, plain, _ = RULES[rule]
    results = []
    for base in (ours, plain):
        variables, gradient = make_variables(), quadratic_gradient()
        optimizer = made(base, mode)
        apply_steps(optimizer, variables, gradient, 3)
        moved(variables)
        apply_steps(optimizer, variables, gradient, 3)
        results.append(values(variables))
    assert_close(*results)


def strided(gradients):
    """Gradients as a transposed product leaves them."""
    gradients[2] = gradients[2].T.contiguous().T
    assert not gradients[2].is_contiguous()


def sparse(gradients):
    gradients[2] = gradients[2].to_sparse(1)


def missing(gradients):
    gradients[2] = None


GRADIENTS = {strided: (COUNT, 0), sparse: (5, 1), missing: (5, 0)}


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@table
@pytest.mark.parametrize("change", GRADIENTS)
def test_gradients_of_another_kind(rule, mode, change, paths):
    """One weight leaves the fused path; the others stay on it."""
    results = []
    for base in RULES[rule][:2]:
        variables, gradient = make_variables(), quadratic_gradient()
        optimizer = made(base, mode)
        for step in range(STEPS):
            gradients = tensors(gradient(step, values(variables)), variables)
            # In turn, so that the same weight comes by both ways.
            if step % 2:
                change(gradients)
            optimizer.apply(gradients, variables)
        results.append(values(variables))
        if base is RULES[rule][0]:
            fused, plain = GRADIENTS[change]
            assert paths["fused"] == (COUNT + fused) * STEPS // 2
            assert paths["plain"] == plain * STEPS // 2
    assert_close(*results)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_a_plan_serves_again_and_only_few_are_kept(monkeypatch):
    """As where a router sends each batch through other layers."""
    plans, original = [], torch_fused.blocks_of

    def counted(slots):
        (block,) = original(slots)
        plans.append(weakref.ref(block))
        return [block]

    monkeypatch.setattr(torch_fused, "blocks_of", counted)
    variables, gradient = make_variables(), quadratic_gradient()
    optimizer = made(bases.Adam, "finetune")
    present = [*itertools.combinations(range(COUNT), COUNT // 2)]
    assert len(present) == 20
    for step, chosen in enumerate([present[0], *present, present[-1]]):
        gradients = tensors(gradient(step, values(variables)), variables)
        for index in {*range(COUNT)}.difference(chosen):
            gradients[index] = None
        optimizer.apply(gradients, variables)
    assert len(plans) == 20
    assert sum(plan() is not None for plan in plans) <= 8


@table
def test_stateless_apply_goes_the_plain_way(rule, mode, paths):
    ours, _, _ = RULES[rule]
    variables, gradient = make_variables(), quadratic_gradient()
    optimizer = made(ours, mode)
    optimizer.build(variables)
    before = values(variables)
    weights = [v.value.detach().clone() for v in variables]
    state = [v.value.detach().clone() for v in optimizer.variables]
    for step in range(STEPS):
        now = [weight.numpy().copy() for weight in weights]
        gradients = tensors(gradient(step, now), variables)
        weights, state = optimizer.stateless_apply(state, gradients, weights)
    assert paths == {"fused": 0, "plain": COUNT * STEPS, "kernels": 0}
    for one, other in zip(values(variables), before, strict=True):
        np.testing.assert_array_equal(one, other)
    assert_close([weight.numpy() for weight in weights], trained(ours, mode))


@table
def test_autocast_changes_nothing(rule, mode, paths):
    ours, _, _ = RULES[rule]
    wanted = trained(ours, mode)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = trained(ours, mode)
    assert paths["fused"] == 2 * COUNT * STEPS
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


@table
def test_torch_compile_leaves_the_update_alone(rule, mode, paths):
    """What surrounds it is compiled; "eager" shows that without inductor."""
    ours, _, _ = RULES[rule]
    variables, gradient = make_variables(), quadratic_gradient()
    optimizer = made(ours, mode)
    optimizer.build(variables)

    @torch.compile(backend="eager")
    def step(gradients):
        doubled = [2.0 * g for g in gradients]
        optimizer.apply([0.5 * g for g in doubled], variables)

    for number in range(STEPS):
        step(tensors(gradient(number, values(variables)), variables))
    assert paths["fused"] == COUNT * STEPS
    assert paths["plain"] == 0
    assert_close(values(variables), trained(ours, mode))


class Allocations(TorchDispatchMode):
    """Notes the size of every tensor that an operation makes anew."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        leaves = torch.utils._pytree.tree_leaves
        own = {
            t.untyped_storage().data_ptr()
            for t in leaves((args, kwargs))
            if isinstance(t, torch.Tensor)
        }
        self.sizes += [
            t.numel()
            for t in leaves(result)
            if isinstance(t, torch.Tensor)
            and t.untyped_storage().data_ptr() not in own
        ]
        return result


@table
def test_fused_update_makes_no_tensor(rule, mode):
    """Keras' Adam makes several as large as all weights together."""
    variables, gradient = make_variables(), quadratic_gradient()
    gradients = tensors(gradient(0, values(variables)), variables)
    optimizer = made(RULES[rule][0], mode)
    adam = keras.optimizers.Adam(0.03)
    largest = {}
    for name, one in (("ours", optimizer), ("Keras", adam)):
        one.apply(gradients, variables)
        with Allocations() as made_anew:
            one.apply(gradients, variables)
        largest[name] = max(made_anew.sizes, default=0)
    assert largest["ours"] <= 1
    assert largest["Keras"] > 1


@pytest.mark.parametrize("mode", MODES)
def test_pull_of_a_wrapped_optimizer_is_batched(mode, monkeypatch):
    """One call for a block and a strength, not one for a weight."""
    calls = []
    for name in ("_foreach_lerp_", "_foreach_add_"):
        original = getattr(torch, name)

        def counted(weights, *args, original=original, **kwargs):
            calls.append(len(weights))
            return original(weights, *args, **kwargs)

        monkeypatch.setattr(torch, name, counted)
    variables = make_variables()
    optimizer = made(keras.optimizers.Lion, mode)
    gradients = tensors(quadratic_gradient()(0, values(variables)), variables)
    optimizer.apply(gradients, variables)
    pulls = [count for count in calls if count < COUNT]
    # Neighbours at the same depth: stem, middle, deep (and the head).
    assert pulls == ([2, 1, 2] if mode == "finetune" else [2, 1, 2, 1])
