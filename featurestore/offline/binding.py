"""From Feast's feature views and references to `sql.View`.

Above `sources` and `entities`. Field mappings and aliases of join keys are undone here, once;
after this a view is source columns, spine columns and result names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from feast.data_format import DeltaFormat
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.offline_stores.file_source import FileSource
from feast.utils import _parse_feature_ref

from steadfeast.featurestore.errors import EntityFrameError, NotFoundError, SourceError
from steadfeast.featurestore.offline.sources import open_source, with_keys
from steadfeast.featurestore.tables import arrow_type, duration, personal_fields, sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    import duckdb
    from feast.data_source import DataSource
    from feast.feature_view import FeatureView

    from steadfeast.featurestore.offline.sources import Source

    Find = Callable[..., Source]
    """`open_source`, or what opens sources elsewhere by the same arguments."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A requested feature view, bound to its source.

    Attributes:
        name: The feature view's name or alias, for messages.
        view: What the queries need.
        entity_columns: Columns of the entity frame that hold the join keys, in `view.keys`' order.
        source: Its source.
    """

    name: str
    view: sql.View
    entity_columns: tuple[str, ...]
    source: Source


def requested(
    views: Iterable[FeatureView], refs: Sequence[str]
) -> list[tuple[FeatureView, list[str]]]:
    """Pair each view with the features that `refs` ask of it, in the order asked.

    References to on-demand views are not for the offline store and are passed over.
    """
    wanted: dict[str, list[str]] = {}
    for ref in refs:
        name, version, feature = _parse_feature_ref(ref)
        key = name if version is None else f"{name}@v{version}"
        features = wanted.setdefault(key, [])
        if feature not in features:
            features.append(feature)
    return [(view, wanted.get(_name(view), [])) for view in views]


def bind(
    connection: duckdb.DuckDBPyConnection,
    repo: Path | str | None,
    feature_view: FeatureView,
    features: Sequence[str],
    *,
    full_names: bool = False,
    find: Find = open_source,
) -> Bound:
    """Bind a feature view to its data.

    Args:
        connection: Reads the schema.
        repo: Folder that relative paths start at.
        feature_view: A feature view with its projection.
        features: Names of the features wanted.
        full_names: Call results `view__feature`.
        find: Opens the source.

    Raises:
        NotFoundError: The view has no such feature.
        SourceError: The source is missing, unreadable or lacks a column, or a key in it cannot be
            of the type that is declared.
    """
    name = feature_view.name
    declared = {field.name for field in feature_view.features}
    for feature in features:
        if feature not in declared:
            raise NotFoundError(f"feature in view {name!r}", feature, declared)
    source, original = opened(connection, repo, feature_view, find)
    aliases = feature_view.projection.join_key_map
    keys = [f.name for f in feature_view.entity_columns if f.name != DUMMY_ENTITY_ID]
    prefix = f"{feature_view.projection.name_alias or feature_view.name}__" if full_names else ""
    batch: Any = feature_view.batch_source
    created = batch.created_timestamp_column
    view = sql.View(
        scan=source.scan,
        keys=tuple(source.column(original.get(key, key)) for key in keys),
        timestamp=source.time(original.get(batch.timestamp_field, batch.timestamp_field)),
        created=source.time(original.get(created, created)) if created else None,
        features=tuple((source.column(original.get(f, f)), prefix + f) for f in features),
        order=tuple((f, source.column(original.get(f, f))) for f in sorted(declared)),
        ttl=duration(feature_view.ttl) if feature_view.ttl else 0,
    )
    return Bound(name, view, tuple(aliases.get(key, key) for key in keys), source)


def opened(
    connection: duckdb.DuckDBPyConnection,
    repo: Path | str | None,
    view: FeatureView,
    find: Find = open_source,
) -> tuple[Source, dict[str, str]]:
    """Open a view's source, its join keys as the types that are declared.

    Returns:
        The source, and its column for each name that differs.

    Raises:
        SourceError: It is missing or unreadable, or a key cannot be of its declared type.
    """
    batch = view.batch_source
    if batch is None:
        raise SourceError(view.name, "", "the view has no batch source")
    types = {field.name: arrow_type(field) for field in (*view.entity_columns, *view.features)}
    mapped = {new: old for old, new in batch.field_mapping.items() if new in types}
    named = types | {old: types[new] for new, old in mapped.items()}
    source = find(connection, repo, batch, view.name, named)
    original = originals(batch, source.columns)
    keys = {original.get(key.name, key.name): types[key.name] for key in view.entity_columns}
    present = {column: kind for column, kind in keys.items() if column in source.columns}
    return with_keys(source, present), original


def _name(view: FeatureView) -> str:
    """Return the view's alias or name, with its version if one is pinned."""
    return str(view.projection.name_to_use())  # type: ignore[no-untyped-call]


def described(repo: Path | str | None, view: FeatureView) -> dict[str, object]:
    """Return where a view's rows are and what they are called, as plain JSON values.

    For who reads the files without Feast: `location`, `delta`, `timestamp`, `created`, `keys`,
    `features`, `columns` (the source's name of each name that differs) and `personal`; or
    `problem` alone, where the rows are in no file.
    """
    batch = view.batch_source
    if not isinstance(batch, FileSource):
        return {"problem": f"its rows are in a {type(batch).__name__}, not in files"}
    return {
        "location": FileSource.get_uri_for_file_path(repo_path=repo, uri=batch.path),
        "delta": isinstance(batch.file_format, DeltaFormat),
        "timestamp": batch.timestamp_field,
        "created": batch.created_timestamp_column or "",
        "keys": [one.name for one in view.entity_columns if one.name != DUMMY_ENTITY_ID],
        "features": [one.name for one in view.features],
        "columns": {new: old for old, new in batch.field_mapping.items()},
        "personal": sorted(personal_fields(view)),
    }


def originals(source: DataSource, columns: Mapping[str, object]) -> dict[str, str]:
    """Return the source's column for each mapped name."""
    return {new: old for old, new in source.field_mapping.items() if old in columns}


def spine_key(name: str, column: pa.ChunkedArray, bound: Bound, key: sql.Column) -> pa.ChunkedArray:
    """Return a key column of the entity frame, comparable with the source's without loss.

    Whole numbers that pandas made floating, because of a null beside them, become whole again.

    Raises:
        EntityFrameError: The two are of different kinds, or a number is not whole.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    theirs, ours = _kind(key.type.id), _arrow_kind(kind)
    if ours == "float" and theirs == "integer":
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid as error:
            problem = f"is not a whole number, as {key.name!r} of view {bound.name!r} is: {error}"
            raise EntityFrameError(problem, column=name) from error
    numbers = {"integer", "float", "decimal"}
    if ours in (theirs, "null") or {ours, theirs} <= numbers:
        return column
    problem = f"holds {kind}, but {key.name!r} of view {bound.name!r} holds {key.type}"
    raise EntityFrameError(problem, column=name)


def _kind(duckdb_type: str) -> str:
    if duckdb_type.lstrip("u") in {"tinyint", "smallint", "integer", "bigint", "hugeint"}:
        return "integer"
    if duckdb_type.startswith("timestamp"):
        return "timestamp"
    return {"double": "float", "varchar": "string", "blob": "bytes"}.get(duckdb_type, duckdb_type)


def _arrow_kind(kind: pa.DataType) -> str:
    tests = {
        "integer": pa.types.is_integer,
        "float": pa.types.is_floating,
        "decimal": pa.types.is_decimal,
        "boolean": pa.types.is_boolean,
        "timestamp": pa.types.is_timestamp,
        "date": pa.types.is_date,
        "null": pa.types.is_null,
        "string": lambda t: pa.types.is_string(t) or pa.types.is_large_string(t),
        "bytes": lambda t: pa.types.is_binary(t) or pa.types.is_large_binary(t),
    }
    return next((name for name, test in tests.items() if test(kind)), str(kind))
