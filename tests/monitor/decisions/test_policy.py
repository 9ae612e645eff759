"""What follows from verdicts, by example; `test_policy_machine` has any sequence of events."""

from __future__ import annotations

import json
import uuid
from datetime import timedelta

import pytest

from steadfeast.monitor.config.schema import BudgetConfig, MonitorConfig
from steadfeast.monitor.decisions.builder import request_id
from steadfeast.monitor.decisions.model import (
    AlertKind,
    Decision,
    Kind,
    ModelHistory,
    NotDecidableError,
    Outcome,
    PolicyState,
    TriggerState,
)
from steadfeast.monitor.decisions.policy import approve, decide, move_reference, reject
from steadfeast.monitor.performance.realized import Performance
from support.policy_world import DAY, REFERENCE, START, config, evaluation


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
