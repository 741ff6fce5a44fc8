"""What finding depths costs: beside the first training step of a ViT-B.

    KERAS_BACKEND=jax python benchmarks/depth.py

The model is as large as ViT-B/16 (12 blocks of width 768, 86 million weights)
and hides its blocks in one layer, so that they must be traced. The times are
of a process's first call, which is what a user waits for. The limit is the
larger of 1 second and 2 % of the first training step.
"""

import argparse
import platform
import time

import keras
import numpy as np
from models import vit

from keras_dualopt.depth import find_model, layer_depth


def seconds(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def first_step(model, batch, image_size):
    model.compile(
        optimizer=keras.optimizers.SGD(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    images = np.ones((batch, image_size, image_size, 3), "float32")
    return seconds(model.train_on_batch, images, np.zeros(batch, "int32"))[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()

    print("building the model ...", flush=True)
    model = vit(options.blocks, options.width, options.image_size)
    find, _ = seconds(find_model, model.trainable_variables)
    cold, depth = seconds(layer_depth, model)
    warm = [seconds(layer_depth, model)[0] for _ in range(3)]
    place, _ = seconds(depth.place, model, model.trainable_variables)
    print("the first training step ...", flush=True)
    step = first_step(model, options.batch, options.image_size)
    limit = max(1.0, 0.02 * step)

    print(
        f"\n{keras.backend.backend()}, Keras {keras.__version__}, Python "
        f"{platform.python_version()}, {platform.machine()}\n"
        f"{model.count_params() / 1e6:.1f} million weights in "
        f"{len(model.weights)} variables, {depth.layer_count} layers; "
        f"batch {options.batch}\n"
    )
    rows = [
        ("find_model, on the call stack", find),
        ("layer_depth, first call", cold),
        ("layer_depth, again (median of 3)", sorted(warm)[1]),
        ("LayerDepth.place", place),
        ("all of it, in one build", find + cold + place),
        ("the limit", limit),
        ("the first training step", step),
    ]
    print(f"{'':34}{'seconds':>10}{'of the step':>14}")
    for name, value in rows:
        print(f"{name:34}{value:10.4f}{value / step:13.2%}")
    within = find + cold + place <= limit
    print("\nwithin the limit" if within else "\nOVER THE LIMIT")


if __name__ == "__main__":
    main()
