"""The store's invariants, checked again and again while the daemon runs.

Above `codec`; `daemon` says what is to be checked. Each audit is `steadfeast store audit` in a
process of its own: it reads whole views and replays the served log, and neither its memory nor a
crash of it is the daemon's. The last result of each monitor is a file beside the ledger, written
by rename, so that a restart still knows it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Event, Lock
from time import monotonic
from typing import TYPE_CHECKING

import structlog

from steadfeast.featurestore.errors import SteadfeastError
from steadfeast.monitor.delivery import Worker
from steadfeast.monitor.ledger import AuditCheck, AuditState, dump, from_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0
RETRY = timedelta(minutes=1)
"""Least time between two tries of an audit that fails."""
VIOLATED = 1
"""Exit code of an audit that came to its end and found that an invariant does not hold."""

_COMMAND = "from steadfeast.featurestore.cli import main; main()"


class AuditFailedError(SteadfeastError):
    """An audit did not come to its end.

    Attributes:
        service: The feature service.
        code: Exit code of the process; negative for a signal.
    """

    def __init__(self, service: str, code: int, said: str) -> None:
        self.service, self.code = service, code
        super().__init__(f"audit of {service} ended with {code}: {said}")


@dataclass(frozen=True, slots=True)
class Asked:
    """An audit that is to be repeated.

    Attributes:
        interval: Between two of them, wall clock.
        since: Served rows from here on, event time.
    """

    monitor: str
    service: str
    interval: timedelta
    since: datetime


class StoreAudits:
    """Runs one audit at a time, in a thread of its own.

    Args:
        config: The configuration file, for the audit's process.
        state: Folder of the daemon.
        asked: Says what is to be audited; asked again before each.
    """

    def __init__(self, config: Path, state: Path, asked: Callable[[], Sequence[Asked]]) -> None:
        self._config, self._folder, self._asked = config, state / "audits", asked
        self._lock = Lock()
        self._latest: dict[str, AuditState] = {}
        self._tried: dict[str, float] = {}
        self._stopping = Event()
        self._process: subprocess.Popen[str] | None = None
        self._thread = Worker("audits", self._run)
        for path in sorted(self._folder.glob("*.json")):
            self._latest[path.stem] = from_json(AuditState, path.read_text(encoding="utf-8"))

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def close(self) -> None:
        """Give up an audit that is under way, and stop."""
        self._stopping.set()
        with self._lock:
            if self._process is not None:
                self._process.terminate()
        self._thread.join()

    def problem(self) -> str:
        """Return why no audit is made, in one line; empty if they are."""
        return self._thread.problem()

    def latest(self) -> dict[str, AuditState]:
        """Return the last audit that came to its end, by monitor."""
        with self._lock:
            return dict(self._latest)

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            for asked in self._asked():
                if self._stopping.is_set():
                    return
                if self._due(asked):
                    self._audit(asked)

    def _due(self, asked: Asked) -> bool:
        done, tried = self._latest.get(asked.monitor), self._tried.get(asked.monitor)
        waited = timedelta(seconds=monotonic() - tried) if tried is not None else None
        if waited is not None and waited < min(RETRY, asked.interval):
            return False
        # An audit of the future was made before the clock was set back.
        age = None if done is None else datetime.now(UTC) - done.at
        return age is None or age < timedelta(0) or age >= asked.interval

    def _audit(self, asked: Asked) -> None:
        self._tried[asked.monitor] = monotonic()
        try:
            found = self._found(asked)
            self._keep(asked.monitor, found)
        except (AuditFailedError, OSError) as error:  # such as a full disk: tried again
            if not self._stopping.is_set():
                log.error("audit_failed", monitor=asked.monitor, reason=str(error))  # noqa: TRY400
            return
        with self._lock:
            self._latest[asked.monitor] = found
        broken = [f"{one.invariant} {one.subject}" for one in found.checks if not one.holds]
        log.info("audited", monitor=asked.monitor, checks=len(found.checks), broken=broken)

    def _keep(self, monitor: str, found: AuditState) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{monitor}.json"
        fresh = path.with_suffix(".new")
        fresh.write_text(dump(found), encoding="utf-8")
        fresh.replace(path)

    def _found(self, asked: Asked) -> AuditState:
        command = [
            *(sys.executable, "-P", "-c", _COMMAND, "store", "audit", asked.service),
            *("--config", str(self._config), "--start", asked.since.isoformat(), "--json"),
        ]
        with self._lock:
            if self._stopping.is_set():
                raise AuditFailedError(asked.service, 0, "the daemon stops")
            self._process = subprocess.Popen(  # noqa: S603 - ourselves
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        said, errors = self._process.communicate()
        if self._process.returncode not in {0, VIOLATED} or not said.strip():
            last = errors.strip().splitlines()[-1:] or ["it said nothing"]
            raise AuditFailedError(asked.service, self._process.returncode, last[0])
        checks = json.loads(said)["checks"]
        return AuditState(
            datetime.now(UTC),
            tuple(
                AuditCheck(
                    one["invariant"],
                    one["subject"],
                    one["cells"],
                    one["mismatches"],
                    one["ok"],
                    one["note"],
                    one["features"],
                )
                for one in checks
            ),
        )
