"""Scheduled times and other systems' alerts as causes, in a daemon over real files."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from steadfeast.featurestore.errors import ConfigError
from steadfeast.monitor.config.schema import load
from steadfeast.monitor.decisions.model import TriggerState
from steadfeast.monitor.evaluation.causes import ForeignAlert, NotYetError
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb
from support import monitor_world as world
from support.daemon_world import NEVER, SERVED, Here
from support.monitor_world import DAY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WEEKLY = '      schedule: "0 6 * * 1"\n'
CAUSES = "      causes: [{alertname: Revenue, team: pricing}, {alertname: Churn}]\n"
"""Served rows begin on Saturday, 2024-02-10."""


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[str], Here]]:
    made: list[Here] = []

    def build(extra: str) -> Here:
        here = Here(tmp_path, extra=extra)
        here.daemon.champions.follow()
        made.append(here)
        return here

    yield build
    for here in made:
        here.close()
        here.server.stop()


def bodies(here: Here) -> list[pb.TriggerRetrainRequest]:
    return [pb.TriggerRetrainRequest.FromString(one.body) for one in here.ledger.pending()]


def fired(here: Here) -> list[str]:
    return [
        one.episode_ids[0]
        for one in here.daemon.state().triggers
        if one.state is TriggerState.PENDING
    ]


def alert(fingerprint: str = "f1", *, firing: bool = True, days: int = 0, **labels: str):
    told = labels or {"alertname": "Churn", "severity": "page"}
    return ForeignAlert(fingerprint, SERVED + days * DAY, firing, told, "Churn: too many leave")


class TestSchedule:
    def test_it_fires_when_its_time_has_come_and_not_before(self, make):
        """The first look only begins the schedule; each time after that is taken once."""
        here = make(WEEKLY)
        world.serve(here.folder, SERVED, 2, NEVER)
        here.daemon.evaluate("")
        assert here.daemon.state().idle
        for _ in range(2):
            world.serve(here.folder, SERVED + 2 * DAY, 1, NEVER)  # Monday, until 23:59
            assert not here.daemon.state().idle or fired(here)
            here.daemon.evaluate("")
        (body,) = bodies(here)
        assert body.cause.kind == pb.CAUSE_KIND_SCHEDULE
        assert body.cause.summary == "schedule: 0 6 * * 1 of 2024-02-12T06:00Z"
        assert body.as_of.ToSeconds() == (SERVED + 2 * DAY).timestamp()
        assert not body.cause.features
        assert body.cause.current.rows > 0
        state = here.daemon.state()
        assert not [one for one in state.episodes if one.open]
        assert [one.summary for one in state.alerts] == [
            "retraining fired (schedule: 0 6 * * 1 of 2024-02-12T06:00Z)"
        ]

    def test_a_month_away_is_one_retraining_and_says_so(self, make):
        here = make(WEEKLY)
        world.serve(here.folder, SERVED, 1, NEVER)
        world.serve(here.folder, SERVED + DAY, 1, NEVER)
        here.daemon.evaluate("")
        here.close()
        world.serve(here.folder, SERVED + 2 * DAY, 32, NEVER)
        here.open()
        for _ in range(3):
            here.daemon.evaluate("")
        (body,) = bodies(here)
        assert body.cause.summary == (
            "schedule: 0 6 * * 1 of 2024-03-11T06:00Z, "
            "and not for those missed from 2024-02-12T06:00Z on"
        )
        assert body.as_of.ToSeconds() == (SERVED + 33 * DAY).timestamp()

    def test_it_waits_until_what_is_closed_is_evaluated(self, make, monkeypatch):
        """A bucket that is not looked at yet may hold what has to block."""
        monkeypatch.setattr("steadfeast.monitor.daemon.daemon.BUCKETS_PER_TICK", 2)
        here = make(WEEKLY)
        world.serve(here.folder, SERVED, 2, NEVER)
        here.daemon.evaluate("")
        world.serve(here.folder, SERVED + 2 * DAY, 3, NEVER)
        world.serve(here.folder, SERVED + 5 * DAY, 2, NEVER, null_x=True)
        here.daemon.evaluate("")
        here.daemon.evaluate("")
        assert not here.daemon.state().triggers
        here.daemon.evaluate("")
        (trigger,) = here.daemon.state().triggers
        assert trigger.state is TriggerState.SUPPRESSED
        assert "null" in trigger.reason
        assert [one.kind for one in here.daemon.state().episodes if one.open] == ["schedule"]
        world.serve(here.folder, SERVED + 7 * DAY, 5, NEVER)  # mended, and out of the window
        for _ in range(4):
            here.daemon.evaluate("")
        states = {one.request_id: one.state for one in here.daemon.state().triggers}
        assert states[trigger.request_id] is TriggerState.PENDING
        assert list(states.values()).count(TriggerState.PENDING) == 1

    def test_what_could_not_fire_ends_with_the_next_time(self, make):
        here = make(WEEKLY + "      approval: manual\n")
        for first, days in ((0, 2), (2, 1), (3, 7)):
            world.serve(here.folder, SERVED + first * DAY, days, NEVER)
            here.daemon.evaluate("")
        later, earlier = here.daemon.state().triggers
        assert later.state is TriggerState.WAITING
        assert "the next scheduled time has come" in earlier.reason
        decide = here.daemon.evaluator.decide
        assert decide(later.request_id, yes=True, actor="ann", comment="").state == "pending"
        assert not [one for one in here.daemon.state().episodes if one.open]

    def test_a_schedule_that_comes_back_begins_anew(self, make):
        here = make(WEEKLY)
        world.serve(here.folder, SERVED, 2, NEVER)
        here.daemon.evaluate("")
        here.rewrite(WEEKLY, "")
        here.daemon.reload()
        world.serve(here.folder, SERVED + 2 * DAY, 3, NEVER)
        here.daemon.evaluate("")
        text = here.path.read_text()
        here.path.write_text(text + WEEKLY)
        here.daemon.reload()
        here.daemon.evaluate("")
        assert not bodies(here)

    def test_it_spends_the_models_budget_like_any_other(self, make):
        """Daily, with a cooldown of a week: what is in cooldown waits, and one fires a week."""
        here = make('      schedule: "0 6 * * *"\n')
        world.serve(here.folder, SERVED, 2, NEVER)
        here.daemon.evaluate("")
        at = []
        for day in range(2, 18):
            world.serve(here.folder, SERVED + day * DAY, 1, NEVER)
            here.daemon.evaluate("")
            for message in here.ledger.pending():
                body = pb.TriggerRetrainRequest.FromString(message.body)
                at.append(body.as_of.ToSeconds())
                run = pb.Run(run_id=message.request_id, state=pb.RUN_STATE_REFUSED)
                here.ledger.delivered(message.request_id, run)
                here.ledger.run_event(message.request_id, run, 1)
        assert [(b - a) / 86400 for a, b in itertools.pairwise(at)] == [7, 7]


class TestAlerts:
    def test_one_alert_is_one_trigger_however_often_it_is_told(self, make):
        here = make(CAUSES)
        told = here.daemon.causes.told
        with pytest.raises(NotYetError, match="no window yet"):
            told([alert()], "am")
        world.serve(here.folder, SERVED, 4, NEVER)
        here.daemon.evaluate("")
        other = alert("f2", alertname="Revenue", team="search")
        own = alert("f3", alertname="SteadfeastEpisode")
        assert told([alert(), alert(), other, own], "am") == 1
        here.close()
        here.open()
        told = here.daemon.causes.told
        assert told([alert()], "am") == 0
        (body,) = bodies(here)
        assert body.cause.kind == pb.CAUSE_KIND_ALERT
        assert body.cause.summary == "alert: Churn: too many leave"
        assert told([alert(firing=False)], "am") == 1
        assert told([alert(firing=False), alert()], "am") == 0  # a late copy of the first
        assert told([alert(days=1)], "am") == 1  # fires again: another one, in cooldown
        assert len(bodies(here)) == 1
        acts = [(one.actor, one.act) for one in here.ledger.audit(0, 100)]
        assert acts == [("am", "cause"), ("am", "resolve"), ("am", "cause")]

    def test_every_label_of_an_entry_has_to_be_there(self, make):
        here = make(CAUSES)
        world.serve(here.folder, SERVED, 4, NEVER)
        here.daemon.evaluate("")
        told = here.daemon.causes.told
        assert told([alert(alertname="Revenue")], "am") == 0
        assert told([alert(alertname="Revenue", team="pricing", more="1")], "am") == 1

    def test_two_at_once_are_two_causes_and_one_run(self, make):
        here = make(CAUSES)
        world.serve(here.folder, SERVED, 4, NEVER)
        here.daemon.evaluate("")
        assert here.daemon.causes.told([alert("a"), alert("b")], "am") == 2
        assert len(fired(here)) == 1
        assert "under way" in here.daemon.state().triggers[0].reason
        assert len([one for one in here.daemon.state().episodes if one.open]) == 2
        here.daemon.causes.told([alert("a", firing=False), alert("b", firing=False)], "am")
        assert not [one for one in here.daemon.state().episodes if one.open]
        assert here.daemon.state().triggers[0].reason == "its episode closed: resolved"

    def test_broken_data_block_it(self, make):
        here = make(CAUSES)
        world.serve(here.folder, SERVED, 3, NEVER)
        world.serve(here.folder, SERVED + 3 * DAY, 2, NEVER, null_x=True)
        here.daemon.evaluate("")
        here.daemon.causes.told([alert()], "am")
        (trigger,) = here.daemon.state().triggers
        assert trigger.state is TriggerState.SUPPRESSED
        assert "null" in trigger.reason


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        ('      schedule: "0 6 1 * 1"\n', "write one of them"),
        ("      causes: [{}]\n", "at least 1 item"),
    ],
)
def test_the_configuration_is_checked(tmp_path: Path, extra: str, problem: str):
    path = world.configure(tmp_path, pipeline=1, extra=extra)
    with pytest.raises(ConfigError, match=problem):
        load(path)
    path.write_text(path.read_text().replace(extra, WEEKLY).replace("      pipeline: main\n", ""))
    with pytest.raises(ConfigError, match="need a pipeline"):
        load(path)
