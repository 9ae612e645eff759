"""Writing to a source: append, replace, log. Never a half-written file.

Above `sources`. A file appears under its name by rename, once it is whole. A folder grows by a
file. A single Parquet file that is appended to becomes a folder of the same name, whose first
part is the old file itself: nothing is rewritten, and readers of folders read on. What a killed
writer left half done goes with the next write to the same source, or with the store's sweep.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import uuid
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from feast.data_format import DeltaFormat
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import FileSource

from steadfeast.featurestore.errors import SourceError
from steadfeast.featurestore.tables import (
    finish,
    half_file,
    half_folder,
    is_hive,
    is_remote,
    local_files,
    sweep_beside,
    synchronize,
    whole_file,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def append(
    table: pa.Table,
    source: Any,
    repo: Path | str | None,
    view: str,
    stamp: Callable[[pa.Table], pa.Table] | None = None,
) -> None:
    """Add rows to a source, cast to its columns' types, without rewriting what is there.

    One writer at a time, among all processes that write here. `stamp` completes the rows once no
    other can come between what it sees of the source and what is added.

    Raises:
        SourceError: The source is not a local file, folder, glob or Delta table, or the rows do
            not fit its columns.
    """
    location = _location(source, repo, view)
    path = Path(location)
    with _alone(path):
        sweep_beside(path)
        table = table if stamp is None else stamp(table)
        if isinstance(source.file_format, DeltaFormat):
            _write_delta(table, path, "append")
        else:
            _append(table, path, view, location)


def _append(table: pa.Table, path: Path, view: str, location: str) -> None:
    files = local_files(path)
    if files:
        table = _cast(table, files[0], view, location)
    if not files and path.suffix == ".parquet":
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(table, path)
    elif path.is_file():
        _to_folder(path, table)
    elif files and is_hive(path, files):
        _write_partitions(table, path, _partition_columns(path, files[0]))
    else:
        _write(table, _new_file(path, files, view))


def check_target(source: Any, repo: Path | str | None, *, overwrite: bool) -> Path:
    """Return the path that `source` is to be written to, before any work is done.

    Raises:
        SavedDatasetLocationAlreadyExists: There is something, and `overwrite` is off.
        SourceError: The location is not local.
    """
    path = Path(_location(source, repo, source.name))
    if path.exists() and not overwrite:
        raise SavedDatasetLocationAlreadyExists(location=str(path))
    return path


def persist(batches: pa.RecordBatchReader, source: Any, path: Path) -> None:
    """Write `batches` as the whole content of `path`: a `.parquet` file, a folder or Delta.

    Raises:
        SourceError: There is no room or no right to write; what was there is there still.
    """
    if isinstance(source.file_format, DeltaFormat):
        _write_delta(batches, path, "overwrite")
        return
    try:
        sweep_beside(path)
        if path.suffix == ".parquet":
            with half_file(path, private=False) as fresh:
                _write_batches(batches, fresh)
                _replace(fresh, path)
        else:
            with half_folder(path) as fresh:
                _write_batches(batches, fresh / "part-0.parquet")
                _replace(fresh, path)
    except OSError as error:
        raise SourceError(source.name, str(path), f"cannot be written: {error}") from error


def _write_batches(batches: pa.RecordBatchReader, path: Path) -> None:
    with pq.ParquetWriter(path, batches.schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)
    synchronize(path)


def log(data: pa.Table | Path, folder: Path, partition_by: list[str] | None) -> None:
    """Add one file of logged features to `folder` (one per partition)."""
    table = pq.read_table(data) if isinstance(data, Path) else data
    folder.mkdir(parents=True, exist_ok=True)
    if partition_by:
        _write_partitions(table, folder, partition_by)
    else:
        _write(table, folder / f"{uuid.uuid4().hex}.parquet")


def _location(source: Any, repo: Path | str | None, view: str) -> str:
    if not isinstance(source, FileSource):
        raise SourceError(view, source.name, f"cannot write a {type(source).__name__}")
    location = str(FileSource.get_uri_for_file_path(repo_path=repo, uri=source.path))
    if is_remote(location):
        raise SourceError(view, location, "this store writes to local paths only")
    return location


def _cast(table: pa.Table, file: Path, view: str, location: str) -> pa.Table:
    schema = pq.read_schema(file)
    fields = [schema.field(n) if n in schema.names else table.field(n) for n in table.column_names]
    try:
        return table.cast(pa.schema(fields))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SourceError(view, location, f"the rows do not fit: {error}") from error


def _new_file(path: Path, files: list[Path], view: str) -> Path:
    """Return a fresh name in a folder, or one that a glob matches."""
    name = f"part-{uuid.uuid4().hex}.parquet"
    if path.is_dir() or not files:
        path.mkdir(parents=True, exist_ok=True)
        return path / name
    fresh = files[-1].parent / name
    if not fnmatch(str(fresh), str(path)):
        raise SourceError(view, str(path), f"the pattern would not match a new file {name!r}")
    return fresh


def _write(table: pa.Table, path: Path) -> None:
    try:
        with whole_file(path, private=False) as half:
            pq.write_table(table, half, compression="zstd")
    except OSError as error:
        raise SourceError("", str(path), f"cannot be written: {error}") from error


def _to_folder(path: Path, table: pa.Table) -> None:
    """Turn the file at `path` into a folder of the file itself and `table`."""
    with half_folder(path) as fresh:
        os.link(path, fresh / "part-0.parquet")
        _write(table, fresh / f"part-{uuid.uuid4().hex}.parquet")
        _replace(fresh, path)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process or thread appends to the source at `path`.

    Locked is the folder that holds the source, since the source itself may be replaced, and no
    file is left behind. The system gives it back when a process ends, however it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(fresh: Path, path: Path) -> None:
    """Put `fresh` in the place of `path`, at no moment without either; what was there goes."""
    if not path.exists() or (path.is_file() and fresh.is_file()):
        fresh.replace(path)
    elif _exchange(fresh, path):
        _remove(fresh)
    else:  # not a name that a sweep knows: until the end it is the only whole one
        old = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
        path.rename(old)
        try:
            fresh.rename(path)
        except OSError:
            old.rename(path)
            raise
        _remove(old)
    synchronize(path.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names at once, where the system can: a file and a folder need Linux's renameat2."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    done: int = renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)
    return done == 0


_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux."""


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _partition_columns(root: Path, file: Path) -> list[str]:
    return [p.split("=", 1)[0] for p in file.relative_to(root).parts[:-1] if "=" in p]


def _write_partitions(table: pa.Table, root: Path, columns: list[str]) -> None:
    """Add a file to each partition; the files move to their places when all are whole."""
    try:
        with half_folder(root / "parts") as fresh:
            pq.write_to_dataset(
                table,
                root_path=fresh,
                partition_cols=columns,
                basename_template=f"part-{uuid.uuid4().hex}-{{i}}.parquet",
            )
            for file in sorted(fresh.rglob("*.parquet")):
                target = root / file.relative_to(fresh)
                target.parent.mkdir(parents=True, exist_ok=True)
                finish(file, target)
    except OSError as error:
        raise SourceError("", str(root), f"cannot be written: {error}") from error


def _write_delta(
    data: pa.Table | pa.RecordBatchReader, path: Path, mode: Literal["append", "overwrite"]
) -> None:
    from deltalake import write_deltalake  # noqa: PLC0415 - an extra

    write_deltalake(path, data, mode=mode)
