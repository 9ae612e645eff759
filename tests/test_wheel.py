"""The wheel as its users get it: one name at the top, beside a repo whose files bear ours.

The environment is fresh, and what is installed in it is the wheel; its dependencies are those of
the environment that runs the tests, added to the path behind it.
"""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import time
import urllib.request
import venv
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support import shop_world

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
SECONDS = 600
SHADOWS = {
    "pipeline.py": "NAME = 'of the user'\n",
    "featurestore.py": "NAME = 'of the user'\n",
    "monitor/__init__.py": "NAME = 'of the user'\n",
    "protos/__init__.py": "NAME = 'of the user'\n",
    "__init__.py": "",
    "../__init__.py": "",
}
"""Files of the user's repo: names of our folders, and what makes packages of theirs."""

USES = """
import featurestore, monitor, pipeline, protos
assert {m.NAME for m in (featurestore, monitor, pipeline, protos)} == {"of the user"}
"""
MONITOR = """
monitor:
  state: data/monitor
  http: 127.0.0.1:%d
  grpc: 127.0.0.1:%d
  monitors:
    sales:
      source: {view: sales}
      reference: {from: 2024-01-01, to: 2024-02-01}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from the files that git knows or would add, as a fresh clone has them."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    source = folder / "source"
    for name in filter(None, listed.stdout.split("\0")):
        here, there = ROOT / name, source / name
        there.parent.mkdir(parents=True, exist_ok=True)
        if here.is_symlink():
            there.symlink_to(here.readlink())
        elif here.is_file():
            there.write_bytes(here.read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", str(source)]
    subprocess.run([*command, "--wheel-dir", str(folder)], check=True, timeout=240)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel in an environment of its own; return the folder of its programs."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*install, "--no-deps", str(wheel)], check=True, timeout=240)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder / "bin"


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A user's repo with a model, whose own modules bear the names of our folders."""
    folder = tmp_path / "project" / "repo"
    shop_world.make(folder)
    for name, text in SHADOWS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    for name in ("features.py", "train.py"):
        path = folder / name
        path.write_text(USES + path.read_text())
    return folder


def test_the_wheel_puts_one_name_at_the_top(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"steadfeast"}
    for needed in (
        "steadfeast/py.typed",
        "steadfeast/protos/steadfeast/v1/features.proto",
        "steadfeast/monitor/web/templates/page.html.jinja",
        "steadfeast/monitor/web/static/page.css",
    ):
        assert needed in names


def test_public_names_import_without_feast_until_they_are_asked_for(bin_folder: Path):
    """`import steadfeast` is quick; each public name is there and has a docstring."""
    program = (
        "import sys, steadfeast\n"
        "assert not {'feast', 'pandas', 'duckdb'} & set(sys.modules)\n"
        "for name in steadfeast.__all__:\n"
        "    assert getattr(steadfeast, name).__doc__, name\n"
    )
    subprocess.run([bin_folder / "python", "-P", "-c", program], check=True, timeout=SECONDS)


def test_commands_of_all_packages_come_with_the_wheel(bin_folder: Path):
    for command in ("backtest", "doctor", "model", "monitor", "pipeline", "store"):
        words = [bin_folder / "steadfeast", command, "--help"]
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=SECONDS)
        assert f"Usage: steadfeast {command}" in done.stdout
        assert "needs what is not installed" not in done.stdout


def _ask(
    process: subprocess.Popen[bytes], address: str, body: dict[str, object] | None = None
) -> bytes:
    """Ask until somebody answers, while the process runs that should."""
    request = urllib.request.Request(address)  # noqa: S310 - our own process
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("content-type", "application/json")
    until = time.monotonic() + SECONDS
    while True:
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310
                return answer.read()
        except OSError:
            assert process.poll() is None, "it has ended"
            assert time.monotonic() < until, f"{address} never answered"
            time.sleep(0.1)


@pytest.fixture
def started(repo: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that a test starts; those that still run are killed."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()
    assert repo.is_dir()


@pytest.mark.timeout(1200)  # seven programs, one after the other, on a machine that may be busy
def test_a_repo_with_modules_of_our_names_goes_the_whole_way(
    repo: Path, bin_folder: Path, started: list[subprocess.Popen[bytes]], free_port
):
    """Apply, materialize, train, serve and watch, from the folder of the repo."""
    monitor_port, feature_port = free_port(), free_port()
    config = repo / "steadfeast.yaml"
    config.write_text(config.read_text() + MONITOR % (monitor_port, free_port()))
    environment = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    environment["PATH"] = f"{bin_folder}:{environment['PATH']}"

    def steadfeast(*arguments: str) -> None:
        done = subprocess.run(
            [bin_folder / "steadfeast", *arguments],
            cwd=repo,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        command = [bin_folder / "steadfeast", *arguments]
        process = subprocess.Popen(command, cwd=repo, env=environment)
        started.append(process)
        return process

    steadfeast("store", "apply")
    steadfeast("store", "materialize", "2024-04-09")
    steadfeast("pipeline", "train", shop_world.MODEL, "--as-of", "2024-04-09")
    edge = f"127.0.0.1:{feature_port}"
    serving = start("store", "serve", "--grpc", "127.0.0.1:0", "--http", edge, "--workers", "2")
    body = {"feature_service": "sale", "entities": {"shop": ["s1", "s2"]}}
    answer = json.loads(_ask(serving, f"http://{edge}/get-online-features", body))
    assert answer["metadata"]["feature_names"] == ["shop", "x", "visits", "mood"]
    watching = start("monitor", "run")
    page = _ask(watching, f"http://127.0.0.1:{monitor_port}/metrics").decode()
    assert "steadfeast_build_info" in page
