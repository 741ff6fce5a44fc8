"""What a run left behind: a matrix of depth × time, and totals over time."""

import os
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from keras_dualopt.backend import Array
from keras_dualopt.callbacks.measure import LOG_KEYS, Sample

QUANTITIES = (
    "drift",
    "strength",
    "pull_share",
    "update_ratio",
    "reach_used",
)


class DriftRecord:
    """The measurements of a run, shallowest layer first.

    Args:
        mode: `"finetune"` or `"scratch"`.
        layers: The layers' names.
        relative: Their relative depths.
        places: Their places in the model, which outlive their names.
    """

    def __init__(
        self,
        mode: str,
        layers: list[str],
        relative: npt.ArrayLike,
        places: list[str] | None = None,
    ) -> None:
        self.mode = mode
        self._places = places
        self.layers = list(layers)
        self.relative = np.asarray(relative, dtype="float64")
        self._samples: list[Sample] = []

    def __repr__(self) -> str:
        """Name what was measured, and when."""
        steps = self.steps
        when = f" of steps {steps[0]} to {steps[-1]}" if len(steps) else ""
        return (
            f"<DriftRecord {self.mode}: {len(self.layers)} layers, "
            f"{len(steps)} samples{when}>"
        )

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, sample: Sample) -> None:
        """Append a column."""
        self._samples.append(sample)

    @property
    def last_step(self) -> int | None:
        """The number of updates at the last sample."""
        return self._samples[-1].step if self._samples else None

    def continues(self, mode: str, places: list[str]) -> bool:
        """Tell whether a further run of such a model belongs here."""
        return (self.mode, self._places) == (mode, places)

    @property
    def steps(self) -> Array:
        """The number of updates at each sample."""
        return np.array([s.step for s in self._samples], dtype="int64")

    def matrix(self, quantity: str = "drift") -> Array:
        """Return one row a layer, one column a sample; NaN: not defined.

        Args:
            quantity: `"drift"`, `"strength"`, `"pull_share"`,
                `"update_ratio"` or `"reach_used"`.

        Raises:
            ValueError: For another one.
        """
        if quantity not in QUANTITIES:
            raise ValueError(
                f"`quantity` must be one of {QUANTITIES}. Received: "
                f"{quantity!r}."
            )
        columns = [s.layers[quantity] for s in self._samples]
        if not columns:
            return np.zeros((len(self.layers), 0))
        return np.stack(columns, axis=1)

    @property
    def totals(self) -> dict[str, Array]:
        """For each of the log keys, one number a sample."""
        return {
            key: np.array([s.totals[key] for s in self._samples])
            for key in LOG_KEYS
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to an `.npz` file, all of it or nothing."""
        part = f"{os.fspath(path)}.part"
        found: dict[str, Any] = {name: self.matrix(name) for name in QUANTITIES}
        found |= {f"total_{key}": v for key, v in self.totals.items()}
        with open(part, "wb") as file:
            np.savez_compressed(
                file,
                mode=np.array(self.mode),
                layers=np.array(self.layers),
                relative=self.relative,
                steps=self.steps,
                **found,
            )
        os.replace(part, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote."""
        with np.load(path) as file:
            record = cls(
                str(file["mode"]),
                [str(name) for name in file["layers"]],
                file["relative"],
            )
            # Files of version 0.1 have no `reach_used`.
            gap = np.full(len(file["steps"]), np.nan)
            gaps = np.tile(gap, (len(record.layers), 1))
            matrices = {name: file.get(name, gaps) for name in QUANTITIES}
            totals = {key: file.get(f"total_{key}", gap) for key in LOG_KEYS}
            for column, step in enumerate(file["steps"]):
                record.add(
                    Sample(
                        int(step),
                        {n: m[:, column] for n, m in matrices.items()},
                        {k: float(v[column]) for k, v in totals.items()},
                    )
                )
        return record
