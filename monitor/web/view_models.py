"""What the page is made of: finished words and drawn charts, nothing left to decide.

Above `charts`; `page` fills them from a `State`, the template lays them out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from steadfeast.monitor.ledger import EpisodeRecord, State
    from steadfeast.monitor.web.charts import Chart


class Tone(StrEnum):
    """How something is coloured and marked; always beside words that say the same."""

    GOOD = "good"
    BAD = "bad"
    BROKEN = "broken"
    UNKNOWN = "unknown"
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class Fact:
    """A term and what is to be said of it."""

    term: str
    text: str
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class BarView:
    """One group of values: shares in words, and as widths from 0 to 100."""

    label: str
    reference: str
    current: str
    reference_width: float
    current_width: float


@dataclass(frozen=True, slots=True)
class FeatureView:
    """One watched feature; `bar` is 0 to 100, the limit at 50."""

    name: str
    tone: Tone
    word: str
    ratio: str
    bar: float
    nulls: str
    spark: Chart
    chart: Chart
    reason: str
    facts: tuple[Fact, ...]
    bars: tuple[BarView, ...]


@dataclass(frozen=True, slots=True)
class FigureView:
    """One figure of merit in words; empty where nothing is known."""

    title: str
    live: str
    interval: str
    estimated: str
    off: str
    expected: str


@dataclass(frozen=True, slots=True)
class SegmentView:
    """One part of the window; `furthest` is a feature, and how many times its limit it is."""

    name: str
    rows: str
    furthest: str
    ratio: str
    tone: Tone
    live: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """One feature of an episode: how far it was when the episode opened, and is now."""

    feature: str
    statistic: str
    value: str
    threshold: str
    then: str
    now: str


@dataclass(frozen=True, slots=True)
class Action:
    """What a person may do about something.

    Attributes:
        subject: Id of the episode or the trigger.
        verbs: What is posted, and what the button says.
    """

    subject: str
    verbs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happened, or that is still to come.

    Attributes:
        command: What does it, in a terminal.
        action: What does it on the page, for whom may act.
    """

    tone: Tone
    text: str
    at: datetime | None = None
    command: str = ""
    action: Action | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong now.

    Attributes:
        anchor: Id of its place on the page.
        label: What sort of problem, in two words.
        since: From when on.
        lasting: For how long, in words.
        advice: What to do first.
        steps: What has happened about it, oldest first.
    """

    anchor: str
    tone: Tone
    label: str
    monitor: str
    title: str
    since: datetime | None
    lasting: str
    advice: str
    evidence: tuple[Evidence, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class MonitorView:
    """One monitor as it stands."""

    name: str
    tone: Tone
    verdict: str
    note: str
    blocked: str
    facts: tuple[Fact, ...]
    figures: tuple[FigureView, ...]
    performance: tuple[tuple[str, Chart], ...]
    ranking: str
    segments: tuple[SegmentView, ...]
    features: tuple[FeatureView, ...]
    unshown: int
    freshness: tuple[Fact, ...]


@dataclass(frozen=True, slots=True)
class RetrainView:
    """One trigger and its run, or a promotion that no trigger asked for."""

    at: datetime
    monitor: str
    why: str
    trigger: str
    trigger_tone: Tone
    run: str
    run_tone: Tone
    contest: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Page:
    """Everything that the template lays out.

    Attributes:
        tone: Of the whole.
        title: The state of things in a line.
        detail: What to make of it, in a sentence.
        event_time: The latest event that was seen; None before the first.
        made_at: When the page was made, wall clock.
        contests: Per monitor a title, and what challengers and champions measured.
    """

    tone: Tone
    title: str
    detail: str
    event_time: datetime | None
    made_at: datetime
    problems: tuple[Problem, ...]
    monitors: tuple[MonitorView, ...]
    retrains: tuple[RetrainView, ...]
    contests: tuple[tuple[str, Chart], ...]
    closed: tuple[EpisodeRecord, ...]
    state: State
