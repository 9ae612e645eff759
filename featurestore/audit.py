"""The invariants, checked over every key and every logged vector.

Above `training`, `served` and `materialization`, below `store`, which offers it. Set at a time:
both sides of I1 stream into DuckDB and meet in one full join; I2 replays the served log through
the offline store in slices. A check that had nothing to compare says so and does not hold.

- I1: the online store against the newest offline row at the watermark, TTL applied to both.
  Kinds: missing online, missing offline, stale, ahead, value.
- I2: each logged vector against the join of its keys at its request time. Kinds: missing
  online, missing offline, value.
- I11: what writers say that they logged against what the files hold. Kind: lost.

Values of features tagged `pii`, and join keys of such fields, never leave here in clear.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore import offline
from featurestore.errors import SteadfeastError
from featurestore.evidence import content_sha256, differs
from featurestore.materialization import as_online
from featurestore.rows import cast_array
from featurestore.served import microseconds
from featurestore.service import EVENT_TIMESTAMP, TIMESTAMP, arrow_type
from featurestore.sql import identifier

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from feast import FeatureStore, FeatureView

    from featurestore.online import PackedOnlineStore
    from featurestore.served import ServedLog
    from featurestore.serving import Bundle

_EXAMPLES = 5
_SLICE_ROWS = 100_000
_MINIMUM = datetime(1970, 1, 1, tzinfo=UTC)
_MAXIMUM = datetime(9999, 1, 1, tzinfo=UTC)


class Audited(Protocol):
    """What an audit needs of a store."""

    feast: FeatureStore
    served: ServedLog

    @property
    def online(self) -> PackedOnlineStore:
        """The online store."""

    def bundle(self, service: str) -> Bundle:
        """Return a resolved service."""

    def watermark(self, view: str) -> datetime | None:
        """Return the time up to which a view was materialized."""

    def point_in_time(self, service: str, entities: pa.Table) -> pa.Table:
        """Return features of entity rows at their `event_timestamp`."""


@dataclass(frozen=True, slots=True)
class Check:
    """One invariant on one subject.

    Attributes:
        invariant: "I1", "I2" or "I11".
        subject: The feature view, or the service.
        cells: Cells compared; rows for I11.
        mismatches: Kind -> cells.
        examples: The first few, with both values and where each is from.
        note: What was left out, or why there was nothing to compare.
    """

    invariant: str
    subject: str
    cells: int
    mismatches: Mapping[str, int] = field(default_factory=dict)
    examples: Sequence[Mapping[str, Any]] = ()
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether something was compared and all of it was the same."""
        return self.cells > 0 and not any(self.mismatches.values())


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What one audit found.

    Attributes:
        service: The feature service.
        contract: SHA-256 of its contract.
        checks: One per invariant and subject.
    """

    service: str
    contract: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every invariant holds."""
        return all(check.ok for check in self.checks)

    def to_json(self) -> str:
        """Return the report as JSON."""
        checks = [{**asdict(check), "ok": check.ok} for check in self.checks]
        report = {"service": self.service, "contract": self.contract, "ok": self.ok}
        return json.dumps({**report, "checks": checks}, default=str, ensure_ascii=False)

    def to_text(self) -> str:
        """Return the report as lines for a terminal."""
        lines = [f"{self.service} under contract {self.contract}"]
        for check in self.checks:
            kinds = ", ".join(
                f"{count} {kind}" for kind, count in check.mismatches.items() if count
            )
            verdict = "holds" if check.ok else "FAILS"
            lines.append(
                f"  {check.invariant:<3} {verdict}  {check.subject}: {check.cells} cells"
                + (f"; {kinds}" if kinds else "")
                + (f"; {check.note}" if check.note else "")
            )
            lines += [
                "        " + json.dumps(example, default=str, ensure_ascii=False)
                for example in check.examples
            ]
        return "\n".join(lines)


def audit(
    store: Audited, service: str, *, start: datetime | None = None, end: datetime | None = None
) -> AuditReport:
    """Check I1 on each view of `service`, I2 and I11 on its log.

    Args:
        store: The store.
        service: The feature service.
        start: Served rows from this request time on.
        end: Served rows before this request time.

    Raises:
        NotFoundError: There is no such service.
    """
    bundle = store.bundle(service)
    names = {view.view.name for view in bundle.plan.views}
    views = store.feast.registry.list_feature_views(store.feast.project)
    checks = [
        online_against_offline(store, view)
        for view in sorted(views, key=lambda view: str(view.name))
        if view.name in names and view.online
    ]
    files = store.served.files(service, start or _MINIMUM, end or _MAXIMUM)
    checks.append(served_against_offline(store, service, files, start, end))
    checks.append(log_is_complete(service, store.served.files(service, _MINIMUM, _MAXIMUM)))
    return AuditReport(service, bundle.contract.sha256, tuple(checks))


def online_against_offline(store: Audited, view: FeatureView) -> Check:
    """I1: compare every key of one view at its watermark, both ways."""
    until = store.watermark(view.name)
    if until is None:
        return Check("I1", view.name, 0, note="never materialized")
    schema = _schema(view)
    keys = [item.name for item in view.entity_columns]
    features = [item.name for item in view.features]
    config = store.feast.config
    there = offline.latest(config, view, None, until)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'").fetchall()
        sides = {
            "online_rows": store.online.scan(config, view),
            "offline_rows": (as_online(view, batch) for batch in there),
        }
        failures: list[SteadfeastError] = []
        for name, batches in sides.items():
            connection.register(name, _reader(schema, batches, failures))
        try:
            connection.execute(_compared(view, keys, features, until)).fetchall()
        except duckdb.Error:
            if failures:  # DuckDB wraps what goes wrong in a stream that it reads
                raise failures[0] from None
            raise
        counts = connection.execute(_counted(view)).fetchall()
        rows = connection.execute("SELECT count(*) FROM compared").fetchall()[0][0]
        examples = [
            example
            for feature, kind, count in counts
            if count
            for example in _shown(connection, view, keys, feature, kind)
        ]
    mismatches: Counter[str] = Counter()
    for _, kind, count in counts:
        if count:
            mismatches[kind] += count
    note = f"at {until.isoformat()}"
    if not rows:
        note += "; neither side holds a usable row"
    return Check(
        "I1", view.name, rows * len(features), dict(mismatches), examples[:_EXAMPLES], note
    )


def _schema(view: FeatureView) -> pa.Schema:
    return pa.schema(
        [(item.name, arrow_type(item)) for item in view.entity_columns]
        + [(EVENT_TIMESTAMP, TIMESTAMP)]
        + [(item.name, arrow_type(item)) for item in view.features]
    )


def _reader(
    schema: pa.Schema, batches: Iterable[pa.RecordBatch], failures: list[SteadfeastError]
) -> pa.RecordBatchReader:
    """Cast a side to the declared types, as writing and training do; note what goes wrong."""

    def typed() -> Iterator[pa.RecordBatch]:
        try:
            for batch in batches:
                yield pa.RecordBatch.from_arrays(
                    [cast_array(batch.column(item.name), item.type, item.name) for item in schema],
                    schema=schema,
                )
        except SteadfeastError as error:
            failures.append(error)
            raise

    return pa.RecordBatchReader.from_batches(schema, typed())


def _compared(view: FeatureView, keys: list[str], features: list[str], until: datetime) -> str:
    """Create table `compared`: one row per key that either side may use at the watermark."""
    at = microseconds(until)
    ttl = 0 if view.ttl is None else round(view.ttl.total_seconds() * 1_000_000)
    event = f"epoch_us({identifier(EVENT_TIMESTAMP)})"
    columns = ", ".join(
        [f"{identifier(name)} AS k{i}" for i, name in enumerate(keys)]
        + [f"{identifier(name)} AS f{i}" for i, name in enumerate(features)]
        + [f"{event} AS at", "true AS found"]
    )
    # The online side keeps rows from after the watermark: they are "ahead", and shown.
    usable = f"{event} >= {at - ttl}" if ttl else "true"
    joined = " AND ".join(f"o.k{i} = f.k{i}" for i in range(len(keys))) or "true"
    same = ", ".join(f"coalesce(o.k{i}, f.k{i}) AS k{i}" for i in range(len(keys)))
    values = ", ".join(f"o.f{i} AS o{i}, f.f{i} AS f{i}" for i in range(len(features)))
    return f"""CREATE TEMP TABLE compared AS SELECT {same}{", " if same else ""}{values},
        o.at AS online_at, f.at AS offline_at,
        CASE WHEN o.found IS NULL THEN 'missing online' WHEN f.found IS NULL THEN
            CASE WHEN o.at > {at} THEN 'ahead' ELSE 'missing offline' END
            WHEN o.at < f.at THEN 'stale' WHEN o.at > f.at THEN 'ahead' ELSE 'value' END AS kind
        FROM (SELECT {columns} FROM online_rows WHERE {usable}) AS o
        FULL JOIN (SELECT {columns} FROM offline_rows WHERE {usable}) AS f ON {joined}"""


def _differ(view: FeatureView, number: int) -> str:
    """A condition on `compared`: feature `number` differs by bits, or its row by its time."""
    o, f = f"o{number}", f"f{number}"
    conditions = ["online_at IS DISTINCT FROM offline_at", f"{o} IS DISTINCT FROM {f}"]
    if pa.types.is_floating(arrow_type(view.features[number])):  # to DuckDB, -0.0 equals 0.0
        conditions.append(f"({o} = 0 AND signbit({o}) <> signbit({f}))")
    return f"({' OR '.join(conditions)})"


def _counted(view: FeatureView) -> str:
    parts = [
        f"SELECT {i} AS feature, kind, count(*) FROM compared WHERE {_differ(view, i)} "
        "GROUP BY kind"
        for i in range(len(view.features))
    ]
    return " UNION ALL ".join(parts) + " ORDER BY 1, 2"


def _shown(
    connection: duckdb.DuckDBPyConnection,
    view: FeatureView,
    keys: list[str],
    feature: int,
    kind: str,
) -> list[dict[str, Any]]:
    columns = [f"k{i}" for i in range(len(keys))]
    columns += [f"o{feature}", f"f{feature}", "make_timestamptz(online_at)::VARCHAR"]
    columns += ["make_timestamptz(offline_at)::VARCHAR"]
    rows = connection.execute(
        f"SELECT {', '.join(columns)} FROM compared WHERE kind = ? AND {_differ(view, feature)} "
        f"ORDER BY ALL LIMIT {_EXAMPLES}",
        [kind],
    ).fetchall()
    item = view.features[feature]
    return [
        {
            "kind": kind,
            "feature": item.name,
            "key": {
                part.name: _clear(row[i], part.tags) for i, part in enumerate(view.entity_columns)
            },
            "online": _clear(row[len(keys)], item.tags),
            "offline": _clear(row[len(keys) + 1], item.tags),
            "online_event_time": row[len(keys) + 2],
            "offline_event_time": row[len(keys) + 3],
        }
        for row in rows
    ]


def _clear(value: object, tags: Mapping[str, str] | None) -> object:
    """Return a value, or for personal data a digest that still tells two of them apart."""
    if value is None or "pii" not in (tags or {}):
        return value
    return "pii:" + content_sha256(pa.table({"": [value]}))[:12]


def served_against_offline(
    store: Audited,
    service: str,
    files: Sequence[Path],
    start: datetime | None,
    end: datetime | None,
) -> Check:
    """I2: join the keys of every logged vector at its request time, and compare by bits."""
    bundle = store.bundle(service)
    cells, elsewhere = 0, 0
    mismatches: Counter[str] = Counter()
    examples: list[dict[str, Any]] = []
    for logged in _logged(files, start, end):
        mine = pc.equal(logged.column("contract"), bundle.contract.sha256)
        rows = logged.filter(mine)
        elsewhere += logged.num_rows - rows.num_rows
        if not rows.num_rows:
            continue
        spine = rows.select([*bundle.plan.entity_columns])
        spine = spine.append_column(EVENT_TIMESTAMP, rows.column("request_time"))
        replayed = store.point_in_time(service, spine)
        cells += rows.num_rows * len(bundle.plan.outputs)
        for output in bundle.plan.outputs:
            was, now = rows.column(output.name), replayed.column(output.name)
            places = pa.array(differs(was, now))
            absent = [column.take(places).is_null() for column in (was, now)]
            kinds = {
                "missing online": absent[0],
                "missing offline": absent[1],
                "value": pc.invert(pc.or_(*absent)),
            }
            mismatches.update({kind: pc.sum(there).as_py() or 0 for kind, there in kinds.items()})
            for place in places[: _EXAMPLES - len(examples)].to_pylist():
                served, offline_value = was[place].as_py(), now[place].as_py()
                examples.append(
                    {
                        "kind": _kind(served, offline_value),
                        "feature": output.name,
                        "request_id": rows.column("request_id")[place].as_py(),
                        "request_time": rows.column("request_time")[place].as_py(),
                        "served": _clear(served, output.tags),
                        "offline": _clear(offline_value, output.tags),
                    }
                )
    mismatches = +mismatches
    note = f"{elsewhere} rows were served under another contract" if elsewhere else ""
    if not cells:
        note = note or "nothing was logged"
    return Check("I2", service, cells, dict(mismatches), examples, note)


def _logged(
    files: Sequence[Path], start: datetime | None, end: datetime | None
) -> Iterator[pa.Table]:
    for path in files:
        for batch in pq.ParquetFile(path).iter_batches(_SLICE_ROWS):
            rows = pa.Table.from_batches([batch])
            time = pc.field("request_time")
            if start is not None:
                rows = rows.filter(time >= pa.scalar(start, TIMESTAMP))
            if end is not None:
                rows = rows.filter(time < pa.scalar(end, TIMESTAMP))
            yield rows.combine_chunks()


def _kind(served: object, replayed: object) -> str:
    if served is None:
        return "missing online"
    return "missing offline" if replayed is None else "value"


def log_is_complete(service: str, files: Sequence[Path]) -> Check:
    """I11: each writer's files, in order, hold all rows that it says it logged."""
    writers: dict[str, list[tuple[int, int, int, str]]] = {}
    rows = lost = 0
    examples: list[dict[str, Any]] = []
    for path in files:
        metadata = pq.read_metadata(path)
        told = metadata.metadata or {}
        rows += metadata.num_rows
        writer = told.get(b"steadfeast.writer", b"").decode()
        number, said, before = (
            int(told.get(f"steadfeast.{name}".encode(), b"0"))
            for name in ("file", "rows", "rows_before")
        )
        if said != metadata.num_rows:
            lost += abs(said - metadata.num_rows)
            examples.append({"file": path.name, "said": said, "holds": metadata.num_rows})
        writers.setdefault(writer, []).append((number, before, said, path.name))
    for pieces in writers.values():
        expected = 0
        for number, before, said, name in sorted(pieces):
            if before != expected:
                lost += before - expected
                examples.append({"before": name, "file_number": number, "lost": before - expected})
            expected = before + said
    note = "" if files else "nothing was logged"
    mismatches = {"lost": lost} if lost else {}
    return Check("I11", service, rows, mismatches, examples[:_EXAMPLES], note)
