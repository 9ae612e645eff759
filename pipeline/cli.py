"""`steadfeast pipeline`: serve, train, list, compare, promote, roll back. Top of `pipeline`.

What a command needs is imported inside it: listing the commands must not wait for pandas.
"""

from __future__ import annotations

import json
import logging
import sys
import uuid
from getpass import getuser
from typing import TYPE_CHECKING, Annotated

import typer

from steadfeast.featurestore.command_line import (
    DEFAULT,
    Actor,
    Config,
    ExitCode,
    Json,
    JsonLines,
    Model,
    OnlyModel,
    aligned,
    reserved_stdout,
    time_of,
)
from steadfeast.featurestore.errors import NotFoundError
from steadfeast.pipeline import report_cli

if TYPE_CHECKING:
    from pathlib import Path

    from steadfeast.pipeline.config import PipelineConfig
    from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb

app = typer.Typer(help="Retrain, validate, register and promote models.", no_args_is_help=True)

app.command()(report_cli.compare)
app.command()(report_cli.card)

Comment = Annotated[str, typer.Option(help="Why; kept with it.")]


@app.command()
def serve(config: Config = DEFAULT) -> None:
    """Serve PipelineService and work on runs until SIGTERM or Ctrl-C.

    Example: steadfeast pipeline serve --config steadfeast.yaml
    """
    from steadfeast.pipeline.server import serve as run

    _log_to_stderr()
    raise typer.Exit(run(config))


@app.command()
def train(
    model: Model,
    as_of: Annotated[
        str,
        typer.Option(
            help="Train on what was known then: ISO 8601, UTC if no zone is given; without it, now."
        ),
    ] = "now",
    config: Config = DEFAULT,
    as_json: Json = False,
) -> None:
    """Retrain MODEL now, by hand, and wait for the end.

    Exit code 0 when promoted, 3 when refused, 1 when failed or cancelled. While a server runs
    on the same state, the server does the work.

    Example: steadfeast pipeline train late_arrival
    """
    from steadfeast.pipeline.queue import RunQueue
    from steadfeast.pipeline.registry import Registry
    from steadfeast.pipeline.server import Worker, check_recipes
    from steadfeast.pipeline.training import Retrain
    from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb

    section = _load(config, model)
    check_recipes(config, section)
    request = pb.TriggerRetrainRequest(
        request_id=str(uuid.uuid4()),
        model=model,
        cause=pb.Cause(kind=pb.CAUSE_KIND_MANUAL, summary="asked for on the command line"),
    )
    request.as_of.FromDatetime(time_of(as_of))
    _log_to_stderr(logging.WARNING)
    with reserved_stdout(), RunQueue(section.state / "runs.db") as queue:  # recipes may print
        registry = Registry.open(section)
        work = Retrain(config, section, queue, registry)
        run, _ = queue.accept(request, asked_by=getuser())
        with Worker(queue, work, section.state) as worker:
            run = worker.follow(run.run_id)
    if not as_json:
        for gate in run.gates:
            typer.echo(f"  {'pass' if gate.passed else 'FAIL'}  {gate.name}: {gate.detail}")
    _print(run, as_json=as_json)
    codes = {pb.RUN_STATE_PROMOTED: ExitCode.DONE, pb.RUN_STATE_REFUSED: ExitCode.REFUSED}
    raise typer.Exit(codes.get(run.state, ExitCode.FAILED))


@app.command()
def runs(
    config: Config = DEFAULT,
    model: OnlyModel = "",
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    as_json: JsonLines = False,
    table: Annotated[
        str, typer.Option(help="A table with these figures, as roc_auc,f1, and the data version.")
    ] = "",
    html: report_cli.Html = None,
) -> None:
    """List runs, last changed first.

    Examples: steadfeast pipeline runs --json

    steadfeast pipeline runs --table roc_auc,f1 --html runs.html
    """
    from steadfeast.pipeline.queue import RunQueue

    section = _load(config)
    with RunQueue(section.state / "runs.db") as queue:
        if table or html is not None:
            _show_table(queue.runs(model, limit=limit), table, html, as_json=as_json)
            return
        for run in queue.runs(model, limit=limit):
            _print(run, as_json=as_json)


@app.command()
def retry(
    run: Annotated[str, typer.Argument(help="A run that failed or was cancelled; see `runs`.")],
    config: Config = DEFAULT,
    actor: Actor = "",
    as_json: Json = False,
) -> None:
    """Ask once more for what RUN was asked for, as a run of its own.

    For runs that were cut off from outside until they were given up, or that failed for a reason
    that is gone. A pipeline that serves takes it up at once; else the next one to start does.

    Example: steadfeast pipeline retry 5f0c6f1b2a0e4a0f9a3f4a6d1c2b3e4f
    """
    from steadfeast.pipeline.queue import RunQueue

    with RunQueue(_load(config).state / "runs.db") as queue:
        _print(queue.retry(run, actor or getuser()), as_json=as_json)


@app.command()
def promote(
    model: Model,
    version: Annotated[str, typer.Argument(help="Version in the registry.")],
    config: Config = DEFAULT,
    actor: Actor = "",
    comment: Comment = "",
    as_json: Json = False,
) -> None:
    """Make VERSION of MODEL the champion.

    Example: steadfeast pipeline promote late_arrival 3 --comment "version 4 is slow"
    """
    from steadfeast.pipeline.queue import RunQueue
    from steadfeast.pipeline.registry import Registry
    from steadfeast.pipeline.training import promotion

    section, by = _load(config, model), promotion.By(actor or getuser(), comment)
    with reserved_stdout(), RunQueue(section.state / "runs.db") as queue:
        done = promotion.by_hand(queue, Registry.open(section), model, version, by)
    _print(done, as_json=as_json)


@app.command()
def rollback(
    model: Model,
    config: Config = DEFAULT,
    actor: Actor = "",
    comment: Comment = "",
    as_json: Json = False,
) -> None:
    """Make the champion before this one the champion of MODEL again.

    Example: steadfeast pipeline rollback late_arrival --comment "complaints since noon"
    """
    from steadfeast.pipeline.queue import RunQueue
    from steadfeast.pipeline.registry import Registry
    from steadfeast.pipeline.training import promotion

    section, by = _load(config, model), promotion.By(actor or getuser(), comment)
    with reserved_stdout(), RunQueue(section.state / "runs.db") as queue:
        done = promotion.rollback(queue, Registry.open(section), model, by)
    _print(done, as_json=as_json)


def _load(path: Path, model: str | None = None) -> PipelineConfig:
    from steadfeast.pipeline.config import load

    section, _ = load(path)
    if model is not None and model not in section.models:
        raise NotFoundError("model", model, section.models)
    return section


def _print(run: pb.Run, *, as_json: bool) -> None:
    from google.protobuf.json_format import MessageToDict

    plain = MessageToDict(run, preserving_proto_field_name=True) if as_json else {}
    typer.echo(json.dumps(plain) if as_json else _line(run))


def _line(run: pb.Run) -> str:
    """Return one run in one line."""
    from steadfeast.featurestore.plain_text import escaped_message
    from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb

    run = escaped_message(run)
    state = pb.RunState.Name(run.state).removeprefix("RUN_STATE_").lower()
    figures = " ".join(f"{name}={value:.4f}" for name, value in sorted(run.metrics.items()))
    parts = [
        run.run_id[:12],
        run.model,
        f"as of {run.as_of.ToDatetime():%Y-%m-%dT%H:%M:%SZ}",
        state,
        f"version {run.model_version}" if run.model_version else "",
        figures,
        f"({run.reason})" if run.reason else "",
        f"asked for by {run.asked_by}" if run.asked_by else "",
    ]
    return "  ".join(filter(None, parts))


def _show_table(runs: list[pb.Run], metrics: str, html: Path | None, *, as_json: bool) -> None:
    """Print runs side by side: aligned for a person, one object a line for a program.

    A page without `metrics` has every figure that there is.
    """
    from steadfeast.pipeline.run_table import run_table

    names = [name.strip() for name in metrics.split(",") if name.strip()]
    if not names:
        names = sorted({name for run in runs for name in run.metrics})
    rows = run_table(runs, names)
    if html is not None:
        from steadfeast.pipeline.reports import runs_page

        report_cli.write_page(html, runs_page(rows))
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row))
        return
    if not rows:
        return
    shown = [[_cell(name, value) for name, value in row.items()] for row in rows]
    typer.echo(aligned([list(rows[0]), *shown]))


def _cell(name: str, value: object) -> str:
    """Return one cell; ids are as long as the list of runs has them."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}"
    return str(value)[:12] if name in {"run", "data", "contract"} else str(value)


def _log_to_stderr(level: int = logging.INFO) -> None:
    logging.basicConfig(
        stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
