"""A DuckDB connection for one query, within the configured memory, that spills to one folder.

Bottom of `featurestore.offline`: knows nothing of features. Each query has a connection of its
own, so that jobs never share state, and its spill folder goes when the connection closes.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import duckdb

from steadfeast.featurestore.errors import ResourceError
from steadfeast.featurestore.tables import TemporaryFolder, identifier, literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from feast.repo_config import RepoConfig


_at_most: ContextVar[str | None] = ContextVar("at_most", default=None)


@contextmanager
def at_most(memory: str) -> Iterator[None]:
    """Let each query inside hold no more than `memory`, as `2GiB`, where no limit is configured."""
    token = _at_most.set(memory)
    try:
        yield
    finally:
        _at_most.reset(token)


@contextmanager
def session(config: RepoConfig, *, remote: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a connection with the store's settings; close it and remove its spill at the end.

    Args:
        config: The repository's configuration.
        remote: A source is not local: fetch column chunks ahead. Of local files that would only
            hold each chunk in memory whole.

    Raises:
        ResourceError: The query inside needs more memory or disk than it may use.
    """
    options = config.offline_store
    parent = _spill_parent(config.repo_path, options.temp_directory)
    with TemporaryFolder("spill", parent) as spill:
        settings: dict[str, object] = {
            "TimeZone": "UTC",
            "disable_parquet_prefetching": not remote,
            "temp_directory": str(spill),
            "memory_limit": options.memory_limit or _at_most.get(),
            "max_temp_directory_size": options.max_temp_directory_size,
            "threads": options.threads,
            "file_search_path": str(config.repo_path) if config.repo_path else None,
        }
        connection = duckdb.connect()
        try:
            _apply(connection, settings | dict(options.settings))
            yield connection
        except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
            if not exhausted(error):
                raise
            limit = connection.execute("SELECT current_setting('memory_limit')").fetchall()[0][0]
            text = str(error).split("\n", 1)[0]
            raise ResourceError(text, limit, str(parent or tempfile.gettempdir())) from error
        finally:
            connection.close()


def exhausted(error: duckdb.Error) -> bool:
    """Tell whether DuckDB ran out of memory or disk, rather than failed to read a file."""
    text = str(error)
    return isinstance(error, duckdb.OutOfMemoryException) or any(
        sign in text for sign in ("No space left", "max_temp_directory_size", "Disk quota")
    )


def _spill_parent(repo: Path | None, folder: str | None) -> Path | None:
    from pathlib import Path  # noqa: PLC0415 - the type alone is needed at import

    if folder is None:
        return None
    path = Path(repo or ".") / folder
    path.mkdir(parents=True, exist_ok=True)
    return path


def _apply(connection: duckdb.DuckDBPyConnection, settings: Mapping[str, object]) -> None:
    for name, value in settings.items():
        if value is not None:
            text = literal(value) if isinstance(value, str) else str(value).lower()
            connection.execute(f"SET {identifier(name)} = {text}")
