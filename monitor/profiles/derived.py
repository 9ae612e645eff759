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
_SHAPES = ((r"\p{L}+", "a"), (r"\p{N}+", "9"), (r"\s+", " "))


class Aspect(StrEnum):
    """What is computed of a column.

    `NONE`: nothing, it is counted as it is. Of lists: `LENGTH`, the number of elements; `NORM`,
    the Euclidean norm; `DISTANCE`, from the reference's centroid. Of text: `PATTERN`, with runs of
    letters as `a`, of digits as `9`, of white space as one blank.
    """

    NONE = ""
    LENGTH = "length"
    NORM = "norm"
    DISTANCE = "distance"
    PATTERN = "pattern"


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


def derived(column: pa.Array, aspect: Aspect, center: Sequence[float] = ()) -> pa.Array:
    """Return the aspect of each row, null where the row is; a type that has none as it is.

    A list of another length than the centroid's has no distance: NaN, as has one with a null.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if aspect is Aspect.PATTERN:
        return _pattern(column)
    if not is_list(column.type):
        return column
    rows, lengths, values = _flat(column)
    if aspect is Aspect.LENGTH:
        found = lengths.astype(np.float64)
    else:
        owner = np.repeat(np.arange(len(lengths)), lengths)
        if aspect is Aspect.DISTANCE:
            fits = lengths == len(center)
            values = values.copy()
            values[fits[owner]] -= np.tile(center, int(fits.sum()))
        with np.errstate(over="ignore"):
            found = np.sqrt(np.bincount(owner, values**2, minlength=len(lengths)))
        if aspect is Aspect.DISTANCE:
            found[~fits] = np.nan
    whole = np.zeros(len(column))
    whole[rows] = found
    missing = np.ones(len(column), dtype=bool)
    missing[rows] = False
    return pa.array(whole, pa.float64(), mask=missing)


def _flat(column: pa.Array) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64], Floats]:
    """Return which rows hold a list, how long each is, and their elements one after the other."""
    rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    column = column.drop_null()
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64)
    inner = pc.list_flatten(column).cast(pa.float64())
    return rows, lengths, pc.fill_null(inner, np.nan).to_numpy(zero_copy_only=False)


def _pattern(column: pa.Array) -> pa.Array:
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column
    for what, sign in _SHAPES:
        column = pc.replace_substring_regex(column, what, sign)
    return pc.utf8_slice_codeunits(column, 0, LONGEST_PATTERN)
