"""What does not fit the model, or comes at the wrong time, is refused."""

import math

import keras
import numpy as np
import pytest
from cases import DEPTHS, make_variables
from loops import tensors
from refusals import (
    assert_refuses,
    built,
    made,
    refused,
    row,
    small_model,
)

from keras_dualopt import DualOpt, layer_depth

NAN = math.nan


def with_head():
    return layer_depth(small_model(), head=["small/last/.*"])


DEPTH = [
    row(
        "depth a list",
        made(depth=[0.0, 1.0]),
        "`depth` must be None, a `LayerDepth` or a dict",
        "list [0.0, 1.0]",
        "{pattern: relative depth}",
        TypeError,
    ),
    row(
        "depth empty",
        made(depth={}),
        "`depth` must name at least one pattern",
        "an empty dict",
        "`None` finds the depths by itself",
    ),
    *(
        row(
            f"depth {value!r}",
            made(depth={"a/.*": 0.0, "b/.*": value}),
            "`depth['b/.*']` must be in [0, 1]",
            repr(value),
            "or None for weights that were not pretrained",
        )
        for value in (1.5, -0.1)
    ),
    row(
        "depth NaN",
        made(depth={"a": NAN}),
        "`depth['a']` must be finite",
        "nan",
        "finite",
    ),
    *(
        row(
            f"depth {type(value).__name__}",
            made(depth={"a": value}),
            "`depth['a']` must be a number",
            repr(value),
            "number",
            TypeError,
        )
        for value in (True, "0.5")
    ),
    row(
        "depth no regular expression",
        made(depth={"a(": 0.5}),
        "`depth` must hold valid regular expressions",
        "'a('",
        "unterminated",
    ),
    row(
        "depth not a string",
        made(depth={3: 0.5}),
        "`depth` must hold regular expressions (str)",
        "int 3",
        "str",
        TypeError,
    ),
    row(
        "depth with a head in scratch mode",
        lambda: DualOpt(mode="scratch", depth=with_head()),
        "`depth` must count the output layer",
        "one with a head",
        "`layer_depth(model, head=())`",
    ),
    row(
        "exclude a dict",
        made(exclude={"a": 1}),
        "`exclude` must be one or several regular expressions",
        "dict",
        "one or several",
        TypeError,
    ),
    row(
        "exclude no regular expression",
        made(exclude=["*bias"]),
        "`exclude` must hold valid regular expressions",
        "'*bias'",
        "nothing to repeat",
    ),
    row(
        "exclude not a string",
        made(exclude=[keras.layers.Dense]),
        "`exclude` must hold regular expressions (str)",
        "Dense",
        "str",
        TypeError,
    ),
]


def build_on_model(optimizer, model, trainable=None):
    optimizer.bind(model).build(trainable or model.trainable_variables)
    return optimizer


def frozen_model():
    model = small_model()
    model.layers[0].trainable = False
    return model


BUILD = [
    row(
        "depth pattern that matches nothing",
        lambda: built(depth={"stm/.*": 0.0, ".*": 0.5}),
        "Every pattern of `depth` must win at least one variable",
        "'stm/.*'",
        "For a part of a path write '.*stm/.*.*'",
    ),
    row(
        "depth pattern that an earlier one beats",
        lambda: built(depth={".*": 0.5, "stem/.*": 0.0}),
        "Every pattern of `depth` must win at least one variable",
        "'stem/.*'",
        "Put the narrower pattern first",
    ),
    row(
        "variable that no depth pattern matches",
        lambda: built(depth={"stem/.*": 0.0, "deep/.*": 1.0}),
        "Every weight needs a pattern of `depth`",
        "'middle/kernel'",
        "'.*' as the last pattern takes the rest",
    ),
    row(
        "depth pattern that matches a part only",
        lambda: built(depth={"stem": 0.0, ".*": 0.5}),
        "Every pattern of `depth` must win at least one variable",
        "'stem'",
        "'.*stem.*'",
    ),
    row(
        "exclude pattern that matches nothing",
        lambda: built(exclude=["stem/bias", "bias"]),
        "Every pattern of `exclude` must match the whole path",
        "'bias'",
        "'.*bias.*'",
    ),
    row(
        "no model to be found",
        lambda: DualOpt().build(make_variables()),
        "The model that owns the variables was not found",
        "6 variables",
        "optimizer.bind(model)",
    ),
    row(
        "a model that does not own the variables",
        lambda: build_on_model(DualOpt(), small_model(), make_variables()),
        "The optimizer is bound to",
        "'stem/kernel' of another",
        "Make a new DualOpt for each model",
    ),
    row(
        "nothing but a head",
        lambda: (
            DualOpt()
            .bind(
                model := small_model(), head=["small/first/.*", "small/last/.*"]
            )
            .build(model.trainable_variables)
        ),
        "Every layer of the model was taken for a new head",
        "",
        "bind(model, head=())",
    ),
]


def step_after_drop():
    optimizer, variables = DualOpt(depth=DEPTHS), make_variables()
    optimizer.build(variables)
    optimizer.drop_anchors()
    ones = [np.ones(variable.shape) for variable in variables]
    optimizer.apply(tensors(ones, variables), variables)


SETTINGS = {
    "rollback": 0.5,
    "rollback_min": 0.002,
    "weight_decay": 0.1,
    "weight_decay_min": 0.1,
    "power": 3.0,
    "depth": {".*": 0.0},
    "exclude": [".*"],
}


def build_two_on_one_base():
    base = keras.optimizers.Lion()
    first = DualOpt(base=base, depth=DEPTHS)
    second = DualOpt(base=base, depth=DEPTHS)
    first.build(make_variables())
    second.build(make_variables())


def depth_beside_a_bound_head():
    optimizer = DualOpt().bind(small_model(), head="small/last/.*")
    optimizer.depth = DEPTHS


AFTER_BUILD = [
    row(
        "setting mode, even before build",
        lambda: setattr(DualOpt(), "mode", "scratch"),
        "`mode` stays 'finetune'",
        "'scratch'",
        "Make a new DualOpt(mode=...)",
    ),
    row(
        "setting depth beside a bound head",
        depth_beside_a_bound_head,
        "The head was named by `bind(head=...)`",
        "`depth` as well",
        "Give one of the two",
    ),
    row(
        "one base for two",
        build_two_on_one_base,
        "The `base`, Lion, was built meanwhile",
        "",
        "Make a new instance for each DualOpt",
    ),
    *(
        row(
            f"setting {name}",
            lambda name=name, value=value: setattr(built(), name, value),
            f"`{name}` cannot be changed after the optimizer was built",
            repr(value),
            "`new.anchor_at(old)`",
        )
        for name, value in SETTINGS.items()
    ),
    row(
        "bind to another model",
        lambda: built().bind(small_model()),
        "`bind` comes before the optimizer is built",
        "'small'",
        "Make a new DualOpt for each model",
    ),
    row(
        "bind with a head in scratch mode",
        lambda: DualOpt(mode="scratch").bind(
            small_model(), head="small/last/.*"
        ),
        "`head` has no meaning in scratch mode",
        "head='small/last/.*'",
        "counts as the deepest",
    ),
    row(
        "bind with a head beside depth",
        lambda: DualOpt(depth=DEPTHS).bind(small_model(), head="small/last/.*"),
        "`depth` says already which weights are new",
        "`bind(head=...)` as well",
        "`layer_depth(model, head=...)`",
    ),
    row(
        "anchors before build",
        lambda: DualOpt().anchors,
        "has not seen its variables, so that it has no anchors yet",
        "",
        "optimizer.build(model.trainable_variables)",
    ),
    row(
        "summary before build",
        lambda: DualOpt().summary(),
        "has not seen its variables, so that it has no depths yet",
        "",
        "optimizer.build(model.trainable_variables)",
    ),
    row(
        "anchor_at in scratch mode",
        lambda: DualOpt(mode="scratch").anchor_at(),
        "`anchor_at` needs fine-tune mode",
        "scratch mode",
        "no anchors",
    ),
    row(
        "drop_anchors in scratch mode",
        lambda: DualOpt(mode="scratch").drop_anchors(),
        "`drop_anchors` needs fine-tune mode",
        "scratch mode",
        "no anchors",
    ),
    row(
        "anchor_at a number",
        lambda: built().anchor_at(3),
        "None, a model, the path of a weights file, or another DualOpt",
        "int 3",
        "DualOpt",
        TypeError,
    ),
    row(
        "a step after drop_anchors",
        step_after_drop,
        "The anchors were dropped",
        "",
        "`optimizer.anchor_at()`",
    ),
    row(
        "exclude_from_weight_decay",
        lambda: DualOpt().exclude_from_weight_decay(var_names=["bias"]),
        "`DualOpt(exclude=[...])`",
        "var_names=['bias']",
        "exclude",
    ),
    row(
        "a variable it was not built on",
        lambda: built().apply([np.ones(2)], [keras.Variable(np.ones(2))]),
        "The 6 variables this optimizer was built on",
        "variable",
        "`new.anchor_at(old)`",
    ),
]


@refused(DEPTH)
def test_constructor_refuses_the_depth(action, error, words):
    assert_refuses(action, error, words)


@refused(BUILD)
def test_build_refuses(action, error, words):
    assert_refuses(action, error, words)


@refused(AFTER_BUILD)
def test_use_refuses(action, error, words):
    assert_refuses(action, error, words)


def test_exclude_may_name_a_frozen_weight():
    model = frozen_model()
    optimizer = DualOpt(exclude="small/first/bias").bind(model, head=())
    optimizer.build(model.trainable_variables)
    with pytest.raises(ValueError, match="small/first/bia'"):
        DualOpt(exclude="small/first/bia").bind(model, head=()).build(
            model.trainable_variables
        )


def test_depth_pattern_may_win_a_frozen_weight():
    model = frozen_model()
    depth = {"small/first/.*": 0.0, "small/last/.*": 1.0}
    optimizer = DualOpt(depth=depth).bind(model)
    optimizer.build(model.trainable_variables)


class Unbuilt(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, x):
        return self.dense(x)


def build_unbuilt():
    other, model = small_model(), Unbuilt()
    assert other.built
    DualOpt().build(model.trainable_variables)


def build_bound_unbuilt():
    model = Unbuilt()
    DualOpt().bind(model).build(model.trainable_variables)


@pytest.mark.parametrize("action", [build_unbuilt, build_bound_unbuilt])
def test_a_model_without_weights_is_refused(action):
    assert_refuses(
        action,
        ValueError,
        (
            "must be the trainable ones of a built model",
            "none; the model has no weights yet",
            "call it once on a batch (`model(x[:1])`)",
        ),
    )


@pytest.mark.parametrize("mode", ["finetune", "scratch"])
@pytest.mark.filterwarnings("ignore:The model does not have any trainable")
def test_a_frozen_model_is_fitted_saved_and_loaded(mode, tmp_path):
    model = small_model()
    model.trainable = False
    model.compile(DualOpt(mode=mode), "mse")
    before = model.get_weights()
    model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for one, other in zip(before, loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_bind_checks_the_head_of_a_built_model():
    model = small_model()
    assert DualOpt().bind(model, head=["last"])
    with pytest.raises(ValueError, match="names none of its 4 weights"):
        DualOpt().bind(model, head=["lost"])
