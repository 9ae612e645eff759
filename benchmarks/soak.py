"""The daemon for a while at many times the speed of life: does anything grow?

    python benchmarks/soak.py [--minutes 30] [--speed 100] [--quick]

A real process watches 30 features of 3 requests a second, in buckets of five minutes and windows of
an hour. The world changes every six hours, so episodes open, triggers fire, the pipeline promotes,
references move and episodes close. Meanwhile it is scraped, its page and its status are looked at,
eight readers follow its alerts and come and go, and it is told to reload. After a quarter of the
time as warm-up, the last quarter is compared with the second: the median of resident memory, and
the least of threads and open descriptors. What is open for a moment does not count there, and what
leaks never closes. The gRPC port starts its threads as they are needed and keeps them, so more
readers than ever after come first. `--quick` is a look at whether it works: it is over before the
allocators have settled, so memory may grow by a quarter.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from daemon_world import START, Daemon, Pipeline, serve, train
from measure import table, versions

from steadfeast.protos.steadfeast.v1 import monitor_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

FEATURES, ROWS = 30, 900
BUCKET, WINDOW, CHANGE = timedelta(minutes=5), timedelta(hours=1), timedelta(hours=6)
READERS = 8
GROWTH, QUICK_GROWTH = 1.05, 1.25
"""How much more memory than after the warm-up is still flat: what the allocators shift around."""
MIB = 2**20


class Load:
    """What a daemon hears all day, each at its own pace, until `stop`."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon, self._stop = daemon, threading.Event()
        self.alerts, self.calls, self.errors = 0, 0, list[str]()
        self._threads = [
            threading.Thread(target=self._again, args=work, daemon=True)
            for work in (
                (2.0, daemon.status),
                (5.0, lambda: daemon.get("/metrics")),
                (10.0, lambda: daemon.get("/")),
                (60.0, lambda: daemon.process.send_signal(signal.SIGHUP)),
                *((3.0 + number, self._read) for number in range(READERS)),
            )
        ]
        crowd = [threading.Thread(target=self._read) for _ in range(4 * READERS)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop all of it."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _again(self, seconds: float, work: Callable[[], object]) -> None:
        while not self._stop.wait(seconds):
            try:
                work()
            except (grpc.RpcError, OSError) as error:
                self.errors.append(f"{type(error).__name__}: {error}")
            self.calls += 1

    def _read(self) -> None:
        """Follow the alerts for a moment, from the first one on."""
        asked = monitor_pb2.WatchAlertsRequest()
        asked.heartbeat_interval.FromMilliseconds(500)
        stream = self._daemon.stub.WatchAlerts(asked, timeout=30)
        for event in stream:
            if not event.HasField("alert"):
                break
            self.alerts += 1
        stream.cancel()


def replay(
    folder: Path, daemon: Daemon, pipeline: Pipeline, seconds: float, speed: float
) -> list[dict[str, int]]:
    """Serve at `speed` for `seconds`; return the daemon's figures, one for each bucket."""
    samples: list[dict[str, int]] = []
    at, began = START, time.monotonic()
    while time.monotonic() - began < seconds:
        due = began + (at + BUCKET - START).total_seconds() / speed
        time.sleep(max(0.0, due - time.monotonic()))
        pipeline.drifted = bool((at - START) // CHANGE % 2)
        more = {"drifted": pipeline.drifted, "version": pipeline.version}
        serve(folder, at, BUCKET, ROWS, FEATURES, **more)
        at += BUCKET
        samples.append(daemon.figures())
        if sys.stderr.isatty():
            rss = samples[-1]["rss"] / MIB
            left = seconds - (time.monotonic() - began)
            print(f"\r{left:5.0f} s left, {rss:.0f} MiB ", end="", file=sys.stderr)
    return samples


def settled(daemon: Daemon) -> monitor_pb2.GetStatusResponse:
    """Wait until nothing is left to do."""
    for _ in range(600):
        status = daemon.status()
        if status.idle:
            return status
        time.sleep(0.1)
    raise TimeoutError("not idle within a minute: " + daemon.log()[-2000:])


def compare(samples: list[dict[str, int]]) -> dict[str, tuple[float, float]]:
    """Return each figure after the warm-up and at the end."""
    quarter = len(samples) // 4
    after, end = samples[quarter : 2 * quarter], samples[-quarter:]
    of = {"rss": statistics.median, "threads": min, "descriptors": min}
    return {
        name: (how(one[name] for one in after), how(one[name] for one in end))
        for name, how in of.items()
    }


def soak(folder: Path, seconds: float, speed: float, growth: float) -> bool:
    """Print what came of it; say whether everything stayed flat."""
    manifests = tuple(
        train(folder, name, FEATURES, 24_000, timedelta(hours=24), drifted=drifted)
        for name, drifted in (("calm", False), ("drifted", True))
    )
    pipeline = Pipeline((manifests[0], manifests[1]))
    settings = {"bucket": "5m", "window": "1h", "cooldown": "1h"}
    with Daemon(folder, pipeline.port, **settings) as daemon:
        daemon.status()
        load = Load(daemon)
        samples = replay(folder, daemon, pipeline, seconds, speed)
        load.stop()
        status = settled(daemon)
        cpu = daemon.cpu_seconds()
        watermark = status.monitors[0].watermark.ToDatetime(START.tzinfo)
        behind = START + len(samples) * BUCKET - BUCKET - watermark
        log = daemon.log()
    pipeline.close()
    found = compare(samples)
    factor = {"rss": growth, "threads": 1, "descriptors": 1}
    flat = {name: end <= after * factor[name] for name, (after, end) in found.items()}
    rows = []
    for name, (after, end) in found.items():
        unit = MIB if name == "rss" else 1
        shown = f"{name}, MiB" if name == "rss" else name
        peak = max(one[name] for one in samples) / unit
        cells = (f"{figure:.0f}" for figure in (after / unit, end / unit, peak))
        rows.append([shown, *cells, f"{end / after:.3f}"])
    print(versions(["duckdb", "grpcio", "pyarrow"]))
    print(
        f"\n{len(samples)} buckets of {ROWS} rows x {FEATURES} features in {seconds / 60:.1f} min; "
        f"{len(pipeline.runs) - 1} runs promoted, {load.alerts} alerts read, {load.calls} calls; "
        f"{cpu / len(samples) * 1000:.0f} ms CPU a bucket, all included\n"
    )
    print(table(["", "after the warm-up", "at the end", "most", "ratio"], rows))
    problems = [name for name, ok in flat.items() if not ok]
    problems += [f"{len(load.errors)} calls failed: {load.errors[0]}"] if load.errors else []
    if "Traceback" in log:
        problems.append("a traceback in the log")
        print(log[log.index("Traceback") :][:4000], file=sys.stderr)
    problems += [f"behind by {behind}"] if behind else []
    problems += [] if len(pipeline.runs) > 1 else ["nothing was ever triggered"]
    ratios = ", ".join(f"{name} {end / after:.3f}" for name, (after, end) in found.items())
    wanted = f"rss {growth} at most, threads and descriptors 1"
    print(f"end against warm-up: {ratios}; to reach: {wanted}: {'; '.join(problems) or 'all met'}")
    return not problems


def main() -> int:
    """Soak one daemon; 1 if anything grew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--speed", type=float, default=100)
    parser.add_argument("--quick", action="store_true", help="40 seconds at 1500 times the speed")
    given = parser.parse_args()
    minutes, speed = (2 / 3, 1500) if given.quick else (given.minutes, given.speed)
    growth = QUICK_GROWTH if given.quick else GROWTH
    with tempfile.TemporaryDirectory() as folder:
        return not soak(Path(folder), minutes * 60, speed, growth)


if __name__ == "__main__":
    sys.exit(main())
