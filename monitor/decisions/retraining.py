"""Whether the open evidence fires a retraining now: one pure function.

Above `model`, below `builder`, which writes down what is decided here. The evidence is the set of
open episodes: drift, a drop in performance, a scheduled time, another system's alert. An episode
asks once; it asks again when the run that answered it ended without a promotion `retry_after` ago,
or when it got decisively worse. So a refusal ends nothing, and a second drift is a cause of its
own.

Evidence is weighed by what it costs the model. A drop in performance asks at once. Drift asks at
once where effect times importance is heavy; lighter drift, with `refresh: auto`, asks when enough
has become known for another fit to differ, and drift of what the model hardly leans on never does.
Where no importance is known, drift that one bucket would decide asks at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from steadfeast.monitor.decisions import refresh
from steadfeast.monitor.decisions.model import Episode, EpisodeKind, ModelHistory, Outcome
from steadfeast.monitor.drift import DECISIVE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from steadfeast.monitor.config import BudgetConfig, MonitorConfig
    from steadfeast.monitor.decisions.model import PastRun
    from steadfeast.monitor.profiles import Window

HEAVY, LIGHT = 0.5, 0.02
"""Effect times importance of all that drifts: as the shift, in standard deviations, of a feature
that is all that the model leans on. From the first on drift asks at once; below the second it does
not ask."""
_ORDER = (EpisodeKind.PERFORMANCE, EpisodeKind.DRIFT, EpisodeKind.ALERT, EpisodeKind.SCHEDULE)


@dataclass(frozen=True, slots=True)
class Situation:
    """All that decides whether a model is retrained.

    Attributes:
        at: End of the last window that was judged.
        episodes: Open ones.
        blocked: Why broken data of the monitor forbid it; empty if none do.
        history: What happened to the model before.
        known: From the oldest to the newest example that the model was fitted on; None if nothing
            says so.
    """

    at: datetime
    episodes: tuple[Episode, ...]
    blocked: str
    history: ModelHistory
    known: Window | None = None


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
    outcome, reason = forbidden(situation, config, asking)
    if outcome is None and config.approval == "manual":
        outcome, reason = Outcome.WAITING, "waits for a person"
    others = [one for one in standing if one not in asking]
    return Judgement(outcome or Outcome.FIRED, reason, (*asking, *others))


def asks(episode: Episode, situation: Situation, config: MonitorConfig) -> bool:
    """Return whether an episode that stands asks for a retraining, for the first time or again."""
    if episode.kind is EpisodeKind.DRIFT and not _weighs(situation, config):
        return False
    answer = episode.answer
    if answer is None:
        return True
    if answer.outcome is Outcome.REJECTED:
        # A refit that nothing is wrong without was refused for what was new then; more is by now.
        is_refit = episode.kind is EpisodeKind.SCHEDULE
        return is_refit and situation.at >= answer.at + config.retry_after
    if answer.request_id not in situation.history.without_promotion:
        return False
    return situation.at >= answer.at + config.retry_after


def forbidden(
    situation: Situation, config: MonitorConfig, evidence: Sequence[Episode]
) -> tuple[Outcome | None, str]:
    """Return what forbids the model's retraining and why, broken data first, or None.

    Args:
        situation: All that is known.
        config: Of the monitor.
        evidence: Episodes that ask for it: a drop in performance may use the budget's reserve.
    """
    history, at = situation.history, situation.at
    broken = situation.blocked or history.blocked
    if broken:
        return Outcome.BLOCKED, broken
    if history.running:
        return Outcome.RUNNING, f"trigger {history.running} for the model is under way"
    last = max((run.at for run in history.runs), default=None)
    if last is not None and at < last + config.cooldown:
        return Outcome.COOLDOWN, f"cooldown until {_moment(last + config.cooldown)}"
    urgent = any(one.kind is EpisodeKind.PERFORMANCE for one in evidence)
    reason = _over_budget(at, history.runs, config.budget, urgent=urgent)
    return (Outcome.BUDGET, reason) if reason else (None, "")


def _weighs(situation: Situation, config: MonitorConfig) -> bool:
    """Return whether the drift that stands is worth a retraining now."""
    verdicts = [
        member.verdict
        for one in situation.episodes
        if one.kind is EpisodeKind.DRIFT and one.standing
        for member in one.members
        if member.open
    ]
    impacts = [one.impact for one in verdicts if one.impact is not None]
    weight = sum(impacts)
    if len(impacts) == len(verdicts) and weight < LIGHT:
        return False
    if config.refresh != "auto" or situation.known is None or weight >= HEAVY:
        return True
    if any(one.impact is None and abs(one.evidence or 0.0) > DECISIVE for one in verdicts):
        return True  # nobody knows what the model leans on, and it is far off
    runs = situation.history.runs
    return bool(refresh.due(situation.at, situation.known, runs, config, drifting=True))


def _over_budget(
    at: datetime, runs: Sequence[PastRun], budget: BudgetConfig, *, urgent: bool
) -> str:
    """Return since when the budget is used and when it allows the next run; empty if it does."""
    used = sorted((run for run in runs if run.at > at - budget.per), key=lambda run: run.at)
    spent = sum(run.cost for run in used)
    allowed = budget.runs + (budget.reserve if urgent else 0)
    if spent <= allowed - 1:
        return ""
    left = spent
    for run in used:
        left -= run.cost
        if left <= allowed - 1:
            break
    next_one = run.at + budget.per
    reserve = budget.runs + budget.reserve - spent
    if urgent:
        more = ", the reserve among them" if budget.reserve else ""
    else:
        more = "; a performance drop would use the reserve" if reserve >= 1 else ""
    return (
        f"{spent:g} of {allowed} runs used since {_day(used[0].at)}, next on {_day(next_one)}{more}"
    )


def _moment(at: datetime) -> str:
    return f"{at.day} {at:%b %Y %H:%M} UTC"


def _day(at: datetime) -> str:
    return f"{at.day} {at:%b %Y}"


def _rank(episode: Episode) -> tuple[int, float, str]:
    worst = max((one.ratio for one in episode.features), default=0.0)
    return _ORDER.index(episode.kind), -worst, episode.episode_id
