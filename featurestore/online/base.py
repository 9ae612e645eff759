"""What every online store is to Feast: a plain `OnlineStore`, a message per value.

Above `columns`, `protos` and `response`, below `sqlite` and `redis`. `online_write_batch`,
`online_read` and `_read_features_per_fv` are Feast's own, so that `feast materialize`, push
sources and `feast serve` work unchanged; they apply the TTL as of now.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.Value_pb2 import Value

from steadfeast.featurestore.errors import InvalidKeysError, UnsupportedTypeError
from steadfeast.featurestore.online import feast_response
from steadfeast.featurestore.online.batches import ColumnStore, space_of
from steadfeast.featurestore.online.feast_values import to_array, to_values
from steadfeast.featurestore.online.keys import KeyCodec
from steadfeast.featurestore.online.packing import plan_of
from steadfeast.featurestore.rows import NO_TIME, usable
from steadfeast.featurestore.tables import (
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    TIMESTAMP,
    arrow_type,
    flat,
    instant,
    micros,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from feast import Entity, FeatureView, RepoConfig
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey

TEXT = pa.string()

Row = tuple["EntityKey", "dict[str, Value]", datetime, "datetime | None"]


class PackedOnlineStore(ColumnStore, OnlineStore):
    """Base of the stores; a subclass keeps the bytes."""

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
        for i, event_us in enumerate(answer.event_us.tolist()):
            if not answer.known[i]:
                rows.append((None, None))
                continue
            values = {
                name: answer.values[name][i]
                for name in names
                if answer.statuses[name][i] != feast_response.NOT_FOUND
            }
            rows.append((instant(event_us), values))
        return rows

    def _answer(
        self,
        config: RepoConfig,
        view: FeatureView,
        keys: Sequence[bytes | None],
        names: Sequence[str],
    ) -> feast_response.ViewAnswer:
        """Read, apply the TTL as of now, and turn into messages with their statuses."""
        ttl = getattr(view, "ttl", None) or timedelta(0)
        now_us = micros(datetime.now(UTC))
        read = self._read(config, view, keys, names, now_us)
        event_us = read.event_times.cast(pa.int64()).fill_null(0).to_numpy()
        created_us = read.created_times.cast(pa.int64()).fill_null(NO_TIME).to_numpy()
        known = read.found & (event_us <= now_us) & (created_us <= now_us)
        fresh = known & usable(event_us, ttl // timedelta(microseconds=1), now_us)
        kinds = {feature.name: feature.dtype.to_value_type() for feature in view.features}
        values, statuses = {}, {}
        for name in names:
            array = flat(read.values[name])
            absent = read.absent.get(name)
            statuses[name] = feast_response.statuses(
                known if absent is None else known & ~absent,
                fresh,
                array.is_valid().to_numpy(zero_copy_only=False),
                doubtful=read.doubtful,
            )
            messages = to_values(array, kinds[name])
            values[name] = [
                message if usable_now else Value()
                for message, usable_now in zip(messages, fresh, strict=True)
            ]
        return feast_response.ViewAnswer(event_us, known, values, statuses)

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
            values = feast_response.key_values(view, join_key_values, entity_name_to_join_key_map)
            plan = plan_of(view)
            keys = pa.table(
                {
                    name: to_array(column, plan.keys.get(name, pa.string()), name)
                    for name, column in values.items()
                }
            )
            answer = self._answer(config, view, plan.codec.encode(keys), requested)
            feast_response.extend(
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
            self.open_space(config, space_of(config, view))
            self._apply(config, space_of(config, view), plan_of(view).layout)
        self._forget(config, [space_of(config, view) for view in tables_to_delete])

    def teardown(
        self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]
    ) -> None:
        """Remove everything kept for `tables`."""
        del entities
        self._forget(config, [space_of(config, view) for view in tables])

    def _is_versioned_read_supported(self) -> bool:
        return True  # `space_of` has the version


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
