"""Calls to a running daemon from the command line: what it said, and what people say to it.

Above `client`, below `cli`, which puts these commands among its own. What a command needs is
imported inside it, as there.
"""

from __future__ import annotations

import getpass
import sys
from contextlib import contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steadfeast.featurestore.command_line import (
    DEFAULT,
    Actor,
    Config,
    Monitor,
    followed,
    pause,
    reader_left,
)
from steadfeast.featurestore.command_line import JsonLines as Json
from steadfeast.featurestore.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from steadfeast.protos.steadfeast.v1.monitor_pb2_grpc import MonitorServiceStub

app = typer.Typer()

DEADLINE_SECONDS = 30.0
EVALUATE_SECONDS = 600.0
FOLLOW_SECONDS = 1.0
"""Between two looks at the audit log; people do not do much."""

Address = Annotated[
    str, typer.Option(help="host:port of the daemon; without it, what the configuration says.")
]
Comment = Annotated[str, typer.Option(help="Kept with it.")]
Request = Annotated[str, typer.Argument(help="Request id of the trigger, as `status` prints it.")]


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


@contextmanager
def daemon(config: Path, address: str) -> Iterator[MonitorServiceStub]:
    """Connect to the daemon; a failed call is a CallError."""
    import grpc

    from steadfeast.featurestore.security import Role, from_environment, load_security
    from steadfeast.protos.steadfeast.v1.monitor_pb2_grpc import MonitorServiceStub

    token, ca, plaintext = "", None, False
    if not address:
        from steadfeast.monitor.config import load

        security = load_security(config)
        address, plaintext = load(config)[0].grpc, security.allow_plaintext
        token = security.token_of(Role.ADMIN)
        ca = security.tls.certificate if security.tls else None
    try:
        with from_environment(address, token, ca, allow_plaintext=plaintext) as opened:
            yield MonitorServiceStub(opened)
    except grpc.RpcError as error:
        code, details = error.code().name, error.details()
        raise CallError(address, code, details or "") from error


@app.command()
def alerts(
    monitor: Monitor = "",
    config: Config = DEFAULT,
    address: Address = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they come.")] = False,
    after: Annotated[
        int, typer.Option(min=0, help="With --follow: from the alert after this sequence.")
    ] = 0,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    as_json: Json = False,
) -> None:
    """Print alerts, oldest first; with --follow until Ctrl-C, or until nobody reads them.

    Example: steadfeast monitor alerts --follow --json
    """
    from steadfeast.monitor.cli import output
    from steadfeast.protos.steadfeast.v1 import monitor_pb2

    line = output.as_json if as_json else output.alert_line
    with daemon(config, address) as stub:
        if not follow:
            answer = stub.ListAlerts(
                monitor_pb2.ListAlertsRequest(monitor=monitor, limit=limit),
                timeout=DEADLINE_SECONDS,
            )
            for alert in reversed(answer.alerts):
                typer.echo(line(alert))
            return
        with followed():
            stream = stub.WatchAlerts(monitor_pb2.WatchAlertsRequest(after_sequence=after))
            with _cancelled_without_reader(stream):
                for event in stream:
                    if event.HasField("alert") and monitor in {"", event.alert.monitor}:
                        typer.echo(line(event.alert))
                        sys.stdout.flush()


@app.command()
def evaluate(
    monitor: Monitor = "",
    config: Config = DEFAULT,
    address: Address = "",
    as_json: Json = False,
) -> None:
    """Evaluate the closed buckets now instead of at the next tick.

    Example: steadfeast monitor evaluate
    """
    from steadfeast.monitor.cli import output
    from steadfeast.protos.steadfeast.v1 import monitor_pb2

    with daemon(config, address) as stub:
        answer = stub.Evaluate(
            monitor_pb2.EvaluateRequest(monitor=monitor), timeout=EVALUATE_SECONDS
        )
    typer.echo(output.as_json(answer) if as_json else f"{answer.buckets} buckets evaluated")


@app.command()
def acknowledge(
    episode: Annotated[str, typer.Argument(help="Id of the episode, as `status` prints it.")],
    config: Config = DEFAULT,
    address: Address = "",
    actor: Actor = "",
    comment: Comment = "",
    as_json: Json = False,
) -> None:
    """Say that you have seen an episode.

    Example: steadfeast monitor acknowledge 3f2a9c --comment "a new airport"
    """
    from steadfeast.featurestore.plain_text import escaped_message
    from steadfeast.monitor.cli import output
    from steadfeast.protos.steadfeast.v1 import monitor_pb2

    request = monitor_pb2.AcknowledgeRequest(
        episode_id=episode, actor=actor or getpass.getuser(), comment=comment
    )
    with daemon(config, address) as stub:
        answer = stub.Acknowledge(request, timeout=DEADLINE_SECONDS)
    seen = escaped_message(answer.episode)
    by = f"acknowledged by {seen.acknowledged_by}: {seen.summary}"
    typer.echo(output.as_json(answer) if as_json else by)


@app.command()
def approve(
    request: Request,
    config: Config = DEFAULT,
    address: Address = "",
    actor: Actor = "",
    comment: Comment = "",
    as_json: Json = False,
) -> None:
    """Fire a trigger that waits for a person.

    Example: steadfeast monitor approve 7c2f6f0e-5b6e-5d0a-8b8f-6f0f2a775d1c
    """
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
    """Refuse a trigger that waits for a person; its episode will not fire.

    Example: steadfeast monitor reject 7c2f6f0e-5b6e-5d0a-8b8f-6f0f2a775d1c
    """
    _decide(request, config, address, actor, comment, yes=False, as_json=as_json)


@app.command()
def triggers(
    monitor: Monitor = "",
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
    from steadfeast.monitor.cli import output
    from steadfeast.protos.steadfeast.v1 import monitor_pb2

    numbers = dict(monitor_pb2.TriggerState.items())
    states = [numbers[f"TRIGGER_STATE_{state.upper()}"]] if _known(state, numbers) else []
    asked = monitor_pb2.ListTriggersRequest(monitor=monitor, states=states, limit=limit)
    with daemon(config, address) as stub:
        answer = stub.ListTriggers(asked, timeout=DEADLINE_SECONDS)
    for trigger in answer.triggers:
        typer.echo(output.as_json(trigger) if as_json else output.trigger_line(trigger))


@contextmanager
def _cancelled_without_reader(stream: Any) -> Iterator[None]:
    """Cancel a stream once nobody reads what is printed of it; nothing may come for days.

    Raises:
        BrokenPipeError: Nobody reads it.
    """
    import grpc

    done, left = Event(), Event()

    def look() -> None:
        while not done.wait(FOLLOW_SECONDS):
            if reader_left():
                left.set()
                stream.cancel()
                return

    looking = Thread(target=look, daemon=True)
    looking.start()
    try:
        yield
    except grpc.RpcError as error:
        if left.is_set():
            raise BrokenPipeError from error
        raise
    finally:
        done.set()
        looking.join()
        stream.cancel()


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
    from steadfeast.monitor.cli import output
    from steadfeast.protos.steadfeast.v1 import monitor_pb2

    line = output.as_json if as_json else output.audit_line
    position = -1 if after is None else after
    with daemon(config, address) as stub, followed():
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
                pause(FOLLOW_SECONDS)


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
    from steadfeast.monitor.cli import output
    from steadfeast.protos.steadfeast.v1 import monitor_pb2

    message = monitor_pb2.ResendTriggerRequest(
        request_id=request, actor=actor or getpass.getuser(), comment=comment
    )
    with daemon(config, address) as stub:
        answer = stub.ResendTrigger(message, timeout=DEADLINE_SECONDS)
    typer.echo(output.as_json(answer) if as_json else output.trigger_line(answer.trigger))


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
    from steadfeast.monitor.cli import output
    from steadfeast.protos.steadfeast.v1 import monitor_pb2

    message = monitor_pb2.DecideTriggerRequest(
        request_id=request, approve=yes, actor=actor or getpass.getuser(), comment=comment
    )
    with daemon(config, address) as stub:
        answer = stub.DecideTrigger(message, timeout=DEADLINE_SECONDS)
    typer.echo(output.as_json(answer) if as_json else output.trigger_line(answer.trigger))
