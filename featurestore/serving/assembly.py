"""Features at request time: one read per view, the TTL, the on-demand functions.

Above `online`, `ondemand` and `served`; `store` adds names, contracts and configuration. The TTL
rule is the shared comparator `rows.usable`, and the executors are those that training runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from steadfeast.featurestore.errors import EntityFrameError, EntityRowsError, UnsupportedTypeError
from steadfeast.featurestore.offline import arrow_table
from steadfeast.featurestore.rows import usable
from steadfeast.featurestore.serving.features import OnlineFeatures
from steadfeast.featurestore.tables import TIMESTAMP, array_of, typed

if TYPE_CHECKING:
    from feast.repo_config import RepoConfig

    from steadfeast.featurestore.definitions import Bundle, ServicePlan, StoredView
    from steadfeast.featurestore.online import PackedOnlineStore, PackedRead

INVALID, PRESENT, NULL_VALUE, NOT_FOUND, OUTSIDE_MAX_AGE = map(np.uint8, range(5))

EntityRows: TypeAlias = pa.Table | Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]
"""What a request may give: a table, a mapping for each row, or a mapping of columns.

What `as_rows` makes one of these is taken too, such as a DataFrame."""

Codes = np.ndarray[Any, np.dtype[np.uint8]]
Micros = np.ndarray[Any, np.dtype[np.int64]]


def read(
    online: PackedOnlineStore, config: RepoConfig, bundle: Bundle, entities: pa.Table, at: int
) -> OnlineFeatures:
    """Return the features of `entities` at `at`, microseconds since the epoch.

    Args:
        online: The online store.
        config: Feast's configuration.
        bundle: The service.
        entities: What `entity_rows` returns.
        at: What TTLs are measured from.
    """
    reads = [
        online.read_batch(config, view.view, view.key_table(entities), tuple(view.columns), at)
        for view in bundle.plan.views
    ]
    table, statuses, event_times = assemble(bundle, entities, reads, at)
    return OnlineFeatures(table, statuses, event_times, bundle.contract.sha256)


def assemble(
    bundle: Bundle, entities: pa.Table, reads: Sequence[PackedRead], at: int | Micros
) -> tuple[pa.Table, dict[str, Codes], dict[str, pa.Array]]:
    """Return table, statuses and event times of a request, from what each view has stored.

    Args:
        bundle: The service.
        entities: What `entity_rows` returns; n rows.
        reads: What is stored for them, one per view of the service.
        at: What TTLs are measured from, µs since the epoch: one time, or one per row, shape (n,).

    Raises:
        OnDemandError: A function returned something other than it declares.
    """
    plan = bundle.plan
    stored: dict[tuple[str, str], pa.Array] = {}
    states: dict[str, Codes] = {}
    event_times = {}
    for view, got in zip(plan.views, reads, strict=True):
        values, states[view.name], event_times[view.name] = _view(view, got, at)
        stored |= values
    requests = {name: whole(entities.column(name)) for name in plan.requests}
    for executor in bundle.executors:
        result = executor.run(stored, requests, entities.num_rows)
        stored |= {(executor.view.name, name): values for name, values in result.items()}
    columns, statuses = entities.columns, {}
    for output in plan.outputs:
        column = stored[output.view, output.feature]
        columns.append(column)
        statuses[output.name] = _statuses(column, states.get(output.view))
    table = pa.Table.from_arrays(columns, names=[*plan.entity_columns, *plan.features])
    return table, statuses, event_times


def rows_in(given: EntityRows) -> int:
    """Return how many rows a request asks for."""
    if isinstance(given, Mapping):
        return max(map(len, given.values()), default=0)
    return len(given)


def entity_rows(plan: ServicePlan, rows: EntityRows) -> pa.Table:
    """Return the join keys and request fields of a request as typed columns.

    Raises:
        EntityRowsError: A column is missing or of a wrong type.
    """
    rows, types = as_rows(plan.name, rows), plan.entity_columns
    if not types:  # of views without entities: rows, and no column
        return pa.table({"": pa.nulls(rows_in(rows))}).select([])
    if isinstance(rows, pa.Table):
        for name in types:
            if name not in rows.column_names:
                known = ", ".join(rows.column_names)
                raise EntityRowsError(plan.name, name, f"is missing; there are {known}")
        return typed(plan.name, rows.select(list(types)), types)
    columns = []
    for name, kind in types.items():
        try:
            given = rows[name] if isinstance(rows, Mapping) else [row[name] for row in rows]
            columns.append(array_of(given, kind, name))
        except KeyError as error:
            problem = "is missing" if isinstance(rows, Mapping) else "is missing in a row"
            raise EntityRowsError(plan.name, name, problem) from error
        except UnsupportedTypeError as error:
            problem = f"does not fit {kind}: {error.__cause__ or error}"
            raise EntityRowsError(plan.name, name, problem) from error
        if len(columns[-1]) != len(columns[0]):
            problem = f"has {len(columns[-1])} values, the first column {len(columns[0])}"
            raise EntityRowsError(plan.name, name, problem)
    return pa.table(columns, names=list(types))


def as_rows(service: str, given: Any) -> EntityRows:
    """Return what a request gives as one of the forms of `EntityRows`.

    Raises:
        EntityRowsError: It has none.
    """
    if isinstance(given, (pa.Table, Mapping)):
        return given
    if isinstance(given, Sequence) and all(isinstance(row, Mapping) for row in given):
        return given
    try:
        return arrow_table(given)
    except EntityFrameError as error:
        raise EntityRowsError(service, error.column, error.problem) from error


def _view(
    view: StoredView, got: PackedRead, at: int | Micros
) -> tuple[dict[tuple[str, str], pa.Array], Codes, pa.Array]:
    """Judge one view: values that may be used at `at`, a status per row, event times."""
    event_us = _microseconds(got.event_times)
    found = got.found & (event_us <= at)
    if got.created_times.null_count < len(found):
        found &= _microseconds(got.created_times) <= at
    fresh = found & usable(event_us, view.ttl_us, at)
    missing = INVALID if got.doubtful else NOT_FOUND
    states = np.where(found, np.where(fresh, PRESENT, OUTSIDE_MAX_AGE), missing)
    columns = [whole(column) for column in got.values.columns]
    if not fresh.all():
        # A row that is not there is null already.
        keep = pa.array(fresh | ~got.found) if got.found.any() else None
        if keep is not None and keep.false_count:
            columns = [pc.if_else(keep, column, pa.scalar(None, column.type)) for column in columns]
    values = {(view.name, name): column for name, column in zip(view.columns, columns, strict=True)}
    times = got.event_times
    if (found < got.found).any():  # what is not due yet is not there
        times = pc.if_else(pa.array(found), times, pa.scalar(None, times.type))
    return values, states, times if times.type == TIMESTAMP else times.cast(TIMESTAMP)


def _statuses(values: pa.Array, states: Codes | None) -> Codes:
    if states is None:  # computed on demand
        states = np.full(len(values), PRESENT, np.uint8)
    if not values.null_count:
        return states
    null = values.is_null().to_numpy(zero_copy_only=False)
    codes: Codes = np.where(null & (states == PRESENT), NULL_VALUE, states)
    return codes


def _microseconds(times: pa.Array) -> Micros:
    """Microseconds since the epoch; the least of all where there is no time."""
    values = times.view(pa.int64())
    if values.null_count:
        values = values.fill_null(-(2**63))
    micros: Micros = values.to_numpy()
    return micros


def whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return a column as one array."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
