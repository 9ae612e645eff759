"""The embedded online store: one SQLite file, one writer at a time, any number of readers.

Above `base`. The file is in WAL mode, so readers, in this process or others, never wait for the
writer and see whole batches only. A view's rows are one table `rows:<project>:<view>` of keys
and packed rows, with `@<generation>` behind it once the view was filled anew. A connection is used
by one thread at a time and reused, as long as its file is the one under that name; a forked
process opens its own.
"""

from __future__ import annotations

import os
import sqlite3
import weakref
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from feast.repo_config import FeastConfigBaseModel
from pydantic import (  # noqa: TC002 - pydantic reads the annotations
    NonNegativeFloat,
    PositiveFloat,
)

from steadfeast.featurestore.online.base import PackedOnlineStore
from steadfeast.featurestore.online.packing import Layouts, StoredLayout, supersedes
from steadfeast.featurestore.online.row_store import HEAD
from steadfeast.featurestore.online.sqlite_file import (
    LAYOUTS,
    VALUES,
    Borrowed,
    File,
    close_all,
    keep_value,
    read_value,
)
from steadfeast.featurestore.online.waiting import MARKER
from steadfeast.featurestore.rows import HEADER_BYTES, ORDER_BYTES, Layout, biased

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from feast import RepoConfig

    from steadfeast.featurestore.online.progress import Head, Place
    from steadfeast.featurestore.online.waiting import Merge

_READ_KEYS = 512  # keys per SELECT
_SCAN_ROWS = 8192
_DROPPED = "dropped"
"""Names the value that says of a view that it once was here and went."""


class SQLiteOnlineStoreConfig(FeastConfigBaseModel):
    """Section `online_store` of `feature_store.yaml`.

    Attributes:
        type: The plugin.
        path: The file; relative to the repository's folder.
        timeout_seconds: How long a write waits for another process's write.
        max_ahead_seconds: Rows that are due further ahead of the writer's clock are left out;
            those within wait until they are due.
        when_lost: What to answer for a view whose rows are gone: `refuse`, or `mark`, which
            gives nulls of status INVALID.
    """

    type: Literal["steadfeast.SQLiteOnlineStore"] = "steadfeast.SQLiteOnlineStore"
    path: str = "data/online.db"
    timeout_seconds: PositiveFloat = 30.0
    max_ahead_seconds: NonNegativeFloat = 86_400.0
    when_lost: Literal["refuse", "mark"] = "refuse"


class SQLiteOnlineStore(PackedOnlineStore):
    """Packed rows in one SQLite file."""

    embedded = True

    def __init__(self) -> None:
        super().__init__()
        self._files: dict[tuple[str, int], File] = {}
        self._paths: dict[int, tuple[object, str]] = {}
        # Feast makes plugins and drops them: `feast apply` has one of its own.
        self._finalizer = weakref.finalize(self, close_all, self._files)

    def release(self) -> None:
        """Close the connections that are not in use."""
        close_all(self._files)

    def teardown(self, config: RepoConfig, tables: Sequence[object], entities: object) -> None:
        """Remove everything kept for `tables`, and close the file."""
        super().teardown(config, tables, entities)  # type: ignore[arg-type]
        self.release()

    def _get(
        self, config: RepoConfig, place: Place, keys: Sequence[bytes]
    ) -> list[bytes | None] | None:
        borrowed = self._connection(config)
        with borrowed as connection:
            if not borrowed.serves(place):
                return None
            try:
                if len(keys) == 1:
                    row = connection.execute(_select_one(place.name), keys).fetchone()
                    return [None if row is None else row[0]]
                found: list[bytes | None] = []
                for start in range(0, len(keys), _READ_KEYS):
                    some = list(keys[start : start + _READ_KEYS])
                    size = _round(len(some))
                    asked = some + some[-1:] * (size - len(some))
                    rows = dict(connection.execute(_select(place.name, size), asked))
                    found += map(rows.get, range(len(some)))
            except sqlite3.OperationalError as error:
                if not _is_missing(error):
                    raise
                return None
        return found

    def _put(
        self,
        config: RepoConfig,
        place: Place,
        layout: Layout,
        pairs: Sequence[tuple[bytes, bytes]],
        merge: Merge,
    ) -> int | None:
        with self._transaction(config) as connection:
            if not _exists(connection, place):
                return None
            layouts = _read_layouts(connection, place.space)
            if layout.id not in layouts:
                _insert_layout(connection, place.space, layout, layouts)
                layouts = _read_layouts(connection, place.space)
            merge.layouts = layouts
            connection.create_function(
                "supersedes", 2, lambda new, old: supersedes(new, old, layouts)
            )
            connection.create_function("merged", 2, merge)
            before = connection.total_changes
            # In the order of the B-tree: a third of the time.
            if merge.plain:
                settled = biased(merge.settled)
                triples = ((key, row, settled) for key, row in sorted(pairs))
                connection.executemany(_upsert(place.name), triples)
            else:
                connection.executemany(_merge(place.name), sorted(pairs))
            return connection.total_changes - before

    def _delete(self, config: RepoConfig, place: Place, keys: Sequence[bytes]) -> int:
        with self._transaction(config) as connection:
            if not _exists(connection, place):
                return 0
            before = connection.total_changes
            query = f"DELETE FROM {_table(place.name)} WHERE key = ?"
            connection.executemany(query, [(key,) for key in keys])
            return connection.total_changes - before

    def _pairs(self, config: RepoConfig, place: Place) -> Iterator[list[tuple[bytes, bytes]]]:
        with self._connection(config) as connection:
            try:
                query = f"SELECT key, row FROM {_table(place.name)} ORDER BY key"
                cursor = connection.execute(query)
            except sqlite3.OperationalError as error:
                if _is_missing(error):
                    return
                raise
            try:
                while batch := cursor.fetchmany(_SCAN_ROWS):
                    yield batch
            finally:
                cursor.close()  # ends the read, so that the file can be checkpointed

    def _layouts(self, config: RepoConfig, space: str) -> Layouts:
        with self._connection(config) as connection:
            return _read_layouts(connection, space)

    def _apply(self, config: RepoConfig, space: str, layout: Layout) -> None:
        with self._transaction(config) as connection:
            layouts = _read_layouts(connection, space)
            newest = max((item.number for item in layouts.values()), default=0)
            known = layouts.get(layout.id)
            if known is None or known.number < newest:
                _insert_layout(connection, space, layout, layouts)

    def _serve(self, config: RepoConfig, space: str, old: Head | None, new: Head) -> bool:
        """Do it all or nothing: who knows another generation finds no table of it afterwards."""
        with self._transaction(config) as connection:
            kept = None if old is None else old.to_bytes()
            if read_value(connection, space, HEAD) != kept:
                return False
            keep_value(connection, space, HEAD, new.to_bytes())
            for place in new.places:
                connection.execute(
                    f"CREATE TABLE IF NOT EXISTS {_table(place.name)}"
                    " (key BLOB PRIMARY KEY, row BLOB NOT NULL) WITHOUT ROWID"
                )
            _remove(connection, space, new.places)
            return True

    def _is_new(self, config: RepoConfig, space: str) -> bool:
        return self._value(config, space, _DROPPED) is None

    def _drop(self, config: RepoConfig, spaces: Iterable[str]) -> None:
        with self._transaction(config) as connection:
            for space in spaces:
                _remove(connection, space, ())
                connection.execute(f"DELETE FROM {LAYOUTS} WHERE space = ?", (space,))
                connection.execute(f"DELETE FROM {VALUES} WHERE space = ?", (space,))
                # Connections know the first generation by the name of its table.
                keep_value(connection, space, _DROPPED, b"1")

    def _value(self, config: RepoConfig, space: str, name: str) -> bytes | None:
        with self._connection(config) as connection:
            return read_value(connection, space, name)

    def _swap(
        self, config: RepoConfig, space: str, name: str, old: bytes | None, new: bytes
    ) -> bool:
        with self._transaction(config) as connection:
            if read_value(connection, space, name) != old:
                return False
            keep_value(connection, space, name, new)
            return True

    def _describe(self, config: RepoConfig) -> str:
        return f"online store {_path(config)}"

    def _connection(self, config: RepoConfig) -> Borrowed:
        options = config.online_store
        known = self._paths.get(id(options))
        if known is None:  # the options are kept, so that no other object gets their id
            known = self._paths[id(options)] = (options, _path(config))
        key = known[1], os.getpid()
        file = self._files.get(key)
        if file is None:
            file = self._files.setdefault(key, File(known[1]))
        return Borrowed(file, options.timeout_seconds)

    @contextmanager
    def _transaction(self, config: RepoConfig) -> Iterator[sqlite3.Connection]:
        borrowed = self._connection(config)
        borrowed.look()
        with borrowed as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:  # SQLite itself rolls back after some errors
                    connection.execute("ROLLBACK")


def _path(config: RepoConfig) -> str:
    path = Path(config.online_store.path)
    if not path.is_absolute() and config.repo_path is not None:
        path = Path(config.repo_path) / path
    return str(path)


def _table(name: str) -> str:
    return _quoted(f"rows:{name}")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _round(size: int) -> int:
    """Return a number from `size` to an eighth above it: few texts, so SQLite keeps them."""
    step = 1 << max((size - 1).bit_length() - 4, 0)
    return -(-size // step) * step


@lru_cache(maxsize=256)
def _select_one(name: str) -> str:
    return f"SELECT row FROM {_table(name)} WHERE key = ?"


@lru_cache(maxsize=1024)
def _select(name: str, size: int) -> str:
    """Return a query of `(place, row)` of the keys that are there.

    A join in the order of the keys given, for IN would sort them first and give each back.
    """
    places = ",".join(f"({place},?)" for place in range(size))
    return (
        f"WITH asked (place, key) AS (VALUES {places}) SELECT place, row FROM asked"
        f" CROSS JOIN {_table(name)} AS stored ON stored.key = asked.key"
    )


def _exists(connection: sqlite3.Connection, place: Place) -> bool:
    query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    return connection.execute(query, (f"rows:{place.name}",)).fetchone() is not None


def _remove(connection: sqlite3.Connection, space: str, but: Sequence[Place]) -> None:
    """Remove rows and progress of the generations of a space but some."""
    query = "SELECT name FROM sqlite_master WHERE type = 'table' AND substr(name, 1, ?) = ?"
    start = f"rows:{space}"
    names = [name for (name,) in connection.execute(query, (len(start), start))]
    stay = {f"rows:{place.name}" for place in but}
    for name in names:
        if name not in stay and name.removeprefix(start)[:1] in {"", "@"}:
            connection.execute(f"DROP TABLE {_quoted(name)}")
    stay = {HEAD, _DROPPED, *(f"progress:{place.generation}" for place in but)}
    query = f"SELECT name FROM {VALUES} WHERE space = ?"
    for (name,) in connection.execute(query, (space,)).fetchall():
        if name not in stay:
            query = f"DELETE FROM {VALUES} WHERE space = ? AND name = ?"
            connection.execute(query, (space, name))


@lru_cache(maxsize=256)
def _upsert(name: str) -> str:
    """Return how single rows that are due at ?3 are merged: seldom by Python."""
    mine = f"substr(excluded.row, 1, {ORDER_BYTES})"
    theirs = f"coalesce(substr(stored.row, 1, {ORDER_BYTES}), x'')"  # of an empty blob it is NULL
    marker = f"substr(stored.row, {ORDER_BYTES + 1}, {HEADER_BYTES - ORDER_BYTES})"
    later = " OR ".join(f"substr(stored.row, {start}, 8) > ?3" for start in (1, 9))
    other = f"coalesce({marker} = x'{MARKER.hex()}' OR {later}, false)"
    return f"""INSERT INTO {_table(name)} AS stored (key, row) VALUES (?1, ?2)
        ON CONFLICT (key) DO UPDATE SET
            row = CASE WHEN {other} THEN merged(excluded.row, stored.row) ELSE excluded.row END
        WHERE CASE WHEN {other} THEN merged(excluded.row, stored.row) <> stored.row
            WHEN {mine} > {theirs} THEN true
            WHEN {mine} = {theirs} AND excluded.row <> stored.row
            THEN supersedes(excluded.row, stored.row) END"""


@lru_cache(maxsize=256)
def _merge(name: str) -> str:
    return f"""INSERT INTO {_table(name)} AS stored (key, row) VALUES (?, ?)
        ON CONFLICT (key) DO UPDATE SET row = merged(excluded.row, stored.row)
        WHERE merged(excluded.row, stored.row) <> stored.row"""


def _read_layouts(connection: sqlite3.Connection, space: str) -> Layouts:
    query = f"SELECT id, generation, layout FROM {LAYOUTS} WHERE space = ?"
    return {
        bytes(row[0]): StoredLayout(row[1], Layout.deserialize(row[2]))
        for row in connection.execute(query, (space,))
    }


def _insert_layout(
    connection: sqlite3.Connection, space: str, layout: Layout, layouts: Layouts
) -> None:
    newest = max((item.number for item in layouts.values()), default=0)
    connection.execute(
        f"INSERT OR REPLACE INTO {LAYOUTS} VALUES (?, ?, ?, ?)",
        (space, layout.id, newest + 1, layout.serialize()),
    )


def _is_missing(error: sqlite3.OperationalError) -> bool:
    return str(error).startswith("no such table")
