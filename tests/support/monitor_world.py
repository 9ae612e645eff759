"""A world to monitor: a training set, a served log with labels, a configuration, a pipeline.

Written in the layout that the store writes, with pyarrow alone. `x` is N(0, 1) until `drift_at`,
then N(3, 1); `kind` stays as it is. The prediction is right until `drift_at` and a coin's from
then on. The pipeline is a real gRPC server that keeps runs in SQLite before it answers.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

import duckdb
import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from steadfeast.protos.steadfeast.v1 import monitor_pb2, monitor_pb2_grpc, pipeline_pb2_grpc
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path

START = datetime(2024, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
TRAINED_DAYS = 40
PER_DAY = 200
CONTRACT = "ab" * 32
TS = pa.timestamp("us", tz="UTC")
KINDS = ["a", "b", "c"]

CONFIG = """\
store: {{repo: ., data: data}}
monitor:
  state: data/monitor
  http: 127.0.0.1:{http}
  grpc: 127.0.0.1:{grpc}
  clock: watermark
  tick: 100ms
  pipelines: {{main: "127.0.0.1:{pipeline}"}}
  monitors:
    prices:
      service: prices
      model: price
      pipeline: main
      bucket: 1d
      window: 3d
      cooldown: 7d
      refresh: never
      min_rows: 100
      performance: {{metric: auc, min_labels: 100, max_drop: 0.1}}
      episode: {{k: 2, n: 3, close: 2}}
{extra}"""


def times(first: datetime, days: int) -> list[datetime]:
    """Return the request times of whole days, evenly spread."""
    return [first + DAY * (i / PER_DAY) for i in range(days * PER_DAY)]


def features(at: list[datetime], drift_at: datetime, seed: int) -> dict[str, pa.Array]:
    """Return the feature columns and a label that follows from them."""
    rng = np.random.default_rng(seed)
    late = np.array([t >= drift_at for t in at])
    x = rng.normal(size=len(at)) + 3.0 * late
    kind = rng.choice(KINDS, p=[0.5, 0.3, 0.2], size=len(at))
    label = (rng.random(len(at)) < 1 / (1 + np.exp(-3 * (x - 3 * late)))).astype(float)
    return {"x": pa.array(x), "kind": pa.array(kind), "label": pa.array(label)}


def train(folder: Path, name: str, first: datetime, drift_at: datetime) -> Path:
    """Write a training set and return its manifest."""
    at = times(first, TRAINED_DAYS)
    columns = {"item": pa.array([f"i{i % 50}" for i in range(len(at))])}
    columns["event_timestamp"] = pa.array(at, TS)
    columns |= features(at, drift_at, 1)
    target = folder / "data" / "training" / name
    target.mkdir(parents=True)
    pq.write_table(pa.table(columns), target / "data.parquet")
    manifest = {
        "id": name,
        "service": "prices",
        "contract": CONTRACT,
        "label": "label",
        "features": ["x", "kind"],
        "keys": ["item"],
        "created_at": START.isoformat(),
        "as_known_at": None,
        "rows": len(at),
        "sha256": "0" * 64,
        "entities_sha256": "0" * 64,
        "sources": [],
        "columns": {n: {"type": str(c.type), "nulls": 0} for n, c in columns.items()},
        "commit": "",
        "libraries": {},
    }
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target / "manifest.json"


def serve(
    folder: Path,
    first: datetime,
    days: int,
    drift_at: datetime,
    *,
    null_x: bool = False,
    version: str = "1",
) -> None:
    """Log `days` whole days of requests with predictions, and their labels an hour later."""
    for number in range(days):
        day = first + number * DAY
        at = times(day, 1)
        known = features(at, drift_at, int(day.timestamp()))
        ids = [f"{t.timestamp():.6f}" for t in at]
        label, x = known["label"].to_numpy(), known["x"].to_numpy()
        drifted = day >= drift_at
        rng = np.random.default_rng(7)
        guess = rng.random(len(at)) if drifted else 1 / (1 + np.exp(-3 * x))
        columns = {
            "request_id": pa.array(ids),
            "request_time": pa.array(at, TS),
            "model": pa.array(["price"] * len(at)),
            "model_version": pa.array([version] * len(at)),
            "contract": pa.array([CONTRACT] * len(at)),
            "item": pa.array([f"i{i % 50}" for i in range(len(at))]),
            "x": pa.nulls(len(at), pa.float64()) if null_x else known["x"],
            "kind": known["kind"],
            "stock__event_timestamp": pa.array([t - timedelta(minutes=5) for t in at], TS),
            "prediction": pa.array(guess),
        }
        write(folder / "data" / "served" / "prices", pa.table(columns), "request_time")
        labels = {
            "request_id": pa.array(ids),
            "label": pa.array(label),
            "known_at": pa.array([t + timedelta(hours=1) for t in at], TS),
        }
        write(folder / "data" / "labels" / "prices", pa.table(labels), "known_at")


def write(folder: Path, table: pa.Table, time_column: str) -> None:
    """Write one file of the served log, by rename."""
    folder.mkdir(parents=True, exist_ok=True)
    at = table[time_column].cast(pa.int64()).to_numpy()
    name = f"{at.min()}-{at.max()}-{at.min():x}.parquet"
    pq.write_table(table, folder / f".{name}", compression="zstd")
    (folder / f".{name}").rename(folder / name)


def configure(
    folder: Path, *, pipeline: int, http: int = 0, grpc: int = 0, extra: str = ""
) -> Path:
    """Write steadfeast.yaml; port 0 takes a free one."""
    path = folder / "steadfeast.yaml"
    path.write_text(CONFIG.format(pipeline=pipeline, http=http, grpc=grpc, extra=extra))
    return path


class Pipeline(pipeline_pb2_grpc.PipelineServiceServicer):
    """A pipeline that keeps its promises: a run is stored before it is answered.

    Args:
        folder: Where its SQLite file is, and where new training sets go.
        end: State that every run ends in.
        drift_at: When the world changed; what a new training set is made of.
    """

    def __init__(
        self, folder: Path, *, drift_at: datetime, end: int = pb.RUN_STATE_PROMOTED
    ) -> None:
        self._folder, self._drift_at, self.end = folder, drift_at, end
        self._db = sqlite3.connect(folder / "runs.db", check_same_thread=False)
        weakref.finalize(self, self._db.close)
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS runs (request_id TEXT PRIMARY KEY, body BLOB, run BLOB)"
        )
        self._lock = Lock()
        self.hold = Event()  # while unset, runs stay RUNNING
        self.hold.set()
        self.calls = 0
        self.refusal: grpc.StatusCode | None = None

    def first(self, manifest: Path) -> None:
        """Have a champion from the beginning."""
        run = pb.Run(
            run_id="first", request_id="first", model="price", state=pb.RUN_STATE_PROMOTED,
            manifest_uri=str(manifest), contract=CONTRACT, model_version="1",
            metrics={"roc_auc": 0.9},
        )  # fmt: skip
        self._keep("first", b"", run)

    def runs(self) -> list[pb.Run]:
        """Return every run that was triggered."""
        with self._lock:
            rows = self._db.execute("SELECT run FROM runs WHERE request_id <> 'first'").fetchall()
        return [pb.Run.FromString(row[0]) for row in rows]

    def bodies(self) -> list[pb.TriggerRetrainRequest]:
        """Return every request that was accepted."""
        with self._lock:
            rows = self._db.execute("SELECT body FROM runs WHERE request_id <> 'first'").fetchall()
        return [pb.TriggerRetrainRequest.FromString(row[0]) for row in rows]

    def _keep(self, request: str, body: bytes, run: pb.Run) -> None:
        with self._lock:
            self._db.execute(
                "INSERT OR REPLACE INTO runs VALUES (?, ?, ?)",
                [request, body, run.SerializeToString()],
            )
            self._db.commit()

    def TriggerRetrain(self, request, context):  # noqa: N802
        self.calls += 1
        if self.refusal is not None:
            context.abort(self.refusal, "as the test wants it")
        body = request.SerializeToString(deterministic=True)
        with self._lock:
            rows = self._db.execute(
                "SELECT body, run FROM runs WHERE request_id = ?", [request.request_id]
            ).fetchall()
        if rows:
            if rows[0][0] != body:
                context.abort(grpc.StatusCode.ALREADY_EXISTS, "another body")
            return pb.TriggerRetrainResponse(run=pb.Run.FromString(rows[0][1]), created=False)
        run = pb.Run(
            run_id=f"run-{request.request_id[:8]}", request_id=request.request_id,
            model=request.model, state=pb.RUN_STATE_QUEUED, as_of=request.as_of,
            cause=request.cause,
        )  # fmt: skip
        self._keep(request.request_id, body, run)
        return pb.TriggerRetrainResponse(run=run, created=True)

    def ListRuns(self, request, context):  # noqa: N802, ARG002
        with self._lock:
            rows = self._db.execute("SELECT run FROM runs").fetchall()
        runs = [pb.Run.FromString(row[0]) for row in rows]
        found = [r for r in runs if r.model == request.model and r.state in request.states]
        return pb.ListRunsResponse(runs=found[::-1][: request.limit])

    def WatchRun(self, request, context):  # noqa: N802
        with self._lock:
            rows = self._db.execute("SELECT request_id, body, run FROM runs").fetchall()
        found = [row for row in rows if pb.Run.FromString(row[2]).run_id == request.run_id]
        if not found:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such run")
        key, body, kept = found[0]
        run = pb.Run.FromString(kept)
        if request.after_sequence < 1:
            run.state = pb.RUN_STATE_RUNNING
            yield pb.WatchRunResponse(sequence=1, run=run)
        while not self.hold.wait(0.05):
            if not context.is_active():
                return
        run.state = self.end
        run.updated_at.GetCurrentTime()
        if self.end == pb.RUN_STATE_PROMOTED:
            version = f"v-{run.run_id}"
            target = self._folder / "data" / "training" / version
            if not target.exists():
                first = run.as_of.ToDatetime(UTC) - TRAINED_DAYS * DAY
                # The world as it is since the change, so that nothing drifts against it.
                train(self._folder, version, first, START - 1000 * DAY)
            run.manifest_uri = str(target / "manifest.json")
            run.contract, run.model_version = CONTRACT, version
            run.metrics["roc_auc"] = 0.9
        else:
            run.reason = "not better"
        self._keep(key, body, run)
        yield pb.WatchRunResponse(sequence=2, run=run)


@dataclass
class PipelineServer:
    """The pipeline on a port of its own; can go away and come back."""

    pipeline: Pipeline
    port: int = 0
    _server: grpc.Server | None = field(default=None, repr=False)

    def start(self) -> PipelineServer:
        self._server = grpc.server(ThreadPoolExecutor(8))
        pipeline_pb2_grpc.add_PipelineServiceServicer_to_server(self.pipeline, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(0).wait()
            self._server = None


class Daemon:
    """A real daemon process over one configuration file, and a client of it.

    Args:
        folder: The world's; `steadfeast.yaml` is written into it.
        pipeline: Port of the pipeline.
        extra: More lines for the monitor `prices`.
    """

    def __init__(self, folder: Path, pipeline: int, extra: str = "") -> None:
        self.http, self.grpc = _free_port(), _free_port()
        self.config = configure(
            folder, pipeline=pipeline, http=self.http, grpc=self.grpc, extra=extra
        )
        self._log = folder / "daemon.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.lives = 0
        self.stub = monitor_pb2_grpc.MonitorServiceStub(_channel(self.grpc))

    def start(self, fault: str = "") -> Daemon:
        """Start the process; `fault` is where it is to die."""
        command = "import sys; from steadfeast.featurestore.cli import main; sys.exit(main())"
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", command, "monitor", "run", "--config", str(self.config)],
                cwd=self.config.parent,
                stdout=log,
                stderr=log,
                env={**os.environ, "STEADFEAST_FAULT": fault},
            )
        self.lives += 1
        return self

    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """Kill it as the kernel would."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def stop(self) -> int:
        """Stop it as an operator would; return its exit code."""
        if self.process is None:
            return 0
        if self.alive():
            self.process.terminate()
        return self.process.wait(30)

    def log(self) -> str:
        """Return what it has written so far."""
        return self._log.read_text() if self._log.exists() else ""

    def status(self) -> monitor_pb2.GetStatusResponse | None:
        """Return its status; None while it does not answer."""
        try:
            return self.stub.GetStatus(monitor_pb2.GetStatusRequest(), timeout=5)
        except grpc.RpcError as error:
            if error.code() not in {
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.DEADLINE_EXCEEDED,
            }:
                raise
            return None

    def unready(self) -> str:
        """Return what it says is wrong; empty when it is ready."""
        try:
            self.get("/readyz")
        except urllib.error.HTTPError as error:
            return error.read().decode()
        return ""

    def idle(self, until: datetime, seconds: float = 60.0) -> monitor_pb2.GetStatusResponse:
        """Wait until everything served before `until` is dealt with."""

        def settled():
            assert self.alive(), self.log()[-3000:]
            return self._settled(until)

        return wait_for(settled, seconds, "idle")

    def _settled(self, until: datetime) -> monitor_pb2.GetStatusResponse | None:
        status = self.status()
        seen = status is not None and status.latest_event.ToDatetime(UTC) >= until - DAY
        return status if seen and status.idle else None

    def survive(self, until: datetime, fault: str = "", seconds: float = 600.0) -> None:
        """Wait as `idle` does, and start the process again, with `fault`, whenever it died."""

        def settled():
            if not self.alive():
                self.start(fault)
            return self._settled(until)

        wait_for(settled, seconds, "idle after crashes")

    def get(self, path: str) -> str:
        """Return what the HTTP port answers."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=5) as answer:
            return answer.read().decode()


def ledger(folder: Path) -> dict[str, Any]:
    """Return everything in the ledger that does not tell of wall clocks, folders or attempts."""
    state = folder / "data" / "monitor"
    queries = {
        "buckets": "SELECT monitor, start_time, row_count, late_rows, sha256, profile FROM buckets",
        "windows": "FROM windows",
        "episodes": "FROM episodes",
        "triggers": "SELECT * EXCLUDE run FROM triggers",
        "outbox": "SELECT request_id, target, body, state FROM outbox",
        "alerts": "FROM alerts",
        "counters": "FROM counters",
        "monitors": "SELECT name, watermark, policy FROM monitors",
    }
    with duckdb.connect(str(state / "monitor.duckdb"), read_only=True) as con:
        return {
            name: sorted(map(str, con.execute(query).fetchall())) for name, query in queries.items()
        }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _channel(port: int) -> grpc.Channel:
    # Reconnects at once: these daemons come and go.
    options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 100)]
    return grpc.insecure_channel(f"127.0.0.1:{port}", options=options)


def wait_for(condition, seconds: float = 30.0, what: str = ""):
    """Return the first true value of `condition()`; fail after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what or condition}")
