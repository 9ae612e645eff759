"""What a source says: the rows of one view that became known in a range of time.

Above `offline` and `readahead`, below `materializer`. Keeps one DuckDB session, and what it knows
of each source's files.
"""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steadfeast.featurestore.materialization.readahead import ReadAhead
from steadfeast.featurestore.offline import Bound, bind, session
from steadfeast.featurestore.tables import sql

if TYPE_CHECKING:
    from collections.abc import Iterable

    import duckdb
    import pyarrow as pa
    from feast import FeatureView
    from feast.repo_config import RepoConfig

BATCH_ROWS = 65_536
_AHEAD_STEPS = 128


class SourceRows:
    """Reads feature views' sources; not safe to share between threads.

    Args:
        config: Feast's configuration.
        sort: Give rows in the order of their keys, for a store that is a B-tree.
    """

    def __init__(self, config: RepoConfig, *, sort: bool) -> None:
        self._config, self._sort = config, sort
        self._open = ExitStack()
        weakref.finalize(self, self._open.close)  # also at exit, while DuckDB is still there
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._bounds: dict[str, tuple[object, Bound]] = {}
        self._ahead: dict[str, ReadAhead] = {}

    def close(self) -> None:
        """Close the session; the next call opens another."""
        self._connection = None
        self._open.close()

    def created_later(
        self, view: FeatureView, after: int, known_by: int
    ) -> Iterable[pa.RecordBatch]:
        """Return rows of before `after` that were created from then to `known_by`."""
        bound = self.bound(view).view
        query = _created_between(bound, after, known_by, after)
        return [] if query is None else self._stream(bound, query)

    def covers(self, view: FeatureView, since: int) -> bool:
        """Say whether the source has no row from before `since`."""
        query = sql.earliest(self.bound(view).view, None)
        found = self._session().execute(query).fetchall()[0][0]
        return found is None or since <= found

    def newly_known(
        self, view: FeatureView, since: int | None, until: int
    ) -> Iterable[pa.RecordBatch]:
        """Return rows that became known from `since` to `until`, inclusive.

        At least each key's greatest is among them; the store keeps that one, whatever the order.
        """
        bound = self.bound(view)
        if since is None:
            return self._stream(bound.view, sql.newest(bound.view, None, until, known_by=until))
        ahead = self._ahead.get(view.name)
        if ahead is not None and ahead.covers(bound, since, until):
            return ahead.between(since, until)
        # Small steps through a file that does not change, as in a replay or a backfill, would
        # each pay for a scan: read some more steps at once.
        steps = min(_AHEAD_STEPS, BATCH_ROWS // max(ahead.last if ahead else BATCH_ROWS, 1))
        if ahead is None or ahead.bound is not bound or steps < 2:  # noqa: PLR2004 - no gain
            query = _known_between(bound.view, since, until, newest=True)
            return self._counted(view, bound, since, self._stream(bound.view, query))
        horizon = until + (until - since) * steps
        rows = self._table(_known_between(bound.view, since, horizon, newest=False))
        ahead = self._ahead[view.name] = ReadAhead.of(bound, since, horizon, rows)
        return ahead.between(since, until)

    def _counted(
        self, view: FeatureView, bound: Bound, since: int, rows: Iterable[pa.RecordBatch]
    ) -> Iterable[pa.RecordBatch]:
        """Remember how many rows the step had, for the next one."""
        count = 0
        for batch in rows:
            count += batch.num_rows
            yield batch
        self._ahead[view.name] = ReadAhead(bound, since, since, None, count)

    def _stream(self, view: sql.View, query: str) -> Iterable[pa.RecordBatch]:
        if self._sort and view.keys:
            # In the order of the store's B-tree, which then grows at its end: half the time, and
            # a smaller file.
            query += f" ORDER BY {', '.join(sorted(sql.identifier(k.name) for k in view.keys))}"
        stream: Iterable[pa.RecordBatch] = self._session().sql(query).to_arrow_reader()
        return stream

    def _table(self, query: str) -> pa.Table:
        return self._session().sql(query).to_arrow_table()

    def _session(self) -> duckdb.DuckDBPyConnection:
        # Not with `parquet_metadata_cache`: it takes a file that was written again for the old one.
        if self._connection is None:
            self._connection = self._open.enter_context(session(self._config))
        return self._connection

    def bound(self, view: FeatureView) -> Bound:
        """Bind a view to its source; anew when the file is not the one that was looked at."""
        state = _state(self._config, view)
        known = self._bounds.get(view.name)
        if known is not None and state is not None and known[0] == (view, state):
            return known[1]
        names = [field.name for field in view.features]
        bound = bind(self._session(), self._config.repo_path, view, names)
        self._bounds[view.name] = ((view, state), bound)
        return bound


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


def _created_between(view: sql.View, after: int, known_by: int, until: int) -> str | None:
    """Return the query of each key's greatest row up to `until` that became known after it."""
    if view.created is None or known_by <= after:
        return None
    created = sql.within(view.created, after + 1, known_by)
    view = replace(view, scan=f"(SELECT * FROM {view.scan} WHERE {created})")
    return sql.newest(view, None, until, known_by=known_by)


def _state(config: RepoConfig, view: FeatureView) -> tuple[Any, ...] | None:
    """What changes when a local file is replaced; None for a source that is not one file."""
    location = getattr(view.batch_source, "path", None)
    if not isinstance(location, str) or "://" in location:
        return None
    path = Path(config.repo_path or ".") / location
    if not path.is_file():
        return None
    found = path.stat()
    return location, found.st_ino, found.st_mtime_ns, found.st_size


def state_of(config: RepoConfig, view: FeatureView) -> str | None:
    """Return what changes when a source's file is replaced; None for what is not one file."""
    state = _state(config, view)
    if state is None:
        return None
    return blake2b(repr(state).encode(), digest_size=8).hexdigest()
