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


def test_the_optimizer_has_no_setting_but_reach(load):
    digits = load("digits")
    found = digits.OPTIMIZERS[digits.OURS](digits.make_model(), 1e-3)
    assert f"reach={found.reach}" in digits.OURS
    plain = DualOpt(1e-3, reach=found.reach)
    depth = {"depth": found.get_config()["depth"]}
    assert found.get_config() == plain.get_config() | depth


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


def test_the_last_lines_say_how_much_rate_and_length_decide(load, capsys):
    cells = {(1e-3, 100): [(60.0, 90.0), (70.0, 80.0)], (1e-3, 300): [(40, 95)]}
    digits = load("digits")
    found = digits.means({"Adam": cells})
    digits.print_point(found)
    said = capsys.readouterr().out
    assert "keeps 40 to 65 %, and learns 85 to 95 %" in said
