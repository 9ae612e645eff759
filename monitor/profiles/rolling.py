"""The sum of the last buckets, at the price of a few merges.

Above `monitor.profiles.profile`, whose monoid is all that this needs. Neighbouring buckets are
summed in pairs, pairs of pairs, and so on, at places that follow from the buckets' numbers alone. A
window is the sum of the few largest such groups inside it, most of which are there from the window
before: one more bucket costs O(log n) merges in a window of n. And because the groups do not depend
on what was asked before, floating-point sums come out the same after a restart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from steadfeast.monitor.profiles.profile import Profile, total

if TYPE_CHECKING:
    from collections.abc import Callable

    from steadfeast.monitor.profiles.binning import Edges


class Sums:
    """Sums stretches of numbered profiles over the same edges, and keeps the groups."""

    def __init__(self, edges: Edges) -> None:
        self._edges = edges
        self._groups: dict[tuple[int, int], Profile] = {}

    def __contains__(self, number: int) -> bool:
        """Whether the profile of this number is held."""
        return (0, number) in self._groups

    def total(self, low: int, high: int, one: Callable[[int], Profile]) -> Profile:
        """Return the sum of the profiles from `low` to `high - 1`.

        Args:
            low: First number.
            high: Last number, plus 1; a profile below it must not change any more.
            one: Gives the profile of a number that is not held yet.
        """
        return total((self._group(*place, one) for place in _covering(low, high)), self._edges)

    def _group(self, level: int, number: int, one: Callable[[int], Profile]) -> Profile:
        place = (level, number)
        if place not in self._groups:
            self._groups[place] = (
                self._group(level - 1, 2 * number, one)
                + self._group(level - 1, 2 * number + 1, one)
                if level
                else one(number)
            )
        return self._groups[place]

    def forget(self, low: int) -> None:
        """Let go of every group that starts before `low`."""
        for level, number in [place for place in self._groups if place[1] << place[0] < low]:
            del self._groups[level, number]


def _covering(low: int, high: int) -> list[tuple[int, int]]:
    """Return the largest groups, as level and number, that make up [low, high), in order."""
    found = []
    while low < high:
        level = 0
        while not low & (1 << level) and low + (2 << level) <= high:
            level += 1
        found.append((level, low >> level))
        low += 1 << level
    return found
