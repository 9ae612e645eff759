"""What can be checked of `deploy/` without a container engine."""

from __future__ import annotations

import http.server
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from steadfeast.monitor.config.schema import load

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
SERVICES = COMPOSE["services"]
KUBERNETES = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8")))
POD = KUBERNETES[1]["spec"]["template"]["spec"]


def commands() -> list[list[str]]:
    ours = [one["command"] for one in SERVICES.values() if one["image"].startswith("steadfeast:")]
    return ours + [container["args"] for container in POD["containers"]]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_exists_with_its_options(command):
    steadfeast = Path(sys.executable).with_name("steadfeast")
    ran = subprocess.run(
        [steadfeast, *command, "--help"], capture_output=True, text=True, check=False, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert all(word in ran.stdout for word in command if word.startswith("--"))


def test_every_variable_is_read_and_says_where_http_listens(monkeypatch):
    """The variables set here are in the configuration, and it loads with them."""
    container = {one["name"]: one["value"] for one in POD["containers"][0]["env"]}
    for environment in (SERVICES["monitor"]["environment"], container):
        text = (ROOT / "feature_repo" / "steadfeast.yaml").read_text("utf-8")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
            assert name == "HOME" or f"${{{name}:-" in text
        config, store = load(ROOT / "feature_repo" / "steadfeast.yaml")
        assert config.http == "0.0.0.0:9464"  # inside the container only
        assert store.data == ROOT / "feature_repo" / "data"
        assert config.grpc.startswith("127.0.0.1:")


def test_mounted_and_copied_files_are_there():
    for service in SERVICES.values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith(".") and not source.endswith("/data"):  # the demo makes data
                assert (DEPLOY / source).exists(), source
    text = (DEPLOY / "Containerfile").read_text("utf-8")
    assert "constraints.txt" in text
    for copied in re.findall(r"^COPY (?!--)(\S+)", text, re.MULTILINE):
        assert (ROOT / copied).exists()


def test_ports_agree():
    prometheus = yaml.safe_load((DEPLOY / "prometheus.yml").read_text("utf-8"))
    targets = prometheus["scrape_configs"][0]["static_configs"][0]["targets"]
    assert targets == ["monitor:9464", "monitor:9468", "monitor:9470"]
    assert "monitor" in SERVICES
    listened = {
        container["name"]: {port["containerPort"] for port in container.get("ports", [])}
        for container in POD["containers"]
    }
    assert listened["monitor"] == {9464}
    for container in POD["containers"]:
        told = {int(word.rpartition(":")[2]) for word in container["args"] if ":" in word}
        assert told == listened[container["name"]] - {9464}
    named = {port["name"] for one in POD["containers"] for port in one.get("ports", [])}
    assert {port["targetPort"] for port in KUBERNETES[0]["spec"]["ports"]} == named
    published = {int(port.rpartition(":")[2]) for port in SERVICES["monitor"]["ports"]}
    assert published == set().union(*listened.values())
    assert all(
        port.startswith("127.0.0.1:") for s in SERVICES.values() for port in s.get("ports", [])
    )


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        pytest.param(
            "promtool",
            ["check", "config", "--syntax-only", "prometheus.yml"],
            marks=pytest.mark.service("promtool"),
        ),
        pytest.param(
            "amtool", ["check-config", "alertmanager.yml"], marks=pytest.mark.service("amtool")
        ),
    ],
)
def test_the_real_programs_accept_their_configuration(
    program, arguments, service_binary: Callable[[str], Path]
):
    ran = subprocess.run(
        [service_binary(program), *arguments],
        cwd=DEPLOY,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_a_build_reads_code_only():
    """What is not named cannot reach a layer: no definitions, data, logs or secrets."""
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    named = {line[1:] for line in rules if line.startswith("!")}
    assert all((ROOT / name).exists() for name in named)
    parts = {link.name for link in (ROOT / "src/steadfeast").iterdir() if link.is_symlink()}
    assert parts <= named  # or the installed package lacks one
    assert not named & {"feature_repo", "tests", "demo", "deploy", ".git", ".venv"}


def test_roles_without_models_use_the_small_image():
    wanted = {"monitor": "-slim", "features": "-slim", "pipeline": "", "models": ""}
    tags = {name: f"steadfeast:0.1.0{suffix}" for name, suffix in wanted.items()}
    assert {one["name"]: one["image"] for one in POD["containers"]} == tags
    assert {name: SERVICES[name]["image"] for name in wanted} == tags


@pytest.mark.parametrize("role", ["monitor", "pipeline", "features", "models"])
def test_every_role_has_a_health_check(role):
    assert SERVICES[role]["healthcheck"]["test"][:2] == ["CMD", "healthcheck"]


def test_the_health_check_tells_an_answer_from_none(free_port: Callable[[], int]):
    def check(address: str) -> int:
        command = [sys.executable, DEPLOY / "healthcheck.py", address]
        return subprocess.run(command, check=False, capture_output=True, timeout=60).returncode

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        assert check(address) == 0
        assert check(f"{address}/nothing-here") == 1
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert check(f"http://127.0.0.1:{free_port()}") == 1
    assert check(f"grpc://127.0.0.1:{free_port()}") == 1
    assert check("127.0.0.1:9464") == 1
