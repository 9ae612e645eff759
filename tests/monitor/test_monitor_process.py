"""The daemon as a real process: what only a process can show."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import monitor_world as world
from daemon_world import NEVER, SERVED
from monitor_world import DAY, START, Pipeline, PipelineServer, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator


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
