"""A dict of patterns says the depths where no model can."""

import json

import keras
import numpy as np
import pytest
from depth_networks import functional_norm

from keras_dualopt.depth import LayerDepth, depth_from_patterns


def variables():
    return [
        keras.Variable(np.zeros((2, 2), "float32"), name=name)
        for name in ("a_kernel", "a_bias", "b_kernel", "head")
    ]


PATTERNS = {"a_.*": 0.0, "b_kernel": 0.75, "head": None}


def test_the_first_match_in_the_dicts_order_wins():
    narrow_first = {"a_bias": 0.5, "a_.*": 0.25, ".*": 1.0}
    depth = depth_from_patterns(narrow_first, variables())
    assert [row.relative for row in depth.rows] == [0.25, 0.5, 1.0, 1.0]
    assert [row.index for row in depth.rows] == [0, 1, 2, 2]


def test_none_means_not_pretrained():
    depth = depth_from_patterns(PATTERNS, variables())
    assert isinstance(depth, LayerDepth)
    assert not depth.headless
    assert [row.relative for row in depth.rows] == [0.0, 0.0, 0.75, None]
    assert [row.pretrained for row in depth.rows] == [True, True, True, False]
    assert depth.rows[3].index is None


def test_values_are_taken_as_they_are_not_rescaled():
    depth = depth_from_patterns({".*": 0.3}, variables())
    assert {row.relative for row in depth.rows} == {0.3}


def test_places_need_no_model_and_keep_the_order():
    given = variables()
    rows = depth_from_patterns(PATTERNS, given[::-1]).rows
    assert [row.relative for row in rows] == [None, 0.75, 0.0, 0.0]
    assert [row.path for row in rows] == [v.path for v in given[::-1]]
    assert len({row.key for row in rows}) == 4


def test_a_pattern_may_win_a_frozen_weight_alone():
    model = functional_norm()
    patterns = {"c/moving_.*": 0.1, ".*": 0.5}
    with pytest.raises(ValueError, match="moving_"):
        depth_from_patterns(patterns, model.trainable_variables)
    depth = depth_from_patterns(patterns, model.trainable_variables, model)
    assert {row.relative for row in depth.rows} == {0.1, 0.5}
    assert {
        row.relative for row in depth.place(model, model.trainable_variables)
    } == {0.5}


def test_it_survives_json_and_keeps_the_order_of_the_patterns():
    depth = depth_from_patterns(PATTERNS, variables())
    config = json.dumps(
        keras.saving.serialize_keras_object(depth), sort_keys=True
    )
    again = keras.saving.deserialize_keras_object(json.loads(config))
    assert again == depth
    other = depth_from_patterns({**PATTERNS, "b_kernel": 0.5}, variables())
    assert again != other


WRONG = {
    "wins_nothing": ({"zzz": 0.1, ".*": 0.2}, "win .*'zzz'"),
    "is_shadowed": (
        {".*": 0.1, "a_.*": 0.2},
        "win .*'a_.*'.*narrower pattern first",
    ),
    "matches_a_part_only": ({"a": 0.1, ".*": 0.2}, r"win .*'a'.*'\.\*a\.\*'"),
    "leaves_one_out": ({"a_.*": 0.1}, "needs a pattern .*b_kernel"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_dict_is_an_error_that_names_what_is_wrong(name):
    patterns, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        depth_from_patterns(patterns, variables())
