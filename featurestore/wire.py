"""An answer as the JSON of Feast's `/get-online-features`, byte for byte what Feast would say.

Above `vectors`, below `web`. Text is put together from the packed rows where their types allow;
what one view says of all its columns is written once. Elsewhere it is made value by value.
"""

from __future__ import annotations

import base64
import json
import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.vectors import Request

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.answers import OnlineFeatures
    from featurestore.blocks import Block, Judged
    from featurestore.service import ServicePlan

STATUSES = ("INVALID", "PRESENT", "NULL_VALUE", "NOT_FOUND", "OUTSIDE_MAX_AGE")
"""Names of feast.serving.FieldStatus by number."""

_NO_TIME = "1970-01-01T00:00:00Z"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NULL_VALUE = STATUSES.index("NULL_VALUE")
_PRESENT = STATUSES.index("PRESENT")


def answer(plan: ServicePlan, got: OnlineFeatures, *, full_names: bool) -> bytes:
    """Return the body of the response."""
    packed = got.packed
    if isinstance(packed, Request):
        views = packed.judged()
        if views is not None:
            return _joined(plan, packed, views, full_names=full_names)
    return json.dumps(_content(plan, got, full_names=full_names), separators=(",", ":")).encode()


def _joined(plan: ServicePlan, packed: Request, views: list[Judged], *, full_names: bool) -> bytes:
    n = packed.rows
    same = f'"statuses":[{_quoted(["PRESENT"] * n)}],"event_timestamps":[{_quoted([_NO_TIME] * n)}]'
    keys = packed.keys()
    results = [f'{{"values":{_json(keys[name])},{same}}}' for name in plan.keys]
    columns: list[str] = []
    for view in views:
        states = view.states()
        times = [
            _NO_TIME if row is None else _text(_EPOCH + timedelta(microseconds=us))
            for us, row in zip(view.event_us.tolist(), view.rows, strict=True)
        ]
        stamps = f'"event_timestamps":[{_quoted(times)}]'
        for block in view.blocks:
            columns += _columns(block, states, stamps)
    results += packed.in_order(columns)
    names = json.dumps([*plan.keys, *_names(plan, full_names=full_names)])
    body = f'{{"results":[{",".join(results)}],"metadata":{{"feature_names":{names}}}}}'
    return body.encode()


def _columns(block: Block, states: np.ndarray[Any, Any], stamps: str) -> list[str]:
    cells, valid = block
    usual = _quoted([STATUSES[code] for code in states.tolist()])
    plain = cells.dtype.kind != "f" or bool(np.isfinite(cells).all())
    if valid is None and plain:
        return [
            f'{{"values":{_json(values)},"statuses":[{usual}],{stamps}}}'
            for values in cells.tolist()
        ]
    there = np.ones(cells.shape, np.bool_) if valid is None else valid
    columns = []
    for values, mask in zip(cells.tolist(), there, strict=True):
        shown, text = values, usual
        if not mask.all():
            codes = np.where(mask | (states != _PRESENT), states, _NULL_VALUE)
            text = _quoted([STATUSES[code] for code in codes.tolist()])
            shown = [v if ok else None for v, ok in zip(values, mask.tolist(), strict=True)]
        if not plain:
            shown = [_plain(value) for value in shown]
        columns.append(f'{{"values":{_json(shown)},"statuses":[{text}],{stamps}}}')
    return columns


def _json(values: Any) -> str:
    return json.dumps(values, separators=(",", ":"))


def _quoted(texts: list[str]) -> str:
    return '"' + '","'.join(texts) + '"'


def _names(plan: ServicePlan, *, full_names: bool) -> list[str]:
    return [
        f"{output.view}__{output.feature}" if full_names else output.name for output in plan.outputs
    ]


def _content(plan: ServicePlan, got: OnlineFeatures, *, full_names: bool) -> dict[str, Any]:
    n = got.table.num_rows
    names = [*plan.keys, *_names(plan, full_names=full_names)]
    results = [
        _result(got.table.column(name), ["PRESENT"] * n, [_NO_TIME] * n) for name in plan.keys
    ]
    times = {view: list(map(_text, column.to_pylist())) for view, column in got.event_times.items()}
    for output in plan.outputs:
        statuses = [STATUSES[code] for code in got.statuses[output.name].tolist()]
        column = got.table.column(output.name)
        results.append(_result(column, statuses, times.get(output.view, [_NO_TIME] * n)))
    return {"results": results, "metadata": {"feature_names": names}}


def _result(column: pa.ChunkedArray, statuses: list[str], times: list[str]) -> dict[str, Any]:
    values = [_plain(value) for value in column.to_pylist()]
    return {"values": values, "statuses": statuses, "event_timestamps": times}


def _plain(value: Any) -> Any:  # noqa: PLR0911 - one per type
    """Return a value as Feast's JSON has it: times in seconds, bytes in base64, NaN by name."""
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, datetime):
        return math.floor(value.timestamp())
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, list):
        if value and isinstance(value[0], tuple):  # the entries of a map
            return {key: _plain(item) for key, item in value}
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _text(time: datetime | None) -> str:
    """Write a time as protobuf's JSON does: as many digits as it needs, in threes."""
    if time is None:
        return _NO_TIME
    micros = time.microsecond
    precision = "seconds" if not micros else "microseconds" if micros % 1000 else "milliseconds"
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec=precision) + "Z"
