"""The ledger's file: one transaction, one holder, and a clear word when it is unusable."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import duckdb
import pytest

from steadfeast.featurestore.errors import NotFoundError
from steadfeast.monitor.config.schema import MonitorConfig
from steadfeast.monitor.decisions.model import (
    Alert,
    AlertKind,
    Decision,
    Episode,
    EpisodeKind,
    Evaluation,
    Member,
    Outcome,
    PolicyState,
    Severity,
    Trigger,
    TriggerState,
)
from steadfeast.monitor.drift.data_quality import Figures, Freshness, Incident, IncidentKind
from steadfeast.monitor.drift.detector import Level, Verdict
from steadfeast.monitor.drift.reference import build_reference
from steadfeast.monitor.ledger.database import (
    LedgerBrokenError,
    LedgerLockedError,
    LedgerVersionError,
    LedgerWriteError,
)
from steadfeast.monitor.ledger.file import CHECKPOINT_BYTES
from steadfeast.monitor.ledger.ledger import Ledger, Position
from steadfeast.monitor.performance.realized import Performance
from steadfeast.monitor.profiles.binning import Edges
from steadfeast.monitor.profiles.profile import Profile, Window
from steadfeast.monitor.sources.snapshot import Bucket, Snapshot, bucket_path
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb
from support import monitor_world as world
from support.monitor_world import DAY, START

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = MonitorConfig(service="s", model="m", pipeline="p", window=3 * DAY)
WINDOW = Window(START, START + 3 * DAY, 600)
VERDICT = Verdict("served", "x", "psi", 0.5, 0.1, Level.DRIFT, "moved", WINDOW)
EPISODE = Episode("e1", EpisodeKind.DRIFT, WINDOW, WINDOW, (Member(VERDICT, WINDOW.end),), "c" * 64)
ALERT = Alert(
    AlertKind.EPISODE, Severity.WARNING, "w", WINDOW.end, "drift", {"e1": "x"}, (VERDICT,)
)
FIRED = Decision(
    PolicyState(watermark=WINDOW.end),
    opened=(EPISODE,),
    triggers=(Trigger("r1", (EPISODE,), Outcome.FIRED, WINDOW.end),),
    alerts=(ALERT,),
)


def fire(ledger: Ledger, decision: Decision = FIRED) -> None:
    with ledger.transaction():
        ledger.add_decision("w", CONFIG, decision)
        ledger.hold("w", Position(WINDOW.end, decision.state))


def test_a_decision_is_there_after_a_restart(tmp_path: Path):
    with Ledger(tmp_path) as ledger:
        fire(ledger)
    with Ledger(tmp_path) as ledger:
        state = ledger.state({"w": CONFIG})
        assert ledger.held("w").policy == FIRED.state
        (message,) = ledger.pending()
        body = pb.TriggerRetrainRequest.FromString(message.body)
    assert state.monitors["w"].watermark == WINDOW.end
    (episode,) = state.episodes
    assert (episode.open, episode.features, episode.opened_at) == (True, (VERDICT,), WINDOW.end)
    assert state.triggers[0].state is TriggerState.PENDING
    assert state.alerts[0].sequence == 1
    assert (state.outbox.depth, state.outbox.dead) == (1, 0)
    assert state.counters.decisions == {("w", "fired"): 1}
    assert (body.request_id, body.model, body.contract) == ("r1", "m", "c" * 64)
    assert body.cause.policy == "w"
    assert body.cause.episode_id == "e1"
    assert body.cause.kind == pb.CAUSE_KIND_DRIFT
    assert body.cause.current.rows == 600
    assert body.cause.current.start.ToDatetime(UTC) == START
    assert body.cause.features[0].value == 0.5
    assert body.as_of.ToDatetime(UTC) == WINDOW.end


def test_a_transaction_is_whole_or_nothing(tmp_path: Path):
    with Ledger(tmp_path) as ledger:
        with suppress(ZeroDivisionError), ledger.transaction():
            fire(ledger)
            raise ZeroDivisionError
        assert ledger.state({"w": CONFIG}).episodes == ()
        assert ledger.held("w") == Position()
        assert ledger.pending() == []
        fire(ledger)
        assert ledger.last_sequence() == 1


def test_a_bucket_is_kept_once(tmp_path: Path):
    manifest = world.train(tmp_path, "t", START, START + 99 * DAY)
    with duckdb.connect() as con:
        reference = build_reference(con, manifest, CONFIG)
    bucket = Bucket(START, START + DAY)
    snapshot = Snapshot("w", bucket, 5, START, "0" * 64, tmp_path / "s.parquet")
    profile = Profile.empty(reference.edges)
    now = datetime.now(UTC)
    with Ledger(tmp_path) as ledger:
        with ledger.transaction():
            ledger.add_bucket("w", snapshot, profile, "k", now)
        with pytest.raises(duckdb.ConstraintException), ledger.transaction():
            ledger.add_bucket("w", snapshot, profile, "k", now)
        (kept,) = ledger.buckets("w", START, START + 2 * DAY)
        assert (kept.bucket, kept.rows, kept.reference_key) == (bucket, 5, "k")
        assert Profile.from_json(ledger.profile("w", kept), reference.edges) == profile
        with ledger.transaction():
            ledger.add_late_rows("w", kept, 3)
            ledger.hold("w", Position(reference=reference, reference_key="k"))
        assert ledger.state({"w": CONFIG}).counters.late_rows == {"w": 3}
    with Ledger(tmp_path) as ledger:
        assert ledger.held("w").reference == reference


def test_a_ledger_that_is_moved_knows_its_snapshots_where_they_are_now(tmp_path: Path):
    before, after = tmp_path / "before", tmp_path / "elsewhere" / "after"
    bucket = Bucket(START, START + DAY)
    profile = Profile.empty(Edges({}))
    with Ledger(before) as ledger, ledger.transaction():
        path = bucket_path(before, "w", bucket)
        ledger.add_bucket("w", Snapshot("w", bucket, 0, None, "0" * 64, path), profile, "k", START)
    after.parent.mkdir()
    before.rename(after)
    with Ledger(after) as ledger:
        (kept,) = ledger.buckets("w", START, START + DAY)
    assert kept.path == bucket_path(after, "w", bucket)


def test_what_was_measured_comes_back_equal(tmp_path: Path):
    evaluation = Evaluation(
        monitor="w",
        window=WINDOW,
        reference_window=WINDOW,
        verdicts=(VERDICT, Verdict("served", "y", "psi", None, None, Level.OK, "", WINDOW)),
        incidents=(Incident(IncidentKind.STALE, "v", None, 3.0, "old"),),
        figures=(Figures("x", 5, 1, 0.2, 0, 0, 0, 0, -1.5, 2.5, 0.1, None),),
        freshness=(Freshness("v", START, None),),
        performance=Performance({"roc_auc": 0.1 + 0.2}, 5, 2, WINDOW),
    )
    bucket = Bucket(WINDOW.end - DAY, WINDOW.end)
    snapshot = Snapshot("w", bucket, 5, START, "0" * 64, tmp_path / "s.parquet")
    with Ledger(tmp_path) as ledger, ledger.transaction():
        ledger.add_bucket("w", snapshot, Profile.empty(Edges({})), "", START)
        ledger.add_window(evaluation)
        ledger.add_spread("w", WINDOW.end, "", ())
        ledger.hold("w", Position(WINDOW.end))
    with Ledger(tmp_path) as ledger:
        state = ledger.state({"w": CONFIG}).monitors["w"]
    assert state.verdicts == evaluation.verdicts
    assert state.figures == evaluation.figures
    assert state.freshness == evaluation.freshness
    assert state.performance == evaluation.performance
    assert state.history[0].ratios == {"x": pytest.approx(5.0)}


def test_the_life_of_a_trigger(tmp_path: Path):
    run = pb.Run(run_id="run", state=pb.RUN_STATE_QUEUED)
    with Ledger(tmp_path) as ledger:
        fire(ledger)
        assert ledger.history("m").running == "r1"
        assert ledger.history("other").runs == ()
        ledger.attempted("r1")
        ledger.delivered("r1", run)
        assert ledger.pending() == []
        (following,) = ledger.following()
        assert (following.run.run_id, following.sequence) == ("run", 0)
        run.state = pb.RUN_STATE_REFUSED
        run.reason = "worse"
        ledger.run_event("r1", run, 4)
        assert ledger.following() == []
        assert ledger.history("m").running == ""
        assert [one.at for one in ledger.history("m").runs] == [WINDOW.end]
        trigger = ledger.trigger("r1")
        assert (trigger.attempts, trigger.run) == (2, run)
        assert "worse" in ledger.alerts_before(1)[0].summary
        with pytest.raises(NotFoundError):
            ledger.trigger("r2")


def test_a_dead_letter_is_kept(tmp_path: Path):
    with Ledger(tmp_path) as ledger:
        fire(ledger)
        ledger.attempted("r1", dead="INVALID_ARGUMENT: no")
        state = ledger.state({"w": CONFIG})
        assert (state.outbox.depth, state.outbox.dead) == (0, 1)
        assert state.triggers[0].state is TriggerState.DEAD
        assert state.alerts[0].severity is Severity.CRITICAL
        assert ledger.history("m").running == ""


def test_acknowledging_is_idempotent_and_audited(tmp_path: Path):
    with Ledger(tmp_path) as ledger:
        fire(ledger)
        assert ledger.acknowledge("e1", "ann", "on it").acknowledged_by == "ann"
        assert ledger.acknowledge("e1", "bob", "me too").acknowledged_by == "ann"
        with pytest.raises(NotFoundError):
            ledger.acknowledge("e2", "ann", "")
    with duckdb.connect(str(tmp_path / "monitor.duckdb"), read_only=True) as con:
        rows = con.execute("SELECT actor, act, subject, remark FROM audit").fetchall()
    assert rows == [("ann", "acknowledge", "e1", "on it")]


def test_alerts_are_numbered_without_gaps_over_restarts(tmp_path: Path):
    for _ in range(3):
        with Ledger(tmp_path) as ledger, ledger.transaction():
            ledger.add_alerts([ALERT, ALERT])
    with Ledger(tmp_path) as ledger:
        assert [alert.sequence for alert in ledger.alerts(0, 100)] == [1, 2, 3, 4, 5, 6]
        assert [alert.sequence for alert in ledger.alerts(4, 1)] == [5]
        assert [alert.sequence for alert in ledger.alerts_before(2)] == [6, 5]
        assert ledger.alerts_before(2, "other") == []


HOLD = """
import sys, time
from pathlib import Path
from steadfeast.monitor.ledger.ledger import Ledger
Ledger(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_the_second_daemon_is_told_who_holds_it(tmp_path: Path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LedgerLockedError, match=str(holder.pid)):
            Ledger(tmp_path)
        holder.kill()
    with Ledger(tmp_path):
        assert (tmp_path / "monitor.lock").read_text().strip() == str(os.getpid())


def test_a_newer_file_is_refused(tmp_path: Path):
    Ledger(tmp_path).close()
    path = tmp_path / "monitor.duckdb"
    with duckdb.connect(str(path)) as con:
        con.execute("UPDATE version SET version = 99")
    before = path.read_bytes()
    with pytest.raises(LedgerVersionError, match="99") as caught:
        Ledger(tmp_path)
    assert caught.value.found == 99
    assert path.read_bytes() == before


def test_a_damaged_file_is_refused(tmp_path: Path):
    """Cut anywhere, it says so rather than losing what was in the missing part."""
    with Ledger(tmp_path) as ledger, ledger.transaction():
        ledger.add_alerts([ALERT] * 400)
    path = tmp_path / "monitor.duckdb"
    whole = path.read_bytes()
    for kept in (0, 5000, len(whole) // 4, len(whole) // 2):
        path.write_bytes(whole[:kept])
        with pytest.raises(LedgerBrokenError, match="truncated, damaged"):
            Ledger(tmp_path)
    path.write_bytes(whole[:-4096])  # of a block that may be free
    with suppress(LedgerBrokenError), Ledger(tmp_path) as ledger:
        assert ledger.last_sequence() == 400
    path.write_bytes(b"not a database, but some text" * 1000)
    with pytest.raises(LedgerBrokenError):
        Ledger(tmp_path)
    path.write_bytes(whole)
    with Ledger(tmp_path) as ledger:
        assert ledger.last_sequence() == 400


def test_a_promotion_that_no_trigger_asked_for_is_kept_once(tmp_path: Path):
    """Those of our own triggers are with the triggers."""
    with Ledger(tmp_path) as ledger:
        fire(ledger)
    run = pb.Run(run_id="7", request_id="by hand", model_version="2", metrics={"roc_auc": 0.7})
    for _ in range(2):
        with Ledger(tmp_path) as ledger:
            assert ledger.asked_for("r1")
            assert not ledger.asked_for("by hand")
            with ledger.transaction():
                ledger.add_promotion("w", run, WINDOW.end)
            (kept,) = ledger.state({"w": CONFIG}).promotions
            assert (kept.monitor, kept.noticed_at, kept.run) == ("w", WINDOW.end, run)


def test_readers_see_commits_only(tmp_path: Path):
    with Ledger(tmp_path) as ledger:
        before = ledger.state({"w": CONFIG})
        assert ledger.state({"w": CONFIG}) is before
        fire(ledger)
        assert ledger.state({"w": CONFIG}) is not before
        assert before.episodes == ()


def test_the_last_sixty_windows_are_shown_oldest_first(tmp_path: Path):
    with Ledger(tmp_path) as ledger:
        for day in range(70):
            end = START + (day + 3) * DAY
            shown = Evaluation("w", Window(end - 3 * DAY, end, day), WINDOW, ())
            with ledger.transaction():
                ledger.add_window(shown)
                ledger.hold("w", Position(end))
        history = ledger.state({"w": CONFIG}).monitors["w"].history
    assert [past.window.rows for past in history] == list(range(10, 70))
    assert history[-1].window.end - history[0].window.end == timedelta(days=59)


def test_a_checkpoint_that_fails_loses_nothing(tmp_path: Path):
    """The limit lets the log grow, and not the file; the ledger goes on from a file opened anew."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Ledger(tmp_path) as ledger:
        ledger.hold("w", Position(WINDOW.end))
        ledger.file._checkpoint_bytes = 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (ledger.file.path.stat().st_size, hard))
        try:
            for number in range(3):
                with ledger.transaction():
                    ledger.add_audit("ann", "approve", f"r{number}", "go")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert ledger.file._checkpoint_bytes > CHECKPOINT_BYTES
        assert ledger.file._wal.stat().st_size > 0
        assert len(ledger.audit(0, 10)) == 3
        assert ledger.held("w").watermark == WINDOW.end
        ledger.file._checkpoint_bytes = 1
        ledger.hold("w", Position(WINDOW.end + DAY))
        assert not ledger.file._wal.exists()
        assert not ledger.problem
    with Ledger(tmp_path) as ledger:
        assert ledger.held("w").watermark == WINDOW.end + DAY


def test_a_commit_that_fails_is_not_there_and_says_so(tmp_path: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Ledger(tmp_path) as ledger:
        ledger.hold("w", Position(WINDOW.end))
        resource.setrlimit(resource.RLIMIT_FSIZE, (ledger.file._wal.stat().st_size, hard))
        try:
            for _ in range(2):
                with pytest.raises(LedgerWriteError, match=r"monitor.duckdb: cannot be written"):
                    ledger.hold("w", Position(WINDOW.end + DAY))
            assert "File too large" in ledger.problem
            assert ledger.held("w").watermark == WINDOW.end
            with pytest.raises(LedgerWriteError):
                ledger.probe()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        ledger.probe()
        assert not ledger.problem
        ledger.hold("w", Position(WINDOW.end + DAY))
    with Ledger(tmp_path) as ledger:
        assert ledger.held("w").watermark == WINDOW.end + DAY
