"""The fast way through a request: packed rows in, and columns only when somebody asks for them.

Above `serving`, which it gives way to; below `store`. Making an Arrow array costs more than all
else about one row, so a request fetches and checks its rows, and `OnlineFeatures` decodes them
on demand: to NumPy straight from the packed bytes, to Arrow by `serving`. Errors come with the
request all the same: what could fail later (an older layout, an on-demand view) is done at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import numpy as np
import pyarrow as pa

from featurestore import serving
from featurestore.answers import OnlineFeatures
from featurestore.online.base import space_of
from featurestore.online.packing import layout_ids, plan_of, unpack
from featurestore.rows import (
    Layout,
    times_of,
    usable,
    validity_of,
)

if TYPE_CHECKING:
    from feast.repo_config import RepoConfig
    from numpy.typing import NDArray

    from featurestore.online import PackedOnlineStore
    from featurestore.service import StoredView
    from featurestore.serving import Bundle, Codes

EntityRows: TypeAlias = pa.Table | Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]
"""What a request may give: a table, a mapping for each row, or a mapping of columns."""

_LISTED_ROWS = 256  # a table of fewer rows is encoded faster value by value
_PLAIN = {
    **{t: f"<i{t.bit_width // 8}" for t in (pa.int8(), pa.int16(), pa.int32(), pa.int64())},
    **{t: f"<u{t.bit_width // 8}" for t in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())},
    pa.float32(): "<f4",
    pa.float64(): "<f8",
}


class _Group(NamedTuple):
    """Columns of one NumPy type that stand side by side in a row."""

    start: int
    width: int
    across: int
    dtype: np.dtype[Any]
    places: NDArray[np.intp] | None  # None when all of them are asked for
    columns: NDArray[np.intp]  # their indices in the layout


class Block(NamedTuple):
    """Columns of one NumPy type.

    Attributes:
        cells: Values, shape (columns, n); meaningless where not `valid`.
        valid: Shape (columns, n), or None when every value may be used.
    """

    cells: NDArray[Any]
    valid: NDArray[np.bool_] | None


class Judged(NamedTuple):
    """What one view says, in NumPy.

    Attributes:
        rows: The packed rows; None where there is none.
        fresh: Whether each may be used, shape (n,); None when all may.
        event_us: Event times in µs, shape (n,); meaningless where there is no row.
        blocks: The values.
    """

    rows: Sequence[bytes | None]
    fresh: NDArray[np.bool_] | None
    event_us: NDArray[np.int64]
    blocks: list[Block]

    def states(self) -> Codes:
        """Return Feast's `FieldStatus` of each row's values that are not null, shape (n,)."""
        states: Codes = np.full(len(self.rows), serving.PRESENT)
        if self.fresh is not None:
            states[~self.fresh] = serving.OUTSIDE_MAX_AGE
        if None in self.rows:
            states[[row is None for row in self.rows]] = serving.NOT_FOUND
        return states


class _Source:
    """One view of the service, with what a request need not work out anew."""

    def __init__(self, config: RepoConfig, view: StoredView) -> None:
        self.view = view
        self.plan = plan_of(view.view)
        self.space = space_of(config, view.view)
        self.names = tuple(view.columns)
        self.layout: Layout = self.plan.layout
        self.groups = _groups(self.layout, self.names)
        # The features in the order in which the groups' cells give them.
        self.order = [
            self.layout.schema.names[column]
            for group in self.groups or ()
            for column in group.columns
        ]

    def keys(self, columns: Mapping[str, Sequence[Any]], n: int) -> list[bytes | None] | None:
        if not self.view.keys:
            table = self.view.key_table(pa.table({"": pa.nulls(1)}))
            return self.plan.codec.encode(table) * n
        codec = self.plan.codec
        return codec.plain([columns[self.view.keys[key]] for key in codec.types])


class Reader:
    """Answers requests for one service; safe to share between threads.

    Args:
        online: The online store.
        config: Feast's configuration.
        bundle: The service.
    """

    def __init__(self, online: PackedOnlineStore, config: RepoConfig, bundle: Bundle) -> None:
        self.online, self.config, self.bundle = online, config, bundle
        self.sources = tuple(_Source(config, view) for view in bundle.plan.views)
        self.plain = all(source.groups is not None for source in self.sources)
        places = {
            (source.view.name, name): place
            for place, (source, name) in enumerate(
                (source, name) for source in self.sources for name in source.order
            )
        }
        self.names, self.contract = bundle.plan.features, bundle.contract.sha256
        usable_here = self.plain and not bundle.executors
        outputs = bundle.plan.outputs if usable_here else ()
        self.places = [places[output.view, output.feature] for output in outputs]

    def read(self, rows: EntityRows, at: int) -> OnlineFeatures:
        """Return the features of `rows` at `at`, microseconds since the epoch.

        Raises:
            EntityRowsError: A column is missing or of a wrong type.
            CorruptRowError: A row is not what was written.
            StoreUnavailableError: The store does not answer.
        """
        bundle = self.bundle
        if bundle.executors:
            entities = serving.entity_rows(bundle.plan, rows)
            return serving.read(self.online, self.config, bundle, entities, at)
        request = Request(self, rows, at)
        features = OnlineFeatures.later(request, self.contract)
        if not request.current():
            features.statuses  # noqa: B018 - an older row may not fit the types of today
        return features


class Request:
    """Rows that were fetched for one request; `OnlineFeatures` asks it for columns."""

    __slots__ = ("_at", "_columns", "_entities", "_judged", "_reader", "fetched", "rows")

    def __init__(self, reader: Reader, given: Any, at: int) -> None:
        self._reader, self._at = reader, at
        self._entities: pa.Table | None = None
        self._judged: list[Judged] | None = None
        self._columns = _listed(reader.bundle.plan.keys, given)
        keys: list[list[bytes | None] | None] = [None] * len(reader.sources)
        if self._columns is not None:
            self.rows = len(next(iter(self._columns.values())))
            keys = [source.keys(self._columns, self.rows) for source in reader.sources]
        if self._columns is None or None in keys:
            self._columns = None
            self._entities = serving.entity_rows(reader.bundle.plan, given)
            self.rows = self._entities.num_rows
            keys = [
                source.plan.codec.encode(source.view.key_table(self._entities))
                for source in reader.sources
            ]
        self.fetched = [
            reader.online.fetch(reader.config, source.view.view, source.space, some or ())
            for source, some in zip(reader.sources, keys, strict=True)
        ]

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features, in the order of the service."""
        return self._reader.names

    def current(self) -> bool:
        """Whether all rows have the layout that is written now."""
        return all(
            layout_ids([row for row in rows if row is not None]) <= {source.layout.id}
            for source, rows in zip(self._reader.sources, self.fetched, strict=True)
        )

    def keys(self) -> Mapping[str, list[Any]]:
        """Return the key columns as lists."""
        if self._columns is not None:
            return self._columns
        table = self._entities
        return (
            {} if table is None else {name: table[name].to_pylist() for name in table.schema.names}
        )

    def settle(self) -> tuple[pa.Table, dict[str, Codes], dict[str, pa.Array]]:
        """Return the table, the statuses and the event times, by `serving`."""
        reader = self._reader
        if self._entities is None:
            self._entities = serving.entity_rows(reader.bundle.plan, self._columns or {})
        layouts = reader.online.layouts
        reads = [
            unpack(source.plan, layouts, rows, source.names)
            for source, rows in zip(reader.sources, self.fetched, strict=True)
        ]
        return serving.assemble(reader.bundle, self._entities, reads, self._at)

    def judged(self) -> list[Judged] | None:
        """Return what each view says; None when a type has no plain NumPy form."""
        if self._judged is None and self._reader.plain and self.rows:
            pairs = zip(self._reader.sources, self.fetched, strict=True)
            self._judged = [_judge(source, rows, self._at) for source, rows in pairs]
        return self._judged

    def in_order(self, flat: Sequence[Any]) -> list[Any]:
        """Return what belongs to each column of the blocks, in the order of the features."""
        return [flat[place] for place in self._reader.places]

    def tally(self) -> NDArray[np.int64] | None:
        """Count the values by their `FieldStatus`; None as `judged`."""
        views = self.judged()
        if views is None:
            return None
        counts = np.zeros(5, np.int64)
        for view in views:
            columns = sum(len(block.cells) for block in view.blocks)
            if view.fresh is None and None not in view.rows:
                counts[serving.PRESENT] += columns * len(view.rows)
                if all(valid is None for _, valid in view.blocks):
                    continue
                states = np.full(len(view.rows), serving.PRESENT)
            else:
                states = view.states()
                counts += np.bincount(states, minlength=5) * columns
            for _, valid in view.blocks:
                if valid is not None:
                    nulls = int((~valid & (states == serving.PRESENT)).sum())
                    counts[serving.PRESENT] -= nulls
                    counts[serving.NULL_VALUE] += nulls
        return counts

    def arrays(self) -> dict[str, NDArray[Any]] | None:
        """Return each feature, nulls as NaN; None as `judged`."""
        views = self.judged()
        if views is None:
            return None
        flat: list[NDArray[Any]] = []
        for cells, valid in (block for view in views for block in view.blocks):
            if valid is None:
                flat.extend(cells)
            elif cells.dtype.kind == "f":
                flat.extend(np.where(valid, cells, cells.dtype.type(np.nan)))
            else:  # as Arrow has it: whole numbers beside a null are floats
                flat.extend(
                    column if there.all() else np.where(there, column, np.nan)
                    for column, there in zip(cells, valid, strict=True)
                )
        return dict(zip(self._reader.names, self.in_order(flat), strict=True))


def rows_in(given: EntityRows) -> int:
    """Return how many rows a request asks for."""
    if isinstance(given, dict):
        return max(map(len, given.values()), default=0)
    return len(given)


def _listed(keys: Mapping[str, pa.DataType], given: EntityRows) -> dict[str, Any] | None:
    """Return the key columns as lists, where that is the cheaper way.

    What is wrong with them is left to the slow way, which says it.
    """
    try:
        if isinstance(given, pa.Table):
            schema = given.schema
            alike = all(schema.field(name).type == t for name, t in keys.items())
            if alike and given.num_rows <= _LISTED_ROWS:
                return {name: given.column(name).to_pylist() for name in keys}
        elif isinstance(given, dict):
            columns = {name: given[name] for name in keys}
            if len({len(column) for column in columns.values()}) == 1:
                return columns
        elif keys:
            rows = cast("Sequence[Mapping[str, Any]]", given)
            return {name: [row[name] for row in rows] for name in keys}
    except KeyError:
        return None
    return None


def _groups(layout: Layout, names: Sequence[str]) -> tuple[_Group, ...] | None:
    """Return where the columns `names` are in a row; None when one has no plain NumPy form."""
    asked = {layout.index[name] for name in names}
    if any(layout.types[column] not in _PLAIN for column in asked):
        return None
    groups = []
    for run in layout.fixed:
        kinds: dict[str, list[int]] = {}
        for place, column in enumerate(run.columns):
            if column in asked:
                kinds.setdefault(_PLAIN[layout.types[column]], []).append(place)
        for kind, places in kinds.items():
            everything = len(places) == len(run.columns)
            groups.append(
                _Group(
                    run.start,
                    run.width,
                    len(run.columns),
                    np.dtype(kind),
                    None if everything else np.array(places),
                    np.array([run.columns[place] for place in places]),
                )
            )
    return tuple(groups)


def _judge_one(source: _Source, rows: Sequence[bytes | None], at: int) -> Judged:
    """Do what `_judge` does for one row, where calls into NumPy are most of the cost."""
    layout = source.layout
    row = rows[0] or layout.null_row
    event_us, created_us = (int.from_bytes(row[i : i + 8], "big") - 2**63 for i in (0, 8))
    fresh = bool(usable(event_us, source.view.ttl_us, at) and created_us <= at)
    valid = None if layout.says_all_valid(row) else validity_of(layout, row, 1, len(row))
    blocks = []
    for group in source.groups or ():
        cells = np.frombuffer(row, group.dtype, group.across, group.start)
        cells = (cells if group.places is None else cells[group.places]).reshape(-1, 1)
        here = None if valid is None else valid[group.columns]
        if not fresh:
            here = np.zeros(cells.shape, np.bool_)
        blocks.append(Block(cells, here))
    return Judged(rows, None if fresh else np.zeros(1, np.bool_), np.array([event_us]), blocks)


def _judge(source: _Source, rows: Sequence[bytes | None], at: int) -> Judged:
    layout, n = source.layout, len(rows)
    if n == 1:
        return _judge_one(source, rows, at)
    blank = layout.null_row
    if layout.variable:
        stride = layout.prefix
        data = b"".join([(row or blank)[:stride] for row in rows])
    else:
        stride = len(blank)
        data = b"".join([row or blank for row in rows])
    event_us, created_us = times_of(data, n, stride)
    usable_now = usable(event_us, source.view.ttl_us, at) & (created_us <= at)
    fresh = None if usable_now.all() else usable_now
    valid = validity_of(layout, data, n, stride)
    blocks = []
    for group in source.groups or ():
        shape, strides = (n, group.across), (stride, group.width)
        cells = np.ndarray(shape, group.dtype, data, group.start, strides).T
        cells = np.ascontiguousarray(cells if group.places is None else cells[group.places])
        here = None if valid is None else valid[group.columns]
        if fresh is not None:
            here = np.broadcast_to(fresh, cells.shape) if here is None else here & fresh
        blocks.append(Block(cells, here))
    return Judged(rows, fresh, event_us, blocks)
