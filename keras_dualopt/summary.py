"""The table that shows, before training starts, what will be pulled."""

from collections.abc import Mapping, Sequence

from keras_dualopt.backend import Array
from keras_dualopt.plan import Row, layers_of
from keras_dualopt.pull import Pull
from keras_dualopt.settings import Settings

_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_HEADER = (
    "layer",
    "depth",
    "strength",
    "rate",
    "anchored",
    "parameters",
    "bytes of θ₀",
)


def summary_table(
    rows: Sequence[Row],
    pull: Pull,
    settings: Settings,
    learning_rate: float,
    base: str,
    carried: Mapping[str, Array],
) -> str:
    """Return one line per trained layer, shallowest first, and the totals.

    A layer's strength is that at the present learning rate: the share of the
    way back to θ₀ in a step, or the weight decay; with `reach`, R in the unit
    of weights. `carried` is θ₀ of weights that are not trained now.
    """
    lines: list[tuple[str, ...]] = [_HEADER]
    for layer in layers_of(rows):
        relative = layer[0].relative
        strengths = {
            _strength(row, pull, settings, learning_rate) for row in layer
        }
        anchored = sum(row.anchor is not None for row in layer)
        lines.append(
            (
                layer[0].layer,
                "head" if relative is None else f"{relative:.3f}",
                " / ".join(f"{s:.3g}" for s in sorted(strengths)),
                f"{layer[0].rate:.3g}",
                {0: "no", len(layer): "yes"}.get(
                    anchored, f"{anchored} of {len(layer)}"
                ),
                f"{sum(row.size for row in layer):,}",
                f"{sum(_bytes(row) for row in layer):,}",
            )
        )
    lines.append(
        (
            "total",
            "",
            "",
            "",
            f"{sum(row.anchor is not None for row in rows)} of {len(rows)}",
            f"{sum(row.size for row in rows):,}",
            f"{sum(_bytes(row) for row in rows):,}",
        )
    )
    if settings.reach is not None:
        lines[0] = tuple("reach" if c == "strength" else c for c in _HEADER)
    if settings.shallow_rate == 1.0:
        lines = [(*line[:3], *line[4:]) for line in lines]
    text = [_title(settings, pull, learning_rate, base), *_aligned(lines)]
    if carried:
        held = sum(array.nbytes for array in carried.values())
        text.append(
            f"and {held:,} bytes on the host: θ₀ of {len(carried)} weights "
            "that are not trained now"
        )
    return "\n".join(text)


def _title(settings: Settings, pull: Pull, rate: float, base: str) -> str:
    values = ", ".join(
        f"{name} {getattr(settings, name)}"
        if isinstance(getattr(settings, name), str)
        else f"{name} {getattr(settings, name):g}"
        for name in (*settings.level_names, "power")
    )
    return (
        f"DualOpt: mode {settings.mode}, base {base}, {values}, "
        f"learning rate {rate:g}"
        + (
            f", reference rate {pull.reference:g}"
            if settings.mode == "finetune" and not pull.reach
            else ""
        )
        + (
            ""
            if settings.shallow_rate == 1.0
            else f", shallow rate {settings.shallow_rate:g}"
        )
    )


def _strength(
    row: Row, pull: Pull, settings: Settings, learning_rate: float
) -> float:
    level = row.level(pull.reach)
    if pull.reach:
        return pull.distance(level)
    if settings.mode == "scratch":
        return level.amount
    return pull.host_ratio(level, learning_rate)


def _bytes(row: Row) -> int:
    if row.anchor is None:
        return 0
    return row.size * _BYTES.get(row.anchor.dtype, 4)


def _aligned(lines: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
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
