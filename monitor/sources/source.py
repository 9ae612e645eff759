"""Where a monitor's rows come from: the served log, a feature view, a table that DuckDB reads.

Above `tables` and `config`; `measuring` freezes what is read here, and knows no difference. A
source tells its latest row without reading any while nothing has changed.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from steadfeast.featurestore.errors import NotFoundError, SourceError
from steadfeast.featurestore.tables import EPOCH
from steadfeast.monitor.sources.quarantine import Fault, Quarantined, shortened
from steadfeast.monitor.sources.snapshot import RowQuery, freeze
from steadfeast.monitor.sources.table import AwayError, Part, Reading, Shape, Table, instant

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    import duckdb

    from steadfeast.featurestore.served_log import ServedLog
    from steadfeast.monitor.config import MonitorConfig
    from steadfeast.monitor.sources.snapshot import Bucket, Snapshot
    from steadfeast.monitor.sources.views import ViewFacts

_MICROSECOND = timedelta(microseconds=1)
_FOLLOWING = timedelta(hours=1)
"""How long after its vector a prediction is looked for, where its sender gives no time."""

_WITH_PREDICTIONS = """
    WITH served AS ({served}), said AS (
        SELECT request_id, list({{'model': model, 'version': model_version, 'value': prediction}}
            ORDER BY request_time, model, model_version, prediction) AS listed
        FROM read_parquet($said, union_by_name = true) GROUP BY request_id),
    met AS (SELECT served.*, list_filter(listed, lambda one:
            (served.model = '' OR one.model = served.model) AND
            (served.model_version = '' OR one.version = served.model_version))[1] AS one
        FROM served LEFT JOIN said USING (request_id))
    SELECT * EXCLUDE (one) REPLACE (
        coalesce(prediction, one.value) AS prediction,
        CASE WHEN prediction IS NULL AND one IS NOT NULL THEN one.model ELSE model END AS model,
        CASE WHEN prediction IS NULL AND one IS NOT NULL THEN one.version ELSE model_version END
            AS model_version)
    FROM met"""


class Source(Protocol):
    """What a monitor watches.

    Attributes:
        keys: Columns that name entities.
        personal: Columns whose values are somebody's, so that none may be shown.
    """

    keys: tuple[str, ...]
    personal: frozenset[str]

    def latest(self) -> datetime | None:
        """Return the latest event time on hand; cheap while nothing has changed.

        Raises:
            SourceError: It cannot be read.
        """

    def first(self) -> datetime | None:
        """Return the least event time on hand."""

    def parts(self, start: datetime, end: datetime) -> list[Part]:
        """Return the parts that may hold rows of [start, end)."""

    def reading(
        self,
        con: duckdb.DuckDBPyConnection,
        start: datetime,
        end: datetime,
        *,
        types: Mapping[str, str] = ...,
        carefully: bool = False,
    ) -> AbstractContextManager[Reading]:
        """Give the query of the rows that may be in [start, end), to run on `con` inside.

        Their event time is `request_time`.

        Args:
            con: Any DuckDB connection whose time zone is UTC.
            start: Included.
            end: Not included.
            types: DuckDB type that a column should have, of sources whose cells are text.
            carefully: Find out what cannot be read and leave it out, at any price; for when
                reading has failed.

        Raises:
            SourceError: The source cannot be read, here or while the query runs.
        """


class Served:
    """The served log of one feature service."""

    keys: tuple[str, ...] = ()
    personal: frozenset[str] = frozenset()

    def __init__(self, log: ServedLog, service: str) -> None:
        self._log, self._service = log, service
        self._first: datetime | None = None

    def latest(self) -> datetime | None:
        """See `Source`; the log lists a folder that has not changed no second time."""
        return self._log.watermark(self._service)

    def first(self) -> datetime | None:
        """See `Source`."""
        if self._first is None:
            latest = self.latest()
            if latest is not None:
                files = self._log.files(self._service, EPOCH, latest + _MICROSECOND)
                self._first = min(_span(file)[0] for file in files)
        return self._first

    def parts(self, start: datetime, end: datetime) -> list[Part]:
        """See `Source`; ctime, because a rename sets it."""
        files = [*self._log.files(self._service, start, end), *self._said(start, end)]
        return [Part(*_span(file), file.stat().st_ctime) for file in files]

    def _said(self, start: datetime, end: datetime) -> list[Path]:
        """Return the files of predictions that may be of these vectors, and came by themselves."""
        return self._log.prediction_files(self._service, start, end + _FOLLOWING)

    @contextmanager
    def reading(
        self,
        con: duckdb.DuckDBPyConnection,
        start: datetime,
        end: datetime,
        *,
        types: Mapping[str, str] = MappingProxyType({}),
        carefully: bool = False,
    ) -> Iterator[Reading]:
        """See `Source`.

        A vector that was logged without a prediction has the one that was sent for it: of its
        model and version where it names them, else the first.
        """
        del con, types, carefully
        files, said = self._log.files(self._service, start, end), self._said(start, end)
        rows = RowQuery.of(files)
        if rows is not None and said:
            values = {**rows.values, "said": sorted(map(str, said))}
            rows = RowQuery(_WITH_PREDICTIONS.format(served=rows.query), values)
        yield Reading(rows)


class Sources:
    """The sources of monitors, made when first asked for.

    Args:
        log: The served log.
        views: What is known of the store's feature views.
    """

    def __init__(self, log: ServedLog, views: Mapping[str, ViewFacts]) -> None:
        self._log, self._views = log, views
        self._made: dict[str, tuple[MonitorConfig, Source]] = {}

    def of(self, name: str, config: MonitorConfig) -> Source:
        """Return the source of the monitor `name`.

        Raises:
            NotFoundError: There is no such feature view.
        """
        made_for, source = self._made.get(name, (None, None))
        if source is None or made_for != config:
            source = self._make(config)
            self._made[name] = (config, source)
        return source

    def _make(self, config: MonitorConfig) -> Source:
        given = config.source
        if given is None:
            return Served(self._log, config.service)
        only = (*config.features, *config.segments) if config.features else ()
        if not given.view:
            location = str(given.files or given.database)
            shape = Shape(
                "",
                location,
                given.timestamp,
                given.table,
                keys=given.keys,
                personal=frozenset(given.pii),
            )
            return Table(shape, only)
        if given.view not in self._views:
            raise NotFoundError("feature view", given.view, self._views)
        facts = self._views[given.view]
        return Table(
            Shape(
                given.view,
                facts.location,
                facts.timestamp,
                created=facts.created,
                keys=facts.keys,
                features=facts.features,
                columns=facts.columns,
                personal=frozenset(facts.personal),
                delta=facts.delta,
            ),
            only,
        )


def frozen(
    con: duckdb.DuckDBPyConnection,
    source: Source,
    bucket: Bucket,
    path: Path,
    *,
    types: Mapping[str, str] = MappingProxyType({}),
    again: bool = False,
) -> Snapshot:
    """Freeze what can be read of a bucket; a bucket of which nothing can is frozen without rows.

    Args:
        con: Any DuckDB connection; nothing is written to its database.
        source: What is watched.
        bucket: What to keep.
        path: Of the snapshot.
        types: See `Source.reading`.
        again: See `freeze`.

    Raises:
        SourceError: The source itself is not there now; its buckets wait for it.
    """
    for carefully in (False, True):
        reading = source.reading(con, bucket.start, bucket.end, types=types, carefully=carefully)
        try:
            with reading as found:
                aside = found.quarantined
                return freeze(con, found.rows, bucket, path, again=again, quarantined=aside)
        except AwayError:
            raise
        except SourceError as error:
            problem = error
    source.latest()
    failed = Quarantined(
        Fault.UNREADABLE_FILE,
        0,
        problem.location,
        column=problem.column,
        example=shortened(str(problem)),
    )
    return freeze(con, None, bucket, path, again=again, quarantined=(failed,))


def check(source: Source, config: MonitorConfig) -> None:
    """Refuse a table that cannot be watched as `config` asks; a served log may come later.

    Raises:
        SourceError: It is missing, has no rows, or no such event time.
        NotFoundError: It lacks a column that is watched or split by.
    """
    if isinstance(source, Table):
        source.check((*config.features, *config.segments))


def _span(file: Path) -> tuple[datetime, datetime]:
    """Return the first and last request time in a served-log file, from its name."""
    first, last, _ = file.name.split("-", 2)
    return instant(int(first)), instant(int(last))
