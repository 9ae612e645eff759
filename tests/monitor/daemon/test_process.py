"""The daemon as a real process: what only a process can show."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from steadfeast.protos.steadfeast.v1 import monitor_pb2
from support import monitor_world as world
from support.daemon_world import NEVER, SERVED
from support.monitor_world import DAY, START, Pipeline, PipelineServer, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator


FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[world.Daemon]:
    """A real process, shared because starting one costs seconds; the last test stops it."""
    folder = tmp_path_factory.mktemp("world")
    manifest = world.train(folder, "first", START, NEVER)
    pipeline = Pipeline(folder, drift_at=NEVER)
    pipeline.first(manifest)
    server = PipelineServer(pipeline).start()
    world.serve(folder, SERVED, 4, NEVER)
    daemon = world.Daemon(folder, server.port).start()
    try:
        daemon.idle(SERVED + 4 * DAY)
        yield daemon
    finally:
        daemon.kill()
        server.stop()


def test_logs_have_ids_and_no_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A whole story in JSON lines: every step names its monitor, episode, request and run."""
    drift_at = SERVED + 2 * DAY
    monkeypatch.setattr(world, "KINDS", [f"ann{n}@shop.example" for n in range(3)])
    manifest = world.train(tmp_path, "first", START, NEVER)
    pipeline = Pipeline(tmp_path, drift_at=drift_at)
    pipeline.first(manifest)
    server = PipelineServer(pipeline).start()
    monkeypatch.setattr(world, "KINDS", [f"bob{n}@shop.example" for n in range(3)])
    world.serve(tmp_path, SERVED, 7, drift_at)
    daemon = world.Daemon(tmp_path, server.port).start()
    try:
        daemon.idle(SERVED + 7 * DAY)
        assert daemon.stop() == 0
    finally:
        daemon.kill()
        server.stop()
    lines = [json.loads(line) for line in daemon.log().splitlines()]
    told: dict[str, list[dict[str, str]]] = {}
    for line in lines:
        assert {"event", "level", "timestamp"} <= set(line)
        told.setdefault(line["event"], []).append(line)
    (run,) = pipeline.runs()
    (body,) = pipeline.bodies()
    fired = next(one for one in told["trigger"] if one["outcome"] == "fired")
    assert (fired["monitor"], fired["request"]) == ("prices", body.request_id)
    assert fired["episodes"] == list(body.cause.episode_ids)
    assert all(one["monitor"] == "prices" for one in told["evaluated"])
    assert told["delivered"][0]["request"] == body.request_id
    assert {one["run"] for one in [*told["delivered"], *told["run"]]} == {run.run_id}
    assert "shop.example" not in daemon.log()


def test_no_larger_request_than_the_limit(running: world.Daemon):
    asked = monitor_pb2.AcknowledgeRequest(episode_id="e", actor="a", comment="x" * 70_000)
    with pytest.raises(grpc.RpcError) as caught:
        running.stub.Acknowledge(asked, timeout=10)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


class TestProcess:
    """What only a process can show."""

    def test_it_answers_over_http(self, running: world.Daemon):
        assert "steadfeast_idle 1.0" in running.get("/metrics")
        assert running.get("/healthz") == "ok\n"
        assert running.get("/readyz") == "ok\n"
        assert "prices" in running.get("/")

    def test_the_second_on_the_same_state_is_told_who_holds_it(self, running: world.Daemon):
        text = running.config.read_text()
        second = world.Daemon(running.config.parent, 1).start()
        assert second.process is not None
        assert running.process is not None
        assert second.process.wait(30) == 2
        assert f"held by another daemon (pid {running.process.pid})" in second.log()
        assert "Traceback" not in second.log()
        running.config.write_text(text)

    def test_sighup_reloads(self, running: world.Daemon):
        assert running.process is not None
        text = running.config.read_text()
        running.config.write_text(text + "    more: nonsense\n")
        running.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "reload_rejected" in running.log(), 10)
        running.config.write_text(text.replace("cooldown: 7d", "cooldown: 9d"))
        running.process.send_signal(signal.SIGHUP)
        wait_for(lambda: '"reloaded"' in running.log(), 10)
        assert running.alive()

    def test_sigterm_drains(self, running: world.Daemon):
        began = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - began < 20
        assert '"stopped"' in running.log()
        assert "Traceback" not in running.log()


def _runs(daemon: world.Daemon) -> float:
    """How often the evaluation has run, as Prometheus would be told."""
    lines = daemon.get("/metrics").splitlines()
    name = 'steadfeast_job_duration_seconds_count{task="evaluate:prices"'
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@pytest.mark.skipif(not FAKETIME, reason="libfaketime is not on this machine")
@pytest.mark.parametrize("step", ["-2h", "+2h"])
def test_jobs_go_on_when_the_wall_clock_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
):
    """Set back by two hours, every job used to wait for two hours, and health said ok."""
    clock = tmp_path / "clock"
    clock.write_text("+0s")
    monkeypatch.setenv("LD_PRELOAD", str(FAKETIME[0]))
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(clock))
    monkeypatch.setenv("FAKETIME_NO_CACHE", "1")
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    monkeypatch.setenv("DONT_FAKE_MONOTONIC", "1")
    manifest = world.train(tmp_path, "first", START, NEVER)
    pipeline = Pipeline(tmp_path, drift_at=NEVER)
    pipeline.first(manifest)
    server = PipelineServer(pipeline).start()
    world.serve(tmp_path, SERVED, 4, NEVER)
    daemon = world.Daemon(tmp_path, server.port).start()
    monkeypatch.delenv("LD_PRELOAD")
    try:
        daemon.idle(SERVED + 4 * DAY)
        before = _runs(daemon)
        clock.write_text(step)
        wait_for(lambda: "clock_stepped" in daemon.log(), 30)
        stepped = _runs(daemon)
        assert before > 0
        wait_for(lambda: _runs(daemon) >= stepped + 5, 60)
        assert "ok" in daemon.get("/healthz")
    finally:
        daemon.kill()
        server.stop()
