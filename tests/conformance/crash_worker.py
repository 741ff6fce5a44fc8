"""Trains, is killed, and goes on: a chain of processes along one run.

Called as `crash_worker.py FOLDER`. This process has imported everything and
started no backend, so that it can fork: a link of the chain costs no import.
A link reports what it does on a pipe; it is killed with SIGKILL, either by
this process, at some time after a batch, or by itself, at one of the calls
that a write of the file is made of. All moments are drawn beforehand.
"""

import contextlib
import json
import os
import random
import signal
import sys
import time
import traceback
import zlib
from pathlib import Path

import h5py
import keras
import networks

from conformance import resume_worker
from keras_dualopt.callbacks import AtomicBackup

EPOCHS, BATCHES = 30, 2
KILLS = 10
CASES = ("lowered learning rate", "wrapped Nadam, schedule")
# From here on it is in the file, and in no argument.
LOWERED_AT = 4


def moments(case, ticks):
    """Draw when to kill: over the whole run, every other time in a write."""
    draw = random.Random(case)
    for number in range(KILLS):
        moment = {"epoch": round((number + draw.random()) * 2.6)}
        if number % 2:
            # The end of a write, where names change, is a small part of it.
            first = 1 if number % 4 == 1 else ticks - 8
            moment["tick"] = draw.randint(first, ticks)
            moment["flush"] = draw.random() < 0.5
        else:
            moment["batch"] = draw.randrange(BATCHES)
            moment["delay"] = draw.uniform(0.0, 0.01)
        yield moment


def digest(model):
    """Return a number for every array, of all its bits."""
    if not model.optimizer.built:
        return None  # At the start of the run; to build it would change it.
    return [zlib.crc32(array.tobytes()) for array in resume_worker.state(model)]


class Ticks:
    """Counts the calls that a write is made of, and dies at one of them."""

    def __init__(self):
        self.count = 0
        self.fatal = None
        self.flush = False
        for owner, name in (
            (h5py.Group, "create_dataset"),
            (h5py.AttributeManager, "__setitem__"),
            (os, "fsync"),
            (os, "replace"),
        ):
            setattr(owner, name, self._around(getattr(owner, name)))

    def _around(self, call):
        def counted(*arguments, **options):
            self._tick(arguments)
            result = call(*arguments, **options)
            self._tick(arguments)
            return result

        return counted

    def _tick(self, arguments):
        self.count += 1
        if self.count == self.fatal:
            if self.flush and isinstance(arguments[0], h5py.Group):
                # HDF5 may write what it holds in memory at any time.
                arguments[0].file.flush()
            os.kill(os.getpid(), signal.SIGKILL)


class Reporter(keras.callbacks.Callback):
    """Listed before and after the backup, to stand around its work."""

    def __init__(self, pipe):
        super().__init__()
        self.pipe = pipe

    def report(self, **words):
        os.write(self.pipe, (json.dumps(words) + "\n").encode())


class Before(Reporter):
    def __init__(self, pipe, ticks, moment):
        super().__init__(pipe)
        self.ticks = ticks
        self.moment = moment

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == LOWERED_AT and hasattr(
            self.model.optimizer._learning_rate, "assign"
        ):
            self.model.optimizer.learning_rate = 0.011
        if self.moment and epoch == EPOCHS - 1:
            time.sleep(60.0)  # It was to be killed: it must not end.

    def on_epoch_end(self, epoch, logs=None):
        self.ticks.count = 0
        if self.moment and epoch >= self.moment["epoch"]:
            self.ticks.fatal = self.moment.get("tick")
            self.ticks.flush = self.moment.get("flush")


class After(Reporter):
    def __init__(self, pipe, ticks):
        super().__init__(pipe)
        self.ticks = ticks
        self.epoch = None

    def on_train_begin(self, logs=None):
        self.report(
            restored=self.model._initial_epoch or 0, state=digest(self.model)
        )

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.report(epoch=self.epoch, batch=batch)

    def on_epoch_end(self, epoch, logs=None):
        self.report(
            written=epoch + 1, ticks=self.ticks.count, state=digest(self.model)
        )


def train(case, path, pipe, moment):
    ticks = Ticks()
    # Weights of its own only at the start of the run; later from the file.
    model = resume_worker.compiled(case, seed=6 if path.exists() else 5)
    after = After(pipe, ticks)
    x, y = networks.data(BATCHES)
    model.fit(
        x,
        y,
        batch_size=networks.BATCH,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[Before(pipe, ticks, moment), AtomicBackup(path), after],
    )
    after.report(ended=True, state=digest(model))


def link(case, path, moment=None):
    """Run until the end or the kill; return all that was reported."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        status = 1
        try:
            train(case, path, write, moment)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write)
    reports = []
    with open(read, encoding="utf-8") as lines:
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):  # Cut by the kill.
                reports.append(json.loads(line))
            if due(reports[-1], moment):
                time.sleep(moment["delay"])
                os.kill(child, signal.SIGKILL)
                moment = {}
    status = os.waitpid(child, 0)[1]
    return {"reports": reports, "status": os.waitstatus_to_exitcode(status)}


def due(report, moment):
    """Tell whether a link is to be killed from outside now."""
    return bool(moment) and (
        report.get("epoch", -1) >= moment["epoch"]
        and report.get("batch") == moment.get("batch")
    )


def main(folder):
    runs = {}
    for number, case in enumerate(CASES):
        never = link(case, Path(folder) / f"never_{number}.weights.h5")
        ticks = max(r.get("ticks", 0) for r in never["reports"])
        path = Path(folder) / f"run_{number}.weights.h5"
        killed = [link(case, path, m) for m in moments(case, ticks)]
        last = link(case, path)
        runs[case] = {"never": never, "killed": killed, "last": last}
    print(json.dumps(runs))


if __name__ == "__main__":
    main(*sys.argv[1:])
