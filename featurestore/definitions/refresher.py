"""Doing again in the background what was once worked out, without a request ever waiting for it.

Above `errors`; below `store`.
"""

from __future__ import annotations

from threading import Lock, Thread
from time import monotonic
from typing import TYPE_CHECKING

import structlog

from steadfeast.featurestore.errors import SteadfeastError

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger(__name__)


class Refresher:
    """Says when it is time, and runs one refresh at a time.

    A refresh that fails, as when definitions are half applied, is logged; what there was stays,
    and the next one tries again.

    Args:
        every_seconds: Time from one to the next; 0 for never.
    """

    def __init__(self, every_seconds: float) -> None:
        self._every = every_seconds
        self._due = monotonic() + every_seconds if every_seconds else float("inf")
        self._lock = Lock()
        self._thread: Thread | None = None

    def is_due(self) -> bool:
        """Whether the time has come."""
        return monotonic() >= self._due

    def start(self, work: Callable[[], None]) -> None:
        """Run `work` in a thread, unless another caller just has."""
        with self._lock:
            if not self.is_due() or (self._thread is not None and self._thread.is_alive()):
                return
            self._due = monotonic() + self._every
            self._thread = Thread(target=self._run, args=(work,), name="refresh", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Wait for the refresh under way."""
        if self._thread is not None:
            self._thread.join()

    @staticmethod
    def _run(work: Callable[[], None]) -> None:
        try:
            work()
        except (SteadfeastError, OSError) as error:
            log.warning("refresh_failed", error=f"{type(error).__name__}: {error}")
