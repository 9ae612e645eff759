"""Gates of the model: how the challenger does on the held-out rows, alone and beside the champion.

Above `gate`. Arrays and tables in, gates out; no I/O, clock or globals.

Two models are compared on the same rows, none of which the champion was fitted on. The challenger
is refused only if it is shown to be worse (the whole interval of the difference lies below 0) and
was worse by more than the margin. The interval counts that rows of one day, and of one entity, go
together (see `steadfeast.measures`). All comparisons of a list share one confidence, so that an
equally good challenger is refused by the whole list with a chance of at most half of what the
confidence leaves. A gate whose rows cannot tell lets the challenger through, and says what it
would need.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from steadfeast.measures import (
    Estimate,
    Measure,
    MeasureError,
    OneClassError,
    Sample,
    blocks_of,
    compared,
    measured,
)
from steadfeast.pipeline.gates.gate import Gate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from steadfeast.measures import Floats
    from steadfeast.pipeline.config import GateConfig

FEWEST_GROUPS = 20
"""Values that a key needs before its rows are resampled together."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The rows that models are judged on, with the challenger's answers.

    Attributes:
        table: The rows.
        sample: Truth and the challenger's predictions.
        times: Event times, `datetime64[us]` in UTC, shape (rows,).
        keys: Columns of `table` that say whose row it is.
        contract: The contract that the rows were built under.
    """

    table: pa.Table
    sample: Sample
    times: np.ndarray
    keys: tuple[str, ...] = ()
    contract: str = ""

    def __len__(self) -> int:
        return len(self.sample)

    def take(self, rows: np.ndarray) -> HeldOut:
        """Return the rows that the mask `rows` selects."""
        table = self.table.filter(pa.array(rows, pa.bool_()))
        return HeldOut(table, self.sample.take(rows), self.times[rows], self.keys, self.contract)

    def clusters(self) -> list[np.ndarray]:
        """Return which rows go together: by time, and by the coarsest key that is fine enough."""
        found: list[np.ndarray] = [blocks_of(self.times)]
        keys = [_codes(self.table[name]) for name in self.keys if name in self.table.column_names]
        sizes = {int(codes.max(initial=-1)) + 1: codes for codes in keys}
        # A value of each row's own says nothing about which rows go together.
        usable = [size for size in sizes if FEWEST_GROUPS <= size < len(self)]
        return [*found, sizes[min(usable)]] if usable else found


@dataclass(frozen=True, slots=True)
class Rival:
    """The champion as it does on the held-out rows.

    Attributes:
        version: Its version in the registry.
        prediction: Of every held-out row; None when it cannot read them.
        unseen: Which rows it was not fitted on, shape (rows,).
        unreadable: Why it cannot read them, when it cannot.
        contract: The contract that it was trained under.
    """

    version: str
    prediction: Floats | None
    unseen: np.ndarray
    unreadable: str = ""
    contract: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """A gate as configured, with what its names stand for.

    Attributes:
        config: As configured.
        measure: What it measures; None for a check.
        check: The user's function of the model and the held-out rows; None for a measure.
    """

    config: GateConfig
    measure: Measure | None = None
    check: Callable[[Any, pa.Table], Any] | None = None


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows that one gate looks at: all of them, or one slice."""

    name: str
    rows: np.ndarray


@dataclass(frozen=True, slots=True)
class _Finding:
    """What a gate found on one part."""

    part: str
    gate: Gate
    margin_left: float = math.inf


def model_gates(
    gates: Sequence[Judged], rows: HeldOut, rival: Rival | None, model: Any, min_rows: int
) -> list[Gate]:
    """Judge the challenger by every gate, also after one has failed.

    Args:
        gates: What is asked for.
        rows: The held-out rows.
        rival: The champion; None for a first model, which is compared with nobody.
        model: The challenger; given to checks.
        min_rows: Rows that are new to the champion which a comparison needs.
    """
    relative = [gate for gate in gates if gate.measure and gate.config.not_worse_by is not None]
    found: list[Gate] = []
    comparable = rows
    if rival is not None and rival.prediction is not None:
        comparable = rows.take(rival.unseen)
    parts = {id(gate): _parts(gate.config, comparable) for gate in relative}
    comparisons = sum(len(of_gate) for of_gate in parts.values())
    for gate in gates:
        config, measure = gate.config, gate.measure
        if measure is None:
            found.append(_checked(gate, model, rows.table))
            continue
        if config.at_least is not None or config.at_most is not None:
            found.append(_absolute(config, measure, rows))
        if config.not_worse_by is None or rival is None:
            continue
        if rival.prediction is None:
            found.append(_unreadable(config, measure, rival))
        elif len(comparable) < min_rows:
            found.append(_too_few(config, measure, rival, len(comparable), len(rows), min_rows))
        else:
            share = 1 - (1 - config.confidence) / max(1, comparisons)
            theirs = rival.prediction[rival.unseen]
            findings = [
                _compared(config, measure, comparable, theirs, rival, part, share)
                for part in parts[id(gate)]
            ]
            found.append(_worst(config, measure, findings, rival))
    return found


def name_of(config: GateConfig, measure: Measure) -> str:
    """Return the name of a gate: `roc_auc not_worse_by`, `recall_at_0.4 by origin at_least`."""
    by = f" by {config.by}" if config.by else ""
    return f"{measure.name}{by}"


# -- against a limit ---------------------------------------------------------------------


def _absolute(config: GateConfig, measure: Measure, rows: HeldOut) -> Gate:
    """Judge the challenger's own figure; of slices, the worst."""
    least = config.at_least is not None
    limit = config.at_least if config.at_least is not None else config.at_most
    name = f"{name_of(config, measure)} {'at_least' if least else 'at_most'}"
    findings = []
    for part in _parts(config, rows):
        inside = rows.take(part.rows)
        try:
            estimate = measured(measure, inside.sample, inside.clusters())
        except (OneClassError, MeasureError) as error:
            if config.by and isinstance(error, OneClassError):
                continue
            return Gate(name, False, limit=limit or 0.0, detail=str(error), metric=measure.name)
        value, (low, high) = estimate.value, estimate.interval(config.confidence)
        over = (value - (limit or 0.0)) * (1 if least else -1)
        passed = over >= 0
        within = f"{_number(low)} to {_number(high)}"
        detail = (
            f"{part.name}{measure.name} {value:.4f} ({within}) on {len(inside)} held-out rows; "
            f"{'at least' if least else 'at most'} {limit:g} is asked for"
        )
        undecided = low <= (limit or 0.0) <= high
        if undecided:
            detail += (
                f"; the rows cannot tell it from that: {_needed(estimate, over, config, rows)}"
            )
        gate = Gate(
            name,
            passed,
            value,
            limit or 0.0,
            detail,
            measure.name,
            low=_finite(low),
            high=_finite(high),
            undecided=undecided,
        )
        findings.append(_Finding(part.name, gate, over))
    if not findings:
        return Gate(name, True, detail="no slice has enough rows", undecided=True)
    return _summary(findings)


# -- against the champion ----------------------------------------------------------------


def _compared(
    config: GateConfig,
    measure: Measure,
    rows: HeldOut,
    theirs: Floats,
    rival: Rival,
    part: _Part,
    confidence: float,
) -> _Finding:
    inside, other = rows.take(part.rows), theirs[part.rows]
    name = f"{name_of(config, measure)} not_worse_by"
    try:
        estimate = compared(measure, inside.sample, other, inside.clusters())
        ours = measure.value(inside.sample)
        champion = measure.value(inside.sample.predicting(other))
    except OneClassError as error:
        detail = f"{part.name}{error} on {len(inside)} rows; not compared"
        return _Finding(part.name, Gate(name, True, detail=detail, undecided=True))
    except MeasureError as error:
        return _Finding(part.name, Gate(name, False, detail=str(error)), -math.inf)
    margin = config.margin(champion)
    low, high = estimate.interval(confidence)
    limit = champion + margin if measure.lower_is_better else champion - margin
    detail = (
        f"{part.name}{measure.name} {ours:.4f} against {champion:.4f} of champion {rival.version} "
        f"on {len(inside)} rows in {estimate.blocks} blocks of time, none of which it was trained "
        f"on: better by {estimate.value:+.4f} ({_number(low)} to {_number(high)}), "
        f"margin {margin:g}"
    )
    worse = high < 0 and estimate.value < -margin
    undecided = not worse and low < -margin
    if worse:
        detail += "; shown to be worse"
    elif undecided:
        within = estimate.value + margin
        needed = _needed(estimate, within if within > 0 else estimate.value, config, rows)
        detail += f"; cannot decide, so it passes: {needed}"
    if rival.contract and rival.contract != rows.contract:
        detail += f"; the champion was trained under contract {rival.contract[:12]}, not this one"
    gate = Gate(
        name,
        not worse,
        ours,
        limit,
        detail,
        measure.name,
        champion,
        estimate.value,
        _finite(low),
        _finite(high),
        undecided,
    )
    return _Finding(part.name, gate, estimate.value + margin)


def _worst(
    config: GateConfig, measure: Measure, findings: Sequence[_Finding], rival: Rival
) -> Gate:
    if findings:
        return _summary(findings)
    name = f"{name_of(config, measure)} not_worse_by"
    detail = (
        f"no value of {config.by} has {config.min_rows} rows that champion {rival.version} was not "
        f"trained on; cannot decide, so it passes: lower min_rows or lengthen holdout"
    )
    return Gate(name, True, detail=detail, metric=measure.name, undecided=True)


def _summary(findings: Sequence[_Finding]) -> Gate:
    """Return the gate of the part that decides: one that failed, else the one nearest to it."""
    worst = min(findings, key=lambda one: (one.gate.passed, one.margin_left))
    if len(findings) == 1:
        return worst.gate
    failed = sum(not one.gate.passed for one in findings)
    detail = f"{failed} of {len(findings)} slices fail; the worst: {worst.gate.detail}"
    return replace(worst.gate, detail=detail)


def _unreadable(config: GateConfig, measure: Measure, rival: Rival) -> Gate:
    return Gate(
        f"{name_of(config, measure)} not_worse_by",
        False,
        detail=f"champion {rival.version} cannot be compared: {rival.unreadable}; promote by hand",
    )


def _too_few(
    config: GateConfig, measure: Measure, rival: Rival, new: int, rows: int, needed: int
) -> Gate:
    return Gate(
        f"{name_of(config, measure)} not_worse_by",
        True,
        new,
        needed,
        f"only {new} of {rows} held-out rows are new to champion {rival.version}, which was fitted "
        f"on the others; {needed} are needed to compare (min_rows), so it passes undecided",
        undecided=True,
    )


def _needed(estimate: Estimate, distance: float, config: GateConfig, rows: HeldOut) -> str:
    """Say how many more rows would decide, if the difference stays what it is."""
    reach = estimate.reach(config.confidence)
    if not math.isfinite(reach):
        return f"{estimate.blocks} block of time is not enough; lengthen holdout"
    if not distance:
        return "it lies on the limit"
    factor = (reach / abs(distance)) ** 2
    if factor <= 1:  # decided on its own, and not among so many comparisons
        factor = 2.0
    if factor > 1_000:  # noqa: PLR2004 - nobody has so many
        return "it lies on the limit"
    more, blocks = len(rows) * factor, estimate.blocks * factor
    return f"about {factor:.1f} times as many rows would ({more:.0f} in {blocks:.0f} blocks)"


# -- checks of one's own -----------------------------------------------------------------


def _checked(gate: Judged, model: Any, table: pa.Table) -> Gate:
    name = str(gate.config.check)
    if gate.check is None:
        return Gate(name, False, detail="there is no such check")
    given = gate.check(model, table)
    if isinstance(given, Gate):
        return given
    if isinstance(given, bool | np.bool_):
        return Gate(name, bool(given), detail="as the check says")
    kind = type(given).__name__
    return Gate(name, False, detail=f"returned {kind}; return a steadfeast.Gate, or true or false")


# -- inside ------------------------------------------------------------------------------


def _parts(config: GateConfig, rows: HeldOut) -> list[_Part]:
    """Return the slices with enough rows, by name; all rows if there are no slices."""
    if not config.by:
        return [_Part("", np.ones(len(rows), bool))]
    return list(_slices(config, rows))


def _slices(config: GateConfig, rows: HeldOut) -> Iterator[_Part]:
    column = rows.table.column(str(config.by))
    texts = np.array([str(value) for value in column.to_pylist()], object)
    for value in sorted(set(texts)):
        inside = texts == value
        if inside.sum() >= config.min_rows:
            yield _Part(f"{config.by}={value}: ", inside)


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    encoded = pc.dictionary_encode(column.combine_chunks(), null_encoding="encode")
    return np.asarray(encoded.indices.to_numpy(zero_copy_only=False), np.int64)


def _number(value: float) -> str:
    return f"{value:+.4f}" if math.isfinite(value) else "unknown"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
