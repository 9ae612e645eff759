"""`steadfeast monitor`: run the daemon, and ask or tell a running one. Top of `monitor`.

What a command needs is imported inside it: listing the commands must not wait for pandas. All
but `run` are clients of MonitorService: the daemon's file has one writer.
"""

from __future__ import annotations

import getpass
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

    from protos.steadfeast.v1 import monitor_pb2
    from protos.steadfeast.v1.monitor_pb2_grpc import MonitorServiceStub

app = typer.Typer(help="Watch features, and retrain when they drift.", no_args_is_help=True)

DEADLINE_SECONDS = 30.0
EVALUATE_SECONDS = 600.0

Config = Annotated[Path, typer.Option("--config", "-c", help="The configuration file.")]
Address = Annotated[
    str, typer.Option(help="host:port of the daemon; without it, what the configuration says.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
Actor = Annotated[str, typer.Option(help="Who says so; without it, the user's login name.")]
Comment = Annotated[str, typer.Option(help="Kept with it.")]
Request = Annotated[str, typer.Argument(help="Request id of the trigger, as `status` prints it.")]
DEFAULT = Path("steadfeast.yaml")


class CallError(UserError):
    """The daemon cannot be reached, or refused.

    Attributes:
        address: Its address.
        code: Name of the gRPC status.
        details: What it said.
    """

    def __init__(self, address: str, code: str, details: str) -> None:
        self.address, self.code, self.details = address, code, details
        super().__init__(f"monitor at {address}: {code}: {details}")


@app.command()
def run(
    config: Config = DEFAULT,
    log: Annotated[
        str, typer.Option(help="`json` or `console`; without it, console on a terminal.")
    ] = "",
) -> None:
    """Run the daemon until SIGTERM or Ctrl-C; SIGHUP reloads the configuration."""
    if log not in {"", "json", "console"}:
        raise typer.BadParameter("write json or console", param_hint="--log")
    from monitor.daemon import main

    json_logs = log == "json" or (not log and not sys.stderr.isatty())
    raise typer.Exit(main(config, json_logs=json_logs))


@app.command()
def status(
    monitor: Annotated[str, typer.Argument(help="Only this monitor.")] = "",
    config: Config = DEFAULT,
    address: Address = "",
    as_json: Json = False,
) -> None:
    """Show where every monitor stands, open episodes and the last triggers."""
    from protos.steadfeast.v1 import monitor_pb2

    with _daemon(config, address) as stub:
        answer = stub.GetStatus(
            monitor_pb2.GetStatusRequest(monitor=monitor), timeout=DEADLINE_SECONDS
        )
    if as_json:
        typer.echo(_json(answer))
        return
    _show_status(answer)


@app.command()
def alerts(
    monitor: Annotated[str, typer.Argument(help="Only this monitor.")] = "",
    config: Config = DEFAULT,
    address: Address = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they come.")] = False,
    after: Annotated[
        int, typer.Option(min=0, help="With --follow: from the alert after this sequence.")
    ] = 0,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    as_json: Json = False,
) -> None:
    """Print alerts, oldest first."""
    from protos.steadfeast.v1 import monitor_pb2

    with _daemon(config, address) as stub:
        if not follow:
            answer = stub.ListAlerts(
                monitor_pb2.ListAlertsRequest(monitor=monitor, limit=limit),
                timeout=DEADLINE_SECONDS,
            )
            for alert in reversed(answer.alerts):
                _show_alert(alert, as_json=as_json)
            return
        for event in stub.WatchAlerts(monitor_pb2.WatchAlertsRequest(after_sequence=after)):
            if event.HasField("alert") and monitor in {"", event.alert.monitor}:
                _show_alert(event.alert, as_json=as_json)
                sys.stdout.flush()


@app.command()
def evaluate(
    monitor: Annotated[str, typer.Argument(help="Only this monitor.")] = "",
    config: Config = DEFAULT,
    address: Address = "",
    as_json: Json = False,
) -> None:
    """Evaluate the closed buckets now instead of at the next tick."""
    from protos.steadfeast.v1 import monitor_pb2

    with _daemon(config, address) as stub:
        answer = stub.Evaluate(
            monitor_pb2.EvaluateRequest(monitor=monitor), timeout=EVALUATE_SECONDS
        )
    typer.echo(_json(answer) if as_json else f"{answer.buckets} buckets evaluated")


@app.command()
def acknowledge(
    episode: Annotated[str, typer.Argument(help="Id of the episode, as `status` prints it.")],
    config: Config = DEFAULT,
    address: Address = "",
    actor: Actor = "",
    comment: Comment = "",
    as_json: Json = False,
) -> None:
    """Say that you have seen an episode."""
    from protos.steadfeast.v1 import monitor_pb2

    request = monitor_pb2.AcknowledgeRequest(
        episode_id=episode, actor=actor or getpass.getuser(), comment=comment
    )
    with _daemon(config, address) as stub:
        answer = stub.Acknowledge(request, timeout=DEADLINE_SECONDS)
    by = f"acknowledged by {answer.episode.acknowledged_by}: {answer.episode.summary}"
    typer.echo(_json(answer) if as_json else by)


@app.command()
def approve(
    request: Request,
    config: Config = DEFAULT,
    address: Address = "",
    actor: Actor = "",
    comment: Comment = "",
    as_json: Json = False,
) -> None:
    """Fire a trigger that waits for a person."""
    _decide(request, config, address, actor, comment, yes=True, as_json=as_json)


@app.command()
def reject(
    request: Request,
    config: Config = DEFAULT,
    address: Address = "",
    actor: Actor = "",
    comment: Comment = "",
    as_json: Json = False,
) -> None:
    """Refuse a trigger that waits for a person; its episode will not fire."""
    _decide(request, config, address, actor, comment, yes=False, as_json=as_json)


def _decide(
    request: str,
    config: Path,
    address: str,
    actor: str,
    comment: str,
    *,
    yes: bool,
    as_json: bool,
) -> None:
    from protos.steadfeast.v1 import monitor_pb2

    message = monitor_pb2.DecideTriggerRequest(
        request_id=request, approve=yes, actor=actor or getpass.getuser(), comment=comment
    )
    with _daemon(config, address) as stub:
        answer = stub.DecideTrigger(message, timeout=DEADLINE_SECONDS)
    typer.echo(_json(answer) if as_json else _trigger_line(answer.trigger))


@contextmanager
def _daemon(config: Path, address: str) -> Iterator[MonitorServiceStub]:
    """Connect to the daemon; a failed call is a CallError."""
    import grpc

    from protos.steadfeast.v1.monitor_pb2_grpc import MonitorServiceStub

    if not address:
        from monitor.config import load

        address = load(config)[0].grpc
    try:
        with grpc.insecure_channel(address) as channel:
            yield MonitorServiceStub(channel)
    except grpc.RpcError as error:
        code, details = error.code().name, error.details()
        raise CallError(address, code, details or "") from error


def _json(message: Message) -> str:
    from google.protobuf.json_format import MessageToDict

    plain = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return json.dumps(plain)


def _time(value: Timestamp) -> str:
    return f"{value.ToDatetime():%Y-%m-%d %H:%M}" if value.seconds or value.nanos else "never"


def _word(enum: Any, value: int) -> str:
    """Return an enum value as one lower-case word: its name without the enum's prefix."""
    prefix = {"Level": "LEVEL_", "TriggerState": "TRIGGER_STATE_", "Severity": "SEVERITY_"}
    name: str = enum.Name(value)
    return name.removeprefix(prefix[enum.DESCRIPTOR.name]).lower()


def _show_status(answer: monitor_pb2.GetStatusResponse) -> None:
    from rich.console import Console
    from rich.table import Table

    from protos.steadfeast.v1 import monitor_pb2

    console = Console()
    for monitor in answer.monitors:
        version = monitor.model_version or "none"
        console.print(
            f"{monitor.monitor}: model {monitor.model} version {version}, "
            f"evaluated until {_time(monitor.watermark)} UTC",
            highlight=False,
        )
        for metric, value in sorted(monitor.performance.items()):
            console.print(f"  live {metric} {value:.3f}", highlight=False)
        if not monitor.verdicts:
            continue
        table = Table("feature", "statistic", "value", "threshold", "level", "reason", box=None)
        for verdict in monitor.verdicts[:10]:
            table.add_row(
                verdict.drift.feature,
                verdict.drift.statistic,
                f"{verdict.drift.value:.3g}",
                f"{verdict.drift.threshold:.3g}",
                _word(monitor_pb2.Level, verdict.level),
                verdict.reason,
            )
        console.print(table)
        if len(monitor.verdicts) > len(table.rows):
            console.print(f"  and {len(monitor.verdicts) - len(table.rows)} more")
    for episode in answer.open_episodes:
        seen = f", seen by {episode.acknowledged_by}" if episode.acknowledged_by else ""
        typer.echo(
            f"open since {_time(episode.opened_at)}{seen}: {episode.summary} "
            f"(episode {episode.episode_id})"
        )
    for trigger in answer.triggers[:10]:
        typer.echo(_trigger_line(trigger))
    if answer.idle:
        typer.echo("idle: everything closed is evaluated, nothing is under way")


def _trigger_line(trigger: monitor_pb2.Trigger) -> str:
    from protos.steadfeast.v1 import monitor_pb2
    from protos.steadfeast.v1.pipeline_pb2 import RunState

    parts = [f"trigger {trigger.request_id}", _word(monitor_pb2.TriggerState, trigger.state)]
    if trigger.reason:
        parts.append(trigger.reason)
    if trigger.HasField("run"):
        state = RunState.Name(trigger.run.state).removeprefix("RUN_STATE_").lower()
        parts.append(f"run {trigger.run.run_id} {state}")
    return f"{_time(trigger.decided_at)} {': '.join(parts)}"


def _show_alert(alert: monitor_pb2.Alert, *, as_json: bool) -> None:
    from protos.steadfeast.v1 import monitor_pb2

    if as_json:
        typer.echo(_json(alert))
        return
    severity = _word(monitor_pb2.Severity, alert.severity)
    typer.echo(f"{alert.sequence} {_time(alert.at)} {severity} {alert.monitor}: {alert.summary}")
