"""What is kept of a window's rows: counts per column, mergeable.

Above `monitor.profiles.binning`. Kernels take Arrow batches, not file names, and keep no rows.

A profile over given edges is a commutative monoid: `Profile.empty(edges)` is the identity, `+`
merges, and `profile(a) + profile(b)` equals `profile(a and b)`: exactly for every count, minimum
and maximum; within rounding for `mean` and `m2`, which are floating-point sums (relative error
about 1e-12 in tests). So a window is the sum of its buckets and one tick costs the new rows.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from steadfeast.featurestore.errors import SteadfeastError
from steadfeast.monitor.profiles.binning import (
    ORDERED,
    ColumnEdges,
    ColumnKind,
    Edges,
    category_places,
    decoded,
    event_times,
    kind_of,
    plain_type,
    values_of,
)
from steadfeast.monitor.profiles.histogram import Counter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    Integers = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float64]

_LARGEST = float(np.finfo(np.float64).max)


class EdgesMismatchError(SteadfeastError):
    """Two profiles over different edges cannot be merged."""

    def __init__(self) -> None:
        super().__init__("profiles over different edges cannot be merged")


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of event time, start inclusive, end exclusive, with its row count."""

    start: datetime
    end: datetime
    rows: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"start": self.start.isoformat(), "end": self.end.isoformat(), "rows": self.rows}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Window:
        """Return what `to_json` was called on."""
        start, end = (datetime.fromisoformat(data[key]).astimezone(UTC) for key in ("start", "end"))
        return cls(start, end, int(data["rows"]))


@dataclass(frozen=True, slots=True, eq=False)
class ColumnProfile:
    """Figures of one column.

    Attributes:
        rows: Rows in which the column was there at all, nulls included.
        nulls: Nulls among them.
        nans: NaN; not nulls.
        infinities: Of either sign.
        mistyped: Rows whose Arrow type cannot be read as the reference's kind; in no bin.
        minimum: Smallest finite value; None without one, and of a personal column, where it is
            somebody's. Seconds since 1970 for timestamps, characters for text.
        maximum: Largest finite value.
        mean: Of the finite values; 0 without one.
        m2: Sum of squared deviations from `mean`.
        counts: Rows per bin, int64, shape (bins,).
    """

    rows: int
    nulls: int
    nans: int
    infinities: int
    mistyped: int
    minimum: float | None
    maximum: float | None
    mean: float
    m2: float
    counts: Integers

    @classmethod
    def empty(cls, edges: ColumnEdges) -> ColumnProfile:
        """Return the identity of `+`."""
        return cls(0, 0, 0, 0, 0, None, None, 0.0, 0.0, np.zeros(edges.bins, dtype=np.int64))

    @property
    def usable(self) -> int:
        """Rows that are in a bin."""
        return int(self.counts.sum())

    @property
    def finite(self) -> int:
        """Rows that `mean` and `m2` are of; for ordered kinds only."""
        return self.usable - self.infinities

    @property
    def without_value(self) -> int:
        """Rows without a value that can be compared: null, NaN or infinite."""
        return self.nulls + self.nans + self.infinities

    @property
    def null_share(self) -> float | None:
        """Share of nulls, 0 to 1; None without rows."""
        return self.nulls / self.rows if self.rows else None

    @property
    def sd(self) -> float | None:
        """Population standard deviation of the finite values; None without one."""
        return math.sqrt(max(self.m2, 0.0) / self.finite) if self.finite > 0 else None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ColumnProfile):
            return NotImplemented
        return self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]  # holds an array

    def __add__(self, other: ColumnProfile) -> ColumnProfile:
        """Merge; mean and M2 by Chan, Golub and LeVeque (1983), Am. Stat. 37:242."""
        n, m = self.finite, other.finite
        if n == 0 or m == 0:
            mean, m2 = (self.mean, self.m2) if m == 0 else (other.mean, other.m2)
        else:
            # Shares before products, because the largest floats would overflow.
            mine, theirs = n / (n + m), m / (n + m)
            gap = other.mean - self.mean
            mean = self.mean * mine + other.mean * theirs
            m2 = min(self.m2 + other.m2 + gap * gap * mine * m, _LARGEST)
        return ColumnProfile(
            self.rows + other.rows,
            self.nulls + other.nulls,
            self.nans + other.nans,
            self.infinities + other.infinities,
            self.mistyped + other.mistyped,
            _least(self.minimum, other.minimum),
            _greatest(self.maximum, other.maximum),
            mean,
            m2,
            self.counts + other.counts,
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; floats survive exactly."""
        return {
            "rows": self.rows,
            "nulls": self.nulls,
            "nans": self.nans,
            "infinities": self.infinities,
            "mistyped": self.mistyped,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "mean": self.mean,
            "m2": self.m2,
            "counts": self.counts.tolist(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ColumnProfile:
        """Return what `to_json` was called on."""
        return cls(**{**data, "counts": np.array(data["counts"], dtype=np.int64)})


@dataclass(frozen=True, slots=True)
class Profile:
    """Figures of one table over given edges.

    Attributes:
        edges: The binning; profiles merge only over equal ones.
        rows: Rows seen.
        columns: One per column of `edges`, there or not.
        types: Every column of `edges` that was seen, with the Arrow types it had, sorted.
    """

    edges: Edges
    rows: int
    columns: Mapping[str, ColumnProfile]
    types: Mapping[str, tuple[str, ...]]

    @classmethod
    def empty(cls, edges: Edges) -> Profile:
        """Return the identity of `+`."""
        columns = {name: ColumnProfile.empty(one) for name, one in edges.columns.items()}
        return cls(edges, 0, columns, {})

    def __add__(self, other: Profile) -> Profile:
        """Merge two profiles over the same edges.

        Raises:
            EdgesMismatchError: The edges differ.
        """
        if self.edges is not other.edges and self.edges != other.edges:
            raise EdgesMismatchError
        columns = {name: one + other.columns[name] for name, one in self.columns.items()}
        types = {
            name: tuple(sorted({*self.types.get(name, ()), *other.types.get(name, ())}))
            for name in sorted({*self.types, *other.types})
        }
        return Profile(self.edges, self.rows + other.rows, columns, types)

    def to_json(self) -> str:
        """Return JSON text without the edges, which are stored once with the reference."""
        return json.dumps(
            {
                "rows": self.rows,
                "columns": {name: one.to_json() for name, one in self.columns.items()},
                "types": {name: list(types) for name, types in self.types.items()},
            },
            allow_nan=False,
        )

    @classmethod
    def from_json(cls, text: str, edges: Edges) -> Profile:
        """Return what `to_json` was called on."""
        data = json.loads(text)
        return cls(
            edges,
            data["rows"],
            {name: ColumnProfile.from_json(one) for name, one in data["columns"].items()},
            {name: tuple(types) for name, types in data["types"].items()},
        )


def total(profiles: Iterable[Profile], edges: Edges) -> Profile:
    """Merge any number of profiles over `edges`; none gives the empty profile."""
    merged = Profile.empty(edges)
    for one in profiles:
        merged += one
    return merged


def profile(batches: Iterable[pa.RecordBatch], edges: Edges) -> Profile:
    """Count rows over `edges` in one pass; keeps no rows.

    A watched column that a batch lacks, or whose type cannot be read as the reference's kind,
    does not stop the others: `ColumnProfile.rows` then stays below `Profile.rows`, or
    `mistyped` is above 0.
    """
    counters = {name: Counter(one.cuts) for name, one in edges.columns.items()}
    merged = Profile.empty(edges)
    for batch in batches:
        present = set(batch.schema.names)
        columns = {
            name: (
                _count(_column(batch, name, one), one, counters[name])
                if (one.source or name) in present
                else ColumnProfile.empty(one)
            )
            for name, one in edges.columns.items()
        }
        types = {
            name: (str(plain_type(batch.schema.field(name).type)),)
            for name in sorted(present & edges.columns.keys())
        }
        merged += Profile(edges, batch.num_rows, columns, types)
    return merged


def _least(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else min(a, b)


def _greatest(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else max(a, b)


def _column(batch: pa.RecordBatch, name: str, edges: ColumnEdges) -> pa.Array:
    return edges.of(batch.column(edges.source or name), event_times(batch))


def _count(column: pa.Array, edges: ColumnEdges, counter: Counter) -> ColumnProfile:
    found = kind_of(column.type)
    blank = replace(ColumnProfile.empty(edges), rows=len(column), nulls=_nulls(column))
    if pa.types.is_null(column.type):
        return replace(blank, nulls=len(column))
    if edges.kind is ColumnKind.OPAQUE:
        return blank
    reads_as = {ColumnKind.TEXT: ColumnKind.CATEGORICAL}.get(edges.kind, edges.kind)
    if found is not reads_as:
        return replace(blank, mistyped=len(column) - blank.nulls)
    if edges.kind not in ORDERED:
        return replace(blank, counts=_category_counts(column, edges))
    values = values_of(column, edges.kind).astype(np.float64, copy=False)
    forgotten = {"minimum": None, "maximum": None} if edges.personal else {}
    moments = _moments(values)
    if moments is not None:
        return replace(blank, counts=counter.count(values), **{**moments, **forgotten})
    # Something is NaN, infinite, or too large to be summed as it is.
    held = values[~np.isnan(values)]
    finite = held[np.isfinite(held)]
    return replace(
        blank,
        nans=len(values) - len(held),
        infinities=len(held) - len(finite),
        counts=counter.count(held),
        **{**_large_moments(finite.astype(np.float64)), **forgotten},
    )


def _nulls(column: pa.Array) -> int:
    """Count nulls, those that a dictionary holds as a value included."""
    if pa.types.is_dictionary(column.type) and column.dictionary.null_count:
        return int(pc.sum(pc.is_null(decoded(column))).as_py() or 0)
    return int(column.null_count)


def _moments(values: npt.NDArray[Any]) -> dict[str, Any] | None:
    """Return what is left of the rows beside the counts; None if it takes more care."""
    if not len(values):
        return {}
    with np.errstate(over="ignore", invalid="ignore"):
        mean = values.sum(dtype=np.float64) / len(values)
        if not np.isfinite(mean):
            return None
        deviations = np.subtract(values, mean, dtype=np.float64)
        deviations *= deviations
        m2 = float(deviations.sum())
    if not math.isfinite(m2):
        return None
    return {
        "minimum": float(values.min()),
        "maximum": float(values.max()),
        "mean": float(mean),
        "m2": m2,
    }


def _large_moments(finite: Floats) -> dict[str, Any]:
    if not len(finite):
        return {}
    # Scaled before summing, so that values near the largest float do not overflow the sum.
    scale = float(np.max(np.abs(finite))) or 1.0
    with np.errstate(over="ignore", under="ignore"):
        scaled = finite / scale
        mean = float(scaled.mean())
        m2 = float(np.sum((scaled - mean) ** 2)) * scale * scale
    return {
        "minimum": float(finite.min()),
        "maximum": float(finite.max()),
        "mean": mean * scale,
        "m2": min(m2, _LARGEST),
    }


def _category_counts(column: pa.Array, edges: ColumnEdges) -> Integers:
    if edges.kind is ColumnKind.BOOLEAN:
        held = decoded(column).drop_null()
        true = pc.sum(held).as_py() or 0
        return np.array([len(held) - true, true, 0], dtype=np.int64)
    if not pa.types.is_dictionary(column.type):
        values, rows = column.drop_null(), None
    else:
        # Each distinct value is looked up once, and its rows are counted by their codes.
        codes = column.indices.drop_null().to_numpy(zero_copy_only=False)
        values, rows = column.dictionary, np.bincount(codes, minlength=len(column.dictionary))
    where = pc.fill_null(category_places(values, edges), len(edges.categories))
    bins = where.to_numpy(zero_copy_only=False)
    counts = np.zeros(edges.bins, dtype=np.int64)
    if rows is None:
        counts += np.bincount(bins, minlength=edges.bins)
    else:
        valid = values.is_valid().to_numpy(zero_copy_only=False)
        np.add.at(counts, bins[valid], rows[valid])
    return counts
