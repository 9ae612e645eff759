"""Training sets: point-in-time values, their manifest, and the same bytes again later.

Above `ondemand` and `contract`. Every entity row is joined at its own time with what was known
then: a source row counts when its event time and its created time (where the source has one) are
at or before the entity row's `event_timestamp`. A knowledge time `as_known_at` therefore needs
nothing of the join: rows of the entity frame, or labels with a `known_at`, that lie after it are
an error, and no row before it can see anything after it. A view without a created column has only
its event times to go by: a row that was written late cannot be told from one that was not, and
the manifest's source hashes are what shows it.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.errors import EntityRowsError, FutureKnowledgeError, ManifestError
from featurestore.evidence import (
    code_commit,
    content_sha256,
    file_hashes,
    libraries,
    profile,
    sha256_of,
)
from featurestore.service import EVENT_TIMESTAMP, TIMESTAMP

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from feast import FeatureStore

    from featurestore.ondemand import Executor
    from featurestore.service import ServicePlan

KNOWN_AT = "known_at"
_ROW = "__steadfeast_row"
DATA, MANIFEST = "data.parquet", "manifest.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a training set was made of; JSON beside its data.

    Attributes:
        id: First 16 hexadecimal digits of the SHA-256 of everything below but `created_at`.
        service: The feature service.
        contract: SHA-256 of its contract.
        label: Label column, if there is one.
        features: Feature columns.
        keys: Entity columns that were joined on, request fields included.
        created_at: When it was built, ISO 8601.
        as_known_at: The knowledge time asked for, ISO 8601, or null.
        rows: How many.
        sha256: Of the canonical Arrow content of the data.
        entities_sha256: Of that of the entity frame.
        sources: `{view, path, sha256, size}` of each file that was read; hash and size are null
            for what is not a local file.
        columns: Name -> `{type, nulls, ...}`.
        commit: Git commit of the definitions, with "+changes" when files differ; empty without git.
        libraries: Versions of what executed.
    """

    id: str
    service: str
    contract: str
    label: str | None
    features: tuple[str, ...]
    keys: tuple[str, ...]
    created_at: str
    as_known_at: str | None
    rows: int
    sha256: str
    entities_sha256: str
    sources: tuple[Mapping[str, Any], ...]
    columns: Mapping[str, Mapping[str, Any]]
    commit: str
    libraries: Mapping[str, str]

    def to_json(self) -> str:
        """Return the manifest as JSON, sorted and indented."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read one.

        Raises:
            ManifestError: It is missing, not JSON, or not a manifest.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ManifestError(path, f"cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ManifestError(path, f"is not JSON: {error}") from error
        names = {item.name for item in fields(cls)}
        if not isinstance(raw, dict) or set(raw) != names:
            odd = sorted(names.symmetric_difference(raw)) if isinstance(raw, dict) else []
            raise ManifestError(path, f"is not a manifest; fields at fault: {', '.join(odd)}")
        for name in ("features", "keys", "sources"):
            raw[name] = tuple(raw[name])
        return cls(**raw)


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Features and label, with the evidence of what they are.

    Attributes:
        table: Entity columns, then features, in the order of the entity frame.
        manifest: What it was made of.
        path: Folder that holds `data.parquet` and `manifest.json`.
    """

    table: pa.Table
    manifest: Manifest
    path: Path

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the feature columns, in the order of the service."""
        return self.manifest.features

    @property
    def label(self) -> str | None:
        """Name of the label column."""
        return self.manifest.label

    @property
    def entities(self) -> pa.Table:
        """The entity frame it was built from."""
        return self.table.drop_columns(list(self.features))

    def to_pandas(self) -> pd.DataFrame:
        """Return the table as a data frame."""
        frame: pd.DataFrame = self.table.to_pandas()
        return frame

    @classmethod
    def load(cls, path: Path) -> TrainingSet:
        """Read the training set whose manifest is at `path`, checking its content hash.

        Raises:
            ManifestError: The manifest or the data is missing, unreadable or altered.
        """
        manifest = Manifest.load(path)
        try:
            table = pq.read_table(path.parent / DATA, partitioning=None)
        except (OSError, pa.ArrowInvalid) as error:
            raise ManifestError(path, f"its {DATA} cannot be read: {error}") from error
        found = content_sha256(table)
        if found != manifest.sha256:
            raise ManifestError(path, f"its {DATA} holds {found}, not {manifest.sha256}")
        return cls(table, manifest, path.parent)


def entity_table(plan: ServicePlan, entities: pa.Table | pd.DataFrame) -> pa.Table:
    """Return an entity frame as Arrow, with typed keys, request fields and times.

    Raises:
        EntityRowsError: A column is missing, of a wrong type, or named as a feature is.
    """
    table = (
        entities
        if isinstance(entities, pa.Table)
        else pa.Table.from_pandas(entities, preserve_index=False)
    ).replace_schema_metadata(None)
    table = typed(plan.name, table, {**plan.entity_columns, EVENT_TIMESTAMP: TIMESTAMP})
    if KNOWN_AT in table.column_names:
        table = typed(plan.name, table, {KNOWN_AT: TIMESTAMP})
    if table.column(EVENT_TIMESTAMP).null_count:
        count = table.column(EVENT_TIMESTAMP).null_count
        raise EntityRowsError(plan.name, EVENT_TIMESTAMP, f"is null in {count} rows")
    for name in table.column_names:
        if name in plan.features:
            raise EntityRowsError(plan.name, name, "has the name of a feature")
    return table


def typed(service: str, table: pa.Table, types: Mapping[str, pa.DataType]) -> pa.Table:
    """Cast the columns of `types`, exactly.

    Raises:
        EntityRowsError: One is missing, or holds what its type cannot.
    """
    for name, kind in types.items():
        index = table.schema.get_field_index(name)
        if index < 0:
            known = ", ".join(table.column_names)
            raise EntityRowsError(service, name, f"is missing; there are {known}")
        column = table.column(index)
        if column.type == kind:
            continue
        try:
            table = table.set_column(index, name, column.cast(kind))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise EntityRowsError(
                service, name, f"is {column.type} and does not fit {kind}: {error}"
            ) from error
    return table


def point_in_time(
    store: FeatureStore,
    plan: ServicePlan,
    executors: Sequence[Executor],
    entities: pa.Table,
) -> pa.Table:
    """Return the features of each entity row as they were known at its `event_timestamp`.

    Args:
        store: Feast's store; its offline store does the joins.
        plan: The service.
        executors: One per on-demand view of the plan.
        entities: What `entity_table` returns.

    Returns:
        The features alone, in the order of the rows and of the service.
    """
    rows = entities.num_rows
    stored = _stored(store, plan, entities) if plan.views and rows else _nothing(plan)
    requests = {name: entities.column(name).combine_chunks() for name in plan.requests}
    computed: dict[tuple[str, str], pa.Array] = {}
    for executor in executors:
        result = executor.run(stored, requests, rows)
        computed |= {(executor.view.name, name): values for name, values in result.items()}
    values = {**stored, **computed}
    return pa.table(
        [values[output.view, output.feature] for output in plan.outputs], schema=plan.schema
    )


def _stored(
    store: FeatureStore, plan: ServicePlan, entities: pa.Table
) -> dict[tuple[str, str], pa.Array]:
    """Join the stored views. Only keys, time and row number travel, so no type can suffer."""
    spine = entities.select([*plan.keys, EVENT_TIMESTAMP])
    spine = spine.append_column(_ROW, pa.array(range(entities.num_rows), pa.int64()))
    job = store._get_provider().get_historical_features(  # noqa: SLF001 - as Feast's own caller does
        store.config,
        [view.view for view in plan.views],
        [f"{view.name}:{feature}" for view in plan.views for feature in view.columns],
        spine,
        store.registry,
        store.project,
        full_feature_names=True,
        filter_by_created_timestamp=True,
    )
    joined = job.to_arrow()
    joined = joined.take(pc.sort_indices(joined.column(_ROW)))
    if joined.num_rows != entities.num_rows:
        raise ValueError(f"the offline store gave {joined.num_rows} rows for {entities.num_rows}")
    values = {}
    for view in plan.views:
        for feature, kind in view.columns.items():
            column = joined.column(f"{view.name}__{feature}").combine_chunks()
            values[view.name, feature] = column if column.type == kind else column.cast(kind)
    return values


def _nothing(plan: ServicePlan) -> dict[tuple[str, str], pa.Array]:
    return {
        (view.name, feature): pa.array([], kind)
        for view in plan.views
        for feature, kind in view.columns.items()
    }


def build(
    store: FeatureStore,
    plan: ServicePlan,
    executors: Sequence[Executor],
    entities: pa.Table | pd.DataFrame,
    *,
    contract: str,
    folder: Path,
    label: str | None = None,
    as_known_at: datetime | None = None,
) -> TrainingSet:
    """Build a training set and write it to `folder/<id>/`, whole or not at all.

    Args:
        store: Feast's store.
        plan: The service.
        executors: One per on-demand view of the plan.
        entities: Keys, request fields, `event_timestamp`, and what else shall stay beside them.
        contract: SHA-256 of the service's contract.
        folder: Where training sets are kept.
        label: Which of the entity columns is the label.
        as_known_at: Nothing after this time may count.

    Raises:
        EntityRowsError: A column is missing or wrong.
        FutureKnowledgeError: Entity rows or labels lie after `as_known_at`.
    """
    frame = entity_table(plan, entities)
    if label is not None and label not in frame.column_names:
        raise EntityRowsError(plan.name, label, "is the label, and missing")
    if as_known_at is not None:
        _refuse_future(frame, as_known_at)
    table = _beside(frame, point_in_time(store, plan, executors, frame))
    content = {
        "service": plan.name,
        "contract": contract,
        "label": label,
        "features": plan.features,
        "keys": tuple(plan.entity_columns),
        "as_known_at": None if as_known_at is None else as_known_at.isoformat(),
        "rows": table.num_rows,
        "sha256": content_sha256(table),
        "entities_sha256": content_sha256(frame),
        "sources": tuple(sources(store, plan)),
        "columns": profile(table),
        "commit": code_commit(Path(store.repo_path)),
        "libraries": libraries(),
    }
    identity = sha256_of(json.dumps(content, sort_keys=True).encode())[:16]
    manifest = Manifest(id=identity, created_at=datetime.now(UTC).isoformat(), **content)
    return TrainingSet(table, manifest, _write(table, manifest, folder))


def _beside(entities: pa.Table, features: pa.Table) -> pa.Table:
    for name, column in zip(features.column_names, features.columns, strict=True):
        entities = entities.append_column(name, column)
    return entities


def _refuse_future(entities: pa.Table, as_known_at: datetime) -> None:
    limit = pa.scalar(as_known_at if as_known_at.tzinfo else as_known_at.replace(tzinfo=UTC))
    for name in (EVENT_TIMESTAMP, KNOWN_AT):
        if name in entities.column_names:
            late = pc.sum(pc.greater(entities.column(name), limit.cast(TIMESTAMP))).as_py() or 0
            if late:
                raise FutureKnowledgeError(name, late, as_known_at)


def _write(table: pa.Table, manifest: Manifest, folder: Path) -> Path:
    """Write both files to a folder of their own, and rename that; the first of equals stays."""
    final, half = folder / manifest.id, folder / f".{manifest.id}-{uuid4().hex}"
    half.mkdir(parents=True)
    pq.write_table(table, half / DATA, compression="zstd")
    (half / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    try:
        os.rename(half, final)  # noqa: PTH104 - the pair of the check below
    except OSError:
        shutil.rmtree(half)
        if not (final / MANIFEST).is_file():
            raise
    return final


def sources(store: FeatureStore, plan: ServicePlan) -> list[dict[str, Any]]:
    """Return `{view, path, sha256, size}` of each file the service's views are read from."""
    pinned = []
    for view in plan.views:
        source = view.view.batch_source
        if source is None:
            continue
        location = str(getattr(source, "path", None) or source.name)
        for path, digest, size in file_hashes(Path(store.repo_path), location):
            pinned.append({"view": view.name, "path": path, "sha256": digest, "size": size})
    return pinned
