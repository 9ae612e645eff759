"""What `steadfeast monitor` prints: a status, an alert, a live view of both.

Above the protocol only; `cli` calls it. Every function takes the daemon's answer and gives words
or what rich draws; the one that waits is `watch`.
"""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import typer
from google.protobuf.json_format import MessageToDict
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from steadfeast.featurestore.command_line import pause
from steadfeast.featurestore.plain_text import escaped_message
from steadfeast.protos.steadfeast.v1 import monitor_pb2
from steadfeast.protos.steadfeast.v1.pipeline_pb2 import RunState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp
    from rich.console import RenderableType

    from steadfeast.protos.steadfeast.v1.pipeline_pb2 import Run

SHOWN = 10
"""Verdicts and triggers that are listed; the others are counted."""

_FILE_WIDTH = 160

STYLES = {
    monitor_pb2.LEVEL_OK: "green",
    monitor_pb2.LEVEL_DRIFT: "red",
    monitor_pb2.LEVEL_INSUFFICIENT_DATA: "yellow",
    monitor_pb2.LEVEL_INCIDENT: "magenta",
}


def as_json(message: Message) -> str:
    """Return a message as one line of JSON, with the protocol's names and defaults."""
    plain = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return json.dumps(plain)


def troubled(answer: monitor_pb2.GetStatusResponse) -> bool:
    """Say whether anything is open that a person has to look at."""
    dead = any(one.state == monitor_pb2.TRIGGER_STATE_DEAD for one in answer.triggers)
    return bool(answer.open_episodes) or dead or any(one.incidents for one in answer.monitors)


def status(answer: monitor_pb2.GetStatusResponse) -> Iterator[RenderableType]:
    """Give where everything stands, in the order in which it is read."""
    answer = escaped_message(answer)
    for monitor in answer.monitors:
        yield from _monitor(monitor)
    for episode in answer.open_episodes:
        seen = f", seen by {episode.acknowledged_by}" if episode.acknowledged_by else ""
        yield Text(
            f"open since {_time(episode.opened_at)}{seen}: {episode.summary} "
            f"(episode {episode.episode_id})"
        )
        yield from _members(episode)
    for trigger in answer.triggers[:SHOWN]:
        yield Text(trigger_line(trigger))
    for promotion in answer.promotions[:SHOWN]:
        yield Text(promotion_line(promotion))
    if answer.idle:
        yield Text("idle: everything closed is evaluated, nothing is under way")


def _members(episode: monitor_pb2.Episode) -> Iterator[RenderableType]:
    """Say which features of an open episode have resolved or cannot be judged."""
    resolved = [one.drift.feature for one in episode.members if one.HasField("resolved_at")]
    if resolved:
        yield Text(f"  resolved already: {', '.join(resolved)}")
    for one in episode.members:
        if one.unjudged:
            text = f"  {one.drift.feature} cannot be judged, so it stays open: {one.unjudged}"
            yield Text(text, style="yellow")


def _monitor(monitor: monitor_pb2.MonitorStatus) -> Iterator[RenderableType]:
    version = monitor.model_version or "none"
    model = f"model {monitor.model} version {version}" if monitor.model else "no model"
    yield Text(f"{monitor.monitor}: {model}, evaluated until {_time(monitor.watermark)} UTC")
    for incident in monitor.incidents:
        text = f"  data incident since {_time(incident.opened_at)}: {incident.summary}"
        yield Text(text, style="magenta")
    if monitor.blocked:
        yield Text(f"  retraining is blocked: {monitor.blocked}", style="magenta")
    if monitor.superseded:
        yield Text("  verdicts are about the former model until the next bucket", style="yellow")
    for figure in monitor.figures:
        if figure.HasField("live") or figure.HasField("estimated"):
            yield Text(f"  {_figure(figure)}")
    yield from _notes(monitor)
    if monitor.verdicts:
        yield from _verdicts(monitor)
    if monitor.segments:
        yield _segments(monitor)


def _notes(monitor: monitor_pb2.MonitorStatus) -> Iterator[RenderableType]:
    """Say what keeps the verdicts from being the last word."""
    if monitor.waits_for:
        what = "nothing new is judged" if monitor.reference_uri else "waits for a reference"
        yield Text(f"  {what}: {monitor.waits_for}", style="yellow")
    if monitor.withheld:
        yield Text(f"  nothing was judged: {monitor.withheld}", style="yellow")
    for line in monitor.damaged:
        yield Text(f"  a snapshot is damaged: {line}", style="red")
    for aside in monitor.quarantined:
        yield Text(f"  in quarantine: {aside.summary}", style="yellow")
    yield from _columns(monitor)
    if monitor.late_rows:
        yield Text(f"  {monitor.late_rows} rows came after their bucket was frozen")
    if monitor.HasField("open_until"):
        until = _time(monitor.open_until)
        yield Text(f"  so far; late rows count until {until} UTC, and then it is decided")


def _columns(monitor: monitor_pb2.MonitorStatus) -> Iterator[RenderableType]:
    """Name the columns whose values are not compared, and those that are no plain features."""
    special = [one for one in monitor.columns if one.role != "feature"]
    left_out = [f"{one.name} ({one.role})" for one in special if not one.features]
    if left_out:
        yield Text(f"  values not compared: {', '.join(left_out)}")
    told = [f"{one.name} is {one.role}: {one.watched_by}" for one in special if one.features]
    for line in told[:SHOWN]:
        yield Text(f"  {line}", style="dim")


def _verdicts(monitor: monitor_pb2.MonitorStatus) -> Iterator[RenderableType]:
    # What the model does not lean on has no impact; without importances nothing has one.
    ranked = any(one.drift.impact for one in monitor.verdicts)
    heads = ["feature", "statistic", "value", "threshold", *(["impact"] if ranked else [])]
    table = Table(*heads, "level", "reason", box=None)
    for verdict in monitor.verdicts[:SHOWN]:
        impact = [f"{verdict.drift.impact:.2f}"] if ranked else []
        table.add_row(
            verdict.drift.feature,
            verdict.drift.statistic,
            f"{verdict.drift.value:.3g}",
            f"{verdict.drift.threshold:.3g}",
            *impact,
            Text(_word(monitor_pb2.Level, verdict.level), style=STYLES.get(verdict.level, "")),
            verdict.reason,
        )
    yield table
    if len(monitor.verdicts) > len(table.rows):
        yield Text(f"  and {len(monitor.verdicts) - len(table.rows)} more")


def _figure(figure: monitor_pb2.Figure) -> str:
    """Return what is known of one figure: `auc 0.742 (0.735 to 0.749), 0.760 when trained`."""
    parts = []
    if figure.HasField("live"):
        ends = f" ({figure.low:.3f} to {figure.high:.3f})" if figure.HasField("low") else ""
        parts.append(f"live {figure.name} {figure.live:.3f}{ends}")
    if figure.HasField("estimated"):
        off = f", last off by {figure.estimate_error:+.3f}"
        known = figure.HasField("estimate_error")
        what = "estimated" if parts else f"estimated {figure.name}"
        parts.append(f"{what} {figure.estimated:.3f}{off if known else ''}")
    if figure.HasField("expected"):
        parts.append(f"{figure.expected:.3f} when trained")
    return "; ".join(parts)


def _segments(monitor: monitor_pb2.MonitorStatus) -> Table:
    table = Table("segment", "rows", "furthest", "of its limit", "live", box=None)
    for one in monitor.segments:
        worst = one.furthest[0] if one.furthest else None
        table.add_row(
            f"{one.column} {one.value}",
            f"{one.rows:,}",
            worst.feature if worst else "",
            f"{worst.value / worst.threshold:.2f}x" if worst and worst.threshold else "",
            f"{one.live:.3f}" if one.HasField("live") else "",
        )
    return table


def trigger_line(trigger: monitor_pb2.Trigger) -> str:
    """Return a trigger with what became of it, in a line."""
    trigger = escaped_message(trigger)
    parts = [f"trigger {trigger.request_id}", _word(monitor_pb2.TriggerState, trigger.state)]
    if trigger.reason:
        parts.append(trigger.reason)
    if trigger.HasField("run"):
        state = RunState.Name(trigger.run.state).removeprefix("RUN_STATE_").lower()
        parts.append(f"run {trigger.run.run_id} {state}{_contest(trigger.run)}")
    return f"{_time(trigger.decided_at)} {': '.join(parts)}"


def promotion_line(promotion: monitor_pb2.Promotion) -> str:
    """Return a promotion that no trigger asked for, in a line."""
    run = escaped_message(promotion.run)
    how = f": {run.reason}" if run.reason else ""
    at = _time(promotion.noticed_at)
    return f"{at} version {run.model_version} promoted{how}: run {run.run_id}{_contest(run)}"


def _contest(run: Run) -> str:
    """Return how the challenger did against the champion: `, auc 0.751 against 0.744`."""
    gate = next((one for one in run.gates if one.HasField("champion")), None)
    if gate is None:
        return ""
    return f", {gate.metric or gate.name} {gate.value:.3f} against {gate.champion:.3f}"


def alert_line(alert: monitor_pb2.Alert) -> str:
    """Return an alert in a line."""
    alert = escaped_message(alert)
    severity = _word(monitor_pb2.Severity, alert.severity)
    return f"{alert.sequence} {_time(alert.at)} {severity} {alert.monitor}: {alert.summary}"


def audit_line(entry: monitor_pb2.AuditEntry) -> str:
    """Return an entry of the audit log in a line."""
    entry = escaped_message(entry)
    remark = f": {entry.remark}" if entry.remark else ""
    at = f"{entry.at.ToDatetime():%Y-%m-%d %H:%M:%S}"
    return f"{entry.sequence} {at} {entry.actor} {entry.act} {entry.subject}{remark}"


def watch(
    ask: Callable[[], monitor_pb2.GetStatusResponse],
    alerts: Callable[[], list[monitor_pb2.Alert]],
    interval_seconds: float,
    *,
    json_lines: bool,
) -> None:
    """Show the status until Ctrl-C; a daemon that is away is waited for.

    Where standard output is no terminal, each status that differs from the one before is printed,
    and what is waited for is said on standard error.

    Args:
        ask: Asks the daemon for its status.
        alerts: Asks it for the last alerts, newest first.
        interval_seconds: Between two questions.
        json_lines: Print each status as a line of JSON.

    Raises:
        BrokenPipeError: Nobody reads what is printed.
    """
    console = Console()
    if json_lines or not console.is_terminal:
        _print_changes(ask, interval_seconds, json_lines=json_lines)
    # On a terminal the view takes the whole screen and gives it back.
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(_screen(ask, alerts), refresh=True)
            pause(interval_seconds)


def _print_changes(
    ask: Callable[[], monitor_pb2.GetStatusResponse], interval_seconds: float, *, json_lines: bool
) -> NoReturn:
    said, before = "printing each status that differs; Ctrl-C ends", None
    typer.echo(said, err=True)
    while True:
        try:
            answer = ask()
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            problem = f"waiting for the daemon: {error.details()}"
            if problem != said:
                typer.echo(problem, err=True)
            said = problem
        else:
            said = ""
            if answer != before:
                typer.echo(as_json(answer) if json_lines else _plain(answer))
            before = answer
        pause(interval_seconds)


def _plain(answer: monitor_pb2.GetStatusResponse) -> str:
    """Return a status as lines for a file."""
    text = io.StringIO()
    console = Console(file=text, width=_FILE_WIDTH, highlight=False)
    console.print(f"data until {_time(answer.latest_event)} UTC", style="bold")
    for part in status(answer):
        console.print(part, soft_wrap=not isinstance(part, Table))
    return text.getvalue().rstrip()


def _screen(
    ask: Callable[[], monitor_pb2.GetStatusResponse],
    alerts: Callable[[], list[monitor_pb2.Alert]],
) -> RenderableType:
    try:
        answer, latest = ask(), alerts()
    except grpc.RpcError as error:
        return Text(f"waiting for the daemon: {error.code().name}", style="yellow")
    now = f"data until {_time(answer.latest_event)} UTC; Ctrl-C ends"
    head = Text("something is open" if troubled(answer) else "nothing is open", style="bold")
    head.stylize("red" if troubled(answer) else "green")
    told = [Text("latest alerts", style="bold"), *(Text(alert_line(one)) for one in latest)]
    return Group(head, Text(now, style="dim"), *status(answer), *(told if latest else []))


def _time(value: Timestamp) -> str:
    return f"{value.ToDatetime():%Y-%m-%d %H:%M}" if value.seconds or value.nanos else "never"


def _word(enum: Any, value: int) -> str:
    """Return an enum value as one lower-case word: its name without the enum's prefix."""
    prefix = {"Level": "LEVEL_", "TriggerState": "TRIGGER_STATE_", "Severity": "SEVERITY_"}
    name: str = enum.Name(value)
    return name.removeprefix(prefix[enum.DESCRIPTOR.name]).lower()
