"""Tables on disk, day by day, and what the daemon's own code makes of them."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from steadfeast.monitor.config.schema import DaemonConfig, MonitorConfig
from steadfeast.monitor.evaluation.evaluator import Evaluator
from steadfeast.monitor.ledger.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from steadfeast.monitor.decisions.model import Alert
    from steadfeast.monitor.drift.detector import Verdict
    from steadfeast.monitor.drift.reference import Reference
    from steadfeast.monitor.ledger.state import MonitorState, PastWindow

START = datetime(2024, 1, 1, tzinfo=UTC)
"""A Monday."""
DAY = timedelta(days=1)
TRAINED = 28

Make = "Callable[[np.random.Generator, int, int], dict[str, Any]]"


def times(rng: np.random.Generator, day: int, rows: int) -> pa.Array:
    """Ascending event times of one day."""
    base = np.datetime64((START + day * DAY).replace(tzinfo=None), "us")
    offsets = np.sort(rng.integers(0, 86_400_000_000, rows)).astype("timedelta64[us]")
    return pa.array(base + offsets, pa.timestamp("us", "UTC"))


def day_of(make: Make, day: int, rows: int, seed: int = 0) -> pa.Table:
    """One day's rows: `ts` and what `make` gives, which may have its own `ts`."""
    rng = np.random.default_rng([seed, day])
    columns = make(rng, day, rows)
    at = columns.pop("ts", None)
    return pa.table({"ts": times(rng, day, rows) if at is None else at, **columns})


def written(
    folder: Path,
    make: Make,
    days: int,
    rows: int | Callable[[int], int] = 250,
    *,
    seed: int = 0,
    ending: str = "parquet",
) -> Path:
    """Write a file a day; days without rows have none."""
    data = folder / "t"
    data.mkdir(exist_ok=True)
    for day in range(days):
        size = rows(day) if callable(rows) else rows
        if size:
            table = day_of(make, day, size, seed)
            write = pq.write_table if ending == "parquet" else pc.write_csv
            write(table, data / f"d{day:04}.{ending}")
    return data if ending == "parquet" else data / f"*.{ending}"


@dataclass
class Watched:
    """A monitor of one table, after its evaluator has done what is due.

    Attributes:
        verdicts: Of the last window by feature.
        alerts: All of them, oldest first.
        windows: All that were evaluated, by time.
    """

    state: MonitorState
    reference: Reference
    verdicts: dict[str, Verdict]
    alerts: list[Alert]
    windows: list[PastWindow]

    @property
    def incidents(self) -> list[str]:
        """What the alerts of data incidents say, without those that passed."""
        return [
            one.summary for one in self.alerts if one.kind == "data_incident" and not one.resolved
        ]


@contextmanager
def evaluator(folder: Path, files: Path, **changes: Any) -> Iterator[tuple[Evaluator, Ledger]]:
    """Give the daemon's evaluator over the table, with a reference of its first four weeks."""
    keys = changes.pop("keys", ())
    plain = {
        "source": {"files": str(files), "timestamp": "ts", "keys": keys},
        "reference": {"from": START, "to": START + TRAINED * DAY},
        **changes,
    }
    config = DaemonConfig(
        state=folder / "state", clock="watermark", monitors={"m": MonitorConfig(**plain)}
    )
    with Ledger(config.state) as ledger:
        made = Evaluator(config, ledger, folder)
        try:
            made.configure(config, made.prepare(config))
            yield made, ledger
        finally:
            made.close()


def watched(folder: Path, files: Path, **changes: Any) -> Watched:
    """Watch a table to its end, as a daemon whose clock is the newest row."""
    with evaluator(folder, files, **changes) as (made, ledger):
        made.evaluate("m", 1000)
        judged = ledger.judged("m")
        return Watched(
            ledger.state(made.config.monitors).monitors["m"],
            ledger.held("m").reference,
            {one.feature: one for one in judged[-1][1]} if judged else {},
            sorted(ledger.alerts_before(1_000_000, "m"), key=lambda one: one.sequence),
            [past for past, _ in judged],
        )
