"""The rows of a source that a join uses, copied out of it.

Above `join`. A join over them gives what the join over the source gives: every entity row's winner
is among them with all that ties with it, and nothing else can win where it did not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feast.infra.offline_stores.file_source import FileSource

from steadfeast.featurestore.offline.binding import bind
from steadfeast.featurestore.offline.entities import read_entities
from steadfeast.featurestore.offline.join import won
from steadfeast.featurestore.offline.session import session
from steadfeast.featurestore.offline.sources import reading
from steadfeast.featurestore.tables import is_remote, sql

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from feast import FeatureView
    from feast.repo_config import RepoConfig


def can_pin(config: RepoConfig, view: FeatureView) -> bool:
    """Tell whether `used_rows` can read the view: files, under the store of this package."""
    return reads_files(config) and isinstance(view.batch_source, FileSource)


def reads_files(config: RepoConfig) -> bool:
    """Tell whether the offline store is the one of this package."""
    return str(getattr(config.offline_store, "type", "")).startswith("steadfeast.")


def used_rows(
    config: RepoConfig, view: FeatureView, entities: pa.Table, path: Path, *, as_known: bool = True
) -> int:
    """Write the source rows that a join to `entities` uses to a Parquet file; return how many.

    The same rows make the same bytes.

    Args:
        config: The repository's configuration.
        view: The feature view with its projection.
        entities: Keys under the projection's names and `event_timestamp`.
        path: The file.
        as_known: Rows count from their created time on, as in training sets.

    Raises:
        SourceError: The source is missing, unreadable or lacks a column.
    """
    names = [field.name for field in view.features]
    source: Any = view.batch_source
    with session(config, remote=is_remote(source.path)) as connection:
        bound = bind(connection, config.repo_path, view, names)
        with reading(bound.name, bound.source.location):
            span = won(connection, read_entities(entities, connection), bound, as_known=as_known)
            target = sql.literal(str(path))
            copied = connection.execute(
                f"COPY ({sql.used(bound.view, span)}) TO {target} "
                "(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 122880, USE_TMP_FILE false)"
            ).fetchall()
    rows: int = copied[0][0]
    return rows


def unknown_then(config: RepoConfig, view: FeatureView, entities: pa.Table) -> int:
    """Count the entity rows for which a view had a row by its event time, but none known then.

    Raises:
        SourceError: The source is missing, unreadable or lacks a column.
    """
    source: Any = view.batch_source
    if not source.created_timestamp_column or not entities.num_rows:
        return 0
    with session(config, remote=is_remote(source.path)) as connection:
        bound = bind(connection, config.repo_path, view, [])
        with reading(bound.name, bound.source.location):
            frame, counts = read_entities(entities, connection), []
            for as_known in (False, True):
                won(connection, frame, bound, as_known=as_known)
                found = connection.execute("SELECT count(DISTINCT i) FROM won").fetchall()
                counts.append(int(found[0][0]))
    return counts[0] - counts[1]


def pinned(view: FeatureView, path: Path) -> FeatureView:
    """Return `view` over the rows at `path` instead of its source."""
    source: Any = view.batch_source
    there = type(view).__new__(type(view))
    vars(there).update(vars(view))  # Feast's own copy would make projection and source anew
    there.batch_source = FileSource(
        name=source.name,
        path=str(path),
        timestamp_field=source.timestamp_field,
        created_timestamp_column=source.created_timestamp_column,
        field_mapping=dict(source.field_mapping or {}),
    )
    return there
