"""The store on Spark gives DuckDB's cells; one session for the whole file.

All rules run on it by `STEADFEAST_OFFLINE_STORE=steadfeast.SparkOfflineStore pytest
tests/featurestore/offline/test_semantics.py`; here is one join that has most of them at once.
"""

from __future__ import annotations

import os
import shutil
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from steadfeast.featurestore.errors import ClusterError, EntityFrameError, SourceError
from steadfeast.featurestore.offline import latest
from support.offline_oracle import INSTANT, at, bits, oracle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Repo

pyspark = pytest.importorskip("pyspark")
if shutil.which("java") is None:
    pytest.skip("no java here", allow_module_level=True)

CONF = {
    "spark.master": "local[2]",
    "spark.ui.enabled": "false",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.log.level": "OFF",
}
SPARK = "steadfeast.SparkOfflineStore"
ON_SPARK: dict[str, Any] = {"type": SPARK, "spark_conf": CONF, "partitions": 3}


@pytest.fixture(scope="module", autouse=True)
def _one_session() -> Iterator[None]:
    yield
    from pyspark.sql import SparkSession  # noqa: PLC0415 - an extra

    active = SparkSession.getActiveSession()
    if active is not None:
        active.stop()


def history(rows: int) -> list[dict[str, Any]]:
    """Return rows that tie, arrive late, and have null keys and times."""
    draw = np.random.default_rng(7)
    found = []
    for _ in range(rows):
        hour = float(draw.integers(0, 30))
        found.append(
            {
                "k": None if draw.random() < 0.03 else int(draw.integers(0, 25)),
                "ts": None if draw.random() < 0.02 else at(hour),
                "made": None if draw.random() < 0.02 else at(hour + float(draw.integers(0, 9))),
                "a": None if draw.random() < 0.1 else float(draw.integers(0, 3)),
                "b": float(draw.choice([np.nan, -0.0, 0.0, 1.5])),
            }
        )
    return found


def table(rows: list[dict[str, Any]]) -> pa.Table:
    kinds = {"k": pa.int64(), "ts": INSTANT, "made": INSTANT}
    return pa.table(
        {n: pa.array([row[n] for row in rows], kinds.get(n, pa.float64())) for n in rows[0]}
    )


def test_cells_are_those_of_one_machine(make_repo: Callable[..., Repo]) -> None:
    """Joins, both filters, and newest rows equal DuckDB's; joins the loop's, too."""
    rows = history(400)
    draw = np.random.default_rng(8)
    asks = [
        {"k": int(draw.integers(0, 30)), "event_timestamp": at(float(draw.integers(0, 40)))}
        for _ in range(120)
    ]
    asks += [{"k": None, "event_timestamp": at(9)}, {"k": 1, "event_timestamp": None}]
    frame = pa.table(
        {
            "k": pa.array([one["k"] for one in asks], pa.int64()),
            "event_timestamp": pa.array([one["event_timestamp"] for one in asks], INSTANT),
            "note": [f"n{i}" for i in range(len(asks))],
        }
    )
    ttl, found = timedelta(hours=8), {}
    for name, options in (("duckdb", {}), ("spark", ON_SPARK)):
        repo = make_repo(**options)
        (repo.folder / "data").mkdir()
        for part in range(3):  # a folder of files, in no order of time
            repo.write(table(rows[part::3]), f"data/part-{part}.parquet")
        view = repo.view("data", ["a", "b"], created="made", ttl=ttl)
        found[name] = [
            repo.join(frame, ["v:b", "v:a"], filter_by_created_timestamp=known)
            for known in (False, True)
        ]
        newest = latest(repo.store.config, view, at(2), at(20)).read_all()
        found[name].append(newest.sort_by("k"))
    for one, other in zip(found["duckdb"], found["spark"], strict=True):
        assert one.schema == other.schema
        assert bits(one.to_pylist()) == bits(other.to_pylist())
    for known, result in zip((False, True), found["spark"][:2], strict=True):
        for ask, got in zip(asks, result.to_pylist(), strict=True):
            want = oracle(rows, ask, ["a", "b"], ttl=ttl, as_known=known) or {"a": None, "b": None}
            assert bits([got["a"], got["b"]]) == bits([want["a"], want["b"]])


def test_a_spark_path_is_read_and_faults_are_one_line(make_repo: Callable[..., Repo]) -> None:
    """A SparkSource joins like a file; what cannot be read or compared is said by name."""
    from feast import Entity, FeatureView, Field  # noqa: PLC0415 - only here
    from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import (  # noqa: PLC0415
        SparkSource,
    )
    from feast.types import Float64, Int64  # noqa: PLC0415 - only here
    from feast.value_type import ValueType  # noqa: PLC0415 - only here

    repo = make_repo(**ON_SPARK)
    rows = [{"k": k, "ts": at(0), "a": float(k)} for k in range(4)]
    path = repo.write(table(rows))
    with pytest.warns(RuntimeWarning, match="experimental"):
        source = SparkSource(
            name="s", path=str(repo.folder / path), file_format="parquet", timestamp_field="ts"
        )
    entity = Entity(name="e_k", join_keys=["k"], value_type=ValueType.INT64)
    view = FeatureView(
        name="v",
        entities=[entity],
        schema=[Field(name="k", dtype=Int64), Field(name="a", dtype=Float64)],
        source=source,
    )
    ask = pa.table({"k": [3, 9], "event_timestamp": pa.array([at(1), at(1)], INSTANT)})
    store = repo.store
    provider = store._get_provider()
    job = provider.get_historical_features(
        store.config, [view], ["v:a"], ask, store.registry, store.project, False
    )
    assert job.to_arrow()["a"].to_pylist() == [3.0, None]
    assert latest(store.config, view, None, at(5)).read_all().num_rows == 4
    (repo.folder / path).unlink()
    with pytest.raises(ClusterError, match="Spark"):
        job.to_arrow()

    whole = repo.view(table(rows), ["a"], name="w")
    with pytest.raises(EntityFrameError, match="the query failed"):
        store.get_historical_features("SELECT nothing FROM nowhere", ["w:a"])
    lost = store.get_historical_features(ask, ["w:a"])
    (repo.folder / whole.batch_source.path).write_bytes(b"no parquet")
    with pytest.raises(SourceError, match="'w'"):
        lost.to_arrow()


def test_no_java_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Java the message names it and where it comes from."""
    from steadfeast.featurestore.offline.spark import cluster  # noqa: PLC0415 - only here

    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(ClusterError, match="Java 17 or later"):
        cluster._check_java()
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    with pytest.raises(ClusterError, match="JAVA_HOME is /nowhere"):
        cluster._check_java()
