"""Results as CSV, written as they come, so that a kill loses one run."""

import csv
import importlib.metadata
import json
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
_VERSIONS = ("keras", "jax", "tensorflow", "torch", "numpy")


class Store:
    """One experiment's table: a CSV file, and a JSON file about it.

    Args:
        name: The experiment's.
        keys: Columns that name a run.
        values: Columns that are measured; a run has one row or several.
        folder: Where the files are.
    """

    def __init__(self, name, keys, values, folder=RESULTS):
        self.name, self.keys, self.values = name, list(keys), list(values)
        self.path = Path(folder) / f"{name}.csv"
        self.about = self.path.with_suffix(".json")
        self.rows = []
        if self.path.exists():
            self.rows = self._complete()
        self._done = {self._key(row) for row in self.rows}

    def _complete(self):
        """Return the rows; cut a last line that a kill left unfinished."""
        text = self.path.read_text()
        if not text.endswith("\n"):
            text = text[: text.rfind("\n") + 1]
            self.path.write_text(text)
        rows = list(csv.DictReader(text.splitlines()))
        columns = [*self.keys, *self.values]
        if rows and list(rows[0]) != columns:
            raise ValueError(
                f"{self.path} has other columns: {list(rows[0])}. "
                "Move it away, or measure with the version that wrote it."
            )
        for row in rows:
            for name in self.values:
                row[name] = float(row[name])
        return rows

    def _key(self, row):
        return tuple(str(row[key]) for key in self.keys)

    def has(self, **run):
        """Return whether a run is in the table."""
        return self._key(run) in self._done

    def add(self, run, measured):
        """Write a run's rows, all at once.

        Args:
            run: {key: value}.
            measured: A list of {value's name: number}.
        """
        run = {key: str(run[key]) for key in self.keys}
        rows = [run | _rounded(row) for row in measured]
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(
                file, [*self.keys, *self.values], lineterminator="\n"
            )
            if new:
                writer.writeheader()
            writer.writerows(rows)
        self.rows += rows
        self._done.add(self._key(run))

    def describe(self, **facts):
        """Write what made the table: command, versions, and `facts`.

        Raises:
            ValueError: If its rows were measured on another backend.
        """
        versions = {"python": sys.version.split()[0]}
        for name in _VERSIONS:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        import keras

        import keras_dualopt

        backend = keras.backend.backend()
        if self.rows and self.about.exists():
            before = json.loads(self.about.read_text())["backend"]
            if before != backend:
                raise ValueError(
                    f"{self.path} was measured on {before}, and this is "
                    f"{backend}. Set `KERAS_BACKEND={before}`, or choose "
                    "another folder with `--results`."
                )
        versions["keras_dualopt"] = keras_dualopt.__version__
        if "seeds" in facts:
            # A part of an experiment does not hide the seeds that were there.
            there = {int(row["seed"]) for row in self.rows}
            facts["seeds"] = sorted(there.union(facts["seeds"]))
        self.about.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "backend": backend,
            "versions": versions,
            **facts,
        }
        self.about.write_text(
            json.dumps(about, indent=1, ensure_ascii=False) + "\n"
        )


def _rounded(row):
    return {name: round(float(value), 4) for name, value in row.items()}


class Progress:
    """Prints one line a run, with the time that is left."""

    def __init__(self, total):
        self.total, self.done, self.begun = total, 0, time.monotonic()

    def skip(self):
        """Count a run that was found in the table."""
        self.total -= 1

    def say(self, text):
        """Count a run that has been made."""
        self.done += 1
        spent = time.monotonic() - self.begun
        left = spent / self.done * (self.total - self.done)
        print(
            f"[{self.done}/{self.total}] {spent:.0f} s, {left:.0f} s left: "
            f"{text}",
            flush=True,
        )
