"""Arrow columns to packed rows in a store and back: what `Store` uses, a whole batch at a time.

Above `packing`, `waiting` and `row_store`, below `base`, which adds Feast's own interface, and so
below `sqlite` and `redis`, which keep bytes by key. Writes follow the total order, so repeated,
reordered and concurrent ones end in the same state. The TTL is left to the caller, who may ask as
of another time.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from time import time_ns
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from feast.infra.online_stores.helpers import compute_versioned_name

from steadfeast.featurestore.errors import (
    InvalidBatchError,
    InvalidKeysError,
    LostRowsError,
    UnsupportedTypeError,
)
from steadfeast.featurestore.online.packing import (
    PackedRead,
    Plan,
    StoredLayout,
    check,
    layouts_in,
    pack,
    plan_of,
    times,
    unpack,
)
from steadfeast.featurestore.online.row_store import RowStore
from steadfeast.featurestore.online.waiting import MARKER, Merge, row_at, rows_of, several
from steadfeast.featurestore.rows import Layout, damaged, layout_id
from steadfeast.featurestore.tables import CREATED_TIMESTAMP, EVENT_TIMESTAMP, cast_array, flat

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator, Sequence

    from feast import FeatureView, RepoConfig
    from numpy.typing import NDArray

    from steadfeast.featurestore.online.keys import KeyCodec
    from steadfeast.featurestore.online.progress import Place, Progress

_CHUNK_ROWS = 65_536
_POSITION = ""  # no join key is called so
_SECOND = 1_000_000

log = logging.getLogger(__name__)


class Fetched(NamedTuple):
    """Packed rows as a store has them.

    Attributes:
        rows: One per key; None where there is none.
        layouts: The ids of their layouts.
        doubtful: Whether a row that is not there may have been lost.
    """

    rows: list[bytes | None]
    layouts: set[bytes]
    doubtful: bool = False


class ColumnStore(RowStore):
    """Columns in, columns out; a subclass keeps the bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.layouts: dict[bytes, Layout] = {}  # by their ids; a layout never changes

    def write_batch(
        self,
        config: RepoConfig,
        view: FeatureView,
        batch: pa.RecordBatch | pa.Table,
        *,
        settled: int | None = None,
        place: Place | None = None,
    ) -> int:
        """Write rows; none replaces a newer one, so repeating or reordering writes is safe.

        Args:
            config: Feast's configuration.
            view: The feature view.
            batch: The view's join keys and features, `event_timestamp`, and `created_timestamp`
                if there is one. Other columns are ignored, rows with a null key are skipped.
            settled: Nobody asks as of a time before it, in µs: rows that are due later, by event
                or created time, do not hide the newest that is due by then. Now, when absent.
            place: The generation to write to, see `begin`; what is served, when absent.

        Returns:
            How many entities changed.

        Raises:
            InvalidBatchError: A column is missing, or an event time is null.
            InvalidKeysError: A join key is missing or of the wrong type.
            UnsupportedTypeError: A value does not fit the type that the view declares.
            StoreUnavailableError: The store does not answer.
        """
        table = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
        codec = plan_of(view).codec
        return self._write(config, view, codec, table, settled=settled, place=place)

    def read_batch(
        self,
        config: RepoConfig,
        view: FeatureView,
        keys: pa.Table,
        columns: Sequence[str],
        at: int | None = None,
    ) -> PackedRead:
        """Read `columns` of the view for each row of `keys`.

        Args:
            config: Feast's configuration.
            view: The feature view.
            keys: Its join keys.
            columns: Names of features.
            at: For serving: the newest row that is due by then, in µs, and nothing of a store
                that has lost rows. Absent: the newest that is there, if any.

        Raises:
            NotFoundError: The view has no such feature.
            InvalidKeysError: A join key is missing or of the wrong type.
            CorruptRowError: A row is not what was written, or its layout is not known.
            StoreUnavailableError: The store does not answer, or has lost the view's rows.
        """
        return self._read(config, view, plan_of(view).codec.encode(keys), columns, at)

    def fetch(
        self,
        config: RepoConfig,
        view: FeatureView,
        space: str,
        keys: Sequence[bytes | None],
        at: int | None,
    ) -> Fetched:
        """Return the row of each encoded key, seen to be what was written, in a known layout.

        Args:
            config: Feast's configuration.
            view: The feature view.
            space: `space_of` it.
            keys: What the view's `KeyCodec` gives.
            at: See `read_batch`.

        Raises:
            CorruptRowError: A row is not what was written, or its layout is not known.
            StoreUnavailableError: The store does not answer, or has lost the view's rows.
        """
        place, rows, doubtful = self._places.get(space), None, False
        if place is not None and self.embedded and None not in keys:  # by far the most frequent
            rows = self._get(config, place, keys)  # type: ignore[arg-type]
        if rows is None:
            present = [key for key in keys if key is not None]
            kept, doubtful = self._kept(config, view.name, space, present, at)
            found = iter(kept)
            rows = [None if key is None else next(found) for key in keys]
        ids = layouts_in(rows)
        if ids is not None and MARKER in ids:
            rows = [row and row_at(row, at) for row in rows]
            ids = layouts_in(rows)
        if ids is None or not ids <= self.layouts.keys():
            self._learn(config, view, rows)
            check(view.name, keys, rows, self.layouts)
        return Fetched(rows, ids or set(), doubtful)

    def _kept(
        self, config: RepoConfig, view: str, space: str, keys: Sequence[bytes], at: int | None
    ) -> tuple[list[bytes | None], bool]:
        """Return what is kept for each key, and whether what is missing may have been lost."""
        if at is None:
            return self._read_rows(config, space, keys, view, strict=False), False
        refuse = config.online_store.when_lost == "refuse"
        try:
            rows = self._read_rows(config, space, keys, view, strict=True)
        except LostRowsError:
            if refuse:
                raise
            return [None] * len(keys), True
        doubt = self._doubt(config)
        if doubt and refuse:
            raise LostRowsError(self._describe(config), view, doubt)
        return rows, bool(doubt)

    def _learn(self, config: RepoConfig, view: FeatureView, rows: Sequence[bytes | None]) -> None:
        """Get to know the layouts of `rows`."""
        layout = plan_of(view).layout
        self.layouts.setdefault(layout.id, layout)
        if not {layout_id(row) for row in rows if row is not None} <= self.layouts.keys():
            stored = self._layouts(config, space_of(config, view))
            self.layouts.update({i: item.layout for i, item in stored.items()})

    def loss_risk(self, config: RepoConfig) -> str:
        """Say how the store may drop rows unasked, and what to set; empty when it does not.

        Raises:
            StoreUnavailableError: The store does not answer.
        """
        return self._doubt(config)

    def progress(self, config: RepoConfig, view: FeatureView) -> tuple[Place, Progress] | None:
        """Return which rows of `view` are served, and what they are; None without any."""
        head = self.head(config, space_of(config, view))
        return None if head is None else (head.served, self.progress_at(config, head.served))

    def delete_entities(self, config: RepoConfig, view: FeatureView, keys: pa.Table) -> int:
        """Remove everything kept for the entities of `keys`; return how many there were."""
        encoded = {key for key in plan_of(view).codec.encode(keys) if key is not None}
        return self._delete_rows(config, space_of(config, view), sorted(encoded))

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
        head = self.head(config, space)
        for batch in self._pairs(config, head.served) if head else ():
            there = [key for key, _ in batch if key.startswith(codec.prefix)]
            columns = codec.decode(there)
            places = pa.table(
                {name: columns[name] for name in names} | {_POSITION: np.arange(len(there))}
            )
            found = places.join(wanted, names, join_type="left semi")[_POSITION].to_pylist()
            removed += self._delete_rows(config, space, [there[place] for place in found])
        return removed

    def scan(
        self,
        config: RepoConfig,
        view: FeatureView,
        at: int | None = None,
        waiting: Counter[str] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Yield a row for every key of `view`: keys, the two timestamps, features.

        Rows of join keys that the view no longer has are left out.

        Args:
            config: Feast's configuration.
            view: The feature view.
            at: The newest row of each key that is due by then, in µs, or else the one that is
                due first; the newest of all, when absent.
            waiting: Where to count, under the view's name, the rows that are newer than those.

        Raises:
            CorruptRowError: A row is not what was written.
        """
        codec, names = plan_of(view).codec, list(plan_of(view).types)
        head = self.head(config, space_of(config, view))
        for batch in self._pairs(config, head.served) if head else ():
            pairs = [pair for pair in batch if pair[0].startswith(codec.prefix)]
            if not pairs:
                continue
            keys, rows = [key for key, _ in pairs], [_visible(value, at) for _, value in pairs]
            if waiting is not None:
                waiting[view.name] += sum(
                    rows_of(value).index(row)
                    for (_, value), row in zip(pairs, rows, strict=True)
                    if value != row
                )
            read = self._unpack(config, view, keys, rows, columns=names)
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
        self,
        config: RepoConfig,
        view: FeatureView,
        codec: KeyCodec,
        table: pa.Table,
        *,
        settled: int | None = None,
        place: Place | None = None,
    ) -> int:
        plan, space, changed, refused = plan_of(view), space_of(config, view), 0, 0
        for name in (*plan.types, EVENT_TIMESTAMP):
            if name not in table.column_names:
                raise InvalidBatchError(view.name, name, "is missing")
        for name in (EVENT_TIMESTAMP, CREATED_TIMESTAMP):
            if name in plan.types:
                raise InvalidBatchError(view.name, name, "is a time, so no feature's name")
        now = time_ns() // 1000
        layouts = {plan.layout.id: StoredLayout(0, plan.layout)}
        merge = Merge(now if settled is None else min(settled, now), now, layouts)
        limit = now + round(config.online_store.max_ahead_seconds * _SECOND)
        for start in range(0, table.num_rows, _CHUNK_ROWS):
            chunk = table.slice(start, _CHUNK_ROWS).combine_chunks()
            due_us = np.maximum(*times(plan, chunk))
            refused += int((due_us > limit).sum())
            pairs = _packed(plan, codec, chunk, merge, due_us, limit)
            if pairs:
                changed += self._write_rows(config, space, plan.layout, pairs, merge, place)
        if not table.num_rows and place is None:
            self.open_space(config, space)
        if refused + merge.left_out:
            self._say_left_out(config, space, view.name, refused, merge.left_out)
        return changed

    def _say_left_out(
        self, config: RepoConfig, space: str, view: str, refused: int, many: int
    ) -> None:
        log.warning(
            "feature view %r: %d rows are further ahead of the clock than "
            "online_store.max_ahead_seconds and were left out; so were %d of keys for which "
            "too many rows wait",
            view,
            refused,
            many,
        )
        head = self.open_space(config, space)
        self.count_left_out(config, head.served, refused + many)

    def _read(
        self,
        config: RepoConfig,
        view: FeatureView,
        keys: Sequence[bytes | None],
        columns: Sequence[str],
        at: int | None,
    ) -> PackedRead:
        fetched = self.fetch(config, view, space_of(config, view), keys, at)
        read = unpack(plan_of(view), self.layouts, fetched.rows, columns)
        return replace(read, doubtful=True) if fetched.doubtful else read

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


def _visible(value: bytes, at: int | None) -> bytes:
    """Return the row that stands for a value; a damaged value stands for itself."""
    if not several(value) or damaged([value]):
        return value
    return row_at(value, at) or rows_of(value)[-1]


def _packed(
    plan: Plan,
    codec: KeyCodec,
    table: pa.Table,
    merge: Merge,
    due_us: NDArray[np.int64],
    limit: int,
) -> list[tuple[bytes, bytes]]:
    """Return one value for each key, of the rows that are due by `limit`."""
    settled = due_us <= merge.settled
    merge.plain = bool(settled.all())
    if merge.plain:
        return pack(plan, codec, table)
    values: dict[bytes, list[bytes]] = {}
    for key, row in pack(plan, codec, table.filter(pa.array(settled))):
        values[key] = [row]
    later = table.filter(pa.array(~settled & (due_us <= limit)))
    for key, row in pack(plan, codec, later, every=True):
        values.setdefault(key, []).append(row)
    return [(key, merge.of(rows)) for key, rows in values.items()]


def space_of(config: RepoConfig, view: FeatureView) -> str:
    """Return the name under which the rows of `view` are kept; it holds no colon but one."""
    versioned = config.registry.enable_online_feature_view_versioning
    name = compute_versioned_name(view, versioned)
    return f"{quote(config.project, safe='')}:{quote(name, safe='')}"
