"""From sources to the online store: each key's newest row among those that became known.

Above `offline` and `online`, below `store` and `engine`, which is `feast materialize`: both move
views by `Materializer.move`. A row is known from the later of its event time and its created
time. Reading by event time alone, as Feast does, never sees a row that was written late; reading
by either finds it, and the online store's order keeps it from undoing what is newer. Without a
created column lateness cannot be seen: then a source that has changed is read again as far back
as its rows can still be used, which is the TTL.
"""

from __future__ import annotations

import fcntl
import json
import weakref
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_NAME, DUMMY_ENTITY_VAL
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from steadfeast.featurestore.errors import SourceError
from steadfeast.featurestore.offline.binding import Bound, bind
from steadfeast.featurestore.offline.session import session
from steadfeast.featurestore.offline.sources import reading
from steadfeast.featurestore.tables import sql
from steadfeast.featurestore.tables.columns import CREATED_TIMESTAMP, EVENT_TIMESTAMP
from steadfeast.featurestore.tables.whole_files import write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import duckdb
    from feast import FeatureView
    from feast.repo_config import RepoConfig

    from steadfeast.featurestore.online import PackedOnlineStore

_BATCH_ROWS = 65_536
_AHEAD_STEPS = 128
Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn("{task.fields[rows]:,} rows"),
    TimeElapsedColumn(),
)


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a view was materialized when somebody looked.

    Attributes:
        until: Up to when; None before the first time.
        source: The state of its source then, where that is known.
        moving: Whether any process was moving views forward.
    """

    until: datetime | None
    source: str | None
    moving: bool


class Materializer:
    """Moves feature views forward and remembers how far each has come.

    Keeps one DuckDB session, so that a small step costs its rows and not its set-up. Safe to
    share between threads; calls wait for each other.

    Args:
        config: Feast's configuration.
        online: Where to write.
        marks: File that keeps how far each view has come, and the state of its source then;
            None when someone else remembers.
    """

    def __init__(self, config: RepoConfig, online: PackedOnlineStore, marks: Path | None) -> None:
        self._config, self._online, self._path = config, online, marks
        self._lock = RLock()
        self._open = ExitStack()
        weakref.finalize(self, self._open.close)  # also at exit, while DuckDB is still there
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._bounds: dict[str, tuple[object, Bound]] = {}
        self._ahead: dict[str, _Ahead] = {}
        kept = marks is not None and marks.is_file()
        self._marks: dict[str, dict[str, Any]] = (
            json.loads(marks.read_text(encoding="utf-8")) if marks is not None and kept else {}
        )

    def standing(self, view: str) -> Standing:
        """Return where `view` stands for all processes, not only by what this one did."""
        marks: dict[str, dict[str, Any]] = {}
        moving = False
        if self._path is not None and self._path.is_file():
            marks = json.loads(self._path.read_text(encoding="utf-8"))
        if self._path is not None and (lock := self._path.with_suffix(".lock")).is_file():
            with lock.open("rb") as tried:
                try:
                    fcntl.flock(tried, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    moving = True
        mark = marks.get(view)
        if mark is None:
            return Standing(None, None, moving=moving)
        until = _EPOCH + timedelta(microseconds=mark["until"])
        return Standing(until, mark["source"], moving=moving)

    @contextmanager
    def _moving(self) -> Iterator[None]:
        """Let others see that what is online changes; the kernel ends it with the process."""
        if self._path is None:
            yield
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("ab") as held:
            fcntl.flock(held, fcntl.LOCK_SH)
            yield

    def close(self) -> None:
        """Close the session; the next call opens another."""
        with self._lock:
            self._connection = None
            self._open.close()

    def watermark(self, view: str) -> datetime | None:
        """Return the time up to which `view` was materialized; None before the first time."""
        mark = self._marks.get(view)
        return None if mark is None else _EPOCH + timedelta(microseconds=mark["until"])

    def run(
        self, views: Sequence[FeatureView], since: int | None, until: int, *, progress: bool
    ) -> dict[str, int]:
        """Move `views` to `until`; without `since`, from where each was.

        Returns:
            Feature view -> entities that changed.
        """
        changed = {}
        columns = Progress(*_COLUMNS, transient=True, disable=not progress)
        with self._lock, self._moving(), columns as bar:
            task = bar.add_task("materialize", total=len(views), rows=0)
            for view in views:
                bar.update(task, description=view.name, rows=0)
                mark, state = self._marks.get(view.name), _digest(self._config, view)
                start, late = since, False
                if since is None and mark is not None:
                    start = mark["until"]
                    late = state is None or state != mark["source"]
                changed[view.name] = self.move(
                    view,
                    start,
                    until,
                    late=late,
                    tell=lambda rows: bar.update(task, rows=bar.tasks[0].fields["rows"] + rows),
                )
                reached = max(until, mark["until"]) if mark is not None else until
                self._marks[view.name] = {"until": reached, "source": state}
                bar.advance(task)
            if self._path is not None:
                # Written last: a crash before it repeats the step, which changes nothing.
                write_whole(self._path, json.dumps(self._marks, sort_keys=True).encode())
        return changed

    def move(
        self,
        view: FeatureView,
        since: int | None,
        until: int,
        *,
        late: bool,
        tell: Callable[[int], object],
        known_by: int | None = None,
    ) -> int:
        """Write each key's greatest row of those that became known in a time range.

        Args:
            view: The feature view.
            since: Microseconds, inclusive; None for all.
            until: Microseconds, inclusive.
            late: Where the source has no created column, look for rows that were written late.
            tell: Called with the number of rows of each batch.
            known_by: Take rows of the range, and late ones, that were created until then, as
                Feast does; without it only what was known by `until`.

        Returns:
            Entities that changed.

        Raises:
            SourceError: The source cannot be read, or a transformation stands before the view.
        """
        with self._lock:
            if getattr(view, "feature_transformation", None) is not None:
                location = getattr(view.batch_source, "name", "")
                raise SourceError(view.name, location, "has a transformation; run it beforehand")
            if late and since is not None:
                bound = self._bound(view)
                if bound.view.created is None:
                    ttl = bound.view.ttl
                    since = min(since, until - ttl) if ttl else None
            with reading(view.name, getattr(view.batch_source, "name", "")):
                if known_by is None:
                    rows = self._newly_known(view, since, until)
                else:
                    at = self._bound(view).view
                    rows = self._stream(at, _in_range(at, since, until, known_by))
                return self.write(view, _told(rows, tell))

    def write(self, view: FeatureView, rows: Iterable[pa.RecordBatch]) -> int:
        """Write rows under the source's names; return how many entities changed."""
        waiting: list[pa.RecordBatch] = []
        changed = size = 0
        for batch in rows:
            waiting.append(batch)
            size += batch.num_rows
            if size >= _BATCH_ROWS:
                changed += self._write(view, waiting)
                waiting, size = [], 0
        return changed + (self._write(view, waiting) if size else 0)

    def _write(self, view: FeatureView, batches: list[pa.RecordBatch]) -> int:
        table = as_online(view, pa.Table.from_batches(batches))
        return self._online.write_batch(self._config, view, table)

    def _newly_known(
        self, view: FeatureView, since: int | None, until: int
    ) -> Iterable[pa.RecordBatch]:
        """Return rows that became known from `since` to `until`, inclusive.

        At least each key's greatest is among them; the store keeps that one, whatever the order.
        """
        bound = self._bound(view)
        if since is None:
            return self._stream(bound.view, sql.newest(bound.view, None, until, known_by=until))
        ahead = self._ahead.get(view.name)
        if ahead is not None and ahead.covers(bound, since, until):
            return ahead.between(since, until)
        # Small steps through a file that does not change, as in a replay or a backfill, would
        # each pay for a scan: read some more steps at once.
        steps = min(_AHEAD_STEPS, _BATCH_ROWS // max(ahead.last if ahead else _BATCH_ROWS, 1))
        if ahead is None or ahead.bound is not bound or steps < 2:  # noqa: PLR2004 - no gain
            query = _known_between(bound.view, since, until, newest=True)
            return self._counted(view, bound, since, self._stream(bound.view, query))
        horizon = until + (until - since) * steps
        rows = self._table(_known_between(bound.view, since, horizon, newest=False))
        ahead = self._ahead[view.name] = _Ahead.of(bound, since, horizon, rows)
        return ahead.between(since, until)

    def _counted(
        self, view: FeatureView, bound: Bound, since: int, rows: Iterable[pa.RecordBatch]
    ) -> Iterable[pa.RecordBatch]:
        """Remember how many rows the step had, for the next one."""
        count = 0
        for batch in rows:
            count += batch.num_rows
            yield batch
        self._ahead[view.name] = _Ahead(bound, since, since, None, count)

    def _stream(self, view: sql.View, query: str) -> Iterable[pa.RecordBatch]:
        if self._online.embedded and view.keys:
            # In the order of the store's B-tree, which then grows at its end: half the time, and
            # a smaller file.
            query += f" ORDER BY {', '.join(sorted(sql.identifier(k.name) for k in view.keys))}"
        stream: Iterable[pa.RecordBatch] = self._session().sql(query).to_arrow_reader()
        return stream

    def _table(self, query: str) -> pa.Table:
        return self._session().sql(query).to_arrow_table()

    def _session(self) -> duckdb.DuckDBPyConnection:
        if self._connection is None:
            self._connection = self._open.enter_context(session(self._config))
            self._connection.execute("SET parquet_metadata_cache = true").fetchall()
        return self._connection

    def _bound(self, view: FeatureView) -> Bound:
        """Bind a view to its source; anew when the file is not the one that was looked at."""
        state = _state(self._config, view)
        known = self._bounds.get(view.name)
        if known is not None and state is not None and known[0] == state:
            return known[1]
        names = [field.name for field in view.features]
        bound = bind(self._session(), self._config.repo_path, view, names)
        self._bounds[view.name] = (state, bound)
        return bound


@dataclass(slots=True)
class _Ahead:
    """Rows of one view that became known from `start` to `end`, read before they are due.

    Attributes:
        bound: The source they were read from; another object once its file has changed.
        start: Microseconds, inclusive.
        end: Microseconds, inclusive.
        rows: In the order in which they became known; None when nothing was read ahead.
        last: Rows of the last step.
        known: When each became known, microseconds, ascending.
    """

    bound: Bound
    start: int
    end: int
    rows: pa.Table | None
    last: int
    known: np.ndarray[Any, np.dtype[np.int64]] | None = None

    @classmethod
    def of(cls, bound: Bound, start: int, end: int, rows: pa.Table) -> _Ahead:
        times = [column.name for column in (bound.view.timestamp, bound.view.created) if column]
        for name in times:  # a row without a time is never known
            rows = rows.filter(pc.is_valid(rows.column(name)))
        known = np.max([rows.column(name).cast(pa.int64()).to_numpy() for name in times], axis=0)
        order = np.argsort(known, kind="stable")
        return cls(bound, start, end, rows.take(order).combine_chunks(), 0, known[order])

    def covers(self, bound: Bound, since: int, until: int) -> bool:
        return (
            self.rows is not None
            and self.bound is bound
            and self.start <= since
            and until <= self.end
        )

    def between(self, since: int, until: int) -> list[pa.RecordBatch]:
        if self.rows is None or self.known is None:
            return []
        first = int(np.searchsorted(self.known, since, side="left"))
        stop = int(np.searchsorted(self.known, until, side="right"))
        self.last = stop - first
        return self.rows.slice(first, stop - first).to_batches() if stop > first else []


def _known_between(view: sql.View, since: int, until: int, *, newest: bool) -> str:
    """Return the query of the rows that became known from `since` to `until`, inclusive."""
    if view.created is None:
        if newest:
            return sql.newest(view, since, until, known_by=until)
        return sql.everything(view, since, until)
    either = " OR ".join(
        f"({sql.within(column, since, until)})" for column in (view.timestamp, view.created)
    )
    both = sql.within(view.created, None, until)
    view = replace(view, scan=f"(SELECT * FROM {view.scan} WHERE ({either}) AND {both})")
    if newest:
        return sql.newest(view, None, until, known_by=until)
    return sql.everything(view, None, until)


def _in_range(view: sql.View, since: int | None, until: int, known_by: int) -> str:
    """Return the query of each key's greatest row of a range of event times, late ones too."""
    if view.created is None or since is None:
        return sql.newest(view, since, until, known_by=known_by)
    either = " OR ".join(
        f"({sql.within(column, since, None)})" for column in (view.timestamp, view.created)
    )
    view = replace(view, scan=f"(SELECT * FROM {view.scan} WHERE {either})")
    return sql.newest(view, None, until, known_by=known_by)


def as_online(view: FeatureView, rows: Rows) -> Rows:
    """Return rows of a source under the online store's names."""
    names = online_names(view)
    rows = rows.rename_columns([names.get(name, name) for name in rows.schema.names])
    if view.entities == [DUMMY_ENTITY_NAME]:  # Feast's key of views without entities
        key = pa.array([DUMMY_ENTITY_VAL] * rows.num_rows, pa.string())
        rows = rows.append_column(DUMMY_ENTITY_ID, key)
    return rows


def online_names(view: FeatureView) -> Mapping[str, str]:
    """Names of the source's time and key columns, mapped or not -> those of the online store."""
    source = view.batch_source
    if source is None:
        return {}
    names = {source.timestamp_field: EVENT_TIMESTAMP}
    if source.created_timestamp_column:
        names[source.created_timestamp_column] = CREATED_TIMESTAMP
    keys = {field.name for field in view.entity_columns}
    for column, mapped in (source.field_mapping or {}).items():
        if mapped in names or mapped in keys:
            names[column] = names.get(mapped, mapped)
    return names


def _state(config: RepoConfig, view: FeatureView) -> tuple[Any, ...] | None:
    """What changes when a local file is replaced; None for a source that is not one file."""
    location = getattr(view.batch_source, "path", None)
    if not isinstance(location, str) or "://" in location:
        return None
    path = Path(config.repo_path or ".") / location
    if not path.is_file():
        return None
    found = path.stat()
    return id(view.batch_source), location, found.st_ino, found.st_mtime_ns, found.st_size


def _digest(config: RepoConfig, view: FeatureView) -> str | None:
    """Return what `_state` says, to be compared by a later process."""
    state = _state(config, view)
    if state is None:
        return None
    return blake2b(repr(state[1:]).encode(), digest_size=8).hexdigest()


def _told(
    rows: Iterable[pa.RecordBatch], tell: Callable[[int], object]
) -> Iterable[pa.RecordBatch]:
    for batch in rows:
        yield batch
        tell(batch.num_rows)
