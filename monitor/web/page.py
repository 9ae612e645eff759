"""What the page says, decided here and laid out by `templates/page.html.jinja`.

Above `charts`, `views` and `state`, below `web`. Pure: a `State` and the time in, a `Page` of
finished words and drawn charts out. The order is that of a person called at three in the
morning: what is wrong, since when, how bad, what has already happened; then how everything
stands.

Times are the data's own (event time) unless a field says otherwise, so that a replay reads
like the year that it replays.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from steadfeast.monitor.drift import Level
from steadfeast.monitor.profiles import Role
from steadfeast.monitor.web import charts, retraining
from steadfeast.monitor.web.problems import problems
from steadfeast.monitor.web.text import (
    FIGURES,
    TONES,
    WORDS,
    count,
    lasting,
    moment,
    percent,
    share,
    stretch,
    times_text,
    value_text,
)
from steadfeast.monitor.web.view_models import (
    BarView,
    Fact,
    FeatureView,
    FigureView,
    MonitorView,
    Page,
    SegmentView,
    Tone,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from steadfeast.monitor.drift import Figures, Verdict
    from steadfeast.monitor.ledger import MonitorState, PastWindow, State
    from steadfeast.monitor.profiles import Distribution
    from steadfeast.monitor.web.charts import Chart
    from steadfeast.monitor.web.view_models import Problem

FULL_BAR = 2.0
"""The ratio that fills a bar: the limit stands in its middle."""

SUPERSEDED = (
    "The model was retrained after the last window was judged. What stands below is about the "
    "former reference; the next bucket is judged against the new one."
)

RANKED = 5
"""Features that are named by what they matter."""

SHOWN = 100
"""Features that are shown, the worst: a page of ten thousand is read by nobody."""

LISTED = 20
"""Rows of each history; the rest is in the ledger."""


def page(state: State, unhealthy: str, now: datetime) -> Page:
    """Decide what the page says.

    Args:
        state: The last committed state.
        unhealthy: Why the daemon is not healthy; empty when it is.
        now: Wall clock, UTC.
    """
    monitors = tuple(_monitor(monitor) for monitor in state.monitors.values())
    wrong = tuple(problems(state))
    tone, title, detail = _headline(state, wrong, unhealthy)
    return Page(
        tone=tone,
        title=title,
        detail=detail,
        event_time=state.latest_event,
        made_at=now,
        problems=wrong,
        monitors=monitors,
        retrains=retraining.history(state, LISTED),
        contests=retraining.contests(state),
        closed=tuple(one for one in state.episodes if not one.open)[:LISTED],
        state=state,
    )


def _headline(state: State, problems: Sequence[Problem], unhealthy: str) -> tuple[Tone, str, str]:
    if unhealthy:
        text = "What stands below may be old."
        return Tone.BROKEN, f"The daemon is not healthy: {unhealthy}", text
    if problems:
        worst = Tone.BROKEN if any(one.tone is Tone.BROKEN for one in problems) else Tone.BAD
        return worst, f"{count(len(problems), 'problem')} open", ""
    monitors = state.monitors.values()
    verdicts = [verdict for one in monitors if not one.superseded for verdict in one.verdicts]
    if not verdicts:
        text = "No bucket of event time has been evaluated yet."
        if any(one.superseded for one in monitors):
            text = "A model was retrained, and its first bucket is not closed yet."
        return Tone.UNKNOWN, "Nothing to judge yet", text
    if all(verdict.level is Level.INSUFFICIENT_DATA for verdict in verdicts):
        text = "No feature has enough data for a verdict; that is not the same as no drift."
        return Tone.UNKNOWN, "Too little data to judge", text
    over = sum(verdict.level is Level.DRIFT for verdict in verdicts)
    if over:
        text = f"{count(over, 'feature')} over the limit in the last window, with no open episode."
        return Tone.GOOD, "No problem is open", text
    return Tone.GOOD, "No problem is open", f"{count(len(verdicts), 'feature')} judged."


def _monitor(monitor: MonitorState) -> MonitorView:
    worst = max(
        (verdict.level for verdict in monitor.verdicts),
        key=[Level.OK, Level.INSUFFICIENT_DATA, Level.DRIFT, Level.INCIDENT].index,
        default=Level.INSUFFICIENT_DATA,
    )
    tone = TONES[Level.INSUFFICIENT_DATA] if monitor.superseded else TONES[worst]
    tone = Tone.BROKEN if monitor.incidents else tone
    over = sum(verdict.level is Level.DRIFT for verdict in monitor.verdicts)
    judged = sum(verdict.level is not Level.INSUFFICIENT_DATA for verdict in monitor.verdicts)
    figures = {one.feature: one for one in monitor.figures}
    verdict = f"{over} of {judged} features over the limit" if judged else "nothing judged yet"
    if monitor.superseded:
        verdict = "nothing judged yet for the live model"
    spreads = {one.feature: one for one in monitor.distributions}
    if monitor.incidents:
        verdict = f"{count(len(monitor.incidents), 'data incident')}, {verdict}"
    return MonitorView(
        name=monitor.name,
        tone=tone,
        verdict=verdict,
        note=SUPERSEDED if monitor.superseded else _waits(monitor) or _open(monitor),
        blocked=monitor.blocked,
        facts=tuple(_facts(monitor)),
        figures=tuple(_figures(monitor)),
        performance=tuple(performance(monitor, monitor.history)),
        ranking=_ranking(monitor),
        segments=tuple(segments(monitor)),
        features=tuple(
            _feature(one, monitor, figures.get(one.feature), spreads.get(one.feature))
            for one in monitor.verdicts[:SHOWN]
        ),
        unshown=max(0, len(monitor.verdicts) - SHOWN),
        freshness=tuple(
            Fact(view.view, _age(view.median_age_seconds), view.latest)
            for view in monitor.freshness
        ),
    )


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "more than half of the requests found no value"
    return f"median age {lasting(timedelta(seconds=seconds))} when served"


def _open(monitor: MonitorState) -> str:
    if monitor.open_until is None:
        return ""
    return (
        "What stands below is as of now: rows that come late still count until "
        f"{moment(monitor.open_until)}, and then it is decided whether this is an alarm."
    )


def _waits(monitor: MonitorState) -> str:
    if not monitor.waits_for:
        return ""
    if monitor.reference is not None:
        return f"Nothing new is judged: {monitor.waits_for}."
    return f"Nothing is judged: there is no reference to compare with: {monitor.waits_for}."


def _of_the_data(monitor: MonitorState) -> Iterator[Fact]:
    """Say what of the last window was not judged, and which columns are no plain features."""
    last = monitor.last
    if last is not None and last.withheld:
        yield Fact("Nothing was judged", last.withheld)
    for aside in last.quarantined if last is not None else ():
        yield Fact("In quarantine", aside.summary)
    for column in monitor.columns:
        if column.role is not Role.FEATURE:
            yield Fact(f"{column.name}, {column.role}", f"Watched by {column.watched_by}")


def _facts(monitor: MonitorState) -> Sequence[Fact]:
    reference, window = monitor.reference, monitor.window
    facts = [Fact("Feature service", monitor.service)]
    if monitor.source is not None:
        kind, name = monitor.source
        facts = [Fact("Feature view" if kind == "view" else "Table", name)]
    if monitor.model:
        version = f", version {reference.model_version or 'unknown'}" if reference else ""
        facts.append(Fact("Model", f"{monitor.model}{version}"))
    if reference is not None:
        if reference.contract:
            facts.append(Fact("Contract", reference.contract[:12]))
        facts.append(
            Fact(
                "Reference",
                f"{stretch(reference.window.start, reference.window.end)}, "
                f"{count(reference.window.rows, 'row')}",
            )
        )
    else:
        facts.append(Fact("Reference", "none yet: nothing can be compared"))
    if window is not None:
        facts.append(
            Fact(
                "Current window",
                f"{stretch(window.start, window.end)}, {count(window.rows, 'row')}",
            )
        )
    if monitor.watermark is not None:
        facts.append(Fact("Evaluated until", moment(monitor.watermark), monitor.watermark))
    facts += _of_the_data(monitor)
    if monitor.late_rows:
        facts.append(Fact("Rows too late to count", f"{monitor.late_rows:,}"))
    if monitor.performance is not None:
        facts.append(Fact("Labelled rows", f"{monitor.performance.labelled:,}"))
    if monitor.audit is not None:
        held = sum(check.holds for check in monitor.audit.checks)
        void = sum(check.void for check in monitor.audit.checks)
        text = f"{held} of {len(monitor.audit.checks)} checks hold, "
        text += (f"{void} void, " if void else "") + moment(monitor.audit.at)
        facts.append(Fact("Invariants (wall clock)", text))
    return facts


def performance(
    monitor: MonitorState, history: Sequence[PastWindow]
) -> Sequence[tuple[str, Chart]]:
    """Draw each figure that any window has, with its estimate and what it was when trained."""
    expected: Mapping[str, float] = monitor.reference.performance if monitor.reference else {}
    ends = {past.window.end for past in history}
    ends |= {past.measured_until for past in history if past.measured_until is not None}
    drawn = []
    for name, title in {**FIGURES, monitor.metric: _title(monitor.metric)}.items():
        live = {
            past.measured_until or past.window.end: past.performance.get(name) for past in history
        }
        thought = {past.window.end: past.estimated.get(name) for past in history}
        if any(value is not None for value in (*live.values(), *thought.values())):
            chart = charts.figures(
                [(end, live.get(end)) for end in sorted(ends)],
                expected=expected.get(name),
                estimated=[(end, thought.get(end)) for end in sorted(ends)],
                box=charts.MEDIUM,
            )
            drawn.append((title, chart))
    return drawn


def _title(metric: str) -> str:
    return FIGURES.get(metric, metric)


def _figures(monitor: MonitorState) -> Sequence[FigureView]:
    """Say what is known of each figure, the one that decides first."""
    live = monitor.performance.metrics if monitor.performance else {}
    intervals = monitor.performance.intervals if monitor.performance else {}
    expected = monitor.reference.performance if monitor.reference else {}
    known = {*live, *monitor.estimated}
    order = [name for name in {monitor.metric: 0, **FIGURES} if name in known]

    def text(values: Mapping[str, float], name: str) -> str:
        return charts.number(values[name]) if name in values else ""

    return [
        FigureView(
            _title(name),
            text(live, name),
            " to ".join(map(charts.number, intervals[name])) if name in intervals else "",
            text(monitor.estimated, name),
            f"{monitor.estimate_errors[name]:+.3g}" if name in monitor.estimate_errors else "",
            text(expected, name),
        )
        for name in order
    ]


def _ranking(monitor: MonitorState) -> str:
    """Say which of the features that moved matter most to the model."""
    if monitor.superseded or not monitor.verdicts:
        return ""
    if not (monitor.reference and monitor.reference.importance):
        return "Not ranked by what the model leans on: its run names no importances."
    moved = [one for one in monitor.verdicts if one.impact]
    heaviest = sorted(moved, key=lambda one: -(one.impact or 0.0))[:RANKED]
    listed = ", ".join(f"{one.feature} {charts.number(one.impact or 0.0)}" for one in heaviest)
    return f"What moved, by effect \N{MULTIPLICATION SIGN} importance to the model: {listed}."


def segments(monitor: MonitorState) -> Sequence[SegmentView]:
    """Say how each part of the last window stands."""
    views = []
    for one in monitor.segments:
        worst = one.furthest[0] if one.furthest else None
        views.append(
            SegmentView(
                name=f"{one.column} {one.value}",
                rows=f"{one.rows:,}",
                furthest=worst.feature if worst else "",
                ratio=times_text(worst) if worst else "",
                tone=TONES[worst.level] if worst else Tone.UNKNOWN,
                live=charts.number(one.metrics[monitor.metric])
                if monitor.metric in one.metrics
                else "",
            )
        )
    return views


def _feature(
    verdict: Verdict,
    monitor: MonitorState,
    figures: Figures | None,
    spread: Distribution | None,
) -> FeatureView:
    history = [(past.window.end, past.ratios.get(verdict.feature)) for past in monitor.history]
    facts = [
        Fact("Statistic", verdict.statistic),
        Fact("Value", value_text(verdict.value)),
        Fact("Threshold", value_text(verdict.threshold)),
    ]
    if verdict.impact is not None:
        facts.append(Fact("Effect \N{MULTIPLICATION SIGN} importance", value_text(verdict.impact)))
    if figures is not None:
        facts += [
            Fact("Rows", f"{figures.rows:,}"),
            Fact("Nulls", share(figures.null_share)),
            Fact("NaN", f"{figures.nans:,}"),
            Fact("Not in the reference", f"{figures.unseen:,}"),
        ]
        for term, value in (
            ("Smallest", figures.minimum),
            ("Mean", figures.mean),
            ("Standard deviation", figures.sd),
            ("Largest", figures.maximum),
        ):
            if value is not None:
                facts.append(Fact(term, charts.number(value)))
    return FeatureView(
        name=verdict.feature,
        tone=Tone.UNKNOWN if monitor.superseded else TONES[verdict.level],
        word="former model" if monitor.superseded else WORDS[verdict.level],
        ratio=times_text(verdict),
        bar=round(100 * min(verdict.ratio / FULL_BAR, 1.0), 1),
        nulls=share(figures.null_share) if figures else "",
        spark=charts.ratios(history, charts.SPARK),
        chart=charts.ratios(history),
        reason=verdict.reason,
        facts=tuple(facts),
        bars=bars(spread) if spread else (),
    )


def bars(spread: Distribution) -> tuple[BarView, ...]:
    """Scale the bars so that the longest of both sides fills its place."""
    shares = [share for bar in spread.bars for share in (bar.reference, bar.current or 0.0)]
    longest = max(shares, default=0.0) or 1.0
    return tuple(
        BarView(
            label=bar.label,
            reference=percent(bar.reference),
            current="none" if bar.current is None else percent(bar.current),
            reference_width=round(100 * bar.reference / longest, 1),
            current_width=round(100 * (bar.current or 0.0) / longest, 1),
        )
        for bar in spread.bars
    )
