"""Drift over 40 numeric and 10 categorical columns: ours, the peers, the floor; a table, printed.

    python benchmarks/drift.py [--quick] [--seed N] [--rows N ...] [--peers NAME ...]

Ours is the daemon's own code path on a frozen bucket: read, profile, figures, verdicts, against a
reference that is kept. The floor is DuckDB summing the same columns of the same file. Every
contender runs in a process of its own, peers in environments of their own, which are made with
pip in the cache folder where they are missing. CPU seconds leave imports out: everyone has done
the same on a few rows before. Ours and the floor are what a process that lives on pays, so the
first of four runs does not count; what it costs is named beside the table.
Then the daemon's evaluator lives through a year, and one day's tick into a window of 365 days is
held against one into a window of a day.

`--quick`: 100,000 rows, the peers whose environments are there already, and no year. The last line
has the ratios against what was to be reached; exit code 1 if one falls short.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measure import GIB, cpu_seconds, peak_bytes, table, versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent
BASE_ROWS, GROUP_ROWS = 1_000_000, 122_880
CARDINALITIES = (3, 5, 8, 12, 20, 30, 50, 80, 120, 190)
NUMERIC = [f"x{i}" for i in range(40)]
CATEGORICAL = [f"c{i}" for i in range(len(CARDINALITIES))]
WARM = "warm.parquet"
DAYS = 14
START = datetime(2024, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)

ENVIRONMENTS = {
    "scipy": [["scipy", "pandas<3", "pyarrow"]],
    "tfdv": [
        # Its own list of requirements keeps pip's resolver busy for an hour: what it imports.
        ["tensorflow==2.16.*", "apache-beam==2.59.*", "pyarrow<11", "numpy<2", "pandas<2",
         "protobuf<5", "setuptools<81", "dill", "joblib", "pyfarmhash", "absl-py", "ipython",
         "tensorflow-metadata==1.16.*", "tensorflow-serving-api==2.16.*"],
        ["--no-deps", "tensorflow-data-validation==1.16.1", "tfx-bsl==1.16.1"],
    ],
    "nannyml": [["nannyml", "statsmodels", "pyarrow"]],
    "whylogs": [["whylogs[viz]", "numpy<2", "pandas<3", "pyarrow<20"]],
    "evidently": [["evidently", "pandas<3", "pyarrow"]],
}  # fmt: skip
"""What each peer needs, as arguments of successive `pip install`s; quick ones first."""

REACH = {
    "times the scan": 2.5,
    "evidently": 150,
    "whylogs": 35,
    "tfdv": 6,
    "scipy": 6,
    "GiB": 1.0,
    "year's tick": 1.5,
}
"""At most, for the scan, the memory and the tick; at least so many times faster than the peers."""


# Data


def batch(rng: np.random.Generator, rows: int, shift: float) -> pa.Table:
    """Return rows of every sort of column that is common, some with nulls."""
    makers: list[Callable[[], Any]] = [
        lambda: pa.array(rng.normal(shift, 1, rows), mask=rng.random(rows) < 0.02),
        lambda: rng.lognormal(shift, 1, rows),
        lambda: rng.gamma(2, 1, rows),
        lambda: rng.uniform(0, 1, rows),
        lambda: rng.poisson(5, rows),
        lambda: np.where(rng.random(rows) < 0.6, 0.0, rng.exponential(1, rows)),
        lambda: rng.standard_t(3, rows).astype(np.float32),
        lambda: rng.integers(0, 10**9, rows),
    ]
    columns = {name: pa.array(makers[i % len(makers)]()) for i, name in enumerate(NUMERIC)}
    for name, many in zip(CATEGORICAL, CARDINALITIES, strict=True):
        share = 1 / np.arange(1, many + 1)
        codes = rng.choice(many, rows, p=share / share.sum())
        names = pa.array([f"category {i}" for i in range(many)])
        columns[name] = names.take(pa.array(codes))
    return pa.table(columns)


def write(path: Path, rows: int, seed: int, shift: float) -> None:
    """Write a side; beyond a million rows the million is repeated."""
    if path.exists():
        return
    made = batch(np.random.default_rng(seed), min(rows, BASE_ROWS), shift)
    aside = path.with_suffix(".partial")
    with pq.ParquetWriter(aside, made.schema, compression="zstd") as writer:
        for done in range(0, rows, BASE_ROWS):
            writer.write_table(made.slice(0, rows - done), row_group_size=GROUP_ROWS)
    aside.rename(path)


# In processes of their own


def measured(run: Callable[[], Any]) -> dict[str, Any]:
    """Return the CPU and wall seconds of `run` and this process's peak."""
    began, cpu = time.perf_counter(), cpu_seconds()
    run()
    cpu, wall = cpu_seconds() - cpu, time.perf_counter() - began
    return {"cpu": cpu, "wall": wall, "peak": peak_bytes()}


def repeated(run: Callable[[], Any]) -> dict[str, Any]:
    """Return the medians of three runs after a first, and what the first cost."""
    first, *others = (measured(run) for _ in range(4))
    return {key: statistics.median(one[key] for one in others) for key in first} | {
        "first": first["cpu"]
    }


def floor(folder: Path, rows: int) -> dict[str, Any]:
    """Have DuckDB read every column and do the least with it."""
    import duckdb

    sums = [f"sum({name})" for name in NUMERIC] + [f"sum(length({c}))" for c in CATEGORICAL]
    query = f"SELECT {', '.join(sums)} FROM read_parquet($path)"
    with duckdb.connect() as con:

        def run(path: Path) -> None:
            con.execute(query, {"path": str(path)}).fetchall()

        run(folder / WARM)
        return repeated(lambda: run(folder / f"current-{rows}.parquet"))


def ours(folder: Path, rows: int) -> dict[str, Any]:
    """Do what the daemon does with a frozen bucket."""
    from steadfeast.monitor.config import MonitorConfig
    from steadfeast.monitor.drift import Reference, detect, figures
    from steadfeast.monitor.evaluation import rows_of
    from steadfeast.monitor.profiles import Window, profile
    from steadfeast.monitor.sources import Bucket, Snapshot

    config = MonitorConfig(service="s", model="m")
    reference = Reference.from_json((folder / f"reference-{rows}.json").read_text())

    def run(path: Path) -> None:
        snapshot = Snapshot("m", Bucket(START, START + DAY), rows, None, "", path)
        current = profile(rows_of(snapshot, reference), reference.edges)
        window = Window(START, START + DAY, current.rows)
        verdicts = detect(reference, current, window, config)
        if not (len(figures(current)) == len(verdicts) == len(NUMERIC + CATEGORICAL)):
            raise RuntimeError("a column was left out")
        if not all(one.value is not None for one in verdicts):
            raise RuntimeError("a column has no verdict")

    run(folder / WARM)
    return repeated(lambda: run(folder / f"current-{rows}.parquet"))


def keep_reference(folder: Path, rows: int) -> dict[str, Any]:
    """Profile and calibrate the reference, day by day, once."""
    from steadfeast.monitor.config import MonitorConfig
    from steadfeast.monitor.drift import reference_of
    from steadfeast.monitor.profiles import edges_of, profile

    source = pq.ParquetFile(folder / f"reference-{rows}.parquet")

    def run() -> None:
        names = NUMERIC + CATEGORICAL
        edges = edges_of(source.iter_batches(), names)
        size, days = -(-rows // DAYS), []
        held: list[pa.RecordBatch] = []
        for one in source.iter_batches(size):
            held.append(one)
            if sum(map(len, held)) >= size:
                days.append(profile(held, edges))
                held = []
        days.append(profile(held, edges))
        config = MonitorConfig(service="s", model="m")
        dated = [(START + i * DAY, one) for i, one in enumerate(days) if one.rows]
        made = reference_of(dated, edges, config)
        (folder / f"reference-{rows}.json").write_text(made.to_json())

    return measured(run)


def tick(folder: Path, rows: int) -> dict[str, Any]:
    """Evaluate a year, day by day, in windows of a day and of a year; time the last days."""
    from steadfeast.monitor.config import DaemonConfig
    from steadfeast.monitor.evaluation import Evaluator
    from steadfeast.monitor.ledger import Ledger

    medians = {}
    for days in (1, 365):
        monitor = {
            "service": "s", "model": "m", "window": timedelta(days=days), "min_rows": 1,
            "reference": str(folder / "training" / "manifest.json"), "performance": None,
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as made:
            state = Path(made)
            config = DaemonConfig(state=state, clock="watermark", monitors={"m": monitor})
            with Ledger(state) as ledger:
                evaluator = Evaluator(config, ledger, folder)
                evaluator.configure(config, evaluator.prepare(config))
                taken: list[float] = []
                while True:
                    before = cpu_seconds()
                    if not evaluator.evaluate("m", 1):
                        break
                    ledger.state(config.monitors)
                    taken.append(cpu_seconds() - before)
                evaluator.close()
        medians[days] = statistics.median(taken[-9:])
    return {"day": medians[1], "year": medians[365], "peak": peak_bytes(), "rows": rows}


def serve_year(folder: Path, rows: int, seed: int) -> None:
    """Write a training set of 28 days and a served log of 370, `rows` rows a day."""
    if (folder / "training" / "manifest.json").exists():
        return
    made = batch(np.random.default_rng(seed), rows, 0.0)

    def dated(day: int, name: str) -> pa.Table:
        begin = int((START + day * DAY).timestamp() * 1e6)
        times = pa.array(begin + np.arange(rows) * (86_400_000_000 // rows), pa.int64())
        ids = pa.array([f"{day}-{i}" for i in range(rows)])
        at = times.cast(pa.timestamp("us", "UTC"))
        return made.append_column(name, at).append_column("request_id", ids)

    served = folder / "served" / "s"
    served.mkdir(parents=True, exist_ok=True)
    for day in range(28, 398):
        one = dated(day, "request_time")
        first, last = one["request_time"][0].value, one["request_time"][-1].value
        pq.write_table(one, served / f"{first}-{last}-{day}.parquet", compression="zstd")
    training = folder / "training"
    training.mkdir()
    whole = pa.concat_tables(dated(day, "event_timestamp") for day in range(28))
    pq.write_table(whole, training / "data.parquet")
    blank = dict.fromkeys(("as_known_at",)) | dict.fromkeys(
        ("id", "contract", "sha256", "entities_sha256", "commit", "created_at"), ""
    )
    manifest = {
        **blank, "service": "s", "label": "", "keys": [], "rows": whole.num_rows, "sources": [],
        "features": NUMERIC + CATEGORICAL, "libraries": {},
        "columns": {name: {"type": str(whole[name].type)} for name in whole.column_names},
    }  # fmt: skip
    (training / "manifest.json").write_text(json.dumps(manifest))


CHILDREN = {one.__name__: one for one in (floor, ours, keep_reference, tick)}


def child(command: list[str], cap_seconds: float, cap_gib: float) -> dict[str, Any]:
    """Run a process and read its last line; stop it at a cap."""
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = dict(os.environ) if command[0] == sys.executable else plain
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as wrong:
        process = subprocess.Popen(
            [command[0], "-W", "ignore", *command[1:]],
            stdout=said,
            stderr=wrong,
            env=environment | {"TF_CPP_MIN_LOG_LEVEL": "3", "DO_NOT_TRACK": "1"},
        )
        began = time.monotonic()
        while process.poll() is None:
            stopped = ""
            if time.monotonic() - began > cap_seconds:
                stopped = f"> {cap_seconds:g} s"
            elif _resident(process.pid) > cap_gib * GIB:
                stopped = f"> {cap_gib:g} GiB"
            if stopped:
                cpu = _cpu_of(process.pid)
                process.kill()
                process.wait()
                return {"stopped": stopped, "least_cpu": cpu}
            time.sleep(0.1)
        for file in (said, wrong):
            file.seek(0)
        if process.returncode:
            return {"stopped": (wrong.read().strip().splitlines() or ["failed"])[-1][:90]}
        return dict(json.loads(said.read().strip().splitlines()[-1]))


def _resident(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# The peers


def environment(name: str, cache: Path, *, make: bool) -> tuple[Path | None, str]:
    """Return the peer's Python, or why there is none."""
    home = cache / name
    if (home / "installed").exists():
        return home / "bin" / "python", ""
    if not make:
        return None, "its environment is not there"
    print(f"making the environment of {name} in {home}", file=sys.stderr)
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        for packages in ENVIRONMENTS[name]:
            command = [str(home / "bin" / "pip"), "install", "--quiet", *packages]
            subprocess.run(command, check=True, timeout=1200)
    except (subprocess.SubprocessError, OSError) as error:
        return None, f"cannot be installed: {error}"[:90]
    (home / "installed").touch()
    return home / "bin" / "python", ""


def contenders(
    folder: Path, rows: int, options: argparse.Namespace
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run everyone on one size; yields who and the medians of the rounds."""
    for side, seed, shift in (("reference", 1, 0.0), ("current", 2, 0.05)):
        path = folder / f"{side}-{rows}.parquet"
        write(path, rows, 10 * options.seed + seed, shift)
    write(folder / WARM, 1000, 10 * options.seed, 0.0)
    me = [sys.executable, str(HERE / "drift.py"), "--child"]
    caps = options.cap_seconds, options.cap_gib
    yield "keep_reference", child([*me, "keep_reference", str(folder), str(rows)], *caps)
    rounds = 3 if rows <= BASE_ROWS else 1
    runs: dict[str, list[dict[str, Any]]] = {"floor": [], "ours": []}
    for _ in range(rounds):
        for name, held in runs.items():
            held.append(child([*me, name, str(folder), str(rows)], *caps))
    for name, held in runs.items():
        if "stopped" in held[-1]:
            yield name, held[-1]
        else:
            yield name, {key: statistics.median(one[key] for one in held) for key in held[0]}
    for name in options.peers:
        python, why = environment(name, options.cache, make=not options.quick)
        if python is None:
            yield name, {"stopped": why}
            continue
        sides = WARM, f"reference-{rows}.parquet", f"current-{rows}.parquet"
        files = [str(folder / side) for side in sides]
        yield name, child([str(python), str(HERE / "drift_peers.py"), name, *files], *caps)


SAID = {
    "floor": "floor: DuckDB sums",
    "ours": "**ours**",
    "keep_reference": "ours: the reference, once",
    "nannyml": "nannyml, fitted",
    "whylogs": "whylogs, reference kept",
    "tfdv": "tensorflow-data-validation, reference kept",
}


def compare(rows: int, found: dict[str, dict[str, Any]]) -> tuple[list[list[str]], dict[str, Any]]:
    """Return table lines, and figures for `REACH`."""
    lines, reached = [], {}
    scan, mine = found["floor"].get("cpu"), found["ours"].get("cpu")
    for name, one in found.items():
        said = SAID.get(name, name)
        if "cpu" not in one or not scan or not mine:
            least = one.get("least_cpu")
            slower = f"> {least / mine:.0f}" if least and mine else ""
            lines.append([f"{rows:,}", said, one.get("stopped", ""), "", "", "", slower])
            if least and mine and least / mine >= REACH.get(name, math.inf):
                reached[name] = least / mine  # a run cut short can show enough, never too little
            continue
        cpu, peak = one["cpu"], one["peak"] / GIB
        times = [f"{cpu / scan:.1f}", f"{cpu / mine:.1f}"]
        lines.append([f"{rows:,}", said, f"{cpu:.2f}", f"{one['wall']:.2f}", f"{peak:.2f}", *times])
        if name in ENVIRONMENTS:
            reached[name] = cpu / mine
    if scan and mine:
        reached |= {"times the scan": mine / scan, "GiB": found["ours"]["peak"] / GIB}
    return lines, reached


def verdict(figures: dict[str, list[float]]) -> tuple[str, bool]:
    """Return the last line, of the worst figure over the sizes, and whether all was reached."""
    said, good = [], True
    for name, bound in REACH.items():
        if name not in figures:
            continue
        most = name in ("times the scan", "GiB", "year's tick")
        worst = max(figures[name]) if most else min(figures[name])
        fine = worst <= bound if most else worst >= bound
        good = good and fine
        mark = "" if fine else " SHORT"
        said.append(f"{name} {worst:.3g} ({'<=' if most else '>='} {bound:g}){mark}")
    return "; ".join(said), good


def main() -> int:
    """Run what was asked for."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "steadfeast-drift"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100,000 rows, within two minutes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--peers", nargs="*", choices=ENVIRONMENTS, default=list(ENVIRONMENTS))
    parser.add_argument("--cache", type=Path, default=cache, help="environments and data")
    parser.add_argument("--cap-seconds", type=float, default=900)
    parser.add_argument("--cap-gib", type=float, default=10.5)
    parser.add_argument("--year-rows", type=int, default=5000, help="rows a day; 0 leaves it out")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, folder, rows = options.child
        print(json.dumps(CHILDREN[name](Path(folder), int(rows))))
        return 0
    if options.quick:
        options.rows, options.year_rows = [100_000], 0
        options.cap_seconds = min(options.cap_seconds, 40)
    options.cache.mkdir(parents=True, exist_ok=True)
    print(versions(["duckdb", "pyarrow", "numpy"]) + "\n")
    lines: list[list[str]] = []
    fresh: list[str] = []
    figures: dict[str, list[float]] = {}
    for rows in options.rows:
        found = {}
        for name, one in contenders(options.cache, rows, options):
            said = one.get("stopped") or f"{one['cpu']:.2f} CPU s"
            print(f"{rows:,} rows, {name}: {said}", file=sys.stderr, flush=True)
            found[name] = one
        more, reached = compare(rows, found)
        lines += more
        if "first" in found["ours"] and "first" in found["floor"]:
            first = found["ours"]["first"], found["floor"]["first"]
            said = f"{rows:,} rows {first[0]:.2f} CPU s, {first[0] / first[1]:.1f} x the scan's"
            fresh.append(said)
        for name, value in reached.items():
            figures.setdefault(name, []).append(value)
    head = ["rows", "who", "CPU s", "wall s", "peak GiB", "x scan", "x ours"]
    print(table(head, lines))
    print(f"In a process that has just started: {'; '.join(fresh)}.\n")
    if options.year_rows:
        year = options.cache / f"year-{options.year_rows}"
        serve_year(year, options.year_rows, options.seed)
        me = [sys.executable, str(HERE / "drift.py"), "--child", "tick"]
        told = child([*me, str(year), str(options.year_rows)], 900, options.cap_gib)
        if "stopped" in told:
            raise RuntimeError(told["stopped"])
        figures["year's tick"] = [told["year"] / told["day"]]
        figures.setdefault("GiB", []).append(told["peak"] / GIB)
        print(
            f"One tick of a day of {options.year_rows:,} rows: {told['day'] * 1000:.0f} ms of CPU "
            f"into a window of a day, {told['year'] * 1000:.0f} ms into one of 365 days.\n"
        )
    said, good = verdict(figures)
    print(said)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
