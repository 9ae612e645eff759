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
    Kind,
    ModelHistory,
    NotDecidableError,
    Outcome,
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
from steadfeast.monitor.ledger.codec import dump, load
from steadfeast.monitor.performance.realized import Performance
from support.policy_world import DAY, REFERENCE, START, config, evaluation


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
            budget=BudgetConfig(runs=self.BUDGET, per=self.PER * DAY),
            schedule="0 6 * * 1",
        )
        self.states = {"a": PolicyState(), "b": PolicyState()}
        self.now = {"a": 0, "b": 0}
        self.fired: list[tuple[datetime, str, str]] = []
        self.running: set[str] = set()
        self.broken: dict[str, dict[int, bool]] = {"a": {}, "b": {}}
        self.open: set[str] = set()
        self.closed: set[str] = set()
        self.waiting: dict[str, str] = {}
        self.manual = False
        self.last_x: dict[str, float | None] = {"a": None, "b": None}
        self.clock = {"a": 0, "b": 0}  # days; goes back and forth, unlike the windows
        self.fired_for: list[tuple[str, datetime]] = []
        self.firing: dict[tuple[str, int], bool] = {}

    def history(self, monitor: str) -> ModelHistory:
        other = "b" if monitor == "a" else "a"
        blocked = "broken there" if self.is_broken(other) else ""
        return ModelHistory(
            fired=tuple(at for at, _, _ in self.fired),
            running=next(iter(self.running), ""),
            blocked=blocked,
        )

    def is_broken(self, monitor: str) -> bool:
        """Whether the window that ends now holds a broken bucket."""
        now = self.now[monitor]
        return any(self.broken[monitor].get(day, False) for day in range(now - 2, now + 1))

    def take(self, monitor: str, decision: Decision) -> None:
        """Keep a decision, and check the rules that it must have followed."""
        before = self.states[monitor]
        self.states[monitor] = load(PolicyState, dump(decision.state))
        for episode in decision.opened:
            assert episode.episode_id not in self.open | self.closed, "opened twice"
            self.open.add(episode.episode_id)
        for closed in decision.closed:
            assert closed.episode_id in self.open
            self.open.discard(closed.episode_id)
            if not before or closed.episode_id in {
                one.episode_id for one in before.episodes.values() if one.kind is Kind.DRIFT
            }:
                self.last_x[monitor] = None
            self.closed.add(closed.episode_id)
        for trigger in decision.triggers:
            self.waiting.pop(trigger.request_id, None)
            if trigger.outcome is Outcome.WAITING:
                self.waiting[trigger.request_id] = monitor
            if trigger.outcome is not Outcome.FIRED:
                continue
            assert not self.is_broken("a"), "fired while blocked"
            assert not self.is_broken("b"), "fired while blocked"
            assert not self.running, "fired while a run is under way"
            earlier = [at for at, _, _ in self.fired]
            assert all(trigger.at - at >= self.COOLDOWN * DAY for at in earlier), "in cooldown"
            recent = [at for at in earlier if at > trigger.at - self.PER * DAY]
            assert len(recent) < self.BUDGET, "over budget"
            self.fired.append((trigger.at, trigger.request_id, trigger.episode.episode_id))
            if trigger.episode.kind is Kind.ALERT:
                assert self.firing[monitor, int(trigger.episode.told)], "fired for what is over"
            self.running.add(trigger.request_id)

    @rule(
        monitor=st.sampled_from("ab"),
        x=st.sampled_from([None, 0.1, 0.9, 2.0]),
        drop=st.sampled_from([None, 0.0, 0.3]),
        broken=st.sampled_from([False] * 5 + [True]),
        step=st.sampled_from([1] * 8 + [2, 9, -3, 0]),
    )
    def evaluate(self, monitor, x, drop, *, broken, step) -> None:
        day = self.now[monitor] + step
        performance = None
        if drop is not None:
            performance = Performance({"auc": 0.8 - drop}, 500, 100, REFERENCE)
        if step > 0:
            self.now[monitor] = day
            self.broken[monitor][day] = broken
        shown = replace(
            evaluation(day, {"x": x}, broken=broken, performance=performance),
            monitor=monitor,
            expected={"auc": 0.8},
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
        lasting = x == 2.0 and self.last_x[monitor] == 2.0
        self.last_x[monitor] = x
        self.take(monitor, decision)
        if lasting and free:
            outcome = decision.state.episodes[Kind.DRIFT].outcome
            wanted = {Outcome.WAITING} if self.manual else set()
            assert outcome in wanted | {Outcome.FIRED, Outcome.REJECTED}, "forgot to fire"

    @rule(
        monitor=st.sampled_from("ab"),
        days=st.integers(2, 12),
        drop=st.sampled_from([None, 0.3]),
        ends=st.booleans(),
    )
    def drift_lasts(self, monitor, days, drop, ends) -> None:
        """Drift without a break; as long as it takes for the cooldown to pass."""
        for _ in range(days):
            self.evaluate(monitor, 2.0, drop, broken=False, step=1)
            if ends:
                self.running.clear()

    def is_free(self, at: datetime) -> bool:
        """Whether nothing forbids a trigger, by the account."""
        times = [time for time, _, _ in self.fired]
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
        (outcome,) = [t.outcome for t in decision.triggers if t.episode.episode_id == episode]
        if free:
            assert outcome is (Outcome.WAITING if self.manual else Outcome.FIRED), "not asked for"

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
        self.states[monitor] = load(PolicyState, dump(state))
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
        cause = Cause(Kind.ALERT, ("f", str(number)), str(number))
        if firing:
            self.firing.setdefault((monitor, number), True)
            self.cause(monitor, cause)
            return
        if (monitor, number) in self.firing:
            self.firing[monitor, number] = False
        episode = episode_id(monitor, Kind.ALERT, *cause.identity)
        self.take(monitor, resolve(self.states[monitor], monitor, episode, "resolved"))
        assert episode not in self.open

    @precondition(lambda self: self.running)
    @rule(promoted=st.booleans())
    def run_ends(self, promoted) -> None:
        self.running.clear()
        if promoted:
            for monitor, state in self.states.items():
                self.last_x[monitor] = None
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
        requests = [request for _, request, _ in self.fired]
        episodes = [episode for _, _, episode in self.fired]
        assert len(set(requests)) == len(requests)
        assert len(set(episodes)) == len(episodes)

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
