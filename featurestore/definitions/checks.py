"""What `apply` refuses: definitions that would mean one thing to training, another to serving.

Above `plan`, below `catalog`. Each view is bound to its source as training binds it, and given keys
and a layout as serving does; whatever one of them cannot do is said by name, before anything is
stored. What a service as a whole cannot mean, its `ServicePlan` refuses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
from feast.infra.offline_stores.file_source import FileSource

from steadfeast.featurestore.definitions.plan import registered_views
from steadfeast.featurestore.errors import (
    RefusedDefinitionError,
    SourceError,
    UnsupportedTypeError,
)
from steadfeast.featurestore.offline import is_there, opened, reads_files, session
from steadfeast.featurestore.online import KeyCodec
from steadfeast.featurestore.rows import layout_of
from steadfeast.featurestore.tables import (
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    arrow_type,
    cast_array,
    identifier,
    is_remote,
)

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView
    from feast.repo_config import RepoConfig


def check_views(feast: FeatureStore) -> None:
    """Refuse what a feature view of the registry cannot mean on both sides.

    Raises:
        RefusedDefinitionError: A name or a type.
        InvalidKeysError: A type that cannot be a key.
        SourceError: A source that is there cannot be read, or not as what is declared.
    """
    for view in registered_views(feast):
        _check_names(view)
        _check_types(view)
        _check_source(feast.config, view)


def _subject(view: FeatureView, name: str) -> str:
    keys = {column.name for column in view.entity_columns}
    return f"feature view {view.name!r}, {'key' if name in keys else 'feature'} {name!r}"


def _check_names(view: FeatureView) -> None:
    for field in (*view.entity_columns, *view.features):
        if field.name in (EVENT_TIMESTAMP, CREATED_TIMESTAMP):
            raise RefusedDefinitionError(
                _subject(view, field.name),
                "has the name of the time of every row; give the column another name with the "
                "source's field_mapping",
            )


def _check_types(view: FeatureView) -> None:
    types = {}
    for field in (*view.entity_columns, *view.features):
        try:
            types[field.name] = arrow_type(field)
        except RefusedDefinitionError as error:
            raise RefusedDefinitionError(_subject(view, field.name), error.problem) from error
    KeyCodec(view.name, {column.name: types[column.name] for column in view.entity_columns})
    for field in view.features:
        try:
            layout_of(pa.schema([(field.name, types[field.name])]))
        except UnsupportedTypeError as error:
            raise RefusedDefinitionError(_subject(view, field.name), str(error)) from error


def _check_source(config: RepoConfig, view: FeatureView) -> None:
    """Read a view's columns as training does, those that are there: data may come later."""
    source: Any = view.batch_source
    if not reads_files(config) or source is None:
        return
    if not isinstance(source, FileSource):
        kind = type(source).__name__
        raise SourceError(view.name, source.name, f"this store reads FileSource, not {kind}")
    if is_remote(source.path) or not is_there(config.repo_path, source):
        return
    with session(config) as connection:
        data, original = opened(connection, config.repo_path, view)
        columns = {field: original.get(field.name, field.name) for field in view.features}
        there = [field for field in view.features if columns[field] in data.columns]
        chosen = ", ".join(identifier(columns[field]) for field in there) or "1"
        empty = connection.sql(f"SELECT {chosen} FROM {data.scan} LIMIT 0")
        types = empty.to_arrow_table().schema.types
    for field, kind in zip(there, types, strict=False):
        try:
            cast_array(pa.array([], kind), arrow_type(field), field.name)
        except UnsupportedTypeError as error:
            problem = f"holds {kind}, which is never {field.dtype}; declare what it holds"
            raise SourceError(view.name, data.location, problem, column=columns[field]) from error
