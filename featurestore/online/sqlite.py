"""The embedded online store: one SQLite file, one writer at a time, any number of readers.

Above `base`. The file is in WAL mode, so readers, in this process or others, never wait for the
writer and see whole batches only. A view's rows are one table `rows:<project>:<view>` of keys
and packed rows. A connection is used by one thread at a time and reused; a forked process opens
its own.
"""

from __future__ import annotations

import os
import sqlite3
import weakref
from collections import defaultdict, deque
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Literal

from feast.repo_config import FeastConfigBaseModel
from pydantic import PositiveFloat  # noqa: TC002 - pydantic reads the annotations

from steadfeast.featurestore.errors import StoreUnavailableError
from steadfeast.featurestore.online.base import PackedOnlineStore
from steadfeast.featurestore.online.packing import Layouts, StoredLayout, supersedes
from steadfeast.featurestore.rows.layout import ORDER_BYTES, Layout

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from feast import RepoConfig

_LAYOUTS = "steadfeast_layouts"
_READ_KEYS = 512  # keys per SELECT
_STATEMENTS = 256  # kept prepared by each connection: a view has up to 55, see `_round`
_SCAN_ROWS = 8192
_PAGE = 8192  # bytes: twenty rows of 50 numbers, so that the tree is shallow
_CACHE_KIB = 16 * 1024  # of each connection; SQLite's own 2 MiB hold few of the inner pages


class SQLiteOnlineStoreConfig(FeastConfigBaseModel):
    """Section `online_store` of `feature_store.yaml`.

    Attributes:
        type: The plugin.
        path: The file; relative to the repository's folder.
        timeout_seconds: How long a write waits for another process's write.
    """

    type: Literal["steadfeast.SQLiteOnlineStore"] = "steadfeast.SQLiteOnlineStore"
    path: str = "data/online.db"
    timeout_seconds: PositiveFloat = 30.0


class SQLiteOnlineStore(PackedOnlineStore):
    """Packed rows in one SQLite file."""

    embedded = True

    def __init__(self) -> None:
        super().__init__()
        self._idle: defaultdict[tuple[str, int], deque[sqlite3.Connection]] = defaultdict(deque)
        self._paths: dict[int, tuple[object, str]] = {}
        # Feast makes plugins and drops them: `feast apply` has one of its own.
        self._finalizer = weakref.finalize(self, _close, self._idle)

    def release(self) -> None:
        """Close the connections that are not in use."""
        _close(self._idle)

    def teardown(self, config: RepoConfig, tables: Sequence[object], entities: object) -> None:
        """Remove everything kept for `tables`, and close the file."""
        super().teardown(config, tables, entities)  # type: ignore[arg-type]
        self.release()

    def _get(self, config: RepoConfig, space: str, keys: Sequence[bytes]) -> list[bytes | None]:
        with self._connection(config) as connection:
            try:
                if len(keys) == 1:
                    row = connection.execute(_select_one(space), keys).fetchone()
                    return [None if row is None else row[0]]
                found: list[bytes | None] = []
                for start in range(0, len(keys), _READ_KEYS):
                    some = list(keys[start : start + _READ_KEYS])
                    size = _round(len(some))
                    asked = some + some[-1:] * (size - len(some))
                    rows = dict(connection.execute(_select(space, size), asked))
                    found += map(rows.get, range(len(some)))
            except sqlite3.OperationalError as error:
                if not _is_missing(error):
                    raise
                return [None] * len(keys)
        return found

    def _put(
        self,
        config: RepoConfig,
        space: str,
        layout: Layout,
        pairs: Sequence[tuple[bytes, bytes]],
    ) -> int:
        with self._transaction(config) as connection:
            _create(connection, space)
            layouts = _read_layouts(connection, space)
            if layout.id not in layouts:
                _insert_layout(connection, space, layout, layouts)
                layouts = _read_layouts(connection, space)
            connection.create_function(
                "supersedes", 2, lambda new, old: supersedes(new, old, layouts)
            )
            before = connection.total_changes
            # In the order of the B-tree: a third of the time.
            connection.executemany(_upsert(space), sorted(pairs))
            return connection.total_changes - before

    def _delete(self, config: RepoConfig, space: str, keys: Sequence[bytes]) -> int:
        with self._transaction(config) as connection:
            _create(connection, space)
            before = connection.total_changes
            query = f"DELETE FROM {_table(space)} WHERE key = ?"
            connection.executemany(query, [(key,) for key in keys])
            return connection.total_changes - before

    def _pairs(self, config: RepoConfig, space: str) -> Iterator[list[tuple[bytes, bytes]]]:
        with self._connection(config) as connection:
            try:
                cursor = connection.execute(f"SELECT key, row FROM {_table(space)} ORDER BY key")
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
            _create(connection, space)
            layouts = _read_layouts(connection, space)
            newest = max((item.generation for item in layouts.values()), default=0)
            known = layouts.get(layout.id)
            if known is None or known.generation < newest:
                _insert_layout(connection, space, layout, layouts)

    def _drop(self, config: RepoConfig, spaces: Iterable[str]) -> None:
        with self._transaction(config) as connection:
            for space in spaces:
                connection.execute(f"DROP TABLE IF EXISTS {_table(space)}")
                connection.execute(f"DELETE FROM {_LAYOUTS} WHERE space = ?", (space,))

    def _connection(self, config: RepoConfig) -> _Borrowed:
        options = config.online_store
        known = self._paths.get(id(options))
        if known is None:  # the options are kept, so that no other object gets their id
            known = self._paths[id(options)] = (options, _path(config))
        path = known[1]
        return _Borrowed(self._idle[path, os.getpid()], path, options.timeout_seconds)

    @contextmanager
    def _transaction(self, config: RepoConfig) -> Iterator[sqlite3.Connection]:
        with self._connection(config) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:  # SQLite itself rolls back after some errors
                    connection.execute("ROLLBACK")


def _close(idle: Mapping[tuple[str, int], deque[sqlite3.Connection]]) -> None:
    for (_, process), connections in idle.items():
        while connections:
            connection = connections.pop()
            if process == os.getpid():  # a forked process must not touch its parent's
                connection.close()


class _Borrowed:
    """A connection for the length of a `with`; an error of SQLite's is one of ours outside it."""

    __slots__ = ("_connection", "_idle", "_path", "_timeout")

    def __init__(self, idle: deque[sqlite3.Connection], path: str, timeout_seconds: float) -> None:
        self._idle, self._path, self._timeout = idle, path, timeout_seconds

    def __enter__(self) -> sqlite3.Connection:
        try:
            self._connection = self._idle.pop()
        except IndexError:
            try:
                self._connection = _connect(self._path, self._timeout)
            except sqlite3.Error as error:
                raise self._unavailable(error) from error
        return self._connection

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._idle.append(self._connection)
        if isinstance(error, sqlite3.Error):
            raise self._unavailable(error) from error

    def _unavailable(self, error: sqlite3.Error) -> StoreUnavailableError:
        return StoreUnavailableError(f"online store {self._path}", str(error))


def _path(config: RepoConfig) -> str:
    path = Path(config.online_store.path)
    if not path.is_absolute() and config.repo_path is not None:
        path = Path(config.repo_path) / path
    return str(path)


def _connect(path: str, timeout_seconds: float) -> sqlite3.Connection:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(
        path,
        timeout=timeout_seconds,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=_STATEMENTS,
    )
    try:
        connection.execute(f"PRAGMA page_size = {_PAGE}")  # of a new file
        _use_wal(connection, timeout_seconds)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        connection.execute(
            f"CREATE TABLE IF NOT EXISTS {_LAYOUTS} (space TEXT, id BLOB, generation INTEGER,"
            " layout BLOB, PRIMARY KEY (space, id)) WITHOUT ROWID"
        )
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _use_wal(connection: sqlite3.Connection, timeout_seconds: float) -> None:
    """Switch a new file to WAL mode; SQLite does not wait for others who do, so this does."""
    deadline = monotonic() + timeout_seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or monotonic() > deadline:
                raise
            sleep(0.01)
        else:
            return


def _table(space: str) -> str:
    return '"rows:' + space.replace('"', '""') + '"'


def _round(size: int) -> int:
    """Return a number from `size` to an eighth above it: few texts, so SQLite keeps them."""
    step = 1 << max((size - 1).bit_length() - 4, 0)
    return -(-size // step) * step


@lru_cache(maxsize=256)
def _select_one(space: str) -> str:
    return f"SELECT row FROM {_table(space)} WHERE key = ?"


@lru_cache(maxsize=1024)
def _select(space: str, size: int) -> str:
    """Return a query of `(place, row)` of the keys that are there.

    A join in the order of the keys given, for IN would sort them first and give each back.
    """
    places = ",".join(f"({place},?)" for place in range(size))
    return (
        f"WITH asked (place, key) AS (VALUES {places}) SELECT place, row FROM asked"
        f" CROSS JOIN {_table(space)} AS stored ON stored.key = asked.key"
    )


def _create(connection: sqlite3.Connection, space: str) -> None:
    connection.execute(
        f"CREATE TABLE IF NOT EXISTS {_table(space)}"
        " (key BLOB PRIMARY KEY, row BLOB NOT NULL) WITHOUT ROWID"
    )


def _upsert(space: str) -> str:
    mine = f"substr(excluded.row, 1, {ORDER_BYTES})"
    theirs = f"coalesce(substr(stored.row, 1, {ORDER_BYTES}), x'')"  # of an empty blob it is NULL
    return f"""INSERT INTO {_table(space)} AS stored (key, row) VALUES (?, ?)
        ON CONFLICT (key) DO UPDATE SET row = excluded.row
        WHERE {mine} > {theirs} OR ({mine} = {theirs} AND excluded.row <> stored.row
            AND supersedes(excluded.row, stored.row))"""


def _read_layouts(connection: sqlite3.Connection, space: str) -> Layouts:
    query = f"SELECT id, generation, layout FROM {_LAYOUTS} WHERE space = ?"
    return {
        bytes(row[0]): StoredLayout(row[1], Layout.deserialize(row[2]))
        for row in connection.execute(query, (space,))
    }


def _insert_layout(
    connection: sqlite3.Connection, space: str, layout: Layout, layouts: Layouts
) -> None:
    newest = max((item.generation for item in layouts.values()), default=0)
    connection.execute(
        f"INSERT OR REPLACE INTO {_LAYOUTS} VALUES (?, ?, ?, ?)",
        (space, layout.id, newest + 1, layout.serialize()),
    )


def _is_missing(error: sqlite3.OperationalError) -> bool:
    return str(error).startswith("no such table")
