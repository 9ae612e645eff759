"""What the daemon's benchmarks watch: training sets, a served log with labels, and a pipeline.

Written in the layout that the store writes, with pyarrow alone. Every feature is N(0, 1); after a
drift the first is N(3, 1). Labels follow from the second feature, and the prediction knows it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Self

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from steadfeast.protos.steadfeast.v1 import monitor_pb2, monitor_pb2_grpc, pipeline_pb2_grpc
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

START = datetime(2024, 1, 1, tzinfo=UTC)
CONTRACT = "ab" * 32
TS = pa.timestamp("us", tz="UTC")
SHIFT = 3.0
STARTED_SECONDS = 120.0

CONFIG = """\
store: {{repo: ., data: data}}
monitor:
  state: data/monitor
  http: 127.0.0.1:{http}
  grpc: 127.0.0.1:{grpc}
  clock: watermark
  tick: {tick}
  pipelines: {{main: "127.0.0.1:{pipeline}"}}
  monitors:
    w:
      service: s
      model: m
      pipeline: main
      bucket: {bucket}
      window: {window}
      cooldown: {cooldown}
      budget: {{runs: 1000000, per: 365d}}
      min_rows: 50
      performance: {{min_labels: 50, max_drop: 0.5}}
"""


def columns(
    at: np.ndarray, features: int, rng: np.random.Generator, *, drifted: bool
) -> dict[str, pa.Array]:
    """Return features and label of requests at `at` (microseconds since 1970)."""
    values = rng.normal(size=(features, len(at)))
    values[0] += SHIFT * drifted
    made = {f"f{number}": pa.array(one) for number, one in enumerate(values)}
    made["label"] = pa.array((values[-1] + rng.normal(size=len(at)) > 0).astype(float))
    return made


def micros(first: datetime, length: timedelta, rows: int) -> np.ndarray:
    """Return the request times of `rows` requests, evenly over `length`."""
    begin = int(first.timestamp() * 1e6)
    return begin + np.arange(rows, dtype=np.int64) * (int(length.total_seconds() * 1e6) // rows)


def train(
    folder: Path, name: str, features: int, rows: int, length: timedelta, *, drifted: bool = False
) -> Path:
    """Write a training set that ends where serving begins; return its manifest."""
    at = micros(START - length, length, rows)
    table = {"item": pa.array([f"i{n % 50}" for n in range(rows)])}
    table["event_timestamp"] = pa.array(at, TS)
    table |= columns(at, features, np.random.default_rng(1), drifted=drifted)
    target = folder / "data" / "training" / name
    target.mkdir(parents=True)
    pq.write_table(pa.table(table), target / "data.parquet")
    manifest = {
        "id": name,
        "service": "s",
        "contract": CONTRACT,
        "label": "label",
        "features": [f"f{number}" for number in range(features)],
        "keys": ["item"],
        "created_at": START.isoformat(),
        "as_known_at": None,
        "rows": rows,
        "sha256": "0" * 64,
        "entities_sha256": "0" * 64,
        "sources": [],
        "columns": {n: {"type": str(c.type), "nulls": 0} for n, c in table.items()},
        "commit": "",
        "libraries": {},
    }
    (target / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return target / "manifest.json"


def serve(
    folder: Path,
    first: datetime,
    length: timedelta,
    rows: int,
    features: int,
    *,
    drifted: bool = False,
    version: str = "1",
) -> None:
    """Log `rows` requests with predictions, and their labels."""
    at = micros(first, length, rows)
    known = columns(at, features, np.random.default_rng(int(at[0]) % 2**31), drifted=drifted)
    label = known.pop("label")
    score = 1 / (1 + np.exp(-known[f"f{features - 1}"].to_numpy()))
    ids = pa.array([f"{one:x}" for one in at])
    table = {
        "request_id": ids,
        "request_time": pa.array(at, TS),
        "model": pa.array(["m"] * rows),
        "model_version": pa.array([version] * rows),
        "contract": pa.array([CONTRACT] * rows),
        "item": pa.array([f"i{n % 50}" for n in range(rows)]),
        **known,
        "view__event_timestamp": pa.array(at - 300_000_000, TS),
        "prediction": pa.array(score),
    }
    labels = {"request_id": ids, "label": label, "known_at": pa.array(at, TS)}
    # Labels first: a bucket closes with the first request after it.
    _write(folder / "data" / "labels" / "s", pa.table(labels), at)
    _write(folder / "data" / "served" / "s", pa.table(table), at)


def _write(folder: Path, table: pa.Table, at: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{at.min()}-{at.max()}-{at.min():x}.parquet"
    pq.write_table(table, folder / f".{name}", compression="zstd")
    (folder / f".{name}").rename(folder / name)


class Pipeline(pipeline_pb2_grpc.PipelineServiceServicer):
    """Promotes at once what it is asked for, trained on the world as it is now.

    Args:
        manifests: Of the calm world and of the one that drifted.
    """

    def __init__(self, manifests: tuple[Path, Path]) -> None:
        self._manifests, self.drifted = manifests, False
        self._lock, self.runs = Lock(), [self._run("first", pb.RUN_STATE_PROMOTED, "1")]
        self.heard = Event()
        self._server = grpc.server(ThreadPoolExecutor(8))
        pipeline_pb2_grpc.add_PipelineServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def close(self) -> None:
        """Answer nobody any more."""
        self._server.stop(0).wait()

    @property
    def version(self) -> str:
        """The champion's."""
        with self._lock:
            return self.runs[-1].model_version

    def _run(self, request: str, state: pb.RunState.ValueType, version: str) -> pb.Run:
        return pb.Run(
            run_id=request, request_id=request, model="m", state=state, contract=CONTRACT,
            model_version=version, manifest_uri=str(self._manifests[self.drifted]),
            metrics={"roc_auc": 0.75},
        )  # fmt: skip

    def TriggerRetrain(self, request, context):  # noqa: ANN001, ANN201, ARG002, N802, D102
        self.heard.set()
        run = pb.Run(run_id=request.request_id, request_id=request.request_id, model="m")
        run.state = pb.RUN_STATE_QUEUED
        return pb.TriggerRetrainResponse(run=run, created=True)

    def ListRuns(self, request, context):  # noqa: ANN001, ANN201, ARG002, N802, D102
        with self._lock:
            return pb.ListRunsResponse(runs=self.runs[::-1][: request.limit or 100])

    def WatchRun(self, request, context):  # noqa: ANN001, ANN201, ARG002, N802, D102
        with self._lock:
            made = [run for run in self.runs if run.run_id == request.run_id]
            if not made:
                made = [self._run(request.run_id, pb.RUN_STATE_PROMOTED, str(len(self.runs) + 1))]
                self.runs += made
        yield pb.WatchRunResponse(sequence=1, run=made[0])


class Daemon:
    """A real daemon process over `folder`, and a client of it."""

    def __init__(self, folder: Path, pipeline: int, **settings: str) -> None:
        self.http, self.grpc = _free_port(), _free_port()
        chosen = {"tick": "1s", "bucket": "1d", "window": "7d", "cooldown": "1h"} | settings
        self._folder, path = folder, folder / "steadfeast.yaml"
        text = CONFIG.format(http=self.http, grpc=self.grpc, pipeline=pipeline, **chosen)
        path.write_text(text, encoding="utf-8")
        command = "import sys; from steadfeast.featurestore.cli import main; sys.exit(main())"
        with (folder / "daemon.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", command, "monitor", "run", "--config", str(path)],
                stdout=log,
                stderr=log,
                env={**os.environ, "STEADFEAST_FAULT": ""},
            )
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.grpc}")
        self.stub = monitor_pb2_grpc.MonitorServiceStub(self.channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
        self.process.terminate()
        self.process.wait(60)

    def status(self) -> monitor_pb2.GetStatusResponse:
        """Ask for the status; waits for the port."""
        asked = monitor_pb2.GetStatusRequest()
        return self.stub.GetStatus(asked, timeout=STARTED_SECONDS, wait_for_ready=True)

    def get(self, path: str) -> bytes:
        """Get a page."""
        url = f"http://127.0.0.1:{self.http}{path}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            return bytes(answer.read())

    def log(self) -> str:
        """Return what it has written."""
        return (self._folder / "daemon.log").read_text(encoding="utf-8")

    def figures(self) -> dict[str, int]:
        """Return what the kernel knows of the process: resident bytes, threads, descriptors.

        The ledger's write-ahead log is not counted: it comes and goes with each checkpoint.
        """
        lines = _proc(self.process.pid, "status")
        named = dict(line.split(":", 1) for line in lines if ":" in line)
        return {
            "rss": int(named["VmRSS"].split()[0]) * 1024,
            "threads": int(named["Threads"]),
            "descriptors": sum(not name.endswith(".wal") for name in self._open()),
        }

    def _open(self) -> Iterator[str]:
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                yield str(link.readlink())

    def cpu_seconds(self) -> float:
        """Return the processor time of the process."""
        fields = " ".join(_proc(self.process.pid, "stat")).rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _proc(pid: int, name: str) -> list[str]:
    return Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8").splitlines()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
