"""The invariants, checked over every key and every logged vector.

Above `compare`, below `store`, which offers it. Set at a time: both sides of I1 stream into
DuckDB and meet in one full join; I2 replays the served log through the offline store in slices of
bounded size. A check that had nothing to compare is void: it has
shown nothing, and says so.

- I1: the online store against the newest offline row at the watermark, TTL applied to both.
  Kinds: missing online, missing offline, stale (an older row than offline's), ahead (one from
  after the watermark, or that offline does not have), value.
- I2: each logged vector against the join of its keys at its request time. Kinds: type, leaked
  (the served row was not known at the request's time), stale (a newer one was known and not yet
  materialized), missing online, missing offline, value. A feature computed on demand takes the
  first of leaked and stale that holds for a view it reads.
- I11: what writers say that they logged against what the files hold. Kind: lost. What a writer
  dropped, and counted, is not lost; it makes I2 void for that window.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore import offline
from featurestore.compare import compare
from featurestore.evidence import differs
from featurestore.logfiles import Lineage, Run, lineage, microseconds
from featurestore.materialization import as_online
from featurestore.offline.session import session
from featurestore.offline.views import bind
from featurestore.report import EXAMPLES, AuditReport, Check, Redactor, personal_columns
from featurestore.service import EVENT_TIMESTAMP, TIMESTAMP
from featurestore.sql import source

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from feast import FeatureStore, FeatureView

    from featurestore.online import PackedOnlineStore
    from featurestore.served import ServedLog
    from featurestore.service import Output, ServicePlan, StoredView
    from featurestore.serving import Bundle

__all__ = ["AuditReport", "Check", "audit"]

_SLICE_CELLS = 5_000_000
_SLICE_ROWS = 200_000
_MINIMUM = datetime(1970, 1, 1, tzinfo=UTC)
_MAXIMUM = datetime(9999, 1, 1, tzinfo=UTC)
_LEAKED, _STALE = 2, 1

Bits = np.ndarray[Any, np.dtype[np.bool_]]


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
    bundle, redactor = store.bundle(service), Redactor()
    names = {view.view.name for view in bundle.plan.views}
    views = store.feast.registry.list_feature_views(store.feast.project)
    checks = [
        online_against_offline(store, view, redactor)
        for view in sorted(views, key=lambda view: str(view.name))
        if view.name in names and view.online
    ]
    every = {path: lineage(path) for path in store.served.files(service, _MINIMUM, _MAXIMUM)}
    files = store.served.files(service, start or _MINIMUM, end or _MAXIMUM)
    dropped = sum(every[path].dropped for path in files if path in every)
    checks.append(served_against_offline(store, service, files, (start, end), dropped, redactor))
    checks.append(log_is_complete(service, every, store.served.collected(service)))
    return AuditReport(service, bundle.contract.sha256, tuple(checks))


def online_against_offline(store: Audited, view: FeatureView, redactor: Redactor) -> Check:
    """I1: compare every key of one view at its watermark, both ways."""
    until = store.watermark(view.name)
    if until is None:
        return Check("I1", view.name, 0, note="never materialized")
    config = store.feast.config
    newest = offline.latest(config, view, None, until)
    with session(config) as connection:
        found = compare(
            connection,
            view,
            store.online.scan(config, view),
            (as_online(view, batch) for batch in newest),
            microseconds(until),
            redactor,
        )
    note = f"at {until.isoformat()}"
    if not found.rows:
        note += "; neither side holds a usable row"
    cells = found.rows * len(view.features)
    return Check("I1", view.name, cells, found.mismatches, found.examples, note)


def served_against_offline(
    store: Audited,
    service: str,
    files: Sequence[Path],
    window: tuple[datetime | None, datetime | None],
    dropped: int,
    redactor: Redactor,
) -> Check:
    """I2: join the keys of every logged vector at its request time, and compare by bits."""
    bundle = store.bundle(service)
    plan, tally = bundle.plan, _Tally(bundle.plan, redactor)
    width = len(plan.outputs)
    slices = _Slices(files, window, bundle.contract.sha256, max(1, _SLICE_CELLS // width))
    for rows in slices:
        spine = rows.select([*plan.entity_columns])
        spine = spine.append_column(EVENT_TIMESTAMP, rows.column("request_time"))
        replayed = store.point_in_time(service, spine)
        tally.cells += rows.num_rows * width
        unequal = {output.name: _unequal(rows, replayed, output) for output in plan.outputs}
        wrong = np.unique(np.concatenate(list(unequal.values())))
        if wrong.size:
            taken = rows.take(pa.array(wrong))
            origins = {view.name: _origin(store, view, taken) for view in plan.views}
            places = {
                name: np.searchsorted(wrong, found) for name, found in unequal.items() if found.size
            }
            tally.add(taken, replayed.take(pa.array(wrong)), places, origins)
    other = slices.elsewhere
    note = f"{other} rows were served under another contract" if other else ""
    if not tally.cells:
        note = note or "nothing was logged"
    void = f"void: {dropped} vectors of this window were dropped" if dropped else ""
    return Check("I2", service, tally.cells, dict(+tally.mismatches), tally.examples(), note, void)


class _Slices:
    """The logged rows of one contract and window, in tables of bounded size."""

    def __init__(
        self,
        files: Sequence[Path],
        window: tuple[datetime | None, datetime | None],
        contract: str,
        rows: int,
    ) -> None:
        self._files, self._window, self._contract = files, window, contract
        self._rows = min(rows, _SLICE_ROWS)
        self.elsewhere = 0

    def __iter__(self) -> Iterator[pa.Table]:
        waiting: list[pa.Table] = []
        count = 0
        for rows in self._batches():
            if waiting and (waiting[0].schema != rows.schema or count + rows.num_rows > self._rows):
                yield pa.concat_tables(waiting).combine_chunks()
                waiting, count = [], 0
            waiting.append(rows)
            count += rows.num_rows
        if waiting:
            yield pa.concat_tables(waiting).combine_chunks()

    def _batches(self) -> Iterator[pa.Table]:
        start, end = self._window
        time = pc.field("request_time")
        for path in self._files:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(self._rows):
                    rows = pa.Table.from_batches([batch]).replace_schema_metadata(None)
                    if start is not None:
                        rows = rows.filter(time >= pa.scalar(start, TIMESTAMP))
                    if end is not None:
                        rows = rows.filter(time < pa.scalar(end, TIMESTAMP))
                    mine = rows.filter(pc.field("contract") == self._contract)
                    self.elsewhere += rows.num_rows - mine.num_rows
                    if mine.num_rows:
                        yield mine


def _unequal(
    rows: pa.Table, replayed: pa.Table, output: Output
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the places where a feature differs: everywhere, if its type does."""
    was, now = rows.column(output.name), replayed.column(output.name)
    return differs(was, now) if was.type == now.type else np.arange(rows.num_rows)


@dataclass(slots=True)
class _Origin:
    """Where the values of one view are from, for each of n rows that mismatch.

    Attributes:
        states: _LEAKED, _STALE or 0, shape (n,).
        served: Event time of what was served; null when nothing was.
        offline: Event time of the row that training uses.
        written: Created time of the served row in the source, if it is there and has one.
    """

    states: np.ndarray[Any, np.dtype[np.int8]]
    served: pa.ChunkedArray
    offline: pa.ChunkedArray
    written: pa.ChunkedArray


def _origin(store: Audited, view: StoredView, rows: pa.Table) -> _Origin:
    """Look up in the source which row was served, and which should have been."""
    served = rows.column(f"{view.name}__event_timestamp")
    at = rows.column("request_time").cast(pa.int64())
    spine = {"i": pa.array(np.arange(rows.num_rows)), "t": at, "own": served.cast(pa.int64())}
    spine |= {f"k{i}": rows.column(column) for i, column in enumerate(view.keys.values())}
    config = store.feast.config
    with session(config) as connection:
        connection.register("spine", pa.table(spine))
        bound = bind(connection, config.repo_path, view.view, list(view.columns)).view
        made = "f.made" if bound.created is not None else "NULL::BIGINT"
        known = "f.ts <= s.t" + (" AND f.made <= s.t" if bound.created is not None else "")
        fresh = f" AND s.t - f.ts <= {bound.ttl}" if bound.ttl else ""
        on = " AND ".join(f"s.k{i} = f.k{i}" for i in range(len(bound.keys))) or "true"
        history = source(bound, None, None, made=True)
        found = connection.sql(
            f"""SELECT make_timestamptz(max(f.ts) FILTER (WHERE {known}{fresh})) AS offline,
            make_timestamptz(min({made}) FILTER (WHERE f.ts = s.own)) AS written,
            coalesce(bool_or(f.ts = s.own), false) AS there
            FROM spine AS s LEFT JOIN ({history}) AS f ON {on} GROUP BY s.i ORDER BY s.i"""
        ).to_arrow_table()
    when, written = found.column("offline"), found.column("written")
    late = pc.fill_null(pc.greater(served, rows.column("request_time")), False)
    unknown = pc.fill_null(pc.greater(written, rows.column("request_time")), False)
    behind = pc.fill_null(pc.less(served, when), False)
    states = np.where(_bits(late) | _bits(unknown), _LEAKED, np.where(_bits(behind), _STALE, 0))
    return _Origin(states.astype(np.int8), served, when, written)


@dataclass(slots=True)
class _Tally:
    """What I2 has found so far."""

    plan: ServicePlan
    redactor: Redactor
    cells: int = 0
    mismatches: Counter[str] = field(default_factory=Counter)
    _worst: defaultdict[str, list[tuple[float, dict[str, Any]]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def add(
        self,
        rows: pa.Table,
        replayed: pa.Table,
        places: Mapping[str, np.ndarray[Any, np.dtype[np.int64]]],
        origins: Mapping[str, _Origin],
    ) -> None:
        """Take in rows that mismatch, and in which of them each feature does."""
        personal = personal_columns(self.plan)
        reads = {view.name: {name for name, _ in view.inputs} for view in self.plan.on_demand}
        for output in self.plan.outputs:
            if output.name not in places:
                continue
            found = places[output.name]
            views = reads.get(output.view, {output.view})
            was, now = (
                table.column(output.name).take(pa.array(found)) for table in (rows, replayed)
            )
            state = np.max([origins[view].states[found] for view in views], axis=0, initial=0)
            kinds = _kinds(was, now, state)
            weights = _weights(was, now)
            for kind in np.unique(kinds):
                these = np.flatnonzero(kinds == kind)
                self.mismatches[str(kind)] += len(these)
                these = these[np.argsort(-weights[these], kind="stable")][:EXAMPLES]
                worst = self._worst[str(kind)]
                worst += [
                    (
                        -float(weights[i]),
                        {
                            "kind": str(kind),
                            **self._cell(rows, int(found[i]), output, personal),
                            "served": self._show(was[i].as_py(), output.name in personal),
                            "offline": self._show(now[i].as_py(), output.name in personal),
                            "rows": {
                                view: {
                                    "served_event_time": origin.served[int(found[i])].as_py(),
                                    "served_created_time": origin.written[int(found[i])].as_py(),
                                    "offline_event_time": origin.offline[int(found[i])].as_py(),
                                }
                                for view, origin in origins.items()
                                if view in views
                            },
                        },
                    )
                    for i in these
                ]
                worst.sort(key=lambda item: item[0])
                del worst[EXAMPLES:]

    def examples(self) -> list[dict[str, Any]]:
        """Return the worst of each kind."""
        return [example for kind in sorted(self._worst) for _, example in self._worst[kind]]

    def _cell(
        self, rows: pa.Table, place: int, output: Output, personal: frozenset[str]
    ) -> dict[str, Any]:
        return {
            "feature": output.name,
            "request_id": rows.column("request_id")[place].as_py(),
            "request_time": rows.column("request_time")[place].as_py(),
            "key": {
                name: self._show(rows.column(name)[place].as_py(), name in personal)
                for name in self.plan.keys
            },
        }

    def _show(self, value: object, personal: bool) -> object:
        return self.redactor.show(value, personal=personal)


def _kinds(
    was: pa.ChunkedArray, now: pa.ChunkedArray, states: np.ndarray[Any, np.dtype[np.int8]]
) -> np.ndarray[Any, np.dtype[np.str_]]:
    if was.type != now.type:
        return np.full(len(was), "type")
    own = np.where(
        _bits(was.is_null()),
        "missing online",
        np.where(_bits(now.is_null()), "missing offline", "value"),
    )
    return np.where(states == _LEAKED, "leaked", np.where(states == _STALE, "stale", own))


def _weights(was: pa.ChunkedArray, now: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.float64]]:
    """How bad each mismatch is: 3 for a missing side, else the relative difference, at most 2."""
    numbers = all(
        pa.types.is_integer(side.type) or pa.types.is_floating(side.type) for side in (was, now)
    )
    missing = _bits(was.is_null()) | _bits(now.is_null())
    if not numbers:
        return np.where(missing, 3.0, 1.0)
    one, two = (
        pc.fill_null(side.cast(pa.float64(), safe=False), 0).to_numpy() for side in (was, now)
    )
    scale = np.maximum(np.abs(one), np.abs(two)) / 2
    with np.errstate(all="ignore"):
        relative = np.where(scale > 0, np.abs(one / 2 - two / 2) / scale, 0.0)
    return np.where(missing, 3.0, np.where(np.isfinite(relative), relative, 2.0))


def _bits(column: pa.ChunkedArray) -> Bits:
    found: Bits = (
        column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()
    )
    return found.astype(np.bool_)


def log_is_complete(
    service: str, files: Mapping[Path, Lineage], collected: Sequence[Run] = ()
) -> Check:
    """I11: each writer's files, in order, hold all rows that it says it logged.

    What was collected on purpose counts as there: it was, and was remembered.
    """
    writers: dict[str, list[tuple[Lineage, str]]] = {}
    lost = 0
    examples: list[dict[str, Any]] = []
    for run in collected:
        told = Lineage(run.writer, run.first, run.rows, run.rows, run.before, 0)
        writers.setdefault(run.writer, []).append((told, ""))
    for path, told in files.items():
        if any(r.writer == told.writer and r.first <= told.number <= r.last for r in collected):
            continue  # a collection that was cut short left it
        if told.said != told.holds:
            lost += abs(told.said - told.holds)
            examples.append({"file": path.name, "said": told.said, "holds": told.holds})
        writers.setdefault(told.writer, []).append((told, path.name))
    for pieces in writers.values():
        expected = 0
        for told, name in sorted(pieces, key=lambda piece: piece[0].number):
            if told.before != expected:
                gone = told.before - expected
                lost += gone
                examples.append({"before": name, "file_number": told.number, "lost": gone})
            expected = told.before + told.said
    dropped = sum(told.dropped for told in files.values())
    notes = [f"{dropped} more were dropped and counted"] if dropped else []
    if collected:
        notes.append(f"{sum(run.rows for run in collected)} more were collected")
    rows = sum(told.holds for told in files.values())
    return Check(
        "I11",
        service,
        rows,
        {"lost": lost} if lost else {},
        examples[:EXAMPLES],
        "; ".join(notes) if files or collected else "nothing was logged",
    )
