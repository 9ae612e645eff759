"""What a configuration would have done: history replayed by the daemon's own code.

Above `evaluation` and `adapters`; `cli` calls it, `outlook` draws what comes of it. The served log
and the labels are read where they are; the evaluator, the policy and the ledger are those of the
daemon, on a folder of their own that is gone afterwards. Nothing is fired: a trigger that would
have been is noted as a run that was called off at once, so that cooldown and budget count it.

Rows before the first day fill its window, as they would in a daemon that has run for a while. What
could not be judged is counted with the reason, because no alarm means nothing there.

References move as they did in history, promotion by promotion, unless the first one is asked to
stay. Schedules and other systems' alerts are no part of the data, and of no backtest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from steadfeast.featurestore.errors import NotFoundError, UserError
from steadfeast.measures import measure_named
from steadfeast.monitor.decisions import EpisodeKind
from steadfeast.monitor.drift import Level
from steadfeast.monitor.evaluation import Evaluator
from steadfeast.monitor.ledger import Ledger
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from steadfeast.monitor.config import DaemonConfig, MonitorConfig
    from steadfeast.monitor.drift import Verdict
    from steadfeast.monitor.ledger import (
        EpisodeRecord,
        MonitorState,
        PastWindow,
        TriggerRecord,
    )
    from steadfeast.monitor.profiles import Distribution
    from steadfeast.monitor.sources import ViewFacts

CALLED_OFF = "a backtest fires nothing"
_NUMBER = re.compile(r"\d[\d.,:TZ-]*")
"""What differs between two reasons of one kind."""


class NoHistoryError(UserError):
    """There is nothing to replay, or nothing to compare it with.

    Attributes:
        monitor: Which monitor.
    """

    def __init__(self, monitor: str, problem: str) -> None:
        self.monitor = monitor
        super().__init__(f"monitor {monitor}: {problem}")


@dataclass(frozen=True, slots=True)
class Decay:
    """A stretch in which the live model did worse than on its hold-out by more than `max_drop`.

    Attributes:
        start: End of the first such window.
        end: End of the last one.
        worst: Largest drop, in multiples of `max_drop`.
        alarm: When the first episode opened that was open in the stretch; None if none was.
        estimated: When the estimate first said so, up to a window before the stretch; None if it
            did not.
    """

    start: datetime
    end: datetime
    worst: float
    alarm: datetime | None
    estimated: datetime | None

    @property
    def ahead(self) -> timedelta | None:
        """How far ahead the alarm was; below zero when it came late."""
        return None if self.alarm is None else self.start - self.alarm


@dataclass(frozen=True, slots=True)
class Alarm:
    """An episode that would have opened.

    Attributes:
        episode: As the ledger has it.
        trigger: What would have become of its trigger; None if none was decided.
        first: Start of the last stretch of windows, up to the opening, in which what opened it
            was over its limit.
        decay: Start of the decay that it was open in or came before by a window; None if none
            followed.
    """

    episode: EpisodeRecord
    trigger: TriggerRecord | None
    first: datetime
    decay: datetime | None

    @property
    def delay(self) -> timedelta:
        """From the first window over the limit to the opening."""
        return self.episode.opened_at - self.first


@dataclass(frozen=True, slots=True)
class Ranked:
    """A feature over the whole stretch.

    Attributes:
        feature: Its name.
        worst: The verdict with the largest ratio; the last one where none could be judged.
        impact: Largest effect x importance of any window; None where importances are not known.
        judged: Windows with a verdict on it.
        over: Those over the limit.
        spread: The reference against the worst window.
    """

    feature: str
    worst: Verdict
    impact: float | None
    judged: int
    over: int
    spread: Distribution | None


@dataclass(frozen=True, slots=True)
class Withheld:
    """Windows in which nothing could be judged, for one reason.

    Attributes:
        reason: As the last of them said it.
        windows: How many.
        first: End of the first.
        last: End of the last.
    """

    reason: str
    windows: int
    first: datetime
    last: datetime


@dataclass(frozen=True, slots=True)
class Backtest:
    """What a monitor would have done.

    Attributes:
        monitor: As it stood at the end.
        windows: Every window, judged or not, by time.
        expected: Per window, what the model of then had on its hold-out.
        incidents: Data incidents, counted by the alerts that told of them.
        promotions: When the reference moved, and to which version.
        ranked: Features, by what they matter to the model and then by how far they were.
    """

    monitor: MonitorState
    windows: tuple[PastWindow, ...]
    expected: tuple[Mapping[str, float], ...]
    alarms: tuple[Alarm, ...]
    decays: tuple[Decay, ...]
    incidents: int
    promotions: tuple[tuple[datetime, str], ...]
    ranked: tuple[Ranked, ...]

    @property
    def judged(self) -> int:
        """Windows in which a feature could be judged."""
        return sum(past.judged > 0 for past in self.windows)

    @property
    def first_verdict(self) -> datetime | None:
        """End of the first of them; None where nothing could be judged."""
        return next((past.window.end for past in self.windows if past.judged), None)

    @property
    def withheld(self) -> tuple[Withheld, ...]:
        """The others, by reason, the most frequent first."""
        found: dict[str, Withheld] = {}
        for past in self.windows:
            if past.judged:
                continue
            kind, end = _NUMBER.sub("#", past.withheld), past.window.end
            before = found.get(kind, Withheld("", 0, end, end))
            found[kind] = Withheld(past.withheld, before.windows + 1, before.first, end)
        return tuple(sorted(found.values(), key=lambda one: -one.windows))


def run(
    config: DaemonConfig,
    data: Path,
    start: datetime,
    end: datetime,
    history: Mapping[str, Sequence[pb.Run]],
    *,
    views: Mapping[str, ViewFacts] = MappingProxyType({}),
    alone: bool = False,
    progress: Callable[[str, datetime, int, int], None] = lambda *_: None,
) -> list[Backtest]:
    """Replay [start, end) under `config` and return what each monitor would have done.

    Args:
        config: With the monitors to replay; nothing of its state folder is read or written.
        data: Folder that holds `served/` and `labels/`.
        start: Of the first bucket.
        end: Of the last.
        history: Per monitor without a reference of its own, its model's promoted runs by time.
        views: What is known of the store's feature views.
        alone: Keep the first reference, whatever was promoted later.
        progress: Called after each bucket with the monitor, its end, and buckets done and in all.

    Raises:
        NoHistoryError: A monitor has no rows in the stretch, or no reference.
        UserError: A reference cannot be built.
    """
    with TemporaryDirectory(prefix="steadfeast-backtest-") as folder:
        trial = config.model_copy(update={"state": Path(folder), "clock": "watermark"})
        with Ledger(trial.state) as ledger:
            evaluator = Evaluator(trial, ledger, data, views)
            replay = _Replay(
                trial, evaluator, ledger, end, history, promoted_at(config), alone=alone
            )
            try:
                return replay.run(start, progress)
            finally:
                replay.evaluator.close()


class _Replay:
    """One run of the clock."""

    def __init__(
        self,
        config: DaemonConfig,
        evaluator: Evaluator,
        ledger: Ledger,
        end: datetime,
        history: Mapping[str, Sequence[pb.Run]],
        promoted_at: Callable[[pb.Run], datetime],
        *,
        alone: bool,
    ) -> None:
        self.evaluator = evaluator
        self._config, self._ledger, self._end = config, ledger, end
        self._waiting = {name: list(runs) for name, runs in history.items()}
        self._promoted_at, self._alone = promoted_at, alone
        self._moves: dict[str, list[tuple[datetime, str]]] = {}
        self._expected: dict[str, list[Mapping[str, float]]] = {}

    def run(
        self, start: datetime, progress: Callable[[str, datetime, int, int], None]
    ) -> list[Backtest]:
        evaluator, names = self.evaluator, list(self._config.monitors)
        evaluator.configure(self._config, evaluator.prepare(self._config))
        for name in names:
            held = self._ledger.held(name)
            self._ledger.hold(name, replace(held, watermark=start))
            self._moves[name] = [(start, held.reference.model_version)] if held.reference else []
            self._expected[name] = []
        due = {name: [b.end for b in evaluator.due(name) if b.end <= self._end] for name in names}
        for name, ends in due.items():
            if not ends or not evaluator.has_rows(name, start, self._end):
                what = "was served" if self._config.monitors[name].service else "is there"
                raise NoHistoryError(
                    name, f"nothing {what} from {start:%Y-%m-%d} to {self._end:%Y-%m-%d}"
                )
        # By time over all monitors: they share what has happened to a model.
        for name, ends in due.items():
            self._move(name, ends[0])
            evaluator.prime(name, start)
        order = sorted((at, name) for name, ends in due.items() for at in ends)
        for done, (at, name) in enumerate(order, start=1):
            self._move(name, at)
            reference = self._ledger.held(name).reference
            while (self._ledger.held(name).watermark or start) < at:
                evaluator.evaluate(name, 1)  # after a move, earlier buckets are counted first
            self._expected[name].append(reference.performance if reference else {})
            self._call_off()
            progress(name, at, done, len(order))
        return [self._told(name) for name in names]

    def _move(self, name: str, at: datetime) -> None:
        """Let a monitor follow what was promoted before the bucket that ends at `at` began."""
        runs = self._waiting.get(name)
        if not runs:
            if self._ledger.held(name).reference is None:
                raise NoHistoryError(name, "it has no reference to compare with")
            return
        began = at - self._config.monitors[name].bucket
        first = self._ledger.held(name).reference is None
        ready = [run for run in runs if self._promoted_at(run) <= began]
        if first and not ready:
            ready = runs[:1]  # before the first promotion there is no other model to speak of
        elif not ready or (self._alone and not first):
            return
        latest = ready[-1]
        del runs[: len(ready)]
        built = self.evaluator.build(latest)[name]
        how = f"version {latest.model_version} promoted"
        self.evaluator.move({name: built}, "first reference" if first else how)
        self._moves[name].append((at, built.model_version))

    def _call_off(self) -> None:
        for message in self._ledger.pending():
            ended = pb.Run(
                run_id=f"backtest-{message.request_id[:8]}",
                request_id=message.request_id,
                state=pb.RUN_STATE_CANCELLED,
                reason=CALLED_OFF,
            )
            self._ledger.delivered(message.request_id, ended)
            self._ledger.run_event(message.request_id, ended, 1)

    def _told(self, name: str) -> Backtest:
        config = self._config.monitors[name]
        judged = self._ledger.judged(name)
        windows = tuple(past for past, _ in judged)
        state = self._ledger.state(self._config.monitors).monitors[name]
        episodes = [one for one in self._ledger.episodes() if one.monitor == name]
        episodes.sort(key=lambda one: one.opened_at)
        triggers = {
            episode: one
            for one in self._ledger.triggers(1_000_000)  # newest first: the first one of each stays
            if one.monitor == name
            for episode in one.episode_ids
        }
        expected = tuple(self._expected[name])
        decays = decays_of(windows, expected, episodes, config)
        alarms = tuple(
            Alarm(
                one,
                triggers.get(one.episode_id),
                _first_over(one, windows, config),
                _followed(one, decays, config),
            )
            for one in episodes
        )
        alerts = self._ledger.alerts_before(1_000_000, name)
        return Backtest(
            state,
            windows,
            expected,
            alarms,
            decays,
            sum(one.kind == "data_incident" and not one.resolved for one in alerts),
            tuple(self._moves[name]),
            tuple(self._ranked(name, judged)),
        )

    def _ranked(
        self, name: str, judged: Sequence[tuple[PastWindow, tuple[Verdict, ...]]]
    ) -> list[Ranked]:
        """Rank every feature that was ever judged."""
        verdicts: dict[str, list[Verdict]] = {}
        for _, found in judged:
            for one in found:
                verdicts.setdefault(one.feature, []).append(one)
        ranked = []
        for feature, every in verdicts.items():
            judged_ones = [one for one in every if one.level in {Level.OK, Level.DRIFT}]
            worst = max(judged_ones, key=lambda one: one.ratio, default=every[-1])
            impacts = [one.impact for one in judged_ones if one.impact is not None]
            ranked.append(
                Ranked(
                    feature,
                    worst,
                    max(impacts, default=None),
                    len(judged_ones),
                    sum(one.ratio > 1 for one in judged_ones),
                    self._spread(name, feature, worst),
                )
            )
        return sorted(ranked, key=lambda one: (-(one.impact or 0.0), -one.worst.ratio, one.feature))

    def _spread(self, name: str, feature: str, verdict: Verdict) -> Distribution | None:
        """Return the reference of then against the window of a verdict, for one feature."""
        if verdict.value is None:
            return None
        found = self._ledger.spread(name, verdict.window.end)
        return next((one for one in found if one.feature == feature), None)


def decays_of(
    windows: Sequence[PastWindow],
    expected: Sequence[Mapping[str, float]],
    episodes: Sequence[EpisodeRecord],
    config: MonitorConfig,
) -> tuple[Decay, ...]:
    """Return the stretches in which the live figure was more than `max_drop` below the hold-out's.

    Stretches less than a window apart are one: their windows share rows.

    Args:
        windows: By time.
        expected: Per window, the figures on the hold-out of the model of then.
        episodes: What opened and closed, by time.
        config: The monitor.
    """
    if config.performance is None:
        return ()
    measure, limit = measure_named(config.performance.metric), config.performance.max_drop

    def drop(values: Mapping[str, float], held_out: Mapping[str, float]) -> float | None:
        if measure.name not in values or measure.name not in held_out:
            return None
        return measure.drop(held_out[measure.name], values[measure.name]) / limit

    pairs = list(zip(windows, expected, strict=True))
    thought = [past.window.end for past, held in pairs if (drop(past.estimated, held) or 0) > 1]
    found = []
    known = [
        (past.measured_until or past.window.end, fall)
        for past, held in pairs
        if (fall := drop(past.performance, held)) is not None
    ]
    stretches: list[list[tuple[datetime, float]]] = []
    for at, fall in known:
        if fall <= 1:
            continue
        if stretches and at - stretches[-1][-1][0] < config.window:
            stretches[-1].append((at, fall))
        else:
            stretches.append([(at, fall)])
    for stretch in stretches:
        start, end = stretch[0][0], stretch[-1][0]
        alarms = [
            one.opened_at
            for one in episodes
            if one.opened_at <= end and (one.closed_at is None or one.closed_at >= start)
        ]
        early = [at for at in thought if start - config.window <= at <= end]
        found.append(
            Decay(
                start,
                end,
                max(fall for _, fall in stretch),
                min(alarms, default=None),
                min(early, default=None),
            )
        )
    return tuple(found)


def _first_over(
    episode: EpisodeRecord, windows: Sequence[PastWindow], config: MonitorConfig
) -> datetime:
    """Return the end of the first window of those in a row, up to the opening, over a limit."""
    if episode.kind is not EpisodeKind.DRIFT:
        return episode.opened_at
    names = {one.feature for one in episode.features}
    first, missed = episode.opened_at, 0
    for past in reversed([one for one in windows if one.window.end <= episode.opened_at]):
        if any(past.ratios.get(name, 0.0) > 1 for name in names):
            first, missed = past.window.end, 0
        else:
            missed += 1
            if missed > config.episode.n - config.episode.k:
                break
    return first


def _followed(
    episode: EpisodeRecord, decays: Sequence[Decay], config: MonitorConfig
) -> datetime | None:
    """Return the start of the first decay while the episode was open, or a window after it."""
    until = datetime.max.replace(tzinfo=UTC) if episode.closed_at is None else episode.closed_at
    if episode.closed_at is not None:
        until += config.window
    inside = [one.start for one in decays if one.end >= episode.opened_at and one.start <= until]
    return min(inside, default=None)


def promoted_at(config: DaemonConfig) -> Callable[[pb.Run], datetime]:
    """Return what tells when a run's model went live, by the clock that the data have."""

    def at(run: pb.Run) -> datetime:
        stamp = run.as_of if config.clock == "watermark" else run.updated_at
        when: datetime = stamp.ToDatetime(UTC)
        return when

    return at


def chosen(config: DaemonConfig, monitor: str, update: Mapping[str, Any]) -> DaemonConfig:
    """Return `config` with one monitor, or all without a name, and with `update` made to each.

    Raises:
        NotFoundError: There is no such monitor.
    """
    if monitor and monitor not in config.monitors:
        raise NotFoundError("monitor", monitor, config.monitors)
    kept = {name: one for name, one in config.monitors.items() if monitor in {"", name}}
    changed = {name: one.model_copy(update=dict(update)) for name, one in kept.items()}
    return config.model_copy(update={"monitors": changed})
