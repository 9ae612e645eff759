"""What can be checked of `deploy/` without a container engine."""

from __future__ import annotations

import re
import subprocess
import sys
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
    ours = [one["command"] for one in SERVICES.values() if one["image"] == "steadfeast"]
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


def test_no_state_of_the_example_goes_into_an_image():
    """A later layer that removed it would leave it in the image."""
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert {"feature_repo/data", ".git", ".venv"} <= set(ignored)
    assert "rm -rf" not in (DEPLOY / "Containerfile").read_text("utf-8")
