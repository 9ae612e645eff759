"""A backtest in words: as a table in a terminal, as JSON, and as one HTML file.

Above `backtest` and `render`; `cli` prints and writes what is made here.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from steadfeast.monitor.backtest.promotions import promoted
from steadfeast.monitor.backtest.replay import chosen, run
from steadfeast.monitor.config import load
from steadfeast.monitor.decisions import EpisodeKind
from steadfeast.monitor.evaluation import check
from steadfeast.monitor.web import (
    FIGURES,
    Fact,
    Tone,
    bars,
    charts,
    count,
    lasting,
    performance,
    segments,
    stretch,
    times_text,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime, timedelta
    from pathlib import Path

    from rich.console import RenderableType

    from steadfeast.monitor.backtest.replay import Alarm, Backtest, Decay, Ranked
    from steadfeast.monitor.web import BarView, Chart, Renderer, SegmentView

ALARM_HEADS = (
    "Opened",
    "Closed",
    "Kind",
    "What opened it",
    "Delay",
    "Trigger",
    "The model decayed",
)
DECAY_HEADS = ("From", "To", "Worst, of max_drop", "First alarm", "Ahead", "Estimated from")
SHOWN = 10


@dataclass(frozen=True, slots=True)
class _Feature:
    name: str
    tone: Tone
    word: str
    ratio: str
    reason: str
    chart: Chart
    bars: tuple[BarView, ...]


@dataclass(frozen=True, slots=True)
class _Monitor:
    name: str
    facts: tuple[Fact, ...]
    alarms: tuple[tuple[str, ...], ...]
    decays: tuple[tuple[str, ...], ...]
    no_decay: str
    performance: tuple[tuple[str, Chart], ...]
    segments: tuple[SegmentView, ...]
    order: str
    features: tuple[_Feature, ...]


def replayed(
    path: Path,
    monitor: str,
    pinned: Mapping[str, Path | None],
    first: datetime,
    last: datetime,
    *,
    alone: bool,
) -> list[Backtest]:
    """Replay what the configuration at `path` says, under a progress bar on standard error.

    Args:
        path: The configuration file.
        monitor: Only this one; all for the empty name.
        pinned: `reference` and `scored`, in place of the monitors' own; empty leaves them.
        first: Start of the first bucket.
        last: End of the last.
        alone: Keep the first reference.

    Raises:
        UserError: There is nothing to replay, or nothing to compare it with.
    """
    whole, store = load(path)
    views = check(path, whole, store)
    settings = chosen(whole, monitor, pinned)
    history = {
        name: promoted(path, settings, name)
        for name, one in settings.monitors.items()
        if one.reference is None
    }
    # The bar says how far it is; the daemon's log lines would tear it.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("references", total=None)

        def progress(name: str, at: datetime, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, description=f"{name} {at:%Y-%m-%d}")

        return run(
            settings,
            store.data,
            first,
            last,
            history,
            views=views,
            alone=alone,
            progress=progress,
        )


def tables(found: Sequence[Backtest]) -> Iterator[RenderableType]:
    """Give what a person reads in a terminal."""
    for one in found:
        yield Text(f"{one.monitor.name}: {_summary(one)}", style="bold")
        for line in _not_judged(one):
            yield Text(f"Not judged: {line}", style="yellow")
        if one.alarms:
            yield _table(ALARM_HEADS, [_alarm(alarm, one) for alarm in one.alarms])
        if one.decays:
            yield _table(DECAY_HEADS, [_decay(decay) for decay in one.decays])
        else:
            yield Text(_no_decay(one))
        ranked = _table(("Feature", "Impact", "Worst", "On", "Over its limit"), [])
        for feature in one.ranked[:SHOWN]:
            ranked.add_row(
                feature.feature,
                "" if feature.impact is None else f"{feature.impact:.2f}",
                times_text(feature.worst),
                charts.day(feature.worst.window.end),
                count(feature.over, "window") if feature.judged else "never judged",
            )
        yield Text(f"Features, {_order(one)}")
        yield ranked


def as_json(found: Sequence[Backtest]) -> str:
    """Return everything as one JSON object; times are ISO 8601, spans are in seconds."""
    return json.dumps({one.monitor.name: _plain(one) for one in found})


def page(
    found: Sequence[Backtest], start: datetime, end: datetime, now: datetime, renderer: Renderer
) -> str:
    """Return one self-contained HTML file."""
    opened = sum(len(one.alarms) for one in found)
    return renderer.backtest(
        title=f"{stretch(start, end)}: {count(opened, 'alarm')}",
        detail="History replayed under one configuration by the daemon's own code; nothing fired.",
        made_at=now,
        alarm_heads=ALARM_HEADS,
        decay_heads=DECAY_HEADS,
        monitors=[_monitor(one) for one in found],
    )


def _monitor(one: Backtest) -> _Monitor:
    return _Monitor(
        name=one.monitor.name,
        facts=tuple(_facts(one)),
        alarms=tuple(_alarm(alarm, one) for alarm in one.alarms),
        decays=tuple(_decay(decay) for decay in one.decays),
        no_decay=_no_decay(one),
        performance=tuple(performance(one.monitor, one.windows)),
        segments=tuple(segments(one.monitor)),
        order=_order(one),
        features=tuple(_feature(feature, one) for feature in one.ranked),
    )


def _feature(feature: Ranked, one: Backtest) -> _Feature:
    history = [(past.window.end, past.ratios.get(feature.feature)) for past in one.windows]
    most = charts.number(feature.impact or 0.0)
    impact = f"Effect \N{MULTIPLICATION SIGN} importance {most} at most. "
    worst = f"Furthest on {charts.day(feature.worst.window.end)}: {feature.worst.reason}."
    return _Feature(
        name=feature.feature,
        tone=Tone.BAD if feature.over else Tone.GOOD if feature.judged else Tone.UNKNOWN,
        word=_over(feature),
        ratio=times_text(feature.worst),
        reason=(impact if feature.impact else "") + worst,
        chart=charts.ratios(history),
        bars=bars(feature.spread) if feature.spread else (),
    )


def _over(feature: Ranked) -> str:
    if not feature.judged:
        return "never judged"
    return f"{feature.over} over" if feature.over else "never over"


def _not_judged(one: Backtest) -> Iterator[str]:
    """Say of the windows without any verdict how many there are, when and why."""
    for part in one.withheld:
        when = stretch(part.first, part.last) if part.windows > 1 else charts.day(part.last)
        yield f"{count(part.windows, 'window')}, {when}: {part.reason}"


def _facts(one: Backtest) -> Iterator[Fact]:
    yield Fact("Windows judged", f"{one.judged:,} of {len(one.windows):,}")
    if one.first_verdict is not None:
        yield Fact("First verdict", charts.day(one.first_verdict))
    for line in _not_judged(one):
        yield Fact("Not judged", line)
    if one.windows:
        first, last = one.windows[0].window, one.windows[-1].window
        yield Fact("Event time", stretch(first.start, last.end))
    yield Fact("Data incidents", f"{one.incidents:,}")
    versions = [f"{version or 'unnamed'} from {charts.day(at)}" for at, version in one.promotions]
    yield Fact("Model version", ", ".join(versions))
    if one.monitor.metric:
        title = FIGURES.get(one.monitor.metric, one.monitor.metric)
        yield Fact("Decay is", f"{title} worse than when trained by {one.monitor.max_drop:g}")


def _summary(one: Backtest) -> str:
    kinds = [alarm.episode.kind for alarm in one.alarms]
    told = ", ".join(
        count(kinds.count(kind), f"{kind} alarm") for kind in EpisodeKind if kinds.count(kind)
    )
    if not one.judged:
        told = f"{told + '; ' if told else ''}no feature could be judged"
    ahead = [decay.ahead for decay in one.decays if decay.ahead is not None]
    early = sum(span.total_seconds() >= 0 for span in ahead)
    decays = count(len(one.decays), "decay")
    return (
        f"{one.judged} of {count(len(one.windows), 'window')} judged; {told or 'no alarm'}; "
        f"{decays} of the model"
        + (f", {early} with an alarm open when it began" if one.decays else "")
        + f"; {count(one.incidents, 'data incident')}"
    )


def _alarm(alarm: Alarm, one: Backtest) -> tuple[str, ...]:
    episode, trigger = alarm.episode, alarm.trigger
    decided = "none: no pipeline" if trigger is None else trigger.state.value
    if trigger is not None and trigger.run is not None:
        decided = "would have fired"
    elif trigger is not None and trigger.reason:
        decided += f": {trigger.reason}"
    after = "not known: no labels" if not _measured(one) else "no"
    if alarm.decay is not None:
        after = f"{charts.day(alarm.decay)}, {_ahead(alarm.decay - episode.opened_at)}"
    return (
        charts.day(episode.opened_at),
        "open" if episode.closed_at is None else charts.day(episode.closed_at),
        episode.kind.value,
        episode.summary.partition(": ")[2],
        lasting(alarm.delay) if alarm.delay else "none",
        decided,
        after,
    )


def _decay(decay: Decay) -> tuple[str, ...]:
    return (
        charts.day(decay.start),
        charts.day(decay.end),
        f"{decay.worst:.2f}\N{MULTIPLICATION SIGN}",
        "none" if decay.alarm is None else charts.day(decay.alarm),
        "missed" if decay.ahead is None else _ahead(decay.ahead),
        "not" if decay.estimated is None else charts.day(decay.estimated),
    )


def _ahead(span: timedelta) -> str:
    """Say how far ahead of a decay an alarm was."""
    if not span:
        return "the same day"
    return f"{lasting(abs(span))} {'ahead' if span.total_seconds() > 0 else 'late'}"


def _measured(one: Backtest) -> bool:
    return any(past.performance for past in one.windows)


def _no_decay(one: Backtest) -> str:
    if not _measured(one):
        return "No window had enough labels to say how the model did."
    return "The live figure never fell by more than max_drop."


def _order(one: Backtest) -> str:
    known = any(feature.impact is not None for feature in one.ranked)
    return "by effect x importance" if known else "furthest first; importances are not known"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(*heads, box=None, header_style="dim")
    for row in rows:
        table.add_row(*row)
    return table


def _plain(one: Backtest) -> dict[str, Any]:
    return {
        "windows": len(one.windows),
        "judged": one.judged,
        "first_verdict_at": _iso(one.first_verdict),
        "not_judged": [
            {
                "reason": part.reason,
                "windows": part.windows,
                "first_at": part.first.isoformat(),
                "last_at": part.last.isoformat(),
            }
            for part in one.withheld
        ],
        "incidents": one.incidents,
        "promotions": [{"at": at.isoformat(), "version": v} for at, v in one.promotions],
        "alarms": [
            {
                "kind": alarm.episode.kind.value,
                "opened_at": alarm.episode.opened_at.isoformat(),
                "closed_at": _iso(alarm.episode.closed_at),
                "features": [verdict.feature for verdict in alarm.episode.features],
                "summary": alarm.episode.summary,
                "delay_seconds": alarm.delay.total_seconds(),
                "fires": alarm.trigger is not None and alarm.trigger.run is not None,
                "decay_at": _iso(alarm.decay),
            }
            for alarm in one.alarms
        ],
        "decays": [
            {
                "start": decay.start.isoformat(),
                "end": decay.end.isoformat(),
                "worst": decay.worst,
                "alarm_at": _iso(decay.alarm),
                "ahead_seconds": None if decay.ahead is None else decay.ahead.total_seconds(),
                "estimated_at": _iso(decay.estimated),
            }
            for decay in one.decays
        ],
        "performance": [
            {
                "end": past.window.end.isoformat(),
                "measured_until": _iso(past.measured_until),
                "live": dict(past.performance),
                "estimated": dict(past.estimated),
            }
            for past in one.windows
        ],
        "segments": [
            {
                "column": part.column,
                "value": part.value,
                "rows": part.rows,
                "furthest": {verdict.feature: verdict.ratio for verdict in part.furthest},
                "live": dict(part.metrics),
            }
            for part in one.monitor.segments
        ],
        "features": [
            {
                "feature": feature.feature,
                "impact": feature.impact,
                "worst_ratio": feature.worst.ratio,
                "worst_at": feature.worst.window.end.isoformat(),
                "windows_judged": feature.judged,
                "windows_over": feature.over,
            }
            for feature in one.ranked
        ],
    }


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()
