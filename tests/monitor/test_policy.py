"""What follows from verdicts: by example, and for any sequence of events."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from monitor.codec import dump, load
from monitor.config import BudgetConfig, EpisodeConfig, MonitorConfig
from monitor.detect import Level, Verdict
from monitor.episodes import (
    AlertKind,
    Decision,
    Evaluation,
    Kind,
    ModelHistory,
    NotDecidableError,
    Outcome,
    PolicyState,
    TriggerState,
)
from monitor.performance import Performance
from monitor.policy import approve, decide, move_reference, reject, request_id
from monitor.profile import Window
from monitor.quality import Incident, IncidentKind

DAY = timedelta(days=1)
START = datetime(2024, 1, 1, tzinfo=UTC)
REFERENCE = Window(START - 30 * DAY, START, 3000)


def config(**changes) -> MonitorConfig:
    given = {
        "service": "s",
        "model": "m",
        "pipeline": "p",
        "bucket": DAY,
        "window": 3 * DAY,
        "cooldown": 7 * DAY,
        "episode": EpisodeConfig(k=2, n=3, close=2),
    }
    return MonitorConfig(**given | changes)


def evaluation(day: int, ratios: dict[str, float | None], *, broken: bool = False, **more):
    window = Window(START + (day - 3) * DAY, START + day * DAY, 300)

    def verdict(feature: str, ratio: float | None) -> Verdict:
        if ratio is None:
            return Verdict(
                "served", feature, "psi", None, 0.1, Level.INSUFFICIENT_DATA, "few rows", window
            )
        level = Level.DRIFT if ratio > 1 else Level.OK
        return Verdict("served", feature, "psi", ratio * 0.1, 0.1, level, "", window)

    incident = Incident(IncidentKind.NULL_BURST, "x", 0.9, 0.2, "x: 90 % null")
    return Evaluation(
        monitor="w",
        window=window,
        reference_window=REFERENCE,
        verdicts=tuple(verdict(*item) for item in ratios.items()),
        incidents=(incident,) if broken else (),
        contract="c" * 64,
        model_version="1",
        **more,
    )


def feed(days, cfg: MonitorConfig, state: PolicyState | None = None):
    """Decide day by day as a daemon would; return the last state and every decision."""
    state, decisions, fired = state or PolicyState(), [], []
    for day, ratios, *rest in days:
        broken = bool(rest and rest[0])
        history = ModelHistory(fired=tuple(fired))
        decision = decide(state, evaluation(day, ratios, broken=broken, history=history), cfg)
        fired += [t.at for t in decision.triggers if t.outcome is Outcome.FIRED]
        state = decision.state
        decisions.append(decision)
    return state, decisions


def outcomes(decisions: list[Decision]) -> list[tuple[int, str]]:
    return [
        ((t.at - START).days, t.outcome.value) for decision in decisions for t in decision.triggers
    ]


def test_two_of_three_windows_open_and_fire_once():
    _, decisions = feed([(1, {"x": 2}), (2, {"x": 0.5}), (3, {"x": 3}), (4, {"x": 3})], config())
    assert [len(d.opened) for d in decisions] == [0, 0, 1, 0]
    assert outcomes(decisions) == [(3, "fired")]


def test_the_same_feature_must_last():
    """Two features that take turns are two flickers, not one lasting drift."""
    _, decisions = feed(
        [(1, {"x": 2, "y": 0}), (2, {"x": 0, "y": 2}), (3, {"x": 0, "y": 0})], config()
    )
    assert not any(d.opened for d in decisions)


def test_it_closes_below_four_fifths_and_not_just_below_the_limit():
    days = [(1, {"x": 2}), (2, {"x": 2}), *((d, {"x": 0.9}) for d in range(3, 9))]
    _, decisions = feed(days, config())
    assert not any(d.closed for d in decisions)
    state, decisions = feed([*days, (9, {"x": 0.79}), (10, {"x": 0.79})], config())
    assert [c.at for c in decisions[-1].closed] == [START + 10 * DAY]
    assert not state.episodes
    assert decisions[-1].alerts[0].resolved


def test_a_window_without_data_neither_opens_nor_closes():
    days = [(1, {"x": 2}), (2, {"x": 2}), (3, {"x": 0.1}), (4, {"x": None}), (5, {"x": None})]
    state, _ = feed(days, config())
    assert state.episodes[Kind.DRIFT].quiet == 1
    state, decisions = feed([(6, {"x": 0.1})], config(), state)
    assert decisions[0].closed
    _, decisions = feed(
        [(1, {"x": 2}), (2, {"x": None}), (3, {"x": None}), (4, {"x": 2})], config()
    )
    assert not any(d.opened for d in decisions)


def test_cooldown_suppresses_and_then_the_same_episode_fires():
    days = [(d, {"x": 2}) for d in (1, 2)]
    days += [(d, {"x": 0.1}) for d in (3, 4)]  # closes
    days += [(d, {"x": 2}) for d in range(5, 12)]
    _, decisions = feed(days, config())
    assert outcomes(decisions) == [(2, "fired"), (6, "cooldown"), (9, "fired")]
    triggers = [t for d in decisions for t in d.triggers]
    assert triggers[1].request_id == triggers[2].request_id
    assert triggers[1].state is TriggerState.SUPPRESSED


def test_a_quiet_episode_does_not_fire_when_the_cooldown_ends():
    days = [(1, {"x": 2}), (2, {"x": 2}), (3, {"x": 0.1}), (4, {"x": 0.1})]
    days += [(5, {"x": 2}), (6, {"x": 2}), *((d, {"x": 0.9}) for d in range(7, 15))]
    _, decisions = feed(days, config())
    assert outcomes(decisions) == [(2, "fired"), (6, "cooldown")]


def test_broken_data_blocks_until_it_has_left_the_window():
    days = [(1, {"x": 2}, True), *((d, {"x": 2}) for d in range(2, 7))]
    _, decisions = feed(days, config())
    assert outcomes(decisions) == [(2, "blocked"), (4, "fired")]
    kinds = [(a.kind, a.resolved) for d in decisions for a in d.alerts]
    assert kinds.count((AlertKind.DATA_INCIDENT, False)) == 1
    assert kinds.count((AlertKind.DATA_INCIDENT, True)) == 1


def test_the_budget_is_of_any_stretch():
    cfg = config(cooldown=timedelta(0), budget=BudgetConfig(runs=1, per=20 * DAY))
    days = []
    for first in (1, 11, 21):
        days += [(first + i, {"x": 2}) for i in range(5)]
        days += [(first + 5 + i, {"x": 0}) for i in range(5)]
    _, decisions = feed(days, cfg)
    assert outcomes(decisions) == [
        (2, "fired"),
        (12, "budget"),
        (17, "expired"),
        (22, "fired"),
    ]


def test_a_fall_of_the_live_metric_is_an_episode_of_its_own():
    state = PolicyState()
    for day, auc in ((1, 0.81), (2, 0.6), (3, 0.6)):
        shown = evaluation(
            day,
            {"x": 0.1},
            performance=Performance({"auc": auc}, 500, 100, REFERENCE),
            expected={"auc": 0.8},
        )
        decision = decide(state, shown, config())
        state = decision.state
    (episode,) = decision.opened
    assert episode.kind is Kind.PERFORMANCE
    assert episode.features[0].value == pytest.approx(0.2)
    assert episode.features[0].threshold == pytest.approx(0.05)
    assert outcomes([decision]) == [(3, "fired")]


def test_log_loss_falls_by_rising():
    cfg = config(performance={"metric": "log_loss", "max_drop": 0.1})
    state = PolicyState()
    for day, loss in ((1, 0.3), (2, 0.1), (3, 0.9), (4, 0.9)):
        shown = evaluation(
            day,
            {},
            performance=Performance({"log_loss": loss}, 500, 100, REFERENCE),
            expected={"log_loss": 0.5},
        )
        decision = decide(state, shown, cfg)
        state = decision.state
        assert bool(decision.opened) == (day == 4)


def test_a_moved_reference_closes_and_forgets():
    state, _ = feed([(1, {"x": 2}), (2, {"x": 2})], config())
    decision = move_reference(state, "w", "version 2 promoted")
    assert [c.reason for c in decision.closed] == ["version 2 promoted"]
    _, after = feed([(3, {"x": 2})], config(), decision.state)
    assert not after[0].opened


def test_without_a_pipeline_nothing_fires():
    _, decisions = feed([(1, {"x": 2}), (2, {"x": 2})], config(pipeline=None))
    assert any(d.opened for d in decisions)
    assert outcomes(decisions) == []


def test_a_person_decides():
    cfg = config(approval="manual")
    state, decisions = feed([(1, {"x": 2}), (2, {"x": 2}), (3, {"x": 2})], cfg)
    assert outcomes(decisions) == [(2, "waiting")]
    request = decisions[1].triggers[0].request_id
    assert decisions[1].triggers[0].state is TriggerState.WAITING
    approved = approve(state, "w", request, cfg, ModelHistory())
    assert outcomes([approved]) == [(3, "fired")]
    with pytest.raises(NotDecidableError, match="does not wait"):
        approve(approved.state, "w", request, cfg, ModelHistory())
    rejected = reject(state, "w", request, "not now")
    assert outcomes([rejected]) == [(3, "rejected")]
    _, later = feed([(4, {"x": 2})], cfg, rejected.state)
    assert outcomes(later) == []
    with pytest.raises(NotDecidableError, match="cooldown"):
        approve(state, "w", request, cfg, ModelHistory(fired=(START + DAY,)))
    with pytest.raises(NotDecidableError, match="broken"):
        approve(state, "w", request, cfg, ModelHistory(blocked="broken"))


def test_request_ids_are_uuid5_of_the_canonical_parts():
    """Another implementation must be able to derive them."""
    namespace = uuid.UUID("5d1c3a52-6f0e-5b6e-9d0a-0b8f6f0f2a77")
    name = json.dumps(["trigger", "m", "c", "w", "e"], separators=(",", ":"))
    assert request_id("m", "c", "w", "e") == str(uuid.uuid5(namespace, name))
    assert request_id("a,b", "c", "w", "e") != request_id("a", "b,c", "w", "e")


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
        self.states[monitor] = load(PolicyState, dump(decision.state))
        for episode in decision.opened:
            assert episode.episode_id not in self.open | self.closed, "opened twice"
            self.open.add(episode.episode_id)
        for closed in decision.closed:
            assert closed.episode_id in self.open
            self.open.discard(closed.episode_id)
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
            before = [at for at, _, _ in self.fired]
            assert all(trigger.at - at >= self.COOLDOWN * DAY for at in before), "in cooldown"
            recent = [at for at in before if at > trigger.at - self.PER * DAY]
            assert len(recent) < self.BUDGET, "over budget"
            self.fired.append((trigger.at, trigger.request_id, trigger.episode.episode_id))
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
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
