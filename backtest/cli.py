"""`steadfeast backtest`: which policy of retraining would have earned what. Top of `backtest`.

What the command needs is imported inside it: listing the commands must not wait for pandas.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(invoke_without_command=True)

DEFAULT = Path("steadfeast.yaml")


@app.callback()
def backtest(
    policies: Annotated[
        str,
        typer.Option(
            help="With commas: never, daily, weekly, monthly, quarterly, yearly, 14d, a cron line, "
            "or triggered, which is the monitor's own decision."
        ),
    ] = "never,quarterly,monthly,weekly,triggered",
    config: Annotated[
        Path, typer.Option("--config", "-c", help="The configuration file.")
    ] = DEFAULT,
    model: Annotated[str, typer.Option(help="Only this model.")] = "",
    start: Annotated[
        datetime | None,
        typer.Option(
            "--from",
            formats=["%Y-%m-%d"],
            help="When the first model is trained, UTC; without it, after a sixth of the examples.",
        ),
    ] = None,
    end: Annotated[
        datetime | None,
        typer.Option("--to", formats=["%Y-%m-%d"], help="The day after the last one."),
    ] = None,
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
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

    verdicts = compare(
        config,
        [name.strip() for name in policies.split(",") if name.strip()],
        model=model,
        start=None if start is None else start.replace(tzinfo=UTC),
        end=None if end is None else end.replace(tzinfo=UTC),
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
