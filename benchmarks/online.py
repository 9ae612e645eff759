"""Online reads, servers and materialization: Feast's stores, ours on the same data, the floor.

`python benchmarks/online.py [--quick] [--seed N] [--only reads|servers|materialize]`: Markdown
tables, then one line of ratios against what was to be reached; exit code 1 if one falls short.
Reads are timed with the values in hand: Feast's and ours by `to_dict()`, so that both give the same
lists, and ours by `to_numpy()` beside the floor, which is one blob per key, fetched by the bare
client and decoded by one `numpy.frombuffer`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import measure
import numpy as np
import online_world as world
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

os.environ["FEAST_USAGE"] = "False"
ROWS, WIDTHS = (1, 10, 100, 1000), (5, 50)
PROGRAMS = Path(sys.executable).parent
REACH = {
    "sqlite read, 1 x 5": 20,
    "sqlite read, 1 x 50": 20,
    "sqlite read, 100 x 50": 100,
    "redis read, 1 x 5": 4,
    "redis read, 1 x 50": 4,
    "redis read, 100 x 50": 60,
    "times the floor": 3,
    "server, 1 x 5": 5,
    "server, 100 x 50": 15,
    "materialize, sqlite": 20,
    "materialize, redis": 12,
    "memory": 10,
    "stored bytes, sqlite": 10,
}
"""All are how many times better than Feast, but the floor's, which is how many times slower."""


@contextmanager
def redis_server(folder: Path) -> Iterator[int]:
    """Run a redis-server that keeps nothing on disk."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(folder)]
    server = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
    try:
        _wait(port, server)
        yield port
    finally:
        server.terminate()
        server.wait()


def _wait(port: int, process: subprocess.Popen[Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"{process.args} does not listen on {port}")


def fill(repo: Path) -> None:
    """Apply the definitions and materialize them, by whom the repo belongs to."""
    from feast import FeatureStore

    from steadfeast import Store

    with Store.open(repo / "steadfeast.yaml") as store:
        store.apply()
        if repo.name.startswith("steadfeast"):
            store.materialize(world.until())
            return
    FeatureStore(str(repo)).materialize(world.START - timedelta(days=1), world.until())


def readers(
    repo: Path, width: int, opened: ExitStack
) -> dict[str, Callable[[list[dict[str, int]]], object]]:
    """Return what users of this repo's store would call."""
    from feast import FeatureStore

    from steadfeast import Store

    store = repo.name.replace("-", " ")
    if repo.name.startswith("steadfeast"):
        ours = opened.enter_context(Store.open(repo / "steadfeast.yaml"))
        return {
            store: lambda rows: ours.online_features(f"f{width}", rows).to_dict(),
            f"{store}, NumPy": lambda rows: ours.online_features(f"f{width}", rows).to_numpy(),
        }
    theirs = FeatureStore(str(repo))
    service = theirs.get_feature_service(f"f{width}")
    return {store: lambda rows: theirs.get_online_features(service, rows).to_dict()}


def floors(
    folder: Path, port: int, width: int, opened: ExitStack
) -> dict[str, Callable[[list[dict[str, int]]], object]]:
    """Return the least that could be done: one blob per key, fetched and decoded."""
    import redis

    table = pq.read_table(next(folder.glob(f"{width}-*.parquet")))
    cells = np.column_stack([table[f"x{i}"].to_numpy() for i in range(width)])
    pairs = dict(zip(table["key"].to_pylist(), map(bytes, cells), strict=True))
    connection = sqlite3.connect(folder / f"floor-{width}.db")
    opened.callback(connection.close)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE f (key INTEGER PRIMARY KEY, row BLOB)")
    connection.executemany("INSERT INTO f VALUES (?, ?)", pairs.items())
    connection.commit()
    client = opened.enter_context(redis.Redis(port=port, db=3))
    client.mset({f"{width}:{key}": row for key, row in pairs.items()})

    def by_sqlite(rows: list[dict[str, int]]) -> object:
        keys = [row["key"] for row in rows]
        marks = ",".join("?" * len(keys))
        found = dict(connection.execute(f"SELECT key, row FROM f WHERE key IN ({marks})", keys))
        return np.frombuffer(b"".join([found[key] for key in keys])).reshape(len(keys), width)

    def by_redis(rows: list[dict[str, int]]) -> object:
        got = client.mget([f"{width}:{row['key']}" for row in rows])
        return np.frombuffer(b"".join(got)).reshape(len(rows), width)

    return {"floor sqlite": by_sqlite, "floor redis": by_redis}


def _keys(options: Any) -> int:
    return 1000 if options.quick else 20_000


def reads(folder: Path, port: int, options: Any) -> dict[tuple[str, int, int], dict[str, float]]:
    """Time every store on every size, in turn within each round."""
    keys = _keys(options)
    repos = [folder / store.replace(" ", "-") for store in world.STORES]
    rounds, seconds = (2, 0.15) if options.quick else (5, 0.6)
    figures: dict[tuple[str, int, int], dict[str, float]] = {}
    chosen = random.Random(options.seed)
    with ExitStack() as opened:
        for width in WIDTHS:
            calls = floors(folder, port, width, opened)
            for repo in repos:
                calls |= readers(repo, width, opened)
            for count in ROWS:
                rows = [{"key": chosen.randrange(keys)} for _ in range(count)]
                runs: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
                for _ in range(rounds):
                    for name, call in calls.items():
                        taken = measure.latencies(lambda: call(rows), seconds=seconds)  # noqa: B023
                        runs[name].append(taken)
                for name, taken in runs.items():
                    figures[name, count, width] = {
                        key: statistics.median(run[key] for run in taken)
                        for key in ("p50", "p99", "cpu")
                    }
    names = [
        f"{who} {kind}{how}"
        for kind in ("sqlite", "redis")
        for who, how in (
            ("feast", ""),
            ("steadfeast", ""),
            ("steadfeast", ", NumPy"),
            ("floor", ""),
        )
    ]
    print(f"Reads, {keys:,} keys; microseconds: p50 / p99 / CPU per call\n")
    body = [
        [f"{count} x {width}"]
        + [
            " / ".join(f"{figures[name, count, width][k]:,.0f}" for k in ("p50", "p99", "cpu"))
            for name in names
        ]
        for width in WIDTHS
        for count in ROWS
    ]
    print(measure.table(["rows x features", *names], body), flush=True)
    return figures


@contextmanager
def served(repo: Path, workers: int = 1) -> Iterator[int]:
    """Serve a repo by its own server; give the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    if repo.name.startswith("steadfeast"):
        command = [PROGRAMS / "steadfeast", "store", "serve", "--grpc", "127.0.0.1:0"]
        command += ["--http", f"127.0.0.1:{port}", "--workers", str(workers)]
    else:
        command = [PROGRAMS / "feast", "serve", "-h", "127.0.0.1", "-p", str(port)]
        command += ["-w", str(workers), "--max-requests", "0", "--no-access-log"]
    with (repo / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=repo, stdout=log, stderr=log)
    try:
        _wait(port, process)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=60)


def servers(folder: Path, options: Any) -> dict[tuple[str, int, int], dict[str, float]]:
    """Load each server in turn, over loopback."""
    sizes = ((1, 5), (100, 50)) if options.quick else ((1, 5), (10, 50), (100, 50))
    runs: dict[tuple[str, int, int], list[dict[str, float]]] = {}
    keys = _keys(options)
    plans = [(store, 1) for store in world.STORES]
    plans += [("steadfeast sqlite", 2), ("feast sqlite", 2)]
    for _ in range(1 if options.quick else 3):
        for store, workers in plans:
            name = store if workers == 1 else f"{store}, {workers} workers"
            with served(folder / store.replace(" ", "-"), workers) as port:
                for rows, width in sizes:
                    given = {
                        "port": port, "service": f"f{width}", "rows": rows, "keys": keys,
                        "connections": 4, "seconds": 1.5 if options.quick else 4, "most": 20_000,
                    }  # fmt: skip
                    script = Path(__file__).with_name("online_load.py")
                    done = subprocess.run(
                        [sys.executable, script, json.dumps(given)],
                        capture_output=True, text=True, check=True, timeout=120,
                    )  # fmt: skip
                    runs.setdefault((name, rows, width), []).append(json.loads(done.stdout))
    figures = {
        key: {k: statistics.median(run[k] for run in some) for k in ("rate", "p99")}
        for key, some in runs.items()
    }
    print("Servers, 4 connections: requests/s (p99 in milliseconds)\n")
    names = list(dict.fromkeys(name for name, _, _ in figures))
    body = [
        [name]
        + [
            f"{figures[name, r, w]['rate']:,.0f} ({figures[name, r, w]['p99']:.1f})"
            for r, w in sizes
        ]
        for name in names
    ]
    print(measure.table(["server", *(f"{r} x {w}" for r, w in sizes)], body), flush=True)
    return figures


def materialize(store: str, keys: int, width: int, seed: int, folder: Path, port: int) -> None:
    """Child: materialize one view of one store, and write the figures."""
    from feast import FeatureStore

    from steadfeast import Store

    repo = world.make(folder, store, {width: keys}, seed, port)
    ours = Store.open(repo / "steadfeast.yaml")
    ours.apply()
    theirs = FeatureStore(str(repo)) if store.startswith("feast") else None
    stored = _stored(store, repo, port)
    base, before = measure.forget_peak(), measure.cpu_seconds()
    began = time.perf_counter()
    if theirs is None:
        ours.materialize(world.until())
    else:
        with Path(os.devnull).open("w", encoding="ascii") as nothing:
            sys.stdout, out = nothing, sys.stdout
            theirs.materialize(world.START - timedelta(days=1), world.until())
            sys.stdout = out
    seconds, cpu = time.perf_counter() - began, measure.cpu_seconds() - before
    ours.close()
    figures = {
        "seconds": seconds,
        "cpu": cpu,
        "peak": measure.peak_bytes(),
        "base": base,
        "bytes": (_stored(store, repo, port) - stored) / keys,
    }
    print(json.dumps(figures))


def _stored(store: str, repo: Path, port: int) -> int:
    if store.endswith("sqlite"):
        files = (repo / "data").glob("online.db*")
        return sum(path.stat().st_size for path in files)
    import redis

    with redis.Redis(port=port) as client:
        return int(client.info("memory")["used_memory_dataset"])


def materializations(port: int, options: Any) -> dict[tuple[str, int, int], dict[str, float]]:
    """Run each in a process of its own, so that its peak memory is its own."""
    sizes = (
        [(20_000, 10)]
        if options.quick
        else [(100_000, 10), (100_000, 50), (1_000_000, 10), (1_000_000, 50)]
    )
    figures: dict[tuple[str, int, int], dict[str, Any]] = {}
    body = []
    for keys, width in sizes:
        for store in world.STORES:
            theirs = store.startswith("feast")
            if theirs and keys * width > 10_000_000:
                continue  # a quarter of an hour and tens of GiB: the other sizes say enough
            runs = []
            for _ in range(1 if theirs or options.quick else 3):
                with tempfile.TemporaryDirectory() as folder:
                    given = [store, str(keys), str(width), str(options.seed), folder, str(port)]
                    runs.append(measure.child(__file__, *given, cap_seconds=900))
                _flush(port)
            stopped = next((run["stopped"] for run in runs if "stopped" in run), None)
            if stopped is not None:
                body.append([f"{keys:,} x {width}", store, stopped, "", "", "", ""])
                continue
            mine = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            figures[store, keys, width] = mine
            body.append(
                [
                    f"{keys:,} x {width}",
                    store,
                    f"{keys / mine['seconds']:,.0f}",
                    f"{mine['cpu']:.1f}",
                    f"{mine['peak'] / measure.GIB:.2f}",
                    f"{mine['base'] / measure.GIB:.2f}",
                    f"{mine['bytes']:,.0f}",
                ]
            )
    head = ["keys x features", "store", "keys/s", "CPU s", "peak GiB", "of it before", "bytes/key"]
    print("Materialize, one source row per key\n")
    print(measure.table(head, body), flush=True)
    return figures


def _flush(port: int) -> None:
    import redis

    with redis.Redis(port=port) as client:
        client.flushall()


def judged_reads(read: dict[tuple[str, int, int], dict[str, float]]) -> dict[str, float]:
    """Return the ratios of REACH that are of reads."""
    ratios = {}
    for kind in ("sqlite", "redis"):
        for size in ((1, 5), (1, 50), (100, 50)):
            theirs, ours = (read[f"{who} {kind}", *size] for who in ("feast", "steadfeast"))
            ratios[f"{kind} read, {size[0]} x {size[1]}"] = theirs["p50"] / ours["p50"]
    ratios["times the floor"] = max(
        read[f"steadfeast {kind}, NumPy", *size]["p50"] / read[f"floor {kind}", *size]["p50"]
        for kind in ("sqlite", "redis")
        for size in product(ROWS, WIDTHS)
    )
    return ratios


def judged_servers(load: dict[tuple[str, int, int], dict[str, float]]) -> dict[str, float]:
    """Return the ratios of REACH that are of servers."""
    return {
        f"server, {rows} x {width}": min(
            load[f"steadfeast {kind}", rows, width]["rate"]
            / load[f"feast {kind}", rows, width]["rate"]
            for kind in ("sqlite", "redis")
        )
        for rows, width in ((1, 5), (100, 50))
    }


def judged_moves(moved: dict[tuple[str, int, int], dict[str, float]]) -> dict[str, float]:
    """Return the ratios of REACH that are of materialization, at the largest size of both."""
    ratios: dict[str, float] = {}
    size = max((k, w) for s, k, w in moved if s == "feast sqlite" and w == 10)
    for kind in ("sqlite", "redis"):
        theirs, ours = (moved.get((f"{who} {kind}", *size)) for who in ("feast", "steadfeast"))
        if theirs and ours:
            ratios[f"materialize, {kind}"] = theirs["seconds"] / ours["seconds"]
            extra = (theirs["peak"] - theirs["base"]) / max(ours["peak"] - ours["base"], 1)
            ratios["memory"] = min(ratios.get("memory", extra), extra)
            if kind == "sqlite":
                ratios["stored bytes, sqlite"] = theirs["bytes"] / ours["bytes"]
    return ratios


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="Within two minutes.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["reads", "servers", "materialize"])
    parser.add_argument("--child", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.child:
        store, keys, width, seed, folder, port = options.child
        materialize(store, int(keys), int(width), int(seed), Path(folder), int(port))
        return 0
    print(measure.versions(["feast", "duckdb", "pyarrow", "numpy", "redis", "uvicorn"]), end="\n\n")
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name, redis_server(Path(name)) as port:
        folder = Path(name)
        if options.only != "materialize":
            widths = dict.fromkeys(WIDTHS, _keys(options))
            for store in world.STORES:
                fill(world.make(folder, store, widths, options.seed, port))
        if options.only in (None, "reads"):
            ratios |= judged_reads(reads(folder, port, options))
        if options.only in (None, "servers"):
            ratios |= judged_servers(servers(folder, options))
        _flush(port)
        if options.only in (None, "materialize"):
            ratios |= judged_moves(materializations(port, options))
    missed = [
        name for name, ratio in ratios.items()
        if (ratio > REACH[name] if name == "times the floor" else ratio < REACH[name])
    ]  # fmt: skip
    line = "; ".join(
        f"{name} {ratio:.1f} ({'at most' if name == 'times the floor' else 'of'} {REACH[name]})"
        for name, ratio in ratios.items()
    )
    print(f"{line}; short: {', '.join(missed) or 'none'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
