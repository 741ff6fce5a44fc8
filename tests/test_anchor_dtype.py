"""θ₀ in half the bytes: the same numbers, or an error before a step."""

import keras
import networks
import numpy as np
import pytest
from cases import BACKEND, DEPTHS, FINETUNE, make_variables, quadratic_gradient
from loops import apply_steps, compiled_steps

from keras_dualopt import DualOpt

DTYPES = ["bfloat16", "float16"]


def rounded(arrays, dtype):
    """Return weights as they are published: of this dtype, cast up."""
    return [
        np.array(
            keras.ops.convert_to_numpy(
                keras.ops.cast(
                    keras.ops.cast(
                        keras.ops.convert_to_tensor(
                            np.asarray(array, dtype="float32")
                        ),
                        dtype,
                    ),
                    "float32",
                )
            )
        )
        for array in arrays
    ]


def start(dtype):
    return rounded(networks.weights(), dtype)


def model_of(weights, dtype, **arguments):
    optimizer = DualOpt(
        networks.RATE, anchor_dtype=dtype, **networks.FINETUNE, **arguments
    )
    return networks.compiled(optimizer, weights)


def wide(anchor):
    return keras.ops.convert_to_numpy(keras.ops.cast(anchor, "float32"))


@pytest.mark.parametrize("steps", [apply_steps, compiled_steps])
@pytest.mark.parametrize("base", ["adam", "Lion"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_trajectory_is_that_of_wide_anchors_to_the_last_bit(dtype, base, steps):
    values = rounded(
        [keras.ops.convert_to_numpy(v.value) for v in make_variables()], dtype
    )
    trajectories = []
    for kind in (None, dtype):
        optimizer = DualOpt(
            0.03,
            base=base if base == "adam" else keras.optimizers.Lion(),
            anchor_dtype=kind,
            **FINETUNE,
        )
        trajectories.append(
            steps(optimizer, make_variables(values), quadratic_gradient(), 6)
        )
    for one, other in zip(*trajectories, strict=True):
        networks.assert_same(one, other)
    for anchor, theta, depth in zip(
        optimizer.anchors, values, DEPTHS.values(), strict=True
    ):
        if depth is None:
            assert anchor is None
        else:
            assert anchor.dtype == dtype
            np.testing.assert_array_equal(wide(anchor), theta)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_theta_0_that_does_not_fit_is_an_error_before_the_first_step(dtype):
    weights = networks.weights()
    model = model_of(weights, dtype)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"dense_0/kernel.*off by up to .*dtype=None"
        ):
            networks.fit(model, 1)
        networks.assert_same(networks.arrays(model.weights), weights)
    # The way out: the weights that were published.
    model.set_weights(start(dtype))
    networks.fit(model, 1)


def test_anchors_that_do_not_fit_are_refused_and_the_old_ones_stay():
    model = model_of(start("bfloat16"), "bfloat16")
    networks.fit(model, 1)
    with pytest.raises(ValueError, match="dtype=None"):
        model.optimizer.anchor_at()  # Tuned weights have more digits.
    for anchor, theta in zip(
        model.optimizer.anchors[:6], start("bfloat16"), strict=False
    ):
        np.testing.assert_array_equal(wide(anchor), theta)


@pytest.mark.skipif(BACKEND == "jax", reason="JAX without x64 has no float64")
def test_digits_that_float32_has_not_count_in_float64():
    weights = [np.float64(array) for array in start("bfloat16")]
    model = networks.network(weights, dtype="float64")
    networks.compile(model, networks.dual_opt(anchor_dtype="bfloat16"))
    model.layers[1].kernel.assign(weights[2] + 1e-9)
    with pytest.raises(ValueError, match=r"dense_1/kernel', 20 of whose 20"):
        networks.fit(model, 1)
    model.set_weights(weights)
    networks.fit(model, 1)
    networks.assert_anchored_at(model.optimizer, weights)


def test_a_saved_run_goes_on_as_if_it_had_never_stopped(tmp_path):
    def run(stop):
        model = model_of(start("bfloat16"), "bfloat16")
        networks.fit(model, 3)
        if stop:
            model.save(tmp_path / "run.keras")
            model = keras.saving.load_model(tmp_path / "run.keras")
            assert model.optimizer.anchor_dtype == "bfloat16"
        networks.fit(model, 3, start=3)
        return networks.arrays(model.weights)

    networks.assert_same(run(True), run(False))


def test_the_file_of_wide_anchors_is_read_where_they_fit(tmp_path):
    path = tmp_path / "run.weights.h5"
    model = model_of(start("bfloat16"), None)
    networks.fit(model, 2)
    model.save_weights(path)
    narrow = model_of(networks.weights(seed=9), "bfloat16")
    narrow.optimizer.build(narrow.trainable_variables)
    narrow.load_weights(path)
    assert narrow.optimizer.anchors[0].dtype == "bfloat16"
    np.testing.assert_array_equal(
        wide(narrow.optimizer.anchors[0]), start("bfloat16")[0]
    )
    other = model_of(networks.weights(), None)
    networks.fit(other, 2)
    other.save_weights(path)
    with pytest.raises(ValueError, match="dtype=None"):
        narrow.load_weights(path)


def test_summary_states_half_the_bytes():
    lines = []
    for dtype in (None, "bfloat16"):
        model = model_of(start("bfloat16"), dtype)
        model.optimizer.build(model.trainable_variables)
        model.optimizer.summary(lines.append)
    full = 4 * sum(array.size for array in networks.weights()[:6])
    assert f" {full:,}" in lines[0].splitlines()[-1]
    assert f" {full // 2:,}" in lines[1].splitlines()[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        {"anchor_dtype": "float8"},
        {"anchor_dtype": "float32"},
        {"anchor_dtype": "bfloat16", "mode": "scratch"},
    ],
)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="anchor_dtype"):
        DualOpt(**arguments)
