"""`steadfeast pipeline compare` and `card`: what is said of versions afterwards. Below `cli`.

What a command needs is imported inside it, as in `cli`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steadfeast.featurestore.command_line import (
    DEFAULT,
    Config,
    ExitCode,
    FileError,
    Json,
    OnlyModel,
    aligned,
    reserved_stdout,
    time_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from steadfeast.pipeline.reports import SideBySide

Html = Annotated[
    Path | None, typer.Option(help="Write a page of one file there as well.", dir_okay=False)
]
_WHICH = "A version's number, champion, challenger, or a run's id (6 digits or more)."


def compare(
    a: Annotated[str, typer.Argument(help=_WHICH)],
    b: Annotated[str, typer.Argument(help="The other one.")],
    config: Config = DEFAULT,
    model: OnlyModel = "",
    on: Annotated[
        str,
        typer.Option(
            help="Compare on this training set, by id or manifest; it must replay. Without it, on "
            "the newest rows whose labels are known."
        ),
    ] = "",
    as_of: Annotated[
        str, typer.Option(help="What was known then: ISO 8601, UTC if no zone is given.")
    ] = "now",
    confidence: Annotated[
        float, typer.Option(min=0.5, max=0.999, help="Of each interval by itself.")
    ] = 0.95,
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Compare two versions on the same rows, and show what differs between them.

    Only rows that neither was fitted on count. Where what serves has seen all of them, the fits
    that were judged are compared, on rows held out from both. Exit code 1 when too few rows are
    new to both; what differs is shown all the same.

    Example: steadfeast pipeline compare 1 2 --html compared.html
    """
    from steadfeast.pipeline.reports import Asked, comparison_page, side_by_side

    asked = Asked(time_of(as_of), on, confidence)
    with reserved_stdout():  # recipes and definitions may print
        found = side_by_side(config, a, b, model, asked)
    if html is not None:
        write_page(html, comparison_page(found))
    typer.echo(json.dumps(found.plain()) if as_json else _lines(found))
    raise typer.Exit(ExitCode.DONE if found.comparison is not None else ExitCode.FAILED)


def card(
    version: Annotated[str, typer.Argument(help=_WHICH)] = "champion",
    config: Config = DEFAULT,
    model: OnlyModel = "",
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Show what is known of VERSION: use, data, features, measures, gates, promotions.

    Measures have their 95 % intervals, on the rows held out from the fit that was judged.

    Example: steadfeast pipeline card champion --html card.html
    """
    from dataclasses import asdict

    from steadfeast.pipeline.reports import card as card_of
    from steadfeast.pipeline.reports import card_page

    with reserved_stdout():  # recipes and definitions may print
        said = card_of(config, version, model)
    if html is not None:
        write_page(html, card_page(said))
    plain = asdict(said)
    typer.echo(json.dumps(plain) if as_json else "\n".join(_sections(plain)))


def _sections(plain: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a card for a person: each part with its name above it."""
    for part, values in plain.items():
        if not values:
            continue
        yield f"{part}:"
        if isinstance(values, dict):
            rows = [[f"  {name}", _word(value)] for name, value in values.items()]
        elif isinstance(values[0], dict):
            heads = [f"  {name}" if not at else name for at, name in enumerate(values[0])]
            cells = [[_word(value) for value in row.values()] for row in values]
            rows = [heads, *([f"  {first}", *rest] for first, *rest in cells)]
        else:
            rows = [[f"  {value}"] for value in values]
        yield aligned(rows)


def _word(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, float):
        return f"{value:.4f}"
    return "-" if value in {None, ""} else str(value)


def write_page(path: Path, page: str) -> None:
    """Write a page, whole or not at all.

    Raises:
        FileError: It cannot be written.
    """
    from steadfeast.featurestore.tables import whole_file

    try:
        with whole_file(path, private=False) as half:
            half.write_text(page, encoding="utf-8")
    except OSError as error:
        raise FileError(path, f"cannot be written: {error.strerror or error}") from error


def _lines(found: SideBySide) -> str:
    from steadfeast.pipeline.reports import figures, setting

    a, b = found.a.title, found.b.title
    lines = [f"{found.a.model}: {a} and {b}", setting(found)]
    if found.comparison is not None:
        head = ("measure", a, b, "better by", "interval", f"{b} is")
        lines.append(aligned([head, *figures(found.comparison)]))
    for part, changes in found.changes.items():
        lines.append(f"{part}: {'the same' if not changes else ''}".rstrip())
        for change in changes:
            values = f": {change.a or '-'} -> {change.b or '-'}" if change.a or change.b else ""
            lines.append(f"  {change.what}{values}")
    return "\n".join(lines)
