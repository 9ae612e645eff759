"""Arrow IPC streams of strangers: read only as far as their bytes are what they seem.

Below `grpc_server`. A few kilobytes may stand for gigabytes: compressed buffers, and types whose
rows take no bytes. Neither is decoded.
"""

from __future__ import annotations

import struct
from struct import unpack_from

import pyarrow as pa

from steadfeast.featurestore.errors import RequestError

MAX_ROWS = 100_000
"""Most rows of one request, over either protocol."""

_HEADER, _DICTIONARY_DATA, _COMPRESSION = 2, 1, 3
_DICTIONARY, _BATCH = "dictionary", "record batch"


def read(field: str, content: bytes) -> pa.Table:
    """Return the table of an IPC stream.

    Raises:
        RequestError: It is no stream, its buffers are compressed, or it has too many rows.
    """
    try:
        for message in pa.ipc.MessageReader.open_stream(content):
            if message.type in {_DICTIONARY, _BATCH} and _is_compressed(message):
                raise RequestError(field, "is compressed; send plain Arrow IPC")
        table = pa.ipc.open_stream(content).read_all()
        check_rows(field, table.num_rows)
        table.validate(full=True)
    except (pa.ArrowException, OSError, struct.error, MemoryError) as error:
        raise RequestError(field, f"is not an Arrow IPC stream: {error}") from error
    return table


def check_rows(field: str, rows: int) -> None:
    """Refuse more rows than are answered at once.

    Raises:
        RequestError: They are more.
    """
    if rows > MAX_ROWS:
        raise RequestError(field, f"has {rows:,} rows; send at most {MAX_ROWS:,} at once")


def _is_compressed(message: pa.ipc.Message) -> bool:
    """Look for the field `compression` in a message's flatbuffer (Arrow's Message.fbs)."""
    content = message.metadata.to_pybytes()
    (root,) = unpack_from("<I", content, 0)
    batch = _child(content, root, _HEADER)
    if message.type == _DICTIONARY:
        batch = _child(content, batch, _DICTIONARY_DATA)
    return _offset(content, batch, _COMPRESSION) > 0


def _child(content: bytes, table: int, field: int) -> int:
    place = table + _offset(content, table, field)
    (further,) = unpack_from("<I", content, place)
    return int(place + further)


def _offset(content: bytes, table: int, field: int) -> int:
    """Return where a field of a flatbuffer's table is from the table's start; 0 if it is not."""
    (back,) = unpack_from("<i", content, table)
    vtable, entry = table - back, 4 + 2 * field
    (size,) = unpack_from("<H", content, vtable)
    return int(unpack_from("<H", content, vtable + entry)[0]) if entry < size else 0
