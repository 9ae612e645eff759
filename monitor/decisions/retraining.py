"""Whether the open evidence fires a retraining now: one pure function.

Above `model`, below `builder`, which writes down what is decided here. The evidence is the set of
open episodes: drift, a drop in performance, a scheduled time, another system's alert. An episode
asks once; it asks again when the run that answered it ended without a promotion `retry_after` ago,
or when it got decisively worse. So a refusal ends nothing, and a second drift is a cause of its
own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from steadfeast.monitor.decisions.model import Episode, Kind, ModelHistory, Outcome

if TYPE_CHECKING:
    from datetime import datetime

    from steadfeast.monitor.config.schema import MonitorConfig

_ORDER = (Kind.PERFORMANCE, Kind.DRIFT, Kind.ALERT, Kind.SCHEDULE)


@dataclass(frozen=True, slots=True)
class Situation:
    """All that decides whether a model is retrained.

    Attributes:
        at: End of the last window that was judged.
        episodes: Open ones.
        blocked: Why broken data of the monitor forbid it; empty if none do.
        history: What happened to the model before.
    """

    at: datetime
    episodes: tuple[Episode, ...]
    blocked: str
    history: ModelHistory


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is decided about a retraining that is asked for.

    Attributes:
        outcome: FIRED, WAITING for a person, or what forbids it.
        reason: Of what forbids it; empty when it fires.
        evidence: Episodes that speak for it: those that ask, then others that stand.
    """

    outcome: Outcome
    reason: str
    evidence: tuple[Episode, ...]


def judge(situation: Situation, config: MonitorConfig) -> Judgement | None:
    """Return what is decided as things stand; None if nothing asks for a retraining."""
    standing = sorted((one for one in situation.episodes if one.standing), key=_rank)
    asking = [one for one in standing if asks(one, situation, config)]
    if not asking:
        return None
    outcome, reason = forbidden(situation, config)
    if outcome is None and config.approval == "manual":
        outcome, reason = Outcome.WAITING, "waits for a person"
    others = [one for one in standing if one not in asking]
    return Judgement(outcome or Outcome.FIRED, reason, (*asking, *others))


def asks(episode: Episode, situation: Situation, config: MonitorConfig) -> bool:
    """Return whether an episode that stands asks for a retraining, for the first time or again."""
    answer = episode.answer
    if answer is None:
        return True
    if answer.outcome is Outcome.REJECTED:
        return False
    if answer.request_id not in situation.history.without_promotion:
        return False
    return situation.at >= answer.at + config.retry_after


def forbidden(situation: Situation, config: MonitorConfig) -> tuple[Outcome | None, str]:
    """Return what forbids the model's retraining and why, broken data first, or None."""
    history, at = situation.history, situation.at
    broken = situation.blocked or history.blocked
    if broken:
        return Outcome.BLOCKED, broken
    if history.running:
        return Outcome.RUNNING, f"trigger {history.running} for the model is under way"
    if history.fired and at < max(history.fired) + config.cooldown:
        until = max(history.fired) + config.cooldown
        return Outcome.COOLDOWN, f"cooldown until {until.day} {until:%b %Y %H:%M} UTC"
    spent = sum(time > at - config.budget.per for time in history.fired)
    if spent >= config.budget.runs:
        return Outcome.BUDGET, f"{spent} triggers within {config.budget.per.days} days"
    return None, ""


def _rank(episode: Episode) -> tuple[int, float, str]:
    worst = max((one.ratio for one in episode.features), default=0.0)
    return _ORDER.index(episode.kind), -worst, episode.episode_id
