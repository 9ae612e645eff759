"""Threads that say why they ended, and waits between attempts.

Bottom of delivery; the daemon's own loops use it too.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger(__name__)


class Worker:
    """A thread that does the work of one loop; when it ends by an error, it says which.

    Args:
        name: Of the thread, as the daemon names its problem.
        work: What it does.
        given: Arguments of `work`.
    """

    def __init__(self, name: str, work: Callable[..., object], *given: Any) -> None:
        self._name, self._work, self._given = name, work, given
        self._error = ""
        self._thread = Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def join(self, seconds: float | None = None) -> None:
        """Wait until the work has ended, at most so long."""
        if self._thread.is_alive():
            self._thread.join(seconds)

    def alive(self) -> bool:
        """Whether it works."""
        return self._thread.is_alive()

    def problem(self) -> str:
        """Return why it does not work, in one line; empty if it does."""
        if self._error:
            return f"thread {self._name} has ended: {self._error}"
        return "" if self._thread.is_alive() else f"thread {self._name} does not run"

    def _run(self) -> None:
        try:
            self._work(*self._given)
        except BaseException as error:
            first = str(error).partition("\n")[0]
            self._error = f"{type(error).__name__}: {first}"
            log.exception("thread_ended", thread=self._name)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits between attempts: doubled each time, up to `most`, less a random half.

    Attributes:
        first: Seconds after the first failure.
        most: Seconds that are never exceeded.
    """

    first: float = 0.5
    most: float = 60.0

    def seconds(self, attempt: int) -> float:
        """Return how long to wait after failure number `attempt`, counted from 1."""
        whole: float = min(self.most, self.first * 2 ** min(attempt - 1, 30))
        return whole * random.uniform(0.5, 1)  # noqa: S311 - jitter is no secret
