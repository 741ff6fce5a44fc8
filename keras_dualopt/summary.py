"""The table that shows, before training starts, what will be pulled."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_dualopt.arguments import Arguments
from keras_dualopt.layers import layers_of
from keras_dualopt.plan import Plan

_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_HEADER = (
    "layer",
    "depth",
    "strength",
    "anchored",
    "parameters",
    "bytes of θ₀",
)


def summary_table(
    plan: Plan,
    arguments: Arguments,
    reference: float | None,
    base: str,
    variables: Sequence[keras.Variable],
    anchors: Sequence[keras.Variable | None],
    carried: Mapping[str, Any] | None = None,
) -> str:
    """Return one row per trained layer, shallowest first, and the totals.

    `carried` is θ₀ of weights that are not trained now.
    """
    lines = [_HEADER]
    for layer in layers_of(plan):
        indices = layer.indices
        relative = layer.relative
        strengths = {plan.strengths[i] for i in indices}
        anchored = sum(anchors[i] is not None for i in indices)
        lines.append(
            (
                layer.name,
                "head" if relative is None else f"{relative:.3f}",
                " / ".join(f"{s:.3g}" for s in sorted(strengths)),
                {0: "no", len(indices): "yes"}.get(
                    anchored, f"{anchored} of {len(indices)}"
                ),
                f"{sum(math.prod(variables[i].shape) for i in indices):,}",
                f"{sum(_bytes(anchors[i]) for i in indices):,}",
            )
        )
    parameters = sum(math.prod(v.shape) for v in variables)
    size = sum(_bytes(anchor) for anchor in anchors)
    lines.append(
        (
            "total",
            "",
            "",
            f"{sum(a is not None for a in anchors)} of {len(variables)}",
            f"{parameters:,}",
            f"{size:,}",
        )
    )
    high, low = arguments.level_names
    title = (
        f"DualOpt: mode {arguments.mode}, base {base}, "
        f"{high} {arguments.levels[0]:g}, {low} {arguments.levels[1]:g}, "
        f"power {arguments.power:g}"
        + ("" if reference is None else f", reference rate {reference:g}")
    )
    rows = [title, *_aligned(lines)]
    if carried:
        held = sum(array.nbytes for array in carried.values())
        rows.append(
            f"and {held:,} bytes on the host: θ₀ of {len(carried)} weights "
            "that are not trained now"
        )
    return "\n".join(rows)


def _bytes(anchor: keras.Variable | None) -> int:
    if anchor is None:
        return 0
    size: int = math.prod(anchor.shape) * _BYTES.get(anchor.dtype, 4)
    return size


def _aligned(lines: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [
        max(len(line[column]) for line in lines)
        for column in range(len(lines[0]))
    ]
    text = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(
                zip(line, widths, strict=True)
            )
        )
        for line in lines
    ]
    rule = "-" * len(text[0])
    return [rule, text[0], rule, *text[1:-1], rule, text[-1]]
