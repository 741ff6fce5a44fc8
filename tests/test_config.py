"""An optimizer that was written down and read back is an equal optimizer."""

import json

import keras
import networks
import numpy as np
import pytest
from cases import (
    BASES,
    DEPTHS,
    FINETUNE,
    SCHEDULES,
    SCRATCH,
    make_variables,
    quadratic_gradient,
)
from loops import apply_steps
from refusals import small_model

from keras_dualopt import DualOpt, LayerDepth, bases, layer_depth

RATE = 0.03


@keras.saving.register_keras_serializable(package="tests")
def own_rate():
    return 0.017


@keras.saving.register_keras_serializable(package="tests")
class OwnLion(keras.optimizers.Lion):
    """A user's optimizer that is one of Keras' with another name."""


@keras.saving.register_keras_serializable(package="tests")
class OwnOptimizer(keras.optimizers.Optimizer):
    def update_step(self, gradient, variable, learning_rate):
        variable.assign_sub(learning_rate * keras.ops.sign(gradient))


CONFIGS = {
    "defaults": DualOpt,
    "scratch defaults": lambda: DualOpt(mode="scratch"),
    "finetune": lambda: DualOpt(RATE, **FINETUNE),
    "scratch": lambda: DualOpt(RATE, **SCRATCH),
    "depths whose order counts": lambda: DualOpt(
        RATE,
        depth={"stem/kernel": 0.9, "stem/.*": 0.1, "head/.*": None, ".*": 0.5},
    ),
    "found depths": lambda: DualOpt(RATE, depth=layer_depth(small_model())),
    "exclude": lambda: DualOpt(RATE, exclude=[".*/bias", "stem/.*"]),
    "reference rate": lambda: DualOpt(RATE, reference_learning_rate=0.07),
    "callable": lambda: DualOpt(own_rate, reference_learning_rate=0.02),
    "clipnorm": lambda: DualOpt(RATE, clipnorm=0.7, name="mine"),
    "accumulation": lambda: DualOpt(
        RATE, gradient_accumulation_steps=3, clipvalue=0.2
    ),
    "average": lambda: DualOpt(
        RATE, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=7
    ),
    "sgd": lambda: DualOpt(base="sgd"),
    "rule with arguments": lambda: DualOpt(
        base=bases.Adam(0.8, 0.95, epsilon=1e-5)
    ),
    "NumPy's numbers": lambda: DualOpt(
        np.float32(0.1),
        power=np.float32(1.5),
        reach=np.float32(0.1),
        reach_max=np.float64(0.4),
        shallow_rate=np.float16(0.5),
        depth={".*bias": np.float32(0.25), ".*": np.int64(1)},
        base=bases.Adam(np.float32(0.8), np.float32(0.9), np.float32(1e-6)),
    ),
    "NumPy's numbers, rollback": lambda: DualOpt(
        rollback=np.float32(0.1),
        rollback_min=np.float16(0.0),
        reference_learning_rate=np.float32(0.2),
        base=bases.SGD(np.float32(0.5)),
    ),
    "a user's subclass": lambda: DualOpt(base=OwnLion(3e-5, beta_1=0.8)),
    "a user's optimizer": lambda: DualOpt(base=OwnOptimizer(3e-5)),
    "the base's own rate": lambda: DualOpt(base=keras.optimizers.Lion(3e-5)),
    **{
        f"base {name}": lambda make=make: DualOpt(
            RATE, base=make(0.5), **FINETUNE
        )
        for name, make in BASES.items()
    },
    **{
        f"schedule {name}": lambda schedule=schedule: DualOpt(schedule.make())
        for name, schedule in SCHEDULES.items()
    },
}


def through_json(config):
    # Sorted, because JSON promises no order of keys.
    return json.loads(json.dumps(config, sort_keys=True))


@pytest.mark.parametrize("case", CONFIGS)
def test_config_makes_an_optimizer_of_equal_config(case):
    config = CONFIGS[case]().get_config()
    again = DualOpt.from_config(through_json(config))
    assert again.get_config() == config
    assert type(again._holder.base) is type(CONFIGS[case]()._holder.base)


@pytest.mark.parametrize("case", CONFIGS)
def test_serialized_optimizer_is_read_back_by_keras_alone(case):
    optimizer = CONFIGS[case]()
    serialized = keras.optimizers.serialize(optimizer)
    again = keras.optimizers.deserialize(through_json(serialized))
    assert type(again) is DualOpt
    assert again.get_config() == optimizer.get_config()
    assert keras.optimizers.serialize(again) == serialized


STEPPED = {
    "AdamW, no decay of biases": lambda: DualOpt(
        RATE, base=BASES["AdamW"](0.5), **FINETUNE
    ),
    "Muon": lambda: DualOpt(RATE, base=BASES["Muon"](0.5), **FINETUNE),
    "sgd": lambda: DualOpt(
        SCHEDULES["cosine"].make(),
        base=bases.SGD(momentum=0.6),
        exclude="stem/bias",
        **{**FINETUNE, "rollback_min": 0.1},
    ),
    "scratch": lambda: DualOpt(0.3, global_clipnorm=0.4, **SCRATCH),
}


@pytest.mark.parametrize("case", STEPPED)
def test_optimizer_read_back_takes_the_same_steps(case):
    first = STEPPED[case]()
    again = DualOpt.from_config(through_json(first.get_config()))
    one, other = make_variables(), make_variables()
    trajectory = apply_steps(first, one, quadratic_gradient(), 3)
    repeated = apply_steps(again, other, quadratic_gradient(), 3)
    for got, wanted in zip(repeated, trajectory, strict=True):
        networks.assert_same(got, wanted)


def test_order_of_the_patterns_is_kept():
    made = CONFIGS["depths whose order counts"]()
    again = DualOpt.from_config(through_json(made.get_config()))
    variables = make_variables()
    for optimizer in (made, again):
        optimizer.build(variables)
    found = [place.relative for place in again.rows]
    assert found == [0.9, 0.1, 0.5, 0.5, 0.5, None]
    assert networks.strengths_of(again) == networks.strengths_of(made)


def no_gradient(step, thetas):
    return [np.zeros_like(theta) for theta in thetas]


def test_excluded_variables_of_a_base_decay_neither_before_nor_after_saving():
    """With no gradient, what moves a weight of AdamW is its own decay."""
    made = DualOpt(RATE, base=BASES["AdamW"](RATE), rollback=0.0, depth=DEPTHS)
    for optimizer in (made, DualOpt.from_config(made.get_config())):
        variables = make_variables()
        start = networks.arrays(variables)
        apply_steps(optimizer, variables, no_gradient, 1)
        for name, value, theta in zip(
            DEPTHS, networks.arrays(variables), start, strict=True
        ):
            kept = 1.0 if "bias" in name else 1.0 - RATE * 0.3
            np.testing.assert_allclose(value, kept * theta, rtol=1e-6)


def test_exclusion_of_a_list_of_variables_warns_when_it_is_written_down():
    base = keras.optimizers.AdamW()
    base.exclude_from_weight_decay(var_list=make_variables()[:1])
    with pytest.warns(UserWarning, match="names variables, which cannot be"):
        DualOpt(base=base).get_config()


def test_head_that_was_bound_is_part_of_the_config():
    model = small_model()
    optimizer = DualOpt(RATE, rollback=0.2).bind(model, head=())
    again = DualOpt.from_config(through_json(optimizer.get_config()))
    for made in (optimizer, again):
        made.build(model.trainable_variables)
        # Without the head that was bound, "last" would be one.
        assert [row.anchored for row in made.rows] == [True] * 4
        assert networks.strengths_of(made) == [0.2, 0.2, 0.0, 0.0]
    assert again.get_config() == optimizer.get_config()


def test_config_may_leave_out_what_has_a_default():
    again = keras.optimizers.get(
        {"class_name": "keras_dualopt>DualOpt", "config": {"rollback": 0.3}}
    )
    assert again.rollback == 0.3
    assert again.get_config()["base"] == "adam"


@pytest.mark.parametrize(
    "kind",
    [DualOpt, LayerDepth, bases.Adam, bases.SGD],
    ids=lambda k: k.__name__,
)
def test_class_is_registered_with_keras(kind):
    name = f"keras_dualopt>{kind.__name__}"
    assert keras.saving.get_registered_name(kind) == name
    assert keras.saving.get_registered_object(name) is kind


FILES = {
    "patterns": lambda: DualOpt(
        RATE,
        depth={".*dense_0/.*": 0.2, ".*dense_3/.*": None, ".*": 0.6},
        exclude=".*dense_1/bias",
        rollback=0.3,
    ),
    "finetune": lambda: networks.dual_opt(RATE),
    "scratch, Muon": lambda: DualOpt(
        RATE, base=BASES["Muon"](RATE, False), **networks.SCRATCH
    ),
    "AdamW": lambda: networks.dual_opt(
        SCHEDULES["cosine"].make(), base=BASES["AdamW"](RATE)
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_saved_model_brings_its_optimizer_back(case, tmp_path):
    model = networks.trained(FILES[case](), steps=2)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again.optimizer) is DualOpt
    assert again.optimizer.get_config() == model.optimizer.get_config()
    for one in (model, again):
        networks.fit(one, 2, start=2)
    networks.assert_same(
        networks.arrays(again.trainable_variables),
        networks.arrays(model.trainable_variables),
    )


@pytest.mark.parametrize("case", FILES)
def test_clone_trains_as_its_original_with_the_same_config(case):
    model = networks.trained(FILES[case](), steps=3)
    clone = keras.models.clone_model(model)
    clone.set_weights(networks.weights())
    again = DualOpt.from_config(model.optimizer.get_config())
    clone.compile(again, "mse", jit_compile=model.jit_compile)
    networks.fit(clone, 3)
    networks.assert_same(
        networks.arrays(clone.trainable_variables),
        networks.arrays(model.trainable_variables),
    )


def reloaded(model, path):
    with pytest.warns(UserWarning, match="not yet been built"):
        model.save(path)
    return keras.saving.load_model(path)


@pytest.mark.parametrize("head", [("mid", "last"), "layers", ()])
@pytest.mark.parametrize(
    "again", [reloaded, lambda model, path: keras.models.clone_model(model)]
)
def test_the_head_of_a_model_that_is_not_built_is_kept(again, head, tmp_path):
    model = keras.Sequential(
        [
            keras.layers.Dense(4, name="first"),
            keras.layers.Dense(3, name="mid"),
            keras.layers.Dense(2, name="last"),
        ]
    )
    named = model.layers[1:] if head == "layers" else head
    networks.compile(model, DualOpt(RATE).bind(model, head=named))
    for _ in range(2):
        model = again(model, tmp_path / "model.keras")
    model.optimizer.bind(model)  # Says nothing of the head.
    model.train_on_batch(np.ones((8, 3)), np.ones((8, 2)))
    pretrained = [row.pretrained for row in model.optimizer.rows]
    assert pretrained == [True] * 2 + [not head] * 4
