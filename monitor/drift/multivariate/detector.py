"""Whether the features still hang together as they did: two looks at all of them at once.

Above `monitor.drift.multivariate.domain_classifier`, which measures, and `monitor.drift.reference`;
`references` calibrates by this, `measuring` judges. Off unless a monitor says `multivariate: true`.

Both looks are held against the reference's own windows: each is compared with the rest of the
reference as a window will be, and what is usual is their mean. A window may be off by

    sqrt(factor) x the spread of the reference's windows, and what fewer rows add,

where the factor is that of Student's t for their share of `false_alarms_per_year`, over windows
that do not overlap. So rows of one entity, restless days and the classifier's own optimism are in
what is usual. A verdict's value is how far the AUC, or the share of variance that is left over, is
beyond the usual; persistence and everything after it are as for a feature.

Rows are needed, not profiles: a sample of `WINDOW_ROWS` of the window's snapshots, the same
whenever it is drawn, and a sample of the training set. Where either is gone the verdict says so.
A window is judged once per seventh of its length, or each bucket; buckets in between
repeat the verdict, and the limits allow for that.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import duckdb
import numpy as np
from scipy import special

from steadfeast.featurestore.errors import UserError
from steadfeast.featurestore.tables import EPOCH, EVENT_TIMESTAMP, identifier, path_of
from steadfeast.monitor.drift.detector import Level, Verdict
from steadfeast.monitor.drift.multivariate.balancing import Pair, Sample, joinable, paired, rows_of
from steadfeast.monitor.drift.multivariate.domain_classifier import (
    Reconstruction,
    Separation,
    Usual,
    reconstructed,
    told_apart,
)
from steadfeast.monitor.profiles import Window
from steadfeast.monitor.sources import AT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from steadfeast.monitor.config import MonitorConfig
    from steadfeast.monitor.drift.reference import Reference
    from steadfeast.monitor.sources import Bucket, Snapshot

SOURCE = "joint"
CLASSIFIER, RECONSTRUCTION = "domain_classifier", "reconstruction_error"
NAMES = {CLASSIFIER: "(told apart)", RECONSTRUCTION: "(reconstruction)"}
"""What stands in a verdict in the place of a feature; no column can be named so."""
WINDOW_ROWS, REFERENCE_ROWS = 1_500, 3_000
SAMPLE_ROWS = 50_000
MOST_WINDOWS = 24
_FEWEST_WINDOWS = 3
_TOP = 3
_NEAR = 0.8
_MICROSECOND = timedelta(microseconds=1)


class NoClassifierError(UserError):
    """A monitor looks at features together, and scikit-learn is not installed."""

    def __init__(self) -> None:
        super().__init__(
            "multivariate: true needs scikit-learn: pip install 'steadfeast[multivariate]'"
        )


def required(config: MonitorConfig) -> None:
    """Raise NoClassifierError where `config` asks for what is not installed."""
    if config.multivariate and find_spec("sklearn") is None:
        raise NoClassifierError


def extra_tests(config: MonitorConfig) -> int:
    """Return how many looks share the false alarms with the features."""
    return len(NAMES) if config.multivariate else 0


def related(
    con: duckdb.DuckDBPyConnection, reference: Reference, config: MonitorConfig
) -> Reference:
    """Return the reference with what is usual of its own windows, where it has enough."""
    if not config.multivariate:
        return reference
    required(config)
    sample = reference_rows(con, reference, Path())  # its manifest was read just now
    if sample is None:
        return reference
    share = config.false_alarms_per_year / (len(reference.features) + len(NAMES))
    return replace(reference, joint=usual_of(sample, config, share))


def usual_of(sample: Sample, config: MonitorConfig, alarms_per_year: float) -> dict[str, Usual]:
    """Compare each window of a reference with the rest of it; empty with too few.

    Args:
        sample: Rows of the reference.
        config: The monitor.
        alarms_per_year: False episodes that each look may cause.
    """
    length, bucket = _micros(config.window), _micros(config.bucket)
    numbers = sample.micros // bucket
    blocks = len(np.unique(numbers)) * bucket / length
    if not len(sample) or blocks < _FEWEST_WINDOWS:
        return {}
    first, last = int(numbers.min()), int(numbers.max())
    span = length // bucket
    starts = np.arange(first, last - span + 2, max(1, span // 2))
    chosen = np.unique(np.linspace(0, len(starts) - 1, MOST_WINDOWS).round().astype(int))
    found: defaultdict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for start in starts[chosen].tolist():
        mine = (numbers >= start) & (numbers < start + span)
        rest = sample.take(~mine).spread(REFERENCE_ROWS)
        pair = _pair(rest, sample.take(mine), config, seed=start)
        for name, one in _measured(pair, seed=start).items():
            found[name].append((one.value, one.rows, one.per_row))
    freedom = 1.5 * (blocks - 1)
    year = timedelta(days=365.25) / config.window
    made = {}
    for name, windows in found.items():
        values, rows, per_row = np.array(windows).T
        if len(values) < _FEWEST_WINDOWS:
            continue
        # The windows overlap: as many are independent as there are whole ones.
        spread = values.std() * math.sqrt(blocks / (blocks - 1) * (1 + 1 / blocks))
        # The classifier's limit is on one side only.
        alarms = alarms_per_year * (2 if name == CLASSIFIER else 1)
        made[name] = Usual(
            value=float(values.mean()),
            spread=float(spread),
            factor=float(special.stdtrit(freedom, 1 - min(0.4, alarms / year / 2)) ** 2),
            per_row=float(per_row.mean()),
            rows=float(np.median(rows)),
            windows=int(blocks),
        )
    return made


@dataclass(frozen=True, slots=True)
class _Look:
    """What one look at a window says: its value, rows of weight 1, and its variance times rows."""

    value: float
    rows: float
    per_row: float
    found: Separation | Reconstruction


def _pair(reference: Sample, window: Sample, config: MonitorConfig, *, seed: int) -> Pair | None:
    return paired(
        reference, window.spread(WINDOW_ROWS), window_micros=_micros(config.window), seed=seed
    )


def _measured(pair: Pair | None, *, seed: int) -> dict[str, _Look]:
    """Compare two samples in both ways; what cannot be said is left out."""
    if pair is None:
        return {}
    rows = pair.window.rows
    left = reconstructed(pair)
    made = {RECONSTRUCTION: _Look(left.error - left.usual, rows, left.per_row, left)}
    apart = told_apart(pair, seed=seed)
    if apart is not None:
        # Of an AUC where nothing differs (Mann and Whitney, 1947), the reference being larger.
        made[CLASSIFIER] = _Look(apart.auc, rows, 1 / 12, apart)
    return made


def judge_together(
    reference: Reference, sample: Sample, rows: Sample, window: Window, config: MonitorConfig
) -> list[Verdict]:
    """Judge a window by its rows.

    Args:
        reference: With what is usual, from `related`.
        sample: Rows of the reference.
        rows: Rows of the window, or an even sample of them.
        window: Its bounds and all of its rows.
        config: The monitor.
    """
    if not reference.joint:
        return _unknown("the reference is too short to calibrate: it needs three windows", window)
    if window.rows < config.min_rows:
        return _unknown(f"{window.rows} rows; min_rows is {config.min_rows}", window)
    seed = _micros(window.end - EPOCH) // _micros(config.bucket)
    pair = _pair(sample.spread(REFERENCE_ROWS), rows, config, seed=seed)
    found = _measured(pair, seed=seed)
    made = []
    for what, name in NAMES.items():
        usual, look = reference.joint.get(what), found.get(what)
        if usual is None or look is None or pair is None:
            why = "fewer than two features vary and share their categories with the reference"
            made += [one for one in _unknown(why, window) if one.statistic == what]
            continue
        limit, off = usual.allowed(look.rows), look.value - usual.value
        value = max(0.0, off) if what == CLASSIFIER else abs(off)
        measured = look.found
        if value > _NEAR * limit and isinstance(measured, Separation):
            measured = told_apart(pair, seed=seed, explain=True) or measured
        made.append(
            Verdict(
                SOURCE,
                name,
                what,
                value,
                limit,
                Level.DRIFT if value > limit else Level.OK,
                _said(measured, usual, limit, near=value > _NEAR * limit),
                window,
            )
        )
    return made


def _said(found: Separation | Reconstruction, usual: Usual, limit: float, *, near: bool) -> str:
    """Say in one line what was found and, near the limit, which features make it."""
    if isinstance(found, Reconstruction):
        text = f"{found.error:.1%} of the variance left over, was {found.usual:.1%}"
    else:
        text = f"AUC {found.auc:.3f}, usually {usual.value:.3f}, at most {usual.value + limit:.3f}"
    by = found.by_column
    top = [name for name in sorted(by, key=lambda name: -by[name])[:_TOP] if by[name] > 0]
    return f"{text}; most by {', '.join(top)}" if near and top else text


def _unknown(why: str, window: Window) -> list[Verdict]:
    return [
        Verdict(SOURCE, name, what, None, None, Level.INSUFFICIENT_DATA, why, window)
        for what, name in NAMES.items()
    ]


# Rows


def reference_rows(
    con: duckdb.DuckDBPyConnection, reference: Reference, data: Path
) -> Sample | None:
    """Return a sample of the training set's rows; None where they are gone.

    Args:
        con: For reading Parquet.
        reference: Whose.
        data: The store's folder, which a kept path of a manifest is seen from.
    """
    path = path_of(reference.uri, data).with_name("data.parquet")
    if not path.exists():
        return None
    return _read(con, path, reference, EVENT_TIMESTAMP, SAMPLE_ROWS, reference.profile.rows)


def _read(
    con: duckdb.DuckDBPyConnection,
    path: Path,
    reference: Reference,
    time: str,
    wanted: int,
    rows: int,
) -> Sample:
    """Return about `wanted` of the `rows` rows of a file, the same each time."""
    names = joinable(reference.edges, reference.importance)
    sources = {reference.edges.columns[name].source or name for name in names}
    scan = "read_parquet($path, file_row_number = true)"
    present = con.sql(f"FROM {scan}", params={"path": str(path)}).columns
    listed = ", ".join(
        identifier(name) for name in [time, *sorted(sources.intersection(present) - {time})]
    )
    table = con.sql(
        f"SELECT {listed} FROM {scan} WHERE hash(file_row_number) % $rows < $wanted "
        "ORDER BY file_row_number",
        params={"path": str(path), "rows": max(rows, wanted), "wanted": wanted},
    ).to_arrow_table()
    return rows_of(table, reference.edges, names, time)


class Frozen(Protocol):
    """A bucket whose rows were frozen, in the ledger or about to be."""

    @property
    def bucket(self) -> Bucket:
        """The stretch of event time."""

    @property
    def rows(self) -> int:
        """How many."""

    @property
    def path(self) -> Path:
        """The file, which retention may have dropped."""


class Relations:
    """Judges windows by the rows of their snapshots; remembers samples of them.

    Args:
        kept: Gives a monitor's frozen buckets in a stretch of time.
        data: The store's folder.
    """

    def __init__(
        self, kept: Callable[[str, datetime, datetime], Sequence[Frozen]], data: Path
    ) -> None:
        self._kept, self._data = kept, data
        self._references: dict[str, tuple[str, Sample | None]] = {}
        self._buckets: dict[tuple[str, datetime, str], Sample] = {}
        self._last: dict[str, tuple[str, datetime, list[Verdict]]] = {}

    def judge(
        self,
        con: duckdb.DuckDBPyConnection,
        monitor: str,
        config: MonitorConfig,
        snapshot: Snapshot,
        reference: Reference,
        key: str,
    ) -> list[Verdict]:
        """Return the verdicts on the last window that is due up to the end of `snapshot`.

        Args:
            con: For reading Parquet.
            monitor: Which.
            config: Of it.
            snapshot: The last bucket, which need not be in the ledger yet.
            reference: Of the monitor.
            key: Of the reference.
        """
        if not config.multivariate:
            return []
        stride = _stride(config)
        end = EPOCH + (snapshot.bucket.end - EPOCH) // stride * stride
        known = self._last.get(monitor)
        if known is None or known[:2] != (key, end):
            found = self._judged(con, monitor, config, snapshot, reference, key, end)
            known = self._last[monitor] = (key, end, found)
        return known[2]

    def forget(self, monitor: str, before: datetime) -> None:
        """Let go of the samples of buckets that start before `before`."""
        for key in [k for k in self._buckets if k[0] == monitor and k[1] < before]:
            del self._buckets[key]

    def _judged(
        self,
        con: duckdb.DuckDBPyConnection,
        monitor: str,
        config: MonitorConfig,
        snapshot: Snapshot,
        reference: Reference,
        key: str,
        end: datetime,
    ) -> list[Verdict]:
        start = end - config.window
        buckets: list[Frozen] = [*self._kept(monitor, start, end)]
        if snapshot.bucket.end == end:
            buckets.append(snapshot)
        window = Window(start, end, sum(one.rows for one in buckets))
        if not buckets or buckets[0].bucket.start > start:
            return _unknown("the window is not full", window)
        gone = sum(one.rows for one in buckets if one.rows and not one.path.exists())
        if gone:
            return _unknown(f"{gone} rows of the window are not kept any more", window)
        if not window.rows:
            return _unknown("the window has no rows", window)
        parts = []
        try:
            held, sample = self._references.get(monitor, ("", None))
            if held != key:
                sample = reference_rows(con, reference, self._data)
                self._references[monitor] = (key, sample)
            for one in buckets:
                if one.rows:
                    rows = self._sampled(con, monitor, config, one, reference, key)
                    parts.append(rows.spread(math.ceil(WINDOW_ROWS * one.rows / window.rows)))
        except duckdb.Error as error:  # a damaged file, which is named elsewhere
            why = str(error).partition("\n")[0]
            return _unknown(
                f"rows of the window or of the training set cannot be read: {why}", window
            )
        if sample is None:
            why = f"the training set's rows are not there any more: {reference.uri}"
            return _unknown(why, window)
        return judge_together(reference, sample, Sample.joined(parts), window, config)

    def _sampled(
        self,
        con: duckdb.DuckDBPyConnection,
        monitor: str,
        config: MonitorConfig,
        one: Frozen,
        reference: Reference,
        key: str,
    ) -> Sample:
        at = (monitor, one.bucket.start, key)
        if at not in self._buckets:
            # Four times its even share, for a bucket with more rows than the others.
            wanted = math.ceil(4 * WINDOW_ROWS * config.bucket / config.window)
            self._buckets[at] = _read(con, one.path, reference, AT, wanted, one.rows)
        return self._buckets[at]


def _stride(config: MonitorConfig) -> timedelta:
    """Return how often a window is judged: a day of a week, or each bucket."""
    return config.bucket * max(1, config.window // config.bucket // 7)


def _micros(length: timedelta) -> int:
    return length // _MICROSECOND
