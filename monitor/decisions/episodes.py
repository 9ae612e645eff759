"""What opens, joins, gets worse and resolves in one window.

Above `grouping` and `builder`, below `policy`. The unit is what broke. Each feature opens, stays
and resolves by its own recent windows alone (`drift.persistence`); an episode is one feature, or
features of one group with the same onset, and closes with the last of them. Features that cross
their limits by degrees share one slow episode, so that a season of many features is not told
feature by feature. A window that could not be judged takes its place among the recent ones, opens
nothing, and closes nothing: no data is never "no drift".

A drop in performance is judged by windows that overlap: it opens with `k` of the last `n` windows
over `max_drop`, and resolves after `close` judged windows in a row below 0.8 of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from steadfeast.measures import measure_named
from steadfeast.monitor.decisions.builder import (
    JOINED,
    RESOLVED,
    UNJUDGED,
    WORSE,
    DecisionBuilder,
    episode_id,
)
from steadfeast.monitor.decisions.grouping import crept_on, onset, slow
from steadfeast.monitor.decisions.model import (
    OUTSIDE,
    Episode,
    EpisodeKind,
    Evaluation,
    Member,
    subject,
)
from steadfeast.monitor.drift import LOOKBACK, NEAR, RECENT, Level, Verdict, persistence

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from steadfeast.monitor.config import MonitorConfig

FURTHER, CONFIRMED = 2.0, 2
"""How many times further than last notified, in how many windows in a row, is decisively worse."""
WITHOUT_JUDGEMENT = 3
"""Windows in a row without a judgement after which people are notified that a drift has none."""
MOST = 1e6
"""Largest ratio that is remembered."""
MANY = 3
"""Members at which a slow change is one of many features."""
REMIND = timedelta(days=90)
"""Time after which people are notified of members that joined a slow change of many since."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """When a subject opens and when it stays open, from its recent ratios."""

    opens: Callable[[Sequence[float | None]], bool]
    stays_open: Callable[[Sequence[float | None]], bool]
    reason: str


_DRIFT = _Rule(
    persistence.opens,
    persistence.stays_open,
    f"at most 1 of the last {RECENT} windows above {NEAR} of the limit",
)


def _performance_rule(config: MonitorConfig) -> _Rule:
    k, n, close = config.episode.k, config.episode.n, config.episode.close

    def opens(recent: Sequence[float | None]) -> bool:
        over = [ratio is not None and ratio > 1 for ratio in recent[-n:]]
        return over[-1] and sum(over) >= k

    def stays_open(recent: Sequence[float | None]) -> bool:
        judged = [ratio for ratio in recent if ratio is not None][-close:]
        return recent[-1] is None or len(judged) < close or max(judged) >= NEAR

    return _Rule(opens, stays_open, f"{close} windows in a row below {NEAR} of the limit")


class Episodes:
    """The episodes of one monitor in one window, decided subject by subject.

    Args:
        draft: The decision that is being made.
        evaluation: Of the window.
        config: Of the monitor.
    """

    def __init__(
        self, draft: DecisionBuilder, evaluation: Evaluation, config: MonitorConfig
    ) -> None:
        self._draft, self._evaluation, self._config = draft, evaluation, config
        self._at = evaluation.window.end
        self._rules = {
            EpisodeKind.DRIFT: _DRIFT,
            EpisodeKind.PERFORMANCE: _performance_rule(config),
        }
        drop = _drop(evaluation, config)
        self._kinds = {subject(one): EpisodeKind.DRIFT for one in evaluation.verdicts}
        self._verdicts = {subject(one): one for one in evaluation.verdicts}
        if drop is not None:
            self._verdicts[subject(drop)] = drop
            self._kinds[subject(drop)] = EpisodeKind.PERFORMANCE
        self._recent: dict[str, tuple[float | None, ...]] = {}

    def decide(self) -> None:
        """Remember the ratios, follow what is open, open what lasts."""
        draft = self._draft
        following = [one for one in draft.state.episodes.values() if one.kind not in OUTSIDE]
        members = {one.subject: one for each in following for one in each.members if one.open}
        self._remember(members)
        for episode in following:
            self._follow(episode)
        opening = [
            (kind, self._verdicts[name])
            for name, kind in self._kinds.items()
            if name not in members and self._rules[kind].opens(self._recent[name])
        ]
        for kind in (EpisodeKind.PERFORMANCE, EpisodeKind.DRIFT):
            self._open(kind, [verdict for of, verdict in opening if of is kind])
        draft.state = replace(draft.state, recent=self._recent)

    def _remember(self, members: Mapping[str, Member]) -> None:
        memory = max(LOOKBACK, self._config.episode.n, self._config.episode.close)
        before = self._draft.state.recent
        for name in {**before, **self._verdicts, **members}:
            ratio = _ratio(self._verdicts.get(name))
            self._recent[name] = (*before.get(name, ()), ratio)[-memory:]

    # What is open

    def _follow(self, episode: Episode) -> None:
        """Let each member of an open episode stay, get worse or resolve by its own evidence."""
        rule, draft = self._rules[episode.kind], self._draft
        if episode.kind is EpisodeKind.PERFORMANCE and not self._watches(episode):
            draft.close(episode, self._at, "its measure is watched no longer")
            return
        members = [
            self._followed(one, rule, gradual=episode.slow) if one.open else one
            for one in episode.members
        ]
        standing = any(one.open and rule.opens(self._recent[one.subject]) for one in members)
        now = replace(episode, members=tuple(members), standing=standing)
        old = {one.subject: one for one in episode.members}
        if (
            episode.kind is EpisodeKind.PERFORMANCE
        ):  # what was over before must not help to open the next
            for one in members:
                if not one.open:
                    self._recent[one.subject] = ()
        if not any(one.open for one in members):
            draft.close(now, self._at, rule.reason)
            return
        resolved = [one for one in members if old[one.subject].open and not one.open]
        resolved = [one for one in resolved if one.notified_at is not None]
        worse = [one for one in members if one.open and one.verdict is not old[one.subject].verdict]
        lost = [one for one in members if one.unjudged and not old[one.subject].unjudged]
        if worse:  # new evidence: it may ask for a retraining again
            now = replace(now, answer=None)
        if now.members == episode.members:
            draft.put(now)
            return
        draft.change(now)
        draft.note(now, RESOLVED, resolved, rule.reason)
        draft.note(now, WORSE, worse)
        for one in lost:
            why = f"{one.unjudged}; it stays open until it can be judged"
            draft.note(now, UNJUDGED, [one], why)

    def _watches(self, episode: Episode) -> bool:
        """Say whether the figure that fell is still the one that the configuration names."""
        performance = self._config.performance
        if performance is None:
            return False
        metric = measure_named(performance.metric).name
        return any(one.open and one.verdict.feature == metric for one in episode.members)

    def _followed(self, member: Member, rule: _Rule, *, gradual: bool) -> Member:
        """Return an open member as it is after this window."""
        recent, verdict = self._recent[member.subject], self._verdicts.get(member.subject)
        if not rule.stays_open(recent):
            return replace(member, resolved_at=self._at, unjudged="")
        if recent[-1] is None:
            missing = all(ratio is None for ratio in recent[-WITHOUT_JUDGEMENT:])
            why = _why(verdict)
            return replace(member, unjudged=member.unjudged or why) if missing else member
        member = replace(member, unjudged="")
        # While a window fills up with what has changed, it only gets as far as it will.
        last = member.notified_at or member.since
        settled = self._at - last >= RECENT * self._config.bucket
        # A season goes on creeping; that is told already.
        settled = settled and not (gradual and crept_on(recent))
        if settled and verdict is not None and _is_worse(member.verdict, recent, rule):
            return replace(member, verdict=verdict, notified_at=self._at)
        return member

    # What opens

    def _open(self, kind: EpisodeKind, opening: Sequence[Verdict]) -> None:
        """Open an episode for each group of features that broke together, or join an open one."""
        groups: dict[tuple[str, bool], list[Member]] = {}
        for verdict in sorted(opening, key=lambda one: -one.ratio):
            name = subject(verdict)
            recent = self._recent[name]
            since = self._at - onset(recent) * self._config.bucket
            gradual = kind is EpisodeKind.DRIFT and slow(recent)
            group = "" if gradual else self._evaluation.groups.get(verdict.feature, name)
            key = group, gradual
            # Of one group, but with another onset: not the same event.
            if key in groups and not gradual and not self._same(groups[key][0].since, since):
                key = name, gradual
            groups.setdefault(key, []).append(Member(verdict, since, self._at))
        for (group, gradual), members in groups.items():
            joined = self._open_one(kind, group, members[0].since, gradual=gradual)
            if joined is not None:
                self._join(joined, members)
            else:
                self._draft.open(self._episode(kind, group, members, gradual=gradual))

    def _same(self, one: datetime, other: datetime) -> bool:
        return abs(one - other) <= self._config.bucket

    def _open_one(
        self, kind: EpisodeKind, group: str, since: datetime, *, gradual: bool
    ) -> Episode | None:
        """Return the open episode that features which open now belong to."""
        for one in self._draft.state.episodes.values():
            if one.kind is not kind or one.slow is not gradual:
                continue
            if gradual or (one.group == group and self._same(one.members[0].since, since)):
                return one
        return None

    def _join(self, episode: Episode, joining: Sequence[Member]) -> None:
        """Add members; of a slow change people are notified once it is one of many features."""
        names = {one.subject for one in joining}
        members = [one for one in episode.members if one.subject not in names]
        many = len(episode.members) < MANY <= len(members) + len(joining)
        notified = [one.notified_at for one in episode.members if one.notified_at is not None]
        # Whoever joins again is no longer who people were notified of.
        last = max(notified, default=episode.window.end)
        if episode.slow and not many and self._at - last < REMIND:
            joining = [replace(one, notified_at=None) for one in joining]
        elif episode.slow:
            quiet = [one for one in members if one.open and one.notified_at is None]
            members = [one for one in members if one not in quiet]
            joining = [replace(one, notified_at=self._at) for one in [*quiet, *joining]]
        now = replace(episode, members=(*members, *joining), standing=True)
        self._draft.change(now)
        loud = [one for one in joining if one.notified_at is not None]
        self._draft.note(now, JOINED, [one for one in now.members if one.open] if many else loud)

    def _episode(
        self, kind: EpisodeKind, group: str, members: Sequence[Member], *, gradual: bool
    ) -> Episode:
        evaluation = self._evaluation
        return Episode(
            episode_id=episode_id(
                evaluation.monitor,
                kind,
                self._at.isoformat(),
                members[0].subject,
                evaluation.model_version,
            ),
            kind=kind,
            window=evaluation.window,
            reference_window=evaluation.reference_window,
            members=tuple(members),
            contract=evaluation.contract,
            group=group,
            slow=gradual,
        )


def _ratio(verdict: Verdict | None) -> float | None:
    """Return what is remembered of a verdict; None if it could not be judged.

    Broken data are a data incident; they say nothing about drift.
    """
    if verdict is None or verdict.level not in {Level.OK, Level.DRIFT}:
        return None
    return round(max(-MOST, min(MOST, verdict.evidence or 0.0)), 4)


def _why(verdict: Verdict | None) -> str:
    """Say why a window could not be judged."""
    return "its column is not there" if verdict is None else verdict.reason


def _is_worse(before: Verdict, recent: Sequence[float | None], rule: _Rule) -> bool:
    """Return whether a subject is decisively worse than when people were last notified of it."""
    told = before.evidence or 0.0
    side = 1 if told > 0 else -1
    last = [ratio for ratio in recent if ratio is not None][-CONFIRMED:]
    further = [ratio for ratio in last if side * ratio >= FURTHER * abs(told)]
    other = [ratio if ratio is not None and side * ratio < 0 else None for ratio in recent]
    turned = other[-1] is not None and rule.opens(other)
    return len(further) == CONFIRMED or turned


def _drop(evaluation: Evaluation, config: MonitorConfig) -> Verdict | None:
    """Return how far the live metric fell below the hold-out's, judged against `max_drop`."""
    if config.performance is None or evaluation.performance is None:
        return None
    measure, limit = measure_named(config.performance.metric), config.performance.max_drop
    metric = measure.name
    expected = evaluation.expected.get(metric)
    live = evaluation.performance.metrics.get(metric)
    if expected is None or live is None:
        return None
    drop = measure.drop(expected, live)
    return Verdict(
        source="labels",
        feature=metric,
        statistic="drop",
        value=drop,
        threshold=limit,
        level=Level.DRIFT if drop > limit else Level.OK,
        reason=f"{metric} {live:.3f} live, {expected:.3f} on the hold-out",
        window=evaluation.performance.window,
    )
