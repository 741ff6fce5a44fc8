"""Times of several contenders on the same work, measured in turn.

Timing libraries run one contender to its end and then the next, so that a
machine that slows down meanwhile favours the first. Here every round runs all
of them, and a ratio is formed within each round.
"""

import dataclasses
import random
import statistics
import time


@dataclasses.dataclass(frozen=True)
class Spread:
    """The median of several measurements, and their quartiles."""

    median: float
    low: float
    high: float

    def __str__(self):
        return f"{self.median:.2f} ({self.low:.2f} – {self.high:.2f})"


def spread(values):
    """Return the median and the quartiles of a list of numbers."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def ratio(times, name, rival):
    """Return the spread of time / rival's time in the same round."""
    return spread([a / b for a, b in zip(times[name], times[rival])])


def seconds(function, *arguments):
    """Return the time of one call, and what it returned."""
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def interleaved(contenders, rounds, sample=0.05, limit=40.0, advance=None):
    """Return the seconds of one step, in every round, for each contender.

    Args:
        contenders: By name, a function `run(count)` that makes `count` steps
            and waits for them to end.
        rounds: How many rounds; two steps to warm up come before.
        sample: How long one measurement should take at least, in seconds.
        limit: No round begins after so many seconds; three are always run.
        advance: Called after every round.
    """
    names = list(contenders)
    for run in contenders.values():
        run(2)
    fastest = min(seconds(contenders[name], 1)[0] for name in names)
    count = max(1, min(1000, round(sample / fastest)))
    times = {name: [] for name in names}
    order = random.Random(0)
    begin = time.perf_counter()
    for number in range(rounds):
        if number >= 3 and time.perf_counter() - begin > limit:
            break
        # In any order: the one before leaves the cache as it likes.
        for name in order.sample(names, len(names)):
            times[name].append(seconds(contenders[name], count)[0] / count)
        if advance is not None:
            advance()
    return times
