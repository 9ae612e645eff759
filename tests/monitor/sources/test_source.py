"""Feature views and tables as what a monitor watches, against plain filters of the same rows."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import ValidationError

from steadfeast import OnlineFeatures
from steadfeast.featurestore.errors import ConfigError, NotFoundError, SourceError
from steadfeast.featurestore.served_log.log import ServedLog
from steadfeast.monitor.config.schema import DaemonConfig, MonitorConfig, load
from steadfeast.monitor.drift.detector import Level
from steadfeast.monitor.evaluation.evaluator import Evaluator
from steadfeast.monitor.evaluation.preflight import check
from steadfeast.monitor.ledger.ledger import Ledger
from steadfeast.monitor.references.training_set import NoRowsError
from steadfeast.monitor.sources.source import Sources

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

T0 = datetime(2024, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
TS = pa.timestamp("us", "UTC")
TRAINED = 28
PER_DAY = 240
STRETCH = {"from": T0, "to": T0 + TRAINED * DAY}


def readings(first: int, days: int, *, shift: float = 0.0, seed: int = 0) -> pa.Table:
    """Whole days of readings by a handful of sensors."""
    rng = np.random.default_rng([seed, first])
    size = days * PER_DAY
    at = [T0 + first * DAY + DAY * (i / PER_DAY) for i in range(size)]
    return pa.table(
        {
            "read_at": pa.array(at, TS),
            "sensor": [f"s{i % 6}" for i in range(size)],
            "heat": rng.normal(shift, 1, size),
            "mode": rng.choice(["on", "off"], size, p=[0.8, 0.2]),
        }
    )


def monitored(**source: object) -> dict[str, object]:
    return {
        "source": {"timestamp": "read_at", "keys": ["sensor"], **source},
        "reference": STRETCH,
        "window": 3 * DAY,
        "min_rows": 100,
        "episode": {"k": 1, "n": 1, "close": 1},
    }


def source_of(tmp_path: Path, **given: object):
    config = MonitorConfig(source={"timestamp": "read_at", **given}, reference=STRETCH)
    return Sources(ServedLog(tmp_path), {}).of("m", config)


def read(source, start: datetime, end: datetime) -> list[dict[str, object]]:
    """The rows that a bucket would freeze."""
    with duckdb.connect() as con, source.reading(con, start, end) as reading:
        rows = reading.rows
        if rows is None:
            return []
        con.execute("SET TimeZone = 'UTC'")
        asked = "request_time >= $start AND request_time < $end"
        values = {**rows.values, "start": start, "end": end}
        query = f"SELECT * FROM ({rows.query}) WHERE {asked} ORDER BY ALL"
        return con.sql(query, params=values).to_arrow_table().to_pylist()


def naive(table: pa.Table, start: datetime, end: datetime) -> list[dict[str, object]]:
    rows = [
        {"request_time": row.pop("read_at"), "sensor": row.pop("sensor"), **row}
        for row in table.to_pylist()
    ]
    kept = [row for row in rows if start <= row["request_time"] < end]
    return sorted(kept, key=lambda row: tuple(row.values()))


LAYOUTS = ["file", "folder", "glob", "hive", "csv", "delta", "database", "naive_times", "nanos"]


def laid_out(folder: Path, table: pa.Table, layout: str) -> dict[str, object]:
    """Write `table` in one of the ways that a table may lie there, and say how to watch it."""
    days = [table.slice(i, PER_DAY) for i in range(0, table.num_rows, PER_DAY)]
    data = folder / "data"
    data.mkdir()
    match layout:
        case "folder" | "glob":
            for number, day in enumerate(days):
                pq.write_table(day, data / f"{number}.parquet")
            return {"files": str(data / "*.parquet" if layout == "glob" else data)}
        case "hive":
            for number, day in enumerate(days):
                (data / f"day={number}").mkdir()
                pq.write_table(day, data / f"day={number}" / "rows.parquet")
            return {"files": str(data)}
        case "csv":
            pc.write_csv(table, data / "rows.csv")
            return {"files": str(data / "rows.csv")}
        case "delta":
            deltalake = pytest.importorskip("deltalake")
            for day in days:
                deltalake.write_deltalake(str(data), day, mode="append")
            return {"files": str(data)}
        case "database":
            with duckdb.connect(str(data / "plant.duckdb")) as con:
                con.register("given", table)
                con.execute("CREATE SCHEMA raw; CREATE TABLE raw.readings AS FROM given")
            return {"database": str(data / "plant.duckdb"), "table": "raw.readings"}
    kind = {"naive_times": pa.timestamp("us"), "nanos": pa.timestamp("ns", "UTC")}.get(layout, TS)
    at = table["read_at"].cast(kind)
    pq.write_table(table.set_column(0, "read_at", at), data / "rows.parquet")
    return {"files": str(data / "rows.parquet")}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_bucket_has_the_rows_of_its_time_however_the_table_lies_there(tmp_path, layout):
    table = readings(0, 4)
    source = source_of(tmp_path, keys=["sensor"], **laid_out(tmp_path, table, layout))
    assert source.first() == table["read_at"][0].as_py()
    assert source.latest() == table["read_at"][-1].as_py()
    for hours in (1, 24):
        for number in range(-1, 4 * 24 // hours + 1):
            start = T0 + number * timedelta(hours=hours)
            end = start + timedelta(hours=hours)
            found = read(source, start, end)
            for row in found:
                row.pop("day", None)  # the partition
            assert found == naive(table, start, end)


def test_only_files_that_may_have_rows_of_a_bucket_are_opened(tmp_path):
    """A file that has another type, or is broken by now, costs its own bucket alone."""
    given = laid_out(tmp_path, readings(0, 3), "folder")
    source = source_of(tmp_path, keys=["sensor"], **given)
    assert source.latest() is not None
    day = readings(3, 1)
    words = day.set_column(2, "heat", pa.array(["hot"] * PER_DAY))
    pq.write_table(words, tmp_path / "data" / "3.parquet")
    assert isinstance(read(source, T0 + 2 * DAY, T0 + 3 * DAY)[0]["heat"], float)
    assert read(source, T0 + 3 * DAY, T0 + 4 * DAY)[0]["heat"] == "hot"


def test_what_changes_is_seen_and_what_does_not_is_not_read_again(tmp_path, monkeypatch):
    given = laid_out(tmp_path, readings(0, 2), "folder")
    source = source_of(tmp_path, **given)
    looked = []
    span = type(source)._span
    monkeypatch.setattr(
        type(source), "_span", lambda self, con, piece: looked.append(1) or span(self, con, piece)
    )
    monkeypatch.setattr("steadfeast.monitor.sources.table.SETTLED_NS", 0)
    assert source.latest() == readings(0, 2)["read_at"][-1].as_py()
    assert len(looked) == 2
    assert source.parts(T0, T0 + DAY) == source.parts(T0, T0 + 2 * DAY)[:1]
    assert len(looked) == 2
    pq.write_table(readings(2, 1), tmp_path / "data" / "2.parquet")
    assert source.latest() == readings(2, 1)["read_at"][-1].as_py()
    assert len(looked) == 3
    (tmp_path / "data" / "2.parquet").unlink()
    assert source.latest() == readings(0, 2)["read_at"][-1].as_py()


def test_a_database_is_let_go_after_each_look(tmp_path):
    given = laid_out(tmp_path, readings(0, 2), "database")
    source = source_of(tmp_path, **given)
    assert source.latest() is not None
    command = (
        "import duckdb, sys; con = duckdb.connect(sys.argv[1]); "
        "con.execute(\"INSERT INTO raw.readings BY NAME SELECT TIMESTAMPTZ '2024-01-03 12:00Z' "
        'AS read_at, 1.0 AS heat")'
    )
    writer = [sys.executable, "-c", command, given["database"]]
    subprocess.run(writer, check=True, timeout=60)
    assert source.latest() == T0 + 2.5 * DAY
    assert len(read(source, T0 + 2 * DAY, T0 + 3 * DAY)) == 1


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"files": "data/gone.parquet"}, "there is no such file"),
        ({"files": "data/empty"}, "the folder holds no Parquet file"),
        ({"files": "data/none.parquet"}, "there are no rows with an event time"),
        ({"files": "data/some.parquet", "timestamp": "at"}, "'at': there is no such column"),
        ({"files": "data/some.parquet", "timestamp": "heat"}, "'heat': holds DOUBLE, not times"),
        ({"files": "data/some.parquet", "keys": ["engine"]}, "'engine': there is no such column"),
        ({"files": "data/broken.parquet"}, "broken.parquet"),
        ({"database": "data/gone.duckdb", "table": "t"}, "No such file"),
        ({"database": "data/plant.duckdb", "table": "t"}, "Table with name"),
    ],
)
def test_a_table_that_cannot_be_watched_is_one_message_before_anything_starts(
    tmp_path, given, problem
):
    data = tmp_path / "data"
    (data / "empty").mkdir(parents=True)
    table = readings(0, 40)
    pq.write_table(table, data / "some.parquet")
    pq.write_table(table.slice(0, 0), data / "none.parquet")
    (data / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    duckdb.connect(str(data / "plant.duckdb")).close()
    paths = {name: str(tmp_path / given[name]) for name in ("files", "database") if name in given}
    plain = monitored(**{**given, **paths})
    config = DaemonConfig(state=tmp_path / "state", monitors={"m": plain})
    with Ledger(config.state) as ledger:
        evaluator = Evaluator(config, ledger, tmp_path)
        with pytest.raises(SourceError) as caught:
            evaluator.prepare(config)
        evaluator.close()
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_column_or_a_stretch_that_is_not_there_is_named(tmp_path):
    pq.write_table(readings(0, 3), tmp_path / "some.parquet")
    plain = monitored(files=str(tmp_path / "some.parquet"))
    whole = DaemonConfig(state=tmp_path / "state", monitors={"m": plain})
    with Ledger(whole.state) as ledger:
        evaluator = Evaluator(whole, ledger, tmp_path)
        for change, error, words in [
            ({"features": ["heet"]}, NotFoundError, "did you mean heat"),
            ({"segments": ["place"]}, NotFoundError, "'place'"),
            (
                {"reference": {"from": "2023-01-01", "to": "2023-02-01"}},
                NoRowsError,
                "it has some from 2024-01-01T00:00Z to 2024-01-03T23:54Z",
            ),
        ]:
            config = DaemonConfig(state=tmp_path / "state", monitors={"m": {**plain, **change}})
            with pytest.raises(error, match=words):
                evaluator.prepare(config)
        evaluator.close()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, "give either service or source"),
        ({"service": "s", "model": "m", "source": {"view": "v"}}, "give either service or source"),
        ({"source": {"view": "v"}}, "model is missing"),
        ({"source": {"view": "v"}, "reference": STRETCH, "pipeline": "p"}, "model is missing"),
        ({"source": {"view": "v", "timestamp": "t"}, "model": "m"}, "a view knows its own"),
        ({"source": {"files": "f"}, "model": "m"}, "timestamp goes with files"),
        ({"source": {"database": "f", "timestamp": "t"}, "model": "m"}, "database and table"),
        ({"source": {"view": "v", "files": "f"}, "model": "m"}, "one of view, files and database"),
        ({"source": {"view": "v"}, "model": "m", "audit": "1d"}, "audit cannot go with source"),
        ({"source": {"view": "v"}, "model": "m", "performance": {}}, "performance cannot go with"),
        ({"service": "s", "model": "m", "reference": STRETCH}, "a stretch goes with source"),
        (
            {"source": {"view": "v"}, "reference": {"from": "2024-02-01", "to": "2024-01-01"}},
            "must be before to",
        ),
    ],
)
def test_what_cannot_go_together_is_refused(given, problem):
    with pytest.raises(ValidationError, match=problem):
        MonitorConfig(**given)


class Plant:
    """A table of readings that grows day by day, and a daemon's evaluator over it."""

    def __init__(self, folder: Path, **changes: object) -> None:
        self.folder = folder / "readings"
        self.folder.mkdir()
        pq.write_table(readings(0, TRAINED), self.folder / "trained.parquet")
        plain = monitored(files=str(self.folder), **changes.pop("source", {}))
        self.config = DaemonConfig(
            state=folder / "state", clock="watermark", monitors={"plant": {**plain, **changes}}
        )
        self.ledger = Ledger(self.config.state)
        self.evaluator = Evaluator(self.config, self.ledger, folder)
        self.evaluator.configure(self.config, self.evaluator.prepare(self.config))

    def day(self, number: int, table: pa.Table | None = None, **options: float) -> None:
        """Write one day after the reference, and have what is closed evaluated."""
        first = TRAINED + number
        table = readings(first, 1, **options) if table is None else table
        pq.write_table(table, self.folder / f"{first:03}.parquet")
        self.evaluator.evaluate("plant", 64)

    @property
    def state(self):
        return self.ledger.state(self.config.monitors)

    def close(self) -> None:
        self.evaluator.close()
        self.ledger.close()


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    plant = Plant(tmp_path)
    yield plant
    plant.close()


def test_drift_of_a_table_is_told_and_nothing_is_fired(plant):
    for number in range(6):
        plant.day(number)
    state = plant.state.monitors["plant"]
    assert state.watermark == T0 + (TRAINED + 5) * DAY
    assert {v.feature: (v.source, v.level) for v in state.verdicts} == {
        "heat": ("table", Level.OK),
        "mode": ("table", Level.OK),
    }
    assert state.source == ("table", str(plant.folder))
    for number in range(6, 10):
        plant.day(number, shift=2.0)
    state = plant.state
    [episode] = state.episodes
    assert episode.features[0].feature == "heat"
    assert not state.triggers
    # Buckets begin where the reference ends; each has one snapshot.
    kept = plant.ledger.buckets("plant", T0, T0 + 99 * DAY)
    assert [one.bucket.start for one in kept] == [T0 + (TRAINED + i) * DAY for i in range(9)]
    assert {one.rows for one in kept} == {PER_DAY}
    snapshots = list((plant.config.state / "snapshots" / "plant").iterdir())
    assert len(snapshots) == 9


def test_a_column_that_changes_its_type_is_an_incident_and_the_others_are_judged(plant):
    for number in range(4):
        plant.day(number)
    day = readings(TRAINED + 4, 1)
    plant.day(4, day.set_column(2, "heat", pa.array(["hot"] * PER_DAY)))
    day = readings(TRAINED + 5, 1)
    plant.day(5, day.drop_columns(["heat"]))
    state = plant.state.monitors["plant"]
    assert [one.incident.summary for one in state.incidents] == [
        "heat is string, which cannot be read as numeric"
    ]
    levels = {one.feature: one.level for one in state.verdicts}
    assert levels == {"heat": Level.INCIDENT, "mode": Level.OK}
    plant.day(6)
    assert [one.incident.summary for one in plant.state.monitors["plant"].incidents] == [
        f"heat is not there in {PER_DAY} of {PER_DAY} rows"
    ]


def test_a_day_without_rows_is_an_incident(plant):
    for number in (0, 1, 2, 4, 5):
        plant.day(number)
    summaries = [alert.summary for alert in plant.state.alerts]
    assert any("no rows from 2024-02-01 00:00" in one for one in summaries)


def test_late_rows_are_counted_and_the_snapshot_stays(plant):
    for number in range(3):
        plant.day(number)
    before = plant.ledger.buckets("plant", T0, T0 + 99 * DAY)
    more = readings(TRAINED + 1, 1, seed=9).slice(0, 7)
    pq.write_table(more, plant.folder / "late.parquet")
    plant.day(3)
    kept = plant.ledger.buckets("plant", T0, T0 + 99 * DAY)
    assert [one.late_rows for one in kept] == [0, 7, 0]
    assert [one.rows for one in kept][:2] == [one.rows for one in before]
    assert plant.state.counters.late_rows == {"plant": 7}


def test_rows_go_out_of_retention_and_profiles_stay(tmp_path):
    plant = Plant(tmp_path)
    plant.config = plant.config.model_copy(update={"retention": 2 * DAY})
    plant.evaluator.configure(plant.config, {})
    for number in range(9):
        plant.day(number)
    kept = plant.ledger.buckets("plant", T0, T0 + 99 * DAY)
    there = [one.path.exists() for one in kept]
    assert len(kept) == 8
    assert there == [False] * 3 + [True] * 5
    assert all(plant.ledger.profile("plant", one) for one in kept)
    plant.close()


def test_a_source_that_cannot_be_read_stops_nobody_else_and_goes_on_when_it_can(tmp_path):
    plant = Plant(tmp_path)
    other = monitored(files=str(tmp_path / "other.parquet"))
    pq.write_table(readings(0, TRAINED + 3), tmp_path / "other.parquet")
    config = plant.config.model_copy(
        update={"monitors": {**plant.config.monitors, "other": MonitorConfig(**other)}}
    )
    plant.evaluator.configure(config, plant.evaluator.prepare(config))
    plant.day(0)
    plant.day(1)
    (tmp_path / "aside").mkdir()
    plant.folder.rename(tmp_path / "aside" / "readings")
    assert plant.evaluator.latest("plant") == readings(TRAINED + 1, 1)["read_at"][-1].as_py()
    assert "there is no such file" in plant.evaluator.problem("plant")
    assert plant.evaluator.evaluate("other", 64) == 2
    (tmp_path / "aside" / "readings").rename(plant.folder)
    plant.day(2)
    assert plant.evaluator.latest("plant") is not None
    assert plant.evaluator.problem("plant") == ""
    assert len(plant.ledger.buckets("plant", T0, T0 + 99 * DAY)) == 2
    plant.close()


def test_a_reference_is_built_once_and_again_when_what_it_is_made_for_changes(plant):
    assert plant.evaluator.prepare(plant.config) == {}
    for change in ({"min_rows": 50}, {"reference": {"from": T0, "to": T0 + 14 * DAY}}):
        one = plant.config.monitors["plant"].model_dump(by_alias=True) | change
        config = plant.config.model_copy(update={"monitors": {"plant": MonitorConfig(**one)}})
        assert list(plant.evaluator.prepare(config)) == ["plant"]


# Feature views, through Feast itself

REPO = """
from datetime import timedelta
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, String
item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)
stock = FeatureView(
    name="stock", entities=[item], ttl=timedelta(days=1),
    schema=[Field(name="level", dtype=Float64), Field(name="note", dtype=String, tags={"pii": ""})],
    source=FileSource(
        path="data", timestamp_field="at", created_timestamp_column="made",
        field_mapping={"lvl": "level", "sku": "item_id"},
    ),
)
"""
STORE = """
project: tiny
provider: local
registry: registry.db
offline_store: {type: steadfeast.DuckDBOfflineStore}
online_store: {type: sqlite, path: online.db}
entity_key_serialization_version: 3
"""


def corrected(seed: int, size: int = 400) -> pa.Table:
    """Rows with corrections: several for one item and time, some made at one time."""
    rng = np.random.default_rng(seed)
    at = [T0 + timedelta(hours=int(h)) for h in rng.integers(0, 72, size)]
    return pa.table(
        {
            "sku": rng.choice(["a", "b"], size),
            "at": pa.array(at, TS),
            "made": pa.array([t + timedelta(hours=int(h)) for t, h in
                              zip(at, rng.integers(0, 3, size), strict=True)], TS),
            "lvl": rng.integers(0, 5, size).astype(float),
            "note": rng.choice(["x", "y"], size),
        }
    )  # fmt: skip


def test_a_view_has_the_row_of_each_entity_and_time_that_a_join_would_take(tmp_path):
    """Feast applies the repository; the oracle is a loop over the total order."""
    (tmp_path / "feature_store.yaml").write_text(STORE)
    (tmp_path / "features.py").write_text(REPO)
    (tmp_path / "data").mkdir()
    table = corrected(3)
    pq.write_table(table.slice(0, 150), tmp_path / "data" / "a.parquet")
    pq.write_table(table.slice(150), tmp_path / "data" / "b.parquet")
    command = "import sys; from feast.cli.cli import cli; cli()"
    subprocess.run([sys.executable, "-c", command, "apply"], cwd=tmp_path, check=True, timeout=120)
    path = tmp_path / "steadfeast.yaml"
    one = {"source": {"view": "stock"}, "reference": {"from": "2024-01-01", "to": "2024-01-03"}}
    plain = {
        "store": {"repo": ".", "data": "kept"},
        "monitor": {"state": "state", "monitors": {"stock": one}},
    }
    path.write_text(yaml.safe_dump(plain))
    config, store = load(path)
    views = check(path, config, store)
    sources = Sources(ServedLog(store.data), views)
    source = sources.of("stock", config.monitors["stock"])
    assert (source.keys, source.personal) == (("item_id",), {"note"})
    best: dict[tuple[object, object], dict[str, object]] = {}
    order = lambda row: (row["made"], row["lvl"], row["note"])  # noqa: E731 - the total order
    for row in table.to_pylist():
        key = row["sku"], row["at"]
        if key not in best or order(row) > order(best[key]):
            best[key] = row
    expected = sorted(
        ({"request_time": at, "item_id": sku, "level": row["lvl"], "note": row["note"]}
         for (sku, at), row in best.items()),
        key=lambda row: tuple(row.values()),
    )  # fmt: skip
    assert read(source, T0, T0 + 4 * DAY) == expected
    one["source"]["view"], one["features"] = "stack", ["level"]
    path.write_text(yaml.safe_dump(plain))
    with pytest.raises(ConfigError, match="no feature view 'stack'; did you mean stock"):
        check(path, *load(path))
    one["source"]["view"], one["features"] = "stock", ["leval"]
    path.write_text(yaml.safe_dump(plain))
    with pytest.raises(ConfigError, match=r"features: no feature of view stock 'leval'.*level"):
        check(path, *load(path))


def test_predictions_that_were_sent_by_themselves_are_of_their_vectors(tmp_path):
    """Beside a loop over what was sent: by model and version, else the first; shadows are none."""
    log, at = ServedLog(tmp_path), T0 + timedelta(hours=1)

    def serve(name, model="", version="", prediction=None):
        table = pa.table({"user": [1], "spend": [2.0]})
        features = OnlineFeatures(table, {"spend": np.ones(1, np.uint8)}, {}, "c" * 64)
        said = None if prediction is None else [prediction]
        named = {"request_ids": [name], "request_time": at, "predictions": said}
        log.append("svc", features, model=model, model_version=version, **named)

    def say(name, value, version, model="m", late=timedelta(seconds=3)):
        named = {"request_time": at + late, "model": model, "model_version": version}
        log.append_predictions("svc", [name], [value], **named)

    serve("own", "m", "1", 0.1)
    say("own", 0.9, "2")
    serve("named", "m", "2")
    say("named", 0.3, "1")
    say("named", 0.4, "2", late=timedelta(seconds=9))
    serve("nameless")
    say("nameless", 0.6, "4", late=timedelta(seconds=9))
    say("nameless", 0.5, "3")
    serve("silent", "m", "2")
    say("silent", 0.8, "1")
    say("stranger", 0.7, "1")
    log.flush()
    source = Sources(log, {}).of("m", MonitorConfig(service="svc", model="m"))
    found = read(source, T0, T0 + DAY)
    columns = ("request_id", "prediction", "model", "model_version")
    assert [tuple(row[name] for name in columns) for row in found] == [
        ("named", 0.4, "m", "2"),
        ("nameless", 0.5, "m", "3"),
        ("own", 0.1, "m", "1"),
        ("silent", None, "m", "2"),
    ]
    assert [row["spend"] for row in found] == [2.0] * 4
