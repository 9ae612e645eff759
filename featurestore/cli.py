"""`steadfeast`: the `store` group, and the groups that other packages add. Top of `featurestore`.

What a command needs is imported inside it: Feast takes seconds, and `--help` must not wait for
it. The group `store` is in `store_cli`; what all commands share is in `command_line`.
"""

from __future__ import annotations

import os
from importlib.metadata import entry_points, version
from pathlib import Path  # noqa: TC003 - Typer reads the types of options
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from steadfeast.featurestore import store_cli
from steadfeast.featurestore.command_line import ExitCode, FileError, run

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

app = typer.Typer(
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(store_cli.app, name="store")


@app.callback()
def steadfeast(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """A Feast-backed feature store that keeps training and serving the same.

    Exit codes, times and completion: docs/guide/command-line.md.
    """
    if show_version:
        typer.echo(f"steadfeast {version('steadfeast')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(ExitCode.WRONG_INPUT)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder; its name names the project.")],
    template: Annotated[
        Literal["binary", "regression", "multiclass", "table"],
        typer.Option(help="The task of its model; table watches one without a model."),
    ] = "binary",
    port: Annotated[int, typer.Option(help="First of the five ports of its servers.")] = 9464,
) -> None:
    """Make a project that works: features, sample data, a recipe, tests, a monitor.

    Prints the commands to run next, from apply to a running monitor; saved to a file they are a
    shell script.

    Example: steadfeast init shop --template regression
    """
    from steadfeast.featurestore.starter import Template, create

    typer.echo("\n".join(create(folder, Template(template), port=port)))


@app.command()
def schema(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file to write; without it, stdout.")
    ] = None,
) -> None:
    """Print the JSON Schema of steadfeast.yaml: every key with what it means, type and default.

    Editors complete and check the file by it, where its first line names the schema:
    # yaml-language-server: $schema=steadfeast.schema.json

    Example: steadfeast schema --out steadfeast.schema.json
    """
    from steadfeast.featurestore import config_schema

    if out is None:
        typer.echo(config_schema.text(), nl=False)
        return
    try:
        out.write_text(config_schema.text(), encoding="utf-8")
    except OSError as error:
        raise FileError(out, f"cannot be written: {error.strerror}") from error


def _add_groups() -> None:
    """Add the commands of the other packages; one that lacks its extra says so when called."""
    for entry in entry_points(group="steadfeast.commands"):
        try:
            group = entry.load()
        except ImportError as error:
            group = _missing(entry, error)
        app.add_typer(group, name=entry.name)


def _missing(entry: EntryPoint, error: ImportError) -> typer.Typer:
    needs = f"needs what is not installed ({error.name}): pip install 'steadfeast[{entry.name}]'"
    group = typer.Typer(help=needs, invoke_without_command=True)

    @group.callback()
    def say() -> None:
        typer.echo(f"steadfeast {entry.name} {needs}", err=True)
        raise typer.Exit(ExitCode.WRONG_INPUT)

    return group


def main() -> None:
    """Run the command line; what it writes is its owner's alone, whoever writes it."""
    os.umask(0o077)
    _add_groups()
    run(app)


if __name__ == "__main__":
    main()
