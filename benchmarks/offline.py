"""Point-in-time joins side by side: Feast's stores, polars, hand-written SQL and ours.

    python benchmarks/offline.py [--shape NAME]... [--engine NAME]... [--repeat N] [--data FOLDER]

Every engine joins the same Parquet files to the same entity rows, one at a time, each in a
process of its own. CPU seconds and wall seconds are those of the join alone; peak memory is the
process's whole resident set, imports included, and "base" what it was before the join. Each
result is compared with ours cell by cell, bit by bit. An engine that passes the memory or time
cap is stopped and the table says so.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Callable

GIB = 2**30
DAY = 86400 * 10**6
START = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp()) * 10**6
INSTANT = pa.timestamp("us", tz="UTC")
SLOW = 5.0
HISTORY_DAYS, ENTITY_DAYS = 90, 60
LIMIT = "4GiB"


@dataclass(frozen=True)
class Shape:
    """Entity rows against a history; the features are shared out over the views."""

    entities: int
    keys: int
    rows_per_key: int
    features: int = 10
    views: int = 2

    @property
    def ttls(self) -> list[int]:
        """One day and thirty days in turn."""
        return [DAY if view % 2 == 0 else 30 * DAY for view in range(self.views)]

    def columns(self, view: int) -> list[str]:
        """Names of a view's features."""
        return [f"v{view}_f{i}" for i in range(self.features // self.views)]


SHAPES = {
    "100k x 1M": Shape(100_000, 10_000, 100),
    "1M x 1M": Shape(1_000_000, 10_000, 100),
    "100k x 2.16M, long": Shape(100_000, 1_000, 2160),
    "100k x 1M, longest": Shape(100_000, 100, 10_000),
    "100k x 10M": Shape(100_000, 100_000, 100),
    "1M x 10M": Shape(1_000_000, 100_000, 100),
    "17k, 10 views x 100": Shape(17_000, 1_700, 10, features=1000, views=10),
    "10M x 1M": Shape(10_000_000, 10_000, 100),
}


def generate(shape: Shape, folder: Path) -> None:
    """Write the shape's files once: `view-N.parquet` in order of time, and `entities.parquet`."""
    if (folder / "entities.parquet").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rows = shape.keys * shape.rows_per_key
    for view in range(shape.views):
        random = np.random.default_rng(view)
        step = HISTORY_DAYS * DAY // rows
        times = START + np.arange(rows) * step + random.integers(0, step, rows)  # no ties
        table = {
            "key": random.permutation(np.repeat(np.arange(shape.keys), shape.rows_per_key)),
            "event_timestamp": pa.array(times).cast(INSTANT),
            "created": pa.array(times + random.integers(0, DAY // 24, rows)).cast(INSTANT),
        }
        table |= {name: random.normal(size=rows) for name in shape.columns(view)}
        pq.write_table(pa.table(table), folder / f"view-{view}.parquet", compression="zstd")
    random = np.random.default_rng(99)
    offsets = random.integers(0, ENTITY_DAYS * DAY, shape.entities)
    times = START + (HISTORY_DAYS - ENTITY_DAYS) * DAY + offsets
    entities = pa.table(
        {
            "row": np.arange(shape.entities),
            "key": random.integers(0, shape.keys, shape.entities),
            "event_timestamp": pa.array(times).cast(INSTANT),
        }
    )
    pq.write_table(entities, folder / "entities.parquet")


def feast(offline_store: dict[str, Any], *, as_known: bool = False, frame: str = "pandas") -> Any:
    """Return an engine that joins through Feast's own API, on the given offline store."""

    def prepare(shape: Shape, folder: Path, scratch: Path) -> Callable[[], pa.Table]:
        from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
        from feast.types import Float64
        from feast.value_type import ValueType

        config = RepoConfig(
            project="bench",
            provider="local",
            registry=str(scratch / "registry.db"),
            online_store={"type": "sqlite", "path": str(scratch / "online.db")},
            offline_store=offline_store,
            entity_key_serialization_version=3,
            repo_path=str(scratch),
        )
        store = FeatureStore(config=config)
        entity = Entity(name="key", join_keys=["key"], value_type=ValueType.INT64)
        views = [
            FeatureView(
                name=f"view{n}",
                entities=[entity],
                ttl=timedelta(microseconds=shape.ttls[n]),
                schema=[Field(name=name, dtype=Float64) for name in shape.columns(n)],
                source=FileSource(
                    path=str(folder / f"view-{n}.parquet"),
                    timestamp_field="event_timestamp",
                    created_timestamp_column="created",
                ),
            )
            for n in range(shape.views)
        ]
        store.apply([entity, *views])
        entities: Any = pq.read_table(folder / "entities.parquet")
        if frame == "pandas":
            entities = entities.to_pandas()
        refs = [f"view{n}:{name}" for n in range(shape.views) for name in shape.columns(n)]
        extra = {"filter_by_created_timestamp": True} if as_known else {}
        return lambda: store.get_historical_features(
            entity_df=entities, features=refs, **extra
        ).to_arrow()

    return prepare


def polars(shape: Shape, folder: Path, scratch: Path) -> Callable[[], pa.Table]:  # noqa: ARG001
    """Join in memory with polars' join_asof."""
    import polars as pl

    def run() -> pa.Table:
        frame = pl.read_parquet(folder / "entities.parquet").sort("event_timestamp")
        for n, ttl in enumerate(shape.ttls):
            columns = ["key", "event_timestamp", *shape.columns(n)]
            view = pl.read_parquet(folder / f"view-{n}.parquet", columns=columns)
            frame = frame.join_asof(
                view.sort("event_timestamp"),
                on="event_timestamp",
                by="key",
                tolerance=timedelta(microseconds=ttl),
                coalesce=True,
                check_sortedness=False,
            )
        return frame.sort("row").to_arrow()

    return run


def by_hand(shape: Shape, folder: Path, scratch: Path) -> Callable[[], pa.Table]:  # noqa: ARG001
    """Join with the SQL that a person would write: ASOF on keys, then fetch and deduplicate."""
    import duckdb

    def run() -> pa.Table:
        connection = duckdb.connect()
        connection.execute("SET TimeZone = 'UTC'")
        parts = [f"e AS (SELECT * FROM '{folder}/entities.parquet')"]
        joins, columns = "", ""
        for n, ttl in enumerate(shape.ttls):
            path, names = f"'{folder}/view-{n}.parquet'", ", ".join(shape.columns(n))
            won = (
                "SELECT e.row, e.key, f.event_timestamp FROM e ASOF JOIN "
                f"(SELECT key, event_timestamp FROM {path}) AS f ON e.key = f.key "
                "AND e.event_timestamp >= f.event_timestamp "
                f"WHERE e.event_timestamp - f.event_timestamp <= INTERVAL {ttl} MICROSECONDS"
            )
            got = (
                f"SELECT row, {names} FROM won{n} JOIN {path} AS f USING (key, event_timestamp) "
                "QUALIFY row_number() OVER (PARTITION BY row ORDER BY created DESC) = 1"
            )
            parts += [f"won{n} AS ({won})", f"got{n} AS ({got})"]
            columns += f", {names}"
            joins += f" LEFT JOIN got{n} USING (row)"
        query = f"WITH {', '.join(parts)} SELECT e.*{columns} FROM e{joins} ORDER BY row"
        return connection.sql(query).to_arrow_table()

    return run


OURS = {"type": "steadfeast.DuckDBOfflineStore", "memory_limit": LIMIT}
ENGINES: dict[str, Any] = {
    "ours": feast(OURS),
    "ours, created": feast(OURS, as_known=True),
    "by hand": by_hand,
    "polars": polars,
    "feast duckdb": feast({"type": "duckdb"}),
    "feast duckdb, created": feast({"type": "duckdb"}, as_known=True),
    "feast dask": feast({"type": "dask"}),
}


def child(engine: str, shape: str, folder: Path, out: Path) -> None:
    """Run one engine once; write its result to `out` and its figures to standard output."""
    os.environ["FEAST_USAGE"] = "False"
    with tempfile.TemporaryDirectory() as scratch:
        run = ENGINES[engine](SHAPES[shape], folder, Path(scratch))
        base, before = _peak_gib(), resource.getrusage(resource.RUSAGE_SELF)
        started = time.perf_counter()
        table = run()
        wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
        peak = _peak_gib()
    pq.write_table(table, out, compression="none")
    figures = {
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "wall": wall,
        "peak": peak,
        "base": base,
    }
    sys.stdout.write(json.dumps(figures))


def _peak_gib() -> float:
    """Return the most memory this process ever held (ru_maxrss would count its parent's too)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / GIB


def measure(
    engine: str, shape: str, folder: Path, out: Path, *, cap_gib: float, cap_seconds: float
) -> dict[str, Any]:
    """Run one engine in a process of its own and stop it at a cap."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", engine, shape, str(folder)]
    process = subprocess.Popen(
        [*command, str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    started = time.monotonic()
    stopped = ""
    while process.poll() is None and not stopped:
        time.sleep(0.05)
        if _resident(process.pid) > cap_gib * GIB:
            stopped = f"> {cap_gib:g} GiB"
        elif time.monotonic() - started > cap_seconds:
            stopped = f"> {cap_seconds:g} s"
    if stopped:
        process.kill()
        process.communicate()
        return {"stopped": stopped}
    output, errors = process.communicate()
    if process.returncode:
        return {"stopped": errors.strip().splitlines()[-1][:60] if errors else "failed"}
    return dict(json.loads(output.strip().splitlines()[-1]))


def _resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return 0
    return pages * resource.getpagesize()


def differences(ours: Path, theirs: Path, shape: Shape) -> str:
    """Compare two results cell by cell; rows are matched by their number."""
    names = [name for view in range(shape.views) for name in shape.columns(view)]
    unlike, rows = 0, pq.read_metadata(ours).num_rows
    lost = rows - pq.read_metadata(theirs).num_rows
    order = [pq.read_table(path, columns=["row"])["row"].to_numpy() for path in (ours, theirs)]
    if lost:
        return f"{lost} rows lost"
    sorts = [None if np.all(o[1:] > o[:-1]) else pa.array(np.argsort(o)) for o in order]
    for name in names:
        one, two = (
            pq.read_table(path, columns=[name])[name]
            if by is None
            else pq.read_table(path, columns=[name])[name].take(by)
            for path, by in zip((ours, theirs), sorts, strict=True)
        )
        same = pc.fill_null(pc.equal(one, two), False)
        both = pc.and_(pc.is_null(one, nan_is_null=True), pc.is_null(two, nan_is_null=True))
        unlike += rows - pc.sum(pc.or_(same, both)).as_py()
    return f"{unlike} cells differ" if unlike else "equal"


def main() -> None:
    """Generate, run, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shape", action="append", choices=SHAPES)
    parser.add_argument("--engine", action="append", choices=ENGINES)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--data", type=Path, default=Path(tempfile.gettempdir()) / "steadfeast-bench"
    )
    parser.add_argument("--cap-gib", type=float, default=12)
    parser.add_argument("--cap-seconds", type=float, default=300)
    parser.add_argument("--child", nargs=4, metavar=("ENGINE", "SHAPE", "FOLDER", "OUT"))
    options = parser.parse_args()
    if options.child:
        engine, shape, folder, out = options.child
        child(engine, shape, Path(folder), Path(out))
        return
    engines = list(dict.fromkeys(["ours", *(options.engine or ENGINES)]))
    versions = ["feast", "duckdb", "pyarrow", "polars", "numpy"]
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores,", end=" ")
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in versions), end="\n\n")
    print("| shape | engine | CPU s | wall s | peak GiB | base GiB | against ours |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in options.shape or SHAPES:
        shape = SHAPES[name]
        folder = (
            options.data / f"{shape.entities}-{shape.keys}-{shape.rows_per_key}-{shape.features}"
        )
        generate(shape, folder)
        with tempfile.TemporaryDirectory() as results:
            compare(name, shape, engines, folder, Path(results), options)


def compare(
    name: str, shape: Shape, engines: list[str], folder: Path, results: Path, options: Any
) -> None:
    """Measure every engine on one shape, in turn within each round, and print a row for each."""
    runs: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
    for _ in range(options.repeat):
        for engine in engines:
            if runs[engine] and runs[engine][0].get("wall", SLOW) >= SLOW:
                continue  # stopped, or slow enough for one run to tell
            runs[engine].append(
                measure(
                    engine,
                    name,
                    folder,
                    results / f"{engine}.parquet",
                    cap_gib=options.cap_gib,
                    cap_seconds=options.cap_seconds,
                )
            )
    for engine in engines:
        first = runs[engine][0]
        if "stopped" in first:
            print(f"| {name} | {engine} | {first['stopped']} | | | | |", flush=True)
            continue
        cells = [
            f"{statistics.median(run[figure] for run in runs[engine]):.2f}"
            for figure in ("cpu", "wall", "peak", "base")
        ]
        verdict = ""
        against = "ours, created" if engine.endswith(", created") else "ours"
        if engine != against and (results / f"{against}.parquet").exists():
            paths = (results / f"{name}.parquet" for name in (against, engine))
            verdict = differences(*paths, shape)
        print(f"| {name} | {engine} | {' | '.join(cells)} | {verdict} |", flush=True)


if __name__ == "__main__":
    main()
