"""A new project does what it prints: every command is run as it stands, by a shell."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from steadfeast import Store
from steadfeast.featurestore import cli
from steadfeast.featurestore.errors import UserError
from steadfeast.featurestore.starter import Template, create

ROOT = Path(__file__).parents[3]
# Each takes half a minute of two cores; the kinds of steps are the same in the others.
TEMPLATES = (
    list(Template) if os.environ.get("STEADFEAST_ALL") else [Template.BINARY, Template.TABLE]
)
NOON = datetime(2024, 3, 10, 12, tzinfo=UTC)


def five_ports(free_port):
    """The first of five ports in a row that nobody listens on."""
    while True:
        first = free_port()
        with suppress(OSError, OverflowError), ExitStack() as stack:
            for port in range(first, first + 5):
                probe = stack.enter_context(socket.socket())
                probe.bind(("127.0.0.1", port))
            return first


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_is_printed_next_works_as_printed(template, tmp_path, free_port):
    steadfeast = tmp_path / "bin" / "steadfeast"  # as installed, of this tree
    steadfeast.parent.mkdir()
    steadfeast.write_text(
        f'#!/bin/sh\nexec {sys.executable} -P -m steadfeast.featurestore.cli "$@"\n'
    )
    steadfeast.chmod(0o755)
    path = f"{steadfeast.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200"}
    port = str(five_ports(free_port))
    made = subprocess.run(
        ["steadfeast", "init", "my-shop", "--template", template, "--port", port],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    log = tmp_path / "log"
    with log.open("w") as out:
        shell = subprocess.Popen(
            ["sh", "-e", "-x", "-c", made.stdout],
            cwd=tmp_path,
            env=env,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = shell.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    said = log.read_text()
    assert code == 0, said
    assert re.search(r"\d passed", said)
    assert "Traceback" not in said
    shown = "activity" if template is Template.TABLE else model_of(tmp_path / "my-shop")
    assert shown in said.rpartition("+ steadfeast monitor status")[2]
    if template is Template.TABLE:
        return
    assert "  promoted  version 1  " in said
    answer = json.loads(re.search(r'{"predictions".*}', said)[0])
    assert len(answer["predictions"]) == 2
    assert answer["version"] == "1"


def model_of(project):
    """Name of the model in a project's configuration."""
    return re.search(
        r"^    (\w+):\n      service: \1$", (project / "steadfeast.yaml").read_text(), re.MULTILINE
    )[1]


@pytest.mark.parametrize("template", list(Template))
def test_the_python_of_a_project_is_as_linters_want_it(template, tmp_path):
    create(tmp_path / "shop", template, now=NOON)
    for command in (["check", "--select", "E,F,I,UP,B"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--isolated", "--line-length", "100", "."]
        done = subprocess.run(ruff, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_same_day_gives_the_same_project_and_its_steps_stand_in_its_readme(tmp_path):
    steps = create(tmp_path / "a" / "shop", Template.BINARY, now=NOON)
    create(tmp_path / "b" / "shop", Template.BINARY, now=NOON.replace(hour=23))
    files = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    for path in files:
        again = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == again.read_bytes()
    examples = pq.read_table(tmp_path / "a/shop/data/sources/examples.parquet")
    assert max(examples["known_at"].to_pylist()) <= NOON.replace(hour=0)
    readme = (tmp_path / "a/shop/README.md").read_text()
    assert "\n".join(steps[1:]) in readme


def test_materialize_before_apply_says_what_is_missing(tmp_path):
    create(tmp_path / "shop", Template.TABLE, now=NOON)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "steadfeast.featurestore.cli", "store", "materialize"],
        cwd=tmp_path / "shop",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "no feature view is online here; first: steadfeast store apply" in done.stderr


def test_definitions_are_applied_without_the_libraries_of_tests_and_recipe(tmp_path):
    create(tmp_path / "shop", Template.BINARY, now=NOON)
    for name in ("test_features.py", "train.py"):
        (tmp_path / "shop" / name).write_text("import no_such_library\n")
    with Store.open(tmp_path / "shop" / "steadfeast.yaml") as store:
        store.apply()
        assert store.services() == ["purchase"]


def test_what_is_there_already_stays_as_it_is(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is there already and not empty; give a new folder"):
        create(tmp_path, Template.BINARY)
    with pytest.raises(UserError, match="is there already and not empty"):
        create(tmp_path / "notes.txt", Template.BINARY)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("name", "port", "problem"),
    [
        ("7up", 9464, "starts with a letter"),
        ("shop", 65532, "from 1 to 65531"),
        ("shop", 0, "from 1"),
    ],
)
def test_what_cannot_be_made_is_said_before_anything_is_written(name, port, problem, tmp_path):
    with pytest.raises(UserError, match=problem):
        create(tmp_path / name, Template.TABLE, port=port)
    assert not list(tmp_path.iterdir())


def test_an_unknown_template_is_named_with_those_there_are(tmp_path):
    done = CliRunner().invoke(cli.app, ["init", str(tmp_path / "shop"), "--template", "graph"])
    assert done.exit_code == 2
    assert not list(tmp_path.iterdir())
