"""A year of real flights with their features, joined apart from the store, for the benchmarks."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

if TYPE_CHECKING:
    import pyarrow as pa

REPO = Path(__file__).parent.parent / "feature_repo"
START = datetime(2013, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
REFERENCE_DAYS, HOLDOUT_DAYS, DAYS = 59, 7, 364
CATEGORICAL = ("carrier", "origin")
_VIEWS = {
    "weather": ("origin", 6),
    "origin_departures": ("origin", 2),
    "dest_arrivals": ("dest", 2),
    "carrier_departures": ("carrier_origin", 2),
    "carrier_arrivals": ("carrier_origin", 2),
    "route_arrivals": ("route", 48),
    "aircraft": ("tailnum", 72),
}
"""The feature views of `feature_repo/features.py`: key, and hours that a value is good for."""


def year(folder: Path) -> tuple[pa.Table, tuple[str, ...]]:
    """Build the sources in `folder`; return every request by time, and the model's features."""
    out = folder / "sources"
    command = [sys.executable, str(REPO / "sources.py"), "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        source, columns = f"read_parquet('{out}/examples.parquet') AS e", ["e.*"]
        names = [*CATEGORICAL]
        for view, (key, hours) in _VIEWS.items():
            source += (
                f" ASOF LEFT JOIN read_parquet('{out}/{view}.parquet') AS {view} "
                f"ON e.{key} = {view}.{key} AND e.event_timestamp >= {view}.event_timestamp"
            )
            fresh = f"{view}.event_timestamp >= e.event_timestamp - INTERVAL {hours} HOUR"
            held = con.sql(f"FROM read_parquet('{out}/{view}.parquet')").columns
            mine = [
                name for name in held if name not in {key, "event_timestamp", "created_timestamp"}
            ]
            columns += [f"CASE WHEN {fresh} THEN {view}.{name} END AS {name}" for name in mine]
            names += mine
        local = "scheduled_departure AT TIME ZONE 'America/New_York'"
        made = {
            "departure_hour": f"hour({local})",
            "day_of_week": f"isodow({local}) - 1",
            "distance": "distance_miles::DOUBLE",
            "turnaround_hours": "epoch(scheduled_departure - last_arrived_at) / 3600",
            "delay_above_usual": "carrier_departure_delay_6h::DOUBLE - carrier_arrival_delay_7d",
        }
        names = [name for name in names if name != "last_arrived_at"] + list(made)
        query = (
            f"SELECT *, {', '.join(f'{what} AS {name}' for name, what in made.items())} "
            f"FROM (SELECT {', '.join(columns)} FROM {source}) ORDER BY event_timestamp, request_id"
        )
        return con.sql(query).to_arrow_table().combine_chunks(), tuple(names)
