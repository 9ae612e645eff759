"""The daemon dies anywhere, again and again: no trigger is lost, none is repeated.

Real processes: the daemon, killed at its commit points or at any moment, and a gRPC pipeline.
The oracle is a daemon that nobody disturbs: whoever was killed must end with the same ledger.
"""

from __future__ import annotations

import random
import resource
import shutil
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb
from support import monitor_world as world
from support.monitor_world import DAY, START, Daemon, Pipeline, PipelineServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SERVED_FROM = START + 40 * DAY
CALM_DAYS, DRIFT_DAYS = 5, 5
DRIFT_AT = SERVED_FROM + CALM_DAYS * DAY
FIRES_AT = DRIFT_AT + 2 * DAY
"""Until when rows must have come for the first day of drift to close, and to fire."""


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world whose calm days are evaluated, and whose daemon has been stopped in order."""
    folder = tmp_path_factory.mktemp("calm")
    manifest = world.train(folder, "first", START, DRIFT_AT)
    pipeline = Pipeline(folder, drift_at=DRIFT_AT)
    pipeline.first(manifest)
    server = PipelineServer(pipeline).start()
    world.serve(folder, SERVED_FROM, CALM_DAYS, DRIFT_AT)
    daemon = Daemon(folder, server.port).start()
    try:
        daemon.idle(DRIFT_AT)
    finally:
        code = daemon.stop()
        server.stop()
    assert code == 0
    return folder


@pytest.fixture(scope="module")
def undisturbed(calm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The ledger of a daemon that nobody killed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "world"
    return live(calm, folder, lambda daemon, until: daemon.idle(until))[0]


def live(
    calm: Path, folder: Path, wait: Callable[[Daemon, Any], object], fault: str = ""
) -> tuple[dict[str, Any], Pipeline, Daemon]:
    """Serve the days of drift, one at a time, and return what the ledger holds in the end."""
    shutil.copytree(calm, folder, dirs_exist_ok=True)
    pipeline = Pipeline(folder, drift_at=DRIFT_AT)
    server = PipelineServer(pipeline).start()
    daemon = Daemon(folder, server.port).start(fault)
    try:
        for number in range(DRIFT_DAYS):
            day = DRIFT_AT + number * DAY
            world.serve(folder, day, 1, DRIFT_AT)
            wait(daemon, day + DAY)
        if not daemon.alive():
            daemon.start()
            daemon.idle(day + DAY)
        assert daemon.stop() == 0
    finally:
        daemon.kill()
        server.stop()
    return world.ledger(folder), pipeline, daemon


def check(found: dict[str, Any], undisturbed: dict[str, Any], pipeline: Pipeline) -> None:
    for name, rows in undisturbed.items():
        assert found[name] == rows, name
    assert [run.state for run in pipeline.runs()] == [pb.RUN_STATE_PROMOTED]
    assert len({body.request_id for body in pipeline.bodies()}) == 1


def test_the_story_without_crashes(undisturbed: dict[str, Any]) -> None:
    """What the others are compared with is not empty: a trigger, delivered, its run promoted."""
    assert len(undisturbed["buckets"]) == CALM_DAYS + DRIFT_DAYS - 1
    assert len([row for row in undisturbed["outbox"] if "delivered" in row]) == 1
    alerts = "".join(undisturbed["alerts"])
    assert "promoted" in alerts
    assert "retraining fired" in alerts


@pytest.mark.parametrize("fault", ["before_commit:2", "after_commit:1"])
def test_it_dies_around_every_commit(
    calm: Path, undisturbed: dict[str, Any], tmp_path: Path, fault: str
) -> None:
    """Each life gets one commit further than the last, so every commit point is died at."""
    found, pipeline, daemon = live(
        calm, tmp_path / "world", lambda daemon, until: daemon.survive(until, fault), fault
    )
    assert daemon.lives > DRIFT_DAYS
    check(found, undisturbed, pipeline)


@pytest.mark.parametrize("fault", ["before_send", "after_send"])
def test_it_dies_around_the_delivery(
    calm: Path, undisturbed: dict[str, Any], tmp_path: Path, fault: str
) -> None:
    """Sent or not, the pipeline hears of it again until the answer is committed."""
    found, pipeline, daemon = live(
        calm, tmp_path / "world", lambda daemon, until: daemon.survive(until), fault
    )
    assert daemon.lives == 2
    check(found, undisturbed, pipeline)
    if fault == "after_send":
        assert pipeline.calls > 1


def test_it_is_killed_at_any_moment(
    calm: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """SIGKILL from outside, most often soon after a start, when most is going on."""
    moments = random.Random(7)

    def wait(daemon: Daemon, until: Any) -> None:
        for _ in range(2):
            if not daemon.alive():
                daemon.start()
            time.sleep(moments.uniform(0.0, 3.0))
            daemon.kill()
        daemon.survive(until)

    found, pipeline, _ = live(calm, tmp_path / "world", wait)
    check(found, undisturbed, pipeline)


@pytest.mark.parametrize("what", ["snapshots", "ledger"])
def test_no_file_may_grow_any_more(
    calm: Path, undisturbed: dict[str, Any], tmp_path: Path, what: str
) -> None:
    """A limit of the kernel on the live process: snapshots fail, or only the ledger's commits."""

    def wait(daemon: Daemon, until: Any) -> None:
        assert daemon.process is not None
        hard = resource.RLIM_INFINITY
        if until == FIRES_AT:
            said = world.wait_for(daemon.unready, 30, "it says that it cannot write")
            assert "File too large" in said
            assert ("monitor.duckdb" in said) == (what == "ledger")
            assert daemon.status() is not None  # what is committed can be read
            resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
            world.wait_for(lambda: not daemon.unready(), 30, "it goes on")
        daemon.idle(until)
        if until == FIRES_AT - DAY:
            limit = 1_000
            if what == "ledger":
                state = tmp_path / "world" / "data" / "monitor"
                limit = (state / "monitor.duckdb.wal").stat().st_size + 100
                snapshots = (state / "snapshots").rglob("*.parquet")
                assert limit > 1.02 * max(file.stat().st_size for file in snapshots)
            resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (limit, hard))

    found, pipeline, daemon = live(calm, tmp_path / "world", wait)
    assert daemon.lives == 1
    check(found, undisturbed, pipeline)


def test_the_disk_is_full(calm: Path, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """A real file system of 16 MiB under the state folder, full from one window to the next."""
    state = tmp_path / "world" / "data" / "monitor"
    state.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(state)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system")
    filler = state / "filler"

    def wait(daemon: Daemon, until: Any) -> None:
        if until == FIRES_AT:
            assert "No space left" in world.wait_for(daemon.unready, 30, "it says so")
            filler.unlink()
            world.wait_for(lambda: not daemon.unready(), 30, "it goes on")
        daemon.idle(until)
        if until == FIRES_AT - DAY:
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

    try:
        found, pipeline, daemon = live(calm, tmp_path / "world", wait)
    finally:
        subprocess.run(["umount", "--lazy", str(state)], check=False)
    assert daemon.lives == 1
    check(found, undisturbed, pipeline)


def test_the_pipeline_is_away_and_comes_back(
    calm: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """The trigger waits in the outbox, over a restart of the daemon, until somebody answers."""
    servers: list[PipelineServer] = []

    def wait(daemon: Daemon, until: Any) -> None:
        server = servers[0]
        if until == FIRES_AT:
            server.stop()
            world.wait_for(lambda: daemon.alive() and "undelivered" in daemon.log(), 30)
            daemon.kill()
            daemon.start()
            world.wait_for(lambda: daemon.log().count("undelivered") > 2, 30)
            server.start()
        daemon.survive(until)

    with pytest.MonkeyPatch.context() as patch:
        start = PipelineServer.start

        def remember(self: PipelineServer) -> PipelineServer:
            servers.append(self)
            return start(self)

        patch.setattr(PipelineServer, "start", remember)
        found, pipeline, _ = live(calm, tmp_path / "world", wait)
    check(found, undisturbed, pipeline)
