"""What must hold in a world of `chaos_world`, whatever was done to it.

Below `chaos`. Shares no code with ours: plain pyarrow, duckdb and sqlite3 over what lies on the
disk, against what the client was told.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sqlite3
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from chaos_world import World

ROUNDING = 1e-6
"""A batch of another size may round another way."""
FEATURES = ("visits", "spend", "spend_per_visit")


def problems(world: World, *, told: bool) -> tuple[list[str], int]:
    """Return what does not hold of a settled world, and how many rows its log has lost."""
    data = world.folder / "data"
    log = rows(data / "served" / "purchase")
    lost, found = served(world, log)
    found += labelled(world, rows(data / "labels" / "purchase"))
    with tempfile.TemporaryDirectory() as aside:
        for name in ("monitor.duckdb", "monitor.duckdb.wal"):
            if (data / "monitor" / name).exists():
                shutil.copy(data / "monitor" / name, aside)
        with duckdb.connect(str(Path(aside, "monitor.duckdb"))) as con:
            con.execute("SET TimeZone = 'UTC'")
            found += frozen(con, data / "monitor", log)
            found += alerted(con)
            found += triggered(con, data / "pipeline" / "runs.db", may_fail=told)
    return found, lost


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return every row of a folder of the log."""
    files = sorted(path for path in folder.rglob("*.parquet") if not path.name.startswith("."))
    return [row for path in files for row in pq.read_table(path, partitioning=None).to_pylist()]


def served(world: World, log: list[dict[str, Any]]) -> tuple[int, list[str]]:
    """What the client was told stands in the log once, with the features of the source."""
    found, by_id = [], {row["request_id"]: row for row in log}
    again = [name for name, times in Counter(row["request_id"] for row in log).items() if times > 1]
    if again:
        found.append(f"{len(again)} requests are in the log more than once, {again[0]} first")
    source = newest(world.folder / "data/sources/activity.parquet", world.filled)
    lost, told_ids = 0, set()
    for told in world.told:
        for name, customer, value in zip(told.ids, told.customers, told.values, strict=True):
            told_ids.add(name)
            row = by_id.get(name)
            if row is None:
                lost += 1
            elif (row["customer"], row["prediction"], row["model_version"]) != (
                customer, value, told.version,
            ):  # fmt: skip
                found.append(f"{name} was told {value} of version {told.version}; logged is {row}")
    strange = set(by_id) - told_ids - set(world.unanswered)
    if strange:
        found.append(f"{len(strange)} requests are in the log that nobody sent")
    return lost, (found + wrong(log, source))[:5]


def wrong(log: list[dict[str, Any]], source: Mapping[int, dict[str, Any]]) -> list[str]:
    """Features are the source's; one version says one thing to the same features."""
    found = [
        f"{row['request_id']} was served {row}, not {source[row['customer']]}"
        for row in log
        if any(row[name] != source[row["customer"]][name] for name in FEATURES)
    ]
    said: dict[tuple[int, str], float] = {}
    for row in log:
        before = said.setdefault((row["customer"], row["model_version"]), row["prediction"])
        if abs(before - row["prediction"]) > ROUNDING:
            found.append(f"version {row['model_version']} says {before} and {row['prediction']}")
    return found


def newest(source: Path, until: datetime) -> Mapping[int, dict[str, Any]]:
    """Return each customer's newest row that was known at `until`, found by a loop."""
    found: dict[int, dict[str, Any]] = {}
    for row in pq.read_table(source).to_pylist():
        before = found.get(row["customer"])
        if row["created"] <= until and (
            before is None or row["event_timestamp"] > before["event_timestamp"]
        ):
            found[row["customer"]] = row | {"spend_per_visit": row["spend"] / max(row["visits"], 1)}
    return found


def labelled(world: World, log: list[dict[str, Any]]) -> list[str]:
    """A label that was taken is on the disk, as it was."""
    kept = {row["request_id"]: row["label"] for row in log}
    gone = [name for name in world.labels if name not in kept]
    wrong = [name for name, label in world.labels.items() if kept.get(name, label) != label]
    found = [f"{len(gone)} labels that were taken are gone, {gone[0]} first"] if gone else []
    return found + ([f"{len(wrong)} labels are others than were sent"] if wrong else [])


def frozen(con: duckdb.DuckDBPyConnection, state: Path, log: list[dict[str, Any]]) -> list[str]:
    """Buckets follow without a gap, and each snapshot holds the log's rows of its time."""
    buckets = con.execute(
        "SELECT start_time, end_time, row_count, late_rows, path FROM buckets ORDER BY start_time"
    ).fetchall()
    found = [
        f"no bucket from {before[1]} to {after[0]}"
        for before, after in itertools.pairwise(buckets)
        if before[1] != after[0]
    ]
    for start, end, count, late, path in buckets:
        file = state / path
        if not file.is_file():
            found.append(f"the snapshot {path} is gone")
            continue
        table = pq.read_table(file, partitioning=None)
        kept = table["request_id"].to_pylist() if "request_id" in table.column_names else None
        of_log = [row["request_id"] for row in log if start <= row["request_time"] < end]
        if table.num_rows != count:
            found.append(f"{path} has {table.num_rows} rows; the ledger says {count}")
        if kept is None:
            if count + late != len(of_log):
                found.append(f"{path} and {late} late rows are not the {len(of_log)} of the log")
        elif set(kept) - set(of_log) or len(of_log) - len(kept) > late or len(set(kept)) < count:
            found.append(f"{path} has {len(kept)} rows and {late} late; the log {len(of_log)}")
    files = {str(one.relative_to(state)) for one in (state / "snapshots").rglob("*.parquet")}
    strange = files - {path for *_, path in buckets}
    return found + ([f"snapshots that no bucket has: {sorted(strange)[:3]}"] if strange else [])


def alerted(con: duckdb.DuckDBPyConnection) -> list[str]:
    """Each alert once, numbered without a gap."""
    kept = con.execute("SELECT sequence, body FROM alerts ORDER BY sequence").fetchall()
    alerts = [(number, json.loads(body)) for number, body in kept]
    found = []
    if [number for number, _ in alerts] != list(range(1, len(alerts) + 1)):
        found.append("the numbers of the alerts have gaps")
    told = Counter((body["kind"], body["at"], body["summary"]) for _, body in alerts)
    return found + [f"told {times} times: {alert}" for alert, times in told.items() if times > 1]


def triggered(con: duckdb.DuckDBPyConnection, queue: Path, *, may_fail: bool) -> list[str]:
    """Each trigger that fired is one run of the pipeline, and each such run a trigger."""
    sent = dict(con.execute("SELECT request_id, state FROM outbox").fetchall())
    ended = dict(
        con.execute(
            "SELECT request_id, run_ended FROM triggers WHERE fired_at IS NOT NULL"
        ).fetchall()
    )
    with closing(sqlite3.connect(f"{queue.absolute().as_uri()}?mode=ro", uri=True)) as runs:
        found = runs.execute("SELECT request_id, request, run FROM runs").fetchall()
    asked = [
        name
        for name, request, _ in found
        if "purchase" in json.loads(request)["cause"].get("policy", "")
    ]
    states = {name: json.loads(run)["state"] for name, _, run in found}
    said = [
        f"trigger {name} is {state}, not delivered"
        for name, state in sent.items()
        if state != "delivered"
    ]
    said += [
        f"trigger {name} has {asked.count(name)} runs" for name in sent if asked.count(name) != 1
    ]
    said += [f"run of {name}, which the daemon never fired" for name in asked if name not in ended]
    over = {"RUN_STATE_PROMOTED", "RUN_STATE_REFUSED", *["RUN_STATE_FAILED"] * may_fail}
    return said + [
        f"the run of {name} is {states[name]}; the daemon says {'ended' if done else 'under way'}"
        for name, done in ended.items()
        if name in states and (states[name] not in over or not done)
    ]


def stated(report: str) -> int:
    """Return how many rows an audit says were lost, from its JSON."""
    mismatches = [
        one["mismatches"] for one in json.loads(report)["checks"] if one["invariant"] == "I11"
    ]
    return sum(one.get(kind, 0) for one in mismatches for kind in ("unwritten", "lost"))
