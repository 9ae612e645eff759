"""Rows straight from a source: the newest of each key, or all of a time range.

Above `job` and `views`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.offline_stores.file_source import FileSource

from steadfeast.featurestore.offline.binding import bind, originals
from steadfeast.featurestore.offline.retrieval import DuckDBRetrievalJob
from steadfeast.featurestore.offline.session import session
from steadfeast.featurestore.offline.sources import open_source, reading
from steadfeast.featurestore.tables import sql
from steadfeast.featurestore.tables.locations import is_remote
from steadfeast.featurestore.tables.times import micros

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    import duckdb
    from feast.data_source import DataSource
    from feast.feature_view import FeatureView
    from feast.repo_config import RepoConfig


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
) -> sql.View:
    """Bind columns of a source under the source's own names."""
    source = open_source(connection, config.repo_path, data_source)
    mapped = {old: new for new, old in originals(data_source, source.columns).items()}
    return sql.View(
        scan=source.scan,
        keys=tuple(source.column(key) for key in keys if key != DUMMY_ENTITY_ID),
        timestamp=source.time(timestamp),
        created=source.time(created) if created else None,
        features=tuple((source.column(name), name) for name in features),
        order=tuple((mapped.get(name, name), source.column(name)) for name in features),
    )


def pulled(
    config: RepoConfig,
    data_source: DataSource,
    query: Callable[[duckdb.DuckDBPyConnection], str],
) -> DuckDBRetrievalJob:
    """Return a job that runs the query, which is written now: what is wrong is said now."""
    with session(config) as connection:
        text = query(connection)

    remote = isinstance(data_source, FileSource) and is_remote(data_source.path)

    def tables(rows: int | None) -> Iterator[pa.Table]:
        with session(config, remote=remote) as connection, reading("", data_source.name):
            relation = connection.sql(text)
            if rows is None:
                yield relation.to_arrow_table()
                return
            reader = relation.to_arrow_reader(rows)
            yield reader.schema.empty_table()
            yield from (pa.Table.from_batches([batch]) for batch in reader)

    return DuckDBRetrievalJob(config, tables, lambda: text)


def with_dummy(text: str) -> str:
    """Add the key that Feast gives to views without entities."""
    value = sql.literal(DUMMY_ENTITY_VAL)
    return f"SELECT *, {value} AS {sql.identifier(DUMMY_ENTITY_ID)} FROM ({text})"
