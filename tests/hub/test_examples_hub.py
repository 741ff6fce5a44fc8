"""The examples that need KerasHub run to the end and ship a model."""

import keras_hub
import pytest
import scripts

# The other environments have neither, to prove that the library needs neither.
pytest.importorskip("matplotlib", reason="the examples extra is not installed")
pytest.importorskip("sklearn", reason="the examples extra is not installed")


@pytest.fixture
def load(monkeypatch):
    with scripts.importing("examples", monkeypatch) as load:
        yield load


# KerasHub's tasks come back from a file compiled with their own default.
@pytest.mark.filterwarnings(
    "ignore:`compile..` was not called as part of model loading:UserWarning",
    "ignore:Skipping variable loading for optimizer:UserWarning",
)
@pytest.mark.parametrize(
    ("name", "short"), [("vit_images", "vit"), ("bert_texts", "bert")]
)
def test_example_ends_with_a_picture_and_a_shipped_file(
    name, short, load, tmp_path, capsys
):
    load(name).main(["--small", "--epochs", "1", "--out", str(tmp_path)])
    picture = tmp_path / f"{short}.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "kept_accuracy" in printed
    assert "The shipped file names" in printed
    # Neither the small model's averages nor its anchors: weights alone.
    assert (tmp_path / f"{short}.keras").stat().st_size > 0


@pytest.mark.parametrize("name", ["vit_images", "bert_texts"])
def test_a_preset_out_of_reach_is_said_and_replaced(
    name, load, monkeypatch, capsys
):
    example = load(name)

    def unreachable(preset, **_):
        raise ConnectionError("no network")

    for task in (
        keras_hub.models.ImageClassifier,
        keras_hub.models.TextClassifier,
    ):
        monkeypatch.setattr(task, "from_preset", unreachable)
    monkeypatch.setattr(example, "pretrained_small", lambda epochs: "small")
    assert example.pretrained(small=False, epochs=1) == "small"
    assert f"{example.PRESET} cannot be reached" in capsys.readouterr().out
