"""When a model is due, and what the budget says: by hand-counted days and runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from steadfeast.monitor.config.schema import BudgetConfig, MonitorConfig
from steadfeast.monitor.decisions.model import (
    Evaluation,
    ModelHistory,
    Outcome,
    PastRun,
    PolicyState,
)
from steadfeast.monitor.decisions.policy import decide, move_reference, reject
from steadfeast.monitor.decisions.refresh import due, gain_of, worth
from steadfeast.monitor.drift.detector import Level, Verdict
from steadfeast.monitor.performance.realized import Performance
from steadfeast.monitor.profiles.profile import Window

DAY = timedelta(days=1)
START = datetime(2024, 1, 1, tzinfo=UTC)


def config(**changes) -> MonitorConfig:
    given = {"service": "s", "model": "m", "pipeline": "p", "window": 7 * DAY}
    return MonitorConfig(**given | changes)


def known(days: float) -> Window:
    """What a model was fitted on that knew so many days up to START."""
    return Window(START - days * DAY, START, 1000)


def first_day(days: float, runs=(), **changes) -> int:
    return next(
        d for d in range(1, 400) if due(START + d * DAY, known(days), runs, config(**changes))
    )


def gains(*pairs: tuple[float, float]) -> tuple[PastRun, ...]:
    return tuple(PastRun(START - 30 * DAY, gain=gain, error=error) for gain, error in pairs)


@pytest.mark.parametrize(
    ("days", "runs", "expected"),
    [
        (50, (), 25),  # young: half of 50
        (100, (), 34),
        (300, (), 34),  # 1.1 of the even pace of 365 / 12 days
        (5000, (), 34),
        (700, gains((0.01, 0.002), (0.01, 0.002)), 31),  # clearly better: the even pace
        (700, gains((0.01, 0.01), (0.01, 0.01)), 34),  # 1.4 standard errors: 1.1 of it
        (700, gains((0.01, 0.01)), 34),  # one comparison is no evidence
        (700, gains((0.001, 0.01), (0.001, 0.01)), 46),  # 0.14 standard errors: 1.5 of it
        (700, gains((0.5, 0.01), *[(-0.01, 0.002)] * 6), 61),  # the newest six count: twice
    ],
)
def test_a_model_is_due_when_what_is_known_has_grown(days, runs, expected):
    assert first_day(days, runs) == expected


def test_drift_makes_it_due_sooner_and_not_at_once():
    at, unsure = START + 31 * DAY, gains((0.001, 0.01), (0.001, 0.01))
    assert not due(at, known(700), unsure, config())
    assert "there is drift" in due(at, known(700), unsure, config(), drifting=True)
    assert not due(START + 30 * DAY, known(700), unsure, config(), drifting=True)


def test_a_fixed_refresh_and_none():
    assert first_day(700, refresh=timedelta(days=30)) == 30
    assert not due(START + 4000 * DAY, known(50), (), config(refresh="never"))


def test_late_labels_are_not_known_yet():
    late = config(performance={"label_delay": 30 * DAY})
    assert not due(START + 54 * DAY, known(50), (), late)
    assert due(START + 55 * DAY, known(50), (), late)


def test_after_a_refusal_it_is_due_again_with_newer_data():
    refused = (PastRun(START + 11 * DAY, cost=0.5, promoted=False),)
    assert not due(START + 24 * DAY, known(40), refused, config())
    assert due(START + 25 * DAY, known(40), refused, config())


def test_gain_is_of_the_first_gate_that_compared():
    gates = [(None, None, None), (0.01, -0.0075, 0.0275), (5.0, 4.0, 6.0)]
    gain, error = gain_of(gates)
    assert (gain, error) == (0.01, pytest.approx(0.01))
    assert gain_of(gates[:1]) == (None, None)
    assert worth(gains((0.03, 0.03), (0.01, 0.04))) == pytest.approx(0.04 / 0.05)


def evaluation(day: int, runs: tuple[PastRun, ...], *, drop: float = 0.0) -> Evaluation:
    window = Window(START + (day - 7) * DAY, START + day * DAY, 1000)
    return Evaluation(
        monitor="w",
        window=window,
        reference_window=known(700),
        verdicts=(),
        performance=Performance({"roc_auc": 0.8 - drop}, 1000, 500, window),
        expected={"roc_auc": 0.8},
        history=ModelHistory(runs=runs),
    )


def replay(days: range, runs: tuple[PastRun, ...], cfg: MonitorConfig, drop: float = 0.0):
    state, triggers = PolicyState(), []
    for day in days:
        decision = decide(state, evaluation(day, runs, drop=drop), cfg)
        state = decision.state
        triggers += decision.triggers
        runs += tuple(PastRun(one.at) for one in decision.triggers if one.outcome is Outcome.FIRED)
    return triggers


def test_refresh_fires_once_for_what_the_model_was_fitted_on():
    fired = replay(range(20, 60), (), config())
    assert [(one.outcome, one.at) for one in fired] == [(Outcome.FIRED, START + 34 * DAY)]
    assert "34 days of examples are new" in fired[0].episodes[0].summary


def test_a_refresh_that_was_closed_and_is_due_again_is_another():
    """It closes with the reference; an id that comes twice could not be written down."""
    state, seen = PolicyState(), []
    for day in range(68, 76):
        decision = decide(state, evaluation(day, ()), config(approval="manual"))
        state = decision.state
        seen += [one.episode_id for one in decision.opened]
        if day == 72:
            state = move_reference(state, "w", "the configuration changed").state
    assert len(seen) == len(set(seen)) == 2


def test_a_refused_refresh_is_asked_for_again_with_newer_data_and_not_before():
    cfg, state, asked = config(approval="manual"), PolicyState(), []
    for day in range(68, 80):
        decision = decide(state, evaluation(day, ()), cfg)
        state = decision.state
        asked += [one.request_id for one in decision.triggers if one.decided]
        if day == 72:
            state = reject(state, "w", asked[0], "not now").state
    assert len(asked) == 1
    for day in range(80, 90):
        decision = decide(state, evaluation(day, ()), cfg)
        state = decision.state
        asked += [one.request_id for one in decision.triggers if one.decided]
        assert len(set(asked)) == (1 if day < 72 + 14 else 2)
    after = decide(state, evaluation(91, (PastRun(START + 90 * DAY, promoted=True),)), cfg)
    assert not after.state.episodes


def test_budget_says_since_when_and_until_when_and_keeps_a_reserve():
    runs = tuple(PastRun(START - days * DAY) for days in (300, 200, 100))
    cfg = config(budget=BudgetConfig(runs=3, reserve=1), refresh=30 * DAY, cooldown=DAY)
    held = replay(range(31, 33), runs, cfg)
    assert [one.outcome for one in held] == [Outcome.BUDGET]
    assert held[0].reason == (
        "3 of 3 runs used since 7 Mar 2023, next on 6 Mar 2024; "
        "a performance drop would use the reserve"
    )
    urgent = replay(range(10, 13), runs, cfg, drop=0.2)
    assert [one.outcome for one in urgent] == [Outcome.FIRED]
    spent = (*runs, PastRun(START))
    held = replay(range(10, 13), spent, cfg, drop=0.2)
    assert held[0].reason.startswith("4 of 4 runs used since 7 Mar 2023, next on 6 Mar 2024")


def test_refused_runs_count_by_what_they_cost():
    cheap = tuple(PastRun(START - days * DAY, 0.5, False) for days in (300, 200, 100))
    cfg = config(budget=BudgetConfig(runs=3, reserve=0), refresh=30 * DAY, cooldown=DAY)
    assert [one.outcome for one in replay(range(31, 33), cheap, cfg)] == [Outcome.FIRED]


def drifting(day: int, impact: float | None) -> Evaluation:
    """One feature far over its limit, for days."""
    window = Window(START + (day - 1) * DAY, START + day * DAY, 1000)
    verdict = Verdict("served", "x", "psi", 0.6, 0.1, Level.DRIFT, "", window, impact=impact)
    return Evaluation("w", window, known(700), (verdict,))


@pytest.mark.parametrize(
    ("impact", "first"),
    [
        (0.6, 2),  # heavy: at once
        (0.1, 31),  # when the even pace is known
        (None, 31),  # nobody knows what the model leans on
        (0.01, 34),  # the model hardly leans on it: only by refresh
    ],
)
def test_drift_weighs_by_effect_times_importance(impact, first):
    state = PolicyState()
    for day in range(1, 80):
        decision = decide(state, drifting(day, impact), config(window=DAY, performance=None))
        state = decision.state
        if any(one.outcome is Outcome.FIRED for one in decision.triggers):
            assert day == pytest.approx(first, abs=1)
            return
    raise AssertionError("never fired")
