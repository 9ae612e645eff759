"""A wrong configuration is one message with file, field and problem, whoever reads the file."""

import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from steadfeast.featurestore.config import StoreConfig, is_loopback, load_section
from steadfeast.featurestore.errors import ConfigError
from steadfeast.monitor.config import schema as monitor_config
from steadfeast.pipeline import config as pipeline_config

FLIGHTS = Path(__file__).resolve().parents[2] / "feature_repo" / "steadfeast.yaml"
STEADFEAST = Path(sys.executable).parent / "steadfeast"

COMMANDS = {
    "store": ["store", "contract", "late_arrival"],
    "monitor": ["monitor", "run"],
    "pipeline": ["pipeline", "serve"],
}
LOADERS = {
    "store": lambda path: load_section(path, "store", StoreConfig),
    "monitor": monitor_config.load,
    "pipeline": pipeline_config.load,
}


def changed(folder, old, new):
    """The flights' configuration with one text replaced."""
    text = FLIGHTS.read_text()
    assert old in text
    path = folder / "steadfeast.yaml"
    path.write_text(text.replace(old, new, 1))
    return path


WRONG = [
    # section, text, its replacement, field, words of the problem
    ("store", "  data: data", "  dta: data", "store.dta", "unknown key"),
    ("store", "  data: data", "", "store.data", "missing"),
    ("store", "store:", "stoer:", "stoer", "unknown section"),
    ("monitor", "cooldown: 28d", "cooldown: soon", "monitor.monitors.late_arrival.cooldown",
     "'soon' is not a duration"),
    ("monitor", "cooldown: 28d", "coldown: 28d", "monitor.monitors.late_arrival.coldown",
     "unknown key"),
    ("monitor", "window: 7d", "window: 30h", "monitor.monitors.late_arrival", "multiple of bucket"),
    ("monitor", "pipeline: training", "pipeline: trainig", "monitor", "'trainig' is not in"),
    ("monitor", "${STEADFEAST_MONITOR_HTTP:-127.0.0.1:9464}", "${NOWHERE_SET}", "monitor.http",
     "NOWHERE_SET is not set"),
    ("monitor", "${STEADFEAST_MONITOR_HTTP:-127.0.0.1:9464}", "[9464]", "monitor.http", "string"),
    ("pipeline", "recipe: train:train", "recipe: train", "pipeline.models.late_arrival.recipe",
     "pattern"),
    ("pipeline", "holdout: 7d", "holdout: {}", "pipeline.models.late_arrival.holdout",
     "not a duration"),
]  # fmt: skip


@pytest.mark.parametrize(("section", "old", "new", "field", "problem"), WRONG)
def test_each_mistake_names_file_field_and_problem(tmp_path, section, old, new, field, problem):
    """One line each: `file: field: problem`."""
    path = changed(tmp_path, old, new)
    with pytest.raises(ConfigError) as caught:
        LOADERS[section](path)
    assert caught.value.path == path
    found = [text for name, text in caught.value.problems if name == field]
    assert found, caught.value.problems
    assert problem in found[0]
    assert all(line.startswith(f"{path}: ") for line in str(caught.value).splitlines())


@pytest.mark.parametrize("section", COMMANDS)
@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda p: p.write_text(FLIGHTS.read_text() + "extra: 1\n"), id="section"),
        pytest.param(lambda path: path.write_text("store: [\n"), id="not YAML"),
        pytest.param(lambda path: path.write_text(""), id="empty"),
        pytest.param(lambda path: path.write_bytes(b"\xff\xfe\x00"), id="not text"),
        pytest.param(lambda path: path.mkdir(), id="a folder"),
        pytest.param(lambda _: None, id="missing"),
    ],
)  # fmt: skip
def test_each_command_says_it_once_and_exits_with_2(tmp_path, section, write):
    """No traceback, and no port was opened: the ports asked for are ours to take afterwards."""
    path = tmp_path / "steadfeast.yaml"
    write(path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        # A port that is in use: opening it before reading the file would be another error.
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [STEADFEAST, *COMMANDS[section], "--config", path],
            env={**os.environ, "STEADFEAST_MONITOR_HTTP": address,
                 "STEADFEAST_MONITOR_GRPC": address, "STEADFEAST_PIPELINE_GRPC": address},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count(str(path)) == 1
    assert done.stdout == ""


def test_durations_and_paths_and_the_environment(tmp_path, monkeypatch):
    """Units are Prometheus's, relative paths start at the file, `${NAME:-default}` is filled in."""
    monkeypatch.setenv("STEADFEAST_MONITOR_GRPC", "127.0.0.1:1234")
    monkeypatch.delenv("STEADFEAST_MONITOR_HTTP", raising=False)
    path = changed(tmp_path, "cooldown: 28d", "cooldown: 1.5h")
    daemon, store = monitor_config.load(path)
    assert daemon.monitors["late_arrival"].cooldown == timedelta(minutes=90)
    assert daemon.tick == timedelta(milliseconds=200)
    assert (daemon.grpc, daemon.http) == ("127.0.0.1:1234", "127.0.0.1:9464")
    assert store.data == tmp_path / "data"


def test_the_flights_configuration_is_right():
    """What the demo runs on loads as it stands."""
    for load in LOADERS.values():
        load(FLIGHTS)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("[::1]", True),
        ("::1", True),
        ("localhost", True),
        ("[::]", False),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
        ("", False),
    ],
)
def test_loopback_is_this_machine_only(host, local):
    """Names other than localhost may lead anywhere, so they are no loopback addresses."""
    assert is_loopback(f"{host}:9465") is local
