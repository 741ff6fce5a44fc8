"""Pictures: drawn without a window, labelled, and optional."""

import io
import itertools
import sys

import networks
import numpy as np
import pytest

from keras_dualopt import DualOpt, ReviewCurve, plot_strength
from keras_dualopt.callbacks import Drift, DriftRecord, Retention
from keras_dualopt.callbacks.drift import LOG_KEYS, QUANTITIES, Sample
from keras_dualopt.plots import draw_trade_off
from keras_dualopt.pull import decay_strength, rollback_strength

STEPS = [1, 6, 11, 13]


def record(mode="finetune", layers=5, samples=4):
    """Return a record in which every number is another one."""
    relative = np.linspace(0.0, 1.0, layers)
    names = [f"model/block_{layer}/dense" for layer in range(layers)]
    result = DriftRecord(mode, names, relative)
    for column, step in enumerate(STEPS[:samples]):
        values = 0.1 * (column + 1) + 0.01 * np.arange(layers)
        values[0] = np.nan
        quantities = QUANTITIES
        result.add(
            Sample(
                step,
                {name: values * (1 + k) for k, name in enumerate(quantities)},
                {key: 0.1 * (k + column) for k, key in enumerate(LOG_KEYS)},
            )
        )
    return result


def drift_with(found):
    drift = Drift()
    drift.record = found
    return drift


@pytest.fixture(autouse=True)
def matplotlib(request):
    if "without" not in request.node.name:
        pytest.importorskip("matplotlib")


def texts(figure):
    """Return everything that is written in a figure."""
    from matplotlib.text import Text

    return " ".join(t.get_text() for t in figure.findobj(Text))


def lines(axes):
    return {line.get_label(): line.get_xydata() for line in axes.get_lines()}


@pytest.mark.parametrize("quantity", ["drift", "pull_share", "reach_used"])
@pytest.mark.parametrize("mode", ["finetune", "scratch"])
def test_drift_is_drawn_as_a_map_and_totals(mode, quantity, tmp_path):
    found = record(mode)
    figure = drift_with(found).plot(tmp_path / "drift.png", quantity)
    mesh = figure.axes[0].collections[0]
    drawn = np.ma.filled(mesh.get_array().astype("float64"), np.nan)
    np.testing.assert_array_equal(drawn.reshape(5, 4), found.matrix(quantity))
    # Depth runs down, with the input on top; every sample has its own width.
    assert figure.axes[0].get_ylim()[0] > figure.axes[0].get_ylim()[1]
    edges = mesh.get_coordinates()[0, :, 0]
    np.testing.assert_array_equal(edges, [-1.5, 3.5, 8.5, 12.0, 14.0])
    totals = lines(figure.axes[1])
    for label, key in (
        ("all", "drift"),
        ("r < 0.5", "drift_shallow"),
        ("r ≥ 0.5", "drift_deep"),
    ):
        np.testing.assert_allclose(totals[label][:, 0], STEPS)
        np.testing.assert_allclose(totals[label][:, 1], found.totals[key])
    written = texts(figure)
    assert "step (updates so far)" in written
    assert "block_4/dense  1.00" in written
    assert ("norm ‖θ‖" in written) == (mode == "scratch")
    assert (tmp_path / "drift.png").stat().st_size > 10_000


@pytest.mark.parametrize(("layers", "samples"), [(1, 1), (2, 1), (120, 4)])
def test_drift_is_drawn_for_few_and_many_layers(layers, samples):
    figure = drift_with(record("finetune", layers, samples)).plot()
    figure.savefig(io.BytesIO())  # Lays it out.
    rows = [t for t in figure.axes[0].get_yticklabels() if t.get_text()]
    assert len(rows) == layers
    boxes = [row.get_window_extent() for row in rows]
    # None is written over the next, or cut at the picture's border.
    for upper, lower in itertools.pairwise(boxes):
        assert upper.y0 >= lower.y1 - 1.0
    assert min(box.x0 for box in boxes) >= 0.0
    panels = [a.get_window_extent().height for a in figure.axes[1:4]]
    assert max(panels) < 2.5 * figure.dpi


def test_layers_names_are_whole():
    found = record("finetune", 3)
    found.layers = [
        f"task/backbone/transformer_block_{n}/attention_output_projection/dense"
        for n in range(3)
    ]
    found.layers[0] = "task/backbone/patches"
    figure = drift_with(found).plot()
    figure.savefig(io.BytesIO())  # Lays it out.
    labels = figure.axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == [
        "patches  0.00",
        "transformer_block_1/attention_output_projection/dense  0.50",
        "transformer_block_2/attention_output_projection/dense  1.00",
    ]
    assert min(label.get_window_extent().x0 for label in labels) >= 0.0
    # The map keeps room beside them.
    width = figure.axes[0].get_window_extent().width
    assert width > 0.25 * figure.get_window_extent().width


@pytest.mark.parametrize("used", [True, False])
def test_the_reach_that_is_used_has_a_panel_where_there_is_one(used):
    found = record()
    if not used:
        for sample in found._samples:
            sample.totals["reach_used"] = float("nan")
    figure = drift_with(found).plot()
    titles = [axes.get_title() for axes in figure.axes]
    assert any("reach" in title for title in titles) == used


def test_one_outlier_does_not_take_all_the_colours():
    found = record("finetune", 40, 4)
    for sample in found._samples:
        sample.layers["drift"][1] = 50.0
    figure = drift_with(found).plot()
    mesh = figure.axes[0].collections[0]
    assert 0.5 < mesh.get_clim()[1] < 1.0
    assert figure.axes[-1]._colorbar.extend == "max"
    found = record("finetune", 40, 4)
    assert drift_with(found).plot().axes[0].collections[0].get_clim() == (
        0.0,
        np.nanmax(found.matrix("drift")),
    )


def test_strength_is_drawn_over_depth_with_a_mark_a_layer(tmp_path):
    model = networks.network(networks.weights())
    built = networks.dual_opt().bind(model)
    built.build(model.trainable_variables)
    other = DualOpt(rollback=0.05, power=4.0)
    figure = plot_strength(built, other, path=tmp_path / "strength.png")
    curve, marks, second, none = figure.axes[0].get_lines()
    settings = (0.21, 0.013, 1.7)
    for line in (curve, marks):
        x, y = line.get_xydata().T
        np.testing.assert_allclose(
            y, [rollback_strength(r, *settings) for r in x]
        )
    np.testing.assert_allclose(marks.get_xdata(), [0.0, 0.5, 1.0])
    x, y = second.get_xydata().T
    np.testing.assert_allclose(
        y, [rollback_strength(r, 0.05, 0.0, 4.0) for r in x]
    )
    assert len(none.get_xdata()) == 0
    assert "rollback = 0.21, rollback_min = 0.013, power = 1.7" in texts(figure)
    assert (tmp_path / "strength.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("reach", "unit", "label"),
    [
        (0.05, "go from θ₀", "reach = 0.05, reach_max = 0.15"),
        ("20%", "share of its layer's size", "reach = 20%, reach_max = 60%"),
    ],
)
def test_reach_is_drawn_in_its_unit_and_only_of_what_is_pulled(
    reach, unit, label
):
    model = networks.network(networks.weights())
    first = model.layers[0].name
    optimizer = DualOpt(reach=reach, exclude=f".*{first}/.*").bind(model)
    optimizer.build(model.trainable_variables)
    figure = plot_strength(optimizer)
    _, marks = figure.axes[0].get_lines()
    np.testing.assert_allclose(marks.get_xdata(), [0.5, 1.0])
    assert marks.get_ydata().min() > 0.0
    assert unit in texts(figure)
    assert label in texts(figure)


def test_strength_of_scratch_mode_has_the_units_of_weight_decay():
    figure = plot_strength(DualOpt(**networks.SCRATCH))
    x, y = figure.axes[0].get_lines()[0].get_xydata().T
    np.testing.assert_allclose(
        y, [decay_strength(r, 0.9, 0.11, 1.7) for r in x]
    )
    assert "AdamW" in texts(figure)


def test_strengths_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="set in one unit"):
        plot_strength(DualOpt(), DualOpt(mode="scratch"))
    with pytest.raises(ValueError, match="reach, a share"):
        plot_strength(DualOpt(reach=0.05), DualOpt(reach="20%"))
    with pytest.raises(ValueError, match="Received: 0"):
        plot_strength()
    with pytest.raises(TypeError, match="Received: str"):
        plot_strength("adam")


def test_the_trade_off_is_drawn_by_epoch(tmp_path):
    retention = Retention({"a": (1, 2), "b": (1, 2)}, rule={"loss": -1.0})
    retention.before = {"kept_a_loss": 0.1, "kept_a_accuracy": 0.9}
    retention.epochs = [
        {
            "val_loss": 1.0,
            "val_accuracy": 0.5 + 0.1 * epoch,
            "kept_a_loss": 0.5,
            "kept_a_accuracy": 0.8 - 0.1 * epoch,
            "retention_score": [0.2, 0.4, 0.3][epoch],
        }
        for epoch in range(3)
    ]
    figure = retention.plot(tmp_path / "trade.png")
    points = figure.axes[0].collections[0]
    np.testing.assert_allclose(
        points.get_offsets(), [[0.5, 0.8], [0.6, 0.7], [0.7, 0.6]]
    )
    np.testing.assert_array_equal(points.get_array(), [1, 2, 3])
    written = texts(figure)
    for label in ("val_accuracy", "kept_a_accuracy", "epoch 2"):
        assert label in written
    by_name = retention.plot(new="val_loss", kept="kept_a_loss")
    np.testing.assert_allclose(
        by_name.axes[0].collections[0].get_offsets(), [[1.0, 0.5]] * 3
    )
    with pytest.raises(ValueError, match="Received: 'val_auc'"):
        retention.plot(new="val_auc")


@pytest.mark.parametrize(
    ("new", "kept"),
    [([0.2, 0.5, 0.9], [0.9, 0.7, 0.3]), ([0.9, 0.5], [0.2, 0.9])],
)
def test_the_names_of_epochs_stay_inside_of_the_axes(new, kept):
    figure = draw_trade_off(new, kept, 0.4, 1, ("new", "kept"))
    figure.savefig(io.BytesIO())  # Lays it out.
    border = figure.axes[0].get_window_extent()
    names = [
        text
        for text in figure.axes[0].texts
        if text.get_text().startswith("epoch")
    ]
    assert len(names) == 2
    for name in names:
        box = name.get_window_extent()
        assert border.x0 <= box.x0 < box.x1 <= border.x1
        assert border.y0 <= box.y0 < box.y1 <= border.y1


def test_the_way_back_is_drawn_with_the_chosen_alpha(tmp_path):
    curve = ReviewCurve(
        [1.0, 0.5, 0.25],
        {
            "old_loss": [9.0, 5.0, 1.0],
            "old_accuracy": [0.2, 0.7, 0.9],
            "new_accuracy": [0.9, 0.8, 0.1],
        },
    )
    assert curve.choose({"old_accuracy": 1.0, "new_accuracy": 1.0}) == 0.5
    figure = curve.plot(tmp_path / "review.png")
    drawn = lines(figure.axes[0])
    assert list(drawn) == ["old_accuracy", "new_accuracy", "α = 0.5"]
    np.testing.assert_allclose(
        drawn["old_accuracy"], [[1.0, 0.2], [0.5, 0.7], [0.25, 0.9]]
    )
    left, right = figure.axes[0].get_xlim()
    assert left < right  # Pretrained on the left.
    assert "0: pretrained" in texts(figure)
    np.testing.assert_allclose(drawn["α = 0.5"][:, 0], 0.5)
    assert list(lines(curve.plot(metrics=["old_loss"]).axes[0])) == [
        "old_loss",
        "α = 0.5",
    ]
    with pytest.raises(ValueError, match="Received: 'auc'"):
        curve.plot(metrics=["auc"])
    alone = ReviewCurve([1.0, 0.0], {"mean_absolute_error": [0.1, 0.2]}).plot()
    assert alone.axes[0].get_ylabel() == "mean_absolute_error"


@pytest.mark.parametrize("made", [Drift(), Retention((1, 2))])
def test_nothing_is_drawn_before_training(made):
    with pytest.raises(ValueError, match="has watched a `fit`"):
        made.plot()


def test_drawing_without_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"keras-dualopt\[plots\]"):
        plot_strength(DualOpt())
    with pytest.raises(ImportError, match=r"keras-dualopt\[plots\]"):
        drift_with(record()).plot()


def test_no_window_is_opened_and_none_is_left():
    from matplotlib import pyplot

    plot_strength(DualOpt()).savefig(io.BytesIO())
    assert pyplot.get_fignums() == []
