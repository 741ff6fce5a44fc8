"""The table that shows, before training starts, what will be pulled."""

from collections.abc import Mapping, Sequence

from keras_dualopt.backend import Array
from keras_dualopt.plan import Row, layers_of
from keras_dualopt.pull import Pull
from keras_dualopt.settings import Settings

_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


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
    ratios = pull.host_ratios(learning_rate)

    def strength(row: Row) -> float:
        level = row.level(pull.reach)
        if pull.reach:
            return pull.distance(level)
        if settings.mode == "scratch":
            return level.amount
        return ratios[level]

    kind = "reach" if pull.reach else "strength"
    header = ("layer", "depth", kind, "rate", "anchored")
    lines: list[tuple[str, ...]] = [(*header, "parameters", "bytes of θ₀")]
    for layer in layers_of(rows):
        relative = layer[0].relative
        strengths = sorted({strength(row) for row in layer})
        lines.append(
            (
                layer[0].layer,
                "head" if relative is None else f"{relative:.3f}",
                " / ".join(f"{s:.3g}" for s in strengths),
                f"{layer[0].rate:.3g}",
                *_sums(layer, {0: "no", len(layer): "yes"}),
            )
        )
    lines.append(("total", "", "", "", *_sums(rows, {})))
    if settings.shallow_rate == 1.0:
        lines = [(*line[:3], *line[4:]) for line in lines]
    title = [
        f"DualOpt: mode {settings.mode}",
        f"base {base}",
        *(
            f"{name} {value if isinstance(value, str) else f'{value:g}'}"
            for name in (*settings.level_names, "power")
            for value in [getattr(settings, name)]
        ),
        f"learning rate {learning_rate:g}",
    ]
    if settings.mode == "finetune" and not pull.reach:
        title.append(f"reference rate {pull.reference:g}")
    if settings.shallow_rate != 1.0:
        title.append(f"shallow rate {settings.shallow_rate:g}")
    text = [", ".join(title), *_aligned(lines)]
    if carried:
        held = sum(array.nbytes for array in carried.values())
        text.append(
            f"and {held:,} bytes on the host: θ₀ of {len(carried)} weights "
            "that are not trained now"
        )
    return "\n".join(text)


def _sums(rows: Sequence[Row], words: Mapping[int, str]) -> tuple[str, ...]:
    """Return how many weights are anchored, of what size, in what memory."""
    held = [
        row.size * _BYTES.get(row.anchor.dtype, 4)
        for row in rows
        if row.anchor is not None
    ]
    return (
        words.get(len(held), f"{len(held)} of {len(rows)}"),
        f"{sum(row.size for row in rows):,}",
        f"{sum(held):,}",
    )


def _aligned(lines: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for first, *rest in lines:
        cells = [first.ljust(widths[0])]
        cells += map(str.rjust, rest, widths[1:])
        text.append("  ".join(cells))
    rule = "-" * len(text[0])
    return [rule, text[0], rule, *text[1:-1], rule, text[-1]]
