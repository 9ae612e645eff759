"""What is asked of features in a test, each with a message that names the cell.

Beside `sandboxes`. Any store will do, a sandbox or the project's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from steadfeast.featurestore.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steadfeast.featurestore import Store

_SHOWN = 5
"""Cells that a message lists."""


@dataclass(frozen=True, slots=True)
class Case:
    """One point in time, and what is known there.

    Attributes:
        at: The time, with a zone.
        keys: Join keys and request fields.
        expect: Feature -> value; features that are left out are not looked at. Floats may differ
            in the ninth digit.
    """

    at: datetime
    keys: Mapping[str, Any]
    expect: Mapping[str, Any]


def values_at(store: Store, service: str, keys: Mapping[str, Any], at: datetime) -> dict[str, Any]:
    """Return the features of one entity by name, as training sees them at a time.

    Raises:
        NotFoundError: There is no such service.
        EntityRowsError: A key is missing or of a wrong type.
    """
    [row] = _offline(store, service, [keys], [at])
    return row


def assert_point_in_time(store: Store, service: str, cases: Sequence[Case]) -> None:
    """Compare what training sees with what each case expects.

    Raises:
        AssertionError: A value is another; the message lists each with its keys and time.
        NotFoundError: A case expects a feature that the service does not have.
    """
    if not cases:
        raise AssertionError("there is no case to look at")
    rows = _offline(store, service, [one.keys for one in cases], [one.at for one in cases])
    wrong = []
    for case, row in zip(cases, rows, strict=True):
        for name, expected in case.expect.items():
            if name not in row:
                raise NotFoundError(f"feature of service {service}", name, row)
            if not _close(row[name], expected):
                where = f"{_named(case.keys)} at {case.at.isoformat()}"
                wrong.append(f"{where}: {name} is {row[name]!r}, expected {expected!r}")
    _none_wrong(wrong)


def assert_serves_what_training_sees(
    store: Store, service: str, keys: Sequence[Mapping[str, Any]], *, at: datetime | None = None
) -> None:
    """Compare what is served with what training sees at the same time, to the bit.

    Args:
        store: Materialized.
        service: The feature service.
        keys: Join keys and request fields of each entity.
        at: The time; not before the store was materialized to. Now, when absent.

    Raises:
        AssertionError: A value differs, or there is nothing to compare.
    """
    now = at or datetime.now(UTC)
    answer = store.online_features(service, [dict(one) for one in keys], request_time=now)
    served, seen = answer.table.to_pylist(), _offline(store, service, keys, [now] * len(keys))
    wrong = [
        f"{_named(one)}: {name} is served as {left[name]!r}, training sees {right[name]!r}"
        for one, left, right in zip(keys, served, seen, strict=True)
        for name in answer.features
        if not _same(left[name], right[name])
    ]
    _none_wrong(wrong, empty=not keys)


def assert_same_row_by_row(
    store: Store, service: str, keys: Sequence[Mapping[str, Any]], *, at: datetime | None = None
) -> None:
    """Compare the features of rows that are asked for together with those asked for one by one.

    What differs is an on-demand view that looks at other rows than its own: a mean over the
    column, a rank, a fill from the row before.

    Args:
        store: Materialized.
        service: The feature service.
        keys: Join keys and request fields of two rows or more, best with values that differ.
        at: The time; now, when absent.

    Raises:
        AssertionError: A value differs, or there are not two rows.
    """
    if len(keys) < 2:  # noqa: PLR2004 - one row has no others
        raise AssertionError("give two rows or more: one alone has no others to look at")
    now = at or datetime.now(UTC)
    together = _offline(store, service, keys, [now] * len(keys))
    wrong = []
    for one, row in zip(keys, together, strict=True):
        [alone] = _offline(store, service, [one], [now])
        wrong += [
            f"{_named(one)}: {name} is {row[name]!r} among others, {alone[name]!r} alone"
            for name in row
            if not _same(row[name], alone[name])
        ]
    _none_wrong(wrong)


def _offline(
    store: Store, service: str, keys: Sequence[Mapping[str, Any]], times: Sequence[datetime]
) -> list[dict[str, Any]]:
    entities = [{**one, "event_timestamp": at} for one, at in zip(keys, times, strict=True)]
    if not entities:
        return []
    rows: list[dict[str, Any]] = store.point_in_time(service, entities).to_pylist()
    return rows


def _none_wrong(wrong: Sequence[str], *, empty: bool = False) -> None:
    if empty:
        raise AssertionError("there is nothing to compare: give keys")
    if wrong:
        more = [f"and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
        raise AssertionError("\n".join([*wrong[:_SHOWN], *more]))


def _named(keys: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in keys.items())


def _close(value: Any, expected: Any) -> bool:
    if isinstance(value, float) and isinstance(expected, (int, float)):
        return _same(value, float(expected)) or math.isclose(value, expected, rel_tol=1e-9)
    return bool(value == expected)


def _same(left: Any, right: Any) -> bool:
    """Compare two cells by type and bits; NaN is one value."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        if math.isnan(left) or math.isnan(right):
            return math.isnan(left) and math.isnan(right)
        return left == right and math.copysign(1, left) == math.copysign(1, right)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(_same(left[k], right[k]) for k in left)
    return bool(left == right)
