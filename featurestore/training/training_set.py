"""Training sets: point-in-time values, and the evidence of what they are.

Above `ondemand` and `manifest`. Every entity row is joined at its own time with what was known
then: a source row counts when its event time and its created time (where the source has one) are
at or before the entity row's `event_timestamp`. A knowledge time `as_known_at` therefore needs
nothing of the join: rows of the entity frame, or labels with a `known_at`, that lie after it are
an error, and no row before it can see anything after it. A view without a created column has only
its event times to go by: a row that was written late cannot be told from one that was not, and
the manifest's source hashes are what shows it.
"""

from __future__ import annotations

import copy
import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from steadfeast.featurestore.definitions import personal_columns
from steadfeast.featurestore.errors import EntityFrameError, EntityRowsError, FutureKnowledgeError
from steadfeast.featurestore.offline import Rows, arrow_table, session
from steadfeast.featurestore.tables import (
    EVENT_TIMESTAMP,
    TIMESTAMP,
    cast_array,
    code_commit,
    content_sha256,
    file_hashes,
    index_of,
    instants,
    libraries,
    profile,
    sha256_of,
    typed,
    whole_folder,
)
from steadfeast.featurestore.training.manifest import DATA, MANIFEST, Manifest, TrainingSet
from steadfeast.featurestore.training.pins import lost_to_knowledge, make_pins, over_pins, pin_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feast import FeatureStore, FeatureView
    from feast.repo_config import RepoConfig

    from steadfeast.featurestore.definitions import Executor, ServicePlan

log = logging.getLogger("steadfeast")

KNOWN_AT = "known_at"
_ROW = "__steadfeast_row"


def entity_table(plan: ServicePlan, entities: Rows, config: RepoConfig | None = None) -> pa.Table:
    """Return an entity frame as Arrow, with typed keys, request fields and times.

    Args:
        plan: The service.
        entities: See `Rows`.
        config: Feast's configuration, to run the text of a query.

    Raises:
        EntityRowsError: A column is missing, of a wrong type, or named as a feature is.
    """
    table = _as_table(plan.name, entities, config)
    table = _timed(plan.name, table, EVENT_TIMESTAMP)
    table = typed(plan.name, table, plan.entity_columns)
    if KNOWN_AT in table.column_names:
        table = _timed(plan.name, table, KNOWN_AT)
    if table.column(EVENT_TIMESTAMP).null_count:
        count = table.column(EVENT_TIMESTAMP).null_count
        raise EntityRowsError(plan.name, EVENT_TIMESTAMP, f"is null in {count} rows")
    for name in table.column_names:
        if name in plan.features:
            raise EntityRowsError(plan.name, name, "has the name of a feature")
    return table


def _as_table(service: str, entities: Rows, config: RepoConfig | None) -> pa.Table:
    try:
        if isinstance(entities, str) and config is not None:
            with session(config) as connection:
                table = arrow_table(entities, connection)
        else:
            table = arrow_table(entities)
    except EntityFrameError as error:
        raise EntityRowsError(service, error.column, error.problem) from error
    return table.replace_schema_metadata(None)


def _timed(service: str, table: pa.Table, name: str) -> pa.Table:
    """Read a column of times as the offline store reads that of an entity frame."""
    index = index_of(service, table, name)
    column = table.column(index)
    try:
        return table.set_column(index, name, instants(column))
    except (pa.ArrowInvalid, ValueError) as error:
        problem = f"is {column.type}, not times: {error}"
        raise EntityRowsError(service, name, problem) from error


def features_at(
    store: FeatureStore,
    plan: ServicePlan,
    executors: Sequence[Executor],
    entities: pa.Table,
    *,
    event_time_only: bool = False,
) -> pa.Table:
    """Return the features of each entity row as they were known at its `event_timestamp`.

    Args:
        store: Feast's store; its offline store does the joins.
        plan: The service.
        executors: One per on-demand view of the plan.
        entities: What `entity_table` returns.
        event_time_only: A source row counts from its event time on, whenever it became known.

    Returns:
        The features alone, in the order of the rows and of the service.
    """
    rows = entities.num_rows
    known = not event_time_only
    stored = _stored(store, plan, entities, known) if plan.views and rows else _nothing(plan)
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
    store: FeatureStore, plan: ServicePlan, entities: pa.Table, as_known: bool
) -> dict[tuple[str, str], pa.Array]:
    """Join the stored views. Only keys, time and row number travel, so no type can suffer."""
    spine = entities.select([*plan.keys, EVENT_TIMESTAMP])
    spine = spine.append_column(_ROW, pa.array(range(entities.num_rows), pa.int64()))
    # Under names of ours: `a__b` with `c` and `a` with `b__c` would be called the same.
    names = {view.name: f"v{i}" for i, view in enumerate(plan.views)}
    job = store._get_provider().get_historical_features(  # noqa: SLF001 - as Feast's own caller does
        store.config,
        [_renamed(view.view, names[view.name]) for view in plan.views],
        [f"{names[view.name]}:{feature}" for view in plan.views for feature in view.columns],
        spine,
        store.registry,
        store.project,
        full_feature_names=True,
        filter_by_created_timestamp=as_known,
    )
    joined = job.to_arrow()
    joined = joined.take(pc.sort_indices(joined.column(_ROW)))
    if joined.num_rows != entities.num_rows:
        raise ValueError(f"the offline store gave {joined.num_rows} rows for {entities.num_rows}")
    values = {}
    for view in plan.views:
        for feature, kind in view.columns.items():
            column = joined.column(f"{names[view.name]}__{feature}")
            # The cast that writing to the online store does, so that both sides round alike.
            values[view.name, feature] = cast_array(column.combine_chunks(), kind, feature)
    return values


def _renamed(view: FeatureView, name: str) -> FeatureView:
    there = type(view).__new__(type(view))
    vars(there).update(vars(view))  # Feast's own copy would make the projection anew
    there.projection = copy.copy(view.projection)
    there.projection.name_alias, there.projection.version_tag = name, None
    return there


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
    entities: Rows,
    *,
    contract: str,
    folder: Path,
    pins: Path | None,
    label: str | None = None,
    as_known_at: datetime | None = None,
    event_time_only: bool = False,
) -> TrainingSet:
    """Build a training set and write it to `folder/<id>/`, whole or not at all.

    With pins, what is joined is the pinned rows: nothing can come between the two.

    Args:
        store: Feast's store.
        plan: The service.
        executors: One per on-demand view of the plan.
        entities: Keys, request fields, `event_timestamp`, and what else shall stay beside them.
        contract: SHA-256 of the service's contract.
        folder: Where training sets are kept.
        pins: Where the source rows that they use are kept; None to hash the sources only.
        label: Which of the entity columns is the label.
        as_known_at: Nothing after this time may count.
        event_time_only: A source row counts from its event time on, whenever it became known.

    Raises:
        EntityRowsError: A column is missing or wrong.
        FutureKnowledgeError: Entity rows or labels lie after `as_known_at`.
    """
    frame = entity_table(plan, entities, store.config)
    if label is not None and label not in frame.column_names:
        raise EntityRowsError(plan.name, label, "is the label, and missing")
    if as_known_at is not None:
        _refuse_future(frame, as_known_at)
    known = not event_time_only
    made = {}
    if pins is not None:
        made = make_pins(store.config, plan, frame, pins, as_known=known)
    chosen = {} if pins is None else {v: pin_path(pins, pin["sha256"]) for v, pin in made.items()}
    features = features_at(
        store, over_pins(plan, chosen), executors, frame, event_time_only=event_time_only
    )
    table = beside(frame, features)
    lost = lost_to_knowledge(store.config, plan, frame, features) if known else {}
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
        "columns": profile(table, personal_columns(plan)),
        "commit": code_commit(Path(store.repo_path)),
        "libraries": libraries(),
        "event_time_only": event_time_only,
        "unknown_then": lost,
    }
    identity = sha256_of(json.dumps(content, sort_keys=True).encode())[:16]
    manifest = Manifest(id=identity, created_at=datetime.now(UTC).isoformat(), pins=made, **content)
    built = TrainingSet(table, manifest, _write(table, manifest, folder))
    for note in built.notes:
        log.warning("training set %s: %s", identity, note)
    return built


def beside(entities: pa.Table, features: pa.Table) -> pa.Table:
    """Return entity columns and features as one table."""
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
    """Write both files to a folder of their own; the first of equals stays."""
    final = folder / manifest.id
    with whole_folder(final) as half:
        pq.write_table(table, half / DATA, compression="zstd")
        (half / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
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
