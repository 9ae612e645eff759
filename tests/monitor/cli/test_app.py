"""`steadfeast monitor`: what a person types, against a real service; and how bad input reads."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from steadfeast.monitor.config.schema import MonitorConfig
from steadfeast.monitor.decisions.model import (
    Alert,
    AlertKind,
    Decision,
    Episode,
    EpisodeKind,
    Member,
    Outcome,
    PolicyState,
    Severity,
    Trigger,
)
from steadfeast.monitor.drift.detector import Level, Verdict
from steadfeast.monitor.ledger.ledger import Ledger, Position
from steadfeast.monitor.profiles.profile import Window
from steadfeast.monitor.rpc.service import Monitor, ports
from support import monitor_world as world
from support.monitor_world import DAY, START

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIG = {"w": MonitorConfig(service="s", model="m", pipeline="p")}
WINDOW = Window(START, START + 3 * DAY, 600)
VERDICT = Verdict("served", "x", "psi", 0.5, 0.1, Level.DRIFT, "moved", WINDOW)


def steadfeast(*words: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        "import sys; from steadfeast.featurestore.cli import main; sys.exit(main())",
        "monitor",
        *words,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with one episode, one trigger that was rejected, and two alerts."""
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger(tmp_path_factory.mktemp("state")))
        episode = Episode(
            "e1", EpisodeKind.DRIFT, WINDOW, WINDOW, (Member(VERDICT, WINDOW.end),), "c" * 64
        )
        alert = Alert(
            AlertKind.EPISODE, Severity.WARNING, "w", WINDOW.end, "x moved", {"e1": "x moved"}
        )
        decision = Decision(
            PolicyState(),
            opened=(episode,),
            triggers=(Trigger("r1", (episode,), Outcome.COOLDOWN, WINDOW.end, "too soon"),),
            alerts=(alert, alert),
        )
        with ledger.transaction():
            ledger.add_decision("w", CONFIG["w"], decision)
            ledger.hold("w", Position(WINDOW.end))
            for entry in (
                (START, "start", "configure", "steadfeast.yaml", "first"),
                (START + DAY, "ann (oncall)", "approve", "r1", "go"),
            ):
                ledger._rows("INSERT INTO audit VALUES (?, ?, ?, ?, ?)", *entry)

        def decide(request, *, yes, actor, comment):
            assert (actor, comment) == ("ann", "go" if yes else "no")
            return ledger.trigger(request)

        def resend(request, *, actor, comment):
            assert (actor, comment) == ("ann", "fixed")
            return ledger.trigger(request)

        monitor = Monitor(ledger, lambda: ledger.state(CONFIG), lambda _: 3, decide, resend)
        server = stack.enter_context(ports(monitor, "127.0.0.1:0"))
        yield f"127.0.0.1:{server.grpc_port}"


def test_status_in_words_and_in_json(address: str):
    said = steadfeast("status", "--address", address).stdout
    assert "w: model m version none, evaluated until 2024-01-04 00:00 UTC" in said
    assert "open since 2024-01-04 00:00: drift: x: psi 0.5 over 0.1 (moved) (episode e1)" in said
    assert "trigger r1: suppressed: too soon" in said
    told = json.loads(steadfeast("status", "--address", address, "--json").stdout)
    assert told["open_episodes"][0]["features"][0]["threshold"] == 0.1


def test_alerts_are_printed_oldest_first(address: str):
    said = steadfeast("alerts", "--address", address).stdout.splitlines()
    assert said == [f"{n} 2024-01-04 00:00 warning w: x moved" for n in (1, 2)]
    (line,) = steadfeast("alerts", "--address", address, "--limit", "1", "--json").stdout.split(
        "\n"
    )[:-1]
    assert json.loads(line)["sequence"] == "2"


def test_alerts_can_be_followed(address: str):
    command = [
        sys.executable,
        "-c",
        "from steadfeast.monitor.cli.app import app; app()",
        "alerts",
        "--follow",
    ]
    command += ["--address", address, "--after", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline().startswith("2 2024-01-04")
        follower.terminate()


def test_people_act(address: str):
    done = steadfeast("acknowledge", "e1", "--address", address, "--actor", "ann")
    assert done.stdout == "acknowledged by ann: drift: x: psi 0.5 over 0.1 (moved)\n"
    done = steadfeast("approve", "r1", "--address", address, "--actor", "ann", "--comment", "go")
    assert "trigger r1: suppressed: too soon" in done.stdout
    line = done.stdout
    done = steadfeast("resend", "r1", "--address", address, "--actor", "ann", "--comment", "fixed")
    assert done.stdout == line
    assert steadfeast("triggers", "w", "--address", address).stdout == line
    assert not steadfeast("triggers", "--address", address, "--state", "dead").stdout
    assert "no such state" in steadfeast("triggers", "--state", "lost").stderr
    assert steadfeast("evaluate", "--address", address).stdout == "3 buckets evaluated\n"


def test_the_audit_log_is_read_from_any_entry_on_and_followed(address: str):
    everything = steadfeast("log", "--address", address).stdout.splitlines()
    assert everything[0].startswith("1 2024-01-01 00:00:00 start configure steadfeast.yaml: first")
    assert "ann (oncall) approve r1: go" in everything[1]
    assert steadfeast("log", "--address", address, "--limit", "1").stdout.startswith(
        f"{len(everything)} "
    )
    told = steadfeast("log", "--address", address, "--after", "1", "--limit", "1", "--json").stdout
    assert json.loads(told)["act"] == "approve"
    assert json.loads(told)["at"] == "2024-01-02T00:00:00Z"
    command = [
        sys.executable,
        "-c",
        "from steadfeast.monitor.cli.app import app; app()",
        "log",
        "--follow",
    ]
    command += ["--address", address, "--after", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline().startswith("2 2024-01-02")
        follower.terminate()


def test_a_refusal_is_one_line_and_exit_code_2(address: str):
    done = steadfeast("acknowledge", "e9", "--address", address, "--actor", "ann")
    assert done.returncode == 2
    assert "NOT_FOUND: no episode 'e9'" in done.stderr
    assert "Traceback" not in done.stderr


def test_nobody_there_is_one_line_and_exit_code_2():
    done = steadfeast("status", "--address", "127.0.0.1:1")
    assert done.returncode == 2
    assert "UNAVAILABLE" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("tick: 100ms", "tack: 100ms", "monitor.tack: unknown key"),
        ("bucket: 1d", "bucket: 1 day", "monitor.monitors.prices.bucket:"),
        ("window: 3d", "window: 36h", "must be a multiple of bucket"),
        ("pipeline: main", "pipeline: other", "'other' is not in pipelines"),
        ("min_rows: 100", "statistic: psy", "no statistic 'psy'; did you mean psi"),
        ("service: prices", "service: [prices]", "monitor.monitors.prices.service:"),
        ("  monitors:", "  moritors:", "monitor.monitors: this field is missing"),
    ],
)
def test_bad_configuration_is_one_message_before_any_port_opens(
    tmp_path: Path, old: str, new: str, said: str
):
    with socket.create_server(("127.0.0.1", 0)) as taken:  # would be another error
        port = taken.getsockname()[1]
        path = world.configure(tmp_path, pipeline=1, http=port, grpc=port)
        path.write_text(path.read_text().replace(old, new, 1))
        done = steadfeast("run", "--config", str(path))
    assert done.returncode == 2
    assert said in done.stderr
    assert str(path) in done.stderr or "statistic" in said
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_missing_file_is_one_message(tmp_path: Path):
    done = steadfeast("run", "--config", str(tmp_path / "none.yaml"))
    assert done.returncode == 2
    assert "none.yaml: cannot be read" in done.stderr


def test_a_taken_port_is_one_message(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        path = world.configure(tmp_path, pipeline=1, http=taken.getsockname()[1])
        done = steadfeast("run", "--config", str(path))
    assert done.returncode == 2
    assert "monitor.http: " in done.stderr
    assert "Traceback" not in done.stderr


def test_help_does_not_wait_for_pandas():
    began = time.monotonic()
    command = (
        "import sys; from steadfeast.monitor.cli.app import app; "
        "app(['--help'], standalone_mode=False)"
    )
    check = "; print([m for m in ('pandas', 'duckdb', 'grpc', 'feast') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", command + check], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert time.monotonic() - began < 10


FOLLOWERS = (
    ["watch"],
    ["watch", "--json"],
    ["alerts", "--follow", "--after", "0"],
    ["log", "--follow", "--after", "0"],
)


@contextmanager
def following(*words: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "steadfeast", "monitor", *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("words", FOLLOWERS, ids=" ".join)
def test_a_command_that_goes_on_ends_well_on_ctrl_c(address: str, words: list[str]):
    with following(*words, "--address", address) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in said
    assert "Aborted" not in said


@pytest.mark.parametrize("words", FOLLOWERS, ids=" ".join)
def test_a_command_that_goes_on_ends_well_once_nobody_reads(address: str, words: list[str]):
    """Though nothing more is to be printed, which is when a write would tell."""
    with following(*words, "--address", address) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=60) == 0
        said = process.stderr.read()
    assert "Traceback" not in said
    assert "BrokenPipe" not in said


def test_watch_into_a_pipe_is_lines_and_waits_for_a_daemon_on_stderr(address: str):
    with following("watch", "--address", address) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert lines[0].startswith("data until")
    assert lines[1].startswith("w: model m version none, evaluated until 2024-01-04")
    assert "\x1b" not in "".join(lines)
    assert said == "printing each status that differs; Ctrl-C ends\n"
    with following("watch", "--json", "--address", "127.0.0.1:1") as process:
        assert process.stderr is not None
        assert "printing" in process.stderr.readline()
        assert process.stderr.readline().startswith("waiting for the daemon: ")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("status", "monitors"),
        ("alerts", "sequence"),
        ("evaluate", "buckets"),
        ("acknowledge e1 --actor ann", "episode"),
        ("approve r1 --actor ann --comment go", "trigger"),
        ("reject r1 --actor ann --comment no", "trigger"),
        ("triggers", "request_id"),
        ("log --after 0", "act"),
        ("resend r1 --actor ann --comment fixed", "trigger"),
    ],
)
def test_json_is_all_that_is_on_standard_output(address: str, words: str, key: str):
    done = steadfeast(*words.split(), "--address", address, "--json")
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert told
    assert all(key in one for one in told)
