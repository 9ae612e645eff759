"""What every online store does: pack, order, read back, and answer as Feast expects.

Above `keys` and `protos`, below `sqlite` and `redis`, which keep bytes by key and nothing more.
Two ways in. `write_batch` and `read_batch` move Arrow columns and are what `Store` uses;
`online_write_batch`, `online_read` and `_read_features_per_fv` are Feast's own, a message per
value, so that `feast materialize`, push sources and `feast serve` work unchanged.

Writes follow the total order of `packing.supersedes`, so repeated, reordered and concurrent ones
end in the same state. Reads by Feast's interface apply the TTL as of now; `read_batch` leaves it
to its caller, who may ask as of another time.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from feast.infra.online_stores.helpers import compute_versioned_name
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.Value_pb2 import Value

from featurestore.errors import InvalidBatchError, InvalidKeysError, UnsupportedTypeError
from featurestore.online import response
from featurestore.online.keys import KeyCodec
from featurestore.online.packing import (
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    Layouts,
    PackedRead,
    check,
    layouts_in,
    pack,
    plan_of,
    unpack,
)
from featurestore.online.protos import to_array, to_values
from featurestore.rows import TIMESTAMP, Layout, cast_array, flat, layout_id, usable
from featurestore.service import arrow_type

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from feast import Entity, FeatureView, RepoConfig
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey

TEXT = pa.string()

_CHUNK_ROWS = 65_536
_PLACE = ""  # no join key is called so
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Row = tuple["EntityKey", "dict[str, Value]", datetime, "datetime | None"]


class Fetched(NamedTuple):
    """Packed rows as a store has them.

    Attributes:
        rows: One per key; None where there is none.
        layouts: The ids of their layouts.
    """

    rows: list[bytes | None]
    layouts: set[bytes]


class PackedOnlineStore(OnlineStore):
    """Base of the stores; a subclass keeps the bytes.

    `space` in the methods below names one view of one project.
    """

    embedded = False
    """Whether a read waits for nothing but this machine's disk."""

    def __init__(self) -> None:
        self.layouts: dict[bytes, Layout] = {}  # by their ids; a layout never changes

    # -- what a subclass does --------------------------------------------------------------

    @abstractmethod
    def release(self) -> None:
        """Close the connections that are not in use."""

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
        table = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
        return self._write(config, view, plan_of(view).codec, table)

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
        return self._read(config, view, plan_of(view).codec.encode(keys), columns)

    def fetch(
        self, config: RepoConfig, view: FeatureView, space: str, keys: Sequence[bytes | None]
    ) -> Fetched:
        """Return the row of each encoded key, seen to be what was written, in a known layout.

        Args:
            config: Feast's configuration.
            view: The feature view.
            space: `space_of` it.
            keys: What the view's `KeyCodec` gives.

        Raises:
            CorruptRowError: A row is not what was written, or its layout is not known.
            StoreUnavailableError: The store does not answer.
        """
        rows: list[bytes | None]
        if None in keys:
            present = [key for key in keys if key is not None]
            found = iter(self._get(config, space, present))
            rows = [None if key is None else next(found) for key in keys]
        else:
            rows = self._get(config, space, keys)  # type: ignore[arg-type]
        ids = layouts_in(rows)
        if ids is None or not ids <= self.layouts.keys():
            self._learn(config, view, rows)
            check(view.name, keys, rows, self.layouts)
        return Fetched(rows, ids or set())

    def _learn(self, config: RepoConfig, view: FeatureView, rows: Sequence[bytes | None]) -> None:
        """Get to know the layouts of `rows`."""
        layout = plan_of(view).layout
        self.layouts.setdefault(layout.id, layout)
        if not {layout_id(row) for row in rows if row is not None} <= self.layouts.keys():
            stored = self._layouts(config, space_of(config, view))
            self.layouts.update({i: item.layout for i, item in stored.items()})

    def delete_entities(self, config: RepoConfig, view: FeatureView, keys: pa.Table) -> int:
        """Remove everything kept for the entities of `keys`; return how many there were."""
        encoded = {key for key in plan_of(view).codec.encode(keys) if key is not None}
        return self._delete(config, space_of(config, view), sorted(encoded))

    def erase(self, config: RepoConfig, view: FeatureView, keys: pa.Table) -> int:
        """Remove the rows whose join keys have the values of a row of `keys`; return how many.

        `keys` may lack some of the view's join keys: then every row counts that has the others.

        Raises:
            InvalidKeysError: A value does not fit the key's type.
        """
        codec = plan_of(view).codec
        names = [name for name in codec.types if name in keys.column_names]
        try:
            wanted = pa.table(
                {name: cast_array(flat(keys[name]), codec.types[name], name) for name in names}
            )
        except UnsupportedTypeError as error:
            raise InvalidKeysError(view.name, str(error)) from error
        if len(names) == len(codec.types):
            return self.delete_entities(config, view, wanted)
        space, removed = space_of(config, view), 0
        for batch in self._pairs(config, space):
            there = [key for key, _ in batch if key.startswith(codec.prefix)]
            columns = codec.decode(there)
            places = pa.table(
                {name: columns[name] for name in names} | {_PLACE: np.arange(len(there))}
            )
            found = places.join(wanted, names, join_type="left semi")[_PLACE].to_pylist()
            removed += self._delete(config, space, [there[place] for place in found])
        return removed

    def scan(self, config: RepoConfig, view: FeatureView) -> Iterator[pa.RecordBatch]:
        """Yield all that is stored for `view`: keys, the two timestamps, features.

        Rows of join keys that the view no longer has are left out.

        Raises:
            CorruptRowError: A row is not what was written.
        """
        codec, names = plan_of(view).codec, list(plan_of(view).types)
        for batch in self._pairs(config, space_of(config, view)):
            pairs = [pair for pair in batch if pair[0].startswith(codec.prefix)]
            if not pairs:
                continue
            keys = [key for key, _ in pairs]
            read = self._unpack(config, view, keys, [row for _, row in pairs], columns=names)
            columns: dict[str, pa.Array] = {
                **codec.decode(keys),
                EVENT_TIMESTAMP: read.event_times,
                CREATED_TIMESTAMP: read.created_times,
            }
            columns |= {name: read.values[name].combine_chunks() for name in names}
            yield pa.RecordBatch.from_arrays(
                [flat(column) for column in columns.values()], names=list(columns)
            )

    def _write(
        self, config: RepoConfig, view: FeatureView, codec: KeyCodec, table: pa.Table
    ) -> int:
        plan, changed = plan_of(view), 0
        for name in (*plan.types, EVENT_TIMESTAMP):
            if name not in table.column_names:
                raise InvalidBatchError(view.name, name, "is missing")
        for name in (EVENT_TIMESTAMP, CREATED_TIMESTAMP):
            if name in plan.types:
                raise InvalidBatchError(view.name, name, "is a time, so no feature's name")
        for start in range(0, table.num_rows, _CHUNK_ROWS):
            chunk = table.slice(start, _CHUNK_ROWS).combine_chunks()
            pairs = pack(plan, codec, chunk)
            if pairs:
                changed += self._put(config, space_of(config, view), plan.layout, pairs)
        return changed

    def _read(
        self,
        config: RepoConfig,
        view: FeatureView,
        keys: Sequence[bytes | None],
        columns: Sequence[str],
    ) -> PackedRead:
        fetched = self.fetch(config, view, space_of(config, view), keys)
        return unpack(plan_of(view), self.layouts, fetched.rows, columns)

    def _unpack(
        self,
        config: RepoConfig,
        view: FeatureView,
        keys: Sequence[bytes | None],
        rows: Sequence[bytes | None],
        *,
        columns: Sequence[str],
    ) -> PackedRead:
        self._learn(config, view, rows)
        check(view.name, keys, rows, self.layouts)
        return unpack(plan_of(view), self.layouts, rows, columns)

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
        codec = _codec_of(table, data[0][0])
        columns = dict(_key_columns([row[0] for row in data], codec.types, table.name))
        for feature in table.features:
            nothing = Value()
            values = [row[1].get(feature.name, nothing) for row in data]
            columns[feature.name] = to_array(values, arrow_type(feature), feature.name)
        columns[EVENT_TIMESTAMP] = _times([row[2] for row in data])
        columns[CREATED_TIMESTAMP] = _times([row[3] for row in data])
        self._write(config, table, codec, pa.table(columns))
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
        codec = _codec_of(table, entity_keys[0])
        keys = pa.table(_key_columns(entity_keys, codec.types, table.name))
        answer = self._answer(config, table, codec.encode(keys), names)
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
        self,
        config: RepoConfig,
        view: FeatureView,
        keys: Sequence[bytes | None],
        names: Sequence[str],
    ) -> response.Answer:
        """Read, apply the TTL as of now, and turn into messages with their statuses."""
        read = self._read(config, view, keys, names)
        ttl = getattr(view, "ttl", None) or timedelta(0)
        now_us = (datetime.now(UTC) - _EPOCH) // timedelta(microseconds=1)
        event_us = read.event_times.cast(pa.int64()).fill_null(0).to_numpy()
        known = read.found & usable(event_us, 0, now_us)
        fresh = known & usable(event_us, ttl // timedelta(microseconds=1), now_us)
        kinds = {feature.name: feature.dtype.to_value_type() for feature in view.features}
        values, statuses = {}, {}
        for name in names:
            array = flat(read.values[name])
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
            plan = plan_of(view)
            keys = pa.table(
                {
                    name: to_array(column, plan.keys.get(name, pa.string()), name)
                    for name, column in values.items()
                }
            )
            answer = self._answer(config, view, plan.codec.encode(keys), requested)
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
            self._apply(config, space_of(config, view), plan_of(view).layout)
        self._drop(config, [space_of(config, view) for view in tables_to_delete])

    def teardown(
        self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]
    ) -> None:
        """Remove everything kept for `tables`."""
        del entities
        self._drop(config, [space_of(config, view) for view in tables])

    def _is_versioned_read_supported(self) -> bool:
        return True  # `space_of` has the version


def space_of(config: RepoConfig, view: FeatureView) -> str:
    """Return the name under which the rows of `view` are kept; it holds no colon but one."""
    versioned = config.registry.enable_online_feature_view_versioning
    name = compute_versioned_name(view, versioned)
    return f"{quote(config.project, safe='')}:{quote(name, safe='')}"


def _codec_of(view: FeatureView, key: EntityKey) -> KeyCodec:
    """Return the codec of Feast's keys; Feast gives views of its own making no join keys."""
    plan = plan_of(view)
    return plan.codec if plan.keys else KeyCodec(view.name, dict.fromkeys(key.join_keys, TEXT))


def _times(times: Sequence[datetime | None]) -> pa.Array:
    """Return Feast's times; naive ones are UTC."""
    aware = [t if t is None or t.tzinfo else t.replace(tzinfo=UTC) for t in times]
    return pa.array(aware, TIMESTAMP)


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
