"""The world that `chaos.py` breaks: a project of `steadfeast init`, run by five real processes.

Below `chaos`. A client serves days of requests through the model edge, sends their labels through
the store's edge, and keeps what it was told. The days are the client's: the wall clock's are not
waited for.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from steadfeast.protos.steadfeast.v1 import (
    features_pb2,
    features_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    monitor_pb2,
    monitor_pb2_grpc,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOW = datetime(2024, 3, 10, tzinfo=UTC)
"""The sample data end here, and serving begins."""
DAY = timedelta(days=1)
MODEL, BATCHES, BATCH = "purchase", 4, 50
FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
PATIENCE = 120.0
DISK = 256 * 2**20
"""Bytes of the file system that the data folder is on, where it can have one of its own."""
SETPRIV = shutil.which("setpriv") if os.geteuid() == 0 else None
"""With it the processes lack root's right to pass over the permissions of files."""

CONFIG = """\
store:
  repo: .
  data: data
  log: {{flush_every: 200ms}}
monitor:
  state: data/monitor
  http: 127.0.0.1:{http}
  grpc: 127.0.0.1:{grpc}
  clock: watermark
  tick: 200ms
  retention: 10000d
  pipelines: {{training: "127.0.0.1:{pipeline}"}}
  monitors:
    purchase:
      service: purchase
      model: purchase
      pipeline: training
      bucket: 1d
      window: 2d
      cooldown: 1d
      budget: {{runs: 1000, per: 365d}}
      min_rows: 100
      features: [visits, spend, spend_per_visit]
      episode: {{k: 1, n: 1, close: 1}}
pipeline:
  state: data/pipeline
  grpc: 127.0.0.1:{pipeline}
  models:
    purchase:
      service: purchase
      recipe: train:train
      entities: data/sources/examples.parquet
      label: bought
      window: all
      gates: [{{metric: roc_auc, not_worse_by: 0.05}}]
"""
RECIPE = """\
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.impute import SimpleImputer
from steadfeast import Fitted, frame


def train(training):
    model = make_pipeline(SimpleImputer(), LogisticRegression())
    model.fit(frame(training.table, training.features), training.table["bought"].to_numpy())
    return Fitted(model, training.features)
"""


class ChaosError(Exception):
    """Something did not come back in time, or not as it was."""


def wait_for(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Return the first true value of `condition()`.

    Raises:
        ChaosError: There was none in time.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise ChaosError(f"not within {seconds:.0f} s: {what}")


@dataclass
class Part:
    """One process, as a supervisor holds it.

    Attributes:
        name: As the table has it.
        command: What is run.
        folder: Where, and where its log is.
    """

    name: str
    command: list[str]
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """The file that it writes into."""
        return self.folder / f"{self.name.replace(' ', '-')}.log"

    def start(self, **env: str) -> None:
        """Start it; `env` is for this life alone."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                env={**os.environ, **env},
            )

    @property
    def pid(self) -> int:
        """Of the process that was started last; 0 if none was."""
        return 0 if self.process is None else self.process.pid

    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def signal(self, number: int) -> None:
        """Send it a signal."""
        if self.process is not None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """End it as the kernel would."""
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def limit(self, what: int, soft: int) -> None:
        """Set a limit of the kernel on the live process; -1 lifts it."""
        if self.process is not None:
            hard = resource.prlimit(self.process.pid, what)[1]
            resource.prlimit(self.process.pid, what, (hard if soft < 0 else soft, hard))

    def said(self, since: int = 0) -> str:
        """Return what it has written from byte `since` on."""
        return self.log.read_bytes()[since:].decode(errors="replace") if self.log.exists() else ""

    def mark(self) -> int:
        """Return where its log ends now."""
        return self.log.stat().st_size if self.log.exists() else 0


@dataclass
class Told:
    """What a client was told of one batch.

    Attributes:
        ids: Request ids.
        customers: Entity keys.
        at: Request times.
        values: Predictions.
        version: Who said so.
    """

    ids: list[str]
    customers: list[int]
    at: datetime
    values: list[float]
    version: str


class World:
    """A project in `folder`, its processes, and the client's memory; a context manager.

    Args:
        folder: An empty one.
        seed: Of everything that is drawn.
        redis: The server's program; without it the online store is SQLite.
    """

    def __init__(self, folder: Path, seed: int, redis: str | None) -> None:
        self.folder, self.random = folder / "shop", np.random.default_rng(seed)
        self.ports = dict(
            zip(
                ("http", "grpc", "pipeline", "edge_grpc", "edge_http", "store_grpc", "store_http",
                 "redis"),
                free_ports(8), strict=True,
            )
        )  # fmt: skip
        self.day, self.told, self.asked, self.filled = NOW, list[Told](), 0, NOW
        self.unanswered, self.refused = list[str](), ""
        self.labels = dict[str, float]()
        self._make(redis)
        self.steadfeast = [
            sys.executable,
            "-P",
            "-W",
            "ignore",
            "-m",
            "steadfeast.featurestore.cli",
        ]
        edge, store = (
            ["--grpc", f"127.0.0.1:{self.ports[f'{name}_grpc']}",
             "--http", f"127.0.0.1:{self.ports[f'{name}_http']}"]
            for name in ("edge", "store")
        )  # fmt: skip
        commands = {
            "daemon": [*self.steadfeast, "monitor", "run"],
            "pipeline": [*self.steadfeast, "pipeline", "serve"],
            "model edge": [*self.steadfeast, "model", "serve", *edge],
            "store edge": [*self.steadfeast, "store", "serve", *store],
        }  # fmt: skip
        if redis is not None:
            commands["redis"] = [redis, "--port", str(self.ports["redis"]), "--save", "",
                                 "--bind", "127.0.0.1", "--dir", str(self.folder)]  # fmt: skip
        rights = [SETPRIV, "--bounding-set", "-dac_override,-dac_read_search"] if SETPRIV else []
        self.parts = {
            name: Part(name, [*rights, *made], self.folder) for name, made in commands.items()
        }
        self.channels = {
            name: _channel(self.ports[port])
            for name, port in (("model", "edge_grpc"), ("store", "store_grpc"), ("daemon", "grpc"))
        }

    def _make(self, redis: str | None) -> None:
        from steadfeast.featurestore.starter import Template, create

        create(self.folder, Template.BINARY, now=NOW)
        (self.folder / "steadfeast.yaml").write_text(CONFIG.format(**self.ports))
        (self.folder / "train.py").write_text(RECIPE)
        features = self.folder / "features.py"
        features.write_text(features.read_text().replace("timedelta(days=3)", "timedelta(days=0)"))
        if redis is not None:
            file = self.folder / "feature_store.yaml"
            text = file.read_text().replace("SQLiteOnlineStore", "RedisOnlineStore")
            url = f"url: redis://127.0.0.1:{self.ports['redis']}/0"
            file.write_text(text.replace("path: data/online.db", url))

    def __enter__(self) -> Self:
        self._own_disk()
        try:
            if "redis" in self.parts:
                self.parts["redis"].start()
            self.run("store", "apply", "--yes")
            self.run("store", "materialize", NOW.isoformat())
            self.run("pipeline", "train", MODEL, "--as-of", NOW.isoformat())
            for name in ("pipeline", "model edge", "store edge", "daemon"):
                self.parts[name].start()
            self.serve_day()
            _ = self.keen  # read before anything is damaged
        except BaseException:
            self.__exit__()
            raise
        return self

    def _own_disk(self) -> None:
        """Put the data folder on a small file system of its own, where we may mount one."""
        data, aside = self.folder / "data", self.folder / "aside"
        if os.geteuid() != 0:
            return
        data.rename(aside)
        data.mkdir()
        mount("-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(data))
        shutil.copytree(aside, data, dirs_exist_ok=True)
        shutil.rmtree(aside)

    def __exit__(self, *_: object) -> None:
        for channel in self.channels.values():
            channel.close()
        for part in reversed(list(self.parts.values())):
            if part.alive():
                part.signal(signal.SIGCONT)
                part.kill()
        if os.geteuid() == 0:
            subprocess.run(["umount", "--lazy", str(self.folder / "data")], check=False)

    def run(self, *words: str) -> str:
        """Run one command of ours to its end; return what it printed.

        Raises:
            ChaosError: It ended with another code than 0.
        """
        done = subprocess.run(
            [*self.steadfeast, *words],
            cwd=self.folder, capture_output=True, text=True, check=False, timeout=PATIENCE,
        )  # fmt: skip
        if done.returncode:
            raise ChaosError(
                f"steadfeast {' '.join(words)}: {done.returncode}\n{done.stderr[-2000:]}"
            )
        return done.stdout

    # -- the client ------------------------------------------------------------------------

    def serve_day(self) -> None:
        """Ask for a day's predictions and send its labels; each request until it is answered."""
        keen = self.keen if self.day.toordinal() % 6 > 2 else np.arange(1, 201)
        for number in range(BATCHES):
            at = self.day + number * DAY / BATCHES + timedelta(hours=1)
            customers = [int(one) for one in self.random.choice(keen, BATCH)]
            self._label(self._predict(customers, at))
        self.day += DAY

    @cached_property
    def keen(self) -> np.ndarray:
        """Customers that visit most, by the sources as they were when first asked."""
        table = pq.read_table(self.folder / "data/sources/activity.parquet").to_pandas()
        newest = table.groupby("customer").last()["visits"]
        return newest.sort_values().index.to_numpy()[-60:]

    def _predict(self, customers: list[int], at: datetime) -> Told:
        sink = pa.BufferOutputStream()
        table = pa.table({"customer": pa.array(customers, pa.int64())})
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        stub = inference_pb2_grpc.InferenceServiceStub(self.channels["model"])
        for _ in _until(PATIENCE):
            # A request that was cut off may be in the log: what is asked again has other ids.
            ids = [f"r{self.asked}-{number}" for number in range(len(customers))]
            self.asked += 1
            request = inference_pb2.PredictRequest(
                model=MODEL, entities=sink.getvalue().to_pybytes(), request_ids=ids
            )
            request.request_time.FromDatetime(at)
            try:
                got = stub.Predict(request, timeout=10)
            except grpc.RpcError as error:
                self.unanswered += ids
                self.refused = error.details() or ""
                time.sleep(0.1)
                continue
            told = Told(ids, customers, at, list(got.values), got.version)
            self.told.append(told)
            return told
        raise ChaosError(f"no prediction within {PATIENCE:.0f} s: {self.refused}")

    def _label(self, told: Told) -> None:
        stub = features_pb2_grpc.FeatureServiceStub(self.channels["store"])
        request = features_pb2.LogLabelsRequest(service=MODEL)
        for name, value in zip(told.ids, told.values, strict=True):
            label = float(self.random.random() < value)
            one = request.labels.add(request_id=name, value=label)
            one.known_at.FromDatetime(told.at + timedelta(hours=2))
            self.labels[name] = label
        for _ in _until(PATIENCE):
            try:
                stub.LogLabels(iter([request]), timeout=10)
            except grpc.RpcError as error:
                self.refused = error.details() or ""
                time.sleep(0.1)
                continue
            return
        raise ChaosError(f"labels not taken within {PATIENCE:.0f} s: {self.refused}")

    def audit(self) -> str:
        """Return what our own audit says, as JSON, whatever its exit code."""
        return subprocess.run(
            [*self.steadfeast, "store", "audit", MODEL, "--json"],
            cwd=self.folder, capture_output=True, text=True, check=False, timeout=PATIENCE,
        ).stdout  # fmt: skip

    # -- what it looks like from outside ----------------------------------------------------

    def get(self, path: str, port: str = "http") -> str:
        """Return what a page says, of the daemon if no other port is named; empty if nothing."""
        try:
            url = f"http://127.0.0.1:{self.ports[port]}{path}"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return error.read().decode()
        except OSError:
            return ""

    def waiting(self) -> bool:
        """Say whether the model edge still has rows in memory that are not in the log."""
        lines = self.get("/metrics", "edge_http").splitlines()
        counts = [line for line in lines if line.startswith("steadfeast_serving_log_waiting_rows{")]
        return not counts or any(float(line.rpartition(" ")[2]) for line in counts)

    def status(self) -> monitor_pb2.GetStatusResponse | None:
        """Return the daemon's; None while it does not answer."""
        stub = monitor_pb2_grpc.MonitorServiceStub(self.channels["daemon"])
        with suppress(grpc.RpcError):
            return stub.GetStatus(monitor_pb2.GetStatusRequest(), timeout=5)
        return None

    def settle(self) -> None:
        """Wait until all that was served is on disk, watched and acted on.

        Raises:
            ChaosError: It is not, in time.
        """
        wait_for(lambda: not self.behind(), "nothing left to do")

    def behind(self) -> str:
        """Return what is still to be done; empty when it is nothing."""
        for part in self.parts.values():
            if not part.alive():
                return f"{part.name} has ended:\n{part.said()[-3000:]}"
        if self.waiting():
            return "the model edge has rows that are not in the log"
        status = self.status()
        if status is None or not status.idle:
            return "the daemon does not answer, or is not idle"
        closed = max(told.at for told in self.told).replace(hour=0) - DAY
        at = [one.watermark.ToDatetime(UTC) for one in status.monitors]
        return "" if all(one >= closed for one in at) else f"the daemon is at {at}, not {closed}"

    def newest(self, pattern: str) -> Path | None:
        """Return the file that was written last of those that match; None if there is none."""
        found = [
            path
            for path in (self.folder / "data").glob(pattern)
            if not path.name.startswith(".") and path.is_file()
        ]
        return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def _until(seconds: float) -> Iterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield


def mount(*words: str) -> None:
    """Mount something.

    Raises:
        ChaosError: It cannot be done.
    """
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ChaosError(f"mount {' '.join(words)}: {done.stderr}")


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _channel(port: int) -> grpc.Channel:
    # Reconnects at once: these servers come and go.
    options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
    return grpc.insecure_channel(f"127.0.0.1:{port}", options=options)


def redis_server() -> str | None:
    """Return the program; None where it is not installed."""
    return shutil.which("redis-server", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin")
