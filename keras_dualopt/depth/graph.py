"""A graph of layer calls, and how deep each layer lies in it.

With d_in the number of layers on the longest path from an input and d_out that
on the longest path to an output, r = d_in / (d_in + d_out) rises along every
edge, and parallel towers each go from 0 to 1 whatever their lengths.
"""

import dataclasses
from collections.abc import Collection, Iterable
from fractions import Fraction

# Where a tensor comes from: the calls one reads when one reads it.
Sources = tuple[int, ...]


@dataclasses.dataclass(eq=False)
class Call:
    """One call of a layer, or a point where tensors meet.

    Args:
        units: The units read in this call; none for a layer without weights.
        inputs: The calls whose results it reads.
        adds: Whether it adds its inputs up.
        again: The calls (from, up to) that it makes once more.
    """

    units: tuple[int, ...]
    inputs: Sources
    adds: bool = False
    again: tuple[int, int] | None = None


class Graph:
    """A graph in which every call comes after those it reads."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._outputs: list[list[int]] = []

    def add(
        self,
        units: Iterable[int],
        inputs: Iterable[int],
        adds: bool = False,
        again: tuple[int, int] | None = None,
    ) -> int:
        """Add a call and return its number."""
        call = Call(tuple(units), tuple(dict.fromkeys(inputs)), adds, again)
        number = len(self.calls)
        self.calls.append(call)
        self._outputs.append([])
        for source in call.inputs:
            self._outputs[source].append(number)
        return number

    def cut(self, start: int) -> None:
        """Take back the calls from one on."""
        for call in self.calls[start:]:
            for source in call.inputs:
                if source < start:
                    self._outputs[source].pop()
        del self.calls[start:], self._outputs[start:]

    def open_ends(self, start: int) -> Sources:
        """Return the calls from one on that none has read yet."""
        last = range(start, len(self.calls))
        return tuple(number for number in last if not self._outputs[number])

    def distances(self, counted: Collection[int]) -> list[tuple[int, int]]:
        """Return d_in and d_out of every call.

        Args:
            counted: The units that count as a step on a path.
        """
        steps: list[int] = []
        for call in self.calls:
            step = int(any(unit in counted for unit in call.units))
            steps.append(
                self._length(*call.again, steps) if call.again else step
            )
        before = [0] * len(steps)
        after = [0] * len(steps)
        for number, call in enumerate(self.calls):
            before[number] = max(
                (before[i] + steps[i] for i in call.inputs), default=0
            )
        for number in reversed(range(len(steps))):
            after[number] = max(
                (after[i] + steps[i] for i in self._outputs[number]), default=0
            )
        for number, call in enumerate(self.calls):
            if call.adds:
                self._set_beside(number, steps, after)
        return list(zip(before, after, strict=True))

    def positions(self, counted: Collection[int]) -> dict[int, Fraction]:
        """Return r of every unit, of all its calls the widest way."""
        places = self._places(counted)
        return {
            unit: Fraction(before, before + after) if before else Fraction(0)
            for unit, (before, after) in places.items()
        }

    def _places(self, counted: Collection[int]) -> dict[int, tuple[int, int]]:
        """Return the smallest d_in and the largest d_out of every unit."""
        places: dict[int, tuple[int, int]] = {}
        for call, (before, after) in zip(
            self.calls, self.distances(counted), strict=True
        ):
            for unit in call.units:
                known = places.get(unit, (before, after))
                places[unit] = min(known[0], before), max(known[1], after)
        return places

    def _length(self, start: int, end: int, steps: list[int]) -> int:
        """Return the steps of the longest path through some of the calls."""
        lengths: dict[int, int] = {}
        for number in range(start, end):
            ways = [lengths.get(i, 0) for i in self.calls[number].inputs]
            lengths[number] = max(ways, default=0) + steps[number]
        return max(lengths.values(), default=0)

    def after(self, units: Collection[int]) -> set[int]:
        """Return the units of the calls that read, at last, these units'."""
        reached = [False] * len(self.calls)
        found: set[int] = set()
        for number, call in enumerate(self.calls):
            if any(reached[i] for i in call.inputs):
                reached[number] = True
                found.update(call.units)
            elif any(unit in units for unit in call.units):
                reached[number] = True
        return found.difference(units)

    def last_units(self, counted: Collection[int]) -> set[int]:
        """Return the units of the layers that nothing else follows.

        Of several that end in the same result, the deepest. One that has more
        calls, as a tied embedding has, is last only if nothing follows any.
        """
        distances = self.distances(counted)
        places = self._places(counted)
        last: set[int] = set()
        for number in range(len(self.calls)):
            ends = () if self._outputs[number] else self._ends(number, counted)
            if ends:
                deepest = max(ends, key=lambda n: (distances[n][0], n))
                last.update(
                    unit
                    for unit in self.calls[deepest].units
                    if unit in counted and places[unit][1] == 0
                )
        return last

    def _ends(self, number: int, counted: Collection[int]) -> set[int]:
        """Return the last counted calls before (or at) a call."""
        ends: set[int] = set()
        seen: set[int] = set()
        stack = [number]
        while stack:
            current = stack.pop()
            if current in seen:
                continue
            seen.add(current)
            call = self.calls[current]
            if any(unit in counted for unit in call.units):
                ends.add(current)
            else:
                stack.extend(call.inputs)
        return ends

    def _set_beside(
        self, addition: int, steps: list[int], after: list[int]
    ) -> None:
        """Put a shortcut beside the start of the branch it is added to.

        A projection shortcut and the first convolution of its block read the
        same tensor: they are siblings. By the longest path alone the shortcut,
        which is the shorter branch, would lie somewhere in the block's middle.
        """
        for end in self.calls[addition].inputs:
            chain, fork = self._chain(end)
            if fork is None or not chain:
                continue
            others = [i for i in self.calls[addition].inputs if i != end]
            length = self._longest(fork, others, set(chain), steps)
            if length is None:
                continue
            rest = after[addition] + steps[addition] + length
            for number in chain:
                rest -= steps[number]
                after[number] = max(after[number], rest)

    def _chain(self, end: int) -> tuple[list[int], int | None]:
        """Return a branch without forks, its first call first, and its fork."""
        chain: list[int] = []
        current = end
        while len(self._outputs[current]) == 1:
            chain.append(current)
            if len(self.calls[current].inputs) != 1:
                return [], None
            (current,) = self.calls[current].inputs
        return chain[::-1], current

    def _longest(
        self,
        fork: int,
        ends: list[int],
        chain: set[int],
        steps: list[int],
    ) -> int | None:
        """Return the steps of the longest other way from a fork.

        `None` if the block is not closed: something between the fork and the
        addition is read elsewhere too, as a level of a feature pyramid is.
        """
        inside: set[int] = set()
        stack = [end for end in ends if end > fork]
        while stack:
            current = stack.pop()
            if current in inside:
                continue
            inside.add(current)
            stack.extend(i for i in self.calls[current].inputs if i > fork)
        lengths = {fork: 0}
        for number in sorted(inside):
            ways = [
                lengths[i] for i in self.calls[number].inputs if i in lengths
            ]
            if ways:
                lengths[number] = max(ways) + steps[number]
        reached = [end for end in ends if end in lengths and end != fork]
        if not reached:
            return None
        for number in inside & lengths.keys():
            if number in ends:
                continue
            if any(
                i not in inside and i not in chain
                for i in self._outputs[number]
            ):
                return None
        return max(lengths[end] for end in reached)
