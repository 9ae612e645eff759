"""`steadfeast doctor`: what is missing or risky. Top of `doctor`.

What the command needs is imported inside it: listing the commands must not wait for Feast.
"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from steadfeast.featurestore.command_line import (
    DEFAULT,
    Config,
    ExitCode,
    Json,
    reserved_stdout,
)

app = typer.Typer(invoke_without_command=True)


@app.callback()
def doctor(
    config: Config = DEFAULT,
    accept: Annotated[
        list[str] | None,
        typer.Option(help="Name of a check whose findings are no failure; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what is missing or risky in a Feast repo and its steadfeast.yaml, a line each.

    Looks at definitions, sources, the online store, labels, ports and permissions; changes none
    of them. Exit code 0 when nothing is missing or risky but what is accepted, 1 when something
    is, 2 when the configuration cannot be read. Notes are no failure.

    Example: steadfeast doctor --accept no-ttl --json
    """
    from steadfeast.doctor import CHECKS, Level, examine
    from steadfeast.featurestore.errors import NotFoundError

    accepted = set(accept or ())
    for name in sorted(accepted - CHECKS.keys()):
        raise NotFoundError("check", name, CHECKS)
    with reserved_stdout():
        found = examine(config)
    failing = [one for one in found if one.level is not Level.NOTE and one.check not in accepted]
    if as_json:
        lines = [{**one.as_dict(), "accepted": one.check in accepted} for one in found]
        typer.echo(json.dumps({"ok": not failing, "findings": lines}))
    else:
        for one in found:
            typer.echo(one.line() + (" (accepted)" if one.check in accepted else ""))
        typer.echo(_summary([one.level.value for one in found], len(failing)))
    raise typer.Exit(ExitCode.FAILED if failing else ExitCode.DONE)


def _summary(levels: list[str], failing: int) -> str:
    if not levels:
        return "nothing is missing or risky"
    counts = []
    for name in dict.fromkeys(levels):
        number = levels.count(name)
        counts.append(f"{number} {name if number == 1 or name == 'missing' else name + 's'}")
    return f"{', '.join(counts)}; {failing or 'none'} to act on"
