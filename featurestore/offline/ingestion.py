"""Adding rows to a source so that its past stays as it was.

Above `offline`, below `store`. A source with a created column is bitemporal: each row says when
its fact happened and when it became known. Ingesting appends and never rewrites, and gives every
row one known time that is not before any in the source: what an earlier time knew cannot change,
so training sets of that time replay to the same bytes, whatever is ingested later. Deleting is
ingesting too: a row without values, known from now on, after which the values are null. Processes
that ingest into one source wait for each other.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pyarrow as pa
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.offline_stores.file_source import FileSource

from steadfeast.featurestore.errors import SourceError
from steadfeast.featurestore.offline.binding import bind, originals
from steadfeast.featurestore.offline.session import session
from steadfeast.featurestore.offline.sources import arrow_schema, is_there, reading
from steadfeast.featurestore.offline.writing import append
from steadfeast.featurestore.tables import TIMESTAMP, instant, sql

if TYPE_CHECKING:
    from feast import FeatureView
    from feast.repo_config import RepoConfig


def ingest(
    config: RepoConfig, view: FeatureView, rows: pa.Table, known_at: datetime | None
) -> datetime:
    """Append `rows` to the source of `view`; return the time from which they are known.

    Args:
        config: Feast's configuration.
        view: The feature view.
        rows: Every column of the source but the created one.
        known_at: That time; now, or the latest in the source if that is later, when absent.

    Raises:
        SourceError: The source has no created column, is not local, or knows rows from after
            `known_at`; or the rows carry a created time, or do not fit the source's columns.
    """
    source, created = _bitemporal(view, rows)
    return _append(config, view, source, rows, known_at, (created,))


def delete(
    config: RepoConfig, view: FeatureView, rows: pa.Table, known_at: datetime | None
) -> datetime:
    """Append, for each of `rows`, one without values: what it names is not known any more.

    A row with an event time takes the place of the facts of that time; one without, of all that
    happened before it is known. Like every other row it counts from its known time on.

    Args:
        config: Feast's configuration.
        view: The feature view.
        rows: Join keys; the event time, if it is a fact that goes and not the entity; and what
            partitions the source, if something does.
        known_at: See `ingest`.

    Raises:
        SourceError: See `ingest`; or a join key is missing, or a column is none of the source's.
    """
    source, created = _bitemporal(view, rows)
    schema = arrow_schema(config.repo_path, source, view.name)
    known = {name: name for name in schema.names}
    names = originals(source, known)
    keys = {names.get(item.name, item.name) for item in view.entity_columns} - {DUMMY_ENTITY_ID}
    for name in sorted(keys.difference(rows.column_names)):
        raise SourceError(view.name, source.path, "is missing: say whose rows go", column=name)
    for name in rows.column_names:
        if name not in known:
            raise SourceError(view.name, source.path, "is no column of the source", column=name)
    when = names.get(source.timestamp_field, source.timestamp_field)
    for field in schema:
        if field.name not in (created, when) and field.name not in rows.column_names:
            rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
    return _append(config, view, source, rows, known_at, (created, when))


def _bitemporal(view: FeatureView, rows: pa.Table) -> tuple[FileSource, str]:
    """Return the source of a view and its created column, or say why it cannot keep its past."""
    source = view.batch_source
    name = getattr(source, "path", "") or getattr(source, "name", "")
    created = getattr(source, "created_timestamp_column", "")
    if not isinstance(source, FileSource):
        raise SourceError(view.name, name, "is no file source: its owner must keep its past")
    if not created:
        problem = "has no created column: name one as created_timestamp_column"
        raise SourceError(view.name, name, problem)
    if created in rows.column_names:
        problem = "is given by the store: it says when the rows became known here"
        raise SourceError(view.name, name, problem, column=created)
    return source, created


def _append(
    config: RepoConfig,
    view: FeatureView,
    source: FileSource,
    rows: pa.Table,
    known_at: datetime | None,
    stamps: tuple[str, ...],
) -> datetime:
    """Append rows with a known time that is not before any in the source, which they wait for."""
    stamped: list[datetime] = []

    def stamp(table: pa.Table) -> pa.Table:
        moment = _moment(config, view, source, known_at)
        stamped.append(moment)
        known = pa.array([moment] * table.num_rows, TIMESTAMP)
        for name in stamps:
            if name not in table.column_names:
                table = table.append_column(name, known)
        return table

    append(rows, source, config.repo_path, view.name, stamp)
    return stamped[0]


def _moment(
    config: RepoConfig, view: FeatureView, source: FileSource, known_at: datetime | None
) -> datetime:
    latest = _latest(config, view, source)
    moment = known_at or datetime.now(UTC)
    if latest is None or moment >= latest:
        return moment
    if known_at is not None:
        problem = f"knows rows from {latest.isoformat()}, after {known_at.isoformat()}"
        column = source.created_timestamp_column
        raise SourceError(view.name, source.path, problem, column=column)
    return latest


def _latest(config: RepoConfig, view: FeatureView, source: FileSource) -> datetime | None:
    """Return the latest known time in the source; None when it holds nothing."""
    if not is_there(config.repo_path, source):
        return None
    with session(config) as connection, reading(view.name, source.path):
        bound = bind(connection, config.repo_path, view, [item.name for item in view.features])
        history = sql.source(bound.view, None, None, made=True)
        found = connection.execute(f"SELECT max(made) FROM ({history})").fetchall()[0][0]
    return None if found is None else instant(found)
