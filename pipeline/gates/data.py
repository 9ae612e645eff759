"""Gates of the data: what must hold of the examples before a model is fitted on them.

Above `gate`. Tables in, gates out; no I/O, clock or globals. Every gate is judged and reported,
also after one has failed. What drift does to values is no fault and passes: the limits are set
where a column has broken, and compare with what the champion was trained on where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import entropy, spearmanr

from steadfeast.measures import Task
from steadfeast.pipeline.gates.gate import Gate
from steadfeast.pipeline.recipes import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steadfeast.pipeline.config import ChecksConfig, ModelConfig
    from steadfeast.pipeline.recipes import Target

_TWO = 2
_BINS = 50
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Examples:
    """The examples that a model is to be fitted on, and those of the champion.

    Attributes:
        table: Everything known.
        train: The part that the judged model is fitted on.
        holdout: The part that it is judged on.
        features: The columns that the service gives.
        keys: Columns that say whose row it is.
        target: What is predicted.
        before: What the champion was trained on; None if there is none, or it is gone.
        setting: In words, which stretch is held out and what would fill it.
    """

    table: pa.Table
    train: pa.Table
    holdout: pa.Table
    features: Sequence[str]
    keys: Sequence[str]
    target: Target
    before: pa.Table | None = None
    setting: str = ""


def data_gates(examples: Examples, config: ModelConfig) -> list[Gate]:
    """Judge the examples: enough rows, labels that differ, and columns that are not broken."""
    gates = [_rows(examples, config)]
    for part, table in (("train", examples.train), ("holdout", examples.holdout)):
        gates += [_labels(part, table, examples.target, config.checks)]
    if not examples.table.num_rows:
        return gates
    watched = [name for name in examples.features if name not in config.checks.ignore]
    shares = {name: _Shares.of(examples.table[name]) for name in watched}
    earlier = examples.before if examples.before is not None else examples.table.slice(0, 0)
    gates += [
        _types(examples.table, earlier, watched),
        *_missing(shares, earlier, config.checks),
        _constants(examples.table, earlier, watched),
        _duplicates(examples, config.checks),
        _leak(examples, watched, config.checks),
    ]
    if earlier.num_rows:
        both = [name for name in watched if name in earlier.column_names]
        gates += [
            _ranges(examples.table, earlier, both, config.checks),
            _categories(examples.table, earlier, both, config.checks),
            _label_share(examples, earlier, config.checks),
        ]
    return gates


# -- rows and labels ---------------------------------------------------------------------


def _rows(examples: Examples, config: ModelConfig) -> Gate:
    held_out, train = examples.holdout.num_rows, examples.train.num_rows
    detail = f"{held_out} labelled rows held out, {train} to train on"
    enough = held_out >= config.min_rows
    if not enough:
        detail += f"; {examples.setting}"
    return Gate("holdout_rows", enough, held_out, config.min_rows, detail)


def _labels(part: str, table: pa.Table, target: Target, config: ChecksConfig) -> Gate:
    """Judge whether a part's labels differ, and of classes whether there are enough of each."""
    column = table.column(target.label)
    counts = pc.value_counts(column.drop_null())
    found = {one["values"].as_py(): one["counts"].as_py() for one in counts}
    if not target.task.is_classification:
        seen = f"{target.label} has {len(found):,} different values"
        return Gate(f"{part}_labels", len(found) >= _TWO, len(found), _TWO, seen)
    name = f"{part}_classes"
    if len(found) < _TWO:
        seen = f"{target.label} is {shown(sorted(found)) if found else 'never known'}"
        return Gate(name, False, len(found), _TWO, seen)
    rows = sorted(found.values())
    # Of many classes a rare one may be missing; of two, both are needed.
    fewest = rows[0] if target.task is Task.BINARY else rows[-_TWO]
    listed = ", ".join(f"{value!r} {count:,} times" for value, count in sorted(found.items())[:5])
    seen = f"{target.label} is {listed}"
    return Gate(name, fewest >= config.positives, fewest, config.positives, seen)


def _label_share(examples: Examples, earlier: pa.Table, config: ChecksConfig) -> Gate:
    """Judge how far the share of each class, or the mean, has moved since the champion."""
    target, name = examples.target, "label_share"
    if target.label not in earlier.column_names:
        return Gate(name, True, 0, config.label_share, "the champion had another label")
    now, then = examples.table[target.label], earlier[target.label]
    if not target.task.is_classification:
        values, old = (column.cast(pa.float64()).to_numpy() for column in (now, then))
        spread = float(np.nanstd(old)) or 1.0
        moved = abs(float(np.nanmean(values) - np.nanmean(old))) / spread
        limit = 10 * config.label_share
        detail = f"the mean of {target.label} moved by {moved:.2f} of its standard deviations"
        return Gate(name, moved <= limit, moved, limit, detail)
    shares = [_class_shares(column) for column in (now, then)]
    moves = {
        value: abs(shares[0].get(value, 0) - shares[1].get(value, 0))
        for value in {*shares[0], *shares[1]}
    }
    worst = max(moves, key=lambda value: moves[value])
    detail = f"{target.label} is {worst!r} in {shares[0].get(worst, 0):.1%} of the rows"
    detail += f", {shares[1].get(worst, 0):.1%} of the champion's"
    return Gate(name, moves[worst] <= config.label_share, moves[worst], config.label_share, detail)


def _class_shares(column: pa.ChunkedArray) -> dict[Any, float]:
    counts = pc.value_counts(column.drop_null())
    total = max(1, len(column) - column.null_count)
    return {one["values"].as_py(): one["counts"].as_py() / total for one in counts}


# -- columns -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Shares:
    """Which share of a column's rows holds no usable value."""

    nulls: float
    nans: float
    infinities: float

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> _Shares:
        rows = max(1, len(column))
        if not pa.types.is_floating(column.type):
            return cls(column.null_count / rows, 0.0, 0.0)
        nans = pc.sum(pc.is_nan(column)).as_py() or 0
        infinite = pc.sum(pc.is_inf(column)).as_py() or 0
        return cls(column.null_count / rows, nans / rows, infinite / rows)


def _gate(name: str, values: Mapping[str, float], limit: float, what: str) -> Gate:
    """Return the gate of a figure per column, of which the greatest counts."""
    over = {column: value for column, value in values.items() if value > limit}
    worst = max(values.values(), default=0.0)
    if not over:
        return Gate(name, True, worst, limit, f"no column has {what} in more than {limit:.3g}")
    order = sorted(over, key=lambda column: -over[column])
    text = ", ".join(f"{column} {over[column]:.4g}" for column in order[:_NAMED])
    more = f" and {len(order) - _NAMED} more" if len(order) > _NAMED else ""
    return Gate(name, False, worst, limit, f"share of rows with {what}: {text}{more}")


def _types(table: pa.Table, earlier: pa.Table, watched: Sequence[str]) -> Gate:
    names = [name for name in watched if name in earlier.column_names]
    other = [
        f"{name} is {table.schema.field(name).type}, was {earlier.schema.field(name).type}"
        for name in names
        if table.schema.field(name).type != earlier.schema.field(name).type
    ]
    return Gate("types", not other, len(other), 0, "; ".join(other) or "as the champion's")


def _missing(
    shares: Mapping[str, _Shares], earlier: pa.Table, config: ChecksConfig
) -> Iterator[Gate]:
    """Judge nulls, NaN and infinities: how many there are, and how many more than there were."""
    columns = set(earlier.column_names) if earlier.num_rows else set()
    then = {name: _Shares.of(earlier[name]) for name in shares if name in columns}
    for kind, limit in (
        ("nulls", config.nulls),
        ("nans", config.nans),
        ("infinities", config.infinities),
    ):
        values = {name: getattr(one, kind) for name, one in shares.items()}
        yield _gate(kind, values, limit, kind)
        more = {name: values[name] - getattr(old, kind) for name, old in then.items()}
        if then:
            yield _gate(f"more_{kind}", more, config.more, f"{kind} that the champion's had not")


def _constants(table: pa.Table, earlier: pa.Table, watched: Sequence[str]) -> Gate:
    """Judge whether a column has one value only, where it had more, or has never been seen."""
    old = set(earlier.column_names) if earlier.num_rows else set()
    constant = [
        name
        for name in watched
        if _is_constant(table[name]) and not (name in old and _is_constant(earlier[name]))
    ]
    detail = f"one value only: {', '.join(constant)}" if constant else "every column varies"
    return Gate("constants", not constant, len(constant), 0, detail)


def _is_constant(column: pa.ChunkedArray) -> bool:
    if pa.types.is_nested(column.type):
        return False
    values = column.drop_null()
    if pa.types.is_floating(values.type):
        values = values.filter(pc.invert(pc.is_nan(values)))
    return len(pc.unique(values)) == 1


def _duplicates(examples: Examples, config: ChecksConfig) -> Gate:
    table = examples.table
    names = [name for name in (*examples.keys, "event_timestamp") if name in table.column_names]
    different = table.select(names).group_by(names).aggregate([]).num_rows
    share = 1 - different / table.num_rows
    repeated = table.num_rows - different
    detail = f"{repeated:,} of {table.num_rows:,} rows have the keys and time of another"
    return Gate("duplicates", share <= config.duplicates, share, config.duplicates, detail)


def _ranges(table: pa.Table, earlier: pa.Table, both: Sequence[str], config: ChecksConfig) -> Gate:
    """Judge how many values lie far outside what the champion saw: more than its whole range."""
    outside = {}
    for name in both:
        if not (_is_number(table[name].type) and _is_number(earlier[name].type)):
            continue
        values, old = _finite(table[name]), _finite(earlier[name])
        if len(values) and len(old):
            low, high = float(old.min()), float(old.max())
            width = high - low
            far = (values < low - width) | (values > high + width)
            outside[name] = float(np.mean(far))
    return _gate("ranges", outside, config.outside, "values far outside the champion's range")


def _categories(
    table: pa.Table, earlier: pa.Table, both: Sequence[str], config: ChecksConfig
) -> Gate:
    new = {}
    for name in both:
        if not (pa.types.is_string(table[name].type) and pa.types.is_string(earlier[name].type)):
            continue
        values, known = table[name].drop_null(), pc.unique(earlier[name].drop_null())
        if len(values) and len(known) < earlier.num_rows / 2:  # else it is an identifier
            strange = pc.invert(pc.is_in(values, value_set=known))
            new[name] = float(pc.mean(strange.cast(pa.float64())).as_py())
    return _gate("categories", new, config.new_categories, "values that the champion never saw")


# -- a feature that is the label ---------------------------------------------------------


def _leak(examples: Examples, watched: Sequence[str], config: ChecksConfig) -> Gate:
    """Judge whether one feature alone gives the label away.

    Of classes: the share of the label's entropy that is gone once the feature's bin is known. Of
    numbers: the rank correlation of feature and label.
    """
    target, table = examples.target, examples.table
    truth = target.truth(table)
    by_rank = not target.task.is_classification
    limit = config.leak
    values = {}
    for name in watched:
        column = table[name]
        if pa.types.is_nested(column.type):
            continue
        if by_rank:
            values[name] = _rank_correlation(column, truth)
        else:
            values[name] = _given_away(column, truth)
    worst = max(values, key=lambda name: values[name], default="")
    value = values.get(worst, 0.0)
    over = [name for name in values if values[name] > limit]
    detail = (
        f"{', '.join(over)} alone says what {target.label} is: known only afterwards?"
        if over
        else f"no single feature says what {target.label} is; nearest is {worst or 'none'}"
    )
    return Gate("label_leak", not over, value, limit, detail)


def _given_away(column: pa.ChunkedArray, truth: np.ndarray) -> float:
    codes = _bins(column)
    if codes is None or len(np.unique(truth)) < _TWO:
        return 0.0
    pairs = np.zeros((int(codes.max()) + 1, int(truth.max()) + 1))
    np.add.at(pairs, (codes, truth.astype(int)), 1)
    rows = pairs.sum(axis=1)
    left = float(np.sum(rows / rows.sum() * entropy(pairs + 1e-12, axis=1)))
    return max(0.0, 1 - left / float(entropy(pairs.sum(axis=0))))


def _bins(column: pa.ChunkedArray) -> np.ndarray | None:
    """Return the number of each row's bin; None where values hardly come back."""
    if _is_number(column.type):
        values = column.cast(pa.float64(), safe=False).to_numpy().astype(np.float64)
        usable = np.isfinite(values)
        if not usable.any():
            return None
        edges = np.unique(np.quantile(values[usable], np.linspace(0, 1, _BINS + 1)[1:-1]))
        codes = np.searchsorted(edges, values, side="left") + 1
        return np.where(usable, codes, 0)
    encoded = pc.dictionary_encode(column.combine_chunks(), null_encoding="encode")
    if len(encoded.dictionary) > max(_BINS, len(column) // 20):
        return None
    return np.asarray(encoded.indices.to_numpy(zero_copy_only=False), np.int64)


def _rank_correlation(column: pa.ChunkedArray, truth: np.ndarray) -> float:
    if not _is_number(column.type):
        return 0.0
    values = column.cast(pa.float64(), safe=False).to_numpy().astype(np.float64)
    usable = np.isfinite(values) & np.isfinite(truth)
    if usable.sum() < _BINS or np.ptp(values[usable]) == 0 or np.ptp(truth[usable]) == 0:
        return 0.0
    return abs(float(spearmanr(values[usable], truth[usable]).statistic))


def _is_number(kind: pa.DataType) -> bool:
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    return any(is_kind(kind) for is_kind in kinds)


def _finite(column: pa.ChunkedArray) -> np.ndarray:
    values = column.cast(pa.float64(), safe=False).to_numpy().astype(np.float64)
    return np.asarray(values[np.isfinite(values)])


# -- checks of one's own -----------------------------------------------------------------

Check = Callable[[pa.Table], Any]
"""From the rows to a gate, several, or true or false."""


def own_gates(name: str, check: Check, table: pa.Table) -> list[Gate]:
    """Return what a check of one's own says of the rows, as gates."""
    given = check(table)
    if isinstance(given, Gate):
        return [given]
    if isinstance(given, bool | np.bool_):
        return [Gate(name, bool(given), detail="as the check says")]
    if isinstance(given, list | tuple) and all(isinstance(one, Gate) for one in given):
        return list(given)
    kind = type(given).__name__
    detail = f"returned {kind}; return a steadfeast.Gate, a list of them, or true or false"
    return [Gate(name, False, detail=detail)]
