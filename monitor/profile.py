"""What is kept of a window's rows: counts per column, mergeable.

Above `monitor.statistics`. Kernels take Arrow batches, not file names, and keep no rows.

A profile over given edges is a commutative monoid: `Profile.empty(edges)` is the identity, `+`
merges, and `profile(a) + profile(b)` equals `profile(a and b)`: exactly for every count, minimum
and maximum; within rounding for `mean` and `m2`, which are floating-point sums (relative error
about 1e-12 in tests). So a window is the sum of its buckets and one tick costs the new rows.

Bins. A numeric column is cut at the reference's quantiles, bins `(low, high]`; a value that
holds a percent of the reference or more, such as the zero of rainfall, gets a bin of its own.
Text and whole categories get one bin per category and a last one for all others; text with too
many distinct values is profiled by its length. Null is not NaN and neither is in a bin; minus
and plus infinity are in the outermost bins.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import SteadfeastError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    Integers = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float64]

FINE_BINS = 100
COARSE_GROUPS = 10
POINT_MASS = 0.01
SMALLEST_GROUP = 0.02
MAX_CATEGORIES = 200
EDGE_ROWS = 200_000
_TAILS = (0.001, 0.0025, 0.005)
_MICROSECOND = 1_000_000


class EdgesMismatchError(SteadfeastError):
    """Two profiles over different edges cannot be merged."""

    def __init__(self) -> None:
        super().__init__("profiles over different edges cannot be merged")


class Kind(StrEnum):
    """How a column is profiled."""

    NUMERIC = "numeric"
    BOOLEAN = "boolean"
    TIMESTAMP = "timestamp"
    CATEGORICAL = "categorical"
    TEXT = "text"
    OPAQUE = "opaque"


ORDERED = frozenset({Kind.NUMERIC, Kind.TIMESTAMP, Kind.TEXT})


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


@dataclass(frozen=True, slots=True)
class ColumnEdges:
    """The binning of one column.

    Attributes:
        kind: How the column is read.
        cuts: Ascending, finite; bin `i` is `(cuts[i-1], cuts[i]]`, so `len(cuts) + 1` bins. A
            point mass at v is the bin between v and the float before it. Empty for categories.
        categories: One bin each, most frequent in the reference first; one more for others.
        groups: First bin of each coarse group, ascending from 0.
    """

    kind: Kind
    cuts: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    groups: tuple[int, ...] = (0,)

    @property
    def bins(self) -> int:
        """Number of bins."""
        if self.kind in ORDERED:
            return len(self.cuts) + 1
        return 0 if self.kind is Kind.OPAQUE else len(self.categories) + 1

    def coarse(self, counts: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return counts per group, shape (len(groups),), of counts per bin, shape (bins,)."""
        grouped: npt.NDArray[Any] = np.add.reduceat(counts, self.groups)
        return grouped

    def positions(self, low: float | None, high: float | None) -> Floats:
        """Return where each bin's rows lie, shape (bins,), ascending.

        Args:
            low: Smallest finite value on either side, or None: bounds the first bin.
            high: The largest; bounds the last.
        """
        if self.kind not in ORDERED or not self.cuts:
            return np.arange(self.bins, dtype=np.float64)
        cuts = np.array(self.cuts)
        first = cuts[0] if low is None else min(low, cuts[0])
        last = cuts[-1] if high is None else max(high, cuts[-1])
        bounds = np.concatenate([[first], cuts, [last]])
        # Half of each, because their sum may overflow.
        return bounds[:-1] / 2 + bounds[1:] / 2

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; floats survive exactly."""
        return {
            "kind": str(self.kind),
            "cuts": list(self.cuts),
            "categories": list(self.categories),
            "groups": list(self.groups),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ColumnEdges:
        """Return what `to_json` was called on."""
        return cls(
            Kind(data["kind"]),
            tuple(map(float, data["cuts"])),
            tuple(data["categories"]),
            tuple(map(int, data["groups"])),
        )


@dataclass(frozen=True, slots=True)
class Edges:
    """The binning of every watched column, made from a reference once and then kept."""

    columns: Mapping[str, ColumnEdges]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {name: one.to_json() for name, one in self.columns.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Edges:
        """Return what `to_json` was called on."""
        return cls({name: ColumnEdges.from_json(one) for name, one in data.items()})


@dataclass(frozen=True, slots=True, eq=False)
class ColumnProfile:
    """Figures of one column.

    Attributes:
        rows: Rows in which the column was there at all, nulls included.
        nulls: Nulls among them.
        nans: NaN; not nulls.
        infinities: Of either sign.
        mistyped: Rows whose Arrow type cannot be read as the reference's kind; in no bin.
        minimum: Smallest finite value; None without one. Seconds since 1970 for timestamps,
            characters for text.
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
            gap = other.mean - self.mean
            mean = (n * self.mean + m * other.mean) / (n + m)
            m2 = self.m2 + other.m2 + gap * gap * n * m / (n + m)
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
        types: Every column seen, watched or not, with the Arrow types it had, sorted.
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


def edges_of(
    source: pa.Table | pa.RecordBatchReader | Iterable[pa.RecordBatch], columns: Sequence[str]
) -> Edges:
    """Make the binning of `columns` from a reference, in one pass.

    Quantiles are those of at most about `EDGE_ROWS` evenly spread rows: edges need not be
    exact, counts must. A column that the source lacks is left out.
    """
    batches = source.to_batches() if isinstance(source, pa.Table) else source
    kept: list[pa.RecordBatch] = []
    rows, step = 0, 1
    for batch in batches:
        present = [name for name in columns if name in batch.schema.names]
        kept.append(_every(batch.select(present), -rows % step, step))
        rows += batch.num_rows
        while rows > 2 * EDGE_ROWS * step:
            # Rows 0, step, 2 step, ... are kept; keep every other one of them, in one piece.
            step *= 2
            thin = pa.Table.from_batches(kept).take(range(0, sum(map(len, kept)), 2))
            kept = thin.combine_chunks().to_batches()
    if not kept:
        return Edges({})
    table = pa.Table.from_batches(kept)
    return Edges({name: _column_edges(table[name]) for name in table.column_names})


def profile(batches: Iterable[pa.RecordBatch], edges: Edges) -> Profile:
    """Count rows over `edges` in one pass; keeps no rows.

    A watched column that a batch lacks, or whose type cannot be read as the reference's kind,
    does not stop the others: `ColumnProfile.rows` then stays below `Profile.rows`, or
    `mistyped` is above 0.
    """
    merged = Profile.empty(edges)
    for batch in batches:
        columns = {
            name: (
                _count(batch.column(name), one)
                if name in batch.schema.names
                else ColumnProfile.empty(one)
            )
            for name, one in edges.columns.items()
        }
        types = {field.name: (str(_plain_type(field.type)),) for field in batch.schema}
        merged += Profile(edges, batch.num_rows, columns, types)
    return merged


def kind_of(arrow: pa.DataType) -> Kind:
    """Return how a column of this Arrow type is read; text counts as categorical."""
    arrow = _plain_type(arrow)
    if pa.types.is_boolean(arrow):
        return Kind.BOOLEAN
    if pa.types.is_timestamp(arrow) or pa.types.is_date(arrow):
        return Kind.TIMESTAMP
    if pa.types.is_integer(arrow) or pa.types.is_floating(arrow) or pa.types.is_decimal(arrow):
        return Kind.NUMERIC
    if pa.types.is_string(arrow) or pa.types.is_large_string(arrow):
        return Kind.CATEGORICAL
    return Kind.OPAQUE


def _plain_type(arrow: pa.DataType) -> pa.DataType:
    return arrow.value_type if pa.types.is_dictionary(arrow) else arrow


def _every(batch: pa.RecordBatch, start: int, step: int) -> pa.RecordBatch:
    if step == 1:
        return batch
    return batch.take(pa.array(range(start, batch.num_rows, step), pa.int64()))


def _least(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else min(a, b)


def _greatest(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else max(a, b)


def _column_edges(column: pa.ChunkedArray) -> ColumnEdges:
    kind = kind_of(column.type)
    if kind is Kind.BOOLEAN:
        return ColumnEdges(kind, categories=("false", "true"), groups=(0, 1, 2))
    if kind is Kind.OPAQUE:
        return ColumnEdges(kind)
    if kind is Kind.CATEGORICAL:
        found = pc.value_counts(_decoded(column).drop_null())
        if len(found) <= MAX_CATEGORIES:
            # Sorted twice: ties in the counts must not depend on the order of the rows.
            pairs = sorted(
                zip(found.field(0).to_pylist(), found.field(1).to_pylist(), strict=True),
                key=lambda pair: (-pair[1], pair[0]),
            )
            return _category_edges(pairs)
        kind = Kind.TEXT
    values = np.concatenate(
        [np.empty(0), *(_values(_decoded(chunk), kind) for chunk in column.chunks)]
    )
    return _cut_edges(values[np.isfinite(values)], kind)


def _category_edges(pairs: Sequence[tuple[str, int]]) -> ColumnEdges:
    """One bin per category; the rare ones form one coarse group, and the unknown another."""
    rows = sum(count for _, count in pairs)
    common = sum(count >= POINT_MASS * rows for _, count in pairs)
    groups = {*range(common), common, len(pairs)}
    return ColumnEdges(
        Kind.CATEGORICAL,
        categories=tuple(name for name, _ in pairs),
        groups=tuple(sorted(groups)),
    )


def _cut_edges(values: Floats, kind: Kind) -> ColumnEdges:
    if not len(values):
        return ColumnEdges(kind)
    distinct, counts = np.unique(values, return_counts=True)
    massive = counts >= max(POINT_MASS * len(values), 2)
    points = distinct[massive]
    levels = np.concatenate([_TAILS, np.linspace(0, 1, FINE_BINS + 1), 1 - np.array(_TAILS)])
    quantiles = np.quantile(values, levels, method="inverted_cdf")
    # The bin below the smallest and above the largest value hold what the reference never saw.
    below = np.nextafter(np.append(points, distinct[0]), -np.inf)
    cuts = np.unique(np.concatenate([quantiles, points, below]))
    cuts = cuts[np.isfinite(cuts)]
    filled = np.bincount(np.searchsorted(cuts, values), minlength=len(cuts) + 1)
    single = np.isin(cuts, points)
    return ColumnEdges(
        kind, cuts=tuple(cuts.tolist()), groups=_groups(filled, np.append(single, False))
    )


def _groups(counts: Integers, single: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    """Group bins to about `COARSE_GROUPS`, point masses that fill a group by themselves apart.

    What is left beside the large point masses is split evenly, but into shares of no less than
    `SMALLEST_GROUP`, so that the few rainy hours of a dry year still make groups of their own.
    """
    rows = counts.sum()
    alone = single & (counts >= rows / COARSE_GROUPS)
    rest = rows - counts[alone].sum()
    target = max(rest / COARSE_GROUPS, SMALLEST_GROUP * rows)
    starts = [0]
    held = 0
    for i, count in enumerate(counts):
        # Compared at the middle of the bin: a group ends where it is nearest to its target.
        if i and held and (alone[i] or alone[i - 1] or held + count / 2 > target):
            starts.append(i)
            held = 0
        held += count
    return tuple(starts)


def _decoded(column: Any) -> Any:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _values(column: pa.Array, kind: Kind) -> Floats:
    """Return the non-null values as float64; timestamps in seconds, text by its length."""
    column = column.drop_null()
    if kind is Kind.TEXT:
        column = pc.utf8_length(column)
    elif kind is Kind.TIMESTAMP:
        # To microseconds whatever the unit was; sub-microsecond digits are beyond our clock.
        micros = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
        return np.asarray(micros.to_numpy(zero_copy_only=False), np.float64) / _MICROSECOND
    elif pa.types.is_decimal(column.type) or pa.types.is_float16(column.type):
        column = column.cast(pa.float64())
    values: Floats = column.to_numpy(zero_copy_only=False).astype(np.float64)
    return values


def _count(column: pa.Array, edges: ColumnEdges) -> ColumnProfile:
    column = _decoded(column)
    found = kind_of(column.type)
    blank = replace(ColumnProfile.empty(edges), rows=len(column), nulls=column.null_count)
    if pa.types.is_null(column.type):
        return blank
    reads_as = {Kind.TEXT: Kind.CATEGORICAL}.get(edges.kind, edges.kind)
    if found is not reads_as:
        return replace(blank, mistyped=len(column) - column.null_count)
    if edges.kind is Kind.OPAQUE:
        return blank
    if edges.kind not in ORDERED:
        return replace(blank, counts=_category_counts(column.drop_null(), edges))
    values = _values(column, edges.kind)
    nan = np.isnan(values)
    values = values[~nan]
    counts = np.bincount(np.searchsorted(edges.cuts, values), minlength=edges.bins)
    finite = values[np.isfinite(values)]
    return replace(
        blank,
        nans=int(nan.sum()),
        infinities=len(values) - len(finite),
        counts=counts.astype(np.int64),
        **_moments(finite),
    )


def _moments(finite: Floats) -> dict[str, Any]:
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
        "m2": min(m2, np.finfo(np.float64).max),
    }


def _category_counts(column: pa.Array, edges: ColumnEdges) -> Integers:
    if edges.kind is Kind.BOOLEAN:
        true = pc.sum(column).as_py() or 0
        return np.array([len(column) - true, true, 0], dtype=np.int64)
    known = pa.array(edges.categories, column.type)
    where = pc.fill_null(pc.index_in(column, value_set=known), len(known))
    return np.bincount(where.to_numpy(zero_copy_only=False), minlength=edges.bins).astype(np.int64)
