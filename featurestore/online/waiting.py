"""What is kept under one key: the newest row that may be served, and newer ones that wait.

Pure; above `packing`. A row is *due* from the later of its event and created time on. What is
kept for a key is one packed row, or, where rows newer than the newest due one are there too,
several in one value, so that no read needs a second look-up:

    order     16  of its greatest row
    marker     8  where a row has its layout
    count      4
    ends     4 n  where each row ends, counted from the first
    rows          the greatest first; each is due earlier than the one before it
    check      4  CRC-32 of all the above
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING
from zlib import crc32

from steadfeast.featurestore.online.packing import supersedes
from steadfeast.featurestore.rows import HEADER_BYTES, ORDER_BYTES, order_of, sound

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from steadfeast.featurestore.online.packing import Layouts

MARKER = b"\0several"
MOST_BESIDE = 4
"""Rows kept beside a settled one: as many that are due, and as many that still wait."""

_COUNT = Struct("<I")


def several(value: bytes) -> bool:
    """Say whether a value holds more than one row."""
    return value[ORDER_BYTES:HEADER_BYTES] == MARKER


def rows_of(value: bytes) -> list[bytes]:
    """Return the rows of a sound value, the greatest first."""
    if not several(value):
        return [value]
    (count,) = _COUNT.unpack_from(value, HEADER_BYTES)
    start = HEADER_BYTES + 4 + 4 * count
    ends = Struct(f"<{count}I").unpack_from(value, HEADER_BYTES + 4)
    return [
        value[start + begin : start + end] for begin, end in zip((0, *ends), ends, strict=False)
    ]


def value_of(rows: Sequence[bytes]) -> bytes:
    """Return the value that `rows_of` reads."""
    if len(rows) == 1:
        return rows[0]
    ends, end = [], 0
    for row in rows:
        end += len(row)
        ends.append(end)
    head = rows[0][:ORDER_BYTES] + MARKER + Struct(f"<{len(ends) + 1}I").pack(len(ends), *ends)
    value = head + b"".join(rows)
    return value + crc32(value).to_bytes(4, "little")


def due(row: bytes) -> int:
    """Return from when on a row may be served, in µs."""
    return max(order_of(row))


def row_at(value: bytes, at: int | None) -> bytes | None:
    """Return the greatest row that is due at `at`; without a time, the greatest of all."""
    for row in rows_of(value):
        if at is None or due(row) <= at:
            return row
    return None


class Merge:
    """How what is written meets what is there, for one write.

    The greatest row that is due at `settled` hides everything before it. Greater rows that are
    due later stay beside it, for whoever asks as of a time in between; a row that is due no
    earlier than a greater one can never be served, and goes. The result is the same in whatever
    order rows come.

    Args:
        settled: Nobody asks as of a time before it, in µs.
        now: The writer's clock in µs; rows due after it wait.
        layouts: The layouts of the view.

    Attributes:
        plain: Whether each value that is written is one row that is due at `settled`.
        left_out: Rows that were left out because too many wait.
    """

    def __init__(self, settled: int, now: int, layouts: Layouts) -> None:
        self.settled, self.now, self.layouts = settled, now, layouts
        self.plain, self.left_out = True, 0
        self._last: tuple[bytes, bytes, bytes] | None = None

    def __call__(self, new: bytes, old: bytes) -> bytes:
        """Return the value of both; `new` alone where `old` is damaged."""
        last = self._last
        if last is None or last[0] != new or last[1] != old:
            there = rows_of(old) if sound(old) else []
            last = self._last = new, old, self.of([*there, *rows_of(new)])
        return last[2]

    def of(self, rows: Iterable[bytes]) -> bytes:
        """Return the value of at least one row of one key, the last of which is sound."""
        greatest: dict[tuple[int, int], bytes] = {}
        for row in rows:
            order = order_of(row)
            old = greatest.get(order)
            if old is None or (old != row and supersedes(row, old, self.layouts)):
                greatest[order] = row
        beside: list[bytes] = []
        waiting: list[bytes] = []
        settled: list[bytes] = []
        soonest: int | None = None
        for order in sorted(greatest, reverse=True):
            due_at = max(order)
            if soonest is not None and due_at >= soonest:
                continue
            soonest = due_at
            if due_at <= self.settled:
                settled.append(greatest[order])
                break
            (waiting if due_at > self.now else beside).append(greatest[order])
        self.left_out += max(len(waiting) - MOST_BESIDE, 0)
        return value_of([*waiting[-MOST_BESIDE:], *beside[:MOST_BESIDE], *settled])
