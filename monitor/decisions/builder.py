"""A decision while it is made: each change keeps the state, the change and its alert together.

Above `model` and `retraining`, below `policy`, which says what to open, change, close and ask for.
Notifications are grouped as Alertmanager does: what a window opened, joined or made worse in a
monitor is one alert, and what it resolved is another.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from steadfeast.monitor.decisions.model import (
    FINAL,
    OUTSIDE,
    Alert,
    AlertKind,
    Answer,
    Closed,
    Decision,
    Episode,
    EpisodeKind,
    Member,
    ModelHistory,
    Outcome,
    PolicyState,
    Request,
    Severity,
    Trigger,
    described,
)
from steadfeast.monitor.decisions.retraining import Judgement, Situation, judge

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from steadfeast.monitor.config import MonitorConfig
    from steadfeast.monitor.decisions.model import Evaluation
    from steadfeast.monitor.drift import Verdict
    from steadfeast.monitor.profiles import Window

NAMESPACE = UUID("5d1c3a52-6f0e-5b6e-9d0a-0b8f6f0f2a77")
"""Namespace of every id derived here; changing it would fire open episodes again."""

JOINED, WORSE, UNJUDGED, RESOLVED, CLOSED = (
    "joined",
    "worse",
    "cannot be judged",
    "resolved",
    "closed",
)
"""What may happen to members of an open episode."""

REFRESH = "refresh"
"""What the cause of a model that is due begins with."""

_STILL_OPEN = 3
"""Features of other open episodes that a notification names."""


def episode_id(monitor: str, kind: EpisodeKind, *identity: str) -> str:
    """Return the id of an episode, the same whenever the same comes again.

    Args:
        monitor: Whose.
        kind: Of what.
        identity: Of what is measured, the end of the window that it opened on, its first member
            and the model's version; of an outside cause, what it says.
    """
    return _uuid("episode", monitor, kind.value, *identity)


def request_id(model: str, contract: str, policy: str, episode: str, attempt: int) -> str:
    """Return the id that makes a trigger's effect happen once.

    Args:
        model: To be retrained.
        contract: Of the live model.
        policy: The monitor.
        episode: The first evidence.
        attempt: How many requests it was the first evidence of, this one included.
    """
    return _uuid("trigger", model, contract, policy, episode, str(attempt))


def _uuid(*parts: str) -> str:
    return str(uuid5(NAMESPACE, json.dumps(parts, separators=(",", ":"))))


@dataclass(frozen=True, slots=True)
class _Notice:
    """One thing that people are notified of: what happened, to which features, and why."""

    what: str
    episode: Episode
    verdicts: tuple[Verdict, ...]
    reason: str = ""


@dataclass(slots=True)
class DecisionBuilder:
    """A decision while it is made."""

    monitor: str
    state: PolicyState
    opened: list[Episode] = field(default_factory=list)
    changed: dict[str, Episode] = field(default_factory=dict)
    closed: list[Closed] = field(default_factory=list)
    triggers: list[Trigger] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)
    _begun: list[_Notice] = field(default_factory=list)
    _ended: list[_Notice] = field(default_factory=list)

    def decision(self, at: datetime) -> Decision:
        """Return what was made, with the notifications that are not yet among the alerts."""
        self.notify(at)
        return Decision(
            self.state,
            tuple(self.opened),
            tuple(self.changed.values()),
            tuple(self.closed),
            tuple(self.triggers),
            tuple(self.alerts),
        )

    # Episodes

    def put(self, episode: Episode) -> None:
        """Remember an open episode as it is now."""
        episodes = {**self.state.episodes, episode.episode_id: episode}
        self.state = replace(self.state, episodes=episodes)

    def open(self, episode: Episode) -> None:
        """Open an episode, and notify of it."""
        self.opened.append(episode)
        self.put(episode)
        if episode.kind not in OUTSIDE:  # else nothing is wrong, or whoever says so notifies
            self._begun.append(_Notice("", episode, episode.features))

    def change(self, episode: Episode) -> None:
        """Replace an open episode whose members changed."""
        self.put(episode)
        self.changed[episode.episode_id] = episode

    def note(
        self, episode: Episode, what: str, members: Sequence[Member], reason: str = ""
    ) -> None:
        """Have people notified of what happened to members of an open episode, if to any."""
        notices = self._ended if what == RESOLVED else self._begun
        if members:
            verdicts = tuple(one.verdict for one in members)
            notices.append(_Notice(what, episode, verdicts, reason))

    def close(self, episode: Episode, at: datetime, reason: str) -> None:
        """End an episode; a request that has no other evidence expires."""
        self.closed.append(Closed(episode, at, reason))
        self.changed.pop(episode.episode_id, None)
        if episode.kind not in OUTSIDE:
            self._ended.append(_Notice(CLOSED, episode, episode.features, reason))
        left = {k: one for k, one in self.state.episodes.items() if k != episode.episode_id}
        self.state = replace(self.state, episodes=left)
        request = self.state.request
        if request is not None and left.keys().isdisjoint(request.episode_ids):
            why = f"its episode closed: {reason}"
            self.settle(request.request_id, Judgement(Outcome.EXPIRED, why, (episode,)), at)

    # Retraining

    def situation(
        self,
        at: datetime,
        config: MonitorConfig,
        history: ModelHistory,
        known: Window | None = None,
    ) -> Situation:
        """Return what a retraining is decided on."""
        blocked = self.state.blocked(at - config.window)
        return Situation(at, tuple(self.state.episodes.values()), blocked, history, known)

    def ask(self, evaluation: Evaluation, config: MonitorConfig) -> None:
        """Decide about a retraining on the open evidence, as things stand after a window."""
        if config.pipeline is None:
            return
        at, history = evaluation.window.end, evaluation.history
        fitted_on = evaluation.reference_window if config.kind == "served" else None
        judgement = judge(self.situation(at, config, history, fitted_on), config)
        if judgement is None:
            return
        request = self.state.request
        if request is None:
            first = judgement.evidence[0]
            first = replace(first, requests=first.requests + 1)
            self.put(first)
            judgement = replace(judgement, evidence=(first, *judgement.evidence[1:]))
            made = request_id(
                config.model, first.contract, self.monitor, first.episode_id, first.requests
            )
            self.settle(made, judgement, at)
        elif request.outcome is judgement.outcome:
            known = tuple(one.episode_id for one in judgement.evidence)
            if set(known) != set(request.episode_ids):  # nothing that people are notified of
                self.state = replace(self.state, request=replace(request, episode_ids=known))
                self.triggers.append(
                    Trigger(
                        request.request_id,
                        judgement.evidence,
                        request.outcome,
                        at,
                        judgement.reason,
                        decided=False,
                    )
                )
        else:
            self.settle(request.request_id, judgement, at)

    def settle(self, request: str, judgement: Judgement, at: datetime) -> None:
        """Write down what was decided about a request, and notify of it."""
        outcome, evidence = judgement.outcome, judgement.evidence
        waiting = None
        if outcome not in FINAL:
            waiting = Request(request, tuple(one.episode_id for one in evidence), outcome)
        self.state = replace(self.state, request=waiting)
        self.triggers.append(Trigger(request, evidence, outcome, at, judgement.reason))
        # The alert of its episode's end says that a request expired.
        if outcome is not Outcome.EXPIRED or all(one.kind in OUTSIDE for one in evidence):
            self.notify(at)
            why = f": {judgement.reason}" if judgement.reason else ""
            more = f"; and {len(evidence) - 1} more" if len(evidence) > 1 else ""
            summary = f"retraining {outcome}{why} ({evidence[0].summary}{more})"
            severity = Severity.WARNING if outcome is Outcome.WAITING else Severity.INFO
            self._alert(AlertKind.TRIGGER, severity, at, summary, evidence)
        if outcome in {Outcome.FIRED, Outcome.REJECTED}:
            for one in evidence:
                answered = replace(
                    self.state.episodes[one.episode_id], answer=Answer(request, outcome, at)
                )
                self.put(answered)
                # A refit that a person refused stays, so that it is not asked for again at once.
                refused = outcome is Outcome.REJECTED and one.cause.startswith(REFRESH)
                if one.kind is EpisodeKind.SCHEDULE and not refused:
                    self.close(answered, at, f"{outcome}")

    # Notifications

    def notify(self, at: datetime) -> None:
        """Make one alert of what began since the last call, and one of what ended."""
        begun, ended, self._begun, self._ended = self._begun, self._ended, [], []
        for notices, resolved in ((begun, False), (ended, True)):
            if not notices:
                continue
            parts = [_line(what, reason, same) for (what, reason), same in _alike(notices)]
            about = [one.episode for one in notices if not resolved or one.what == CLOSED]
            rest = self._still_open({one.episode.episode_id for one in notices})
            summary = "; ".join(filter(None, [*parts, rest]))
            calm = resolved or all(one.what == UNJUDGED for one in notices)
            verdicts = [verdict for one in notices for verdict in one.verdicts]
            self._alert(
                AlertKind.EPISODE,
                Severity.INFO if calm else Severity.WARNING,
                at,
                summary,
                about,
                verdicts,
                resolved=resolved,
            )

    def _still_open(self, named: set[str]) -> str:
        """Name features of other open episodes."""
        features = [
            member.verdict.feature
            for one in self.state.episodes.values()
            if one.episode_id not in named
            for member in one.members
            if member.open
        ]
        if not features:
            return ""
        more = len(features) - _STILL_OPEN
        return f"still open: {', '.join(features[:_STILL_OPEN])}" + (
            f" and {more} more" if more > 0 else ""
        )

    def _alert(
        self,
        kind: AlertKind,
        severity: Severity,
        at: datetime,
        summary: str,
        episodes: Sequence[Episode],
        verdicts: Sequence[Verdict] | None = None,
        *,
        resolved: bool = False,
    ) -> None:
        features = (
            [verdict for one in episodes for verdict in one.features]
            if verdicts is None
            else verdicts
        )
        self.alerts.append(
            Alert(
                kind,
                severity,
                self.monitor,
                at,
                summary,
                {one.episode_id: one.summary for one in episodes},
                tuple(sorted(features, key=lambda one: -one.ratio)),
                resolved,
            )
        )


def _alike(notices: Sequence[_Notice]) -> list[tuple[tuple[str, str], list[_Notice]]]:
    """Put together what happened in the same way to episodes of the same kind."""
    groups: dict[tuple[str, str, str], list[_Notice]] = {}
    for one in notices:
        what = one.what or ("slow drift" if one.episode.slow else str(one.episode.kind))
        groups.setdefault((what, one.reason, one.episode.kind), []).append(one)
    return [((what, reason), same) for (what, reason, _), same in groups.items()]


def _line(what: str, reason: str, notices: Sequence[_Notice]) -> str:
    """Return one line on what happened in one way."""
    verdicts = sorted(
        (verdict for one in notices for verdict in one.verdicts), key=lambda one: -one.ratio
    )
    if not reason:
        return f"{what}: {described(verdicts)}"
    names = ", ".join(dict.fromkeys(one.feature for one in verdicts))
    return f"{what}: {notices[0].episode.kind}: {names}: {reason}"
