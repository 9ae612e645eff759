"""Reference of the command line, from the commands themselves."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

import typer.main

from steadfeast.featurestore import cli, command_line

if TYPE_CHECKING:
    from collections.abc import Iterator


@cache
def program() -> Any:
    """Return `steadfeast` with the groups of all installed packages."""
    cli._add_groups()  # noqa: SLF001 - what `main` does before it runs
    command = typer.main.get_command(cli.app)
    command_line._show_flags(command)  # noqa: SLF001 - the same
    return command


def leaves(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Give every command that does something, with its words after `steadfeast`."""
    below = {n: one for n, one in getattr(command, "commands", {}).items() if not one.hidden}
    if not below or (getattr(command, "invoke_without_command", False) and words):
        yield words, command
    for name, one in below.items():
        yield from leaves(one, (*words, name))


def cell(text: str) -> str:
    """Return text as it stands in a cell of a table."""
    return " ".join(text.split()).replace("|", "&#124;").replace("<", "&lt;")


def plain(text: str) -> str:
    """Return a help text without the markup of its terminal."""
    return re.sub(r"\[/?(?:bold|dim|cyan|yellow|red|green|italic)\]", "", text)


def commands_page() -> str:
    """Return the page of every command: what it does, an example, its arguments and options."""
    parts = [
        "# Commands\n",
        (
            "Made from the commands. `steadfeast COMMAND --help` says the same in a terminal. "
            "Codes, "
            "times, JSON and completion are the same everywhere: "
            "[the command line](../guide/command-line.md).\n"
        ),
    ]
    for words, command in leaves(program()):
        parts.append(_command(words, command))
    return "\n".join(parts)


def exit_codes_page() -> str:
    """Return the page of exit codes."""
    rows = "\n".join(f"| {int(one)} | {cell(one.meaning)} |" for one in command_line.ExitCode)
    return (
        "# Exit codes\n\nWhat every command ends with. Made from `ExitCode`.\n\n"
        f"| code | meaning |\n| --- | --- |\n{rows}\n\n"
        "Which checks end with 1, and what Ctrl-C does: "
        "[the command line](../guide/command-line.md#exit-codes).\n"
    )


def _command(words: tuple[str, ...], command: Any) -> str:
    name = " ".join(("steadfeast", *words))
    said, _, examples = re.sub(r"\s*\f.*", "", command.help or "", flags=re.DOTALL).partition(
        "Example"
    )
    with command.make_context(name, [], resilient_parsing=True) as context:
        usage = " ".join([name, *command.collect_usage_pieces(context)])
        rows = [_row(one, context) for one in command.get_params(context) if not _hidden(one)]
    parts = [f"## {name}\n", plain(said).strip() + "\n", f"```text\n{usage}\n```\n"]
    if examples:
        lines = examples.removeprefix("s").removeprefix(":").strip().splitlines()
        text = "\n".join(line.strip() for line in lines if line.strip())
        parts.append(f"```bash\n{plain(text)}\n```\n")
    if rows:
        parts.append(
            "| argument or option | value | default | meaning |\n| --- | --- | --- | --- |"
        )
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def _hidden(parameter: Any) -> bool:
    return bool(getattr(parameter, "hidden", False)) or parameter.name in {
        "help",
        "install_completion",
        "show_completion",
    }


def _row(parameter: Any, context: Any) -> str:
    positional = parameter.param_type_name == "argument"
    if positional:
        names, value = f"`{parameter.name.upper()}`", _value(parameter, context)
    else:
        flags = [*parameter.opts, *parameter.secondary_opts]
        names = ", ".join(f"`{one}`" for one in flags)
        value = "" if parameter.is_flag else _value(parameter, context)
    default = parameter.default
    default = default() if callable(default) else default
    if parameter.required:
        shown = "required"
    elif default is None or default in ("", (), []) or repr(default).startswith("Sentinel"):
        shown = ""
    elif isinstance(default, bool):
        shown = "on" if default else ""
    else:
        shown = f"`{getattr(default, 'value', default)}`"
    more = ", may be repeated" if getattr(parameter, "multiple", False) else ""
    help_text = plain(getattr(parameter, "help", None) or "")
    return f"| {names} | {value}{more} | {shown} | {cell(help_text)} |"


def _value(parameter: Any, context: Any) -> str:
    shown = parameter.display_type
    text = str(shown(ctx=context))
    return cell(text.strip("<>[]").replace("|", " or "))
