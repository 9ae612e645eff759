"""What a terminal and a script get: live view, exit codes, the report; against real servers."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from steadfeast.monitor.ledger.ledger import Ledger
from steadfeast.monitor.ledger.state import MonitorState, State
from steadfeast.monitor.rpc.service import Monitor, ports

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMAND = [sys.executable, "-c", "from steadfeast.featurestore.cli import main; main()", "monitor"]
CONFIG = """\
store: {{repo: ., data: data}}
monitor:
  state: state
  http: 127.0.0.1:{http}
  monitors: {{flights: {{service: late_arrival, model: late_arrival}}}}
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, timeout=60, check=False
    )


@contextmanager
def service(state: State, folder: Path) -> Iterator[str]:
    """Serve MonitorService over `state`; the ledger only has the alerts."""

    def nothing(*_: object, **__: object) -> None:
        pass

    with Ledger(folder) as ledger:
        ledger.add_alerts(state.alerts)
        monitor = Monitor(ledger, lambda: state, lambda _: 0, nothing, nothing)
        with ports(monitor, "127.0.0.1:0") as server:
            yield f"127.0.0.1:{server.grpc_port}"


@pytest.fixture(scope="module")
def troubled(drifting: State, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with service(drifting, tmp_path_factory.mktemp("troubled")) as address:
        yield address


def test_exit_codes_for_scripts(troubled: str, tmp_path: Path):
    """0 when nothing is open, 1 when something is, 2 when nobody answers."""
    calm = State(monitors={"new": MonitorState("new", "s", "m")})
    with service(calm, tmp_path / "calm") as address:
        assert run("status", "--address", address, "--exit-code").returncode == 0
    assert run("status", "--address", address, "--exit-code").returncode == 2
    assert run("status", "--address", troubled).returncode == 0
    told = run("status", "--address", troubled, "--exit-code")
    assert told.returncode == 1
    assert "data incident since 2013-07-13 00:00: wind_gust" in told.stdout
    assert "retraining is blocked: wind_gust: null burst" in told.stdout
    assert "run run-1 promoted, roc_auc 0.771 against 0.757" in " ".join(told.stdout.split())
    by_hand = "version 1 promoted: by hand, in place of none: run run-0"
    assert by_hand in " ".join(told.stdout.split())


def test_incidents_are_in_the_json(troubled: str):
    answer = json.loads(run("status", "--address", troubled, "--json").stdout)
    flights = next(one for one in answer["monitors"] if one["monitor"] == "flights")
    assert [one["kind"] for one in flights["incidents"]] == ["null_burst"]
    assert flights["incidents"][0]["opened_at"] == "2013-07-13T00:00:00Z"
    assert flights["superseded"] is False


def test_watch_prints_json_once_for_each_change(troubled: str):
    with subprocess.Popen(
        [*COMMAND, "watch", "--address", troubled, "--json", "--interval", "0.1"],
        stdout=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stdout is not None
        first = json.loads(watching.stdout.readline())
        time.sleep(0.5)  # several looks at the same
        watching.send_signal(signal.SIGINT)
        rest = watching.stdout.read()
    assert {one["monitor"] for one in first["monitors"]} == {"flights", "new", "delays"}
    assert rest == ""
    assert watching.returncode == 0


def test_watch_on_a_terminal_shows_and_gives_the_screen_back(troubled: str):
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "60"}
    with subprocess.Popen(
        [*COMMAND, "watch", "--address", troubled],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
    ) as watching:
        os.close(theirs)
        shown = ""
        deadline = time.monotonic() + 30
        while "latest alerts" not in shown and time.monotonic() < deadline:
            shown += os.read(ours, 65536).decode(errors="replace")
        watching.send_signal(signal.SIGINT)
        try:
            while part := os.read(ours, 65536):
                shown += part.decode(errors="replace")
        except OSError:  # the other end is gone
            pass
    os.close(ours)
    for words in ("something is open", "weather__temp", "data until 2013-07-15", "Drift:"):
        assert words in shown
    assert watching.returncode == 0
    assert "\x1b[?1049h" in shown
    assert "\x1b[?1049l" in shown.rpartition("\x1b[?1049h")[2]


def test_the_report_of_a_running_daemon(drifting: State, served, tmp_path: Path):
    with served(drifting) as url:
        config = tmp_path / "steadfeast.yaml"
        config.write_text(CONFIG.format(http=url.rpartition(":")[2]))
        out = tmp_path / "out.html"
        told = run("report", "--config", str(config), "--out", str(out))
        assert (told.returncode, told.stdout) == (0, f"{out}, from the daemon\n")
        assert "weather__temp" in out.read_text("utf-8")


def test_the_report_of_what_a_daemon_left_behind(tmp_path: Path, free_port):
    config = tmp_path / "steadfeast.yaml"
    config.write_text(CONFIG.format(http=free_port()))
    words = ("report", "--config", str(config), "--out", str(tmp_path / "out.html"), "--json")
    nothing = run(*words)
    assert nothing.returncode == 2
    assert "no ledger in" in nothing.stderr
    Ledger(tmp_path / "state").close()
    told = json.loads(run(*words).stdout)
    assert told["source"] == "ledger"
    assert "Nothing to judge yet" in (tmp_path / "out.html").read_text("utf-8")
    assert told["bytes"] == (tmp_path / "out.html").stat().st_size
