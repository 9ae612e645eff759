"""The manners of every command: codes, standard output, help, times, completion; as a process."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from importlib.metadata import version
from pathlib import Path

import pytest

from steadfeast.featurestore.command_line import ExitCode, TimeError, time_of

ROOT = Path(__file__).parents[2]
STEADFEAST = [sys.executable, "-P", "-m", "steadfeast"]


def steadfeast(*words, folder=None, **variables):
    return subprocess.run(
        [*STEADFEAST, *words],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def completed(line, folder=None):
    """What a bash offers after `line`."""
    words = line.split(" ")
    done = steadfeast(
        folder=folder,
        _STEADFEAST_COMPLETE="complete_bash",
        COMP_WORDS=line,
        COMP_CWORD=str(len(words) - 1),
    )
    return done.stdout.split()


def test_the_version_is_that_of_the_package():
    done = steadfeast("--version")
    assert (done.returncode, done.stdout) == (0, f"steadfeast {version('steadfeast')}\n")


def test_help_of_every_command_teaches_by_example_and_shows_flags_as_flags():
    code = (
        "import json, sys, typer.main\n"
        "from steadfeast.featurestore import cli, command_line\n"
        "from typer.testing import CliRunner\n"
        "cli._add_groups()\n"
        "command = typer.main.get_command(cli.app)\n"
        "command_line._show_flags(command)\n"
        "def leaves(one, words):\n"
        "    if not getattr(one, 'commands', None):\n"
        "        yield words\n"
        "    for name, below in getattr(one, 'commands', {}).items():\n"
        "        yield from leaves(below, [*words, name])\n"
        "texts = {}\n"
        "import contextlib, io\n"
        "for words in leaves(command, []):\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as text:\n"
        "        command([*words, '--help'], prog_name='steadfeast', standalone_mode=False)\n"
        "    texts[' '.join(words)] = text.getvalue()\n"
        "print(json.dumps(texts))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    texts = json.loads(done.stdout)
    assert {"init", "backtest", "store apply", "monitor log", "pipeline train"} <= texts.keys()
    for name, text in texts.items():
        assert "<bool>" not in text, name
        assert re.search(rf"Examples?: steadfeast {name}", " ".join(text.split())), name


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2013-03-01", datetime(2013, 3, 1, tzinfo=UTC)),
        ("2013-03-01T06:00", datetime(2013, 3, 1, 6, tzinfo=UTC)),
        ("2013-03-01T06:00:00Z", datetime(2013, 3, 1, 6, tzinfo=UTC)),
        ("2013-03-01T06:00-05:00", datetime(2013, 3, 1, 11, tzinfo=UTC)),
    ],
)
def test_a_time_is_iso_and_utc_without_a_zone(text, time):
    assert time_of(text) == time
    assert time_of(text).utcoffset() == timedelta(0)


def test_now_is_a_time_and_noon_is_none():
    before = datetime.now(timezone.utc)  # noqa: UP017
    assert before <= time_of("now") <= datetime.now(UTC)
    with pytest.raises(TimeError, match="'noon' is not a time; write 2013-03-01"):
        time_of("noon")


def test_the_guide_has_every_exit_code_and_no_other():
    text = (ROOT / "docs" / "guide" / "command-line.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", text, re.MULTILINE)
    assert rows == [(str(int(code)), code.meaning) for code in ExitCode]


def test_no_command_ends_with_a_number_of_its_own():
    """A literal in `typer.Exit(...)` or `sys.exit(...)` would be a code that no table has."""
    files = [*ROOT.glob("*/cli.py"), *ROOT.glob("*/*/cli.py"), *ROOT.glob("monitor/cli/*.py")]
    assert len(files) > 6
    for file in [*files, ROOT / "featurestore" / "command_line.py"]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"typer.Exit", "sys.exit"}:
                numbers = [one for one in ast.walk(node) if isinstance(one, ast.Constant)]
                assert not numbers, f"{file}:{node.lineno}: {ast.unparse(node)}"


def test_nothing_asked_for_and_a_wrong_word_are_2(tmp_path):
    assert steadfeast().returncode == ExitCode.WRONG_INPUT
    assert steadfeast("stroe").returncode == ExitCode.WRONG_INPUT
    assert steadfeast("store", "contract", "x", folder=tmp_path).returncode == ExitCode.WRONG_INPUT


def test_commands_complete_without_a_configuration(tmp_path):
    assert {"store", "monitor", "pipeline"} <= set(completed("steadfeast ", tmp_path))
    assert completed("steadfeast store mat", tmp_path) == ["materialize"]
    assert completed("steadfeast store audit x", tmp_path) == []


def test_names_of_the_configuration_and_of_the_registry_complete(shop):
    (shop.folder / "steadfeast.yaml").write_text(
        "store: {repo: ., data: data}\n"
        "pipeline: {models: {late_flights: {}, sales: {}}}\n"
        "monitor: {monitors: {stores: {}, sales_daily: {}}}\n"
    )
    assert completed("steadfeast pipeline train l", shop.folder) == ["late_flights"]
    assert completed("steadfeast monitor status sales", shop.folder) == ["sales_daily"]
    assert steadfeast("store", "apply", folder=shop.folder).returncode == 0
    assert completed("steadfeast store audit sm", shop.folder) == ["small"]
    assert completed("steadfeast store materialize --view u", shop.folder) == ["users"]


def test_a_warning_of_feast_is_said_once(shop):
    """Feast has it at each reading of the definitions, and `apply` reads them five times."""
    shop.edit("features.py", ", value_type=ValueType.INT64", "")
    done = steadfeast("store", "apply", folder=shop.folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Entity value_type will be mandatory") == 1


INTERRUPTED = """
import os, signal, sys
from steadfeast.featurestore.cli import main

class Interrupting:
    def write(self, text):
        sys.__stdout__.write(text)
        if text.startswith("serving"):
            sys.__stdout__.flush()
            os.kill(os.getpid(), signal.SIGINT)
    def flush(self):
        sys.__stdout__.flush()

sys.stdout = Interrupting()
main()
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_says_on_standard_output_where_it_is_and_ends_with_0_on_ctrl_c(
    shop, workers, free_port
):
    """The soonest that anybody can read the line, and press it."""
    ports = ("--grpc", f"127.0.0.1:{free_port()}", "--http", f"127.0.0.1:{free_port()}")
    done = subprocess.run(
        [sys.executable, "-P", "-c", INTERRUPTED, "store", "serve", *ports, "--workers", workers],
        cwd=shop.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == ExitCode.DONE, done.stderr
    assert done.stdout.startswith("serving gRPC on port ")
