"""`steadfeast monitor`: run the daemon, and see how it stands. Top of `monitor`.

What is said to a running daemon, and asked of it, is in `remote`, and joined here. What a command
needs is imported inside it: listing the commands must not wait for pandas. All but `run` are
clients of MonitorService: the daemon's file has one writer.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from steadfeast.featurestore.command_line import (
    DEFAULT,
    Config,
    ExitCode,
    Monitor,
    followed,
    monitor_names,
    reserved_stdout,
    time_of,
)
from steadfeast.featurestore.command_line import JsonLines as Json
from steadfeast.featurestore.errors import NotFoundError, UserError
from steadfeast.monitor.cli import calls
from steadfeast.monitor.cli.calls import DEADLINE_SECONDS, Address, CallError, daemon

app = typer.Typer(help="Watch features, and retrain when they drift.", no_args_is_help=True)


class NoReferenceError(UserError):
    """There is no training set to measure limits on.

    Attributes:
        monitor: Whose.
        why: What is missing.
    """

    def __init__(self, monitor: str, why: str) -> None:
        self.monitor, self.why = monitor, why
        super().__init__(
            f"monitor {monitor} has nothing to compare with: {why}; "
            "give --reference, the manifest.json of a training set"
        )


@app.command()
def run(
    config: Config = DEFAULT,
    log: Annotated[
        str, typer.Option(help="`json` or `console`; without it, console on a terminal.")
    ] = "",
) -> None:
    """Run the daemon until SIGTERM or Ctrl-C; SIGHUP reloads the configuration.

    A monitor watches the served log of a `service`, or a `source` in its place: a feature view,
    Parquet or CSV files, a Delta table, a table of a DuckDB file. See docs/guide/tables.md.

    Example: steadfeast monitor run --log console
    """
    if log not in {"", "json", "console"}:
        raise typer.BadParameter("write json or console", param_hint="--log")
    from steadfeast.monitor.daemon import main

    json_logs = log == "json" or (not log and not sys.stderr.isatty())
    raise typer.Exit(main(config, json_logs=json_logs))


@app.command()
def status(
    monitor: Monitor = "",
    config: Config = DEFAULT,
    address: Address = "",
    exit_code: Annotated[
        bool,
        typer.Option("--exit-code", help="Exit with 1 when anything is open, for scripts."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show where every monitor stands, open episodes and the last triggers.

    With --exit-code: 0 when nothing is open; 1 when an episode or a data incident is, or a
    trigger was given up; 2 when the daemon cannot be asked.

    Example: steadfeast monitor status --exit-code
    """
    from rich.console import Console
    from rich.table import Table

    from steadfeast.monitor.cli import output
    from steadfeast.protos.steadfeast.v1 import monitor_pb2

    with daemon(config, address) as stub:
        answer = stub.GetStatus(
            monitor_pb2.GetStatusRequest(monitor=monitor), timeout=DEADLINE_SECONDS
        )
    if as_json:
        typer.echo(output.as_json(answer))
    else:
        console = Console()
        for part in output.status(answer):
            console.print(part, highlight=False, soft_wrap=not isinstance(part, Table))
    if exit_code and output.troubled(answer):
        raise typer.Exit(ExitCode.FAILED)


@app.command()
def watch(
    monitor: Monitor = "",
    config: Config = DEFAULT,
    address: Address = "",
    interval: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Seconds between two looks.")
    ] = 2.0,
    as_json: Json = False,
) -> None:
    """Show the status live until Ctrl-C; into a pipe, or with --json, print each that differs.

    Example: steadfeast monitor watch --interval 10
    """
    from steadfeast.monitor.cli import output
    from steadfeast.protos.steadfeast.v1 import monitor_pb2

    with daemon(config, address) as stub, followed():
        output.watch(
            lambda: stub.GetStatus(
                monitor_pb2.GetStatusRequest(monitor=monitor), timeout=DEADLINE_SECONDS
            ),
            lambda: list(
                stub.ListAlerts(
                    monitor_pb2.ListAlertsRequest(monitor=monitor, limit=5),
                    timeout=DEADLINE_SECONDS,
                ).alerts
            ),
            interval,
            json_lines=as_json,
        )


@app.command()
def report(
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path(
        "report.html"
    ),
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Write the daemon's page as one self-contained HTML file.

    A running daemon is asked for it; without one, it is made from the state folder.

    Example: steadfeast monitor report --out monday.html
    """
    from steadfeast.monitor.web import written

    with reserved_stdout():
        source = written(config, out)
    answer = {"out": str(out), "bytes": out.stat().st_size, "source": source}
    typer.echo(json.dumps(answer) if as_json else f"{out}, from the {source}")


@app.command()
def backtest(
    start: Annotated[
        str,
        typer.Option("--from", help="Start, event time: ISO 8601, UTC if no zone is given."),
    ],
    end: Annotated[str, typer.Option("--to", help="End, written alike; without it, now.")] = "now",
    config: Config = DEFAULT,
    monitor: Annotated[
        str, typer.Option(help="Only this monitor.", autocompletion=monitor_names)
    ] = "",
    reference: Annotated[
        Path | None,
        typer.Option(help="manifest.json of a training set; without it, those of promoted models."),
    ] = None,
    scored: Annotated[
        Path | None, typer.Option(help="With --reference: its rows with the model's predictions.")
    ] = None,
    alone: Annotated[
        bool, typer.Option("--alone", help="Keep the first model, whatever was promoted later.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write one self-contained HTML file here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Replay history under a configuration: which alarms, how late, how far ahead of decay.

    The served log and the labels are read where they are; the daemon, its state and the pipeline
    are left alone, neither need run, and nothing is fired. Change a limit in a copy of the
    configuration, and see what it would have done. Windows in which nothing could be judged are
    counted with the reason.

    Example: steadfeast monitor backtest --from 2013-03-02 --to 2013-12-31 --html backtest.html
    """
    from rich.console import Console

    from steadfeast.monitor.backtest import report
    from steadfeast.monitor.web import Renderer

    first, last = time_of(start), time_of(end)
    if first >= last:
        raise typer.BadParameter("must be after --from", param_hint="--to")
    if scored is not None and reference is None:
        raise typer.BadParameter("goes with --reference", param_hint="--scored")
    pinned = {} if reference is None else {"reference": reference, "scored": scored}
    with reserved_stdout():
        found = report.replayed(config, monitor, pinned, first, last, alone=alone)
    if html is not None:
        text = report.page(found, first, last, datetime.now(UTC), Renderer())
        html.write_text(text, encoding="utf-8")
    if as_json:
        typer.echo(report.as_json(found))
        return
    console = Console()
    for part in report.tables(found):
        console.print(part, highlight=False)
    wanted = "--html FILE draws it." if html is None else f"Drawn in {html}."
    console.print(wanted, highlight=False)


@app.command()
def calibrate(
    monitor: Monitor = "",
    config: Config = DEFAULT,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Manifest of a training set; without it, what the monitor compares with."
        ),
    ] = None,
    address: Address = "",
    as_json: Json = False,
) -> None:
    """Print each feature's limit, and the smallest change that it would see.

    What the two promises buy, before a daemon runs: limits are measured on the buckets of the
    training set, or of the stretch that `reference` names, as the daemon does. Nothing is changed.
    Without --reference a running daemon is asked which training set its champion was trained on.

    Example: steadfeast monitor calibrate --reference data/training/ab12/manifest.json
    """
    from rich.console import Console

    from steadfeast.featurestore.served_log import ServedLog
    from steadfeast.monitor.cli import sensitivity
    from steadfeast.monitor.config import load
    from steadfeast.monitor.evaluation import check
    from steadfeast.monitor.sources import Sources

    section, store = load(config)
    with reserved_stdout():
        views = check(config, section, store)
    sources = Sources(ServedLog(store.data), views)
    for name, one in sorted(section.monitors.items()):
        if monitor not in {"", name}:
            continue
        with reserved_stdout():
            if one.stretch is not None and reference is None:
                found = sensitivity.measured(sources.of(name, one), one, name, quiet=as_json)
            else:
                manifest = reference or one.manifest or _champion(name, config, address)
                found = sensitivity.measured(manifest, one, name, quiet=as_json)
        if as_json:
            for line in found:
                typer.echo(json.dumps({"monitor": name, **asdict(line)}))
        else:
            console = Console()
            console.print(sensitivity.table(found, name, one))
            console.print(sensitivity.advice(found, one), highlight=False)
    if monitor and monitor not in section.monitors:
        raise NotFoundError("monitor", monitor, section.monitors)


def _champion(monitor: str, config: Path, address: str) -> Path:
    """Return the training set that a running daemon compares with."""
    from steadfeast.protos.steadfeast.v1 import monitor_pb2

    try:
        with daemon(config, address) as stub:
            answer = stub.GetStatus(
                monitor_pb2.GetStatusRequest(monitor=monitor), timeout=DEADLINE_SECONDS
            )
    except CallError as error:
        raise NoReferenceError(monitor, f"no daemon answers at {error.address}") from error
    found = [one.reference_uri for one in answer.monitors if one.reference_uri]
    if not found:
        raise NoReferenceError(monitor, "no model was promoted")
    return Path(found[0])


app.add_typer(calls.app)
