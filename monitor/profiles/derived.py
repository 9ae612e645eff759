"""What is counted of a column that has no bins of its own: lists, and text with many values.

Below `monitor.profiles.binning`, which makes bins of it. An aspect is a column computed from
another: it has a name, `embedding.norm`, and from there on is a number or a category like any
other, with its own distance and threshold. Pure: Arrow in, Arrow out.

An embedding has no order and no categories, but a length, a norm, and a distance from where the
reference's embeddings are on average. A text that is nearly always another one, such as a plate
or an address, has a shape: `N14228` is `a9`, an empty text is empty.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

LONGEST_PATTERN = 24
_DAY_MICROS = 86_400_000_000.0
_SHAPES = ((r"\p{L}+", "a"), (r"\p{N}+", "9"), (r"\s+", " "))


class Aspect(StrEnum):
    """What is computed of a column.

    `NONE`: nothing, it is counted as it is. Of lists: `LENGTH`, the number of elements; `NORM`,
    the Euclidean norm; `DISTANCE`, from the reference's centroid; `WORDS`, the elements of a list
    of text in order, as one text. Of text: `PATTERN`, with runs of letters as `a`, of digits as
    `9`, of white space as one blank. Of times: `AGE`, days before the event; `HOUR`, of the day; of
    spans `HOURS`. Of bytes: `LENGTH`. Of whole numbers that no float tells apart: `DIGITS`, as
    text. Of structs: `FIELD`, one of them.
    """

    NONE = ""
    LENGTH = "length"
    NORM = "norm"
    DISTANCE = "distance"
    PATTERN = "pattern"
    WORDS = "words"
    AGE = "age"
    HOUR = "hour"
    HOURS = "hours"
    DIGITS = "digits"
    FIELD = "field"


def is_list(arrow: pa.DataType) -> bool:
    """Whether a column of this type holds lists of numbers."""
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(fits(arrow) for fits in kinds):
        return False
    inner = arrow.value_type
    return bool(pa.types.is_floating(inner) or pa.types.is_integer(inner))


def centroid(column: Any) -> tuple[float, ...]:
    """Return the mean of the lists of the usual length; empty without one.

    Args:
        column: Array or chunked array of lists of numbers. Lists with a null, a NaN or an
            infinity are left out.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    _, lengths, values = _flat(column)
    if not lengths.any():
        return ()
    usual = int(np.bincount(lengths).argmax())
    if not usual:
        return ()
    matrix = values[np.repeat(lengths == usual, lengths)].reshape(-1, usual)
    matrix = matrix[np.isfinite(matrix).all(axis=1)]
    return tuple(matrix.mean(axis=0).tolist()) if len(matrix) else ()


def derived(
    column: pa.Array,
    aspect: Aspect,
    center: Sequence[float] = (),
    path: Sequence[str] = (),
    times: pa.Array | None = None,
) -> pa.Array:
    """Return the aspect of each row, null where the row is; a type that has none as it is.

    A list of another length than the centroid's has no distance: NaN, as has one with a null.

    Args:
        column: The column.
        aspect: What to compute.
        center: The centroid; of `DISTANCE`.
        path: Names of the fields, from the outermost; of `FIELD`.
        times: Event times; of `AGE`.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if aspect in _SIMPLE:
        fits, compute = _SIMPLE[aspect]
        return compute(column) if fits(column.type) else column
    if aspect is Aspect.FIELD:
        return _field(column, path)
    if aspect is Aspect.AGE:
        return _age(column, times)
    return _of_list(column, aspect, center) if is_list(column.type) else column


def _of_list(column: pa.Array, aspect: Aspect, center: Sequence[float]) -> pa.Array:
    """Return the norm of lists of numbers, or their distance from the centroid."""
    rows, lengths, values = _flat(column)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    if aspect is Aspect.DISTANCE:
        fitting = lengths == len(center)
        values = values.copy()
        values[fitting[owner]] -= np.tile(center, int(fitting.sum()))
    with np.errstate(over="ignore"):
        found = np.sqrt(np.bincount(owner, values**2, minlength=len(lengths)))
    if aspect is Aspect.DISTANCE:
        found[~fitting] = np.nan
    whole = np.zeros(len(column))
    whole[rows] = found
    missing = np.ones(len(column), dtype=bool)
    missing[rows] = False
    return pa.array(whole, pa.float64(), mask=missing)


def is_any_list(arrow: pa.DataType) -> bool:
    """Whether a column of this type holds lists of whatever."""
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(fits(arrow) for fits in kinds)


def aspects_of(arrow: pa.DataType) -> list[tuple[Aspect, tuple[str, ...]]]:
    """Return what can be computed of a column that has no bins of its own, and of which field."""
    if pa.types.is_struct(arrow):
        return [(Aspect.FIELD, path) for path in _leaves(arrow)]
    if is_list(arrow):
        return [(Aspect.LENGTH, ()), (Aspect.NORM, ()), (Aspect.DISTANCE, ())]
    if is_any_list(arrow):
        texts = pa.types.is_string(arrow.value_type) or pa.types.is_large_string(arrow.value_type)
        return [(Aspect.LENGTH, ()), *([(Aspect.WORDS, ())] if texts else [])]
    if _is_binary(arrow):
        return [(Aspect.LENGTH, ())]
    if pa.types.is_time(arrow):
        return [(Aspect.HOUR, ())]
    return [(Aspect.HOURS, ())] if pa.types.is_duration(arrow) else []


def _leaves(arrow: pa.DataType, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the paths of a struct's fields that are values rather than structs or lists."""
    found: list[tuple[str, ...]] = []
    for field in arrow:
        path = (*above, field.name)
        if pa.types.is_struct(field.type):
            found += _leaves(field.type, path)
        elif not pa.types.is_nested(field.type) and not _is_binary(field.type):
            found.append(path)
    return found


def _field(column: pa.Array, path: Sequence[str]) -> pa.Array:
    """Return a field of a struct; nulls where the column has none of this name."""
    for name in path:
        if not pa.types.is_struct(column.type) or column.type.get_field_index(name) < 0:
            return pa.nulls(len(column))
        column = pc.struct_field(column, name)
    return column


def _age(column: pa.Array, times: pa.Array | None) -> pa.Array:
    """Return how many days each time lies before the event."""
    if times is None or not (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)):
        return column
    at, value = (
        one.cast(pa.timestamp("us"), safe=False).cast(pa.int64()) for one in (times, column)
    )
    return pc.divide(pc.cast(pc.subtract(at, value), pa.float64(), safe=False), _DAY_MICROS)


def _hour(column: pa.Array) -> pa.Array:
    micros = column.cast(pa.time64("us"), safe=False).cast(pa.int64())
    return pc.divide(pc.cast(micros, pa.float64(), safe=False), _DAY_MICROS / 24)


def _length(column: pa.Array) -> pa.Array:
    count = pc.binary_length if _is_binary(column.type) else pc.list_value_length
    return pc.cast(count(column), pa.float64())


def _has_length(arrow: pa.DataType) -> bool:
    return _is_binary(arrow) or is_any_list(arrow)


def _hours(column: pa.Array) -> pa.Array:
    micros = column.cast(pa.duration("us"), safe=False).cast(pa.int64())
    return pc.divide(pc.cast(micros, pa.float64(), safe=False), _DAY_MICROS / 24)


def _digits(column: pa.Array) -> pa.Array:
    return column.cast(pa.string())


def _words(column: pa.Array) -> pa.Array:
    texts = [
        None if one is None else " ".join(sorted(word or "" for word in one))
        for one in column.to_pylist()
    ]
    return pa.array(texts, pa.string())


def _is_binary(arrow: pa.DataType) -> bool:
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return any(fits(arrow) for fits in kinds)


def _is_whole(arrow: pa.DataType) -> bool:
    return bool(pa.types.is_integer(arrow) or pa.types.is_decimal(arrow))


def _flat(column: pa.Array) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64], Floats]:
    """Return which rows hold a list, how long each is, and their elements one after the other."""
    rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    column = column.drop_null()
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64)
    inner = pc.list_flatten(column).cast(pa.float64())
    return rows, lengths, pc.fill_null(inner, np.nan).to_numpy(zero_copy_only=False)


def _is_text(arrow: pa.DataType) -> bool:
    return bool(pa.types.is_string(arrow) or pa.types.is_large_string(arrow))


def _pattern(column: pa.Array) -> pa.Array:
    for what, sign in _SHAPES:
        column = pc.replace_substring_regex(column, what, sign)
    return pc.utf8_slice_codeunits(column, 0, LONGEST_PATTERN)


_SIMPLE = {
    Aspect.LENGTH: (_has_length, _length),
    Aspect.PATTERN: (_is_text, _pattern),
    Aspect.HOUR: (pa.types.is_time, _hour),
    Aspect.HOURS: (pa.types.is_duration, _hours),
    Aspect.DIGITS: (_is_whole, _digits),
    Aspect.WORDS: (is_any_list, _words),
}
"""What needs nothing but the column: which types have it, and how it is computed."""
