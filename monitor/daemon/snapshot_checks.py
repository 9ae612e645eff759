"""Frozen snapshots, read again and again: a disk that loses bits is found before the rows matter.

Above `sources` and `ledger`; `daemon` runs it as a job. The ledger keeps the hash of each snapshot
as it was frozen. Each look compares a bounded share of them, newest first, and a
round ends before the next begins: a year of snapshots makes no look longer.
"""

from __future__ import annotations

from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING

import structlog

from steadfeast.monitor.sources import damage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from steadfeast.monitor.ledger import FrozenBucket

log = structlog.get_logger(__name__)

BYTES_PER_LOOK = 2**25
"""So many bytes are hashed in some hundredths of a second."""


class SnapshotChecks:
    """Compares snapshots with the hashes that the ledger keeps.

    Args:
        frozen: Returns every frozen bucket by monitor; asked again at each round.
    """

    def __init__(self, frozen: Callable[[], Iterable[tuple[str, FrozenBucket]]]) -> None:
        self._frozen = frozen
        self._lock = Lock()
        self._round: list[tuple[str, FrozenBucket]] = []
        self._damaged: dict[Path, tuple[str, str]] = {}

    def look(self) -> None:
        """Compare the next share; a file that is damaged is named once in the log."""
        self._round = self._round or list(self._frozen())
        left = BYTES_PER_LOOK
        while self._round and left > 0:
            monitor, kept = self._round.pop()
            with suppress(FileNotFoundError):  # it may leave the retention at any moment
                left -= kept.path.stat().st_size
            self._note(monitor, kept.path, damage(kept.path, kept.sha256))
        with self._lock:
            known = list(self._damaged)
        for path in known:
            if not path.exists():  # put right by hand, or out of retention
                self._note("", path, "")

    def _note(self, monitor: str, path: Path, problem: str) -> None:
        with self._lock:
            known = self._damaged.pop(path, None)
            if problem:
                self._damaged[path] = monitor, problem
        if problem and known is None:
            log.error("snapshot_damaged", monitor=monitor, path=str(path), reason=problem)

    def damaged(self, monitor: str) -> tuple[str, ...]:
        """Return what is wrong with snapshots of `monitor`, one line each."""
        with self._lock:
            return tuple(
                f"{path}: {problem}"
                for path, (owner, problem) in sorted(self._damaged.items())
                if owner == monitor
            )
