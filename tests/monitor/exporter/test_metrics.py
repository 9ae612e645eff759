"""The exposition against the state it renders, and against Prometheus's own reading of it."""

from __future__ import annotations

import dataclasses
import math
import subprocess
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from steadfeast.monitor.decisions.model import EpisodeKind
from steadfeast.monitor.drift.detector import Level
from steadfeast.monitor.exporter import metrics
from steadfeast.monitor.exporter.collector import StateCollector
from steadfeast.monitor.ledger.state import OutboxState, State
from steadfeast.monitor.profiles.distribution import MOST_BARS
from steadfeast.monitor.web.page import SHOWN, page

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def exposition(state: State) -> str:
    made = CollectorRegistry()
    made.register(StateCollector(lambda: state))
    return generate_latest(made).decode()


def samples(state: State) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Read the exposition with the client's parser, which shares no code with the collector."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(exposition(state))
        for sample in family.samples
    }


def value(state: State, name: str, **labels: str) -> float:
    return samples(state)[name, frozenset(labels.items())]


def test_every_figure_of_the_state_is_exported(drifting):
    flights = {"monitor": "flights"}
    temp = {**flights, "source": "served", "feature": "weather__temp"}
    segment = {**flights, "column": "origin", "value": "EWR"}
    replayed = {**flights, "invariant": "I2", "subject": "late_arrival"}
    temp_bin = {**flights, "feature": "weather__temp", "bin": "01 over 40"}
    expected = {
        (metrics.DRIFT_RATIO, *temp.items()): 6.4,
        (metrics.DRIFT + "psi", *temp.items()): 1.28,
        (metrics.DRIFT_THRESHOLD, *temp.items(), ("statistic", "psi")): 0.2,
        (metrics.DRIFT_LEVEL, *temp.items()): 2,
        (metrics.FEATURE_ROWS, *flights.items(), ("feature", "wind_gust")): 12,
        (metrics.FEATURE_NULLS, *flights.items(), ("feature", "hour")): 0.02,
        (metrics.WINDOW_ROWS, *flights.items()): 6400,
        (metrics.WINDOW_END, *flights.items()): 1373846400,  # 2013-07-15T00:00:00Z
        (metrics.REFERENCE_ROWS, *flights.items()): 51955,
        (metrics.VIEW_AGE, *flights.items(), ("view", "weather")): 4080,
        (metrics.PERFORMANCE + "roc_auc", *flights.items()): 0.684,
        (metrics.PERFORMANCE_REFERENCE + "roc_auc", *flights.items()): 0.752,
        (metrics.PERFORMANCE_ROWS, *flights.items()): 6210,
        (metrics.PERFORMANCE_ESTIMATED + "roc_auc", *flights.items()): 0.701,
        (metrics.PERFORMANCE_ERROR, *flights.items(), ("figure", "roc_auc")): 0.017,
        (
            metrics.PERFORMANCE_BOUND,
            *flights.items(),
            ("figure", "roc_auc"),
            ("side", "low"),
        ): 0.671,
        (metrics.PERFORMANCE_DROP, *flights.items(), ("basis", "labels")): 0.068 / 0.05,
        (metrics.PERFORMANCE_DROP, *flights.items(), ("basis", "estimate")): 0.051 / 0.05,
        (metrics.PERFORMANCE_DROP, ("monitor", "delays"), ("basis", "labels")): 0.5,
        (metrics.DRIFT_IMPACT, *temp.items()): 0.31,
        (metrics.SEGMENT_ROWS, *segment.items()): 3000,
        (metrics.SEGMENT_RATIO, *segment.items()): 6.4,
        (metrics.SEGMENT_PERFORMANCE, *segment.items(), ("figure", "roc_auc")): 0.65,
        (metrics.EPISODES_OPEN, *flights.items(), ("kind", "drift")): 1,
        (metrics.EPISODE_ACKNOWLEDGED, *flights.items(), ("kind", "drift")): 0,
        (metrics.EPISODE_ACKNOWLEDGED, *flights.items(), ("kind", "performance")): 1,
        (metrics.MONITOR_INCIDENTS, *flights.items(), ("kind", "null_burst")): 1,
        (metrics.MONITOR_INCIDENTS, *flights.items(), ("kind", "stale")): 0,
        (metrics.MONITOR_INCIDENT_OPENED, *flights.items(), ("kind", "null_burst")): 1373673600,
        (metrics.MONITOR_SUPERSEDED, *flights.items()): 0,
        (metrics.FEATURE_SHARE, *temp_bin.items(), ("side", "reference")): 0.48,
        (metrics.FEATURE_SHARE, *temp_bin.items(), ("side", "current")): 0.98,
        (metrics.VIEW_AGE_LIMIT, *flights.items(), ("view", "weather")): 3600,
        (metrics.VIEW_STALE, *flights.items(), ("view", "weather")): 1,
        (metrics.VIEW_STALE, *flights.items(), ("view", "tail_last")): 1,
        (metrics.AUDIT_AT, *flights.items()): 1767322800,
        (metrics.AUDIT_INTERVAL, *flights.items()): 21600,
        (metrics.AUDIT_HOLDS, *replayed.items()): 0,
        (metrics.AUDIT_CELLS, *replayed.items()): 70_659,
        (metrics.AUDIT_MISMATCHES, *replayed.items(), ("kind", "value")): 12,
        (metrics.AUDIT_MISMATCHES, *replayed.items(), ("kind", "missing online")): 0,
        (
            metrics.AUDIT_SKEW,
            *replayed.items(),
            ("feature", "weather__temp"),
            ("kind", "value"),
        ): 8,
        (metrics.GATE_VALUE, *flights.items(), ("gate", "roc_auc")): 0.771,
        (metrics.GATE_LIMIT, *flights.items(), ("gate", "roc_auc")): 0.752,
        (metrics.GATE_PASSED, *flights.items(), ("gate", "roc_auc")): 1,
        (metrics.GATE_CHAMPION, *flights.items(), ("gate", "roc_auc")): 0.757,
        (metrics.MONITOR_BLOCKED, *flights.items()): 1,
        (metrics.MONITOR_BLOCKED, ("monitor", "new")): 0,
        (metrics.DECISIONS, *flights.items(), ("outcome", "cooldown")): 9,
        (metrics.DECISIONS, *flights.items(), ("outcome", "budget")): 0,
        (metrics.TRIGGERS, *flights.items(), ("state", "delivered")): 2,
        (metrics.RUNS, *flights.items(), ("state", "running")): 1,
        (metrics.RUN_CHANGED, *flights.items(), ("state", "promoted")): 1767323045,
        (metrics.OUTBOX_MESSAGES,): 1,
        (metrics.OUTBOX_DEAD,): 1,
        (metrics.JOB_SECONDS + "_sum", ("task", "tick")): 412.5,
        (metrics.JOB_SECONDS + "_count", ("task", "tick")): 500,
        (metrics.JOB_FAILURES, ("task", "tick")): 2,
        (metrics.ALERTS,): 7,
        (metrics.SNAPSHOT_ROWS, *flights.items()): 170_000,
    }
    found = samples(drifting)
    assert {
        key: found.get((key[0], frozenset(key[1:])), math.nan) for key in expected
    } == pytest.approx(expected)


def test_what_has_no_value_has_no_sample(drifting):
    """A feature without a verdict has a level and no ratio: no data is not zero drift."""
    gust = {"monitor": "flights", "source": "served", "feature": "wind_gust"}
    assert value(drifting, metrics.DRIFT_LEVEL, **gust) == 1
    names = {name for name, labels in samples(drifting) if ("feature", "wind_gust") in labels}
    assert not names & {metrics.DRIFT_RATIO, metrics.DRIFT + "psi", metrics.DRIFT_THRESHOLD}
    for_new = {name for name, labels in samples(drifting) if ("monitor", "new") in labels}
    assert not any(name.endswith("_timestamp_seconds") for name in for_new)


def test_after_a_promotion_no_old_verdict_is_exported(drifting):
    """Until a bucket is judged against the new reference, nothing is said to have drifted."""
    flights = dataclasses.replace(drifting.monitors["flights"], superseded=True)
    state = dataclasses.replace(drifting, monitors={"flights": flights})
    found = samples(state)
    assert value(state, metrics.MONITOR_SUPERSEDED, monitor="flights") == 1
    assert {v for (name, _), v in found.items() if name == metrics.DRIFT_LEVEL} == {1}
    distances = {metrics.DRIFT_RATIO, metrics.DRIFT_THRESHOLD, metrics.DRIFT + "psi"}
    assert not distances & {name for name, _ in found}


def test_a_removed_feature_disappears(drifting):
    flights = drifting.monitors["flights"]
    without = dataclasses.replace(
        drifting,
        monitors={
            "flights": dataclasses.replace(
                flights,
                verdicts=tuple(v for v in flights.verdicts if v.feature != "hour"),
                figures=tuple(f for f in flights.figures if f.feature != "hour"),
                distributions=flights.distributions[:1],
            )
        },
    )
    assert 'feature="hour"' in exposition(drifting)
    assert 'feature="hour"' not in exposition(without)
    assert 'monitor="new"' not in exposition(without)


def test_series_are_bounded(drifting):
    """A feature adds at most twelve series and its bars, and a second state adds none."""
    found = samples(drifting)
    by_feature = Counter(
        (dict(labels)["feature"], "bin" in dict(labels))
        for name, labels in found
        if "feature" in dict(labels) and name != metrics.AUDIT_SKEW
    )
    plain = [count for (_, bars), count in by_feature.items() if not bars]
    assert max(plain) <= metrics.SERIES_PER_FEATURE + 1 == 12  # one is its impact
    assert max(by_feature.values()) <= metrics.BARS_PER_FEATURE
    more_alerts = dataclasses.replace(drifting, latest_event=None, alerts=drifting.alerts * 50)
    assert len(samples(more_alerts)) <= len(found)


def widened(state: State, features: int) -> tuple[State, list[str]]:
    """Return a state of one monitor with so many features, and their names, the worst first."""
    (monitor, *_) = state.monitors.values()
    worst, spread = monitor.verdicts[0], monitor.distributions[0]
    names = [f"f{number:05}" for number in range(features)]
    wide = dataclasses.replace(
        monitor,
        verdicts=tuple(
            dataclasses.replace(
                worst,
                feature=name,
                value=worst.threshold * (3 - number / features * 2),
                impact=number / features,
            )
            for number, name in enumerate(names)
        ),
        figures=tuple(dataclasses.replace(monitor.figures[0], feature=name) for name in names),
        distributions=tuple(dataclasses.replace(spread, feature=name) for name in names[::-1]),
    )
    return dataclasses.replace(state, monitors={monitor.name: wide}, episodes=()), names


def test_all_series_together_are_at_most_eleven_a_feature(drifting):
    """Importances known, and every distribution as fine as any can be."""
    wide, names = widened(drifting, metrics.MOST_FEATURES)
    (monitor,) = wide.monitors.values()
    bar = monitor.distributions[0].bars[0]
    bars = tuple(dataclasses.replace(bar, label=str(n)) for n in range(MOST_BARS))
    fine = tuple(dataclasses.replace(one, bars=bars) for one in monitor.distributions)
    wide = dataclasses.replace(
        wide, monitors={monitor.name: dataclasses.replace(monitor, distributions=fine)}
    )
    found = samples(wide)
    assert len(found) <= 11 * len(names)
    by_feature = Counter(
        dict(labels)["feature"]
        for name, labels in found
        if "feature" in dict(labels) and name not in (metrics.FEATURE_SHARE, metrics.AUDIT_SKEW)
    )
    assert set(by_feature) == set(names)
    assert max(by_feature.values()) <= 11


def test_of_ten_thousand_features_the_worst_are_exported(drifting):
    """What is left out is counted, to the series: they are those of a state without limits."""
    state, names = widened(drifting, 10_000)
    (monitor,) = state.monitors.values()
    found = samples(state)
    by_name = defaultdict(set)
    for name, labels in found:
        by_name[name].add(dict(labels).get("feature"))
    assert by_name[metrics.DRIFT_RATIO] == set(names[: metrics.MOST_FEATURES])
    assert by_name[metrics.FEATURE_NULLS] == set(names[: metrics.MOST_FEATURES])
    assert by_name[metrics.FEATURE_SHARE] == set(names[: metrics.MOST_SPREADS])
    assert by_name[metrics.DRIFT_IMPACT] == set(names[-metrics.MOST_IMPACTS :])
    each = 4 + 1 + 6 + 2 * len(monitor.distributions[0].bars)
    exported = sum(
        "feature" in dict(labels) for name, labels in found if name != metrics.AUDIT_SKEW
    )
    left_out = value(state, metrics.SERIES_SUPPRESSED, monitor=monitor.name)
    assert left_out == 10_000 * each - exported


def test_the_features_of_an_open_episode_stay_in_sight(drifting):
    """Off by little in the meantime, they are exported whole until the episode closes."""
    state, names = widened(drifting, 10_000)
    (monitor,) = state.monitors.values()
    last = monitor.verdicts[-1]
    mine = next(one for one in drifting.episodes if one.open and one.kind is EpisodeKind.DRIFT)
    closed = dataclasses.replace(mine, closed_at=mine.opened_at)
    for one, seen in ((mine, True), (closed, False)):
        members = (dataclasses.replace(mine.members[0], verdict=last),)
        episode = dataclasses.replace(one, members=members)
        found = samples(dataclasses.replace(state, episodes=(episode,)))
        mine_in = {name for name, labels in found if ("feature", names[-1]) in labels}
        assert (metrics.FEATURE_SHARE in mine_in) is seen
        assert (metrics.DRIFT_RATIO in mine_in) is seen
        assert (metrics.DRIFT_OPENED in mine_in) is seen


def test_of_ten_thousand_skewed_features_the_worst_are_exported(drifting):
    (monitor, *_) = drifting.monitors.values()
    skew = {f"f{number:05}": {"stale": number, "value": 1} for number in range(10_000)}
    checks = tuple(dataclasses.replace(one, features=skew) for one in monitor.audit.checks[1:2])
    audit = dataclasses.replace(monitor.audit, checks=checks)
    wide = dataclasses.replace(monitor, audit=audit)
    found = {
        dict(labels)["feature"]: cells
        for (name, labels), cells in samples(
            dataclasses.replace(drifting, monitors={monitor.name: wide})
        ).items()
        if name == metrics.AUDIT_SKEW
    }
    worst = range(10_000 - metrics.MOST_SKEWED, 10_000)
    assert found == {f"f{number:05}": number for number in worst}


def test_a_healthy_daemon_lacks_what_is_said_to_be_sparse(drifting):
    """All metrics but those of the table, and the table holds none that is always there."""
    (flights, *_) = drifting.monitors.values()
    whole = tuple(
        dataclasses.replace(one, mismatches={}, features={}) for one in flights.audit.checks
    )
    calm = dataclasses.replace(
        flights,
        verdicts=(),
        incidents=(),
        max_age={},
        audit=dataclasses.replace(flights.audit, checks=whole),
    )
    judged = dataclasses.replace(calm, verdicts=flights.verdicts)
    closed = tuple(one for one in drifting.episodes if not one.open)
    rest = {"episodes": closed, "outbox": OutboxState()}
    found = {
        name
        for monitor in (calm, judged)
        for name, _ in samples(dataclasses.replace(drifting, monitors={"flights": monitor}, **rest))
    }
    exported = {metrics.SAMPLES[name].name for name in found}
    assert set(metrics.METRICS) - exported <= set(metrics.SPARSE)
    here = {metrics.RUN_CHANGED, metrics.PERFORMANCE_BOUND, metrics.DRIFT + "psi"}
    here |= {metrics.DRIFT + name for name in metrics.NAMES}
    assert set(metrics.SPARSE) & exported == here  # not for every label


def test_of_ten_thousand_features_the_page_shows_the_worst(drifting):
    (monitor, *_) = drifting.monitors.values()
    worst = monitor.verdicts[0]
    wide = dataclasses.replace(
        monitor,
        verdicts=tuple(dataclasses.replace(worst, feature=f"f{n:05}") for n in range(10_000)),
    )
    state = dataclasses.replace(drifting, monitors={monitor.name: wide})
    (view,) = page(state, "", datetime.now(UTC)).monitors
    assert [one.name for one in view.features] == [f"f{n:05}" for n in range(SHOWN)]
    assert view.unshown == 10_000 - SHOWN


def test_features_that_broke_together_are_one_problem(drifting):
    (monitor, *_) = drifting.monitors.values()
    known = next(one for one in monitor.incidents if one.incident.kind == "null_burst")
    burst = [
        dataclasses.replace(
            known,
            incident=dataclasses.replace(known.incident, subject=f"f{n}", summary=f"f{n} broke"),
        )
        for n in range(11)
    ]
    later = dataclasses.replace(known, opened_at=known.opened_at + timedelta(hours=1))
    broken = dataclasses.replace(monitor, incidents=(*burst, later), audit=None)
    state = dataclasses.replace(drifting, monitors={monitor.name: broken}, episodes=())
    first, second = page(state, "", datetime.now(UTC)).problems
    assert (
        first.title == f"f0 broke. The same of {', '.join(f'f{n}' for n in range(1, 9))} and 2 more"
    )
    assert second.title == known.incident.summary


@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.service("promtool")
def test_promtool_finds_nothing_to_say(drifting, empty, service_binary: Callable[[str], Path]):
    text = exposition(State() if empty else drifting)
    ran = subprocess.run(
        [service_binary("promtool"), "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_the_table_says_what_is_exported(drifting):
    """Types and labels in the exposition are those of the table."""
    for family in text_string_to_metric_families(exposition(drifting)):
        for sample in family.samples:
            described = metrics.SAMPLES[sample.name]
            assert described.type == family.type
            assert set(sample.labels) == set(described.labels)


def test_names_follow_the_conventions():
    for name, described in metrics.METRICS.items():
        assert name.startswith(metrics.PREFIX)
        assert name.endswith("_total") == (described.type == metrics.Type.COUNTER)
        assert ("timestamp" in name) == described.unit.startswith("seconds, ")
        assert described.help.endswith(".")
        assert "job" not in described.labels  # Prometheus's own


def test_lists_are_those_of_their_owners():
    """What is listed here is all that verdicts can name."""
    assert set(metrics.LEVELS) == set(Level)


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("profit", "steadfeast_performance_profit"),
        ("a-b", "steadfeast_performance_a_b"),
        ("bound", "steadfeast_performance_bound_figure"),
    ],
)
def test_a_measure_of_ones_own_is_exported(drifting, metric, name):
    flights = drifting.monitors["flights"]
    performance = dataclasses.replace(flights.performance, metrics={metric: 12.5, "other": 1})
    mine = dataclasses.replace(flights, metric=metric, performance=performance)
    state = dataclasses.replace(drifting, monitors={"flights": mine})
    assert value(state, name, monitor="flights") == 12.5
    assert "performance_other" not in exposition(state)


@pytest.mark.parametrize(
    ("statistic", "name"),
    [
        ("mine", "steadfeast_drift_mine"),
        ("a-b c", "steadfeast_drift_a_b_c"),
        ("ratio", "steadfeast_drift_ratio_distance"),
    ],
)
def test_a_statistic_of_ones_own_is_exported(drifting, statistic, name):
    flights = drifting.monitors["flights"]
    verdict = dataclasses.replace(flights.verdicts[0], statistic=statistic, value=3.5)
    state = dataclasses.replace(
        drifting, monitors={"flights": dataclasses.replace(flights, verdicts=(verdict,))}
    )
    labels = {"monitor": "flights", "source": "served", "feature": "weather__temp"}
    assert value(state, name, **labels) == 3.5
