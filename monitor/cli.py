"""`steadfeast monitor`: run the daemon, and ask or tell a running one. Top of `monitor`.

What a command needs is imported inside it: listing the commands must not wait for pandas. All
but `run` are clients of MonitorService: the daemon's file has one writer.
"""

from __future__ import annotations

import getpass
import json
import os
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featurestore.errors import NotFoundError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import grpc

    from protos.steadfeast.v1.monitor_pb2_grpc import MonitorServiceStub

app = typer.Typer(help="Watch features, and retrain when they drift.", no_args_is_help=True)

DEADLINE_SECONDS = 30.0
EVALUATE_SECONDS = 600.0
FOLLOW_SECONDS = 1.0
"""Between two looks at the audit log; people do not do much."""
OPEN = 1
"""Exit code of `status --exit-code` when anything is open; a UserError's is 2."""

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
    """Run the daemon until SIGTERM or Ctrl-C; SIGHUP reloads the configuration."""
    if log not in {"", "json", "console"}:
        raise typer.BadParameter("write json or console", param_hint="--log")
    from monitor.process import main

    json_logs = log == "json" or (not log and not sys.stderr.isatty())
    raise typer.Exit(main(config, json_logs=json_logs))


@app.command()
def status(
    monitor: Annotated[str, typer.Argument(help="Only this monitor.")] = "",
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
    """
    from rich.console import Console
    from rich.table import Table

    from monitor import terminal
    from protos.steadfeast.v1 import monitor_pb2

    with _daemon(config, address) as stub:
        answer = stub.GetStatus(
            monitor_pb2.GetStatusRequest(monitor=monitor), timeout=DEADLINE_SECONDS
        )
    if as_json:
        typer.echo(terminal.as_json(answer))
    else:
        console = Console()
        for part in terminal.status(answer):
            console.print(part, highlight=False, soft_wrap=not isinstance(part, Table))
    if exit_code and terminal.troubled(answer):
        raise typer.Exit(OPEN)


@app.command()
def watch(
    monitor: Annotated[str, typer.Argument(help="Only this monitor.")] = "",
    config: Config = DEFAULT,
    address: Address = "",
    interval: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Seconds between two looks.")
    ] = 2.0,
    as_json: Json = False,
) -> None:
    """Show the status live until Ctrl-C; with --json, print each one that differs."""
    from monitor import terminal
    from protos.steadfeast.v1 import monitor_pb2

    with _daemon(config, address) as stub, suppress(KeyboardInterrupt):
        terminal.watch(
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
    """
    from monitor.report import written

    source = written(config, out)
    answer = {"out": str(out), "bytes": out.stat().st_size, "source": source}
    typer.echo(json.dumps(answer) if as_json else f"{out}, from the {source}")


@app.command()
def backtest(
    start: Annotated[
        datetime, typer.Option("--from", formats=["%Y-%m-%d"], help="First day of event time, UTC.")
    ],
    end: Annotated[
        datetime, typer.Option("--to", formats=["%Y-%m-%d"], help="The day after the last one.")
    ],
    config: Config = DEFAULT,
    monitor: Annotated[str, typer.Option(help="Only this monitor.")] = "",
    reference: Annotated[
        Path | None,
        typer.Option(help="manifest.json of a training set; without it, the pipeline is asked."),
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
    are left alone, and nothing is fired. Change a limit in a copy of the configuration, and see
    what it would have done.

    Example: steadfeast monitor backtest --from 2013-03-02 --to 2013-12-31 --html backtest.html
    """
    from rich.console import Console

    from monitor import outlook
    from monitor.render import Renderer

    first, last = start.replace(tzinfo=UTC), end.replace(tzinfo=UTC)
    if first >= last:
        raise typer.BadParameter("must be after --from", param_hint="--to")
    if scored is not None and reference is None:
        raise typer.BadParameter("goes with --reference", param_hint="--scored")
    pinned = {} if reference is None else {"reference": reference, "scored": scored}
    found = outlook.replayed(config, monitor, pinned, first, last, alone=alone)
    if html is not None:
        text = outlook.page(found, first, last, datetime.now(UTC), Renderer())
        html.write_text(text, encoding="utf-8")
    if as_json:
        typer.echo(outlook.as_json(found))
        return
    console = Console()
    for part in outlook.tables(found):
        console.print(part, highlight=False)
    wanted = "--html FILE draws it." if html is None else f"Drawn in {html}."
    console.print(wanted, highlight=False)


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
    from monitor import terminal
    from protos.steadfeast.v1 import monitor_pb2

    line = terminal.as_json if as_json else terminal.alert_line
    with _daemon(config, address) as stub:
        if not follow:
            answer = stub.ListAlerts(
                monitor_pb2.ListAlertsRequest(monitor=monitor, limit=limit),
                timeout=DEADLINE_SECONDS,
            )
            for alert in reversed(answer.alerts):
                typer.echo(line(alert))
            return
        for event in stub.WatchAlerts(monitor_pb2.WatchAlertsRequest(after_sequence=after)):
            if event.HasField("alert") and monitor in {"", event.alert.monitor}:
                typer.echo(line(event.alert))
                sys.stdout.flush()


@app.command()
def evaluate(
    monitor: Annotated[str, typer.Argument(help="Only this monitor.")] = "",
    config: Config = DEFAULT,
    address: Address = "",
    as_json: Json = False,
) -> None:
    """Evaluate the closed buckets now instead of at the next tick."""
    from monitor import terminal
    from protos.steadfeast.v1 import monitor_pb2

    with _daemon(config, address) as stub:
        answer = stub.Evaluate(
            monitor_pb2.EvaluateRequest(monitor=monitor), timeout=EVALUATE_SECONDS
        )
    typer.echo(terminal.as_json(answer) if as_json else f"{answer.buckets} buckets evaluated")


@app.command()
def calibrate(
    monitor: Annotated[str, typer.Argument(help="Only this monitor.")] = "",
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

    What `false_alarms_per_year` buys, before a daemon runs: limits are measured on the windows of
    the training set, as the daemon does. Nothing is changed. Without --reference a running daemon
    is asked which training set its champion was trained on.

    Example: steadfeast monitor calibrate --reference data/training/ab12/manifest.json
    """
    from rich.console import Console

    from featurestore.served import ServedLog
    from monitor import sensitivity
    from monitor.config import load
    from monitor.known import check
    from monitor.sources import Sources

    section, store = load(config)
    tables = any(one.source is not None for one in section.monitors.values())
    views = check(config, section, store) if tables else {}
    sources = Sources(ServedLog(store.data), views)
    for name, one in sorted(section.monitors.items()):
        if monitor not in {"", name}:
            continue
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
    from protos.steadfeast.v1 import monitor_pb2

    try:
        with _daemon(config, address) as stub:
            answer = stub.GetStatus(
                monitor_pb2.GetStatusRequest(monitor=monitor), timeout=DEADLINE_SECONDS
            )
    except CallError as error:
        raise NoReferenceError(monitor, f"no daemon answers at {error.address}") from error
    found = [one.reference_uri for one in answer.monitors if one.reference_uri]
    if not found:
        raise NoReferenceError(monitor, "no model was promoted")
    return Path(found[0])


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
    from monitor import terminal
    from protos.steadfeast.v1 import monitor_pb2

    request = monitor_pb2.AcknowledgeRequest(
        episode_id=episode, actor=actor or getpass.getuser(), comment=comment
    )
    with _daemon(config, address) as stub:
        answer = stub.Acknowledge(request, timeout=DEADLINE_SECONDS)
    by = f"acknowledged by {answer.episode.acknowledged_by}: {answer.episode.summary}"
    typer.echo(terminal.as_json(answer) if as_json else by)


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


@app.command()
def triggers(
    monitor: Annotated[str, typer.Argument(help="Only this monitor.")] = "",
    config: Config = DEFAULT,
    address: Address = "",
    state: Annotated[
        str, typer.Option(help="waiting, pending, delivered, suppressed or dead; all without it.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    as_json: Json = False,
) -> None:
    """List triggers, newest first.

    Example: steadfeast monitor triggers --state dead
    """
    from monitor import terminal
    from protos.steadfeast.v1 import monitor_pb2

    numbers = dict(monitor_pb2.TriggerState.items())
    states = [numbers[f"TRIGGER_STATE_{state.upper()}"]] if _known(state, numbers) else []
    asked = monitor_pb2.ListTriggersRequest(monitor=monitor, states=states, limit=limit)
    with _daemon(config, address) as stub:
        answer = stub.ListTriggers(asked, timeout=DEADLINE_SECONDS)
    for trigger in answer.triggers:
        typer.echo(terminal.as_json(trigger) if as_json else terminal.trigger_line(trigger))


def _known(state: str, numbers: Mapping[str, object]) -> bool:
    if state and f"TRIGGER_STATE_{state.upper()}" not in numbers:
        raise typer.BadParameter(f"no such state: {state}", param_hint="--state")
    return bool(state)


@app.command()
def log(
    config: Config = DEFAULT,
    address: Address = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they come.")] = False,
    after: Annotated[
        int | None, typer.Option(min=0, help="From the entry after this one; else the last ones.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    as_json: Json = False,
) -> None:
    """Print who did what: the audit log, oldest first. Needs a token with the role `audit`.

    Example: steadfeast monitor log --after 0 --limit 1000 --json > audit.jsonl
    """
    from monitor import terminal
    from protos.steadfeast.v1 import monitor_pb2

    line = terminal.as_json if as_json else terminal.audit_line
    position = -1 if after is None else after
    with _daemon(config, address) as stub, suppress(KeyboardInterrupt):
        while True:
            asked = monitor_pb2.ListAuditRequest(after_sequence=position, limit=limit)
            entries = stub.ListAudit(asked, timeout=DEADLINE_SECONDS).entries
            for entry in entries:
                typer.echo(line(entry))
                position = entry.sequence
            sys.stdout.flush()
            if not follow:
                return
            position = max(position, 0)
            if not entries:
                time.sleep(FOLLOW_SECONDS)


@app.command()
def resend(
    request: Request,
    config: Config = DEFAULT,
    address: Address = "",
    actor: Actor = "",
    comment: Comment = "",
    as_json: Json = False,
) -> None:
    """Deliver a trigger that was given up once more, unchanged.

    Example: steadfeast monitor resend 7c2f6f0e-5b6e-5d0a-8b8f-6f0f2a775d1c
    """
    from monitor import terminal
    from protos.steadfeast.v1 import monitor_pb2

    message = monitor_pb2.ResendTriggerRequest(
        request_id=request, actor=actor or getpass.getuser(), comment=comment
    )
    with _daemon(config, address) as stub:
        answer = stub.ResendTrigger(message, timeout=DEADLINE_SECONDS)
    typer.echo(terminal.as_json(answer) if as_json else terminal.trigger_line(answer.trigger))


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
    from monitor import terminal
    from protos.steadfeast.v1 import monitor_pb2

    message = monitor_pb2.DecideTriggerRequest(
        request_id=request, approve=yes, actor=actor or getpass.getuser(), comment=comment
    )
    with _daemon(config, address) as stub:
        answer = stub.DecideTrigger(message, timeout=DEADLINE_SECONDS)
    typer.echo(terminal.as_json(answer) if as_json else terminal.trigger_line(answer.trigger))


def _channel(address: str, root: str, token: str) -> grpc.Channel:
    """Connect with what the environment gives: see docs/guide/security.md."""
    import grpc

    from monitor.client import with_token

    if not root:
        channel = grpc.insecure_channel(address)
    else:
        own = [os.environ.get(f"STEADFEAST_{name}", "") for name in ("KEY", "CERTIFICATE")]
        key, chain = (Path(name).read_bytes() if name else None for name in own)
        credentials = grpc.ssl_channel_credentials(Path(root).read_bytes(), key, chain)
        channel = grpc.secure_channel(address, credentials)
    return with_token(channel, token) if token else channel


@contextmanager
def _daemon(config: Path, address: str) -> Iterator[MonitorServiceStub]:
    """Connect to the daemon; a failed call is a CallError."""
    import grpc

    from protos.steadfeast.v1.monitor_pb2_grpc import MonitorServiceStub

    root, token = os.environ.get("STEADFEAST_CA", ""), os.environ.get("STEADFEAST_TOKEN", "")
    if not address:
        from monitor.config import load

        section = load(config)[0]
        address = section.grpc
        token = token or section.operator_token.get_secret_value()
        root = root or (str(section.tls.certificate) if section.tls else "")
    try:
        with _channel(address, root, token) as channel:
            yield MonitorServiceStub(channel)
    except grpc.RpcError as error:
        code, details = error.code().name, error.details()
        raise CallError(address, code, details or "") from error
