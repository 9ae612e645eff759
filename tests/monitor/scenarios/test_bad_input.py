"""Input that nobody would send, through the real evaluation: a verdict with a reason for each.

Never zero drift, and never an exception that keeps the other features from being judged.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steadfeast.monitor.config.schema import DaemonConfig, MonitorConfig
from steadfeast.monitor.drift.detector import Level
from steadfeast.monitor.evaluation.evaluator import Evaluator
from steadfeast.monitor.ledger.ledger import Ledger
from support.drift_world import DAY, T0, training_set

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from steadfeast.monitor.drift.detector import Verdict

PER_DAY, REFERENCE_DAYS, WINDOW_DAYS = 300, 30, 3
NAMES = ("fine", "moved", "gone", "retyped", "null", "nan", "one", "many", "never")
TS = pa.timestamp("us", "UTC")


def times(first: int, days: int, per_day: int = PER_DAY) -> pa.Array:
    return pa.array([T0 + first * DAY + i * DAY / per_day for i in range(days * per_day)], TS)


def columns(rows: int, seed: int) -> dict[str, pa.Array]:
    rng = np.random.default_rng(seed)
    return {
        **{name: pa.array(rng.normal(size=rows)) for name in NAMES[:6]},
        "one": pa.array(["only"] * rows),
        "many": pa.array([f"{i:07d}" for i in range(rows)]),
        "never": pa.nulls(rows, pa.float64()),
    }


def reference(folder: Path, rows: int = REFERENCE_DAYS * PER_DAY) -> Path:
    table = pa.table(
        {
            "event_timestamp": times(0, REFERENCE_DAYS),
            **columns(REFERENCE_DAYS * PER_DAY, 1),
            "late": pa.array([0] * REFERENCE_DAYS * PER_DAY),
        }
    )
    return training_set(folder / "training", table.slice(0, rows), features=NAMES)


def serve(folder: Path, changed: Mapping[str, pa.Array | None], rows: int) -> None:
    """Log the window's days and a bit of the next; a column that is None is not there."""
    at = times(REFERENCE_DAYS, WINDOW_DAYS, rows // WINDOW_DAYS)
    at = pa.concat_arrays([at, pa.array([T0 + (REFERENCE_DAYS + WINDOW_DAYS + 1) * DAY], TS)])
    known = columns(rows, 2) | dict(changed)
    given = {name: one for name, one in known.items() if one is not None}
    table = pa.table(
        {
            "request_id": pa.array([str(i) for i in range(rows + 1)]),
            "request_time": at,
            **{name: pa.concat_arrays([one, pa.nulls(1, one.type)]) for name, one in given.items()},
        }
    )
    micros = at.cast(pa.int64())
    folder = folder / "data" / "served" / "late"
    folder.mkdir(parents=True)
    pq.write_table(table, folder / f"{micros[0]}-{micros[-1]}-0.parquet")


@contextmanager
def evaluated(folder: Path, manifest: Path, **options: object) -> Iterator[dict[str, Verdict]]:
    """Evaluate every closed bucket and give the last window's verdicts by feature."""
    monitor = MonitorConfig(
        service="late",
        model="late",
        reference=manifest,
        window=timedelta(days=WINDOW_DAYS),
        performance=None,
        **options,
    )
    config = DaemonConfig(state=folder / "state", clock="watermark", monitors={"m": monitor})
    ledger = Ledger(config.state)
    evaluator = Evaluator(config, ledger, folder / "data")
    try:
        evaluator.configure(config, evaluator.prepare(config))
        assert evaluator.evaluate("m", 100) == WINDOW_DAYS + 1
        yield {one.feature: one for one in ledger.state({"m": monitor}).monitors["m"].verdicts}
    finally:
        evaluator.close()
        ledger.close()


# The last window is two of the days that were served, and one without a row.
ROWS = WINDOW_DAYS * PER_DAY


@pytest.mark.parametrize("statistic", ["psi", "wasserstein", "chi_square"])
def test_each_has_its_reason_and_the_others_are_judged(tmp_path: Path, statistic: str):
    rng = np.random.default_rng(3)
    serve(
        tmp_path,
        {
            "moved": pa.array(rng.normal(2, 1, ROWS)),
            "gone": None,
            "retyped": pa.array(["text"] * ROWS),
            "null": pa.nulls(ROWS, pa.float64()),
            "nan": pa.array([np.nan] * ROWS),
            "one": pa.array(["only"] * (ROWS - 100) + ["other"] * 100),
        },
        ROWS,
    )
    with evaluated(tmp_path, reference(tmp_path), statistic=statistic) as found:
        assert set(found) == {*NAMES, "many.pattern"}
        seen = 2 * PER_DAY
        reasons = {
            "gone": "the window has no such column",
            "retyped": f"{seen} of {seen} rows have a type that cannot be read as numeric",
            "null": f"all {seen} rows are null or NaN",
            "nan": f"all {seen} rows are null or NaN",
            "never": "the reference holds no values",
        }
        for name, reason in reasons.items():
            one = found[name]
            assert (one.level, one.value, one.reason) == (
                Level.INSUFFICIENT_DATA,
                None,
                reason,
            )
        assert found["fine"].level is Level.OK
        assert found["moved"].level is found["one"].level is Level.DRIFT
        assert found["many"].value is not None


def test_a_million_categories_are_measured_by_their_lengths(tmp_path: Path):
    """They are as long as the reference's, and so are no news; longer ones are."""
    rows = 1_000_002
    longer = pa.array([f"{i:09d}" for i in range(rows)])
    serve(tmp_path, {"many": longer}, rows)
    with evaluated(tmp_path, reference(tmp_path), features=("many", "fine")) as found:
        assert found["many"].level is Level.DRIFT
        assert "100 % of rows" in found["many"].reason
        assert found["fine"].value is not None


def test_a_reference_with_one_row_is_too_short_for_each_and_says_so(tmp_path: Path):
    serve(tmp_path, {}, ROWS)
    with evaluated(tmp_path, reference(tmp_path, rows=1)) as found:
        for name in set(NAMES) - {"never"}:
            one = found[name]
            assert (one.level, one.value) == (Level.INSUFFICIENT_DATA, None)
            assert one.reason.startswith("the reference is too short to calibrate")
        assert found["never"].reason == "the reference holds no values"


def test_a_window_without_rows_is_no_zero_drift(tmp_path: Path):
    """Nothing was asked for three days; the requests before and after are of no help."""
    at = [T0 + REFERENCE_DAYS * DAY, T0 + (REFERENCE_DAYS + WINDOW_DAYS + 1) * DAY]
    folder = tmp_path / "data" / "served" / "late"
    folder.mkdir(parents=True)
    rows = pa.table(
        {"request_id": ["a", "b"], "request_time": pa.array(at, TS), "fine": [0.5, 0.5]}
    )
    micros = rows["request_time"].cast(pa.int64())
    pq.write_table(rows, folder / f"{micros[0]}-{micros[1]}-0.parquet")
    with evaluated(tmp_path, reference(tmp_path)) as found:
        assert {one.level for one in found.values()} == {Level.INSUFFICIENT_DATA}
        assert {one.value for one in found.values()} == {None}
        assert found["fine"].reason == "the window has no rows"
