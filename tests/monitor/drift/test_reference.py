"""Thresholds: what they promise, on data where the truth is known."""

import math
from dataclasses import replace
from datetime import timedelta

import duckdb
import numpy as np
import pytest
from scipy import stats as sp

from steadfeast.featurestore.errors import ManifestError, NotFoundError
from steadfeast.monitor.config.schema import MonitorConfig
from steadfeast.monitor.drift.calibration import FLOOR
from steadfeast.monitor.drift.detector import detect
from steadfeast.monitor.drift.distances import STATISTICS, statistic
from steadfeast.monitor.drift.false_alarms import Plan, factor
from steadfeast.monitor.drift.reference import Reference, build_reference, reference_of
from steadfeast.monitor.profiles.binning import Edges
from steadfeast.monitor.profiles.profile import Profile, Window, total
from support.drift_world import CONFIG, DAY, FEATURES, T0, profiled, training_set, window
from support.normal_world import made, normal_days, normal_edges

# Budget


@pytest.mark.parametrize("directions", [1, 3])
@pytest.mark.parametrize("freedom", [10.0, 80.0])
def test_where_every_look_is_a_window_of_its_own_the_factor_is_an_f_quantile(directions, freedom):
    """One episode per exceeding window: then the simulation must agree with the F distribution."""
    plan = Plan(per_window=1, per_year=365, k=1, n=1, close=1)
    found = factor(directions=directions, freedom=freedom, alarms_per_year=0.5, plan=plan)
    assert found == pytest.approx(sp.f.isf(0.5 / 365, directions, freedom), rel=0.15)


def test_more_alarms_more_knowledge_and_more_persistence_each_lower_the_factor():
    plan = Plan.of(CONFIG)
    assert (plan.per_window, round(plan.per_year)) == (7, 365)

    def at(directions=2.0, freedom=20.0, alarms=0.2, plan=plan):
        return factor(directions=directions, freedom=freedom, alarms_per_year=alarms, plan=plan)

    assert at() > at(alarms=2.0) > 1
    assert at() > at(freedom=200.0)
    assert at() > at(directions=2.5) > at(directions=3.0)
    assert at() > at(plan=replace(plan, k=3, n=3))
    assert at(alarms=1e6) == 1


def test_a_minutes_bucket_in_an_hours_window_is_no_more_work():
    config = MonitorConfig(
        service="s", model="m", bucket=timedelta(minutes=1), window=timedelta(hours=1)
    )
    plan = Plan.of(config)
    assert plan.per_window == 24
    found = factor(directions=2.0, freedom=200.0, alarms_per_year=0.1, plan=plan)
    assert 3 < found < 20


# Limits


def ratios(reference, days, first=59):
    """Worst ratio of any feature in every window of seven days, each with its last day."""
    found = []
    for i in range(7, len(days) + 1):
        current = total(days[i - 7 : i], reference.edges)
        end = T0 + (first + i) * DAY
        window = Window(end - 7 * DAY, end, current.rows)
        latest = [(end - DAY, days[i - 1])]
        verdicts = detect(reference, current, window, CONFIG, latest=latest)
        found.append(verdicts[0].ratio)
    return np.array(found)


def episodes(worst):
    """Count by the rule of the configuration, written once more: 2 of 3 open, 3 calm close."""
    count, opened, calm = 0, False, 0
    for i, now in enumerate(worst):
        if not opened and (worst[max(0, i - 2) : i + 1] > 1).sum() >= 2:
            count, opened, calm = count + 1, True, 0
        elif opened:
            calm = calm + 1 if now < 0.8 else 0
            opened = calm < 3
    return count


def test_where_nothing_happens_the_false_alarms_come_to_what_the_user_accepts():
    """Days that differ by .2 sd, no drift: 4 episodes a year are accepted, within a factor of 2.

    With the features sharing the budget as if each alarmed alone, fewer are expected, not more.
    """
    edges = normal_edges(12)
    found = []
    for seed in range(3):
        days = normal_days(edges, 59 + 365, 1000, jitter=0.2, seed=seed)
        found.append(episodes(ratios(made(edges, days[:59]), days[59:])))
    assert 0 < sum(found) / len(found) <= 2 * CONFIG.false_alarms_per_year


def test_calm_features_raise_as_few_alarms_as_accepted_and_a_quarter_sd_is_seen():
    edges = normal_edges(10)
    days = normal_days(edges, 59 + 120, 1000, jitter=0.03, seed=7)
    reference = made(edges, days[:59])
    assert episodes(ratios(reference, days[59:])) <= CONFIG.false_alarms_per_year
    moved = normal_days(edges, 14, 1000, jitter=0.03, seed=8, shift=0.27)
    assert (ratios(reference, moved) > 1).all()


@pytest.mark.parametrize("jitter", [0.01, 0.03, 0.1])
def test_what_is_measured_on_a_calm_reference_is_what_its_days_do(jitter):
    """Far below any floor, too: the limit is a multiple of it."""
    edges = normal_edges(20)
    days = normal_days(edges, 56, 1_000_000, jitter=jitter, week=0, seed=9)
    reference = made(edges, days)
    scales = {7: reference.calibration, 1: reference.latest}
    for length, limits in scales.items():
        # Deciles see .98 of a shift's square; counting adds nothing among so many rows.
        means = [one.mean for one in limits.values()]
        expected = jitter**2 / length * (1 + 1 / 7)
        assert np.mean(means) == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("name", STATISTICS)
def test_every_statistic_reads_a_shift_as_the_shift_that_it_is(name):
    """A window of a normal feature moved by one sd: whatever the unit, that is what is read."""
    edges = normal_edges(1)
    days = normal_days(edges, 59, 1000, jitter=0.1, seed=3)
    reference = made(edges, days, name=name)
    found = reference.calibration["c0"]
    moved = total(normal_days(edges, 7, 1000, jitter=0, week=0, seed=4, shift=1.0), edges)
    [verdict] = detect(
        reference,
        moved,
        Window(T0, T0, moved.rows),
        CONFIG.model_copy(update={"statistic": name}),
    )
    assert found.statistic == verdict.statistic == name
    assert found.shift(verdict.value) == pytest.approx(1, rel=0.1)
    assert found.shift(verdict.threshold) == pytest.approx(
        max(FLOOR, math.sqrt(found.factor * found.mean)), rel=1e-6
    )
    assert verdict.ratio > 1


def test_fewer_rows_than_the_reference_had_raise_the_limit_by_what_counting_adds():
    edges = normal_edges(1)
    reference = made(edges, normal_days(edges, 59, 1000, jitter=0.03, seed=5))
    limit = [reference.limit("c0", rows) for rows in (10**6, 7000, 1400, 350)]
    assert limit[0] == limit[1] == reference.thresholds["c0"]
    assert limit[1] < limit[2] < limit[3]
    # No drift at all, 350 rows: chi-square(9) / 350 and the floor; hardly ever above.
    rng = np.random.default_rng(6)
    whole = reference.profile.columns["c0"].counts
    column = edges.columns["c0"]
    drawn = [rng.multinomial(350, whole / whole.sum()) for _ in range(500)]
    values = [statistic("psi").measure(column.coarse(whole), column.coarse(d), None) for d in drawn]
    assert np.mean(np.array(values) > limit[3]) <= 0.002


def test_a_reference_with_a_trend_counts_it_as_noise():
    edges = normal_edges(1)
    flat = normal_days(edges, 60, 1000, jitter=0.05, seed=1)
    rising = [normal_days(edges, 1, 1000, jitter=0, seed=i, shift=i / 30)[0] for i in range(60)]
    assert made(edges, rising).thresholds["c0"] > 10 * made(edges, flat).thresholds["c0"]


@pytest.mark.parametrize(("days", "calibrated"), [(1, False), (2, False), (3, True), (20, True)])
def test_too_short_a_reference_gives_no_threshold_rather_than_a_guess(days, calibrated):
    edges = normal_edges(1)
    reference = made(edges, normal_days(edges, days, 1000, jitter=0.05))
    assert ("c0" in reference.thresholds) is calibrated
    current = total(normal_days(edges, 7, 1000, jitter=0.05, seed=2), edges)
    [verdict] = detect(reference, current, Window(T0, T0, 7000), CONFIG)
    assert (verdict.level == "insufficient_data") is not calibrated
    assert ("too short" in verdict.reason) is not calibrated


def test_a_gap_in_the_reference_is_no_block():
    edges = normal_edges(1)
    days = normal_days(edges, 30, 1000, jitter=0.05)
    series = [(T0 + (i if i < 15 else i + 300) * DAY, one) for i, one in enumerate(days)]
    reference = reference_of(series, edges, CONFIG, statistic("psi"))
    assert reference.calibration["c0"].blocks == 4
    assert reference.quietest == 0


# Reference


@pytest.fixture
def con():
    with duckdb.connect() as con:
        yield con


@pytest.fixture(scope="module")
def history():
    return window(0, 42)


def test_a_reference_is_built_from_a_training_set_and_survives_json(con, history, tmp_path):
    path = training_set(tmp_path, history)
    found = build_reference(con, path, CONFIG, model_version="3", performance={"roc_auc": 0.75})
    assert found.uri == str(path)
    assert (found.contract, found.model_version) == ("c" * 64, "3")
    assert found.performance == {"roc_auc": 0.75}
    assert found.window == Window(T0, T0 + 42 * DAY, 42 * 300)
    assert found.features == FEATURES
    assert found.columns == tuple(sorted(history.column_names))
    assert found.quietest == 300
    assert found.profile.columns["x"].rows == 42 * 300
    assert found.profile.columns["x"].mean == pytest.approx(np.mean(history["x"].to_numpy()))
    # A column without a value has no threshold; the others have.
    assert set(found.thresholds) == set(FEATURES) - {"level"}
    assert all(one.blocks == 6 for one in found.calibration.values())
    again = Reference.from_json(found.to_json())
    assert again == found
    assert profiled(again, history) + Profile.empty(found.edges) == profiled(found, history)


def test_the_order_of_rows_and_the_session_do_not_matter(con, history, tmp_path):
    one = build_reference(con, training_set(tmp_path / "a", history), CONFIG)
    shuffled = history.take(np.random.default_rng(0).permutation(history.num_rows))
    con.execute("SET TimeZone = 'Asia/Kathmandu'; SET threads = 1")
    two = build_reference(con, training_set(tmp_path / "b", shuffled), CONFIG)
    assert two.thresholds == one.thresholds
    assert two.edges == one.edges
    assert two.window == one.window


def test_only_the_features_that_are_asked_for_are_watched(con, history, tmp_path):
    path = training_set(tmp_path, history)
    config = CONFIG.model_copy(update={"features": ("kind", "x")})
    found = build_reference(con, path, config)
    assert found.features == ("kind", "x")
    # Two share the budget that five shared.
    five = build_reference(con, path, CONFIG)
    assert found.calibration["x"].factor < five.calibration["x"].factor
    with pytest.raises(NotFoundError, match="'y'"):
        build_reference(con, path, config.model_copy(update={"features": ("y",)}))
    with pytest.raises(NotFoundError, match="statistic"):
        build_reference(con, path, config.model_copy(update={"statistic": "psy"}))


def test_ordered_statistics_fall_back_on_columns_without_order(con, history, tmp_path):
    config = CONFIG.model_copy(update={"statistic": "wasserstein"})
    found = build_reference(con, training_set(tmp_path, history), config)
    used = {name: one.statistic for name, one in found.calibration.items()}
    assert used == {
        "x": "wasserstein",
        "rain": "wasserstein",
        "kind": "total_variation",
        "flag": "total_variation",
    }


def test_what_is_no_training_set_is_an_error_that_names_the_file(con, history, tmp_path):
    gone = tmp_path / "gone" / "manifest.json"
    with pytest.raises(ManifestError, match="gone"):
        build_reference(con, gone, CONFIG)
    short = training_set(tmp_path / "short", history, count=7)
    with pytest.raises(ManifestError, match="12600 rows, not 7"):
        build_reference(con, short, CONFIG)
    empty = training_set(tmp_path / "empty", history.slice(0, 0))
    with pytest.raises(ManifestError, match="0 rows"):
        build_reference(con, empty, CONFIG)
    bare = training_set(tmp_path / "bare", history)
    bare.with_name("data.parquet").unlink()
    with pytest.raises(ManifestError, match=r"data\.parquet is not beside it"):
        build_reference(con, bare, CONFIG)


def test_one_row_is_a_reference_without_thresholds(con, history, tmp_path):
    found = build_reference(con, training_set(tmp_path, history.slice(0, 1)), CONFIG)
    assert found.profile.rows == 1
    assert found.thresholds == {}
    assert Reference.from_json(found.to_json()) == found


def test_no_features_are_no_reason_to_fail():
    edges = Edges({})
    found = reference_of([(T0, Profile(edges, 3, {}, {}))], edges, CONFIG, statistic("psi"))
    assert found.thresholds == {}
