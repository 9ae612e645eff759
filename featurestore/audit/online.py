"""Two sides of one feature view, compared cell by cell in one pass.

Above `report`; `audit` gives it the online and the offline side, a benchmark what another store
serves. Both stream into DuckDB and meet in one full join on the keys; counts and the worst few
mismatches of each feature are aggregates of that join, so that nothing but its build side is
held, and DuckDB spills that within the limits of feature_store.yaml.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from steadfeast.featurestore.audit.report import EXAMPLES
from steadfeast.featurestore.errors import SteadfeastError
from steadfeast.featurestore.tables import (
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    TIMESTAMP,
    arrow_type,
    cast_array,
    identifier,
    personal_fields,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from feast import FeatureView

    from steadfeast.featurestore.audit.report import Redactor


@dataclass(frozen=True, slots=True)
class Compared:
    """What two sides of a view had to say to each other.

    Attributes:
        rows: Keys that at least one side may use.
        mismatches: Kind -> cells.
        features: Each feature with mismatches: kind -> cells.
        examples: The worst of each kind.
    """

    rows: int
    mismatches: Mapping[str, int]
    features: Mapping[str, Mapping[str, int]]
    examples: Sequence[Mapping[str, Any]]


def compare(
    connection: duckdb.DuckDBPyConnection,
    view: FeatureView,
    online: Iterable[pa.RecordBatch],
    offline: Iterable[pa.RecordBatch],
    at: int,
    redactor: Redactor,
    *,
    enforced: bool = True,
) -> Compared:
    """Compare what is online for each key with what offline is its newest row.

    Args:
        connection: With the time zone UTC, and the limits to keep to.
        view: The feature view.
        online: Join keys, features, `event_timestamp` and, if known, `created_timestamp`.
        offline: The same.
        at: The time that both are compared at, microseconds since the epoch.
        redactor: Of the report.
        enforced: Whether reading the online side leaves out what the TTL forbids; a side that
            serves whatever it holds is compared as it serves.

    Raises:
        UnsupportedTypeError: A value does not fit its declared type.
        DuckDB's own errors: Out of memory or disk.
    """
    schema = _schema(view)
    failures: list[SteadfeastError] = []
    for name, batches in (("online_rows", online), ("offline_rows", offline)):
        connection.register(name, _reader(schema, batches, failures))
    try:
        groups = connection.execute(_query(view, at, enforced=enforced)).fetchall()
    except duckdb.Error:
        if failures:  # DuckDB wraps what goes wrong in a stream that it reads
            raise failures[0] from None
        raise
    rows = 0
    features: defaultdict[str, dict[str, int]] = defaultdict(dict)
    examples: list[Mapping[str, Any]] = []
    width = len(view.features)
    for kind, count, *figures in groups:
        rows += count
        worst: list[tuple[float, int, dict[str, Any]]] = []
        for number, (cells, found) in enumerate(zip(figures[:width], figures[width:], strict=True)):
            if cells:
                features[view.features[number].name][kind] = cells
            worst += [(-item["weight"], number, item) for item in found or ()]
        worst.sort(key=lambda item: (item[0], item[1], repr(item[2])))
        examples += [
            _example(view, kind, number, item, redactor) for _, number, item in worst[:EXAMPLES]
        ]
    mismatches: Counter[str] = Counter()
    for kinds in features.values():
        mismatches.update(kinds)
    return Compared(rows, dict(mismatches), features, examples)


def _schema(view: FeatureView) -> pa.Schema:
    return pa.schema(
        [(item.name, arrow_type(item)) for item in view.entity_columns]
        + [(EVENT_TIMESTAMP, TIMESTAMP), (CREATED_TIMESTAMP, TIMESTAMP)]
        + [(item.name, arrow_type(item)) for item in view.features]
    )


def _reader(
    schema: pa.Schema, batches: Iterable[pa.RecordBatch], failures: list[SteadfeastError]
) -> pa.RecordBatchReader:
    """Cast a side to the declared types, as writing and training do; note what goes wrong."""

    def typed() -> Iterator[pa.RecordBatch]:
        try:
            for batch in batches:
                names = batch.schema.names
                columns = [
                    cast_array(batch.column(item.name), item.type, item.name)
                    if item.name in names or item.name != CREATED_TIMESTAMP
                    else pa.nulls(batch.num_rows, TIMESTAMP)
                    for item in schema
                ]
                yield pa.RecordBatch.from_arrays(columns, schema=schema)
        except SteadfeastError as error:
            failures.append(error)
            raise

    return pa.RecordBatchReader.from_batches(schema, typed())


def _query(view: FeatureView, at: int, *, enforced: bool) -> str:
    """Return the query of, per kind: rows, then per feature its cells, then its worst few."""
    keys, width = range(len(view.entity_columns)), range(len(view.features))
    ttl = 0 if view.ttl is None else round(view.ttl.total_seconds() * 1_000_000)
    event = f"epoch_us({identifier(EVENT_TIMESTAMP)})"
    columns = ", ".join(
        [f"{identifier(item.name)} AS k{i}" for i, item in enumerate(view.entity_columns)]
        + [f"{identifier(item.name)} AS f{i}" for i, item in enumerate(view.features)]
        + [f"{event} AS at", f"epoch_us({identifier(CREATED_TIMESTAMP)}) AS made", "true AS found"]
    )
    # The online side keeps rows from after the watermark: they are "ahead", and shown.
    usable = f"{event} >= {at - ttl}" if ttl else "true"
    joined = " AND ".join(f"o.k{i} = f.k{i}" for i in keys) or "true"
    both = [f"coalesce(o.k{i}, f.k{i}) AS k{i}" for i in keys]
    both += [f"o.f{i} AS o{i}, f.f{i} AS f{i}" for i in width]
    both += [f"o.{name} AS online_{name}, f.{name} AS offline_{name}" for name in ("at", "made")]
    shown = ", ".join(
        [f"'k{i}': k{i}" for i in keys]
        + [
            f"'{s}_{n}': make_timestamptz({s}_{n})"
            for s in ("online", "offline")
            for n in ("at", "made")
        ]
    )
    worst = ", ".join(
        f"max_by({{{shown}, 'online': o{i}, 'offline': f{i}, 'weight': {_weight(view, i)}}}, "
        f"{_weight(view, i)}, {EXAMPLES}) FILTER (WHERE d{i})"
        for i in width
    )
    return f"""WITH met AS (SELECT {", ".join(both)},
        CASE WHEN o.found IS NULL THEN 'missing online' WHEN f.found IS NULL THEN
            CASE WHEN o.at > {at} THEN 'ahead' ELSE 'missing offline' END
            WHEN o.at < f.at THEN 'stale' WHEN o.at > f.at THEN 'ahead' ELSE 'value' END AS kind
        FROM (SELECT {columns} FROM online_rows WHERE {usable if enforced else "true"}) AS o
        FULL JOIN (SELECT {columns} FROM offline_rows WHERE {usable}) AS f ON {joined})
        SELECT kind, count(*), {", ".join(f"count(*) FILTER (WHERE d{i})" for i in width)}, {worst}
        FROM (SELECT *, {", ".join(f"{_differ(view, i)} AS d{i}" for i in width)} FROM met)
        GROUP BY kind ORDER BY kind"""


def _differ(view: FeatureView, number: int) -> str:
    """A condition: feature `number` differs by bits, or its row by its time."""
    o, f = f"o{number}", f"f{number}"
    conditions = ["online_at IS DISTINCT FROM offline_at", f"{o} IS DISTINCT FROM {f}"]
    if pa.types.is_floating(arrow_type(view.features[number])):  # to DuckDB, -0.0 equals 0.0
        conditions.append(f"coalesce({o} = 0 AND signbit({o}) <> signbit({f}), false)")
    return f"({' OR '.join(conditions)})"


def _weight(view: FeatureView, number: int) -> str:
    """How bad a mismatch is: 3 for a missing side, else the relative difference, at most 2."""
    o, f, kind = f"o{number}", f"f{number}", arrow_type(view.features[number])
    missing = f"WHEN {o} IS NULL OR {f} IS NULL THEN 3.0"
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return f"CASE {missing} ELSE 1.0 END::DOUBLE"
    one, two = f"{o}::DOUBLE", f"{f}::DOUBLE"
    larger = f"greatest(abs({one}), abs({two}))"  # divided by first: no sum of two overflows
    return (
        f"CASE {missing} WHEN NOT (isfinite({one}) AND isfinite({two})) THEN 2.0 "
        f"WHEN {one} = {two} THEN 0.0 ELSE abs({one} / {larger} - {two} / {larger}) END::DOUBLE"
    )


def _example(
    view: FeatureView, kind: str, number: int, found: Mapping[str, Any], redactor: Redactor
) -> dict[str, Any]:
    item, personal = view.features[number], personal_fields(view)
    example: dict[str, Any] = {
        "kind": kind,
        "feature": item.name,
        "key": {
            part.name: redactor.show(found[f"k{i}"], personal=part.name in personal)
            for i, part in enumerate(view.entity_columns)
        },
    }
    for side in ("online", "offline"):
        example[side] = redactor.show(found[side], personal=item.name in personal)
    for side in ("online", "offline"):
        example[f"{side}_event_time"] = found[f"{side}_at"]
        example[f"{side}_created_time"] = found[f"{side}_made"]
    source = view.batch_source
    example["source"] = "" if source is None else str(getattr(source, "path", "") or source.name)
    return example
