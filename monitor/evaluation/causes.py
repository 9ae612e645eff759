"""Causes that are not seen in the data: scheduled times, and other systems' alerts.

Above `evaluation`, whose decisions it commits in the same way; `daemon` looks at the schedule with
every tick, and `webhook` brings what Alertmanager tells. A cause is taken once: its episode's id
follows from what it is, and stays in the ledger after the episode has closed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from steadfeast.featurestore.errors import SteadfeastError
from steadfeast.monitor.decisions import (
    Cause,
    EpisodeKind,
    Evaluation,
    episode_id,
    resolve,
    scheduled,
    take,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from steadfeast.monitor.evaluation.evaluator import Evaluator
    from steadfeast.monitor.ledger import Ledger

log = structlog.get_logger(__name__)

OWN = "Steadfeast"
"""What the names of our own alerts begin with: what they tell of is decided here already."""


class NotYetError(SteadfeastError):
    """A cause came before the monitor has judged a window, so nothing is known of its data.

    Attributes:
        monitor: Which.
    """

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        super().__init__(f"monitor {monitor} has judged no window yet; tell it again later")


@dataclass(frozen=True, slots=True)
class ForeignAlert:
    """An alert of another system.

    Attributes:
        fingerprint: Of its labels.
        starts_at: When it began; with the fingerprint, what makes it one.
        firing: False when it is resolved.
        labels: What `causes` of a monitor are compared with.
        summary: One line for a person.
    """

    fingerprint: str
    starts_at: datetime
    firing: bool
    labels: Mapping[str, str]
    summary: str

    @property
    def cause(self) -> Cause:
        """The cause that it is."""
        return Cause(
            EpisodeKind.ALERT, (self.fingerprint, self.starts_at.isoformat()), self.summary
        )


class Causes:
    """Takes causes from outside, each once; safe to share between threads.

    Args:
        ledger: What was taken, and where the decisions go.
        evaluator: Knows the monitors, their windows and their models.
    """

    def __init__(self, ledger: Ledger, evaluator: Evaluator) -> None:
        self._ledger, self._evaluator = ledger, evaluator

    def due(self, monitor: str) -> bool:
        """Say whether the schedule has something to take."""
        held = self._ledger.held(monitor)
        now = self._evaluator.now(monitor)
        if held.watermark is None or now is None:
            return False
        config = self._evaluator.config.monitors[monitor]
        return scheduled(held.policy, config, now)[0] is not held.policy

    def look(self, monitor: str) -> None:
        """Take the scheduled time that has come, once every closed bucket is evaluated.

        Not before: what is broken in a bucket that is not yet looked at has to block.
        """
        if not self.due(monitor) or self._evaluator.due(monitor, 1):
            return
        config, now = self._evaluator.config.monitors[monitor], self._evaluator.now(monitor)
        with self._ledger.transaction():
            held = self._ledger.held(monitor)
            if held.watermark is None or now is None:
                return
            policy, cause = scheduled(held.policy, config, now)
            self._ledger.hold(monitor, replace(held, policy=policy))
            if cause is not None:
                self._take(monitor, cause)

    def told(self, alerts: Sequence[ForeignAlert], actor: str) -> int:
        """Take what another system's alerts are causes of, and return how much that changed.

        Repeating it changes nothing. An alert that is resolved closes its episode.

        Args:
            alerts: In the order in which they were told.
            actor: Who tells; kept in the audit log.

        Raises:
            NotYetError: A monitor cannot take its cause yet; the others have.
        """
        changed, not_yet = 0, ""
        for monitor, config in self._evaluator.config.monitors.items():
            for alert in alerts:
                if alert.labels.get("alertname", "").startswith(OWN):
                    continue
                if not alert.firing:
                    changed += self._resolved(monitor, alert, actor)
                elif any(labels.items() <= alert.labels.items() for labels in config.causes):
                    if self._ledger.held(monitor).watermark is None:
                        not_yet = monitor
                    else:
                        changed += self._fires(monitor, alert, actor)
        if not_yet:
            raise NotYetError(not_yet)
        return changed

    def _fires(self, monitor: str, alert: ForeignAlert, actor: str) -> bool:
        with self._ledger.transaction():
            taken = self._take(monitor, alert.cause)
            if taken:
                self._ledger.add_audit(actor, "cause", taken, alert.summary)
        return bool(taken)

    def _resolved(self, monitor: str, alert: ForeignAlert, actor: str) -> bool:
        episode = episode_id(monitor, EpisodeKind.ALERT, *alert.cause.identity)
        if episode not in self._ledger.held(monitor).policy.episodes:
            return False
        with self._ledger.transaction():
            policy = self._ledger.held(monitor).policy
            decision = resolve(policy, monitor, episode, "resolved")
            self._evaluator.decided(monitor, decision)
            if decision.closed:
                self._ledger.add_audit(actor, "resolve", episode, alert.summary)
        return bool(decision.closed)

    def _take(self, monitor: str, cause: Cause) -> str:
        """Take a cause inside a transaction; return its episode, or nothing if it was taken."""
        config = self._evaluator.config.monitors[monitor]
        held = self._ledger.held(monitor)
        episode = episode_id(monitor, cause.kind, *cause.identity)
        window = self._ledger.last_window(monitor)
        if held.reference is None or window is None or self._ledger.has_episode(episode):
            return ""
        standing = Evaluation(
            monitor=monitor,
            window=window,
            reference_window=held.reference.window,
            verdicts=(),
            contract=held.reference.contract,
            model_version=held.reference.model_version,
            history=self._evaluator.history(monitor),
        )
        self._evaluator.decided(monitor, take(held.policy, cause, standing, config))
        log.info("cause", monitor=monitor, kind=cause.kind, episode=episode, summary=cause.summary)
        return episode
