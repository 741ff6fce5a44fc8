"""The paper's own settings, data set by data set."""

from typing import Any, NamedTuple

# OLOR, "Implementation Details": ViT with Adam, ConvNeXt with SGD.
_BASES = {"vit": "adam", "cnn": "sgd"}
_OLOR = "Huang et al., AAAI 2024, arXiv:2401.10962"


class Recipe(NamedTuple):
    """One cell of the paper's tables, 6 or 7.

    Args:
        table: 6 or 7.
        dataset: The data set, or in Table 7 the pretraining method.
        backbone: `"vit"` (ViT-B) or `"cnn"` (ConvNeXt-B).
        rollback: ι₁.
        power: γ.
        rollback_min: ι₂, which is 0 in every row.
    """

    table: int
    dataset: str
    backbone: str
    rollback: float
    power: float
    rollback_min: float = 0.0

    @property
    def source(self) -> str:
        """Where the numbers stand."""
        return f"{_OLOR}, Table {self.table}, {self.dataset}, {self.backbone}"


# ι₁ and γ as printed.
RECIPES = (
    Recipe(6, "Cifar-100", "vit", 5e-3, 2.0),
    Recipe(6, "Cifar-100", "cnn", 5e-3, 2.0),
    Recipe(6, "SVHN", "vit", 5e-3, 2.0),
    Recipe(6, "SVHN", "cnn", 1e-4, 2.0),
    Recipe(6, "CUB-200", "vit", 5e-2, 2.0),
    Recipe(6, "CUB-200", "cnn", 1e-2, 2.0),
    Recipe(6, "StanfordCars", "vit", 1e-2, 4.0),
    Recipe(6, "StanfordCars", "cnn", 1e-4, 2.0),
    Recipe(6, "Places-LT", "vit", 1e-1, 4.0),
    Recipe(6, "Places-LT", "cnn", 1e-2, 4.0),
    Recipe(6, "IP102", "vit", 1e-1, 1.0),
    Recipe(6, "IP102", "cnn", 5e-3, 1.0),
    Recipe(6, "OfficeHome", "vit", 1e-2, 1.0),
    Recipe(6, "OfficeHome", "cnn", 1.0, 1.0),
    Recipe(6, "PACS", "vit", 1e-1, 4.0),
    Recipe(6, "PACS", "cnn", 5e-2, 4.0),
    Recipe(6, "COCO2017", "cnn", 1e-2, 2.0),
    Recipe(6, "ADE20K", "vit", 1e-4, 1.0),
    # PACS again, by pretraining method, which gives it other values.
    Recipe(7, "Supervised", "vit", 1e-2, 2.0),
    Recipe(7, "OpenCLIP", "vit", 1e-2, 2.0),
    Recipe(7, "MAE", "vit", 1e-2, 2.0),
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
    if isinstance(table, bool) or table not in (6, 7):
        raise ValueError(f"`table` must be one of [6, 7]. Received: {table!r}.")
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
        rows["pacs"] = rows["supervised"]
    row = rows.get(_key(dataset))
    if row is None:
        raise ValueError(
            f"`dataset` must be a row of OLOR's Table {table} for "
            f"{backbone!r}: {names or 'it has none'}. Received: {dataset!r}."
        )
    return {
        "base": _BASES[backbone],
        "rollback": row.rollback,
        "rollback_min": row.rollback_min,
        "power": row.power,
    }


def _key(name: str) -> str:
    """Return a name without what people write differently."""
    return "".join(letter for letter in str(name).lower() if letter.isalnum())
