"""What the commands of `steadfeast` share: options, times, exit codes, standard output, completion.

Below `cli`; the commands of other packages use it too. Imports neither Feast nor pandas.
"""

from __future__ import annotations

import errno
import os
import select
import sys
import time
import warnings
from contextlib import contextmanager, redirect_stdout, suppress
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from steadfeast.featurestore.config import StoreConfig, load_section, read_mapping
from steadfeast.featurestore.errors import SteadfeastError, UserError
from steadfeast.featurestore.plain_text import escaped

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TextIO

DEFAULT = Path("steadfeast.yaml")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says of a disk that is full, or of a limit on what may be written."""


class ExitCode(IntEnum):
    """Every code that a command ends with; `meaning` is the line in the guide."""

    meaning: str

    DONE = 0, "done; what was checked holds; a command that goes on was ended"
    FAILED = 1, "failed though nothing was wrong with what was asked; or a check found something"
    WRONG_INPUT = 2, "something given is wrong, or a server that was named does not answer"
    REFUSED = 3, "a gate refused the new model"
    INTERRUPTED = 130, "Ctrl-C, in a command that had more to do"

    def __new__(cls, code: int, meaning: str) -> Self:
        """Make a number that has its meaning with it."""
        one = int.__new__(cls, code)
        one._value_ = code
        one.meaning = meaning
        return one


class TimeError(UserError):
    """A time on the command line that cannot be read.

    Attributes:
        text: What was given.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(f"{text!r} is not a time; write 2013-03-01, 2013-03-01T06:00:00Z or now")


class FileError(UserError):
    """A file on the command line that cannot be read.

    Attributes:
        path: The file.
        problem: What is wrong.
    """

    def __init__(self, path: Path, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{path}: {problem}")


def time_of(text: str) -> datetime:
    """Return a time of the command line: ISO 8601, UTC if no zone is given; or now.

    Raises:
        TimeError: It is written in another way.
    """
    if text == "now":
        return datetime.now(UTC)
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise TimeError(text) from error
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)


# Completion


def _config_of(context: typer.Context) -> Path:
    return Path(context.params.get("config") or DEFAULT)


def _names(context: typer.Context, section: str, key: str) -> list[str]:
    """Return the names under a key of the configuration; a file that is wrong has none."""
    with suppress(SteadfeastError):
        found = read_mapping(_config_of(context), "sections").get(section)
        names = found.get(key) if isinstance(found, dict) else None
        return [str(name) for name in names] if isinstance(names, dict) else []
    return []


def _registered(context: typer.Context, kind: str) -> list[str]:
    """Return the names in the registry; a repo that cannot be opened has none."""
    with suppress(SteadfeastError), reserved_stdout():
        section = load_section(_config_of(context), "store", StoreConfig)
        from steadfeast.featurestore.store import Store  # noqa: PLC0415 - takes seconds

        with Store(section) as store:
            if kind == "view":
                return [view.name for view in store.catalog.online_views([])]
            return store.services()
    return []


def service_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the registered feature services that begin so."""
    return [name for name in _registered(ctx, "service") if name.startswith(incomplete)]


def view_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the online feature views that begin so."""
    return [name for name in _registered(ctx, "view") if name.startswith(incomplete)]


def model_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the models of section `pipeline` that begin so."""
    return [name for name in _names(ctx, "pipeline", "models") if name.startswith(incomplete)]


def monitor_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the monitors of section `monitor` that begin so."""
    return [name for name in _names(ctx, "monitor", "monitors") if name.startswith(incomplete)]


# Options

Config = Annotated[Path, typer.Option("--config", "-c", help="The configuration file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
Service = Annotated[
    str, typer.Argument(help="Name of the feature service.", autocompletion=service_names)
]
Views = Annotated[
    list[str] | None,
    typer.Option("--view", help="Only this view; may be repeated.", autocompletion=view_names),
]
Model = Annotated[
    str,
    typer.Argument(help="Name of the model, as under pipeline.models.", autocompletion=model_names),
]
OnlyModel = Annotated[str, typer.Option(help="Only this model.", autocompletion=model_names)]
Monitor = Annotated[str, typer.Argument(help="Only this monitor.", autocompletion=monitor_names)]
Actor = Annotated[str, typer.Option(help="Who says so; without it, the user's login name.")]


# Standard output


@contextmanager
def reserved_stdout() -> Iterator[None]:
    """Send all that is printed or logged meanwhile to standard error, whoever does it.

    Standard output is for the answer alone, so that a program can read it.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def followed() -> Iterator[None]:
    """End well, whatever ends a command that goes on: Ctrl-C, or a reader that went away."""
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        # What is buffered has nobody to read it; at exit Python would try once more.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)


def reader_left() -> bool:
    """Say whether standard output is a pipe whose reader went away."""
    watching = select.poll()
    try:
        watching.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # no file, as in a test
        return False
    return any(event & select.POLLERR for _, event in watching.poll(0))


def pause(seconds: float) -> None:
    """Wait, and no longer than there is a reader.

    Raises:
        BrokenPipeError: The reader of standard output went away.
    """
    until = time.monotonic() + seconds
    while not reader_left():
        left = until - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, _LOOK_SECONDS))
    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


_LOOK_SECONDS = 0.5


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines whose columns are aligned; a short row ends early."""
    plain = [[escaped(cell) for cell in row] for row in rows]
    full = max(map(len, plain), default=0)
    widths = [max(len(row[place]) for row in plain if len(row) == full) for place in range(full)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in plain
    )


# The program


def run(app: typer.Typer) -> None:
    """Run the command line, and end with a code of `ExitCode`; errors are one message on stderr."""
    command = typer.main.get_command(app)
    _show_flags(command)
    with _each_warning_once():
        try:
            command(prog_name="steadfeast")
        except SteadfeastError as error:  # a bug is another kind of error, and keeps its trace
            typer.echo(f"error: {escaped(str(error), lines=True)}", err=True)
            wrong = isinstance(error, UserError)
            sys.exit(ExitCode.WRONG_INPUT if wrong else ExitCode.FAILED)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            where = error.filename or "a temporary file or one of the state folders"
            typer.echo(f"error: cannot write {where}: {error.strerror}; make room first", err=True)
            sys.exit(ExitCode.FAILED)


def _show_flags(command: Any) -> None:
    """Let the help of flags show no type: they take no value."""
    with command.make_context("steadfeast", [], resilient_parsing=True) as context:
        for option in command.get_params(context):
            if getattr(option, "is_flag", False) and option.metavar is None:
                option.metavar = ""
    for one in getattr(command, "commands", {}).values():
        _show_flags(one)


@contextmanager
def _each_warning_once() -> Iterator[None]:
    """Print each warning once: Feast warns anew each time that definitions are read.

    Python's own `once` forgets what was said whenever any code changes the filters.
    """
    said: set[tuple[object, ...]] = set()
    show = warnings.showwarning

    def once(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        key = str(message), category, filename
        if key not in said:
            said.add(key)
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = once
    try:
        yield
    finally:
        warnings.showwarning = show
