"""What follows from verdicts, by example; `test_policy_machine` has any sequence of events."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from datetime import timedelta

import pytest

from steadfeast.monitor.config.schema import BudgetConfig, MonitorConfig
from steadfeast.monitor.decisions.builder import request_id
from steadfeast.monitor.decisions.model import (
    AlertKind,
    Decision,
    EpisodeKind,
    ModelHistory,
    NotDecidableError,
    Outcome,
    PastRun,
    PolicyState,
    TriggerState,
)
from steadfeast.monitor.decisions.policy import approve, decide, move_reference, reject
from steadfeast.monitor.drift.detector import Level
from steadfeast.monitor.performance.realized import Performance
from steadfeast.monitor.profiles.profile import Window
from support.policy_world import DAY, REFERENCE, START, config, evaluation


def feed(
    days,
    cfg: MonitorConfig,
    state: PolicyState | None = None,
    *,
    groups: dict[str, str] | None = None,
    refused: bool = False,
):
    """Decide day by day as a daemon would; return the last state and every decision.

    With `refused`, no run promotes; without, nothing is heard of any.
    """
    state, decisions, fired = state or PolicyState(), [], []
    for day, ratios, *rest in days:
        broken = bool(rest and rest[0])
        history = ModelHistory(
            runs=tuple(PastRun(one.at, promoted=not refused) for one in fired),
            without_promotion=frozenset(one.request_id for one in fired if refused),
        )
        shown = evaluation(day, ratios, broken=broken, history=history, groups=groups or {})
        decision = decide(state, shown, cfg)
        fired += [t for t in decision.triggers if t.outcome is Outcome.FIRED]
        state = decision.state
        decisions.append(decision)
    return state, decisions


def outcomes(decisions: list[Decision]) -> list[tuple[int, str]]:
    return [
        ((t.at - START).days, t.outcome.value)
        for decision in decisions
        for t in decision.triggers
        if t.decided
    ]


def opened(decisions: list[Decision]) -> list[tuple[int, tuple[str, ...]]]:
    return [
        ((one.window.end - START).days, tuple(verdict.feature for verdict in one.features))
        for decision in decisions
        for one in decision.opened
    ]


def told(decisions: list[Decision]) -> list[tuple[int, bool, str]]:
    """Return what people are notified of about episodes: day, whether an end, and the line."""
    return [
        ((alert.at - START).days, alert.resolved, alert.summary)
        for decision in decisions
        for alert in decision.alerts
        if alert.kind is AlertKind.EPISODE
    ]


def days(first: int, last: int, **ratios: float | None):
    return [(day, ratios) for day in range(first, last + 1)]


def test_four_of_five_windows_on_one_side_open_once():
    shown = [*days(1, 2, x=2), *days(3, 3, x=0.5), *days(4, 9, x=2)]
    _, decisions = feed(shown, config())
    assert opened(decisions) == [(5, ("x",))]
    assert outcomes(decisions) == [(5, "fired")]
    assert len(told(decisions)) == 1
    swings = [(day, {"x": 2.0 if day % 2 else -2.0}) for day in range(1, 15)]
    _, decisions = feed(swings, config())
    assert not opened(decisions)


def test_a_decisive_window_opens_at_once_and_a_storm_does_not_last():
    state, decisions = feed([*days(1, 9, x=0.2), *days(10, 10, x=8)], config())
    assert opened(decisions) == [(10, ("x",))]
    state, decisions = feed(days(11, 12, x=0.2), config(), state)
    assert not state.episodes
    assert sum(resolved for _, resolved, _ in told(decisions)) == 1


def test_features_that_take_turns_are_flickers():
    turns = [(d, {"x": 2.0 * (d % 2), "y": 2.0 * (1 - d % 2)}) for d in range(1, 20)]
    _, decisions = feed(turns, config())
    assert not opened(decisions)


def test_it_closes_below_four_fifths_and_not_just_below_the_limit():
    state, decisions = feed([*days(1, 5, x=2), *days(6, 20, x=0.9)], config())
    assert state.episodes
    state, decisions = feed(days(21, 24, x=0.79), config(), state)
    assert [one.at for d in decisions for one in d.closed] == [START + 24 * DAY]
    assert not state.episodes
    assert decisions[-1].alerts[0].resolved


def test_windows_without_data_neither_open_nor_close_and_say_so_once():
    shown = [*days(1, 4, x=2), *days(5, 30, x=None)]
    state, decisions = feed(shown, config())
    (episode,) = state.episodes.values()
    assert episode.members[0].unjudged == "few rows"
    said = [line for _, _, line in told(decisions)[1:]]
    assert said == ["cannot be judged: drift: x: few rows; it stays open until it can be judged"]
    state, decisions = feed(days(31, 33, x=0.1), config(), state)
    assert state.episodes, "closed on windows that nobody judged"
    assert not next(iter(state.episodes.values())).members[0].unjudged
    state, _ = feed(days(34, 34, x=0.1), config(), state)
    assert not state.episodes
    flickers = [(d, {"x": 2.0 if d % 2 else None}) for d in range(1, 20)]
    _, decisions = feed(flickers, config())
    assert not opened(decisions)


def test_a_column_that_is_gone_keeps_its_episode_open():
    state, decisions = feed([*days(1, 4, x=2, y=0.1), *days(5, 20, y=0.1)], config())
    assert [one.features[0].feature for one in state.episodes.values()] == ["x"]
    assert "its column is not there" in told(decisions)[-1][2]


def test_an_open_episode_hides_no_other_feature():
    """`a` stays over for good; `b` is told when it breaks, and each resolves by itself."""
    state, decisions = feed([*days(1, 9, a=2, b=0.1), *days(10, 14, a=2, b=8)], config())
    assert opened(decisions) == [(4, ("a",)), (10, ("b",))]
    lines = told(decisions)
    assert [(day, resolved) for day, resolved, _ in lines] == [(4, False), (10, False)]
    assert lines[1][2].startswith("drift: b: ")
    assert "still open: a" in lines[1][2]
    state, decisions = feed(days(15, 19, a=0.1, b=8), config(), state)
    ((day, resolved, line),) = told(decisions)
    assert (day, resolved) == (18, True)
    assert "a: at most 1 of the last 5" in line
    assert "still open: b" in line
    assert [one.features[0].feature for one in state.episodes.values()] == ["b"]


def test_what_breaks_together_is_one_notification():
    """Unrelated features are an episode each, told at once; related ones are one episode."""
    shown = days(1, 4, a=2, b=2.5, c=1.5, d=0.1)
    _, decisions = feed(shown, config())
    assert opened(decisions) == [(4, ("b",)), (4, ("a",)), (4, ("c",))]
    (alert,) = [one for one in decisions[-1].alerts if one.kind is AlertKind.EPISODE]
    assert len(alert.episodes) == len(decisions[-1].opened)
    _, decisions = feed(shown, config(), groups={"a": "g", "b": "g"})
    assert sorted(opened(decisions)) == [(4, ("b", "a")), (4, ("c",))]


def test_a_related_feature_joins_only_what_began_when_it_did():
    groups = {"a": "g", "b": "g"}
    late = [*days(1, 1, a=2, b=0.1), *days(2, 5, a=2, b=2)]
    state, decisions = feed(late, config(), groups=groups)
    assert opened(decisions) == [(4, ("a",))]
    (episode,) = state.episodes.values()
    assert [one.verdict.feature for one in episode.members] == ["a", "b"]
    assert [line.partition(":")[0] for _, _, line in told(decisions)] == ["drift", "joined"]
    later = [*days(1, 9, a=2, b=0.1), *days(10, 14, a=2, b=2)]
    _, decisions = feed(later, config(), groups=groups)
    assert opened(decisions) == [(4, ("a",)), (13, ("b",))]


def test_members_of_one_episode_resolve_one_by_one():
    groups = {"a": "g", "b": "g"}
    shown = [*days(1, 4, a=2, b=2.5), *days(5, 9, a=0.1, b=2.5)]
    state, decisions = feed(shown, config(), groups=groups)
    (episode,) = state.episodes.values()
    assert [one.verdict.feature for one in episode.members if one.open] == ["b"]
    (_, resolved, line) = told(decisions)[-1]
    assert resolved
    assert line.startswith("resolved: drift: a: ")
    assert not decisions[-1].closed


def test_decisively_worse_is_told_again_and_asks_again():
    """After the window has filled up; a little worse is not told."""
    cfg = config(cooldown=0 * DAY)
    state, decisions = feed([*days(1, 10, x=1.2), *days(11, 20, x=2.3)], cfg)
    assert len(told(decisions)) == 1
    state, decisions = feed(days(21, 30, x=4), cfg, state)
    ((day, _, line),) = told(decisions)
    assert (day, line.partition(":")[0]) == (22, "worse")
    assert outcomes(decisions) == [(22, "fired")]


def test_a_calm_day_on_the_other_side_is_not_worse():
    """Neither it nor the drift that goes on after it is told or asked for again."""
    cfg = config(cooldown=0 * DAY)
    shown = [*days(1, 10, x=1.2), *days(11, 11, x=-0.1), *days(12, 18, x=1.2)]
    state, decisions = feed([*shown, *days(19, 19, x=-0.1), *days(20, 26, x=1.2)], cfg)
    assert len(told(decisions)) == 1
    assert len(outcomes(decisions)) == 1
    _, decisions = feed(days(27, 34, x=-1.2), cfg, state)
    assert [(day, line.partition(":")[0]) for day, _, line in told(decisions)] == [(30, "worse")]


def test_features_that_come_back_to_a_slow_change_are_no_trouble():
    """`a` leaves and joins again quietly, so that of all members nobody was notified."""

    def shown(day: int):
        creeping = {"a": 0, "b": 6, "c": 60}
        ratios = {name: max(0.0, min(1.3, 0.03 * (day - at))) for name, at in creeping.items()}
        if 60 <= day < 66:
            ratios["a"] = 0.7
        return day, ratios

    state, decisions = feed([shown(day) for day in range(1, 120)], config())
    (episode,) = state.episodes.values()
    assert {one.verdict.feature for one in episode.members if one.open} == {"a", "b", "c"}
    lines = [line for _, _, line in told(decisions)]
    assert [line.partition(":")[0] for line in lines] == ["slow drift", "resolved", "joined"]


def test_a_fall_of_a_measure_that_is_watched_no_longer_closes():
    cfg = config(performance={"metric": "roc_auc", "max_drop": 0.05})
    state = PolicyState()
    for day in range(1, 4):
        window = Window(START + (day - 3) * DAY, START + day * DAY, 300)
        live = Performance({"roc_auc": 0.6}, 1000, 500, window)
        shown = evaluation(day, {"x": 0.1}, performance=live, expected={"roc_auc": 0.8})
        state = decide(state, shown, cfg).state
    assert [one.kind for one in state.episodes.values()] == [EpisodeKind.PERFORMANCE]
    other = config(performance={"metric": "log_loss", "max_drop": 0.05})
    decision = decide(state, evaluation(4, {"x": 0.1}), other)
    assert not decision.state.episodes
    assert [one.reason for one in decision.closed] == ["its measure is watched no longer"]


def test_a_change_by_degrees_of_many_features_is_told_as_one():
    """Twenty features cross their limits one after the other: told when it begins, and as many."""

    def shown(day: int):
        return day, {f"f{i:02}": max(0.0, min(1.6, 0.03 * (day - 5 * i))) for i in range(20)}

    state, decisions = feed([shown(day) for day in range(1, 150)], config())
    assert len(opened(decisions)) == 1
    (episode,) = state.episodes.values()
    assert episode.slow
    assert len(episode.members) == 20
    lines = [line for _, _, line in told(decisions)]
    assert len(lines) <= 3
    assert lines[0].startswith("slow drift: f00")
    state, decisions = feed(
        [(day, {**shown(day)[1], "z": 0.0}) for day in range(150, 160)]
        + [(day, {**shown(day)[1], "z": 7.5}) for day in range(160, 162)],
        config(),
        state,
    )
    assert opened(decisions) == [(160, ("z",))], "a break is no slow change"


def test_cooldown_suppresses_and_then_the_same_request_fires():
    shown = [*days(1, 4, x=2), *days(5, 8, x=0.1), *days(9, 15, x=2)]
    _, decisions = feed(shown, config(cooldown=9 * DAY))
    assert outcomes(decisions) == [(4, "fired"), (12, "cooldown"), (13, "fired")]
    triggers = [t for d in decisions for t in d.triggers]
    assert triggers[1].request_id == triggers[2].request_id
    assert triggers[1].state is TriggerState.SUPPRESSED


def test_a_quiet_episode_does_not_fire_when_the_cooldown_ends():
    shown = [*days(1, 4, x=2), *days(5, 8, x=0.1), *days(9, 12, x=2), *days(13, 25, x=0.9)]
    _, decisions = feed(shown, config(cooldown=15 * DAY))
    assert outcomes(decisions) == [(4, "fired"), (12, "cooldown")]


def test_a_second_drift_fires_a_second_trigger_with_all_that_is_open():
    """The run of the first was refused; nothing had promoted, and `b` is a cause of its own."""
    cfg = config(retry_after=60 * DAY)
    shown = [*days(1, 30, a=2, b=0.1), *days(31, 34, a=2, b=2)]
    _, decisions = feed(shown, cfg, refused=True)
    assert outcomes(decisions) == [(4, "fired"), (34, "fired")]
    first, second = (t for d in decisions for t in d.triggers)
    assert first.request_id != second.request_id
    assert [one.features[0].feature for one in second.episodes] == ["b", "a"]


def test_drift_of_unknown_weight_asks_at_once_where_it_is_decisive():
    """The model was fitted a day ago: a little drift waits for more to be known."""
    for ratio, asks in ((2, False), (9, True)):
        state = PolicyState()
        for day in range(1, 5):
            shown = replace(evaluation(day, {"x": ratio}), reference_window=recent(day))
            decision = decide(state, shown, config(refresh="auto"))
            state = decision.state
        assert state.episodes
        assert (state.episodes.popitem()[1].answer is not None) is asks


def recent(day: int) -> Window:
    """A training set of two years that ended yesterday."""
    end = START + (day - 1) * DAY
    return Window(end - 730 * DAY, end, 100_000)


def test_a_refusal_ends_nothing():
    """What stands asks again `retry_after` later; what was promoted, or runs, does not."""
    cfg = config(cooldown=0 * DAY, retry_after=10 * DAY)
    _, decisions = feed(days(1, 26, x=2), cfg, refused=True)
    assert outcomes(decisions) == [(4, "fired"), (14, "fired"), (24, "fired")]
    requests = [t.request_id for d in decisions for t in d.triggers]
    assert len(set(requests)) == 3
    _, decisions = feed(days(1, 26, x=2), cfg)
    assert outcomes(decisions) == [(4, "fired")]


def test_broken_data_blocks_until_it_has_left_the_window():
    shown = [*days(1, 2, x=2), (3, {"x": 2}, True), *days(4, 8, x=2)]
    _, decisions = feed(shown, config())
    assert outcomes(decisions) == [(4, "blocked"), (6, "fired")]
    kinds = [(a.kind, a.resolved) for d in decisions for a in d.alerts]
    assert kinds.count((AlertKind.DATA_INCIDENT, False)) == 1
    assert kinds.count((AlertKind.DATA_INCIDENT, True)) == 1


def test_broken_data_of_a_feature_say_nothing_about_its_drift():
    """They are an incident; what was open stays open, and other features are judged as ever."""
    state, _ = feed(days(1, 4, x=2, y=0.1), config())
    for day in range(5, 12):
        shown = evaluation(day, {"x": 9, "y": 2, "z": 9}, broken=True)
        broken = [replace(one, level=Level.INCIDENT) for one in shown.verdicts[::2]]
        state = decide(state, replace(shown, verdicts=(*broken, shown.verdicts[1])), config()).state
    assert [one.features[0].feature for one in state.episodes.values()] == ["x", "y"]
    assert "z" not in {one.features[0].feature for one in state.episodes.values()}


def test_the_budget_is_of_any_stretch():
    cfg = config(cooldown=timedelta(0), budget=BudgetConfig(runs=1, per=20 * DAY, reserve=0))
    shown = []
    for first in (1, 11, 21):
        shown += [*days(first, first + 4, x=2), *days(first + 5, first + 9, x=0)]
    _, decisions = feed(shown, cfg)
    assert outcomes(decisions) == [
        (4, "fired"),
        (14, "budget"),
        (19, "expired"),
        (24, "fired"),
    ]


def test_a_fall_of_the_live_metric_is_an_episode_of_its_own():
    state = PolicyState()
    for day, auc in ((1, 0.81), (2, 0.6), (3, 0.6)):
        shown = evaluation(
            day,
            {"x": 0.1},
            performance=Performance({"roc_auc": auc}, 500, 100, REFERENCE),
            expected={"roc_auc": 0.8},
        )
        decision = decide(state, shown, config())
        state = decision.state
    (episode,) = decision.opened
    assert episode.kind is EpisodeKind.PERFORMANCE
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
    state, _ = feed(days(1, 4, x=2), config())
    decision = move_reference(state, "w", "version 2 promoted")
    assert [c.reason for c in decision.closed] == ["version 2 promoted"]
    _, after = feed(days(5, 7, x=2), config(), decision.state)
    assert not opened(after)


def test_without_a_pipeline_nothing_fires():
    _, decisions = feed(days(1, 4, x=2), config(pipeline=None))
    assert any(d.opened for d in decisions)
    assert outcomes(decisions) == []


def test_a_person_decides():
    cfg = config(approval="manual")
    state, decisions = feed(days(1, 5, x=2), cfg)
    assert outcomes(decisions) == [(4, "waiting")]
    request = decisions[3].triggers[0].request_id
    assert decisions[3].triggers[0].state is TriggerState.WAITING
    approved = approve(state, "w", request, cfg, ModelHistory())
    assert outcomes([approved]) == [(5, "fired")]
    with pytest.raises(NotDecidableError, match="does not wait"):
        approve(approved.state, "w", request, cfg, ModelHistory())
    rejected = reject(state, "w", request, "not now")
    assert outcomes([rejected]) == [(5, "rejected")]
    _, later = feed(days(6, 6, x=2), cfg, rejected.state)
    assert outcomes(later) == []
    with pytest.raises(NotDecidableError, match="cooldown"):
        approve(state, "w", request, cfg, ModelHistory(runs=(PastRun(START + DAY),)))
    with pytest.raises(NotDecidableError, match="broken"):
        approve(state, "w", request, cfg, ModelHistory(blocked="broken"))


def test_request_ids_are_uuid5_of_the_canonical_parts():
    """Another implementation must be able to derive them."""
    namespace = uuid.UUID("5d1c3a52-6f0e-5b6e-9d0a-0b8f6f0f2a77")
    name = json.dumps(["trigger", "m", "c", "w", "e", "2"], separators=(",", ":"))
    assert request_id("m", "c", "w", "e", 2) == str(uuid.uuid5(namespace, name))
    assert request_id("a,b", "c", "w", "e", 1) != request_id("a", "b,c", "w", "e", 1)
