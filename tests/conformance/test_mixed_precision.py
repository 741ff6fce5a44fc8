"""Mixed precision: the twin takes the same steps, the pull is NumPy's."""

import keras
import networks
import numpy as np
import pytest
import twins

from keras_dualopt import DualOpt, bases

RATIOS = [ratio * networks.RATE for ratio in networks.strengths()]
BASES = {
    "sgd": ("sgd", lambda: bases.SGD(learning_rate=networks.RATE)),
    "Lion": (None, lambda: keras.optimizers.Lion(networks.RATE)),
}


def scaled(optimizer):
    # Large enough to matter, small enough not to overflow at once.
    return keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=256.0)


def optimizers(base):
    """Return a DualOpt and the unwrapped base."""
    name, make = BASES[base]
    dual = networks.dual_opt(base=name or make())
    return dual, make()


@pytest.mark.parametrize(
    ("policy", "base"),
    [
        ("mixed_bfloat16", "sgd"),
        ("mixed_float16", "sgd"),
        ("mixed_float16", "Lion"),
    ],
)
def test_mixed_precision_pulls_as_the_reference(policy, base):
    dual, plain = optimizers(base)
    if policy == "mixed_float16":
        dual, plain = scaled(dual), scaled(plain)
    model = networks.compiled(dual, networks.weights(), dtype=policy)
    other = networks.compiled(plain, networks.weights(), dtype=policy)
    twin = twins.Twin(other, RATIOS)
    x, y = networks.data(1)
    for _ in range(5):
        model.train_on_batch(x, y)
        twin.train_on_batch(x, y)
    # A last bit of the weights may turn one of their half precision copies.
    networks.assert_close(
        networks.arrays(model.trainable_variables),
        networks.arrays(other.trainable_variables),
        rtol=1e-4,
        atol=2e-5,
    )
    networks.assert_anchored_at(dual, networks.weights())


def everything(model):
    optimizer = model.optimizer.inner_optimizer
    return networks.arrays([*model.variables[:8], *optimizer.variables])


@pytest.fixture(scope="module")
def scaled_model():
    dual, _ = optimizers("sgd")
    return networks.compiled(
        scaled(dual), networks.weights(seed=99), dtype="mixed_float16"
    )


def overflowing(x):
    return np.full_like(x, 1e30)  # Infinite in float16.


def test_skipped_steps_move_and_take_nothing(scaled_model):
    """Not the weights, not the counter, and not θ₀ if it is the first."""
    model = scaled_model
    x, y = networks.data(1)
    model.optimizer.build(model.trainable_variables)
    before = everything(model)
    model.train_on_batch(overflowing(x), y)
    networks.assert_same(everything(model), before)
    assert float(model.optimizer.dynamic_scale) == 128.0

    model.set_weights(networks.weights())
    model.train_on_batch(x, y)
    networks.assert_anchored_at(model.optimizer, networks.weights())

    before = everything(model)
    model.train_on_batch(overflowing(x), y)
    networks.assert_same(everything(model), before)
    model.train_on_batch(x, y)
    assert int(model.optimizer.inner_optimizer.iterations) == 2
    for value, old in zip(
        networks.arrays(model.trainable_variables), before[:8], strict=True
    ):
        assert not np.array_equal(value, old)


def test_compile_wraps_for_loss_scaling_by_itself():
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(2)],
    )
    model.dtype_policy = keras.DTypePolicy("mixed_float16")
    networks.compile(model, DualOpt(0.01))
    start = networks.arrays(model.trainable_variables)
    networks.fit(model, 2)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    networks.assert_same(networks.anchors(model.optimizer)[:2], start[:2])


def test_resumed_run_with_loss_scaling_equals_uninterrupted(tmp_path):
    """Built before the file is read, the loss scale is read as well."""

    def compiled():
        return networks.compiled(
            scaled(optimizers("sgd")[0]),
            networks.weights(),
            dtype="mixed_float16",
        )

    model = compiled()
    networks.fit(model, 3)
    model.save_weights(tmp_path / "x.weights.h5")
    built = compiled()
    built.optimizer.build(built.trainable_variables)
    built.load_weights(tmp_path / "x.weights.h5")
    # Not built: Keras drops its own two numbers with a warning, ours are kept.
    late = compiled()
    with pytest.warns(UserWarning, match="Skipping variable loading"):
        late.load_weights(tmp_path / "x.weights.h5")
    late.optimizer.build(late.trainable_variables)
    for resumed in (built, late):
        networks.assert_same(everything(resumed), everything(model))
    assert int(built.optimizer.step_counter) == 3
    assert int(late.optimizer.step_counter) == 0
    assert float(late.optimizer.dynamic_scale) == 256.0
