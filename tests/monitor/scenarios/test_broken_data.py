"""Broken rows, files and columns: what is wrong is told, and all the rest is judged."""

from __future__ import annotations

import csv
import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steadfeast.monitor.drift.data_facts import DataFacts, expected_volume
from steadfeast.monitor.drift.detector import Level
from steadfeast.monitor.sources.quarantine import Fault
from steadfeast.monitor.sources.spans import Span, believed
from support.table_world import (
    DAY,
    START,
    TRAINED,
    day_of,
    evaluator,
    times,
    watched,
    written,
)

if TYPE_CHECKING:
    from pathlib import Path

DAYS = TRAINED + 9
BROKEN = TRAINED + 7
"""The day before the last: the window is full by then."""


def calm(rng, _day, rows):
    return {"x": rng.normal(0, 1, rows), "y": rng.normal(0, 1, rows)}


def broken_from(change, first=BROKEN, last=BROKEN):
    """Calm days, but for what `change` makes of some of them."""

    def make(rng, day, rows):
        columns = calm(rng, day, rows)
        return change(rng, day, rows, columns) if first <= day <= last else columns

    return make


def cells(path: Path, rows: dict[int, list[str]], size: int, day: int) -> None:
    """Write one CSV file of a day, with some lines given."""
    rng = np.random.default_rng([7, day])
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["ts", "x", "y"])
        for i in range(size):
            at = START + day * DAY + DAY * (i / size)
            line = [f"{at:%Y-%m-%d %H:%M:%S}", rng.integers(0, 100), round(rng.normal(), 3)]
            out.writerow(rows.get(i, line))


LINES = [
    (25_000, "{at} 20:00:00,N/A,0.5", Fault.UNREADABLE_CELL, "x", "N/A"),
    (3, "{at} 00:00:00,N/A,0.5", Fault.UNREADABLE_CELL, "x", "N/A"),
    (3, "yesterday,5,0.5", Fault.UNREADABLE_CELL, "ts", "yesterday"),
    (3, "{at} 00:00:00,5,0.5,9", Fault.MALFORMED_LINE, "", "too many columns"),
    (25_000, "{at} 20:00:00,5", Fault.MALFORMED_LINE, "", "missing columns"),
    (3, "56125-01-01 00:00:00,5,0.5", Fault.TIME_OUT_OF_RANGE, "ts", "56125"),
    (3, "2031-01-01 00:00:00,5,0.5", Fault.TIME_OUT_OF_RANGE, "ts", "2031-01-01"),
    (3, ",5,0.5", Fault.NO_EVENT_TIME, "ts", ""),
]
"""A bad line of each kind: its row, itself, and what is said of it."""


def test_a_bad_line_of_csv_is_put_aside_and_the_rest_is_judged(tmp_path):
    data = tmp_path / "t"
    data.mkdir()
    first = TRAINED + 6
    for day in range(first + len(LINES) + 1):
        given = {}
        if 0 <= day - first < len(LINES):
            row, line, *_ = LINES[day - first]
            given = {row: line.format(at=f"{START + day * DAY:%Y-%m-%d}").split(",")}
        cells(data / f"d{day:04}.csv", given, 26_000 if max(given, default=0) > 1000 else 250, day)
    found = watched(tmp_path, data / "*.csv")
    assert found.state.watermark == START + (first + len(LINES)) * DAY
    for number, (_, _, fault, column, example) in enumerate(LINES):
        past = found.windows[6 + number]
        [aside] = past.quarantined
        name = f"d{first + number:04}.csv"
        assert (aside.fault, aside.rows, aside.file, aside.column) == (fault, 1, name, column)
        assert example in aside.example
        assert past.judged == 2
    assert not any(past.quarantined for past in found.windows[:6])
    assert [one for one in found.incidents if "cells" in one or "lines" in one] == []


def test_a_number_that_nobody_can_read_is_no_text_and_many_are_an_incident(tmp_path):
    """Half of a day's cells are words: the column stays a column of numbers."""
    data = tmp_path / "t"
    data.mkdir()
    for day in range(DAYS):
        given = {}
        if day == BROKEN:
            given = {i: [f"{START + day * DAY:%Y-%m-%d}", "many", "0.1"] for i in range(125)}
        cells(data / f"d{day:04}.csv", given, 250, day)
    found = watched(tmp_path, data / "*.csv")
    [told] = found.incidents
    assert told.startswith("125 of 250 cells cannot be read as the column's type")
    assert found.reference.profile.types["x"] == ("int64",)
    assert found.verdicts["x"].level is Level.INCIDENT
    assert found.windows[-1].judged == 1


def test_words_for_null_in_the_reference_itself_are_usual(tmp_path):
    """Each day has 5 % of `NA`: x is a column of numbers, and the 5 % are no incident."""
    data = tmp_path / "t"
    data.mkdir()
    for day in range(TRAINED + 3):
        at = f"{START + day * DAY:%Y-%m-%d} 12:00:00"
        given = {i * 20: [at, "NA", "0.1"] for i in range(12)}
        cells(data / f"d{day:04}.csv", given, 250, day)
    found = watched(tmp_path, data / "*.csv")
    assert found.incidents == []
    assert found.reference.facts.quarantined == pytest.approx(12 / 250)
    assert found.windows[-1].quarantined[0].rows == 12


@pytest.mark.parametrize("how", ["truncated", "empty", "other_times", "page"])
def test_a_file_that_cannot_be_read_costs_its_own_day(tmp_path, how):
    files = written(tmp_path, calm, DAYS)
    path = files / f"d{BROKEN:04}.parquet"
    content = path.read_bytes()
    match how:
        case "truncated":
            path.write_bytes(content[: len(content) // 2])
        case "empty":
            path.write_bytes(b"")
        case "other_times":
            pq.write_table(pa.table({"at": [1, 2], "x": [1.0, 2.0]}), path)
        case "page":  # the data of a column, not the file's own description
            path.write_bytes(content[:600] + b"\\xff" * 400 + content[1000:])
    found = watched(tmp_path, files)
    assert found.state.watermark == START + (DAYS - 1) * DAY
    [told, *_] = found.incidents
    assert path.name in told
    assert "cannot be read" in told
    assert found.windows[-1].quarantined
    before = found.windows[-2].quarantined
    assert before == ()


def test_a_column_that_cannot_be_read_is_left_out_and_named(tmp_path):
    """A view of a database casts: one bad row must not take the other columns with it."""
    table = pa.concat_tables([day_of(calm, day, 250) for day in range(DAYS)])
    words = [f"{v:.3f}" for v in table["x"].to_pylist()]
    words[BROKEN * 250 + 7] = "N/A"
    database = tmp_path / "plant.duckdb"
    with duckdb.connect(str(database)) as con:
        con.register("given", table.set_column(1, "x", pa.array(words)))
        con.execute("CREATE TABLE raw AS FROM given")
        con.execute("CREATE VIEW shown AS SELECT ts, x::DOUBLE AS x, y FROM raw")
    source = {"database": str(database), "table": "shown", "timestamp": "ts"}
    found = watched(tmp_path, database, source=source)
    assert found.state.watermark == START + (DAYS - 1) * DAY
    [told] = found.incidents
    assert "the column cannot be read (table shown, column x): Conversion Error" in told
    assert found.verdicts["y"].level is Level.OK
    assert found.verdicts["x"].level is Level.INCIDENT


def test_a_clock_that_jumps_makes_no_bucket_due(tmp_path):
    files = written(tmp_path, calm, TRAINED + 3)
    jumped = day_of(calm, TRAINED + 2, 250).set_column(
        0, "ts", pa.array([START + 3000 * DAY] + [START + (TRAINED + 1) * DAY] * 249)
    )
    pq.write_table(jumped, files / "jumped.parquet")
    behind = day_of(calm, 0, 1).set_column(
        0, "ts", pa.array([datetime.fromtimestamp(0, START.tzinfo)])
    )
    pq.write_table(behind, files / "behind.parquet")
    with evaluator(tmp_path, files) as (made, ledger):
        assert len(made.due("m")) == 2
        made.evaluate("m", 100)
        assert ledger.held("m").watermark == START + (TRAINED + 2) * DAY
        assert made.latest("m") < START + (TRAINED + 3) * DAY
    found = watched(tmp_path / "again", files)
    [aside] = found.windows[-1].quarantined
    assert (aside.fault, aside.rows, aside.file) == (Fault.TIME_OUT_OF_RANGE, 1, "jumped.parquet")


def spans(*groups):
    return [Span(START + a * DAY, START + b * DAY, rows) for a, b, rows in groups]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (spans((0, 100, 100_000), (2500, 2500, 1)), 1),
        (spans((0, 100, 100_000), (2500, 2500, 19)), 1),
        (spans((0, 100, 100_000), (160, 160.1, 100)), 2),  # it stood still for two months
        (spans(*((7 * i, 7 * i, 5) for i in range(30))), 30),  # weekly, few
        (spans((0, 0, 1)), 1),
        (spans(), 0),
        (spans((5000, 5100, 1000)), 1),  # all of it is ahead of the clock: a simulation
        (spans((0, 100, 1000), (5000, 5100, 10_000)), 1),
    ],
)
def test_times_are_believed_where_there_are_rows_enough(given, kept):
    found = believed(given, START + 1000 * DAY)
    assert len(found) == kept
    assert found == sorted(given, key=lambda one: one.first)[:kept]


def test_rows_that_are_loaded_twice_are_an_incident(tmp_path):
    def make(rng, day, rows):
        half = rows // 2
        at, x = times(rng, day, half), rng.normal(0, 1, half)
        user = np.arange(half)
        if day == BROKEN:
            return {"ts": pa.concat_arrays([at, at]), "x": np.r_[x, x], "user": np.r_[user, user]}
        return {"ts": pa.concat_arrays([at, times(rng, day, half)]), "x": rng.normal(0, 1, rows),
                "user": np.arange(rows)}  # fmt: skip

    files = written(tmp_path, make, DAYS)
    assert watched(tmp_path, files).incidents == ["125 of 250 rows are the same as another row"]


def test_keys_that_come_twice_are_an_incident_though_the_rows_differ(tmp_path):
    def twice(rng, day, rows, columns):
        at = times(rng, day, rows // 2)
        return {
            **columns,
            "ts": pa.concat_arrays([at, at]),
            "user": np.tile(np.arange(rows // 2), 2),
        }

    def make(rng, day, rows):
        return {"user": np.arange(rows), **broken_from(twice)(rng, day, rows)}

    files = written(tmp_path, make, DAYS)
    [told] = watched(tmp_path, files, keys=["user"]).incidents
    assert told == "125 of 250 rows repeat user and time of another row"


def test_what_always_repeats_is_no_incident_until_all_of_it_comes_twice(tmp_path):
    """Days of 40 kinds: a third repeats by itself."""

    def make(rng, day, rows):
        noon = pa.array([START + day * DAY] * rows, pa.timestamp("us", "UTC"))
        return {"ts": noon, "k": rng.integers(0, 150, rows) if day != BROKEN else
                np.repeat(rng.permutation(150)[:50], 2)}  # fmt: skip

    found = watched(tmp_path, written(tmp_path, make, DAYS, 100))
    assert len(found.incidents) <= 1
    assert 0.2 < found.reference.facts.repeats[""] < 0.5


def test_a_tuesday_that_lost_its_rows_is_told_and_a_weekend_without_any_is_not(tmp_path):
    def rows(day):
        if day % 7 >= 5:
            return 0
        return 25 if day == TRAINED + 8 else 800

    found = watched(tmp_path, written(tmp_path, calm, TRAINED + 14, rows))
    assert found.incidents == ["25 rows; a Tuesday has 800 at the median of 5 before"]

    def none(day):
        return 0 if day % 7 >= 5 or day == TRAINED + 8 else 800

    (tmp_path / "none").mkdir()
    found = watched(tmp_path / "none", written(tmp_path / "none", calm, TRAINED + 14, none))
    [told] = found.incidents
    assert told.startswith("no rows from 2024-02-06 00:00 to 2024-02-07 00:00; a Tuesday has 800")


@pytest.mark.parametrize(
    ("sd", "rows", "lost"),
    [(0.05, 3000, True), (0.05, 4000, False), (0.75, 1000, False), (0.0, 3300, True)],
)
def test_how_far_a_volume_may_be_off_follows_from_how_far_it_was(sd, rows, lost):
    """Steady volumes: a third is lost. Volumes of factor ten between days: nearly all must be."""
    rng = np.random.default_rng(3)
    volumes = tuple(int(v) for v in 10_000 * np.exp(rng.normal(0, sd, 57)))
    found = expected_volume(START + 57 * DAY, DAY, DataFacts(START, volumes), {})
    assert (rows < found.least) is lost
    assert found.most > 2 * found.rows


def test_an_hour_is_compared_with_the_same_hour_of_the_same_weekday():
    hour = timedelta(hours=1)
    volumes = tuple(10 if i % 24 < 6 else 1000 for i in range(28 * 24))
    night = expected_volume(START + 28 * DAY + 3 * hour, hour, DataFacts(START, volumes), {})
    noon = expected_volume(START + 28 * DAY + 12 * hour, hour, DataFacts(START, volumes), {})
    assert night is None  # so few that an empty one is nothing
    assert (noon.rows, noon.alike, noon.whose) == (1000, 4, "a Monday from 12:00")


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite")])
@pytest.mark.parametrize("share", [0.9, 1.0])
def test_a_column_without_values_is_broken_and_no_drift(tmp_path, value, word, share):
    def change(rng, _day, rows, columns):
        gone = rng.random(rows) < share
        return {**columns, "x": np.where(gone, value, columns["x"])}

    files = written(tmp_path, broken_from(change, BROKEN, DAYS), DAYS)
    found = watched(tmp_path, files, episode={"k": 1, "n": 1, "close": 1})
    [told] = found.incidents
    assert f"of x are {word}" in told
    assert found.state.blocked
    assert found.verdicts["x"].level is Level.INCIDENT
    assert [one.summary for one in found.alerts if one.kind == "episode"] == []


def test_new_renamed_and_filled_columns_are_told_once_and_block_nothing(tmp_path):
    def make(rng, day, rows):
        columns = {"empty": pa.nulls(rows, pa.float64()), **calm(rng, day, rows)}
        if day < BROKEN - 1:
            return columns
        x, filled = columns.pop("x"), pa.array(np.ones(rows))
        return {**columns, "renamed": x, "added": x + 100, "empty": filled}

    found = watched(tmp_path, written(tmp_path, make, DAYS))
    [told] = found.incidents
    assert "and 2 more" in told
    summaries = {one.incident.kind: one.incident.summary for one in found.state.incidents}
    assert summaries["filled"] == "100% of empty have a value; 0% have one in the reference"
    assert summaries["schema"] == (
        "x is not there in 250 of 250 rows; the new column renamed holds values like its"
    )
    assert "new_column" not in summaries  # of the day before


CODES = [10, 20, 30]


@pytest.mark.parametrize(
    ("column", "new", "said"),
    [
        ("x", np.inf, r"^[3-7](\.\d)? % of rows are infinite, was 0 %"),
        ("x", -np.inf, r"^[3-7](\.\d)? % of rows are infinite, was 0 %"),
        ("code", 15, r"% of rows in values that the reference lacks \(10 to under 20\), was 0 %"),
        ("code", 99, r"% of rows in values that the reference lacks \(over 30\), was 0 %"),
        ("code", -1, r"% of rows in values that the reference lacks \(under 10\), was 0 %"),
        ("word", "new", r"% of rows in categories that the reference lacks, was 0 %"),
    ],
)
def test_infinities_and_new_codes_are_explained_as_what_they_are(tmp_path, column, new, said):
    """The mean of the others says nothing of them, whichever measure is farthest."""

    def make(rng, day, rows):
        columns = {
            "x": rng.normal(0, 1, rows),
            "code": rng.choice(CODES, rows, p=[0.3, 0.3, 0.4]),
            "word": rng.choice(["a", "b", "c"], rows, p=[0.3, 0.3, 0.4]).astype(object),
        }
        if day >= BROKEN:
            columns[column][rng.random(rows) < 0.05] = new
        return columns

    found = watched(tmp_path, written(tmp_path, make, DAYS, 600))
    one = found.verdicts[column]
    assert one.level is Level.DRIFT
    assert re.search(said, one.reason), one.reason
    calm = [verdict for name, verdict in found.verdicts.items() if name != column]
    assert not any("lacks" in each.reason or "infinite" in each.reason for each in calm)


def test_a_tail_that_moves_with_the_mean_is_no_new_value(tmp_path):
    def moved(_rng, _day, _rows, columns):
        return {**columns, "x": columns["x"] + 1}

    found = watched(tmp_path, written(tmp_path, broken_from(moved, last=DAYS), DAYS))
    assert found.verdicts["x"].level is Level.DRIFT
    assert "lacks" not in found.verdicts["x"].reason
