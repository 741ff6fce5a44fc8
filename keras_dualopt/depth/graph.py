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
    """One call of a layer, or a point where tensors meet."""

    units: tuple[int, ...]  # What it reads; nothing without weights.
    inputs: Sources  # The calls whose results it reads.
    adds: bool = False  # Whether it adds its inputs up.
    again: Sources = ()  # The calls (from, up to) that it makes once more.
    # The calls that read its result.
    outputs: list[int] = dataclasses.field(default_factory=list)


class Graph:
    """A graph in which every call comes after those it reads."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def add(
        self,
        units: Iterable[int],
        inputs: Iterable[int],
        adds: bool = False,
        again: Sources = (),
    ) -> int:
        """Add a call and return its number."""
        call = Call(tuple(units), tuple(dict.fromkeys(inputs)), adds, again)
        for source in call.inputs:
            self.calls[source].outputs.append(len(self.calls))
        self.calls.append(call)
        return len(self.calls) - 1

    def cut(self, start: int) -> None:
        """Take back the calls from one on."""
        for call in self.calls[start:]:
            for source in call.inputs:
                self.calls[source].outputs.pop()
        del self.calls[start:]

    def distances(self, counted: Collection[int]) -> list[tuple[int, int]]:
        """Return d_in and d_out of every call, in steps of counted units."""
        steps: list[int] = []
        before: list[int] = []
        for call in self.calls:
            one = int(any(unit in counted for unit in call.units))
            steps.append(self._length(call.again, steps) if call.again else one)
            ways = (before[i] + steps[i] for i in call.inputs)
            before.append(max(ways, default=0))
        after = [0] * len(steps)
        for number in reversed(range(len(steps))):
            ways = (after[i] + steps[i] for i in self.calls[number].outputs)
            after[number] = max(ways, default=0)
        self._set_beside(steps, after)
        return list(zip(before, after, strict=True))

    def _length(self, again: Sources, steps: list[int]) -> int:
        """Return the steps of the longest path through some of the calls."""
        lengths: dict[int, int] = {}
        for number in range(*again):
            ways = [lengths.get(i, 0) for i in self.calls[number].inputs]
            lengths[number] = max(ways, default=0) + steps[number]
        return max(lengths.values(), default=0)

    def positions(self, counted: Collection[int]) -> dict[int, Fraction]:
        """Return r of every unit that counts, of all its calls the widest."""
        return {
            unit: Fraction(before, (before + after) or 1)
            for unit, (before, after) in self._places(counted).items()
            if unit in counted
        }

    def _places(self, counted: Collection[int]) -> dict[int, tuple[int, int]]:
        """Return the smallest d_in and the largest d_out of every unit."""
        places: dict[int, tuple[int, int]] = {}
        distances = self.distances(counted)
        for call, (before, after) in zip(self.calls, distances, strict=True):
            for unit in call.units:
                known = places.get(unit, (before, after))
                places[unit] = min(known[0], before), max(known[1], after)
        return places

    def after(self, units: Collection[int]) -> set[int]:
        """Return the units of the calls that read, at last, these units'."""
        reached: set[int] = set()
        found: set[int] = set()
        for number, call in enumerate(self.calls):
            if not reached.isdisjoint(call.inputs):
                found.update(call.units)
            elif not any(unit in units for unit in call.units):
                continue
            reached.add(number)
        return found.difference(units)

    def last_units(self) -> set[int]:
        """Return the units of the layers that nothing else follows.

        Of several that end in the same result, the deepest. One that has more
        calls, as a tied embedding has, is last only if nothing follows any.
        """
        everything = {unit for call in self.calls for unit in call.units}
        places = self._places(everything)
        # The last calls that read weights, before (or at) each call.
        ends: list[set[int]] = []
        last: set[int] = set()
        depth = [before for before, _ in self.distances(everything)]
        for number, call in enumerate(self.calls):
            before = (ends[i] for i in call.inputs)
            ends.append({number} if call.units else set().union(*before))
            if ends[number] and not call.outputs:
                deepest = max(ends[number], key=lambda n: (depth[n], n))
                units = self.calls[deepest].units
                last.update(unit for unit in units if places[unit][1] == 0)
        return last

    def _set_beside(self, steps: list[int], after: list[int]) -> None:
        """Put a shortcut beside the start of the branch it is added to.

        A projection shortcut and the first convolution of its block read the
        same tensor: they are siblings. By the longest path alone the shortcut,
        which is the shorter branch, would lie somewhere in the block's middle.
        It is beside the ways from its fork that meet in the same addition, and
        of which nothing is read elsewhere, as of a feature pyramid's levels.
        """
        calls = self.calls
        meets = self._meeting_points()

        def comes_to(number: int, addition: int) -> bool:
            while number < addition:
                number = meets[number]
            return number == addition

        def is_in_a_row(call: Call) -> bool:
            return len(call.inputs) == len(call.outputs) == 1

        for ways in (call.outputs for call in calls if len(call.outputs) > 1):
            for number in ways:
                row = []
                while is_in_a_row(calls[number]):
                    row.append(number)
                    (number,) = calls[number].outputs
                if not (row and calls[number].adds):
                    continue
                beside = (i for i in ways if comes_to(i, number))
                rest = max(after[i] + steps[i] for i in beside)
                for member in row:
                    rest -= steps[member]
                    after[member] = max(after[member], rest)

    def _meeting_points(self) -> list[int]:
        """Return the first call that all ways on from each call go through.

        The number of calls, where they never meet again.
        """
        count = len(self.calls)
        meets = [count] * count
        for number in reversed(range(count)):
            ways = {*self.calls[number].outputs}
            while len(ways) > 1:
                first = min(ways)
                ways = ways - {first} | {meets[first]}
            meets[number] = min(ways, default=count)
        return meets
