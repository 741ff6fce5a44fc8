"""The experiments with KerasHub's vision transformer, LoRA and prompts."""

import numpy as np
import pytest
import scripts
from cases import BACKEND


@pytest.fixture
def load(monkeypatch):
    with scripts.importing("benchmarks", monkeypatch) as load:
        monkeypatch.setattr(load("forgetting.transformer"), "LAYERS", 1)
        yield lambda name: load(f"forgetting.{name}")


def noise(load, shared_head):
    """Return a task of 14×14 noise with a class's own brightness."""
    tasks, random = load("tasks"), np.random.default_rng(0)

    def part(count, sign):
        labels = np.arange(count, dtype="int32") % 3
        images = random.normal(0, 0.1, (count, 14, 14, 1))
        images = images + sign * labels[:, None, None, None] / 3
        return tasks.Part(images.astype("float32"), labels)

    sizes = {"train": 32, "validation": 9, "test": 9}
    old, new = (
        {name: part(count, sign) for name, count in sizes.items()}
        for sign in (1, -1)
    )
    return tasks.Task("noise", old, new, shared_head)


def values(variables):
    return [np.array(v) for v in variables]


@pytest.mark.parametrize("shared_head", [True, False])
@pytest.mark.parametrize("name", ["lora", "prompts"])
def test_what_is_added_alone_is_trained(load, name, shared_head):
    method = load("methods").METHODS[name]
    make, task = load("problem").Problem, noise(load, shared_head)
    backbone = load("backbones").load_backbone("vit")
    problem = make(backbone, task, method.adapt)
    random = np.random.default_rng(1)
    weights = [random.normal(0, 0.2, v.shape) for v in problem.known_by]
    start = load("problem").Start(task, weights, 1e-2, 1e-3, 0)
    plain = make(load("backbones").load_backbone("vit"), task)
    plain.begin(weights, seed=0)
    images = task.old["test"].inputs
    known = plain.answer(plain.reviewer, images)
    problem.begin(weights, seed=0)
    added = values(problem.added)
    begun = problem.answer(problem.reviewer, images)
    # LoRA begins with what was known; prompts are tokens from the first.
    assert np.allclose(begun, known, atol=1e-4) == (name == "lora")
    (_,) = problem.fine_tune(method, [start], (5,))
    assert not any(map(np.array_equal, values(problem.added)[-1:], added[-1:]))
    for variable, weight in zip(problem.known_by, weights):
        frozen = not any(variable is v for v in problem.pretrained)
        # LoRA's layers go on training their biases.
        assert frozen or (name, variable.path[-4:]) == ("lora", "bias")
        if frozen:
            np.testing.assert_allclose(np.array(variable), weight, rtol=1e-6)
    # The next run begins as the first did.
    problem.begin(weights, seed=0)
    for one, two in zip(values(problem.added), added, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.skipif(BACKEND != "jax", reason="made quick for JAX alone")
def test_the_transformer_runs_and_is_reported(
    load, tmp_path, capsys, monkeypatch
):
    pytest.importorskip("scipy", reason="the examples extra is missing")
    task = noise(load, shared_head=False)
    monkeypatch.setitem(load("tasks").TASKS, "mnist", lambda seed: task)
    monkeypatch.setattr(load("experiments"), "TASKS", ("mnist",))
    main = load("__main__").main
    asked = ["--quick", "--results", str(tmp_path)]
    asked += ["--methods", "lora", "prompts", "reach"]
    # The order of methods does not matter: what is known is learned by the
    # network as it is.
    monkeypatch.setattr(
        load("experiments"), "TRANSFORMER", ("prompts", "lora", "reach")
    )
    main(["transformer", *asked])
    written = (tmp_path / "transformer_vit.csv").read_text()
    capsys.readouterr()
    main(["transformer", *asked])
    assert "3 of 3 runs are there" in capsys.readouterr().out
    # Three methods, two lengths of training.
    assert written.count("\n") == 1 + 3 * 2
    load("report").report(tmp_path, tmp_path)
    printed = capsys.readouterr().out
    for said in (
        "## transformer_vit mnist",
        "| LoRA |",
        "| visual prompts |",
    ):
        assert said in printed
