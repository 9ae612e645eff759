"""What follows from verdicts, schedules and people, for any sequence of events."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from steadfeast.monitor.config.schema import BudgetConfig
from steadfeast.monitor.decisions.builder import episode_id
from steadfeast.monitor.decisions.model import (
    Cause,
    Decision,
    EpisodeKind,
    ModelHistory,
    NotDecidableError,
    Outcome,
    PastRun,
    PolicyState,
)
from steadfeast.monitor.decisions.policy import (
    approve,
    decide,
    move_reference,
    reject,
    resolve,
    scheduled,
    take,
)
from steadfeast.monitor.ledger.codec import dump, from_json
from steadfeast.monitor.performance.realized import Performance
from support.policy_world import DAY, REFERENCE, START, config, evaluation

RATIOS = st.sampled_from([None, 0.1, 0.9, 2.0, -2.0, 4.0, 8.0])


class AnyHistory(RuleBasedStateMachine):
    """Whatever happens in whatever order, kept beside a naive account of what fired.

    Two monitors of one model; the ledger is what a restart reads back: the states as JSON, the
    fired times and the running request. The account is made of the decisions alone.
    """

    BUDGET, PER, COOLDOWN = 3, 60, 9

    def __init__(self) -> None:
        super().__init__()
        self.config = config(
            cooldown=self.COOLDOWN * DAY,
            budget=BudgetConfig(runs=self.BUDGET, per=self.PER * DAY, reserve=0),
            schedule="0 6 * * 1",
        )
        self.states = {"a": PolicyState(), "b": PolicyState()}
        self.now = {"a": 0, "b": 0}
        self.fired: list[tuple[datetime, str]] = []
        self.running: set[str] = set()
        self.broken: dict[str, dict[int, bool]] = {"a": {}, "b": {}}
        self.open: set[str] = set()
        self.closed: set[str] = set()
        self.waiting: dict[str, str] = {}
        self.manual = False
        # By monitor and feature: its ratios since the reference moved; whether its drift is open.
        self.ratios: dict[tuple[str, str], list[float | None]] = {}
        self.drifting: set[tuple[str, str]] = set()
        self.refused: set[str] = set()
        self.clock = {"a": 0, "b": 0}  # days; goes back and forth, unlike the windows
        self.fired_for: list[tuple[str, datetime]] = []
        self.firing: dict[tuple[str, int], bool] = {}

    def history(self, monitor: str) -> ModelHistory:
        other = "b" if monitor == "a" else "a"
        blocked = "broken there" if self.is_broken(other) else ""
        return ModelHistory(
            runs=tuple(PastRun(at) for at, _ in self.fired),
            running=next(iter(self.running), ""),
            blocked=blocked,
            without_promotion=frozenset(self.refused),
        )

    def is_broken(self, monitor: str) -> bool:
        """Whether the window that ends now holds a broken bucket."""
        now = self.now[monitor]
        return any(self.broken[monitor].get(day, False) for day in range(now - 2, now + 1))

    def take(self, monitor: str, decision: Decision) -> None:
        """Keep a decision, and check the rules that it must have followed."""
        self.states[monitor] = from_json(PolicyState, dump(decision.state))
        for episode in decision.opened:
            assert episode.episode_id not in self.open | self.closed, "opened twice"
            self.open.add(episode.episode_id)
        for closed in decision.closed:
            assert closed.episode.episode_id in self.open
            self.open.discard(closed.episode.episode_id)
            self.closed.add(closed.episode.episode_id)
        for trigger in decision.triggers:
            self.waiting.pop(trigger.request_id, None)
            if trigger.outcome is Outcome.WAITING:
                self.waiting[trigger.request_id] = monitor
            if trigger.outcome is not Outcome.FIRED:
                continue
            assert not self.is_broken("a"), "fired while blocked"
            assert not self.is_broken("b"), "fired while blocked"
            assert not self.running, "fired while a run is under way"
            earlier = [at for at, _ in self.fired]
            assert all(trigger.at - at >= self.COOLDOWN * DAY for at in earlier), "in cooldown"
            recent = [at for at in earlier if at > trigger.at - self.PER * DAY]
            assert len(recent) < self.BUDGET, "over budget"
            self.fired.append((trigger.at, trigger.request_id))
            for episode in trigger.episodes:
                if episode.kind is EpisodeKind.ALERT:
                    assert self.firing[monitor, int(episode.cause)], "fired for what is over"
            self.running.add(trigger.request_id)

    @rule(
        monitor=st.sampled_from("ab"),
        x=RATIOS,
        y=st.one_of(RATIOS, st.just("gone")),
        drop=st.sampled_from([None, 0.0, 0.3]),
        broken=st.sampled_from([False] * 5 + [True]),
        step=st.sampled_from([1] * 8 + [2, 9, -3, 0]),
    )
    def evaluate(self, monitor, x, y, drop, *, broken, step) -> None:
        day = self.now[monitor] + step
        performance = None
        if drop is not None:
            performance = Performance({"roc_auc": 0.8 - drop}, 500, 100, REFERENCE)
        if step > 0:
            self.now[monitor] = day
            self.broken[monitor][day] = broken
        ratios = {"x": x} if y == "gone" else {"x": x, "y": y}
        shown = replace(
            evaluation(day, ratios, broken=broken, performance=performance),
            monitor=monitor,
            expected={"roc_auc": 0.8},
            history=self.history(monitor),
        )
        before = self.states[monitor]
        decision = decide(before, shown, self.config)
        if step <= 0 and before.watermark is not None:
            assert decision == Decision(before), "a clock that went back changed something"
            return
        self.now[monitor] = day
        self.broken[monitor][day] = broken
        free = self.is_free(START + day * DAY)
        self.take(monitor, decision)
        self.account(monitor, "x", x)
        if y != "gone" or (monitor, "y") in self.ratios:
            self.account(monitor, "y", None if y == "gone" else y)
        if free:
            for episode in self.states[monitor].episodes.values():
                waits = self.manual and self.states[monitor].request is not None
                assert episode.answer or waits or not episode.standing, "forgot to fire"

    def account(self, monitor: str, feature: str, ratio: float | None) -> None:
        """Follow one feature by itself: what the others do must make no difference to it."""
        ratios = self.ratios.setdefault((monitor, feature), [])
        ratios.append(ratio)
        last = [0.0 if one is None else one for one in ratios[-5:]]
        same = [one for one in last if one * last[-1] > 0 and abs(one) > 1]
        large = [one for one in last[-3:] if one * last[-1] > 0 and abs(one) > 3.5]
        begins = abs(last[-1]) > 1 and (len(same) >= 4 or len(large) >= 2 or abs(last[-1]) > 7)
        near = [one for one in ratios[-5:] if one is None or abs(one) > 0.8]
        if begins or ((monitor, feature) in self.drifting and len(near) > 1):
            self.drifting.add((monitor, feature))
        else:
            self.drifting.discard((monitor, feature))

    @rule(
        monitor=st.sampled_from("ab"),
        days=st.integers(2, 12),
        y=st.one_of(RATIOS, st.just("gone")),
        drop=st.sampled_from([None, 0.3]),
        ends=st.booleans(),
    )
    def drift_lasts(self, monitor, days, y, drop, ends) -> None:
        """Drift without a break; as long as it takes for the cooldown to pass."""
        for _ in range(days):
            self.evaluate(monitor, 2.0, y, drop, broken=False, step=1)
            if ends:
                self.refused |= self.running
                self.running.clear()

    def is_free(self, at: datetime) -> bool:
        """Whether nothing forbids a trigger, by the account."""
        times = [time for time, _ in self.fired]
        return not (
            self.running
            or self.is_broken("a")
            or self.is_broken("b")
            or any(at - time < self.COOLDOWN * DAY for time in times)
            or sum(time > at - self.PER * DAY for time in times) >= self.BUDGET
        )

    @rule(monitor=st.sampled_from("ab"))
    def evaluate_again(self, monitor) -> None:
        """A bucket that was committed and is evaluated again, as after a crash."""
        if self.states[monitor].watermark is None:
            return
        shown = replace(
            evaluation(self.now[monitor], {"x": 9.0}),
            monitor=monitor,
            history=self.history(monitor),
        )
        assert decide(self.states[monitor], shown, self.config) == Decision(self.states[monitor])

    def standing(self, monitor: str):
        return replace(
            evaluation(self.now[monitor], {}), monitor=monitor, history=self.history(monitor)
        )

    def cause(self, monitor: str, cause: Cause) -> None:
        """Take a cause as the daemon does: once, which the ledger knows."""
        episode = episode_id(monitor, cause.kind, *cause.identity)
        if episode in self.open | self.closed:
            return
        free = self.is_free(START + self.now[monitor] * DAY)
        decision = take(self.states[monitor], cause, self.standing(monitor), self.config)
        assert [one.episode_id for one in decision.opened] == [episode]
        self.take(monitor, decision)
        if free:
            wanted = Outcome.WAITING if self.manual else Outcome.FIRED
            waits = self.states[monitor].request
            fires = [
                t.outcome
                for t in decision.triggers
                if episode in {one.episode_id for one in t.episodes}
            ]
            assert wanted in fires or (waits and episode in waits.episode_ids), "not asked for"

    @precondition(lambda self: any(s.watermark for s in self.states.values()))
    @rule(monitor=st.sampled_from("ab"), step=st.sampled_from([0, 1, 1, 3, 7, 35, -1, -20]))
    def look_at_the_schedule(self, monitor, step) -> None:
        """Any jump of the clock; a time of the schedule is every Monday at six."""
        if self.states[monitor].watermark is None:
            return
        self.clock[monitor] += step
        now = START + self.clock[monitor] * DAY + timedelta(hours=12)
        before = self.states[monitor].scheduled
        state, cause = scheduled(self.states[monitor], self.config, now)
        self.states[monitor] = from_json(PolicyState, dump(state))
        assert scheduled(state, self.config, now) == (state, None), "taken twice"
        if before is None:
            assert cause is None, "fired for the time before there was a schedule"
            return
        mondays = [
            at
            for week in range(-10, 400)
            if before[1] < (at := START + week * 7 * DAY + timedelta(hours=6)) <= now
        ]
        assert (cause is None) == (not mondays)
        if cause is not None:
            assert cause.identity == ("0 6 * * 1", mondays[-1].isoformat()), "not the last one"
            assert ("missed" in cause.summary) == (len(mondays) > 1)
            assert (monitor, mondays[-1]) not in self.fired_for
            self.fired_for.append((monitor, mondays[-1]))
            self.cause(monitor, cause)

    @rule(monitor=st.sampled_from("ab"), number=st.integers(0, 5), firing=st.booleans())
    def another_system_tells(self, monitor, number, firing) -> None:
        """Six alerts, told and told again, in any order."""
        if self.states[monitor].watermark is None:
            return
        cause = Cause(EpisodeKind.ALERT, ("f", str(number)), str(number))
        if firing:
            self.firing.setdefault((monitor, number), True)
            self.cause(monitor, cause)
            return
        if (monitor, number) in self.firing:
            self.firing[monitor, number] = False
        episode = episode_id(monitor, EpisodeKind.ALERT, *cause.identity)
        self.take(monitor, resolve(self.states[monitor], monitor, episode, "resolved"))
        assert episode not in self.open

    @precondition(lambda self: self.running)
    @rule(promoted=st.booleans())
    def run_ends(self, promoted) -> None:
        if not promoted:
            self.refused |= self.running
        self.running.clear()
        if promoted:
            self.ratios.clear()
            self.drifting.clear()
            for monitor, state in self.states.items():
                self.take(monitor, move_reference(state, monitor, "promoted"))

    @rule()
    def toggle_approval(self) -> None:
        """A reload between automatic and manual approval."""
        self.manual = not self.manual
        approval = "manual" if self.manual else "auto"
        self.config = self.config.model_copy(update={"approval": approval})

    @precondition(lambda self: self.waiting)
    @rule(yes=st.booleans())
    def person(self, yes) -> None:
        request, monitor = next(iter(self.waiting.items()))
        state = self.states[monitor]
        try:
            if yes:
                decision = approve(state, monitor, request, self.config, self.history(monitor))
            else:
                decision = reject(state, monitor, request, "no")
        except NotDecidableError:
            return
        self.take(monitor, decision)

    @invariant()
    def nothing_fires_twice(self) -> None:
        requests = [request for _, request in self.fired]
        assert len(set(requests)) == len(requests)

    @invariant()
    def no_feature_hides_holds_or_closes_another(self) -> None:
        """What is open is what each feature's own windows say, whatever else goes on."""
        open_ = {
            (monitor, member.verdict.feature)
            for monitor, state in self.states.items()
            for episode in state.episodes.values()
            if episode.kind is EpisodeKind.DRIFT
            for member in episode.members
            if member.open
        }
        assert open_ == self.drifting

    @invariant()
    def nothing_is_forgotten(self) -> None:
        """An episode that opened is open in the state until a decision has closed it."""
        held = {e.episode_id for s in self.states.values() for e in s.episodes.values()}
        assert held == self.open


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow],
)
