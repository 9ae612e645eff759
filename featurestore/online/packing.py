"""A feature view's rows as `(key, row)` pairs and back; pure.

Above `keys`, below `base`: what a batch holds is encoded, ordered and decoded here, stores keep
the bytes. The order of rows is the total order of `featurestore.tables.total_order`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from steadfeast.featurestore.errors import CorruptRowError, InvalidBatchError, NotFoundError
from steadfeast.featurestore.online.keys import KeyCodec, key_hash
from steadfeast.featurestore.rows import (
    HEADER_BYTES,
    NO_TIME,
    ORDER_BYTES,
    Layout,
    damaged,
    decode,
    encode,
    layout_id,
    layout_of,
    order_of,
    sound,
)
from steadfeast.featurestore.tables import (
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    TIMESTAMP,
    arrow_type,
    canonical_bytes,
    cast_array,
    flat,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from feast import FeatureView
    from numpy.typing import NDArray

_REMEMBERED = 256


class StoredLayout(NamedTuple):
    """A layout as a store keeps it; the greatest `number` was applied last."""

    number: int
    layout: Layout


Layouts = dict[bytes, StoredLayout]


@dataclass(frozen=True, slots=True)
class PackedRead:
    """What was stored for n keys, whatever its age; the caller applies the TTL.

    Attributes:
        values: The columns asked for, n rows in the order of the keys; null where not found.
        event_times: Event time per row; null where not found.
        created_times: Created time per row; null where not found or not given.
        found: Whether there is a row, shape (n,).
        absent: Per column, the rows whose layout does not have it, shape (n,); only columns
            for which there are such rows.
        doubtful: Whether a row that was not found may have been lost.
    """

    values: pa.Table
    event_times: pa.Array
    created_times: pa.Array
    found: NDArray[np.bool_]
    absent: Mapping[str, NDArray[np.bool_]]
    doubtful: bool = False


class Plan:
    """What packing needs to know of a view, worked out once; get one with `plan_of`.

    Attributes:
        name: Of the view.
        keys: Arrow type per join key.
        codec: Of its entity keys.
        types: Arrow type per feature.
        layout: Of the rows that it writes now.
    """

    def __init__(self, view: FeatureView) -> None:
        self.name = view.name
        self.keys = {column.name: arrow_type(column) for column in view.entity_columns}
        self.codec = KeyCodec(view.name, self.keys)
        self.types = {feature.name: arrow_type(feature) for feature in view.features}
        self.layout = layout_of(pa.schema(list(self.types.items())))
        self._schemas: dict[tuple[str, ...], pa.Schema] = {}
        self._fields = (*view.entity_columns, *view.features)  # keeps their ids from being reused

    def schema(self, columns: Sequence[str]) -> pa.Schema:
        """Return the schema of `columns`.

        Raises:
            NotFoundError: The view has no such feature.
        """
        names = tuple(columns)
        schema = self._schemas.get(names)
        if schema is None:
            for name in names:
                if name not in self.types:
                    raise NotFoundError(f"feature of view {self.name!r}", name, self.types)
            if len(self._schemas) >= _REMEMBERED:
                self._schemas.clear()
            schema = self._schemas[names] = pa.schema([(name, self.types[name]) for name in names])
        return schema


_plans: dict[tuple[str, tuple[int, ...], tuple[int, ...]], Plan] = {}


def plan_of(view: FeatureView) -> Plan:
    """Return the plan of `view`; remembered for as long as its fields are the same objects."""
    key = (view.name, tuple(map(id, view.entity_columns)), tuple(map(id, view.features)))
    plan = _plans.get(key)
    if plan is None:
        if len(_plans) >= _REMEMBERED:
            _plans.clear()
        plan = _plans[key] = Plan(view)
    return plan


def supersedes(new: bytes, old: bytes, layouts: Layouts) -> bool:
    """Say whether row `new` is to replace row `old` of the same key: the total order.

    Rows of two layouts that tie in both times are ordered by which layout was applied last, so
    that a new column arrives when the same source rows are materialised again. A damaged row is
    always replaced.
    """
    if damaged([old]) or layout_id(old) not in layouts:
        return True
    if order_of(new) != order_of(old):
        return order_of(new) > order_of(old)
    mine, theirs = layouts[layout_id(new)], layouts[layout_id(old)]
    if mine.layout.id != theirs.layout.id:
        return mine.number > theirs.number
    names = mine.layout.schema.names
    arrays = decode(mine.layout, [old, new], names).arrays
    before, after = pa.RecordBatch.from_arrays(arrays, names=names).to_pylist()
    return bool(canonical_bytes(after) > canonical_bytes(before))


def pack(
    plan: Plan, codec: KeyCodec, table: pa.Table, *, every: bool = False
) -> list[tuple[bytes, bytes]]:
    """Encode the greatest row of each key that is not null, or `every` such row.

    Raises:
        InvalidBatchError: A time is null or not a timestamp.
        InvalidKeysError: A join key is missing or of the wrong type.
        UnsupportedTypeError: A value does not fit the type that the view declares.
    """
    layout, keys = plan.layout, codec.encode(table)
    event_us, created_us = times(plan, table)
    columns = table.select(layout.schema.names)
    if not every:
        greatest = _greatest(keys, event_us, created_us, columns)
        if len(greatest) < table.num_rows:
            columns, keys = columns.take(greatest), [keys[i] for i in greatest]
            event_us, created_us = event_us[greatest], created_us[greatest]
    rows = encode(layout, columns, event_us, created_us)
    return [(key, row) for key, row in zip(keys, rows, strict=True) if key is not None]


def times(plan: Plan, table: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return event and created times in µs, shape (n,); `NO_TIME` for no created time.

    Raises:
        InvalidBatchError: A time is no timestamp, or an event time is null.
    """
    event_us = _micros(table, EVENT_TIMESTAMP, plan.name)
    if CREATED_TIMESTAMP not in table.column_names:
        return event_us, np.full(table.num_rows, NO_TIME)
    return event_us, _micros(table, CREATED_TIMESTAMP, plan.name)


def _greatest(
    keys: Sequence[bytes | None],
    event_us: NDArray[np.int64],
    created_us: NDArray[np.int64],
    columns: pa.Table,
) -> NDArray[np.int64]:
    """Return the positions of the greatest row of each key that is not null, ascending."""
    coded = pa.array(keys, pa.large_binary()).dictionary_encode().indices
    codes = coded.fill_null(-1).to_numpy()
    if len(codes) == 0 or codes[-1] == len(codes) - 1:
        return np.arange(len(codes))  # codes count up from 0: no key repeats or is null
    order = np.lexsort((created_us, event_us, codes))
    code, event, created = codes[order], event_us[order], created_us[order]
    again = code[1:] == code[:-1]
    last = np.append(~again, True) & (code >= 0)
    ties = again & (event[1:] == event[:-1]) & (created[1:] == created[:-1])
    winners = order[last]
    if not ties.any():
        return np.sort(winners)
    # Runs of rows that tie in both times are settled by canonical bytes; only runs that end a
    # key matter, and few are longer than one.
    run = np.concatenate([[0], np.cumsum(~ties)])
    long = np.isin(run, run[last & np.append(False, ties)])
    groups: dict[int, list[int]] = {}
    for number, position in zip(run[long].tolist(), order[long].tolist(), strict=True):
        groups.setdefault(number, []).append(position)
    rows = dict(zip(order[long].tolist(), columns.take(order[long]).to_pylist(), strict=True))
    settled = {
        group[-1]: max(group, key=lambda position: canonical_bytes(rows[position]))
        for group in groups.values()
    }
    return np.sort(np.array([settled.get(i, i) for i in winners.tolist()], np.int64))


def _micros(table: pa.Table, name: str, view: str) -> NDArray[np.int64]:
    column = flat(table[name])
    if not pa.types.is_timestamp(column.type) and not pa.types.is_null(column.type):
        raise InvalidBatchError(view, name, f"is of type {column.type}, not a timestamp")
    if name == EVENT_TIMESTAMP and column.null_count:
        raise InvalidBatchError(view, name, f"is null in {column.null_count} rows")
    micros = cast_array(column, TIMESTAMP, name).cast(pa.int64())
    values: NDArray[np.int64] = micros.fill_null(NO_TIME).to_numpy()
    return values


def layouts_in(rows: Sequence[bytes | None]) -> set[bytes] | None:
    """Return the ids of the layouts that rows have; None when a row is damaged."""
    if len(rows) == 1:  # by far the most frequent
        row = rows[0]
        return set() if row is None else {layout_id(row)} if sound(row) else None
    there = [row for row in rows if row is not None]
    return None if damaged(there) else {row[ORDER_BYTES:HEADER_BYTES] for row in there}


def check(
    view: str, keys: Sequence[bytes | None], rows: Sequence[bytes | None], known: Iterable[bytes]
) -> None:
    """See that every row is what was once written, in a layout of `known`.

    Raises:
        CorruptRowError: One is not.
    """
    there = [row for row in rows if row is not None]
    bad = damaged(there)
    problem = "fails its checksum"
    if not bad:
        ids = set(known)
        bad = [i for i, row in enumerate(there) if layout_id(row) not in ids]
        problem = "has a layout that is not known"
    if bad:
        owners = [key for key, row in zip(keys, rows, strict=True) if row is not None]
        raise CorruptRowError(view, key_hash(owners[bad[0]] or b""), problem)


def unpack(
    plan: Plan,
    layouts: Mapping[bytes, Layout],
    rows: Sequence[bytes | None],
    columns: Sequence[str],
) -> PackedRead:
    """Decode rows that `check` has passed, each by its own layout of `layouts`.

    Raises:
        NotFoundError: The view has no such feature.
        UnsupportedTypeError: A value of an older layout does not fit the type declared now.
    """
    schema = plan.schema(columns)
    found = np.fromiter((row is not None for row in rows), np.bool_, len(rows))
    places: dict[bytes, list[int]] = {}
    for i, row in enumerate(rows):
        if row is not None:
            places.setdefault(layout_id(row), []).append(i)
    if len(places) <= 1:
        layout = layouts[next(iter(places))] if places else plan.layout
        return _decode(layout, rows, schema, found)
    return _decode_mixed(layouts, places, rows, schema, found)


def _decode(
    layout: Layout, rows: Sequence[bytes | None], schema: pa.Schema, found: NDArray[np.bool_]
) -> PackedRead:
    """Decode rows that all have `layout`."""
    blank = layout.null_row
    names, types = schema.names, schema.types
    known = [name for name in names if name in layout.index]
    decoded = decode(layout, [blank if row is None else row for row in rows], known)
    arrays = dict(zip(known, decoded.arrays, strict=True))
    columns = [
        cast_array(arrays[name], t, name) if name in arrays else pa.nulls(len(rows), t)
        for name, t in zip(names, types, strict=True)
    ]
    return PackedRead(
        pa.Table.from_arrays(columns, schema=schema),
        _time_array(decoded.event_us, found),
        _time_array(decoded.created_us, found & (decoded.created_us != NO_TIME)),
        found,
        {name: found for name in names if name not in arrays},
    )


def _decode_mixed(
    layouts: Mapping[bytes, Layout],
    places: Mapping[bytes, list[int]],
    rows: Sequence[bytes | None],
    schema: pa.Schema,
    found: NDArray[np.bool_],
) -> PackedRead:
    """Decode rows of several layouts and put them back in order; rows not found go last."""
    parts = [
        _decode(layouts[i], [rows[p] for p in some], schema, found[some])
        for i, some in places.items()
    ]
    at = np.full(len(rows), -1)
    at[np.concatenate(list(places.values()))] = np.arange(found.sum())
    order = pa.array(at, mask=~found)
    absent = {name: np.zeros(len(rows), np.bool_) for part in parts for name in part.absent}
    for part, some in zip(parts, places.values(), strict=True):
        for name in part.absent:
            absent[name][some] = True
    return PackedRead(
        pa.concat_tables([part.values for part in parts]).combine_chunks().take(order),
        pa.concat_arrays([part.event_times for part in parts]).take(order),
        pa.concat_arrays([part.created_times for part in parts]).take(order),
        found,
        absent,
    )


def _time_array(micros: NDArray[np.int64], valid: NDArray[np.bool_]) -> pa.Array:
    return pa.array(micros, pa.int64(), mask=None if valid.all() else ~valid).cast(TIMESTAMP)
