"""A reference moves under buckets that were counted over the former one."""

from __future__ import annotations

from datetime import timedelta

import duckdb
import pytest

from steadfeast.monitor.config.schema import DaemonConfig
from steadfeast.monitor.drift.detector import Level
from steadfeast.monitor.drift.reference import build_reference
from steadfeast.monitor.evaluation.evaluator import Evaluator
from steadfeast.monitor.evaluation.window_profiles import rows_of
from steadfeast.monitor.ledger.ledger import Ledger
from steadfeast.monitor.profiles.profile import Profile, profile
from steadfeast.monitor.sources.snapshot import read_snapshot
from support.monitor_world import DAY, START, TRAINED_DAYS, serve, train

SERVED_FROM = START + TRAINED_DAYS * DAY
DAYS = 12


@pytest.fixture
def lived(tmp_path):
    """An evaluator that has seen twelve days, and the reference that it will move to."""
    first = train(tmp_path, "first", START, START + 99 * DAY)
    second = train(tmp_path, "second", START + 5 * DAY, START + 20 * DAY)
    serve(tmp_path, SERVED_FROM, DAYS + 1, START + 99 * DAY)
    config = DaemonConfig(
        state=tmp_path / "state",
        clock="watermark",
        monitors={
            "m": {
                "service": "prices",
                "model": "price",
                "window": timedelta(days=3),
                "min_rows": 100,
                "reference": str(first),
                "performance": None,
            }
        },
    )
    with Ledger(config.state) as ledger:
        evaluator = Evaluator(config, ledger, tmp_path / "data")
        evaluator.configure(config, evaluator.prepare(config))
        assert evaluator.evaluate("m", 64) == DAYS
        with duckdb.connect() as con:
            moved = build_reference(con, second, config.monitors["m"])
        yield evaluator, ledger, moved, tmp_path
        evaluator.close()


def test_retained_buckets_are_counted_anew_a_bounded_number_each_time(lived):
    evaluator, ledger, moved, folder = lived
    monitors = evaluator.config.monitors
    before = ledger.state(monitors).monitors["m"]
    assert (before.superseded, evaluator.outdated("m")) == (False, [])
    evaluator.move({"m": moved}, "test")
    newest_first = [kept.bucket.start for kept in evaluator.outdated("m")]
    assert newest_first == [SERVED_FROM + i * DAY for i in reversed(range(DAYS))]
    serve(folder, SERVED_FROM + (DAYS + 1) * DAY, 1, START + 99 * DAY)
    # Two of the next window's three days are there: they come before it is evaluated.
    assert evaluator.evaluate("m", 1) == 0
    assert len(evaluator.outdated("m")) == DAYS - 1
    assert evaluator.evaluate("m", 4) == 1
    after = ledger.state(monitors).monitors["m"]
    assert after.watermark == SERVED_FROM + (DAYS + 1) * DAY
    assert len(evaluator.outdated("m")) == DAYS - 4
    # The verdicts of before the move stay what they were until there are newer ones.
    while evaluator.outdated("m"):
        evaluator.evaluate("m", 2)
    key = ledger.held("m").reference_key
    with duckdb.connect() as con:
        for kept in ledger.buckets("m", SERVED_FROM, SERVED_FROM + DAYS * DAY):
            assert kept.reference_key == key
            frozen = read_snapshot(con, kept.bucket, kept.path)
            said = Profile.from_json(ledger.profile("m", kept), moved.edges)
            assert said == profile(rows_of(frozen, moved), moved.edges)


def test_what_was_shown_stays_superseded_though_its_buckets_were_counted_anew(lived):
    evaluator, ledger, moved, _ = lived
    evaluator.move({"m": moved}, "test")
    evaluator.evaluate("m", 64)
    assert evaluator.outdated("m") == []
    state = ledger.state(evaluator.config.monitors).monitors["m"]
    assert state.superseded
    assert all(bar.current is None for one in state.distributions for bar in one.bars)


def test_rows_that_were_dropped_are_no_reason_not_to_judge_a_later_bucket(lived):
    evaluator, ledger, moved, folder = lived
    last = ledger.buckets("m", SERVED_FROM, SERVED_FROM + DAYS * DAY)[-1]
    last.path.unlink()
    evaluator.move({"m": moved}, "test")
    serve(folder, SERVED_FROM + (DAYS + 1) * DAY, 3, START + 99 * DAY)
    assert evaluator.evaluate("m", 64) == 3
    newest = ledger.state(evaluator.config.monitors).monitors["m"].verdicts
    assert all(one.level is not Level.INSUFFICIENT_DATA for one in newest)
    assert all(one.window.start > last.bucket.start for one in newest)
