"""What is logged, checked when it is given and made Arrow when it is written.

Above `serving.features`, below `log`; imports no Feast. A log that took nonsense would say so to
nobody for weeks: labels and shadow predictions refer to request ids, and audits go by times.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from steadfeast.featurestore.errors import LogRefusedError, SteadfeastError
from steadfeast.featurestore.serving import settled
from steadfeast.featurestore.tables import TIMESTAMP, micros

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from steadfeast.featurestore.serving import OnlineFeatures

LABELS = pa.schema([("request_id", pa.string()), ("label", pa.float64()), ("known_at", TIMESTAMP)])
PREDICTIONS = pa.schema(
    [
        ("request_id", pa.string()),
        ("request_time", TIMESTAMP),
        ("model", pa.string()),
        ("model_version", pa.string()),
        ("prediction", pa.float64()),
    ]
)
"""What other versions of a model said to a request that is in the served log: shadows of it."""

NOTHING = PREDICTIONS.empty_table().append_column("contract", pa.array([], pa.string()))
"""A file without rows, which says what was dropped where no table could be made of it."""

_MALFORMED = (
    *(SteadfeastError, ArithmeticError, AttributeError),
    *(LookupError, RuntimeError, TypeError, ValueError),
)
"""What making a table of vectors that are none may raise; a full disk is none of it."""


_TEXTS = {str, np.str_}


def checked_ids(service: str, ids: Any, rows: int) -> Any:
    """Return request ids as they were given, if they are one text a row and each another.

    Raises:
        LogRefusedError: They are not.
    """
    if len(ids) != rows:
        raise LogRefusedError(service, "request ids", f"are {len(ids)} for {rows} rows")
    if isinstance(ids, (pa.Array, pa.ChunkedArray)):
        text = ids.cast(pa.string()) if _is_text(ids.type) else None
        good = text is not None and not text.null_count and not pc.any(pc.equal(text, "")).as_py()
        distinct = pc.count_distinct(text).as_py() if good else rows
    else:
        if isinstance(ids, np.ndarray):
            ids = ids.tolist()
        good = set(map(type, ids)) <= _TEXTS and "" not in ids
        distinct = len(set(ids)) if good and rows > 1 else rows
    if not good:
        raise LogRefusedError(service, "request ids", "must be texts, none of them empty or null")
    if distinct != rows:
        problem = f"stand for more than one row in one call: {rows - distinct} of {rows} are double"
        raise LogRefusedError(service, "request ids", problem)
    return ids


def checked_time(service: str, name: str, time: object) -> int:
    """Return a time in microseconds, if it is one and says its zone.

    Raises:
        LogRefusedError: It does not.
    """
    if not isinstance(time, datetime):
        raise LogRefusedError(service, name, f"is {time!r}, not a datetime")
    if time.tzinfo is None:
        raise LogRefusedError(service, name, f"{time.isoformat()} has no zone; give it one, as UTC")
    return micros(time)


def checked_numbers(service: str, name: str, values: Any, rows: int) -> Any:
    """Return numbers as they were given, if they are one a row.

    Raises:
        LogRefusedError: They are not.
    """
    if len(values) != rows:
        raise LogRefusedError(service, name, f"are {len(values)} for {rows} rows")
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        good = is_number(values.type)
    elif isinstance(values, np.ndarray):
        good = values.dtype.kind in "biuf" and values.ndim == 1
    else:
        good = all(v is None or isinstance(v, (int, float, np.number)) for v in values)
    if not good:
        raise LogRefusedError(service, name, "must be numbers")
    return values


def is_number(kind: pa.DataType) -> bool:
    """Tell the Arrow types that can be a label or a prediction."""
    is_a = pa.types
    number = is_a.is_integer(kind) or is_a.is_floating(kind) or is_a.is_boolean(kind)
    return bool(number or is_a.is_null(kind) or is_a.is_decimal(kind))


def _is_text(kind: pa.DataType) -> bool:
    is_a = pa.types
    if is_a.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(is_a.is_string(kind) or is_a.is_large_string(kind) or is_a.is_string_view(kind))


def label_table(service: str, request_ids: Any, labels: Any, known_at: Any) -> pa.Table:
    """Return labels as one table.

    Raises:
        LogRefusedError: Ids, labels or times are missing or no such thing, or times have no zone.
    """
    rows = len(request_ids)
    request_ids = checked_ids(service, request_ids, rows)
    labels = as_column(checked_numbers(service, "labels", labels, rows), pa.float64())
    times = _checked_times(service, "known_at", known_at, rows)
    for name, values in (("labels", labels), ("known_at", times)):
        if values.null_count:
            raise LogRefusedError(service, name, f"are null in {values.null_count} rows")
    return pa.table([as_column(request_ids, pa.string()), labels, times], schema=LABELS)


def prediction_table(
    service: str, request_ids: Any, predictions: Any, times: Any, model: str, version: str
) -> pa.Table:
    """Return what a version of a model said as one table.

    Raises:
        LogRefusedError: Ids, predictions, names or times are missing or no such thing.
    """
    rows = len(request_ids)
    if not (isinstance(model, str) and model and isinstance(version, str) and version):
        raise LogRefusedError(service, "model and model_version", "must both be named")
    ids = as_column(checked_ids(service, request_ids, rows), pa.string())
    said = as_column(checked_numbers(service, "predictions", predictions, rows), pa.float64())
    at = _checked_times(service, "request_time", times, rows)
    names = [pa.array([name] * rows, pa.string()) for name in (model, version)]
    for name, values in (("predictions", said), ("request_time", at)):
        if values.null_count:
            raise LogRefusedError(service, name, f"are null in {values.null_count} rows")
    return pa.table([ids, at, *names, said], schema=PREDICTIONS)


def _checked_times(service: str, name: str, times: Any, rows: int) -> pa.Array | pa.ChunkedArray:
    """Return one time for all rows, or one for each, as a column."""
    if isinstance(times, datetime):
        return pa.array(np.full(rows, checked_time(service, name, times))).cast(TIMESTAMP)
    if len(times) != rows:
        raise LogRefusedError(service, name, f"are {len(times)} for {rows} rows")
    if not isinstance(times, (pa.Array, pa.ChunkedArray)):
        plain = times.tolist() if isinstance(times, np.ndarray) else list(times)
        times = pa.array([checked_time(service, name, time) for time in plain], pa.int64())
        return times.cast(TIMESTAMP)
    if not pa.types.is_timestamp(times.type) or times.type.tz is None:
        problem = f"are {times.type}; they must be timestamps with a zone, as {TIMESTAMP}"
        raise LogRefusedError(service, name, problem)
    return times.cast(TIMESTAMP, safe=False)  # what is finer than a microsecond is cut


@dataclass(frozen=True, slots=True)
class Served:
    """The vectors of one call."""

    features: OnlineFeatures
    request_ids: Sequence[str] | pa.Array | pa.ChunkedArray
    request_time: int
    model: str
    model_version: str
    predictions: Any

    @property
    def num_rows(self) -> int:
        """How many vectors they are; a table of labels has this name for it."""
        rows: int = self.features.rows
        return rows


Made = tuple[list[Any], pa.Table]
"""Entries, and the table of them."""


def written_together(items: list[Any]) -> tuple[list[Made], list[Any]]:
    """Make one table of all entries with the same columns; return also those that make none."""
    if not items or isinstance(items[0], pa.Table):
        return [(items, pa.concat_tables(items).combine_chunks())] if items else [], []
    try:
        return list(_tables(items)), []
    except _MALFORMED:
        good = [item for item in items if _makes_a_table(item)]
        there = set(map(id, good))
        return list(_tables(good)), [item for item in items if id(item) not in there]


def _makes_a_table(item: Served) -> bool:
    try:
        return bool(list(_tables([item])))
    except _MALFORMED:
        return False


def _tables(items: list[Served]) -> Iterator[tuple[list[Served], pa.Table]]:
    """Make one table of all calls with the same columns; two contracts in a rollout have two."""
    for members, vectors, event_times in settled([item.features for item in items]):
        some = [items[i] for i in members]
        rows = [item.num_rows for item in some]
        columns: dict[str, Any] = {
            "request_id": _joined([item.request_ids for item in some], pa.string()),
            "request_time": pa.array(
                np.repeat([item.request_time for item in some], rows), TIMESTAMP
            ),
        }
        for name, values in (
            ("model", [item.model for item in some]),
            ("model_version", [item.model_version for item in some]),
            ("contract", [item.features.contract for item in some]),
        ):
            columns[name] = pa.array(np.repeat(np.array(values, object), rows), pa.string())
        columns |= zip(vectors.column_names, vectors.columns, strict=True)
        columns |= {
            f"{view}__event_timestamp": as_column(times, TIMESTAMP)
            for view, times in event_times.items()
        }
        given = [
            [None] * item.num_rows if item.predictions is None else item.predictions
            for item in some
        ]
        columns["prediction"] = _joined(given, pa.float64())
        yield some, pa.table(columns).combine_chunks()


def as_column(values: Any, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """Arrow, numpy or a list, as Arrow of one type."""
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values if values.type == kind else values.cast(kind)
    if isinstance(values, np.ndarray) and pa.types.is_timestamp(kind):
        return pa.array(values).cast(kind)
    return pa.array(values, kind)


def _joined(columns: Iterable[Any], kind: pa.DataType) -> pa.ChunkedArray:
    """Columns as of `as_column`, one after the other; what can be joined before Arrow is."""
    chunks: list[pa.Array] = []
    for plain, group in groupby(columns, lambda values: isinstance(values, (list, tuple))):
        some = list(group)
        for values in [list(chain.from_iterable(some))] if plain else some:
            made = as_column(values, kind)
            chunks += made.chunks if isinstance(made, pa.ChunkedArray) else [made]
    return pa.chunked_array(chunks, kind)
