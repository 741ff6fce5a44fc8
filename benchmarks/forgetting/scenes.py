"""Scenes: shapes that are drawn over real textures, and where they are.

Every picture has one to three circles, squares and triangles. What fills them
and what is behind them is cut from photographs of the Debian package
tuxpaint-stamps-default, which are read where they are installed. Nothing says
which shape is which but its outline.
"""

import dataclasses
import functools

import numpy as np

from .packages import STAMPS, debian_package, imported

SIDE = 48
KINDS = ("circle", "square", "triangle")
# What each place of a map may be: 0 is the background.
CLASSES = 1 + len(KINDS)
MOST = 3
# Drawings and lettering have no texture.
FLAT = ("cartoon", "symbols", "alphabets", "money", "houses", "roadsigns")
# So many cuts of a photograph, itself at most this large, in pixels.
CUTS, LARGEST = 12, 160


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Pictures and what is in them.

    Args:
        images: Scenes × side × side × 3, in [0, 1].
        maps: Scenes × side × side: 0, or one more than the shape's kind.
        boxes: Scenes × shapes × 4: left, top, right and bottom edge in pixels
            of what is seen of a shape; 0 where there is none.
        kinds: Scenes × shapes: a place in `KINDS`, -1 where there is none.
        masks: Scenes × shapes × side × side: whether a shape is seen there.
    """

    images: np.ndarray
    maps: np.ndarray
    boxes: np.ndarray
    kinds: np.ndarray
    masks: np.ndarray


@functools.cache
def textures(folders, test):
    """Return cuts of photographs, `SIDE` pixels wide, with values in [0, 1].

    Args:
        folders: Which of the package's folders to take them from.
        test: Every fourth photograph is for validation and tests alone.
    """
    open_image = imported("PIL.Image", "pillow").open
    root = debian_package("usr/share/tuxpaint/stamps", STAMPS)
    random = np.random.default_rng(0)
    paths = [
        path
        for folder in folders
        for path in sorted((root / folder).rglob("*.png"))
        if not any(word in path.as_posix() for word in FLAT)
    ]
    cuts = []
    for i, path in enumerate(paths):
        if (i % 4 == 0) != test:
            continue
        picture = open_image(path).convert("RGBA")
        picture.thumbnail((LARGEST, LARGEST))
        pixels = np.asarray(picture)
        corners = np.argwhere(_opaque(pixels[..., 3] == 255))
        for top, left in random.permutation(corners)[:CUTS]:
            cut = pixels[top : top + SIDE, left : left + SIDE, :3]
            cuts.append(cut.astype("float32") / 255)
    return np.stack(cuts)


def _opaque(solid):
    """Return where the upper left corner of a cut without holes may be."""
    if min(solid.shape) < SIDE:
        return np.zeros((0, 0), bool)
    total = np.pad(solid.astype(int).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = (
        total[SIDE:, SIDE:]
        - total[:-SIDE, SIDE:]
        - total[SIDE:, :-SIDE]
        + total[:-SIDE, :-SIDE]
    )
    return inside == SIDE * SIDE


def outline(kind, center, radius, turn):
    """Return where a shape is.

    Args:
        kind: One of `KINDS`.
        center: Its place from the left and from the top, in pixels.
        radius: Of the circle that it touches from within.
        turn: By how much it is turned, in degrees. At 0 a square stands on
            its side and a triangle too, its tip above.
    """
    down, right = np.mgrid[:SIDE, :SIDE] + 0.5
    right, down = right - center[0], down - center[1]
    if kind == "circle":
        return right**2 + down**2 <= radius**2
    sides = {"square": 4, "triangle": 3}[kind]
    # Inside means: behind every side, seen from the center. The first side is
    # below.
    angles = np.deg2rad(90 + turn + 360 / sides * np.arange(sides))
    far = radius * np.cos(np.pi / sides)
    return np.all(
        [right * np.cos(a) + down * np.sin(a) <= far for a in angles], axis=0
    )


# Of red, green and blue: what shapes and ground have left.
RED, BLUE = np.float32([1, 0.6, 0.3]), np.float32([0.3, 0.6, 1])


def draw(count, folders, seed, tinted=False, test=False):
    """Return `Scenes`: light shapes, standing on a side, on dark ground.

    Args:
        count: How many.
        folders: Of `textures`.
        seed: The same scenes for the same seed.
        tinted: Red shapes on blue ground instead, standing on a corner, both
            as light as they come.
        test: Of `textures`.
    """
    cuts, random = textures(tuple(folders), test), np.random.default_rng(seed)
    images = np.zeros((count, SIDE, SIDE, 3), "float32")
    maps = np.zeros((count, SIDE, SIDE), "int32")
    boxes = np.zeros((count, MOST, 4), "float32")
    kinds = np.full((count, MOST), -1, "int32")
    masks = np.zeros((count, MOST, SIDE, SIDE), bool)
    for i in range(count):
        cut = _cut(random, cuts)
        images[i] = cut * BLUE if tinted else cut / 2
        for shape in range(random.integers(1, MOST + 1)):
            kind = random.integers(len(KINDS))
            radius = random.uniform(8, 14)
            turn = random.uniform(-15, 15)
            if tinted:
                turn += 180 / {"square": 4, "triangle": 3}.get(KINDS[kind], 1)
            seen = outline(
                KINDS[kind],
                random.uniform(radius, SIDE - radius, 2),
                radius,
                turn,
            )
            # One that would leave too little of another is left away.
            left = masks[i] & ~seen
            if np.any(left.sum((1, 2)) < 0.4 * masks[i].sum((1, 2))):
                continue
            masks[i], masks[i, shape], kinds[i, shape] = left, seen, kind
            cut = _cut(random, cuts)
            filling = cut * RED if tinted else (1 + cut) / 2
            images[i] = np.where(seen[..., None], filling, images[i])
            maps[i][seen] = 1 + kind
        for shape in np.flatnonzero(kinds[i] >= 0):
            rows, columns = np.nonzero(masks[i, shape])
            boxes[i, shape] = (
                columns.min(),
                rows.min(),
                columns.max() + 1,
                rows.max() + 1,
            )
    return Scenes(images, maps, boxes, kinds, masks)


def _cut(random, cuts):
    """Return one of the cuts, mirrored or not."""
    return cuts[random.integers(len(cuts))][:, :: random.choice([-1, 1])]
