"""How a column is cut into bins, from a reference.

Above `monitor.drift.distances`, which compares what is counted in them, and
`monitor.profiles.derived`; `monitor.profiles.profile` counts.

A numeric column is cut at the reference's quantiles, bins `(low, high]`; a value that holds a
percent of the reference or more, such as the zero of rainfall, gets a bin of its own. Text and
whole categories get one bin per category and a last one for all others, the rare ones of the
reference among them where there are too many to keep. Text that hardly repeats is profiled by its
length and its pattern, lists by what `monitor.profiles.derived` computes of them. Null is not NaN
and neither is in a bin; minus and plus infinity are in the outermost bins.

About a hundred bins are kept, so that what reads the distribution function loses nothing that
matters. What sums a cost per bin pays for each bin in noise: for that, bins are grouped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import blake2b
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from steadfeast.monitor.profiles.derived import Aspect, aspects_of, centroid, derived, is_list
from steadfeast.monitor.profiles.roles import (
    LEFT_OUT,
    WATCHED_BY,
    Role,
    Surroundings,
    WatchedColumn,
    exact_codes,
    number_role,
    word_role,
)

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    Integers = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float64]

FINE_BINS = 100
COARSE_GROUPS = 10
POINT_MASS = 0.01
SMALLEST_GROUP = 0.02
MAX_CATEGORIES = 200
MOST_PATTERNS = 50
MOSTLY = 0.5
"""Share of the rows that the kept categories hold, from which on a text is categorical."""
EDGE_ROWS = 200_000
_TAILS = (0.001, 0.0025, 0.005)
_TAIL_DEPTH, _FEWEST_CUTS = 1.5, 10
_MICROSECOND = 1_000_000


class ColumnKind(StrEnum):
    """How a column is profiled."""

    NUMERIC = "numeric"
    BOOLEAN = "boolean"
    TIMESTAMP = "timestamp"
    CATEGORICAL = "categorical"
    TEXT = "text"
    OPAQUE = "opaque"


EVENT_TIMES = ("event time of the row", "request_time")
"""Names of the column with the event time: of a reference's rows, and of a snapshot's."""
ORDERED = frozenset({ColumnKind.NUMERIC, ColumnKind.TIMESTAMP, ColumnKind.TEXT})


@dataclass(frozen=True, slots=True)
class ColumnEdges:
    """The binning of one column.

    Attributes:
        kind: How the column is read.
        cuts: Ascending, finite; bin `i` is `(cuts[i-1], cuts[i]]`, so `len(cuts) + 1` bins. A
            point mass at v is the bin between v and the float before it. Empty for categories.
        categories: One bin each, most frequent in the reference first; one more for others.
        groups: First bin of each coarse group, ascending from 0.
        source: The column that this is an aspect of; empty for a column itself.
        aspect: What is computed of it.
        centroid: Where the reference's lists are on average; of `Aspect.DISTANCE`.
        path: Names of the struct's fields, from the outermost; of `Aspect.FIELD`.
        personal: Whether the values are somebody's, so that none may be shown; their categories
            are digests.
        role: What the column is. One that is left out, or only watched by what is computed of
            it, is `OPAQUE`.
    """

    kind: ColumnKind
    cuts: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    groups: tuple[int, ...] = (0,)
    source: str = ""
    aspect: Aspect = Aspect.NONE
    centroid: tuple[float, ...] = ()
    path: tuple[str, ...] = ()
    personal: bool = False
    role: Role = Role.FEATURE

    def of(self, column: pa.Array, times: pa.Array | None) -> pa.Array:
        """Return what is counted of a column: itself, or what is computed of it.

        Args:
            column: Of the name `source`.
            times: Event times of the rows; None where they are not known.
        """
        if self.aspect is Aspect.NONE:
            return column
        return derived(column, self.aspect, self.centroid, self.path, times)

    @property
    def bins(self) -> int:
        """Number of bins."""
        if self.kind in ORDERED:
            return len(self.cuts) + 1
        return 0 if self.kind is ColumnKind.OPAQUE else len(self.categories) + 1

    def coarse(self, counts: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return counts per group, shape (..., groups), of counts per bin, shape (..., bins)."""
        grouped: npt.NDArray[Any] = np.add.reduceat(counts, self.groups, axis=-1)
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
        found: Floats = bounds[:-1] / 2 + bounds[1:] / 2
        if len(cuts) > _FEWEST_CUTS:
            # The reference's last rows thin out towards its largest value: they lie near their
            # bin's inner end, about as far in as the bin before it is wide.
            found[-2] = min(found[-2], cuts[-2] + _TAIL_DEPTH * (cuts[-2] - cuts[-3]))
            found[1] = max(found[1], cuts[1] - _TAIL_DEPTH * (cuts[2] - cuts[1]))
        return found

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; floats survive exactly."""
        return {
            "kind": str(self.kind),
            "cuts": list(self.cuts),
            "categories": list(self.categories),
            "groups": list(self.groups),
            "source": self.source,
            "aspect": str(self.aspect),
            "centroid": list(self.centroid),
            "path": list(self.path),
            "personal": self.personal,
            "role": str(self.role),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ColumnEdges:
        """Return what `to_json` was called on."""
        return cls(
            ColumnKind(data["kind"]),
            tuple(map(float, data["cuts"])),
            tuple(data["categories"]),
            tuple(map(int, data["groups"])),
            data.get("source", ""),
            Aspect(data.get("aspect", "")),
            tuple(data.get("centroid", ())),
            tuple(data.get("path", ())),
            data.get("personal", False),
            Role(data.get("role", "feature")),
        )


@dataclass(frozen=True, slots=True)
class Edges:
    """The binning of every watched column, made from a reference once and then kept."""

    columns: Mapping[str, ColumnEdges]

    @property
    def categorical(self) -> frozenset[str]:
        """The columns that are counted by a bin per category."""
        return frozenset(
            name
            for name, one in self.columns.items()
            if one.kind is ColumnKind.CATEGORICAL and not one.source
        )

    @property
    def identifiers(self) -> tuple[str, ...]:
        """The columns of which each value names one row."""
        return tuple(name for name, one in self.columns.items() if one.role is Role.IDENTIFIER)

    @property
    def sources(self) -> frozenset[str]:
        """The columns that must be read."""
        named = {one.source or name for name, one in self.columns.items()}
        if any(one.aspect is Aspect.AGE for one in self.columns.values()):
            named.update(EVENT_TIMES)
        return frozenset(named)

    def watched(self, types: Mapping[str, Sequence[str]]) -> tuple[WatchedColumn, ...]:
        """Return how each column is watched, for people.

        Args:
            types: Arrow types of the reference's columns.
        """
        parts: dict[str, list[str]] = {}
        for name, one in self.columns.items():
            parts.setdefault(one.source or name, []).extend([name] if one.bins else [])
        found = []
        for name, features in parts.items():
            role = self.columns[name].role
            by = WATCHED_BY[role]
            if role is Role.PARTS:
                by = ", ".join(one.removeprefix(f"{name}.") for one in features)
            elif role is Role.UNWATCHED:
                by += f": {' and '.join(types.get(name, ())) or 'of no type'}"
            found.append(WatchedColumn(name, role, by, tuple(features)))
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {name: one.to_json() for name, one in self.columns.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Edges:
        """Return what `to_json` was called on."""
        return cls({name: ColumnEdges.from_json(one) for name, one in data.items()})


def edges_of(
    source: pa.Table | pa.RecordBatchReader | Iterable[pa.RecordBatch],
    columns: Sequence[str],
    personal: Container[str] = (),
    *,
    keys: Sequence[str] = (),
    roles: Mapping[str, Role] = MappingProxyType({}),
) -> Edges:
    """Make the binning of `columns` from a reference, in one pass.

    Quantiles are those of at most about `EDGE_ROWS` evenly spread rows: edges need not be
    exact, counts must. A column that the source lacks is left out. What is made of a column in
    `personal` is marked so. Where the rows have one of `EVENT_TIMES`, it is recognised what follows
    the clock.

    Args:
        source: The reference's rows.
        columns: Which to watch.
        personal: Columns whose values are somebody's.
        keys: Columns that name entities; used where the rows have them.
        roles: What some columns are, in place of what is recognised.
    """
    batches = source.to_batches() if isinstance(source, pa.Table) else source
    kept: list[pa.RecordBatch] = []
    rows, step = 0, 1
    wanted = list(dict.fromkeys((*columns, *keys, *EVENT_TIMES)))
    for batch in batches:
        held = set(batch.schema.names)
        present = [name for name in wanted if name in held]
        kept.append(_every(batch.select(present), -rows % step, step))
        rows += batch.num_rows
        while rows > 2 * EDGE_ROWS * step:
            # Rows 0, step, 2 step, ... are kept; keep every other one of them, in one piece.
            step *= 2
            pieces = pa.Table.from_batches(kept).combine_chunks().to_batches()
            kept = [_every(one, 0, 2) for one in pieces]
    schema = kept[0].schema if kept else getattr(source, "schema", pa.schema([]))
    table = pa.Table.from_batches(kept, schema)
    held = set(table.column_names)
    around = _surroundings(table, keys)
    found: dict[str, ColumnEdges] = {}
    names = [name for name in columns if name in held]
    for name in names:
        found[name] = _column_edges(name, table[name], around, roles.get(name))
    for name in names:
        for label, made in _computed(name, table, found[name]):
            found.setdefault(f"{name}.{label}", made)
    for name, one in found.items():
        if (one.source or name) in personal:
            found[name] = _without_names(one)
    return Edges(found)


def category_places(values: pa.Array, edges: ColumnEdges) -> pa.Array:
    """Return the place of each text among the categories; null where it is none of them."""
    if not edges.personal:
        return pc.index_in(values, value_set=pa.array(edges.categories, values.type))
    encoded = values.dictionary_encode()
    digests = pa.array([_digest(text) for text in encoded.dictionary.to_pylist()], pa.string())
    places = pc.index_in(digests, value_set=pa.array(edges.categories, pa.string()))
    return places.take(encoded.indices)


def _without_names(edges: ColumnEdges) -> ColumnEdges:
    """Mark bins as personal: what is kept of a category is a digest, which names nobody."""
    if edges.kind is not ColumnKind.CATEGORICAL:
        return replace(edges, personal=True)
    digests = tuple(_digest(text) or "" for text in edges.categories)
    return replace(edges, personal=True, categories=digests)


def _digest(text: str | None) -> str | None:
    if text is None:
        return None
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def event_times(batch: pa.RecordBatch | pa.Table) -> Any:
    """Return the event times of rows; None where they have none."""
    for name in EVENT_TIMES:
        if name in batch.schema.names:
            return batch.column(name)
    return None


def _surroundings(table: pa.Table, keys: Sequence[str]) -> Surroundings:
    times, entities = event_times(table), None
    if times is None or not table.num_rows:
        return Surroundings()
    micros = times.cast(pa.timestamp("us", "UTC"), safe=False).cast(pa.int64()).to_numpy()
    named = [name for name in keys if name in table.column_names]
    if named:
        codes = [pc.rank(table[name].cast(pa.string()), tiebreaker="dense") for name in named]
        entities = np.zeros(table.num_rows, np.int64)
        for code in codes:
            entities = entities * (table.num_rows + 1) + code.to_numpy().astype(np.int64)
            entities = np.unique(entities, return_inverse=True)[1]
    return Surroundings(micros, entities)


def kind_of(arrow: pa.DataType) -> ColumnKind:
    """Return how a column of this Arrow type is read; text counts as categorical."""
    arrow = plain_type(arrow)
    if pa.types.is_boolean(arrow):
        return ColumnKind.BOOLEAN
    if pa.types.is_timestamp(arrow) or pa.types.is_date(arrow):
        return ColumnKind.TIMESTAMP
    if pa.types.is_integer(arrow) or pa.types.is_floating(arrow) or pa.types.is_decimal(arrow):
        return ColumnKind.NUMERIC
    if pa.types.is_string(arrow) or pa.types.is_large_string(arrow):
        return ColumnKind.CATEGORICAL
    return ColumnKind.OPAQUE


def plain_type(arrow: pa.DataType) -> pa.DataType:
    """Return the type of the values, without a dictionary around them."""
    return arrow.value_type if pa.types.is_dictionary(arrow) else arrow


def _every(batch: pa.RecordBatch, start: int, step: int) -> pa.RecordBatch:
    if step == 1:
        return batch
    return batch.take(pa.array(range(start, batch.num_rows, step), pa.int64()))


def _column_edges(
    name: str, column: pa.ChunkedArray, rows: Surroundings, role: Role | None = None
) -> ColumnEdges:
    """Return the binning of a column, which has no bins where its values are not compared."""
    kind = kind_of(column.type)
    if role is None:
        made = _recognised(name, column, rows, kind)
    elif role in LEFT_OUT or role is Role.TIME:
        made = ColumnEdges(ColumnKind.OPAQUE, role=role)
    else:
        made = replace(_cut(column, kind), role=role)
    left_out = made.role in LEFT_OUT and made.kind is not ColumnKind.TEXT
    return ColumnEdges(ColumnKind.OPAQUE, role=made.role) if left_out else made


def _recognised(
    name: str, column: pa.ChunkedArray, rows: Surroundings, kind: ColumnKind
) -> ColumnEdges:
    if pa.types.is_null(column.type):
        return ColumnEdges(ColumnKind.OPAQUE, role=Role.EMPTY)
    if kind is ColumnKind.OPAQUE:
        role = Role.PARTS if aspects_of(column.type) else Role.UNWATCHED
        return ColumnEdges(kind, role=Role.EMBEDDING if is_list(column.type) else role)
    if kind is ColumnKind.TIMESTAMP and rows.micros is not None:
        return ColumnEdges(ColumnKind.OPAQUE, role=Role.TIME)
    made, plain = _cut(column, kind), decoded(column)
    if kind is ColumnKind.NUMERIC:
        values = np.concatenate([np.empty(0), *(values_of(one, kind) for one in column.chunks)])
        role = number_role(name, plain, values, rows)
        few = pc.count_distinct(plain).as_py() <= MAX_CATEGORIES
        if few and role in {Role.FEATURE, Role.CONSTANT} and exact_codes(plain):
            made, role = ColumnEdges(ColumnKind.OPAQUE), Role.PARTS
    elif kind is ColumnKind.CATEGORICAL:
        role = word_role(plain, pc.count_distinct(plain).as_py(), rows)
        role = Role.TEXT if role is Role.FEATURE and made.kind is ColumnKind.TEXT else role
    else:
        role = Role.FEATURE
    return replace(made, role=role)


def _cut(column: pa.ChunkedArray, kind: ColumnKind) -> ColumnEdges:
    if kind is ColumnKind.BOOLEAN:
        return ColumnEdges(kind, categories=("false", "true"), groups=(0, 1, 2))
    if kind is ColumnKind.OPAQUE:
        return ColumnEdges(kind)
    if kind is ColumnKind.CATEGORICAL:
        found = pc.value_counts(decoded(column).drop_null())
        if len(found) <= MAX_CATEGORIES:
            return _category_edges(_pairs(found, MAX_CATEGORIES))
        largest = _pairs(found, MAX_CATEGORIES)
        if sum(count for _, count in largest) >= MOSTLY * (len(column) - column.null_count):
            return _category_edges(largest)
        kind = ColumnKind.TEXT
    values = np.concatenate([np.empty(0), *(values_of(chunk, kind) for chunk in column.chunks)])
    return _cut_edges(values[np.isfinite(values)], kind)


def _pairs(found: pa.StructArray, most: int) -> list[tuple[str, int]]:
    """Return the largest values and their counts; ties do not depend on the order of the rows."""
    pairs = zip(found.field(0).to_pylist(), found.field(1).to_pylist(), strict=True)
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:most]


def _computed(name: str, table: pa.Table, edges: ColumnEdges) -> Iterator[tuple[str, ColumnEdges]]:
    """Yield what is computed of a column that has no bins, or only of its length, by name."""
    column, times = table[name], event_times(table)
    if edges.kind is ColumnKind.TEXT:
        wanted: list[tuple[Aspect, tuple[str, ...]]] = [(Aspect.PATTERN, ())]
    elif edges.role is Role.TIME:
        wanted = [(Aspect.AGE, ())]
    elif edges.role in {Role.PARTS, Role.EMBEDDING}:
        wanted = aspects_of(column.type) or [(Aspect.DIGITS, ())]
    else:
        return
    for aspect, path in wanted:
        center = centroid(column) if aspect is Aspect.DISTANCE else ()
        if aspect is Aspect.DISTANCE and not center:
            continue
        made = ColumnEdges(
            ColumnKind.OPAQUE, source=name, aspect=aspect, centroid=tuple(center), path=path
        )
        whole = column.combine_chunks()
        given = None if times is None else times.combine_chunks()
        values = pa.chunked_array([made.of(whole, given)])
        if aspect in {Aspect.PATTERN, Aspect.DIGITS}:
            counted = pc.value_counts(values.drop_null())
            most = MOST_PATTERNS if aspect is Aspect.PATTERN else MAX_CATEGORIES
            cut = _category_edges(_pairs(counted, most))
        else:
            cut = _cut(values, kind_of(values.type))
        label = ".".join(path) if path else aspect.value
        yield label, replace(cut, source=name, aspect=aspect, centroid=made.centroid, path=path)


def _category_edges(pairs: Sequence[tuple[str, int]]) -> ColumnEdges:
    """One bin per category; the rare ones form one coarse group, and the unknown another."""
    rows = sum(count for _, count in pairs)
    common = sum(count >= POINT_MASS * rows for _, count in pairs)
    groups = {*range(common), common, len(pairs)}
    return ColumnEdges(
        ColumnKind.CATEGORICAL,
        categories=tuple(name for name, _ in pairs),
        groups=tuple(sorted(groups)),
    )


def _cut_edges(values: Floats, kind: ColumnKind) -> ColumnEdges:
    if not len(values):
        return ColumnEdges(kind)
    distinct, counts = np.unique(values, return_counts=True)
    massive = counts >= max(POINT_MASS * len(values), 2)
    points = distinct[massive]
    levels = np.concatenate([_TAILS, np.linspace(0, 1, FINE_BINS + 1), 1 - np.array(_TAILS)])
    quantiles = np.quantile(values, levels, method="inverted_cdf")
    # The bin below the smallest and above the largest value hold what the reference never saw.
    with np.errstate(over="ignore"):  # below the least number is -inf
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
        # Compared at the middle of the bin: a group ends where it is nearest to its target. An
        # empty bin beside a point mass stays apart, or what moves off the mass would not show.
        if i and (alone[i] or alone[i - 1] or (held and held + count / 2 > target)):
            starts.append(i)
            held = 0
        held += count
    return tuple(starts)


def decoded(column: Any) -> Any:
    """Return an array or chunked array without a dictionary."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def values_of(column: pa.Array, kind: ColumnKind) -> npt.NDArray[Any]:
    """Return the non-null values as numbers of any width, shape (n,).

    Timestamps are seconds, text is its length in characters.
    """
    column = _lengths(column) if kind is ColumnKind.TEXT else decoded(column)
    if column.null_count:
        column = column.drop_null()
    if kind is ColumnKind.TIMESTAMP:
        # To microseconds whatever the unit was; sub-microsecond digits are beyond our clock.
        micros = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
        return np.asarray(micros.to_numpy(zero_copy_only=False), np.float64) / _MICROSECOND
    if pa.types.is_decimal(column.type) or pa.types.is_float16(column.type):
        column = column.cast(pa.float64())
    values: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values


def places_of(column: Any, edges: ColumnEdges) -> Integers:
    """Return each row's bin, and the number after the last for what has no value.

    Null, NaN, and all of a column that cannot be read as `edges.kind` have none.

    Args:
        column: Array or chunked array.
        edges: Of the column; it has bins.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    column = decoded(column)
    missing = edges.bins
    found = np.full(len(column), missing, np.int64)
    reads_as = {ColumnKind.TEXT: ColumnKind.CATEGORICAL}.get(edges.kind, edges.kind)
    if kind_of(column.type) is not reads_as:
        return found
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    if edges.kind in ORDERED:
        values = values_of(column, edges.kind)
        bins = np.searchsorted(np.array(edges.cuts), values)
        bins = np.where(np.isnan(values), missing, bins)
    elif edges.kind is ColumnKind.BOOLEAN:
        bins = column.drop_null().to_numpy(zero_copy_only=False).astype(np.int64)
    else:
        held = category_places(column.drop_null(), edges)
        codes = pc.fill_null(held, len(edges.categories))
        bins = codes.to_numpy(zero_copy_only=False)
    found[valid] = bins
    return found


def _lengths(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        return pc.utf8_length(column.dictionary).take(column.indices)
    return pc.utf8_length(column)
