"""Rows straight from a source: the newest of each key, or all of a time range.

Above `job` and `views`.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.offline_stores.file_source import FileSource

from steadfeast.featurestore.offline.binding import bind, originals
from steadfeast.featurestore.offline.retrieval import DuckDBRetrievalJob
from steadfeast.featurestore.offline.session import session
from steadfeast.featurestore.offline.sources import open_source, reading
from steadfeast.featurestore.tables import is_remote, micros, rounds, sql

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    import duckdb
    from feast.data_source import DataSource
    from feast.feature_view import FeatureView
    from feast.repo_config import RepoConfig

    from steadfeast.featurestore.offline.binding import Find


def latest(
    config: RepoConfig, view: FeatureView, since: datetime | None, until: datetime
) -> pa.RecordBatchReader:
    """Stream each key's newest usable row of a feature view as of `until`.

    Newest is greatest in the total order among rows with `since <= event time <= until` and, if
    the source has a created column, created time `<= until`.

    Returns:
        Columns: join keys and features under the view's names, then event time and, if there is
        one, created time (the source's `timestamp_field` and `created_timestamp_column`), as
        `timestamp[us, tz=UTC]`. Close the reader, or read it to its end.

    Raises:
        SourceError: The source is missing, unreadable or lacks a column.
    """
    if getattr(config.offline_store, "type", "") == "steadfeast.SparkOfflineStore":
        from steadfeast.featurestore.offline.spark.store import newest  # noqa: PLC0415 - an extra

        stream = newest(config, view, since, until)
    else:
        stream = _latest(config, view, since, until)
    schema = next(stream)
    return pa.RecordBatchReader.from_batches(schema, stream)


def _latest(
    config: RepoConfig, view: FeatureView, since: datetime | None, until: datetime
) -> Iterator[Any]:
    remote = isinstance(view.batch_source, FileSource) and is_remote(view.batch_source.path)
    with session(config, remote=remote) as connection:
        bound = bind(connection, config.repo_path, view, [f.name for f in view.features])
        text = sql.newest(bound.view, micros(since), micros(until), known_by=micros(until))
        with reading(bound.name, bound.source.location):
            reader = connection.sql(text).to_arrow_reader()
            yield reader.schema
            yield from reader


def table_of(
    connection: duckdb.DuckDBPyConnection,
    config: RepoConfig,
    data_source: DataSource,
    *,
    keys: Sequence[str],
    features: Sequence[str],
    timestamp: str,
    created: str | None,
    find: Find = open_source,
) -> sql.View:
    """Bind columns of a source under the source's own names."""
    source = find(connection, config.repo_path, data_source)
    mapped = {old: new for new, old in originals(data_source, source.columns).items()}
    return sql.View(
        scan=source.scan,
        keys=tuple(source.column(key) for key in keys if key != DUMMY_ENTITY_ID),
        timestamp=source.time(timestamp),
        created=source.time(created) if created else None,
        features=tuple((source.column(name), name) for name in features),
        order=tuple((mapped.get(name, name), source.column(name)) for name in features),
    )


def known_from(view: sql.View, since: int | None) -> tuple[sql.View, int | None]:
    """Return a view of the rows that became known from `since` on, and the event times to read.

    By its event time alone, a row that is written late is never among them.
    """
    if view.created is None or since is None:
        return view, since
    either = " OR ".join(
        f"({sql.within(column, since, None)})" for column in (view.timestamp, view.created)
    )
    return replace(view, scan=f"(SELECT * FROM {view.scan} WHERE {either})"), None


@cache
def say_what_is_not_seen(source: str) -> None:
    """Say, once for each source, what Feast's own engine cannot see of it."""
    log.warning(
        "source %r has no created column: Feast's own engine never sees a row that is written "
        "to it late. Set batch_engine: {type: steadfeast.DuckDBComputeEngine} in "
        "feature_store.yaml, which reads it again, or name a created_timestamp_column",
        source,
    )


def exact_numbers(table: pa.Table) -> pa.Table:
    """Return a table whose whole numbers stay what they are where Feast makes floats of them.

    Feast takes a column of 64-bit integers with a null for floats. Where a float cannot hold a
    value of it, the column becomes one of decimals, which Feast turns into integers again.
    """
    for place, field in enumerate(table.schema):
        column = table.column(place)
        if rounds(column):
            table = table.set_column(place, field.name, column.cast(pa.decimal128(20)))
    return table


def pulled(
    config: RepoConfig,
    data_source: DataSource,
    query: Callable[[duckdb.DuckDBPyConnection], str],
    *,
    exact: bool = False,
) -> DuckDBRetrievalJob:
    """Return a job that runs the query, which is written now: what is wrong is said now.

    Args:
        config: Feast's configuration.
        data_source: What is read.
        query: Gives the query.
        exact: See `exact_numbers`.
    """
    with session(config) as connection:
        text = query(connection)

    remote = isinstance(data_source, FileSource) and is_remote(data_source.path)

    def tables(rows: int | None) -> Iterator[pa.Table]:
        with session(config, remote=remote) as connection, reading("", data_source.name):
            relation = connection.sql(text)
            if rows is None:
                table = relation.to_arrow_table()
                yield exact_numbers(table) if exact else table
                return
            reader = relation.to_arrow_reader(rows)
            yield reader.schema.empty_table()
            yield from (pa.Table.from_batches([batch]) for batch in reader)

    return DuckDBRetrievalJob(config, tables, lambda: text)


def with_dummy(text: str) -> str:
    """Add the key that Feast gives to views without entities."""
    value = sql.literal(DUMMY_ENTITY_VAL)
    return f"SELECT *, {value} AS {sql.identifier(DUMMY_ENTITY_ID)} FROM ({text})"
