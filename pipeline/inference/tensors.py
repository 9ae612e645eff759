"""Tensors of the Open Inference Protocol as columns of a request, and predictions as tensors.

Below `edge`. A tensor is a column: it has the name of a join key or request field, and one value a
row, in the shape (rows,) or (rows, 1).
"""

from __future__ import annotations

from struct import error as struct_error
from struct import unpack_from
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from steadfeast.featurestore.errors import RequestError
from steadfeast.measures import Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steadfeast.pipeline.recipes import Target

TYPES: dict[str, str] = {
    "BOOL": "?",
    **{f"INT{8 * size}": f"<i{size}" for size in (1, 2, 4, 8)},
    **{f"UINT{8 * size}": f"<u{size}" for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": f"<f{size}" for size in (2, 4, 8)},
}
"""Datatype of the protocol -> numpy's; BYTES is a length and so many bytes, each."""


def rows_of(name: str, shape: Sequence[int]) -> int:
    """Return how many rows a tensor has.

    Raises:
        RequestError: Its shape is not (rows,) or (rows, 1).
    """
    if not shape or len(shape) > 2 or (len(shape) == 2 and shape[1] != 1) or shape[0] < 0:  # noqa: PLR2004
        raise RequestError(f"inputs.{name}.shape", f"is {list(shape)}; give [rows] or [rows, 1]")
    return int(shape[0])


def plain(name: str, datatype: str, shape: Sequence[int], content: bytes) -> list[Any]:
    """Return the values of a tensor that came as bytes.

    Raises:
        RequestError: The bytes are not what datatype and shape say.
    """
    rows, field = rows_of(name, shape), f"inputs.{name}"
    if datatype in TYPES:
        kind = np.dtype(TYPES[datatype])
        if len(content) != rows * kind.itemsize:
            said = f"{rows} of {datatype} are {rows * kind.itemsize}"
            raise RequestError(field, f"has {len(content)} bytes; {said}")
        values: list[Any] = np.frombuffer(content, kind).tolist()
        return values
    if datatype != "BYTES":
        raise RequestError(f"{field}.datatype", f"is {datatype!r}; known are {[*TYPES, 'BYTES']}")
    found, place = [], 0
    try:
        while place < len(content):
            (size,) = unpack_from("<I", content, place)
            found.append(content[place + 4 : place + 4 + size])
            place += 4 + size
    except struct_error as error:
        raise RequestError(field, "ends within the length of an element") from error
    if place != len(content) or len(found) != rows:
        raise RequestError(field, f"holds {len(found)} whole elements; its shape says {rows}")
    return found


def datatype_of(kind: pa.DataType) -> str:
    """Return the protocol's datatype of a column of a request; text and times are BYTES."""
    if pa.types.is_boolean(kind):
        return "BOOL"
    if pa.types.is_integer(kind):
        return ("INT" if pa.types.is_signed_integer(kind) else "UINT") + str(kind.bit_width)
    if pa.types.is_floating(kind):
        return f"FP{kind.bit_width}"
    return "BYTES"


def shape_of(target: Target) -> list[int]:
    """Return the shape of predictions, -1 for the rows."""
    return [-1, len(target.classes)] if target.task is Task.MULTICLASS else [-1]


def as_text(values: Sequence[Any], kind: pa.DataType) -> list[Any]:
    """Return values with bytes as the text that they are, unless bytes are what is wanted.

    Raises:
        RequestError: They are no UTF-8.
    """
    if pa.types.is_binary(kind):
        return list(values)
    try:
        return [value.decode() if isinstance(value, bytes) else value for value in values]
    except UnicodeDecodeError as error:
        raise RequestError("inputs", f"is no UTF-8: {error}") from error
