"""The examples run from end to end and draw their picture."""

import importlib.util
from pathlib import Path

import pytest

# The other environments have neither matplotlib nor scikit-learn, to prove
# that the library needs neither.
pytest.importorskip("matplotlib", reason="the examples extra is not installed")
pytest.importorskip("sklearn", reason="the examples extra is not installed")

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("name", ["digits", "search"])
def test_example_runs_and_draws(name, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)  # One imports from the other.
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    picture = tmp_path / f"{name}.png"
    module.main(["--quick", "--picture", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert str(picture) in capsys.readouterr().out
