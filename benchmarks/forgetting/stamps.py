"""Pictures of things, hundreds of them photographs, for ImageNet's network.

Tux Paint's stamps, from the Debian package `tuxpaint-stamps-default` (GPL-2):
each a thing without a background, in a folder that says of what kind it is.
"""

import functools

import numpy as np

from .packages import STAMPS, debian_package, imported

# EfficientNet-Lite0 names few things rightly below this; above it a step
# takes longer.
SIDE = 160
# The folders of each kind; stamps of others are of no kind.
KINDS = {
    "animal": ("animals",),
    "plant": ("plants", "food"),
    "town": ("town",),
    "vehicle": ("vehicles",),
    "utensil": ("household", "hobbies", "clothes", "sports", "medical"),
}
# Letters, coins and the like.
LEFT_OUT = ("symbols",)
# A drawing has fewer colours, but for a few.
COLOURS = 5000


@functools.cache
def stamps():
    """Return `(pictures, kinds, photographs)`.

    Pictures are float32 arrays of 160×160×3 with values 0 to 255, each thing
    as large as it fits, on white. Kinds are numbers, in the order of `KINDS`,
    -1 where there is none; photographs are where there are many colours.
    """
    open_image = imported("PIL.Image", "pillow").open
    folder = debian_package("usr/share/tuxpaint/stamps", STAMPS)
    kind_of = {
        name: number
        for number, names in enumerate(KINDS.values())
        for name in names
    }
    pictures, kinds, photographs = [], [], []
    for path in sorted(folder.rglob("*.png")):
        parts = path.relative_to(folder).parts
        if parts[0] in LEFT_OUT:
            continue
        with open_image(path) as opened:
            image = opened.convert("RGBA")
        pictures.append(_on_white(image))
        kinds.append(kind_of.get(parts[0], -1))
        photographs.append(
            "cartoon" not in parts and _colours(image) >= COLOURS
        )
    return np.stack(pictures), np.array(kinds, "int32"), np.array(photographs)


def _on_white(image):
    from PIL import Image

    share = SIDE / max(image.size)
    width, height = (max(1, round(length * share)) for length in image.size)
    thing = image.resize((width, height), Image.Resampling.BICUBIC)
    square = Image.new("RGBA", (SIDE, SIDE), "white")
    corner = ((SIDE - width) // 2, (SIDE - height) // 2)
    square.paste(thing, corner, thing)
    return np.asarray(square.convert("RGB"), "float32")


def _colours(image):
    """Return how many colours are in what is not transparent."""
    pixels = np.asarray(image, "int64")
    seen = pixels[pixels[..., 3] > 250][:, :3]
    return len(np.unique(seen @ [1, 256, 256**2]))
