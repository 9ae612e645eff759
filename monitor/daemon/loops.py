"""What goes on by itself while the daemon runs, behind one protocol.

Above nothing; `daemon` starts, stops and asks them. A loop whose thread has ended says so by name,
and the daemon is not healthy then: nothing ends unnoticed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping


class Loop(Protocol):
    """Work that goes on until it is stopped."""

    def start(self) -> None:
        """Begin to work."""

    def close(self) -> None:
        """Finish what is under way, and stop."""

    def problem(self) -> str:
        """Return why it does not do its work, in one line; empty if it does."""


class Loops:
    """The loops of a daemon, started in order and stopped in the opposite order.

    Args:
        loops: By name.
    """

    def __init__(self, loops: Mapping[str, Loop]) -> None:
        self._loops = dict(loops)

    def start(self) -> None:
        """Start each."""
        for loop in self._loops.values():
            loop.start()

    def close(self) -> None:
        """Stop each."""
        for loop in reversed(self._loops.values()):
            loop.close()

    def problem(self) -> str:
        """Return what is wrong with the first that does not do its work; empty if all do."""
        for name, loop in self._loops.items():
            problem = loop.problem()
            if problem:
                return f"{name}: {problem}"
        return ""
