"""The durable queue of runs: one SQLite file, shared by the server and the command line.

Above `recipe`, below everything that acts on a run. A run is kept as the `Run` message that
callers see, so what is stored and what is answered cannot differ; every change of it is also
an event with a sequence number, which is what `WatchRun` resumes from. Writes are durable
before they return (write-ahead log, synchronous=FULL).

At most one process works on runs at a time, the holder of `worker_lock`; so a run that is found
`running` when the lock is taken was cut off, and `claim` gives it out again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import sqlite3
import threading
import uuid
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from itertools import takewhile
from operator import eq
from pathlib import Path
from typing import TYPE_CHECKING, Self

from google.protobuf.json_format import MessageToDict, MessageToJson, Parse

from steadfeast.featurestore.errors import NotFoundError, SteadfeastError, UserError
from steadfeast.featurestore.tables import private_folder
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

ENDED = frozenset(
    {
        pb.RUN_STATE_PROMOTED,
        pb.RUN_STATE_REFUSED,
        pb.RUN_STATE_FAILED,
        pb.RUN_STATE_CANCELLED,
    }
)
"""States that a run never leaves."""

POLL_SECONDS = 0.2
"""How long to wait between two looks at what another process may have written."""

MAX_CUT_OFFS = 3
"""Times that a run is cut off at one step, each in a fresh process, until it is what kills us."""

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    run_id TEXT PRIMARY KEY,
    request_id TEXT NOT NULL UNIQUE,
    request TEXT NOT NULL,
    request_sha256 TEXT NOT NULL,
    accepted INTEGER NOT NULL,
    changed INTEGER NOT NULL,
    model TEXT NOT NULL,
    state INTEGER NOT NULL,
    cancel TEXT,
    judged_against TEXT,
    run TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    at TEXT NOT NULL,
    run TEXT NOT NULL,
    UNIQUE (run_id, sequence)
) STRICT;
-- Each start that did not come to an end in order: at which step, and since which boot.
CREATE TABLE IF NOT EXISTS starts (
    run_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    step TEXT NOT NULL,
    boot TEXT NOT NULL,
    PRIMARY KEY (run_id, number)
) STRICT;
CREATE INDEX IF NOT EXISTS runs_by_state ON runs (state, accepted);
"""


class RequestConflictError(SteadfeastError):
    """A request id that was accepted before, with another body.

    Attributes:
        request_id: The id.
        run_id: The run that the first body started.
        accepted_sha256: Hash of the first body.
        offered_sha256: Hash of this one.
    """

    def __init__(self, request_id: str, run_id: str, accepted: str, offered: str) -> None:
        self.request_id, self.run_id = request_id, run_id
        self.accepted_sha256, self.offered_sha256 = accepted, offered
        super().__init__(
            f"request {request_id} was accepted as run {run_id} with another body "
            f"(sha256 {accepted[:12]}, now {offered[:12]})"
        )


class RunEndedError(SteadfeastError):
    """A change to a run that has ended.

    Attributes:
        run_id: The run.
        state: Name of the state it ended in.
    """

    def __init__(self, run_id: str, state: str) -> None:
        self.run_id, self.state = run_id, state
        super().__init__(f"run {run_id} has ended: {state.removeprefix('RUN_STATE_').lower()}")


class QueueFormatError(SteadfeastError):
    """The queue's file was written by a version that this one does not know.

    Attributes:
        path: The file.
        version: The schema version in it.
    """

    def __init__(self, path: Path, version: int) -> None:
        self.path, self.version = path, version
        super().__init__(f"{path}: schema version {version}; this version reads {_SCHEMA_VERSION}")


class QueueBrokenError(UserError):
    """The queue's file cannot be read.

    Attributes:
        path: The file.
        problem: What SQLite says.
    """

    def __init__(self, path: Path, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(
            f"{path}: truncated, damaged or not a queue; restore it, or move it away to start anew "
            f"({problem})"
        )


class QueueWriteError(SteadfeastError):
    """Nothing can be written now: most often the disk is full. What was written before is safe.

    Attributes:
        path: The queue's file.
        problem: What SQLite says.
    """

    def __init__(self, path: Path, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{path}: cannot be written: {problem}")


@dataclass(frozen=True, slots=True)
class Event:
    """One change of a run; `sequence` counts 1, 2, 3, ... within the run."""

    sequence: int
    at: datetime
    run: pb.Run


def canonical(request: pb.TriggerRetrainRequest) -> tuple[str, str]:
    """Return `request` as JSON in one fixed form, and the SHA-256 of that, in hexadecimal."""
    body = MessageToDict(request, preserving_proto_field_name=True)
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return text, hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def worker_lock(folder: Path) -> Iterator[bool]:
    """Try to become the one process that works on the runs in `folder`; give whether it is.

    The operating system drops the lock when the process ends, however it ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "worker.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


class RunNotRetriedError(UserError):
    """A run that did not fail is not done once more.

    Attributes:
        run_id: The run.
        state: Name of its state.
    """

    def __init__(self, run_id: str, state: str) -> None:
        self.run_id, self.state = run_id, state
        problem = "only a run that failed or was cancelled is done once more; trigger a new one"
        super().__init__(f"run {run_id} is {state.removeprefix('RUN_STATE_').lower()}: {problem}")


class RunQueue:
    """Runs and their events in the SQLite file at `path`; usable from any thread.

    Raises:
        QueueFormatError: The file has a schema that this version does not know.
        QueueBrokenError: It cannot be read.
        QueueWriteError: It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        private_folder(path.parent)
        self._path = path
        self._changed = threading.Condition(threading.RLock())
        self._con = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
        try:
            self._open()
        except sqlite3.OperationalError as error:
            self._con.close()
            raise QueueWriteError(path, str(error)) from error
        except sqlite3.DatabaseError as error:
            self._con.close()
            raise QueueBrokenError(path, str(error)) from error
        except SteadfeastError:
            self._con.close()
            raise

    def _open(self) -> None:
        self._con.execute("PRAGMA journal_mode = WAL")
        self._con.execute("PRAGMA synchronous = FULL")
        (version,) = self._con.execute("PRAGMA user_version").fetchone()
        if version not in (0, _SCHEMA_VERSION):
            raise QueueFormatError(self._path, version)
        # A truncated file opens, and fails only where a missing page is read.
        (found,) = self._con.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise QueueBrokenError(self._path, found)
        self._con.executescript(f"{_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION};")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was written stays."""
        with self._changed:
            self._con.close()

    # -- what callers of the service do --------------------------------------------------

    def accept(
        self,
        request: pb.TriggerRetrainRequest,
        outcome: pb.Run | None = None,
        asked_by: str = "",
    ) -> tuple[pb.Run, bool]:
        """Store `request` as a queued run, once; return the run and whether it is new.

        Args:
            request: A checked request.
            outcome: For what is already done when it is recorded (a promotion by hand):
                the fields of the run, in an ended state.
            asked_by: Who asks; kept of the first call.

        Raises:
            RequestConflictError: The id was accepted before with another body.
        """
        body, digest = canonical(request)
        with self._write() as con:
            row = con.execute(
                "SELECT run_id, request_sha256, run FROM runs WHERE request_id = ?",
                (request.request_id,),
            ).fetchone()
            if row is not None:
                if row[1] != digest:
                    raise RequestConflictError(request.request_id, row[0], row[1], digest)
                return _run(row[2]), False
            run = pb.Run(state=pb.RUN_STATE_QUEUED)
            if outcome is not None:
                run.CopyFrom(outcome)
            run.run_id = uuid.uuid4().hex
            run.request_id, run.model = request.request_id, request.model
            run.asked_by = asked_by
            run.as_of.CopyFrom(request.as_of)
            run.cause.CopyFrom(request.cause)
            run.created_at.FromDatetime(datetime.now(UTC))
            event = self._append(run)
            con.execute(
                "INSERT INTO runs (run_id, request_id, request, request_sha256, accepted, changed,"
                " model, state, run) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    run.run_id,
                    run.request_id,
                    body,
                    digest,
                    event,
                    event,
                    run.model,
                    run.state,
                    _text(run),
                ),
            )
        return run, True

    def get(self, run_id: str) -> pb.Run:
        """Return one run.

        Raises:
            NotFoundError: There is none with that id.
        """
        with self._changed:
            row = self._con.execute("SELECT run FROM runs WHERE run_id = ?", (run_id,)).fetchone()
            if row is None:
                known = self._con.execute("SELECT run_id FROM runs").fetchall()
                raise NotFoundError("run", run_id, (name for (name,) in known))
        return _run(row[0])

    def runs(
        self, model: str = "", states: Collection[pb.RunState.ValueType] = (), limit: int = 100
    ) -> list[pb.Run]:
        """Return runs, last changed first, of one model and in some states if given.

        Last changed first, so that the first promoted run is the one behind the champion,
        whatever the order in which runs were asked for.
        """
        marks = ", ".join("?" * len(states))
        with self._changed:
            rows = self._con.execute(
                "SELECT run FROM runs WHERE (? = '' OR model = ?)"
                f"{f' AND state IN ({marks})' if states else ''} ORDER BY changed DESC LIMIT ?",
                (model, model, *states, limit),
            ).fetchall()
        return [_run(text) for (text,) in rows]

    def events(self, run_id: str, after: int) -> list[Event]:
        """Return the events of a run above sequence `after`, in order.

        Raises:
            NotFoundError: There is no such run.
        """
        self.get(run_id)
        with self._changed:
            rows = self._con.execute(
                "SELECT sequence, at, run FROM events WHERE run_id = ? AND sequence > ?"
                " ORDER BY sequence",
                (run_id, after),
            ).fetchall()
        return [Event(seq, datetime.fromisoformat(at), _run(text)) for seq, at, text in rows]

    def wait(self, seconds: float) -> None:
        """Wait for a change made through this object, at most `seconds`.

        Another process writes too and cannot wake us: look again after each wait, and keep
        waits short.
        """
        with self._changed:
            self._changed.wait(seconds)

    def cancel(self, run_id: str, reason: str) -> pb.Run:
        """End a queued run at once, or ask a running one to stop; return the run.

        Raises:
            NotFoundError: There is no such run.
            RunEndedError: It has ended.
        """
        reason = reason or "cancelled on request"

        def change(run: pb.Run) -> None:
            run.reason = reason if run.state == pb.RUN_STATE_QUEUED else f"stopping: {reason}"
            if run.state == pb.RUN_STATE_QUEUED:
                run.state = pb.RUN_STATE_CANCELLED

        with self._write() as con:
            run = self.change(run_id, change)
            con.execute("UPDATE runs SET cancel = ? WHERE run_id = ?", (reason, run_id))
        return run

    def retry(self, run_id: str, actor: str) -> pb.Run:
        """Accept the request of a failed or cancelled run once more, as a run of its own.

        What cut a run off so often that it was given up (drains, reboots, a full disk) is over
        when a person says so; the run that failed stays as it ended.

        Args:
            run_id: The run.
            actor: Who asks.

        Raises:
            NotFoundError: There is no such run.
            RunNotRetriedError: It has not ended, or ended in another way.
        """
        run = self.get(run_id)
        if run.state not in {pb.RUN_STATE_FAILED, pb.RUN_STATE_CANCELLED}:
            raise RunNotRetriedError(run_id, pb.RunState.Name(run.state))
        with self._changed:
            (body,) = self._con.execute(
                "SELECT request FROM runs WHERE run_id = ?", (run_id,)
            ).fetchone()
        request: pb.TriggerRetrainRequest = Parse(body, pb.TriggerRetrainRequest())
        request.request_id = str(uuid.uuid4())
        request.cause.summary = f"run {run_id} once more"
        return self.accept(request, asked_by=actor)[0]

    # -- what the worker does ------------------------------------------------------------

    def claim(self) -> pb.Run | None:
        """Give the next run to work on, now `running`; None when there is none.

        Only the holder of `worker_lock` may call. A run that is `running` already was cut off
        and comes first. One that was cut off `MAX_CUT_OFFS` times in a row at the same step, and
        by no reboot, is failed instead: what got further, or went down with the machine, had bad
        luck.
        """
        with self._write() as con:
            while True:
                row = con.execute(
                    "SELECT run_id, state FROM runs WHERE state IN (?, ?)"
                    " ORDER BY state DESC, accepted LIMIT 1",
                    (pb.RUN_STATE_QUEUED, pb.RUN_STATE_RUNNING),
                ).fetchone()
                if row is None:
                    return None
                run_id, state = row
                step, boot = _step(self.get(run_id)), _boot()
                before = con.execute(
                    "SELECT step, boot FROM starts WHERE run_id = ? ORDER BY number DESC", (run_id,)
                ).fetchall()
                cut_off = len(list(takewhile(partial(eq, (step, boot)), before)))
                if cut_off >= MAX_CUT_OFFS:
                    why = (
                        f"cut off {cut_off} times while {step}, each time in a fresh process: "
                        "not started again; when what ends it is mended (memory? see the log), "
                        f"steadfeast pipeline retry {run_id}"
                    )
                    self.finish(run_id, pb.RUN_STATE_FAILED, why)
                    continue
                con.execute(
                    "INSERT INTO starts VALUES (?, ?, ?, ?)", (run_id, len(before), step, boot)
                )
                resumed = state == pb.RUN_STATE_RUNNING

                def start(run: pb.Run, reason: str = "resumed: it was cut off" * resumed) -> None:
                    run.state, run.reason = pb.RUN_STATE_RUNNING, reason

                return self.change(run_id, start)

    def change(self, run_id: str, change: Callable[[pb.Run], None]) -> pb.Run:
        """Apply `change` to a run that has not ended, as one event; return the run after it.

        Raises:
            NotFoundError: There is no such run.
            RunEndedError: It has ended.
        """
        with self._write() as con:
            run = self.get(run_id)
            if run.state in ENDED:
                raise RunEndedError(run_id, pb.RunState.Name(run.state))
            change(run)
            event = self._append(run)
            con.execute(
                "UPDATE runs SET state = ?, run = ?, changed = ? WHERE run_id = ?",
                (run.state, _text(run), event, run_id),
            )
        return run

    def finish(self, run_id: str, state: pb.RunState.ValueType, reason: str = "") -> pb.Run:
        """End a run in `state`; see `change`."""

        def end(run: pb.Run) -> None:
            run.state, run.reason = state, reason

        return self.change(run_id, end)

    def release(self, run_id: str) -> None:
        """Put a running run back in the queue, as if it had not been started."""

        def back(run: pb.Run) -> None:
            run.state, run.reason = pb.RUN_STATE_QUEUED, "the pipeline was stopped"

        with self._write() as con:
            self.change(run_id, back)
            con.execute(
                "DELETE FROM starts WHERE run_id = ? AND number ="
                " (SELECT max(number) FROM starts WHERE run_id = ?)",
                (run_id, run_id),
            )

    def cancelled(self, run_id: str) -> str | None:
        """Return why a run was asked to stop, or None if it was not."""
        with self._changed:
            row = self._con.execute(
                "SELECT cancel FROM runs WHERE run_id = ?", (run_id,)
            ).fetchone()
        return None if row is None else row[0]

    def judged(self, run_id: str, champion: str, change: Callable[[pb.Run], None]) -> pb.Run:
        """Apply `change`, and keep against which version (empty: none) the gates were taken."""
        with self._write() as con:
            run = self.change(run_id, change)
            con.execute("UPDATE runs SET judged_against = ? WHERE run_id = ?", (champion, run_id))
        return run

    def judged_against(self, run_id: str) -> str | None:
        """Return what `judged` kept; None if the run was not judged yet."""
        with self._changed:
            row = self._con.execute(
                "SELECT judged_against FROM runs WHERE run_id = ?", (run_id,)
            ).fetchone()
        return None if row is None else row[0]

    # -- inside --------------------------------------------------------------------------

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """One transaction; the outermost of nested ones commits, and wakes who waits.

        Raises:
            QueueWriteError: SQLite cannot write, or another process has held the file for long.
        """
        with self._changed:
            if self._con.in_transaction:
                yield self._con
                return
            try:
                with self._con:  # commits, or rolls back on an error
                    self._con.execute("BEGIN IMMEDIATE")
                    yield self._con
            except sqlite3.OperationalError as error:
                raise QueueWriteError(self._path, str(error)) from error
            self._changed.notify_all()

    def _append(self, run: pb.Run) -> int:
        """Write the run's next event, stamped now; return the event's id over all runs."""
        now = datetime.now(UTC)
        run.updated_at.FromDatetime(now)
        cursor = self._con.execute(
            "INSERT INTO events (run_id, sequence, at, run) SELECT ?,"
            " coalesce(max(sequence), 0) + 1, ?, ? FROM events WHERE run_id = ?",
            (run.run_id, now.isoformat(), _text(run), run.run_id),
        )
        return int(cursor.lastrowid or 0)


def model_files(path: Path, model: str, version: str) -> dict[str, str] | None:
    """Return the hashes of a version's files as its run recorded them, from the queue at `path`.

    None where no run has: of another pipeline, or of none.
    """
    if not path.exists():
        return None
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as con:
        row = con.execute(
            "SELECT run FROM runs WHERE model = ? AND json_extract(run, '$.model_version') = ?"
            " AND json_extract(run, '$.model_files') IS NOT NULL ORDER BY changed LIMIT 1",
            (model, version),
        ).fetchone()
    return None if row is None else dict(_run(row[0]).model_files)


def _step(run: pb.Run) -> str:
    """Return what comes next of a run, by what stands in its record."""
    if run.model_version:
        return "judging and promoting its version"
    return "training" if run.manifest_uri else "building its training set"


@cache
def _boot() -> str:
    """Return what names this boot of the machine; nothing where the system does not tell."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def _text(run: pb.Run) -> str:
    return MessageToJson(run, preserving_proto_field_name=True, indent=None)


def _run(text: str) -> pb.Run:
    return Parse(text, pb.Run())
