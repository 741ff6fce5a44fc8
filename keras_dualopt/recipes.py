"""The paper's own settings, data set by data set."""

import dataclasses
from typing import Any

# OLOR, "Implementation Details": ViT with Adam, ConvNeXt with SGD.
_BASES = {"vit": "adam", "cnn": "sgd"}
_OLOR = "Huang et al., AAAI 2024, arXiv:2401.10962"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One cell of the paper's tables.

    Args:
        table: 6 or 7.
        dataset: The data set, or in Table 7 the pretraining method.
        backbone: `"vit"` (ViT-B) or `"cnn"` (ConvNeXt-B).
        rollback: ι₁.
        rollback_min: ι₂.
        power: γ.
    """

    table: int
    dataset: str
    backbone: str
    rollback: float
    rollback_min: float
    power: float

    @property
    def source(self) -> str:
        """Where the numbers stand."""
        return f"{_OLOR}, Table {self.table}, {self.dataset}, {self.backbone}"


def _row(
    table: int, dataset: str, **cells: tuple[float, float]
) -> list[Recipe]:
    return [
        Recipe(table, dataset, backbone, rollback, 0.0, power)
        for backbone, (rollback, power) in cells.items()
    ]


# ι₁ and γ as printed; ι₂ is 0 in every row.
RECIPES = (
    *_row(6, "Cifar-100", vit=(5e-3, 2.0), cnn=(5e-3, 2.0)),
    *_row(6, "SVHN", vit=(5e-3, 2.0), cnn=(1e-4, 2.0)),
    *_row(6, "CUB-200", vit=(5e-2, 2.0), cnn=(1e-2, 2.0)),
    *_row(6, "StanfordCars", vit=(1e-2, 4.0), cnn=(1e-4, 2.0)),
    *_row(6, "Places-LT", vit=(1e-1, 4.0), cnn=(1e-2, 4.0)),
    *_row(6, "IP102", vit=(1e-1, 1.0), cnn=(5e-3, 1.0)),
    *_row(6, "OfficeHome", vit=(1e-2, 1.0), cnn=(1.0, 1.0)),
    *_row(6, "PACS", vit=(1e-1, 4.0), cnn=(5e-2, 4.0)),
    *_row(6, "COCO2017", cnn=(1e-2, 2.0)),
    *_row(6, "ADE20K", vit=(1e-4, 1.0)),
    # PACS again, by pretraining method, which gives it other values.
    *_row(7, "Supervised", vit=(1e-2, 2.0)),
    *_row(7, "OpenCLIP", vit=(1e-2, 2.0)),
    *_row(7, "MAE", vit=(1e-2, 2.0)),
)


def recipe(
    dataset: str, backbone: str = "vit", table: int = 6
) -> dict[str, Any]:
    """Return the paper's settings for a data set, as arguments of `DualOpt`.

    Use it as a start for data of the same kind: CIFAR-100 and SVHN are general
    classification, CUB-200 and StanfordCars fine-grained, Places-LT and IP102
    long-tailed, OfficeHome and PACS cross-domain, COCO2017 detection, ADE20K
    segmentation. The learning rates of the paper, 1e-4 for ViT with Adam and
    1e-2 for ConvNeXt with SGD, are DualOpt's defaults.

    Source: OLOR, Tables 6 and 7. `RECIPES` holds every row with its source.
    Differences: none in the numbers; DualOpt's relative depth is 0 and 1 at
    the ends, where the paper has i/n.

    Args:
        dataset: A row of the table, in any case: `"pacs"`, `"cifar-100"`, …
            With `table=7`, the pretraining method (`"supervised"`,
            `"openclip"` or `"mae"`); or `"pacs"`, on which they were all
            compared, with the same values.
        backbone: `"vit"` or `"cnn"` (the paper's ConvNeXt).
        table: 6: by data set. 7: PACS and ViT by pretraining method. The two
            give PACS different values.

    Returns:
        `base`, `rollback`, `rollback_min` and `power`.

    Raises:
        ValueError: For a row, a backbone or a table that is not there; lists
            those that are.

    Example:
    >>> recipe("pacs")
    {'base': 'adam', 'rollback': 0.1, 'rollback_min': 0.0, 'power': 4.0}
    >>> from keras_dualopt import DualOpt
    >>> DualOpt(mode="finetune", **recipe("pacs", table=7)).power
    2.0
    """
    tables = sorted({row.table for row in RECIPES})
    if isinstance(table, bool) or table not in tables:
        raise ValueError(
            f"`table` must be one of {tables}. Received: {table!r}."
        )
    if backbone not in _BASES:
        raise ValueError(
            f"`backbone` must be one of {sorted(_BASES)} ('cnn' is the "
            f"paper's ConvNeXt). Received: {backbone!r}."
        )
    rows = {
        _key(row.dataset): row
        for row in RECIPES
        if (row.table, row.backbone) == (table, backbone)
    }
    names = ", ".join(row.dataset.lower() for row in rows.values())
    if table == 7 and rows:
        rows.setdefault("pacs", rows["supervised"])
    if _key(dataset) not in rows:
        raise ValueError(
            f"`dataset` must be a row of OLOR's Table {table} for "
            f"{backbone!r}: "
            f"{names or 'it has none'}. "
            f"Received: {dataset!r}."
        )
    row = rows[_key(dataset)]
    return {
        "base": _BASES[backbone],
        "rollback": row.rollback,
        "rollback_min": row.rollback_min,
        "power": row.power,
    }


def _key(name: str) -> str:
    """Return a name without what people write differently."""
    return "".join(letter for letter in str(name).lower() if letter.isalnum())
