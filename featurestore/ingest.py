"""Adding rows to a source so that its past stays as it was.

Above `offline`, below `store`. A source with a created column is bitemporal: each row says when
its fact happened and when it became known. Ingesting appends and never rewrites, and gives every
row one known time that is not before any in the source: what an earlier time knew cannot change,
so training sets of that time replay to the same bytes, whatever is ingested later.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pyarrow as pa
from feast.infra.offline_stores.file_source import FileSource

from featurestore import sql
from featurestore.errors import SourceError
from featurestore.offline.session import session
from featurestore.offline.sources import is_there, reading
from featurestore.offline.views import bind
from featurestore.offline.writing import append
from featurestore.service import TIMESTAMP

if TYPE_CHECKING:
    from feast import FeatureView
    from feast.repo_config import RepoConfig

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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
    latest = _latest(config, view, source)
    moment = known_at or datetime.now(UTC)
    if latest is not None and moment < latest:
        if known_at is not None:
            problem = f"knows rows from {latest.isoformat()}, after {known_at.isoformat()}"
            raise SourceError(view.name, name, problem, column=created)
        moment = latest
    known = pa.array([moment] * rows.num_rows, TIMESTAMP)
    append(rows.append_column(created, known), source, config.repo_path, view.name)
    return moment


def _latest(config: RepoConfig, view: FeatureView, source: FileSource) -> datetime | None:
    """Return the latest known time in the source; None when it holds nothing."""
    if not is_there(config.repo_path, source):
        return None
    with session(config) as connection, reading(view.name, source.path):
        bound = bind(connection, config.repo_path, view, [item.name for item in view.features])
        history = sql.source(bound.view, None, None, made=True)
        found = connection.execute(f"SELECT max(made) FROM ({history})").fetchall()[0][0]
    return None if found is None else _EPOCH + timedelta(microseconds=found)
