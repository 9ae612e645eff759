"""Hashes and facts that are kept as evidence, and files that are written whole.

Above nothing of ours. The canonical hash of an Arrow table depends on column names, types, and
the cells in row order: not on chunks, buffers' slack, what lies under a null, or which NaN it is.
"""

from __future__ import annotations

import glob
import hashlib
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

EXECUTING = ("duckdb", "feast", "numpy", "pandas", "pyarrow")


def sha256_of(data: bytes) -> str:
    """Return the SHA-256 of `data`, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def content_sha256(table: pa.Table) -> str:
    """Return the SHA-256 of a table's canonical content.

    Fed are, per column in order: name and type, the number of rows, one byte per row that says
    whether it is null, then the values: fixed-width ones little-endian with zeros for nulls and
    one NaN; strings and bytes as int64 lengths, then the bytes; lists as lengths, then the
    elements in the same way; structs as their fields. -0.0 is not 0.0. The type is `type_name`.
    """
    digest = hashlib.sha256()
    for field, column in zip(table.schema, table.columns, strict=True):
        digest.update(f"{field.name}\0{type_name(field.type)}\0{len(column)}\0".encode())
        array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], field.type)
        _feed(digest, array)
    return digest.hexdigest()


def type_name(kind: pa.DataType) -> str:
    """Return one name for all types whose values Parquet gives back as they were.

    Parquet calls a list's elements "element" and forgets what may be null; a dictionary is one way
    to hold its values, and comes back with other indices.
    """
    if pa.types.is_dictionary(kind):
        return type_name(kind.value_type)
    if pa.types.is_map(kind):
        return f"map<{type_name(kind.key_type)}, {type_name(kind.item_type)}>"
    if pa.types.is_struct(kind):
        fields = ", ".join(f"{field.name}: {type_name(field.type)}" for field in kind)
        return f"struct<{fields}>"
    if pa.types.is_nested(kind):
        return f"list<item: {type_name(kind.value_type)}>"
    return str(kind)


def _feed(digest: Any, array: pa.Array) -> None:
    kind = array.type
    if pa.types.is_dictionary(kind):
        _feed(digest, array.cast(kind.value_type))
        return
    digest.update(array.is_null().to_numpy(zero_copy_only=False).astype(np.uint8).tobytes())
    if pa.types.is_struct(kind):
        for child in array.flatten():  # carries the parent's nulls to the fields
            _feed(digest, child)
    elif pa.types.is_map(kind):
        _feed(digest, array.cast(pa.list_(pa.struct([kind.key_field, kind.item_field]))))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        digest.update(_lengths(pc.list_value_length(array)))
        _feed(digest, pc.list_flatten(array))
    elif pa.types.is_fixed_size_list(kind):
        _feed(digest, array.cast(pa.list_(kind.value_type)))
    elif _is_bytes(kind):
        values = array.cast(pa.large_binary())
        digest.update(_lengths(pc.binary_length(values)))
        digest.update(_joined(values))
    elif not pa.types.is_null(kind):
        digest.update(_fixed(array).tobytes())


def differs(a: pa.ChunkedArray, b: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the rows in which two columns of one type differ, as `content_sha256` sees them.

    Raises:
        ValueError: Types or lengths differ.
    """
    if type_name(a.type) != type_name(b.type) or len(a) != len(b):
        raise ValueError(f"{len(a)} x {a.type} against {len(b)} x {b.type}")
    if not len(a):
        return np.array([], np.int64)
    left, right = (pa.concat_arrays(column.chunks) for column in (a, b))
    nulls = [column.is_null().to_numpy(zero_copy_only=False) for column in (left, right)]
    return np.flatnonzero((nulls[0] != nulls[1]) | (_unequal(left, right) & ~nulls[0] & ~nulls[1]))


def _unequal(left: pa.Array, right: pa.Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which values differ; what it says of nulls means nothing."""
    kind = left.type
    if pa.types.is_null(kind):
        return np.zeros(len(left), np.bool_)
    if pa.types.is_nested(kind):
        pairs = zip(left, right, strict=True)
        return np.array([one_sha256(x) != one_sha256(y) for x, y in pairs])
    if _is_bytes(kind):
        unequal: np.ndarray[Any, np.dtype[np.bool_]] = (
            pc.not_equal(left, right).fill_null(False).to_numpy(zero_copy_only=False)
        )
        return unequal
    bits = [_fixed(column).view(np.uint8).reshape(len(column), -1) for column in (left, right)]
    different: np.ndarray[Any, np.dtype[np.bool_]] = (bits[0] != bits[1]).any(axis=1)
    return different


def one_sha256(value: pa.Scalar) -> str:
    """Return the canonical hash of one cell."""
    return content_sha256(pa.table({"": pa.array([value.as_py()], value.type)}))


def _is_bytes(kind: pa.DataType) -> bool:
    return any(
        check(kind)
        for check in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_fixed_size_binary,
        )
    )


def _lengths(lengths: pa.Array) -> bytes:
    filled: np.ndarray[Any, Any] = lengths.fill_null(0).cast(pa.int64()).to_numpy()
    return filled.tobytes()


def _joined(values: pa.Array) -> bytes:
    values = pc.drop_null(values)
    if not len(values):
        return b""
    _, offsets, data = values.buffers()
    ends = np.frombuffer(offsets, np.int64)[values.offset : values.offset + len(values) + 1]
    return b"" if data is None else data.slice(ends[0], ends[-1] - ends[0]).to_pybytes()


def _fixed(array: pa.Array) -> np.ndarray[Any, Any]:
    kind = array.type
    if pa.types.is_boolean(kind):
        array, kind = array.cast(pa.uint8()), pa.uint8()
    elif pa.types.is_temporal(kind):
        integer = pa.int32() if kind.bit_width == 32 else pa.int64()  # noqa: PLR2004 - bits
        array, kind = array.view(integer), integer
    elif pa.types.is_decimal(kind):
        width = kind.bit_width // 8
        array = pa.Array.from_buffers(
            pa.binary(width), len(array), array.buffers(), offset=array.offset
        )
        rows = [value or bytes(width) for value in array.to_pylist()]
        return np.frombuffer(b"".join(rows), np.uint8)
    values: np.ndarray[Any, Any] = array.fill_null(0).to_numpy(zero_copy_only=False)
    if pa.types.is_floating(kind):
        values = np.where(np.isnan(values), values.dtype.type(np.nan), values)
    return values.astype(values.dtype.newbyteorder("<"), copy=False)


def profile(table: pa.Table, personal: Container[str] = ()) -> dict[str, dict[str, Any]]:
    """Return name -> `{type, nulls}`, with `nans`, `min`, `max` and `mean` for numbers.

    NaN takes no part in minimum, maximum and mean; they are null without a value. A column in
    `personal` says `pii` instead: a least value is somebody's.
    """
    described: dict[str, dict[str, Any]] = {}
    for field, column in zip(table.schema, table.columns, strict=True):
        facts: dict[str, Any] = {"type": str(field.type), "nulls": column.null_count}
        if pa.types.is_floating(field.type):
            nan = pc.is_nan(column)
            facts["nans"] = pc.sum(nan).as_py() or 0
            column = pc.if_else(nan, None, column)  # noqa: PLW2901 - the column without NaN
        if field.name in personal:
            facts["pii"] = True
        elif pa.types.is_floating(field.type) or pa.types.is_integer(field.type):
            span = pc.min_max(column).as_py()
            facts |= {"min": span["min"], "max": span["max"], "mean": pc.mean(column).as_py()}
        described[field.name] = facts
    return described


def libraries() -> dict[str, str]:
    """Return the versions of what computes values here."""
    return {"python": platform.python_version()} | {name: version(name) for name in EXECUTING}


def code_commit(folder: Path) -> str:
    """Return the Git commit of `folder`, with "+changes" if files differ; empty without Git."""
    git = shutil.which("git")
    if git is None:
        return ""

    def ask(*words: str) -> str | None:
        done = subprocess.run(  # noqa: S603 - a fixed command on the user's own folder
            [git, "-C", str(folder), *words], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    if commit is None:
        return ""
    return commit + ("+changes" if ask("status", "--porcelain", "--", ".") else "")


_known: dict[tuple[str, int, int, int, int], str] = {}


def file_hashes(repo: Path, location: str) -> Iterator[tuple[str, str | None, int | None]]:
    """Yield `(path, SHA-256, bytes)` of the files at `location`; nulls for what is not local.

    Args:
        repo: Folder that relative locations start at; paths under it are given from there.
        location: A file, a folder, or a glob.
    """
    if "://" in location and not location.startswith("file://"):
        yield location, None, None
        return
    text = str(repo / location.removeprefix("file://"))
    roots = [Path(text)] if Path(text).exists() else [Path(found) for found in glob.glob(text)]  # noqa: PTH207 - the location is absolute
    files = [
        path
        for root in roots
        for path in (root.rglob("*") if root.is_dir() else [root])
        if path.is_file()
    ]
    if not files:
        yield location, None, None
    for path in sorted(files):
        state = path.stat()
        key = (str(path), state.st_ino, state.st_mtime_ns, state.st_ctime_ns, state.st_size)
        if key not in _known:
            _known[key] = hash_file(path)
        name = path.relative_to(repo) if path.is_relative_to(repo) else path
        yield str(name), _known[key], state.st_size


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
