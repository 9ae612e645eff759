"""`steadfeast backtest`: which policy of retraining would have earned what. Top of `backtest`.

What the command needs is imported inside it: listing the commands must not wait for pandas.
"""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - Typer reads the types of options
from typing import Annotated

import typer

from steadfeast.featurestore.command_line import (
    DEFAULT,
    Config,
    Json,
    OnlyModel,
    reserved_stdout,
    time_of,
)

app = typer.Typer(invoke_without_command=True)


@app.callback()
def backtest(
    policies: Annotated[
        str,
        typer.Option(
            help="With commas: never, daily, weekly, monthly, quarterly, yearly, 14d, a cron line, "
            "or triggered, which is the monitor's own decision."
        ),
    ] = "never,quarterly,monthly,weekly,triggered",
    config: Config = DEFAULT,
    model: OnlyModel = "",
    start: Annotated[
        str,
        typer.Option(
            "--from",
            help="When the first model is trained: ISO 8601, UTC if no zone is given; without it, "
            "after a sixth of the examples.",
        ),
    ] = "",
    end: Annotated[
        str,
        typer.Option("--to", help="End; without it, the day after the last example."),
    ] = "",
    label_delay: Annotated[
        str, typer.Option(help="Take labels to be known so much later than they were: 30d.")
    ] = "",
    kept: Annotated[
        Path | None,
        typer.Option(help="Folder for runs that were done; without it, in the pipeline's state."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write one self-contained HTML file here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Replay policies of retraining: what each would have earned, and for how many runs.

    The pipeline's own code trains, judges and refits on what was known at each moment; the models
    in the registry, the daemon and the pipeline's queue are left alone. What was trained is kept,
    so a backtest that was stopped goes on, and a second one with another policy trains only what is
    new.

    Example: steadfeast backtest --policies never,monthly,weekly,triggered --html policies.html
    """
    from rich.console import Console

    from steadfeast.backtest import report
    from steadfeast.backtest.command import compare
    from steadfeast.featurestore.config import duration

    with reserved_stdout():  # recipes may print
        verdicts = compare(
            config,
            [name.strip() for name in policies.split(",") if name.strip()],
            model=model,
            start=time_of(start) if start else None,
            end=time_of(end) if end else None,
            label_delay=duration(label_delay) if label_delay else None,
            kept=kept,
        )
    if html is not None:
        html.write_text(report.page(verdicts), encoding="utf-8")
    if as_json:
        typer.echo(report.as_json(verdicts))
        return
    console = Console()
    for name, verdict in verdicts.items():
        console.print(report.table(verdict, name))
        console.print(verdict.advice, highlight=False)
    drawn = "--html FILE draws it." if html is None else f"Drawn in {html}."
    console.print(drawn, highlight=False)
