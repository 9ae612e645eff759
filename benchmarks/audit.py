"""Audits at scale, what the served log costs, and the same audits on plain Feast: tables, printed.

    python benchmarks/audit.py [--quick] [--keys N] [--vectors N] [--data FOLDER]

I1 compares every key of a view of 50 features online (SQLite) with offline; I2 replays as many
logged vectors. Each is measured in a process of its own, beside the plain scan of what it must
read. Then one store of ours and one of plain Feast (dask, SQLite) live through the same day, and
the same comparison is put to both. `--quick` takes a twentieth of everything.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from measure import GIB, child, cpu_seconds, peak_bytes, table, versions
from online_world import make, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WIDTH = 50
CALL_ROWS = 1000
CAP_SECONDS = 1500
NOON = datetime(2024, 3, 10, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def measured(run: Callable[[], Any]) -> dict[str, Any]:
    """Return what `run` says, with its seconds, its CPU seconds and this process's peak."""
    began, cpu = time.perf_counter(), cpu_seconds()
    said = run()
    figures = {"wall": time.perf_counter() - began, "cpu": cpu_seconds() - cpu}
    return {**figures, "peak": peak_bytes() / GIB, **(said or {})}


def prepare(store: Any, vectors: int) -> dict[str, Any]:
    """Register, materialize, and serve `vectors` rows into the log."""
    store.apply()
    store.materialize(until())
    keys = np.random.default_rng(1).permutation(vectors)
    for n, start in enumerate(range(0, vectors, CALL_ROWS)):
        asked = pa.table({"key": keys[start : start + CALL_ROWS]})
        at = until() + timedelta(milliseconds=n)
        got = store.online_features(f"f{WIDTH}", asked, request_time=at)
        ids = [f"r{start + i}" for i in range(asked.num_rows)]
        store.served.append(f"f{WIDTH}", got, request_ids=ids, request_time=at)
    return {}


def scan_both(store: Any) -> dict[str, Any]:
    """Read what I1 must read, and nothing more: every row online, and each newest one offline."""
    from steadfeast.featurestore import offline

    view = store.feast.get_feature_view(f"view{WIDTH}")
    config = store.feast.config
    rows = sum(batch.num_rows for batch in store.online.scan(config, view))
    rows += sum(batch.num_rows for batch in offline.latest(config, view, None, until()))
    return {"cells": rows // 2 * WIDTH}


def scan_log(store: Any) -> dict[str, Any]:
    """Read what I2 must read: the log, and the source once."""
    files = [*store.served.files(f"f{WIDTH}", until(), until() + HOUR)]
    rows = 0
    for path in files:
        for batch in pq.ParquetFile(path).iter_batches(100_000):
            rows += batch.num_rows
    for _ in pq.ParquetFile(store.repo / "data" / f"{WIDTH}.parquet").iter_batches(100_000):
        pass
    return {"cells": rows * WIDTH}


def i1(store: Any) -> dict[str, Any]:
    """Audit I1."""
    from steadfeast.featurestore.audit import Redactor, online_against_offline

    views = store.feast.registry.list_feature_views(store.feast.project)
    view = next(view for view in views if view.name == f"view{WIDTH}")
    check = online_against_offline(store, view, Redactor())
    return {"cells": check.cells, "ok": check.ok}


def i2(store: Any) -> dict[str, Any]:
    """Audit I2."""
    from steadfeast.featurestore.audit import Redactor, served_against_offline

    service = f"f{WIDTH}"
    files = store.served.files(service, until(), until() + HOUR)
    check = served_against_offline(store, service, files, (None, None), 0, Redactor())
    return {"cells": check.cells, "ok": check.ok}


def overhead(store: Any) -> dict[str, Any]:
    """Read one row of 50 features with and without the log, call by call in turn."""
    asked = [{"key": 7}]
    service = f"f{WIDTH}"
    taken: dict[bool, list[int]] = {True: [], False: []}
    for n in range(6000):
        logs = n % 2 == 0
        began = time.perf_counter_ns()
        at = until()
        got = store.online_features(service, asked, request_time=at)
        if logs:
            store.served.append(service, got, request_ids=("r",), request_time=at)
        taken[logs].append(time.perf_counter_ns() - began)
    figures = {}
    for logs, name in ((False, "read"), (True, "logged")):
        times = sorted(taken[logs][500:])
        figures[f"{name}_p50"] = times[len(times) // 2] / 1000
        figures[f"{name}_p99"] = times[len(times) * 99 // 100] / 1000
    store.served.flush()
    for n in range(3000):
        at = until()
        got = store.online_features(service, asked, request_time=at)
        store.served.append(service, got, request_ids=(str(n),), request_time=at)
    began = time.process_time_ns()
    store.served.flush()
    figures["flush"] = (time.process_time_ns() - began) / 3000 / 1000
    return figures


DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource
from feast.types import Float64, Int64
from feast.value_type import ValueType

key = Entity(name="key", join_keys=["key"], value_type=ValueType.INT64)
day = FeatureView(
    name="day", entities=[key], ttl=timedelta(days=1),
    schema=[Field(name="key", dtype=Int64), Field(name="amount", dtype=Float64),
            Field(name="count", dtype=Int64)],
    source=FileSource(path="data/day.parquet", timestamp_field="at",
                      created_timestamp_column="written"),
)
service = FeatureService(name="service", features=[day])
"""
GROUPS = ("plain", "expired", "late", "window again", "odd values")


def history(keys: int) -> tuple[pa.Table, pa.Table]:
    """Return rows known by eleven o'clock, and those that became known by noon.

    A fifth of the keys each: nothing special; a value of thirty hours ago; a row that was written
    late; an older window that is materialized again; NaN, and integers beside nulls.
    """
    early, late = [], []
    for key in range(keys):
        group = GROUPS[key * len(GROUPS) // keys]
        row = {"key": key, "amount": key / 7, "count": key, "at": NOON - 3 * HOUR}
        if group == "expired":
            row["at"] = NOON - 30 * HOUR
        if group == "odd values":
            row |= {"amount": float("nan"), "count": 2**53 + 1 if key % 2 else None}
        early.append({**row, "written": row["at"]})
        if group == "late":
            at, written = NOON - 2 * HOUR, NOON - timedelta(minutes=30)
            late.append({**row, "amount": 0.5, "at": at, "written": written})
        if group == "window again":
            at = NOON - timedelta(minutes=30)
            late.append({**row, "amount": 0.5, "at": at, "written": at})
    time_type = pa.timestamp("us", tz="UTC")
    types = {"key": pa.int64(), "amount": pa.float64(), "count": pa.int64()}
    schema = pa.schema({**types, "at": time_type, "written": time_type})
    return pa.Table.from_pylist(early, schema), pa.Table.from_pylist(late, schema)


def day(folder: Path, keys: int, who: str) -> Path:
    """Let one store live through the day; return its repo."""
    repo = folder / who
    (repo / "data").mkdir(parents=True)
    (repo / "features.py").write_text(DEFINITIONS, encoding="utf-8")
    ours = who == "ours"
    config = {
        "project": "day",
        "provider": "local",
        "registry": "data/registry.db",
        "offline_store": {"type": "steadfeast.DuckDBOfflineStore" if ours else "dask"},
        "online_store": {
            "type": "steadfeast.SQLiteOnlineStore" if ours else "sqlite",
            "path": "data/online.db",
        },
        "entity_key_serialization_version": 3,
    }
    (repo / "feature_store.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (repo / "steadfeast.yaml").write_text("store: {repo: ., data: data}\n", encoding="utf-8")
    early, late = history(keys)
    source = repo / "data" / "day.parquet"
    pq.write_table(early, source)
    again = (NOON - 4 * HOUR, NOON - HOUR)
    if ours:
        from steadfeast import Store

        with Store.open(repo / "steadfeast.yaml") as store:
            store.apply()
            store.materialize(NOON - HOUR)
            pq.write_table(pa.concat_tables([early, late]), source)
            store.materialize(NOON)
            store.materialize(again[1], since=again[0])
        return repo
    from feast import FeatureStore
    from feast.repo_operations import apply_total

    feast = FeatureStore(repo_path=str(repo))
    here = Path.cwd()
    os.chdir(repo)
    apply_total(feast.config, repo, skip_source_validation=True)
    os.chdir(here)
    feast = FeatureStore(repo_path=str(repo))
    feast.materialize(NOON - 40 * HOUR, NOON - HOUR)
    pq.write_table(pa.concat_tables([early, late]), source)
    feast.materialize_incremental(NOON)
    feast.materialize(*again)
    return repo


def served_by_feast(repo: Path, keys: int) -> Iterator[pa.RecordBatch]:
    """Ask plain Feast for every key; rows that it says it has not are left out."""
    from feast import FeatureStore

    feast = FeatureStore(repo_path=str(repo))
    for start in range(0, keys, 500):
        rows = [{"key": key} for key in range(start, min(start + 500, keys))]
        got = feast.get_online_features(["day:amount", "day:count"], rows).proto
        columns: dict[str, list[Any]] = {}
        for name, result in zip(got.metadata.feature_names.val, got.results, strict=True):
            columns[name] = [
                getattr(value, value.WhichOneof("val")) if value.WhichOneof("val") else None
                for value in result.values
            ]
            if name == "amount":
                times = [at.ToMicroseconds() for at in result.event_timestamps]
        arrays = {
            "key": pa.array(columns["key"], pa.int64()),
            "event_timestamp": pa.array(times).cast(pa.timestamp("us", tz="UTC")),
            "amount": pa.array(columns["amount"], pa.float64()),
            "count": pa.array(columns["count"], pa.int64()),
        }
        there = pa.table(arrays).filter(pa.array([at > 0 for at in times]))
        yield from there.to_batches()


def side_by_side(folder: Path, keys: int) -> dict[str, Any]:
    """Put I1 and I2 to both stores after the same day."""
    from steadfeast import OnlineFeatures, Store
    from steadfeast.featurestore import offline
    from steadfeast.featurestore.audit import Redactor, audit, compare
    from steadfeast.featurestore.materialization import as_online
    from steadfeast.featurestore.offline import session
    from steadfeast.featurestore.tables import micros

    ours, theirs = day(folder, keys, "ours"), day(folder, keys, "feast")
    figures: dict[str, Any] = {}
    with Store.open(ours / "steadfeast.yaml") as store:
        asked = pa.table({"key": pa.array(range(keys), pa.int64())})
        got = store.online_features("service", asked, request_time=NOON)
        ids = [str(n) for n in range(keys)]
        store.served.append("service", got, request_ids=ids, request_time=NOON)
        for check in audit_of(store, audit):
            figures[f"ours {check.invariant}"] = dict(check.mismatches)
        config = store.feast.config
        view = store.feast.registry.list_feature_views(store.feast.project)[0]
        batches = list(served_by_feast(theirs, keys))
        with session(config) as connection:
            newest = (as_online(view, b) for b in offline.latest(config, view, None, NOON))
            at = micros(NOON)
            found = compare(connection, view, batches, newest, at, Redactor(), enforced=False)
        figures["feast I1"] = dict(found.mismatches)
        served = pa.Table.from_batches(batches).sort_by("key")
        features = ["amount", "count"]
        statuses = {name: np.ones(served.num_rows, np.uint8) for name in features}
        times = served["event_timestamp"].combine_chunks()
        vectors = OnlineFeatures(
            served.select(["key", *features]), statuses, {"day": times}, got.contract
        )
        for path in store.served.files("service", NOON - HOUR, NOON + HOUR):
            path.unlink()
        ids = [f"f{n}" for n in range(served.num_rows)]
        store.served.append("service", vectors, request_ids=ids, request_time=NOON)
        (check,) = [c for c in audit_of(store, audit) if c.invariant == "I2"]
        figures["feast I2"] = dict(check.mismatches)
    return figures


def audit_of(store: Any, audit: Callable[..., Any]) -> list[Any]:
    """Flush the log and audit the day's service."""
    store.served.flush()
    return [check for check in audit(store, "service").checks if check.invariant != "I11"]


STEPS = {"scan_both": scan_both, "i1": i1, "scan_log": scan_log, "i2": i2, "overhead": overhead}


def run_child(step: str, folder: str, *more: str) -> None:
    """Do one step here; print its figures as the last line."""
    from steadfeast import Store

    if step == "side_by_side":
        figures = side_by_side(Path(folder), int(more[0]))
    else:
        with Store.open(Path(folder) / "steadfeast.yaml") as store:
            if step == "prepare":
                figures = measured(lambda: prepare(store, int(more[0])))
            else:
                figures = measured(lambda: STEPS[step](store))
    sys.stdout.write("\n" + json.dumps(figures))


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--child", nargs="+")
    options = parser.parse_args()
    if options.child:
        run_child(*options.child)
        return
    keys, vectors = options.keys, options.vectors
    if options.quick:
        keys, vectors = keys // 20, vectors // 20
    with tempfile.TemporaryDirectory(dir=options.data) as folder:
        repo = make(Path(folder), "steadfeast sqlite", {WIDTH: keys}, 3, None)
        print(versions(["feast", "duckdb", "pyarrow", "numpy"]), flush=True)
        print(f"{keys:,} keys x {WIDTH} features, {vectors:,} logged vectors\n", flush=True)

        def step(name: str, *more: str) -> dict[str, Any]:
            found = child(__file__, name, *more, cap_seconds=CAP_SECONDS)
            if "stopped" in found:
                sys.exit(f"{name}: {found['stopped']}")
            return found

        step("prepare", str(repo), str(min(vectors, keys)))
        got = {name: step(name, str(repo)) for name in STEPS}
        both = step("side_by_side", str(Path(folder) / "day"), str(500 if options.quick else 5000))
    report(got, both)


def report(got: dict[str, Any], both: dict[str, Any]) -> None:
    """Print the tables, and the ratios as the last line."""
    rows = []
    for name, base, words in (
        ("i1", "scan_both", "I1, online against offline"),
        ("i2", "scan_log", "I2, replay of the log"),
    ):
        one, scan = got[name], got[base]
        if not one["ok"]:
            sys.exit(f"{words} does not hold")
        figures = [one["cells"] / 1e6, one["wall"], one["cpu"], one["peak"]]
        figures += [scan["wall"], scan["peak"], one["cpu"] / scan["cpu"]]
        rows.append([words, *(f"{figure:.2f}" for figure in figures)])
    head = ["audit", "million cells", "s", "CPU s", "peak GiB", "plain scan, s", "its peak, GiB"]
    print(table([*head, "multiple of the scan, CPU"], rows))
    cost = got["overhead"]
    rows = []
    for q in ("p50", "p99"):
        read, logged = cost[f"read_{q}"], cost[f"logged_{q}"]
        rows.append([q, f"{read:.1f}", f"{logged:.1f}", f"{logged - read:.1f}"])
    print(table(["one row of 50, µs", "read", "read and logged", "the log"], rows))
    print(
        f"Writing what waits takes {cost['flush']:.0f} µs of CPU a row, in the log's own thread.\n"
    )
    rows = [
        [name, ", ".join(f"{n} {kind}" for kind, n in both[name].items()) or "nothing"]
        for name in ("ours I1", "feast I1", "ours I2", "feast I2")
    ]
    print(table(["after the same day", "mismatching cells"], rows))
    print(
        f"ratios: I1 {got['i1']['cpu'] / got['scan_both']['cpu']:.2f}x its scan, "
        f"I2 {got['i2']['cpu'] / got['scan_log']['cpu']:.2f}x its scan, "
        f"log {cost['logged_p50'] / cost['read_p50']:.3f}x p50 "
        f"{cost['logged_p99'] / cost['read_p99']:.3f}x p99 of a read, "
        f"mismatches ours {sum(map(sum, (both[n].values() for n in ('ours I1', 'ours I2'))))} "
        f"feast {sum(map(sum, (both[n].values() for n in ('feast I1', 'feast I2'))))}"
    )


if __name__ == "__main__":
    main()
