"""Scenes are drawn, and what is found in them is measured, as they say."""

import numpy as np
import pytest
import scripts

SIDE = 48


@pytest.fixture
def load(monkeypatch):
    with scripts.importing("benchmarks", monkeypatch) as load:
        yield lambda name: load(f"forgetting.{name}")


@pytest.fixture
def scenes(load, monkeypatch):
    """Return the module, its photographs replaced by noise."""
    scenes = load("scenes")
    noise = np.random.default_rng(0).random((5, SIDE, SIDE, 3))
    monkeypatch.setattr(
        scenes, "textures", lambda folders, test: noise.astype("float32")
    )
    return scenes


# --- scenes ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "area", "same"),
    [
        ("circle", np.pi, 17),
        ("square", 2, 90),
        ("triangle", 3**1.5 / 4, 120),
    ],
)
def test_an_outline_has_its_area_and_symmetry(load, kind, area, same):
    outline = load("scenes").outline
    shape = outline(kind, (23.3, 25.1), 17.0, 11.0)
    np.testing.assert_allclose(shape.sum(), area * 17**2, rtol=0.02)
    turned = outline(kind, (23.3, 25.1), 17.0, 11.0 + same)
    # Rounding may take an edge to the other side of a pixel's center.
    assert (shape != turned).sum() <= 2


def test_a_triangle_stands_on_its_side_and_turned_on_its_tip(load):
    for turn, widest in ((0, 1), (180, -1)):
        shape = load("scenes").outline("triangle", (24, 24), 14, turn)
        widths = shape.sum(axis=1)[shape.any(axis=1)][::widest]
        assert np.all(np.diff(widths) >= 0)
        assert widths[-1] > 20


@pytest.mark.parametrize("tinted", [False, True])
def test_boxes_and_maps_say_what_masks_show(scenes, tinted):
    drawn = scenes.draw(30, ["any"], 3, tinted)
    assert drawn.masks.sum(axis=1).max() == 1
    assert set(np.unique(drawn.kinds)) == {-1, 0, 1, 2}
    for i, shape in np.ndindex(drawn.kinds.shape):
        mask, kind = drawn.masks[i, shape], drawn.kinds[i, shape]
        assert mask.any() == (kind >= 0)
        if kind < 0:
            continue
        assert np.all(drawn.maps[i][mask] == 1 + kind)
        left, top, right, bottom = drawn.boxes[i, shape].astype(int)
        assert mask[top:bottom, left:right].sum() == mask.sum()
        for edge in (
            mask[top],
            mask[bottom - 1],
            mask[:, left],
            mask[:, right - 1],
        ):
            assert edge.any()
    assert np.all((drawn.maps > 0) == drawn.masks.any(axis=1))


def test_old_shapes_are_lighter_and_new_ones_redder_than_the_ground(scenes):
    for tinted in (False, True):
        drawn = scenes.draw(30, ["any"], 3, tinted)
        shapes = drawn.images[drawn.maps > 0]
        ground = drawn.images[drawn.maps == 0]
        if tinted:
            assert shapes[:, 0].mean() > 2 * ground[:, 0].mean()
            difference = shapes.mean() - ground.mean()
            assert abs(difference) < 0.02
        else:
            assert shapes.min() >= 0.5 >= ground.max()


def test_a_seed_makes_its_own_scenes_again(scenes):
    first, again = (scenes.draw(5, ["any"], 3) for _ in range(2))
    np.testing.assert_array_equal(first.images, again.images)
    other = scenes.draw(5, ["any"], 4)
    assert not np.array_equal(first.maps, other.maps)


def test_tests_have_photographs_of_their_own(load):
    scenes = load("scenes")
    try:
        parts = [scenes.textures(("animals",), test) for test in (False, True)]
    except load("packages").MissingPackageError as error:
        pytest.skip(str(error))
    assert all(len(part) > 50 for part in parts)
    assert all(part.shape[1:] == (SIDE, SIDE, 3) for part in parts)
    assert all(0 <= part.min() < part.max() <= 1 for part in parts)
    both = np.concatenate([np.unique(part, axis=0) for part in parts])
    assert len(np.unique(both, axis=0)) == len(both)


@pytest.mark.parametrize("name", ["maps", "boxes", "masks"])
def test_no_scene_is_in_two_parts_or_of_two_seeds(
    load, scenes, monkeypatch, name
):
    tasks = load("tasks")
    for sizes in (tasks.SCENES, tasks.NEW_SCENES):
        for part in sizes:
            monkeypatch.setitem(sizes, part, 6)
    one, two = (tasks.load_task(f"scenes_{name}", seed) for seed in (0, 1))
    tasks._drawn.cache_clear()
    # The old scenes and the new tests are every seed's.
    parts = [*one.old.values(), *one.new.values()]
    parts += [two.new["train"], two.new["validation"]]
    images = np.concatenate([part.inputs for part in parts])
    assert len(np.unique(images, axis=0)) == 8 * 6
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(
            one.old[part].inputs, two.old[part].inputs
        )
    np.testing.assert_array_equal(
        one.new["test"].inputs, two.new["test"].inputs
    )


def test_a_box_lies_above_its_image_and_around_its_mask(load, scenes):
    part = load("tasks")._masks(scenes.draw(20, ["any"], 3))
    assert part.inputs.shape == (20, 1 + SIDE, SIDE, 3)
    for inputs, mask in zip(part.inputs, part.labels):
        (left, top), (right, bottom) = inputs[0, :2, :2]
        rows, columns = np.nonzero(mask)
        assert (rows.min(), rows.max() + 1) == (top, bottom)
        assert (columns.min(), columns.max() + 1) == (left, right)


# --- measures --------------------------------------------------------------

A, B = (0, 0, 10, 10), (20, 20, 40, 30)
# Beside A: with an IoU of 0.49 and of 0.51.
FAR, NEAR = (0, 0, 4.9, 10), (0, 0, 5.1, 10)
NOTHING = ((0, 0, 0, 0), -1, 0.0)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([(A, 0, 0.9), (B, 0, 0.8)], 1),
        ([(B, 0, 0.1), (A, 0, 0.1)], 1),
        ([(A, 0, 0.9)], 1 / 2),
        ([(NEAR, 0, 0.9), (B, 0, 0.8)], 1),
        ([(FAR, 0, 0.9), (B, 0, 0.8)], 1 / 4),
        # The second box of one shape is wrong: 1, 1/2, 2/3.
        ([(A, 0, 0.9), (A, 0, 0.8), (B, 0, 0.7)], (1 + 2 / 3) / 2),
        # Not if it is the least sure.
        ([(A, 0, 0.9), (A, 0, 0.6), (B, 0, 0.7)], 1),
        # What comes later is better than what was so far: 0, 1/2, 2/3.
        ([(FAR, 0, 0.9), (B, 0, 0.8), (A, 0, 0.7)], 2 / 3),
        # Of another kind.
        ([(A, 1, 0.9), (B, 0, 0.8)], 1 / 2),
        ([], 0),
    ],
)
def test_average_precision_of_two_shapes(load, found, expected):
    found = [*found, *[NOTHING] * (3 - len(found))]
    boxes, labels, scores = (np.array([part]) for part in zip(*found))
    measured = load("vision").mean_average_precision(
        boxes.astype("float32"),
        labels,
        scores,
        np.array([[A, B, NOTHING[0]]], "float32"),
        np.array([[0, 0, -1]]),
    )
    assert measured == pytest.approx(expected)


def test_average_precision_is_the_mean_over_kinds_and_of_all_images(load):
    # Kind 0 is found first in the second image, wrongly in the first; kind 1
    # is found; kind 2 is nowhere, and found, which costs nothing.
    boxes = np.array([[B, A], [A, B]], "float32")
    measured = load("vision").mean_average_precision(
        boxes,
        np.array([[0, 1], [0, 2]]),
        np.array([[0.8, 0.5], [0.9, 0.4]]),
        np.array([[A, FAR], [A, FAR]], "float32"),
        np.array([[1, -1], [0, 0]]),
    )
    assert measured == pytest.approx((1 / 2 + 1) / 2)


def test_of_overlapping_boxes_the_surest_remains(load):
    boxes = np.array([[NEAR, A, B, B], [B, B, A, FAR]], "float32")
    logits = np.array(
        [
            [[1, 0], [0, 2], [-9, -9], [-9, -1]],
            [[-9, -8], [-9, -7], [1, 0], [0.5, 0.75]],
        ],
        "float32",
    )
    kept, kinds, scores = load("vision").strongest(boxes, logits, most=3)
    np.testing.assert_array_equal(kinds, [[1, 1, -1], [0, 1, -1]])
    np.testing.assert_array_equal(
        kept[:, :2], np.array([[A, B], [A, FAR]], "float32")
    )
    np.testing.assert_array_equal(scores[:, :2], [[2, -1], [1, 0.75]])


def test_mean_iou_of_maps_and_masks_of_a_known_answer(load):
    vision, tasks = load("vision"), load("tasks")
    maps = np.zeros((2, 4, 4), "int32")
    maps[0, :2], maps[1, :, 0] = 1, 3
    named = maps.copy()
    named[0, 0] = 2

    class Known(vision.Segmentation):
        def __init__(self):
            pass

        def answer(self, model, inputs):
            return np.eye(4)[named]

    # Background 20 of 20, class 1 4 of 8, 2 0 of 4, 3 4 of 4.
    part = tasks.Part(np.zeros((2, 4, 4, 3)), maps)
    measured = Known().accuracy(None, part)
    assert measured == pytest.approx(100 * (1 + 0.5 + 0 + 1) / 4)

    class KnownMasks(vision.Instances):
        def __init__(self):
            pass

        def answer(self, model, inputs):
            return np.where(named == 1, 3.0, -3.0)

    masks = tasks.Part(part.inputs[:1], (maps[:1] > 0).astype("int32"))
    named = named[:1]
    assert KnownMasks().accuracy(None, masks) == pytest.approx(100 * 4 / 8)
