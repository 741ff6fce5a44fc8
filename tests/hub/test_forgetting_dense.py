"""KerasHub's SegFormer, RetinaNet and SAM are fine-tuned on scenes."""

import json

import keras
import keras_hub
import numpy as np
import pytest
import scripts

BACKEND = keras.backend.backend()
# What is trained here is the benchmark, not the package.
only_torch = pytest.mark.skipif(
    BACKEND != "torch",
    reason="JAX compiles for 20 s, TensorFlow 2.21 may crash in SAM",
)


@pytest.fixture
def load(monkeypatch):
    """Return what imports the benchmark, few scenes, over noise, in it."""
    with scripts.importing("benchmarks", monkeypatch) as load_any:

        def load(name):
            return load_any(f"forgetting.{name}")

        noise = np.random.default_rng(0).random((5, 48, 48, 3))
        monkeypatch.setattr(
            load("scenes"),
            "textures",
            lambda folders, test: noise.astype("float32"),
        )
        for sizes in (load("tasks").SCENES, load("tasks").NEW_SCENES):
            for part in sizes:
                monkeypatch.setitem(sizes, part, 20)
        yield load


def problem(load, network):
    task = load("tasks").load_task(load("experiments").SCENES[network])
    backbone = load("backbones").load_backbone(network)
    return load("grid").PROBLEMS[network](backbone, task)


@only_torch
@pytest.mark.parametrize("network", ["segformer", "retinanet", "sam"])
def test_an_experiment_runs_and_is_reported(load, tmp_path, capsys, network):
    for drawing in ("matplotlib", "scipy"):
        pytest.importorskip(drawing, reason="the examples extra is missing")
    main = load("__main__").main
    asked = ["scenes", network, "--quick", "--results", str(tmp_path)]
    main([*asked, "--methods", "wise_ft", "reach", "replay"])
    about = json.loads((tmp_path / f"scenes_{network}.json").read_text())
    command = f"python -m benchmarks.forgetting scenes {network}"
    assert about["command"] == command
    assert about["backend"] == BACKEND
    capsys.readouterr()
    load("report").report(tmp_path, tmp_path)
    printed = capsys.readouterr().out
    assert f"## scenes_{network} scenes_" in printed
    assert "| DualOpt, reach | reach 0.0" in printed


@only_torch
@pytest.mark.parametrize("network", ["segformer", "retinanet", "sam"])
def test_a_network_learns_the_scenes_it_is_pretrained_on(load, network):
    made = problem(load, network)
    train = made.task.old["train"]

    def loss():
        answer = made.answer(made.reviewer, train.inputs)
        value = made.loss(
            *map(keras.ops.convert_to_tensor, (train.labels, answer))
        )
        return float(keras.ops.convert_to_numpy(value))

    # The seed alone says where it begins.
    made.begin_pretraining(0)
    first = made.reviewer.get_weights()
    made.begin_pretraining(1)
    before = loss()
    made.begin_pretraining(0)
    for one, two in zip(made.reviewer.get_weights(), first):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    (learned,) = made.pretrain([1], 20).values()
    made.begin(learned, seed=1)
    assert loss() < 0.9 * before
    # Every weight that is trained is of use.
    moved = [not np.array_equal(one, two) for one, two in zip(first, learned)]
    trained = {id(v) for v in made.pretrained}
    useless = [
        variable.path
        for variable, far in zip(made.reviewer.weights, moved)
        if id(variable) in trained and not far
    ]
    assert useless == []


def test_sam_itself_refuses_to_fit(load):
    task = next(
        layer
        for layer in load("backbones").load_backbone("sam").layers
        if isinstance(layer, keras_hub.models.SAMImageSegmenter)
    )
    with pytest.raises(NotImplementedError, match="inference"):
        task.fit()


def test_strongest_boxes_are_those_of_kerashub(load):
    random = np.random.default_rng(0)
    corners = random.uniform(0, 30, (4, 20, 2))
    boxes = np.concatenate(
        [corners, corners + random.uniform(6, 18, (4, 20, 2))], axis=-1
    ).astype("float32")
    logits = random.normal(-1, 2, (4, 20, 3)).astype("float32")
    expected = keras_hub.layers.NonMaxSuppression(
        bounding_box_format="xyxy",
        from_logits=True,
        iou_threshold=0.5,
        confidence_threshold=0.05,
        max_detections=10,
    )(boxes, logits)
    expected = {
        key: keras.ops.convert_to_numpy(value)
        for key, value in expected.items()
    }
    kept, kinds, scores = load("vision").strongest(boxes, logits)
    there = kinds >= 0
    np.testing.assert_array_equal(there.sum(1), expected["num_detections"])
    np.testing.assert_array_equal(kinds, expected["labels"])
    np.testing.assert_allclose(kept[there], expected["boxes"][there], atol=1e-4)
    np.testing.assert_allclose(
        1 / (1 + np.exp(-scores[there])),
        expected["confidence"][there],
        rtol=1e-5,
    )
