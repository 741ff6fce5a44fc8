"""The examples run from end to end, and divide and choose as they say."""

import numpy as np
import pytest
import scripts

from keras_dualopt import DualOpt

# The other environments have neither matplotlib nor scikit-learn, to prove
# that the library needs neither.
pytest.importorskip("matplotlib", reason="the examples extra is not installed")
pytest.importorskip("sklearn", reason="the examples extra is not installed")


@pytest.fixture
def load(monkeypatch):
    with scripts.importing("examples", monkeypatch) as load:
        yield load


@pytest.mark.parametrize("name", ["digits", "search"])
def test_example_runs_and_draws(name, load, tmp_path, capsys):
    picture = tmp_path / "new" / f"{name}.png"
    load(name).main(["--quick", "--picture", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert str(picture) in capsys.readouterr().out


@pytest.mark.parametrize("seed", [0, 1])
def test_no_digit_is_in_two_parts(seed, load):
    parts = load("digits_data").load_parts(seed)
    digits = np.concatenate([digits for digits, _ in parts.values()])
    # scikit-learn's set has no two equal digits.
    assert len(np.unique(digits, axis=0)) == len(digits) == 1797


def test_the_defaults_are_among_the_rows_as_they_are(load):
    digits = load("digits")
    found = digits.make_optimizer(digits.DEFAULTS, digits.make_model())
    for name in ("rollback", "rollback_min", "power"):
        assert getattr(found, name) == getattr(DualOpt(1e-3), name)


def test_every_style_is_another_picture_of_the_same_digits(load):
    data = load("digits_data")
    part = data.load_parts(0)["validation"]
    styles = (*data.OLD_STYLES, data.NEW_STYLE)
    images, labels = data.in_styles(part, styles, 0)
    drawn = np.split(images, len(styles))
    assert len(np.unique([images.mean() for images in drawn])) == len(styles)
    np.testing.assert_array_equal(labels, np.tile(part[1], len(styles)))
    assert images.min() == 0
    assert images.max() == 1


def measured(new_validation, old_validation, new=0.0, old=0.0):
    return [
        {
            "new_validation": new_validation,
            "old_validation": old_validation,
            "new": new,
            "old": old,
        }
    ]


@pytest.mark.parametrize("test_digits", [(0.0, 0.0), (99.0, 99.0)])
def test_validation_digits_alone_choose_the_setting(test_digits, load):
    digits = load("digits")
    adam, weak, strong, too_strong = settings = [
        digits.Setting("Adam", "learning_rate", 1e-3),
        *(digits.Setting("DualOpt", "rollback", v) for v in (1e-3, 1e-2, 0.1)),
    ]
    allowed = 94.0 - digits.ALLOWED_LOSS
    results = {
        adam: measured(94.0, 40.0),
        weak: measured(93.9, 50.0),
        strong: measured(allowed, 60.0),
        too_strong: measured(allowed - 0.1, 90.0, *test_digits),
    }
    assert digits.choose(results, settings[1:], adam) == strong
    assert digits.choose(results, [too_strong], adam) is None


def test_dualopt_is_compared_with_adam_where_both_learn_the_same(load):
    digits = load("digits")
    fast, slow = adam = [
        digits.Setting("Adam", "learning_rate", v) for v in (1e-3, 1e-4)
    ]
    between = digits.Setting("DualOpt", "rollback", 1e-2)
    outside = digits.Setting("DualOpt", "rollback", 1.0)
    results = {
        fast: measured(0.0, 0.0, new=94.0, old=40.0),
        slow: measured(0.0, 0.0, new=86.0, old=80.0),
        between: measured(0.0, 0.0, new=92.0, old=60.0),
        outside: measured(0.0, 0.0, new=80.0, old=95.0),
    }
    assert digits.kept_more(results, adam, between) == pytest.approx(10.0)
    assert digits.kept_more(results, adam, outside) is None
