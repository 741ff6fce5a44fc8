"""Scikit-learn's handwritten digits, divided into parts, drawn in styles."""

import numpy as np
from sklearn.datasets import load_digits

OLD_STYLES = ("plain", "edges", "noisy")
NEW_STYLE = "inverted"
# How many digits each part gets; no digit is in two parts.
PARTS = {"pretrain": 800, "finetune": 300, "validation": 297, "test": 400}


def draw(digits, style, noise):
    """Return 8×8 digits with values in [0, 1] in one of the styles."""
    if style == "edges":
        down, across = np.gradient(digits, axis=(-2, -1))
        return np.clip(1.5 * np.hypot(down, across), 0, 1)
    if style == "noisy":
        return np.clip(digits + noise.normal(0, 0.2, digits.shape), 0, 1)
    if style == "inverted":
        return 1 - digits
    return digits


def load_parts(seed):
    """Return {part: (digits, labels)}, another division for every seed."""
    pixels, labels = load_digits(return_X_y=True)
    digits = pixels.reshape(-1, 8, 8) / 16
    order = np.random.default_rng(seed).permutation(len(digits))
    ends = np.cumsum(list(PARTS.values()))
    assert ends[-1] == len(digits)
    chosen = np.split(order, ends[:-1])
    return {
        part: (digits[rows], labels[rows])
        for part, rows in zip(PARTS, chosen, strict=True)
    }


def in_styles(part, styles, seed):
    """Return images and labels of one part, drawn in every one of `styles`."""
    digits, labels = part
    noise = np.random.default_rng(seed)
    images = np.concatenate([draw(digits, style, noise) for style in styles])
    return images[..., None].astype("float32"), np.tile(labels, len(styles))
