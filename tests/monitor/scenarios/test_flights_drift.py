"""A year of real flights against January and February: who is quiet, who is seen, who is not blind.

The features are joined here with DuckDB's own ASOF, apart from the store's code, from the
sources that `feature_repo/sources.py` builds.
"""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.compute as pc
import pytest

from steadfeast.monitor.config.schema import MonitorConfig
from steadfeast.monitor.drift.detector import Level, detect
from steadfeast.monitor.drift.persistence import LOOKBACK, opens, stays_open
from steadfeast.monitor.drift.reference import build_reference
from steadfeast.monitor.profiles.profile import Window, profile, total
from support.drift_world import training_set

REPO = Path(__file__).parents[3] / "feature_repo"
START = datetime(2013, 1, 1, tzinfo=UTC)
REFERENCE_DAYS, DAYS = 59, 364
CONFIG = MonitorConfig(service="late_arrival", model="late_arrival")
CONTROLS = ("carrier", "origin", "departure_hour", "day_of_week", "distance")
VIEWS = {
    "weather": ("origin", 6, ["temperature_fahrenheit", "precipitation_inches"]),
    "origin_departures": ("origin", 2, ["departures_3h", "departure_delay_3h"]),
    "dest_arrivals": ("dest", 2, ["arrival_delay_6h"]),
    "carrier_arrivals": ("carrier_origin", 2, ["carrier_arrivals_7d", "carrier_late_share_7d"]),
    "route_arrivals": ("route", 48, ["route_arrivals_14d", "route_late_share_14d"]),
}
FEATURES = (*CONTROLS, *(name for _, _, names in VIEWS.values() for name in names))


@pytest.fixture(scope="module")
def flights(tmp_path_factory):
    """Every request of the year with its features, by time."""
    out = tmp_path_factory.mktemp("sources")
    command = [sys.executable, REPO / "sources.py", "--out", out]
    subprocess.run(command, check=True, capture_output=True)
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        source = f"read_parquet('{out}/examples.parquet') AS e"
        columns = ["e.*"]
        for view, (key, hours, names) in VIEWS.items():
            source += (
                f" ASOF LEFT JOIN read_parquet('{out}/{view}.parquet') AS {view} "
                f"ON e.{key} = {view}.{key} AND e.event_timestamp >= {view}.event_timestamp"
            )
            fresh = f"{view}.event_timestamp >= e.event_timestamp - INTERVAL {hours} HOUR"
            columns += [f"CASE WHEN {fresh} THEN {view}.{name} END AS {name}" for name in names]
        local = "e.scheduled_departure AT TIME ZONE 'America/New_York'"
        columns += [f"hour({local}) AS departure_hour", f"isodow({local}) - 1 AS day_of_week"]
        columns += ["e.distance_miles::DOUBLE AS distance"]
        query = f"SELECT {', '.join(columns)} FROM {source} ORDER BY e.event_timestamp"
        return con.sql(query).to_arrow_table().combine_chunks()


@pytest.fixture(scope="module")
def judged(flights, tmp_path_factory):
    """A function: the reference of the first days, and verdicts of the days after it, by feature.

    Every window of seven days is judged; `days` is how many days of the year there are.
    """
    numbers = (flights["event_timestamp"].cast("int64").to_numpy() // 10**6) // 86_400
    first = int(START.timestamp()) // 86_400
    at = np.searchsorted(numbers, first + np.arange(DAYS + 1))

    def against(known, days):
        past = flights.slice(0, at[known])
        past = past.filter(pc.is_valid(past["late"]))
        keys = ("origin", "dest", "carrier_origin", "route", "tailnum")
        folder = tmp_path_factory.mktemp("training")
        path = training_set(folder, past, features=FEATURES, keys=keys)
        with duckdb.connect() as con:
            reference = build_reference(con, path, CONFIG)
        profiles = [
            profile(flights.slice(at[i], at[i + 1] - at[i]).to_batches(), reference.edges)
            for i in range(known - 7, days)
        ]
        found = {name: [] for name in FEATURES}
        for i in range(8, len(profiles) + 1):
            end = START + timedelta(days=known - 7 + i)
            current = total(profiles[i - 7 : i], reference.edges)
            window = Window(end - CONFIG.window, end, current.rows)
            last = (end - timedelta(days=1), profiles[i - 1])
            for verdict in detect(reference, current, window, CONFIG, bucket=last):
                found[verdict.feature].append(verdict)
        return reference, found

    return against


@pytest.fixture(scope="module")
def year(judged):
    """January and February, and all of the year after them."""
    return judged(REFERENCE_DAYS, DAYS)


def drifted(verdicts):
    return [one.window.end for one in verdicts if one.level is Level.DRIFT]


def lasting(verdicts):
    """Days on which a drift stands."""
    found, stands = [], False
    for i, one in enumerate(verdicts):
        recent = [each.evidence for each in verdicts[max(0, i - LOOKBACK + 1) : i + 1]]
        stands = stays_open(recent) if stands else opens(recent)
        if stands:
            found.append(one.window.end)
    return found


def test_the_controls_are_quiet_all_year(year):
    """A day over is no alarm: the clocks change, and Christmas is no usual day."""
    _, found = year
    for name in CONTROLS:
        assert len(found[name]) == DAYS - REFERENCE_DAYS
        assert lasting(found[name]) == []
        assert len(drifted(found[name])) <= 3
        assert all(one.value is not None for one in found[name])


def test_summer_is_seen_in_the_weather_and_in_the_delays(year):
    _, found = year
    summer = lasting(found["temperature_fahrenheit"])
    june_to_august = [day for day in summer if day.month in (6, 7, 8)]
    assert len(june_to_august) > 80
    assert not [day for day in summer if day.month in (3, 12)]
    months = {day.month for day in lasting(found["route_late_share_14d"])}
    assert 7 in months
    assert months & {9, 10}
    assert 3 not in months


def test_rain_is_measured_though_it_is_zero_nearly_always(year):
    reference, found = year
    column = reference.edges.columns["precipitation_inches"]
    counts = reference.profile.columns["precipitation_inches"].counts
    assert counts.max() / counts.sum() > 0.9
    values = [one.value for one in found["precipitation_inches"]]
    assert max(values) > 4 * np.median(values) > 0
    assert (column.coarse(counts) > 0).sum() >= 3


def test_rain_is_not_blind(year):
    """The wettest days of the year are over the limit; a rainy day is no drift that lasts."""
    _, found = year
    wet = drifted(found["precipitation_inches"])
    assert datetime(2013, 6, 8, tzinfo=UTC) in wet  # Tropical Storm Andrea, the day before
    assert len(wet) >= 3
    assert lasting(found["precipitation_inches"]) == []


def test_a_count_of_few_entities_does_not_cry_wolf(year):
    """35 carriers' counts: PSI over rows is often above 1, and it was within the reference, too.

    That more flights than ever are counted from April on is told, by the tail that they are in.
    """
    _, found = year
    values = [one.value for one in found["carrier_arrivals_7d"]]
    assert max(values) > 1
    assert "psi" not in {
        one.statistic for one in found["carrier_arrivals_7d"] if one.level is Level.DRIFT
    }


@pytest.mark.parametrize(
    ("known", "days", "name"),
    [(120, 151, "precipitation_inches"), (151, 181, "route_arrivals_14d")],
)
def test_a_record_is_no_episode_where_months_before_had_theirs(judged, known, days, name):
    """May has the wettest days so far, and June the busiest route: so had months before them.

    A day of storm is a verdict and no alarm; what most days of the month said would be no record.
    """
    _, found = judged(known, days)
    assert lasting(found[name]) == []
    assert len(drifted(found[name])) <= 6
