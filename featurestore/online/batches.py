"""Arrow columns to packed rows in a store and back: what `Store` uses, a whole batch at a time.

Above `packing`, below `base`, which adds Feast's own interface, and so below `sqlite` and `redis`,
which keep bytes by key and nothing more. Writes follow the total order of `packing.supersedes`, so
repeated, reordered and concurrent ones end in the same state. Reads give what is stored, whatever
its age: the TTL is left to the caller, who may ask as of another time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from feast.infra.online_stores.helpers import compute_versioned_name

from steadfeast.featurestore.errors import InvalidBatchError, InvalidKeysError, UnsupportedTypeError
from steadfeast.featurestore.online.packing import (
    Layouts,
    PackedRead,
    check,
    layouts_in,
    pack,
    plan_of,
    unpack,
)
from steadfeast.featurestore.rows.layout import Layout, layout_id
from steadfeast.featurestore.tables.casting import cast_array, flat
from steadfeast.featurestore.tables.columns import CREATED_TIMESTAMP, EVENT_TIMESTAMP

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from feast import FeatureView, RepoConfig

    from steadfeast.featurestore.online.keys import KeyCodec

_CHUNK_ROWS = 65_536
_PLACE = ""  # no join key is called so


class Fetched(NamedTuple):
    """Packed rows as a store has them.

    Attributes:
        rows: One per key; None where there is none.
        layouts: The ids of their layouts.
    """

    rows: list[bytes | None]
    layouts: set[bytes]


class ColumnStore(ABC):
    """Columns in, columns out; a subclass keeps the bytes.

    `space` in the methods below names one view of one project.
    """

    embedded = False
    """Whether a read waits for nothing but this machine's disk."""

    def __init__(self) -> None:
        self.layouts: dict[bytes, Layout] = {}  # by their ids; a layout never changes

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


def space_of(config: RepoConfig, view: FeatureView) -> str:
    """Return the name under which the rows of `view` are kept; it holds no colon but one."""
    versioned = config.registry.enable_online_feature_view_versioning
    name = compute_versioned_name(view, versioned)
    return f"{quote(config.project, safe='')}:{quote(name, safe='')}"
