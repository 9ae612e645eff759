"""Where a table's files are: a file, a folder, a glob, a Delta table, an address.

Above `sql`; imports no Feast, so that what only reads tables starts at once. Parquet files,
folders, globs and hive-partitioned folders are read by DuckDB itself; Delta through deltalake's
list of live files; remote addresses by DuckDB's own settings.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

from steadfeast.featurestore.errors import SourceError
from steadfeast.featurestore.tables import sql

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from deltalake import DeltaTable


def scan_of(
    view: str, location: str, *, delta: bool = False, types: Mapping[str, str] | None = None
) -> str:
    """Return the table expression of what lies at `location`.

    Args:
        view: Feature view, for messages.
        location: File, folder, glob, Delta table or address.
        delta: It is a Delta table.
        types: Column -> DuckDB type, for columns that are folders' names: what a name is must not
            depend on which other folders there are.

    Raises:
        SourceError: There is no file.
    """
    if is_remote(location):
        if delta:
            return _delta(view, location)
        named = _partitions(location.split("/"))
        return sql.parquet([location], hive=bool(named), hive_types=_typed(named, types))
    path = Path(location)
    if delta or (path / "_delta_log").is_dir():
        return _delta(view, location)
    files = local_files(path)
    if not files:
        raise SourceError(view, location, nothing(path))
    hive = is_hive(path, files)
    named = _partitions(files[0].parts[:-1]) if hive else []
    return sql.parquet([str(file) for file in files], hive=hive, hive_types=_typed(named, types))


def _partitions(parts: Iterable[str]) -> list[str]:
    return [part.partition("=")[0] for part in parts if "=" in part]


def _typed(named: Iterable[str], types: Mapping[str, str] | None) -> dict[str, str]:
    return {name: kind for name, kind in (types or {}).items() if name in named}


def kept_path(path: Path | str, root: Path) -> str:
    """Return a path as state keeps it: as seen from the store's folder, so that both can move."""
    return Path(os.path.relpath(Path(path).resolve(), root.resolve())).as_posix()


def path_of(kept: str, root: Path) -> Path:
    """Return the path that `kept_path` made a text of; an absolute one is what it is."""
    return Path(os.path.normpath(root / kept))


def is_remote(location: str) -> bool:
    """Tell an address such as `s3://bucket/key` from a path."""
    parsed = urlparse(location)
    return bool(parsed.scheme and parsed.netloc)


def local_files(path: Path) -> list[Path]:
    """Return the Parquet files of a file, a folder (at any depth) or a glob, in order of name.

    As elsewhere, names that start with a dot or an underscore are not data.
    """
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(
            file
            for file in path.rglob("*.parquet")
            if file.is_file()
            and not any(part.startswith((".", "_")) for part in file.relative_to(path).parts)
        )
    names = glob.glob(str(path), recursive=True)  # noqa: PTH207 - the pattern may be absolute
    return sorted(file for file in map(Path, names) if file.is_file())


def is_hive(root: Path, files: list[Path]) -> bool:
    """Tell whether the folders below `root` name partitions, as `day=2024-01-01`."""
    first = files[0]
    try:
        below = first.relative_to(root).parts[:-1]
    except ValueError:  # a glob
        below = first.parts[:-1]
    return any("=" in part for part in below)


def nothing(path: Path) -> str:
    """Say what is wrong where no file was found."""
    return "the folder holds no Parquet file" if path.is_dir() else "there is no such file"


def _delta(view: str, location: str) -> str:
    table = delta_table(view, location)
    files = table.file_uris()
    if not files:
        raise SourceError(view, location, "the Delta table holds no file")
    return sql.parquet(files, hive=bool(table.metadata().partition_columns))


def delta_table(view: str, location: str) -> DeltaTable:
    """Open a Delta table.

    Raises:
        SourceError: There is none, or the extra is not installed.
    """
    try:
        from deltalake import DeltaTable  # noqa: PLC0415 - an extra
        from deltalake.exceptions import DeltaError, TableNotFoundError  # noqa: PLC0415
    except ImportError as error:
        raise SourceError(view, location, "Delta tables need steadfeast[delta]") from error
    try:
        return DeltaTable(location)
    except (TableNotFoundError, DeltaError) as error:
        raise SourceError(view, location, f"not a readable Delta table: {error}") from error
