"""Where a token must not be seen: in the arguments of a process, and in what a crash leaves."""

from __future__ import annotations

import resource
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import typer

from steadfeast.featurestore import cli

if TYPE_CHECKING:
    from collections.abc import Iterator

    import click

CRASH = """
import os, resource
from steadfeast.featurestore.security import Security, SecurityConfig
resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
tokens = {"a": {"token": "0123456789abcdef0123", "roles": ["read"]}} if TOKENS else {}
Security(SecurityConfig.model_validate({"tokens": tokens}))
print(resource.getrlimit(resource.RLIMIT_CORE)[0])
"""


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    for word, one in getattr(command, "commands", {}).items():
        yield from commands(one, f"{name} {word}")


def test_no_command_takes_a_secret_as_an_argument():
    cli._add_groups()
    found = list(commands(typer.main.get_command(cli.app), "steadfeast"))
    assert len(found) > 40
    for name, command in found:
        for parameter in command.params:
            words = {parameter.name or "", *parameter.opts}
            secret = [w for w in words if any(s in w for s in ("token", "password", "secret"))]
            assert not secret, f"{name} takes {secret}"


@pytest.mark.parametrize("tokens", [True, False])
def test_a_process_with_tokens_leaves_no_core_dump(tokens: bool):
    done = subprocess.run(
        [sys.executable, "-P", "-c", CRASH.replace("TOKENS", str(tokens))],
        capture_output=True,
        text=True,
        check=True,
    )
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    assert int(done.stdout) == (0 if tokens else hard)
