"""What broke is told by itself, whatever else is open: tables replayed by the daemon's own code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from steadfeast.monitor.decisions.model import AlertKind
from steadfeast.monitor.drift.detector import Level
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb
from support.table_world import DAY, START, TRAINED, evaluator, watched, written

if TYPE_CHECKING:
    from pathlib import Path

    from steadfeast.monitor.decisions.model import Alert
    from steadfeast.monitor.ledger.ledger import Ledger

FIRST, SECOND, DAYS = TRAINED + 3, TRAINED + 16, TRAINED + 24


def episodes(alerts: list[Alert], *, resolved: bool = False) -> list[Alert]:
    return [one for one in alerts if one.kind is AlertKind.EPISODE and one.resolved is resolved]


def day_number(alert: Alert) -> int:
    """Which day's rows the alert came after."""
    return (alert.at - START) // DAY - 1


def test_an_open_drift_hides_no_other(tmp_path: Path):
    """`a` moves for good; thirteen days later `b` breaks, and is told within three days."""

    def make(rng, day, rows):
        return {
            "a": rng.normal(0, 1, rows) + (1 if day >= FIRST else 0),
            "b": rng.normal(0, 1, rows) + (3 if day >= SECOND else 0),
            "c": rng.normal(0, 1, rows),
        }

    found = watched(tmp_path, written(tmp_path, make, DAYS))
    begun = episodes(found.alerts)
    (a,) = [one for one in begun if one.features[0].feature == "a" and "worse" not in one.summary]
    (b,) = [one for one in begun if one.features[0].feature == "b" and "worse" not in one.summary]
    assert day_number(a) < SECOND <= day_number(b) < SECOND + 3
    assert "still open: a" in b.summary
    assert not episodes(found.alerts, resolved=True)
    assert not any("c" in {v.feature for v in one.features} for one in found.alerts)


@pytest.mark.parametrize("how", ["nan", "null", "gone"])
def test_a_drift_stays_open_while_its_column_is_away(tmp_path: Path, how: str):
    """Calm windows of `y` close nothing of `x`; that `x` cannot be judged is said."""
    away = FIRST + 6

    def make(rng, day, rows):
        x = rng.normal(0, 1, rows) + (3 if day >= FIRST else 0)
        columns = {"y": rng.normal(0, 1, rows), "x": x}
        if day >= away and how == "nan":
            columns["x"] = np.full(rows, np.nan)
        elif day >= away and how == "null":
            columns["x"] = np.ma.masked_all(rows)
        elif day >= away:
            columns.pop("x")
        return columns

    found = watched(tmp_path, written(tmp_path, make, DAYS), window=DAY)
    assert not episodes(found.alerts, resolved=True)
    said = [one.summary for one in episodes(found.alerts) if "cannot be judged" in one.summary]
    assert len(said) == 1
    assert "x: " in said[0]
    assert found.verdicts["x"].level in {Level.INSUFFICIENT_DATA, Level.INCIDENT}


def test_related_features_that_break_together_are_one_episode(tmp_path: Path):
    """Fahrenheit and Celsius are one thing; an unrelated feature of that day is another."""

    def make(rng, day, rows):
        celsius = rng.normal(10, 5, rows) + (20 if day >= FIRST else 0)
        return {
            "celsius": celsius,
            "fahrenheit": 32 + 1.8 * celsius + rng.normal(0, 0.1, rows),
            "wind": rng.normal(0, 1, rows) + (3 if day >= FIRST else 0),
            "calm": rng.normal(0, 1, rows),
        }

    found = watched(tmp_path, written(tmp_path, make, FIRST + 5))
    (first, *_) = episodes(found.alerts)
    assert len(first.episodes) == 2
    assert {one.feature for one in first.features} == {"celsius", "fahrenheit", "wind"}
    (together,) = [line for line in first.episodes.values() if "celsius" in line]
    assert "fahrenheit" in together
    assert "wind" not in together


def test_a_second_drift_asks_for_a_retraining_of_its_own(tmp_path: Path):
    """The first drift has been answered and stands; the second one fires with both."""

    def make(rng, day, rows):
        return {
            "a": rng.normal(0, 1, rows) + (1 if day >= FIRST else 0),
            "b": rng.normal(0, 1, rows) + (3 if day >= SECOND else 0),
        }

    files = written(tmp_path, make, DAYS)
    with evaluator(tmp_path, files, model="price") as (made, ledger):
        config = made.config.monitors["m"].model_copy(update={"pipeline": "p", "refresh": "never"})
        made.config = made.config.model_copy(update={"monitors": {"m": config}})
        fired = []
        for _ in range(DAYS):
            made.evaluate("m", 1)
            for message in ledger.pending():
                trigger = ledger.trigger(message.request_id)
                fired.append(((trigger.decided_at - START) // DAY - 1, trigger))
                refuse(ledger, message.request_id)
        names = [
            {v.feature for one in trigger.episode_ids for v in ledger.episode(one).features}
            for _, trigger in fired
        ]
    assert fired[0][0] < SECOND <= fired[-1][0]
    assert names[0] == {"a"}
    assert names[-1] == {"a", "b"}
    assert len({trigger.request_id for _, trigger in fired}) == len(fired)


def refuse(ledger: Ledger, request: str) -> None:
    """Have the pipeline take a trigger, and its gate refuse what came of it."""
    run = pb.Run(run_id=f"run-{request[:8]}", request_id=request, state=pb.RUN_STATE_REFUSED)
    ledger.delivered(request, run)
    ledger.run_event(request, run, 1)
