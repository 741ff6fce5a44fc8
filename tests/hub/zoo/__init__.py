"""Small configurations of what KerasHub and keras.applications offer.

One entry for each architecture, the task where the task adds layers of its
own. `MODELS` names a function that builds it.
"""

import contextlib
import hashlib
import json
import pathlib
import warnings
from unittest import mock

import keras
import keras_hub
import numpy as np
from hub.zoo import images, maps, pairs, text

from keras_dualopt.depth import layer_depth

MODELS = {**images.MODELS, **maps.MODELS, **text.MODELS, **pairs.MODELS}

EXPECTED = pathlib.Path(__file__).parents[1] / "expected_depth.json"


@contextlib.contextmanager
def zero_weights():
    """Make models whose weights are all 0: JAX compiles every initializer."""

    def zeros(self, shape, dtype=None, **options):
        del self, options
        return keras.ops.convert_to_tensor(np.zeros(shape, dtype or "float32"))

    with contextlib.ExitStack() as stack:
        for name in (
            "VarianceScaling",
            "RandomUniform",
            "RandomNormal",
            "TruncatedNormal",
            "Orthogonal",
            "Zeros",
            "Ones",
        ):
            stack.enter_context(
                mock.patch.object(
                    getattr(keras.initializers, name), "__call__", zeros
                )
            )
        yield


def build(name):
    with zero_weights(), warnings.catch_warnings():
        # KerasHub's own, about layers that build others in their call.
        warnings.simplefilter("ignore")
        return MODELS[name]()


def fingerprint(depth):
    """Return what must be the same on every backend, in few bytes."""
    lines = [
        f"{row.key} {row.index} {float(row.relative).hex()}"
        for row in sorted(depth.rows, key=lambda row: row.key)
    ]
    return {
        "weights": len(lines),
        "layers": depth.layer_count,
        "steps": 1 + max(row.index for row in depth.rows),
        "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16],
    }


def write_expected():
    """Write anew what every backend is compared with.

    From tests/: python -c "from hub import zoo; zoo.write_expected()".
    """
    expected = {
        name: fingerprint(layer_depth(build(name), head=())) for name in MODELS
    }
    text = json.dumps(
        {"keras_hub": keras_hub.__version__, "models": expected}, indent=1
    )
    EXPECTED.write_text(text + "\n")
