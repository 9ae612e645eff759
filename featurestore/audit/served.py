"""What was served against what training would use: I2 over every logged vector.

Above `report`, below `audit`. The log is replayed through the offline store in slices of bounded
size, each row by the definitions of the contract that it was served under. What the log says of
itself, without a replay, is `logchecks`'.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from steadfeast.featurestore.audit.report import EXAMPLES, Check, Redactor
from steadfeast.featurestore.definitions import personal_columns
from steadfeast.featurestore.errors import ContractMismatchError
from steadfeast.featurestore.offline import bind, session
from steadfeast.featurestore.tables import EVENT_TIMESTAMP, TIMESTAMP, differs, source, type_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from feast import FeatureStore

    from steadfeast.featurestore.definitions import Bundle, Output, ServicePlan, StoredView

_SLICE_CELLS = 5_000_000
_SLICE_ROWS = 200_000
_LEAKED, _STALE = 2, 1

Bits = np.ndarray[Any, np.dtype[np.bool_]]
Window = tuple["datetime | None", "datetime | None"]


class Replayed(Protocol):
    """What replaying a log needs of a store."""

    feast: FeatureStore

    def bundle(self, service: str) -> Bundle:
        """Return a resolved service."""

    def bundle_of_then(self, service: str, contract: str) -> Bundle:
        """Return a service as it was under a contract."""

    def point_in_time(
        self, service: str, entities: pa.Table, *, contract: str | None = None
    ) -> pa.Table:
        """Return features of entity rows at their `event_timestamp`."""


def served_against_offline(
    store: Replayed,
    service: str,
    files: Sequence[Path],
    window: Window,
    dropped: int,
    redactor: Redactor,
) -> Check:
    """I2: join the keys of every logged vector at its request time, and compare by bits."""
    now = store.bundle(service)
    slices = _Slices(files, window, now)
    tally, notes = _replayed(store, service, now, slices, redactor), list[str]()
    cells, features, examples = tally.cells, tally.features, tally.examples()
    void = [f"{dropped} vectors of this window were dropped"] if dropped else []
    for contract, rows in sorted(slices.elsewhere.items()):
        try:
            then = store.bundle_of_then(service, contract)
        except ContractMismatchError as error:
            why = "; ".join(error.reasons) or "it was never applied to this store"
            void.append(f"{rows} rows were served under contract {contract[:12]}: {why}")
            continue
        more = _replayed(store, service, then, _Slices(files, window, then), redactor)
        cells, examples = cells + more.cells, examples + more.examples()
        for name, kinds in more.features.items():
            features[name].update(kinds)
        notes.append(f"{rows} rows were served under contract {contract[:12]}, and replayed by it")
    if not cells and not void:
        notes.append("nothing was logged")
    said = f"void: {'; '.join(void)}" if void else ""
    mismatches: Counter[str] = Counter()
    for kinds in features.values():
        mismatches.update(kinds)
    return Check(
        "I2", service, cells, dict(mismatches), examples, "; ".join(notes), said, dict(features)
    )


def _replayed(
    store: Replayed, service: str, bundle: Bundle, slices: _Slices, redactor: Redactor
) -> _Tally:
    """Replay what was logged under one contract."""
    plan, tally = bundle.plan, _Tally(bundle.plan, redactor)
    width, contract = len(plan.outputs), bundle.contract.sha256
    for rows in slices:
        spine = rows.select([*plan.entity_columns])
        spine = spine.append_column(EVENT_TIMESTAMP, rows.column("request_time"))
        replayed = store.point_in_time(service, spine, contract=contract)
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
    return tally


class _Slices:
    """The logged rows of one contract and window, in tables of bounded size."""

    def __init__(
        self,
        files: Sequence[Path],
        window: Window,
        bundle: Bundle,
    ) -> None:
        self._files, self._window = files, window
        self._contract = bundle.contract.sha256
        width = max(1, len(bundle.plan.outputs))
        self._rows = min(max(1, _SLICE_CELLS // width), _SLICE_ROWS)
        self.elsewhere: Counter[str] = Counter()

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
                    if mine.num_rows < rows.num_rows:
                        counted = rows.column("contract").value_counts().to_pylist()
                        self.elsewhere.update(
                            {
                                one["values"]: one["counts"]
                                for one in counted
                                if one["values"] != self._contract
                            }
                        )
                    if mine.num_rows:
                        yield mine


def _unequal(
    rows: pa.Table, replayed: pa.Table, output: Output
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the places where a feature differs: everywhere, if its type does."""
    was, now = rows.column(output.name), replayed.column(output.name)
    same = type_name(was.type) == type_name(now.type)
    return differs(was, now) if same else np.arange(rows.num_rows)


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


def _origin(store: Replayed, view: StoredView, rows: pa.Table) -> _Origin:
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
    features: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
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
                self.features[output.name][str(kind)] += len(these)
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
    if type_name(was.type) != type_name(now.type):
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
