"""What the offline store must answer, said as a naive loop over Python rows.

Shares no code with the store: no SQL, no canonical bytes, no microseconds.
"""

from __future__ import annotations

import math
import struct
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Sequence

START = datetime(2024, 1, 1, tzinfo=UTC)
INSTANT = pa.timestamp("us", tz="UTC")


def at(hours: float = 0, microseconds: int = 0) -> datetime:
    """Return an instant so far after the start of 2024."""
    return START + timedelta(hours=hours, microseconds=microseconds)


def rank(value: Any) -> Any:
    """Order one value as the tie rule says: null least, NaN greatest, -0.0 below 0.0."""
    if value is None:
        return (0,)
    if isinstance(value, float):
        if math.isnan(value):
            return (1, math.inf, 2)
        return (1, value, int(math.copysign(1, value)) if value == 0 else 0)
    if isinstance(value, list):
        return (1, *((rank(item)) for item in value))
    if isinstance(value, dict):
        return (1, tuple(rank(item) for item in value.values()))
    return (1, value)


def oracle(
    rows: Sequence[dict[str, Any]],
    ask: dict[str, Any],
    features: Sequence[str],
    *,
    keys: Sequence[str] = ("k",),
    ttl: timedelta | None = None,
    as_known: bool = False,
) -> dict[str, Any] | None:
    """Return the row that `ask` gets, found by looking at every row; None without any."""
    best, best_rank = None, None
    for row in rows:
        if row["ts"] is None or ask["event_timestamp"] is None:
            continue
        if any(row[k] is None or row[k] != ask[k] for k in keys):
            continue
        age = ask["event_timestamp"] - row["ts"]
        if age < timedelta(0) or (ttl and age > ttl):
            continue
        made = row.get("made")
        if as_known and (made is None or made > ask["event_timestamp"]):
            continue
        order = (row["ts"], rank(made), [rank(row[f]) for f in sorted(features)])
        if best_rank is None or order > best_rank:
            best, best_rank = row, order
    return best


def bits(value: Any) -> Any:
    """Make values comparable by bits: one NaN, two zeros."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else struct.pack(">d", value)
    if isinstance(value, list):
        return [bits(item) for item in value]
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    return value
