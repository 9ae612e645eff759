"""What every online store does: pack, order, read back, and answer as Feast expects.

Above `keys` and `protos`, below `sqlite` and `redis`, which keep bytes by key and nothing more.
Two ways in. `write_batch` and `read_batch` move Arrow columns and are what `Store` uses;
`online_write_batch`, `online_read` and `_read_features_per_fv` are Feast's own, a message per
value, so that `feast materialize`, push sources and `feast serve` work unchanged.

Writes follow the total order of `featurestore.sql`: event time, created time, canonical bytes of
the row. Rows of two layouts that tie in both times are ordered by which layout was applied last,
so that a new column arrives when the same source rows are materialised again.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from feast.infra.online_stores.helpers import compute_versioned_name
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.Value_pb2 import Value

from featurestore.errors import (
    CorruptRowError,
    InvalidBatchError,
    InvalidKeysError,
    NotFoundError,
    UnsupportedTypeError,
)
from featurestore.online import response
from featurestore.online.keys import KeyCodec, key_hash
from featurestore.online.protos import to_array, to_values
from featurestore.rows import (
    NO_TIME,
    TIMESTAMP,
    Layout,
    cast_array,
    damaged,
    decode,
    encode,
    layout_id,
    layout_of,
    order_of,
    usable,
)
from featurestore.service import arrow_type
from featurestore.sql import canonical_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from feast import Entity, FeatureView, RepoConfig
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from numpy.typing import NDArray

EVENT_TIMESTAMP = "event_timestamp"
CREATED_TIMESTAMP = "created_timestamp"

_CHUNK_ROWS = 65_536
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

Row = tuple["EntityKey", "dict[str, Value]", datetime, "datetime | None"]


class StoredLayout(NamedTuple):
    """A layout as a store keeps it; the greatest `generation` was applied last."""

    generation: int
    layout: Layout


Layouts = dict[bytes, StoredLayout]


@dataclass(frozen=True, slots=True)
class PackedRead:
    """What was stored for n keys, whatever its age; the caller applies `usable`.

    Attributes:
        values: The columns asked for, n rows in the order of the keys; null where not found.
        event_times: Event time per row; null where not found.
        created_times: Created time per row; null where not found or not given.
        found: Whether there is a row, shape (n,).
        absent: Per column, the rows whose layout does not have it, shape (n,); only columns
            for which there are such rows.
    """

    values: pa.Table
    event_times: pa.Array
    created_times: pa.Array
    found: NDArray[np.bool_]
    absent: Mapping[str, NDArray[np.bool_]]


class PackedOnlineStore(OnlineStore):  # type: ignore[misc]
    """Base of the stores; a subclass keeps the bytes.

    `space` in the methods below names one view of one project.
    """

    # -- what a subclass does --------------------------------------------------------------

    @abstractmethod
    def _get(self, config: RepoConfig, space: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the row of each key, or None."""

    @abstractmethod
    def _put(
        self,
        config: RepoConfig,
        space: str,
        layout: Layout,
        pairs: Sequence[tuple[bytes, bytes]],
    ) -> int:
        """Keep `layout`, and each row that supersedes what its key has; return how many did."""

    @abstractmethod
    def _delete(self, config: RepoConfig, space: str, keys: Sequence[bytes]) -> int:
        """Remove the rows of `keys`; return how many there were."""

    @abstractmethod
    def _pairs(self, config: RepoConfig, space: str) -> Iterator[list[tuple[bytes, bytes]]]:
        """Yield all `(key, row)` in batches."""

    @abstractmethod
    def _layouts(self, config: RepoConfig, space: str) -> Layouts:
        """Return the layouts of `space` by their ids."""

    @abstractmethod
    def _apply(self, config: RepoConfig, space: str, layout: Layout) -> None:
        """Make room for `space`, and `layout` the one applied last."""

    @abstractmethod
    def _drop(self, config: RepoConfig, spaces: Iterable[str]) -> None:
        """Remove everything kept for `spaces`."""

    # -- columns ---------------------------------------------------------------------------

    def write_batch(
        self, config: RepoConfig, view: FeatureView, batch: pa.RecordBatch | pa.Table
    ) -> int:
        """Write rows; none replaces a newer one, so repeating or reordering writes is safe.

        Args:
            config: Feast's configuration.
            view: The feature view.
            batch: The view's join keys and features, `event_timestamp`, and `created_timestamp`
                if there is one. Other columns are ignored, rows with a null key are skipped.

        Returns:
            How many entities changed.

        Raises:
            InvalidBatchError: A column is missing, or an event time is null.
            InvalidKeysError: A join key is missing or of the wrong type.
            UnsupportedTypeError: A value does not fit the type that the view declares.
            StoreUnavailableError: The store does not answer.
        """
        codec, layout = _codec(view), _layout(view)
        table = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
        for name in [*layout.index, EVENT_TIMESTAMP]:
            if name not in table.column_names:
                raise InvalidBatchError(view.name, name, "is missing")
        changed = 0
        for start in range(0, table.num_rows, _CHUNK_ROWS):
            chunk = table.slice(start, _CHUNK_ROWS).combine_chunks()
            pairs = _pack(view, codec, layout, chunk)
            if pairs:
                changed += self._put(config, space_of(config, view), layout, pairs)
        return changed

    def read_batch(
        self, config: RepoConfig, view: FeatureView, keys: pa.Table, columns: Sequence[str]
    ) -> PackedRead:
        """Read `columns` of the view for each row of `keys`.

        Raises:
            NotFoundError: The view has no such feature.
            InvalidKeysError: A join key is missing or of the wrong type.
            CorruptRowError: A row is not what was written, or its layout is not known.
            StoreUnavailableError: The store does not answer.
        """
        encoded = _codec(view).encode(keys)
        space = space_of(config, view)
        present = [key for key in encoded if key is not None]
        rows = self._get(config, space, present)
        if len(present) < len(encoded):
            found = iter(rows)
            rows = [None if key is None else next(found) for key in encoded]
        return self._unpack(config, view, space, encoded, rows, columns)

    def delete_entities(self, config: RepoConfig, view: FeatureView, keys: pa.Table) -> int:
        """Remove everything kept for the entities of `keys`; return how many there were."""
        encoded = {key for key in _codec(view).encode(keys) if key is not None}
        return self._delete(config, space_of(config, view), sorted(encoded))

    def scan(self, config: RepoConfig, view: FeatureView) -> Iterator[pa.RecordBatch]:
        """Yield all that is stored for `view`: keys, the two timestamps, features.

        Rows of join keys that the view no longer has are left out.

        Raises:
            CorruptRowError: A row is not what was written.
        """
        codec, space = _codec(view), space_of(config, view)
        names = [feature.name for feature in view.features]
        for batch in self._pairs(config, space):
            pairs = [pair for pair in batch if pair[0].startswith(codec.prefix)]
            if not pairs:
                continue
            keys = [key for key, _ in pairs]
            read = self._unpack(config, view, space, keys, [row for _, row in pairs], names)
            columns: dict[str, pa.Array] = {
                **codec.decode(keys),
                EVENT_TIMESTAMP: read.event_times,
                CREATED_TIMESTAMP: read.created_times,
            }
            columns |= {name: read.values[name].combine_chunks() for name in names}
            yield pa.RecordBatch.from_arrays(
                [_flat(column) for column in columns.values()], names=list(columns)
            )

    def _unpack(
        self,
        config: RepoConfig,
        view: FeatureView,
        space: str,
        keys: Sequence[bytes | None],
        rows: Sequence[bytes | None],
        columns: Sequence[str],
    ) -> PackedRead:
        types = _types(view, columns)
        found = np.fromiter((row is not None for row in rows), np.bool_, len(rows))
        there = [row for row in rows if row is not None]
        bad = damaged(there)
        if bad:
            key = [key for key, row in zip(keys, rows, strict=True) if row is not None][bad[0]]
            raise CorruptRowError(view.name, key_hash(key or b""), "fails its checksum")
        ids = {layout_id(row) for row in there}
        layouts = self._known(config, space, ids, view)
        for unknown in ids - layouts.keys():
            key = next(
                key
                for key, row in zip(keys, rows, strict=True)
                if row is not None and layout_id(row) == unknown
            )
            problem = f"has the unknown layout {unknown.hex()}"
            raise CorruptRowError(view.name, key_hash(key or b""), problem)
        if len(ids) <= 1:
            layout = layouts[ids.pop()] if ids else _layout(view)
            return _read(layout, rows, types, found)
        return _read_mixed(layouts, rows, types, found)

    def _known(
        self, config: RepoConfig, space: str, ids: Iterable[bytes], view: FeatureView
    ) -> dict[bytes, Layout]:
        """Return layouts by id; the view's own is at hand, others are asked for once."""
        own = _layout(view)
        cache: dict[bytes, Layout] = self.__dict__.setdefault("_layout_cache", {})
        cache.setdefault(own.id, own)
        if any(i not in cache for i in ids):
            stored = self._layouts(config, space)
            cache.update({i: item.layout for i, item in stored.items()})
        return {i: cache[i] for i in ids if i in cache}

    # -- Feast's interface -----------------------------------------------------------------

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[Row],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write rows that Feast gives as messages; see `write_batch`."""
        if not data:
            return
        types = _key_types(table) or dict.fromkeys(data[0][0].join_keys, pa.string())
        columns = dict(_key_columns([row[0] for row in data], types, table.name))
        for feature in table.features:
            nothing = Value()
            values = [row[1].get(feature.name, nothing) for row in data]
            columns[feature.name] = to_array(values, arrow_type(feature), feature.name)
        columns[EVENT_TIMESTAMP] = _times([row[2] for row in data])
        columns[CREATED_TIMESTAMP] = _times([row[3] for row in data])
        self.write_batch(config, table, pa.table(columns))
        if progress is not None:
            progress(len(data))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        """Return `(event time, values)` per key, `(None, None)` if there is none.

        A value older than the view's TTL is returned as an unset message, with its event time;
        a feature that the stored row does not have is left out.
        """
        if not entity_keys:
            return []
        names = requested_features or [feature.name for feature in table.features]
        types = _key_types(table) or dict.fromkeys(entity_keys[0].join_keys, pa.string())
        keys = pa.table(_key_columns(entity_keys, types, table.name))
        answer = self._answer(config, table, keys, names)
        rows: list[tuple[datetime | None, dict[str, Value] | None]] = []
        for i, micros in enumerate(answer.event_us.tolist()):
            if not answer.known[i]:
                rows.append((None, None))
                continue
            values = {
                name: answer.values[name][i]
                for name in names
                if answer.statuses[name][i] != response.NOT_FOUND
            }
            rows.append((_EPOCH + timedelta(microseconds=micros), values))
        return rows

    def _answer(
        self, config: RepoConfig, view: FeatureView, keys: pa.Table, names: Sequence[str]
    ) -> response.Answer:
        """Read, apply the TTL as of now, and turn into messages with their statuses."""
        read = self.read_batch(config, view, keys, names)
        ttl = getattr(view, "ttl", None) or timedelta(0)
        now_us = (datetime.now(timezone.utc) - _EPOCH) // timedelta(microseconds=1)
        event_us = read.event_times.cast(pa.int64()).fill_null(0).to_numpy()
        known = read.found & usable(event_us, 0, now_us)
        fresh = known & usable(event_us, ttl // timedelta(microseconds=1), now_us)
        kinds = {feature.name: feature.dtype.to_value_type() for feature in view.features}
        values, statuses = {}, {}
        for name in names:
            array = _flat(read.values[name])
            absent = read.absent.get(name)
            statuses[name] = response.statuses(
                known if absent is None else known & ~absent,
                fresh,
                array.is_valid().to_numpy(zero_copy_only=False),
            )
            messages = to_values(array, kinds[name])
            values[name] = [
                message if usable_now else Value()
                for message, usable_now in zip(messages, fresh, strict=True)
            ]
        return response.Answer(event_us, known, values, statuses)

    def _read_features_per_fv(
        self,
        config: RepoConfig,
        grouped_refs: list[Any],
        join_key_values: dict[str, list[Value]],
        entity_name_to_join_key_map: dict[str, str],
        online_features_response: Any,
        full_feature_names: bool,
        include_feature_view_version_metadata: bool,
    ) -> None:
        """Fill Feast's response with true statuses, which Feast's own builder does not know."""
        for view, requested in grouped_refs:
            values = response.key_values(view, join_key_values, entity_name_to_join_key_map)
            types = _key_types(view)
            keys = pa.table(
                {
                    name: to_array(column, types.get(name, pa.string()), name)
                    for name, column in values.items()
                }
            )
            answer = self._answer(config, view, keys, requested)
            response.extend(
                online_features_response,
                view,
                requested,
                answer,
                full_names=full_feature_names,
                versions=include_feature_view_version_metadata,
            )

    async def _read_features_per_fv_async(self, *args: Any, **kwargs: Any) -> None:
        await asyncio.to_thread(self._read_features_per_fv, *args, **kwargs)

    async def online_read_async(
        self, *args: Any, **kwargs: Any
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        """Do `online_read` in a thread."""
        return await asyncio.to_thread(self.online_read, *args, **kwargs)

    async def online_write_batch_async(self, *args: Any, **kwargs: Any) -> None:
        """Do `online_write_batch` in a thread."""
        await asyncio.to_thread(self.online_write_batch, *args, **kwargs)

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Make room for the views to keep, in their present layout; drop the others' rows."""
        del entities_to_delete, entities_to_keep, partial
        for view in tables_to_keep:
            self._apply(config, space_of(config, view), _layout(view))
        self._drop(config, [space_of(config, view) for view in tables_to_delete])

    def teardown(
        self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]
    ) -> None:
        """Remove everything kept for `tables`."""
        del entities
        self._drop(config, [space_of(config, view) for view in tables])

    def _is_versioned_read_supported(self) -> bool:
        return True  # `space_of` has the version


def supersedes(new: bytes, old: bytes, layouts: Layouts) -> bool:
    """Say whether row `new` is to replace row `old` of the same key: the total order.

    A damaged row is always replaced.
    """
    if damaged([old]) or layout_id(old) not in layouts:
        return True
    if order_of(new) != order_of(old):
        return order_of(new) > order_of(old)
    mine, theirs = layouts[layout_id(new)], layouts[layout_id(old)]
    if mine.layout.id != theirs.layout.id:
        return mine.generation > theirs.generation
    names = mine.layout.schema.names
    arrays = decode(mine.layout, [old, new], names).arrays
    before, after = pa.RecordBatch.from_arrays(arrays, names=names).to_pylist()
    return canonical_bytes(after) > canonical_bytes(before)


def space_of(config: RepoConfig, view: FeatureView) -> str:
    """Return the name under which the rows of `view` are kept; it holds no colon but one."""
    versioned = config.registry.enable_online_feature_view_versioning
    name = compute_versioned_name(view, versioned)
    return f"{quote(config.project, safe='')}:{quote(name, safe='')}"


def _key_types(view: FeatureView) -> dict[str, pa.DataType]:
    return {column.name: arrow_type(column) for column in view.entity_columns}


def _codec(view: FeatureView) -> KeyCodec:
    return KeyCodec(view.name, _key_types(view))


def _layout(view: FeatureView) -> Layout:
    return layout_of(pa.schema([(f.name, arrow_type(f)) for f in view.features]))


def _types(view: FeatureView, columns: Sequence[str]) -> dict[str, pa.DataType]:
    declared = {feature.name: feature for feature in view.features}
    for name in columns:
        if name not in declared:
            raise NotFoundError(f"feature of view {view.name!r}", name, declared)
    return {name: arrow_type(declared[name]) for name in columns}


def _pack(
    view: FeatureView, codec: KeyCodec, layout: Layout, table: pa.Table
) -> list[tuple[bytes, bytes]]:
    """Encode the row of each key that is last in the total order."""
    encoded = codec.encode(table)
    event_us = _micros(table, EVENT_TIMESTAMP, view.name)
    if CREATED_TIMESTAMP in table.column_names:
        created_us = _micros(table, CREATED_TIMESTAMP, view.name)
    else:
        created_us = np.full(table.num_rows, NO_TIME)
    columns = table.select(layout.schema.names)
    chosen = _last(encoded, event_us, created_us, columns)
    if len(chosen) < table.num_rows:
        columns, event_us, created_us = columns.take(chosen), event_us[chosen], created_us[chosen]
        encoded = [encoded[i] for i in chosen]
    rows = encode(layout, columns, event_us, created_us)
    return [(key, row) for key, row in zip(encoded, rows, strict=True) if key is not None]


def _last(
    keys: Sequence[bytes | None],
    event_us: NDArray[np.int64],
    created_us: NDArray[np.int64],
    columns: pa.Table,
) -> NDArray[np.int64]:
    """Return the positions of the greatest row of each key that is not null."""
    coded = pa.array(keys, pa.large_binary()).dictionary_encode().indices
    codes = coded.fill_null(-1).to_numpy()
    if len(codes) == 0 or (codes[-1] == len(codes) - 1 and not coded.null_count):
        return np.arange(len(codes))  # the codes count up: no key repeats
    order = np.lexsort((created_us, event_us, codes))
    code, event, created = codes[order], event_us[order], created_us[order]
    ends = np.append(code[1:] != code[:-1], True)
    same = (code[1:] == code[:-1]) & (event[1:] == event[:-1]) & (created[1:] == created[:-1])
    winners = order[ends & (code >= 0)]
    if not same.any():
        return np.sort(winners)
    # The canonical bytes decide between rows that tie in both times; few do.
    runs = np.concatenate([[0], np.cumsum(~same)])
    final = set(runs[ends & (code >= 0)].tolist())
    groups: dict[int, list[int]] = {}
    tied = np.append(same, False) | np.append(False, same)
    for run, position in zip(runs[tied].tolist(), order[tied].tolist(), strict=True):
        if run in final:
            groups.setdefault(run, []).append(position)
    positions = [position for group in groups.values() for position in group]
    rows = dict(zip(positions, columns.take(positions).to_pylist(), strict=True))
    replaced = {
        group[-1]: max(group, key=lambda position: canonical_bytes(rows[position]))
        for group in groups.values()
    }
    return np.sort([replaced.get(int(winner), int(winner)) for winner in winners])


def _micros(table: pa.Table, name: str, view: str) -> NDArray[np.int64]:
    column = _flat(table[name])
    if not pa.types.is_timestamp(column.type) and not pa.types.is_null(column.type):
        raise InvalidBatchError(view, name, f"is of type {column.type}, not a timestamp")
    if name == EVENT_TIMESTAMP and column.null_count:
        raise InvalidBatchError(view, name, f"is null in {column.null_count} rows")
    micros = cast_array(column, TIMESTAMP, name).cast(pa.int64())
    values: NDArray[np.int64] = micros.fill_null(NO_TIME).to_numpy()
    return values


def _read(
    layout: Layout,
    rows: Sequence[bytes | None],
    types: Mapping[str, pa.DataType],
    found: NDArray[np.bool_],
) -> PackedRead:
    """Decode rows that all have `layout`."""
    blank = layout.null_row
    known = [name for name in types if name in layout.index]
    decoded = decode(layout, [blank if row is None else row for row in rows], known)
    arrays = dict(zip(known, decoded.arrays, strict=True))
    columns = [
        _cast(arrays[name], t, name) if name in arrays else pa.nulls(len(rows), t)
        for name, t in types.items()
    ]
    return PackedRead(
        pa.Table.from_arrays(columns, schema=_schema(tuple(types.items()))),
        _time_array(decoded.event_us, found),
        _time_array(decoded.created_us, found & (decoded.created_us != NO_TIME)),
        found,
        {name: found for name in types if name not in arrays},
    )


def _read_mixed(
    layouts: Mapping[bytes, Layout],
    rows: Sequence[bytes | None],
    types: Mapping[str, pa.DataType],
    found: NDArray[np.bool_],
) -> PackedRead:
    """Decode rows of several layouts, each by its own, and put them back in order."""
    positions: dict[bytes, list[int]] = {}
    first = next(iter(layouts))
    for i, row in enumerate(rows):
        positions.setdefault(first if row is None else layout_id(row), []).append(i)
    parts = [
        _read(layouts[i], [rows[p] for p in places], types, found[places])
        for i, places in positions.items()
    ]
    placed = np.concatenate([np.array(places) for places in positions.values()])
    back = pa.array(np.argsort(placed))
    absent = {name: np.zeros(len(rows), np.bool_) for part in parts for name in part.absent}
    for part, places in zip(parts, positions.values(), strict=True):
        for name, mask in part.absent.items():
            absent[name][places] = mask
    return PackedRead(
        pa.concat_tables([part.values for part in parts]).combine_chunks().take(back),
        pa.concat_arrays([part.event_times for part in parts]).take(back),
        pa.concat_arrays([part.created_times for part in parts]).take(back),
        found,
        absent,
    )


def _schema(types: tuple[tuple[str, pa.DataType], ...]) -> pa.Schema:
    return pa.schema(types)


def _cast(array: pa.Array, to: pa.DataType, name: str) -> pa.Array:
    return array if array.type == to else cast_array(array, to, name)


def _time_array(micros: NDArray[np.int64], valid: NDArray[np.bool_]) -> pa.Array:
    return pa.array(micros, pa.int64(), mask=None if valid.all() else ~valid).cast(TIMESTAMP)


def _times(times: Sequence[datetime | None]) -> pa.Array:
    """Return Feast's times; naive ones are UTC."""
    aware = [t if t is None or t.tzinfo else t.replace(tzinfo=timezone.utc) for t in times]
    return pa.array(aware, TIMESTAMP)


def _flat(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        if column.num_chunks == 1:
            return column.chunk(0)
        return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    return column


def _key_columns(
    keys: Sequence[EntityKey], types: Mapping[str, pa.DataType], view: str
) -> dict[str, pa.Array]:
    """Turn Feast's keys, a message each, into a column per join key."""
    rows = [dict(zip(key.join_keys, key.entity_values, strict=True)) for key in keys]
    for name in types:
        if any(name not in row for row in rows):
            raise InvalidKeysError(view, f"join key {name!r} is missing")
    try:
        return {name: to_array([row[name] for row in rows], t, name) for name, t in types.items()}
    except UnsupportedTypeError as error:
        raise InvalidKeysError(view, str(error)) from error
