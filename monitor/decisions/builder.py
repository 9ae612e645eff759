"""A decision while it is made, and what may forbid a retraining.

Above `episodes`, below `policy`, which says what to open, close and ask for. Each of the two that
change something, `Draft.outcome` and `Draft.close`, keeps the state, the change and its alert
together.
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
    Closed,
    Decision,
    Episode,
    Kind,
    ModelHistory,
    Outcome,
    PolicyState,
    Severity,
    Trigger,
)

if TYPE_CHECKING:
    from datetime import datetime

    from steadfeast.monitor.config.schema import MonitorConfig

NAMESPACE = UUID("5d1c3a52-6f0e-5b6e-9d0a-0b8f6f0f2a77")
"""Namespace of every id derived here; changing it would fire open episodes again."""


def episode_id(monitor: str, kind: Kind, *identity: str) -> str:
    """Return the id of an episode, the same whenever the same comes again.

    Args:
        monitor: Whose.
        kind: Of what.
        identity: Of what is measured, the end of the window that it opened on and the model's
            version; of an outside cause, what it says.
    """
    return _uuid("episode", monitor, kind.value, *identity)


def request_id(model: str, contract: str, policy: str, episode: str) -> str:
    """Return the id that makes a trigger's effect happen once."""
    return _uuid("trigger", model, contract, policy, episode)


def _uuid(*parts: str) -> str:
    return str(uuid5(NAMESPACE, json.dumps(parts, separators=(",", ":"))))


@dataclass(slots=True)
class Draft:
    """A decision while it is made."""

    monitor: str
    state: PolicyState
    opened: list[Episode] = field(default_factory=list)
    closed: list[Closed] = field(default_factory=list)
    triggers: list[Trigger] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)

    def decision(self) -> Decision:
        """Return what was made."""
        return Decision(
            self.state,
            tuple(self.opened),
            tuple(self.closed),
            tuple(self.triggers),
            tuple(self.alerts),
        )

    def fired(self) -> str:
        """Return the request that this very decision fires; empty if none."""
        return next((t.request_id for t in self.triggers if t.outcome is Outcome.FIRED), "")

    def keep(self, episode: Episode) -> None:
        """Remember an open episode as it is now."""
        self.state = replace(self.state, episodes={**self.state.episodes, episode.key: episode})

    def open(self, episode: Episode) -> None:
        """Open an episode, and tell of it."""
        self.opened.append(episode)
        self.keep(episode)
        self._tell(episode, Severity.WARNING, episode.window.end, episode.summary)

    def close(self, episode: Episode, at: datetime, reason: str) -> None:
        """End an episode; a trigger of it that never fired will not."""
        if episode.outcome is not None and episode.outcome not in FINAL:
            self.outcome(
                episode, episode.request_id, Outcome.EXPIRED, at, f"its episode closed: {reason}"
            )
        self.closed.append(Closed(episode.episode_id, at, reason))
        self._tell(
            episode, Severity.INFO, at, f"closed: {episode.summary}: {reason}", resolved=True
        )
        self.state = replace(
            self.state,
            episodes={k: e for k, e in self.state.episodes.items() if k != episode.key},
            # What was over before it closed must not help to open the next one.
            recent={k: seen for k, seen in self.state.recent.items() if k != episode.kind},
        )

    def outcome(
        self, episode: Episode, request: str, outcome: Outcome, at: datetime, reason: str
    ) -> None:
        """Write what became of an episode's trigger, once per change."""
        if outcome is episode.outcome:
            return
        episode = replace(episode, outcome=outcome, request_id=request)
        self.keep(episode)
        self.triggers.append(Trigger(request, episode, outcome, at, reason))
        if outcome is Outcome.EXPIRED and episode.kind not in OUTSIDE:
            return  # the alert that tells of the episode's end says it
        self._tell(
            episode,
            Severity.WARNING if outcome is Outcome.WAITING else Severity.INFO,
            at,
            f"retraining {outcome}{': ' + reason if reason else ''} ({episode.summary})",
            AlertKind.TRIGGER,
        )
        if episode.kind is Kind.SCHEDULE and outcome in {Outcome.FIRED, Outcome.REJECTED}:
            self.close(episode, at, f"{outcome}")

    def ask(
        self, episode: Episode, at: datetime, config: MonitorConfig, history: ModelHistory
    ) -> None:
        """Decide an open episode's one trigger as things stand at `at`."""
        if episode.outcome in FINAL or config.pipeline is None:
            return
        request = request_id(config.model, episode.contract, self.monitor, episode.episode_id)
        outcome, reason = forbidden(self, at, config, history)
        if outcome is None and config.approval == "manual":
            outcome, reason = Outcome.WAITING, "waits for a person"
        self.outcome(episode, request, outcome or Outcome.FIRED, at, reason)

    def _tell(
        self,
        episode: Episode,
        severity: Severity,
        at: datetime,
        summary: str,
        kind: AlertKind = AlertKind.EPISODE,
        *,
        resolved: bool = False,
    ) -> None:
        if kind is AlertKind.EPISODE and episode.kind in OUTSIDE:
            return  # nothing is wrong, or whoever told us tells of it
        self.alerts.append(
            Alert(
                kind,
                severity,
                self.monitor,
                at,
                summary,
                episode.episode_id,
                episode.features,
                resolved,
            )
        )


def forbidden(
    draft: Draft, at: datetime, config: MonitorConfig, history: ModelHistory
) -> tuple[Outcome | None, str]:
    """Return what forbids the model's retraining at `at` and why, triage first, or None."""
    broken = draft.state.blocked(at - config.window) or history.blocked
    if broken:
        return Outcome.BLOCKED, broken
    running = history.running or draft.fired()
    if running:
        return Outcome.RUNNING, f"trigger {running} for the model is under way"
    if history.fired and at < max(history.fired) + config.cooldown:
        until = max(history.fired) + config.cooldown
        return Outcome.COOLDOWN, f"cooldown until {until.day} {until:%b %Y %H:%M} UTC"
    spent = sum(time > at - config.budget.per for time in history.fired)
    if spent >= config.budget.runs:
        return Outcome.BUDGET, f"{spent} triggers within {config.budget.per.days} days"
    return None, ""
