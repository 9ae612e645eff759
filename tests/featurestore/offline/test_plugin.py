"""The whole plugin through Feast's API: every kind of source, writing, streaming, SQL, figures."""

from __future__ import annotations

import math
import resource
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from feast import FeatureService, Field
from feast.data_format import DeltaFormat
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_logging import LoggingConfig
from feast.infra.offline_stores.file_source import (
    FileLoggingDestination,
    FileSource,
    SavedDatasetFileStorage,
)
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64

from steadfeast.featurestore.errors import SourceError
from steadfeast.featurestore.offline import latest
from support.offline_oracle import INSTANT, at, oracle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Repo

pytestmark = pytest.mark.filterwarnings(
    "ignore:On demand feature view is an experimental feature:RuntimeWarning",
    "ignore:Saving dataset is an experimental feature:RuntimeWarning",
    "ignore:Retrieving datasets is an experimental feature:RuntimeWarning",
    "ignore:Logs retrieval is experimental:RuntimeWarning",
    "ignore:Feature service .* logs:RuntimeWarning",
)


def history(keys: int = 5, hours: int = 4) -> pa.Table:
    rows = [(k, at(h), 10.0 * k + h) for k in range(keys) for h in range(hours)]
    return pa.table(
        {
            "k": [k for k, _, _ in rows],
            "ts": pa.array([t for _, t, _ in rows], INSTANT),
            "a": [a for _, _, a in rows],
        }
    )


def asked(keys: int = 5, hours: float = 9) -> pa.Table:
    times = pa.array([at(hours)] * keys, INSTANT)
    return pa.table({"k": list(range(keys)), "event_timestamp": times})


NEWEST = [10.0 * k + 3 for k in range(5)]


def _file(repo: Repo, table: pa.Table) -> dict[str, Any]:
    return {"data": repo.write(table)}


def _folder(repo: Repo, table: pa.Table) -> dict[str, Any]:
    repo.write(table.slice(0, 7), "folder/deep/one.parquet")
    repo.write(table.slice(7), "folder/two.parquet")
    repo.write(pa.table({"junk": [1]}), "folder/_temporary/x.parquet")
    repo.write(pa.table({"junk": [1]}), "folder/.hidden.parquet")
    return {"data": "folder"}


def _glob(repo: Repo, table: pa.Table) -> dict[str, Any]:
    repo.write(table.slice(0, 7), "some/part-1.parquet")
    repo.write(table.slice(7), "some/part-2.parquet")
    repo.write(pa.table({"junk": [1]}), "some/other.parquet")
    return {"data": "some/part-*.parquet"}


def _hive(repo: Repo, table: pa.Table) -> dict[str, Any]:
    for k in range(5):
        part = table.filter(pa.compute.equal(table["k"], k)).drop_columns("k")
        repo.write(part, f"hive/k={k}/part.parquet")
    return {"data": "hive"}


def _delta(repo: Repo, table: pa.Table) -> dict[str, Any]:
    deltalake = pytest.importorskip("deltalake")
    folder = repo.folder / "delta"
    deltalake.write_deltalake(folder, table.slice(0, 7))
    deltalake.write_deltalake(folder, table.slice(7), mode="append")
    deltalake.write_deltalake(
        folder, pa.table({"k": [9], "ts": [at(0)], "a": [0.0]}), mode="append"
    )
    deltalake.DeltaTable(folder).delete("k = 9")
    return {"data": "delta", "file_format": DeltaFormat()}


SOURCES = {f.__name__[1:]: f for f in (_file, _folder, _glob, _hive, _delta)}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_source_reads_the_same(repo: Repo, kind: str) -> None:
    view = repo.view(features=["a"], **SOURCES[kind](repo, history()))
    assert repo.join(asked(), ["v:a"])["a"].to_pylist() == NEWEST
    repo.store.materialize(at(0), at(9), feature_views=["v"])
    online = repo.store.get_online_features(["v:a"], [{"k": 4}]).to_dict()
    assert online["a"] == [NEWEST[4]]
    store = repo.store._get_provider().offline_store
    columns = store.get_table_column_names_and_types_from_data_source(
        repo.store.config, view.batch_source
    )
    assert {"k", "ts", "a"} == {name for name, _ in columns}
    assert dict(columns)["a"] == "double"


@pytest.mark.parametrize("kind", SOURCES)
def test_appended_rows_are_read_and_old_files_untouched(repo: Repo, kind: str) -> None:
    view = repo.view(features=["a"], **SOURCES[kind](repo, history()))
    before = {
        p.stat().st_ino: p.read_bytes() for p in repo.folder.rglob("*.parquet") if p.is_file()
    }
    store = repo.store._get_provider().offline_store
    columns = store.get_table_column_names_and_types_from_data_source(
        repo.store.config, view.batch_source
    )
    fresh = pa.table({"k": [4, 5], "ts": pa.array([at(8)] * 2, INSTANT), "a": [99.0, 98.0]})
    for n in range(2):
        store.offline_write_batch(
            repo.store.config, view, fresh.select([name for name, _ in columns]), None
        )
        assert repo.join(asked(6), ["v:a"])["a"].to_pylist() == [*NEWEST[:4], 99.0, 98.0], n
    after = {p.stat().st_ino: p.read_bytes() for p in repo.folder.rglob("*.parquet") if p.is_file()}
    assert before.items() <= after.items()  # same files, same bytes
    assert not list(repo.folder.rglob(".source*"))  # nothing half done is left


def test_feasts_own_write_to_offline_store(repo: Repo) -> None:
    repo.view(history(), ["a"])
    row = {"k": [1], "ts": [pd.Timestamp(at(8))], "a": [7.5]}
    repo.store.write_to_offline_store("v", pd.DataFrame(row))
    assert repo.join(asked(2), ["v:a"])["a"].to_pylist() == [NEWEST[0], 7.5]


def test_latest_streams_each_keys_greatest_row(repo: Repo) -> None:
    random = np.random.default_rng(3)
    rows = [
        {
            "k": None if random.random() < 0.05 else int(random.integers(0, 9)),
            "ts": at(int(random.integers(0, 9))),
            "made": at(int(random.integers(0, 15))),
            "a": float(random.integers(0, 3)),
            "b": float(random.integers(0, 3)),
        }
        for _ in range(300)
    ]
    types = {"k": pa.int64(), "ts": INSTANT, "made": INSTANT}
    table = pa.table({n: pa.array([r[n] for r in rows], types.get(n)) for n in rows[0]})
    view = repo.view(table, ["a", "b"], created="made")
    got = latest(repo.store.config, view, None, at(10)).read_all()
    assert got.column_names == ["k", "a", "b", "ts", "made"]
    assert got.schema.field("ts").type == got.schema.field("made").type == INSTANT
    wanted = [
        oracle(rows, {"k": k, "event_timestamp": at(10)}, "ab", as_known=True) for k in range(9)
    ]
    assert sorted(got.to_pylist(), key=lambda r: r["k"]) == [
        {n: row[n] for n in got.column_names} for row in wanted if row
    ]
    since = latest(repo.store.config, view, at(8), at(10)).read_all()
    assert all(at(8) <= t <= at(10) for t in since["ts"].to_pylist())


def test_pull_latest_and_pull_all_include_both_ends(repo: Repo) -> None:
    view = repo.view(history(), ["a"])
    store = repo.store._get_provider().offline_store
    given = (repo.store.config, view.batch_source, ["k"], ["a"], "ts", None, at(1), at(2))
    newest = store.pull_latest_from_table_or_query(*given)
    rows = sorted(newest.to_arrow().to_pylist(), key=lambda row: row["k"])
    assert rows == [{"k": k, "a": 10.0 * k + 2, "ts": at(2)} for k in range(5)]
    every = store.pull_all_from_table_or_query(*given)
    assert sorted(every.to_arrow()["a"].to_pylist()) == sorted(
        10.0 * k + h for k in range(5) for h in (1, 2)
    )
    assert duckdb.connect().sql(newest.to_sql()).to_arrow_table().num_rows == 5
    assert sum(b.num_rows for b in every.to_batches(3)) == 10


def test_view_without_entities(repo: Repo) -> None:
    view = repo.view(history(1), ["a"], keys=[])
    frame = asked(1).select(["event_timestamp"])
    assert repo.join(frame, ["v:a"])["a"].to_pylist() == [3.0]
    repo.store.materialize(at(0), at(9), feature_views=["v"])
    assert repo.store.get_online_features(["v:a"], [{"__dummy_id": ""}]).to_dict()["a"] == [3.0]
    assert latest(repo.store.config, view, None, at(9)).read_all()["a"].to_pylist() == [3.0]


def on_demand(repo: Repo) -> None:
    view = repo.view(history(), ["a"])

    @on_demand_feature_view(sources=[view], schema=[Field(name="twice", dtype=Float64)])
    def doubled(rows: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"twice": rows["a"] * 2})

    repo.store.apply([doubled])


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_batches_are_the_table_in_parts(repo: Repo, rows: int) -> None:
    on_demand(repo)
    refs = ["v:a", "doubled:twice"]
    job = repo.store.get_historical_features(asked().to_pandas(), refs)
    reader = job.to_batches(rows)
    batches = list(reader)
    assert max(batch.num_rows for batch in batches) <= rows
    assert pa.Table.from_batches(batches).equals(job.to_arrow())
    assert job.to_arrow()["twice"].to_pylist() == [2 * a for a in NEWEST]


def test_nothing_asked_gives_nothing_with_the_same_columns(repo: Repo) -> None:
    repo.view(history(), ["a"])
    job = repo.store.get_historical_features(asked().slice(0, 0), ["v:a"])
    assert job.to_arrow().num_rows == 0
    assert job.to_arrow().schema == repo.join(asked(), ["v:a"]).schema
    assert job.to_batches().read_all().schema == job.to_arrow().schema


@pytest.mark.parametrize("as_known", [False, True])
@pytest.mark.parametrize("text", [False, True])
def test_sql_gives_the_same_result(repo: Repo, as_known: bool, text: bool) -> None:
    table = history().append_column("made", pa.array([at(2.5)] * 20, INSTANT))
    repo.view(pa.concat_tables([table, table]), ["a"], created="made", ttl=timedelta(hours=7))
    frame = asked(7, 2).append_column('ro"w', pa.array(list("gfedcba")))
    if text:
        repo.write(frame, "asked.parquet")
    given = "SELECT * FROM 'asked.parquet' ORDER BY k" if text else frame
    job = repo.store.get_historical_features(
        given, ["v:a"], filter_by_created_timestamp=as_known, full_feature_names=True
    )
    connection = duckdb.connect()
    connection.execute(f"SET file_search_path = '{repo.folder}'; SET TimeZone = 'UTC'")
    connection.register("entity_df", frame)
    assert connection.sql(job.to_sql()).to_arrow_table().to_pylist() == job.to_arrow().to_pylist()
    assert job.to_arrow()["v__a"].null_count == (7 if as_known else 2)


def test_saved_dataset_round_trip_and_refusal_to_overwrite(repo: Repo) -> None:
    on_demand(repo)
    job = repo.store.get_historical_features(asked().to_pandas(), ["v:a", "doubled:twice"])
    for path in ("saved.parquet", "saved"):
        storage = SavedDatasetFileStorage(str(repo.folder / path))
        repo.store.create_saved_dataset(job, f"set_{path[:5]}", storage, allow_overwrite=False)
        back = repo.store.get_saved_dataset("set_saved").to_df()
        assert sorted(back["twice"]) == [2 * a for a in NEWEST]
        with pytest.raises(SavedDatasetLocationAlreadyExists):
            job.persist(storage)
        job.persist(storage, allow_overwrite=True)
        assert ds.dataset(repo.folder / path).to_table().num_rows == 5
    assert not [p for p in repo.folder.iterdir() if p.name.startswith(".saved")]


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Make the system refuse to write more, as a full disk does."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("there", [False, True])
def test_a_failed_write_leaves_what_was_there(repo: Repo, there: bool) -> None:
    view = repo.view(history(), ["a"])
    job = repo.store.get_historical_features(asked().to_pandas(), ["v:a"])
    target = repo.folder / "saved.parquet"
    if there:
        job.persist(SavedDatasetFileStorage(str(target)))
    before = sorted((p.name, p.is_dir()) for p in repo.folder.iterdir())
    with files_no_larger_than(100), pytest.raises(SourceError, match=r"saved\.parquet: cannot be"):
        job.persist(SavedDatasetFileStorage(str(target)), allow_overwrite=True)
    store = repo.store._get_provider().offline_store
    with files_no_larger_than(100), pytest.raises(SourceError, match="cannot be written"):
        store.offline_write_batch(repo.store.config, view, history(), None)
    assert sorted((p.name, p.is_dir()) for p in repo.folder.iterdir()) == before
    assert repo.join(asked(), ["v:a"])["a"].to_pylist() == NEWEST


@pytest.mark.parametrize("partition_by", [None, ["k"]])
def test_logged_features_are_appended(repo: Repo, partition_by: list[str] | None) -> None:
    view = repo.view(history(), ["a"])
    destination = FileLoggingDestination(path=str(repo.folder / "log"), partition_by=partition_by)
    service = FeatureService(
        name="s", features=[view], logging_config=LoggingConfig(destination=destination)
    )
    repo.store.apply([service])
    logs = pa.table({"k": [1, 2], "a": [0.5, 0.25]})
    store = repo.store._get_provider().offline_store
    repo.write(logs, "spool/x.parquet")
    for data in (logs, repo.folder / "spool"):
        store.write_logged_features(
            repo.store.config, data, None, service.logging_config, repo.store.registry
        )
    partitioning = "hive" if partition_by else None
    kept = ds.dataset(repo.folder / "log", partitioning=partitioning).to_table()
    assert sorted(kept["a"].to_pylist()) == [0.25, 0.25, 0.5, 0.5]


def test_monitoring_figures_survive_nan(repo: Repo) -> None:
    values = [1.0, 2.0, 3.0, math.nan, math.inf, None]
    table = pa.table(
        {
            "k": list(range(6)),
            "ts": pa.array([at(h) for h in range(6)], INSTANT),
            "a": values,
            "w": ["x", "x", "y", None, "z", "x"],
        }
    )
    view = repo.view(table, ["a"])
    store = repo.store._get_provider().offline_store
    config, source = repo.store.config, view.batch_source
    kinds = [("w", "categorical"), ("a", "numeric")]
    words, numbers = store.compute_monitoring_metrics(config, source, kinds, "ts", histogram_bins=2)
    assert (numbers["row_count"], numbers["null_count"], numbers["mean"]) == (6, 1, 2.0)
    assert (numbers["min_val"], numbers["max_val"], numbers["p50"]) == (1.0, 3.0, 2.0)
    assert numbers["histogram"] == {"bins": [1.0, 2.0, 3.0], "counts": [1, 2], "bin_width": 1.0}
    assert words["histogram"]["values"][0] == {"value": "x", "count": 3}
    assert words["null_count"] == 1
    early = store.compute_monitoring_metrics(config, source, kinds, "ts", end_date=at(1))
    assert early[1]["row_count"] == 2
    assert store.get_monitoring_max_timestamp(config, source, "ts") == at(5)


def test_monitoring_figures_are_kept(repo: Repo) -> None:
    repo.view(history(), ["a"])
    store, config = repo.store._get_provider().offline_store, repo.store.config
    store.ensure_monitoring_tables(config)
    assert store.query_monitoring_metrics(config, "tests", "feature") == []
    row = {
        "project_id": "tests",
        "feature_view_name": "v",
        "feature_name": "a",
        "metric_date": datetime(2024, 1, 2).date(),  # noqa: DTZ001 - a date
        "granularity": "daily",
        "data_source_type": "batch",
        "is_baseline": True,
        "histogram": {"bins": [0.0], "counts": [1]},
    }
    store.save_monitoring_metrics(config, "feature", [row])
    store.save_monitoring_metrics(config, "feature", [row | {"mean": 1.5}])
    (kept,) = store.query_monitoring_metrics(config, "tests", "feature", {"feature_name": "a"})
    assert (kept["mean"], kept["histogram"]["counts"], kept["is_baseline"]) == (1.5, [1], True)
    store.clear_monitoring_baseline(config, "tests", feature_view_name="v")
    assert not store.query_monitoring_metrics(config, "tests", "feature")[0]["is_baseline"]
    later = datetime(2024, 1, 3).date()  # noqa: DTZ001 - a date
    assert store.query_monitoring_metrics(config, "tests", "feature", start_date=later) == []


def test_validate_accepts_a_source_that_is_not_there_yet(repo: Repo) -> None:
    store = repo.store._get_provider().offline_store
    store.validate_data_source(repo.store.config, FileSource(path="later.parquet"))


@pytest.mark.parametrize("limit", ["60MiB"])
def test_small_memory_spills_to_the_named_folder(
    make_repo: Callable[..., Repo], tmp_path: Path, limit: str
) -> None:
    repo = make_repo(memory_limit=limit, temp_directory=str(tmp_path / "spill"), threads=1)
    random = np.random.default_rng(0)
    rows = 400_000
    table = pa.table(
        {
            "k": random.integers(0, 1000, rows),
            "ts": pa.array(np.arange(rows) * 10**6).cast(INSTANT),
            "a": np.arange(rows, dtype=float),
        }
    )
    repo.view(table, ["a"])
    frame = pa.table(
        {
            "k": random.integers(0, 1000, rows),
            "event_timestamp": pa.array(np.full(rows, rows * 10**6)).cast(INSTANT),
        }
    )
    newest = pd.Series(table["a"].to_numpy()).groupby(table["k"].to_numpy()).max()
    found = repo.join(frame, ["v:a"])["a"].to_numpy()
    assert np.array_equal(found, newest[frame["k"].to_numpy()].to_numpy())
    assert list((tmp_path / "spill").iterdir()) == []  # made, used, and left empty
