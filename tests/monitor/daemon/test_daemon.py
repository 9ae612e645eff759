"""The daemon put together, in this process; `test_monitor_process` has what needs a real one."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import duckdb
import pytest
from prometheus_client import generate_latest

from steadfeast.featurestore.errors import UserError
from steadfeast.monitor.daemon import daemon as under_test
from steadfeast.monitor.decisions.model import AlertKind, NotDecidableError
from steadfeast.monitor.drift.detector import Level
from steadfeast.monitor.evaluation.reference_builder import OutdatedReferenceError
from steadfeast.monitor.exporter import registry
from steadfeast.monitor.sources.snapshot import SnapshotUnreadableError
from steadfeast.monitor.web.problems import problems
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb
from support import monitor_world as world
from support.daemon_world import NEVER, SERVED, Here
from support.monitor_world import DAY, PER_DAY, START

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    made = Here(tmp_path)
    made.daemon.champions.follow()
    yield made
    made.close()
    made.server.stop()


def test_idle_is_exact(here: Here):
    """Not before what is closed is evaluated; and what is open keeps nobody waiting."""
    assert here.daemon.state().idle
    world.serve(here.folder, SERVED, 3, NEVER)
    state = here.daemon.state()
    assert not state.idle
    assert state.latest_event == SERVED + 3 * DAY - DAY / PER_DAY
    assert here.daemon.evaluate("") == 2  # the third day has not ended
    assert here.daemon.state().idle
    world.serve(here.folder, SERVED + 3 * DAY, 1, NEVER)
    assert not here.daemon.state().idle


def test_without_a_reference_buckets_wait(tmp_path: Path):
    here = Here(tmp_path)
    world.serve(here.folder, SERVED, 3, NEVER)
    assert here.daemon.evaluate("") == 0
    assert not here.daemon.state().idle
    here.daemon.champions.follow()
    assert here.daemon.evaluate("") == 2
    here.close()
    here.server.stop()


def test_what_nobody_has_keeps_nobody_waiting(tmp_path: Path):
    """Without a champion anywhere the page says so, and the daemon is idle all the same."""
    here = Here(tmp_path)
    here.pipeline._db.execute("DELETE FROM runs")
    world.serve(here.folder, SERVED, 3, NEVER)
    assert not here.daemon.state().idle
    here.daemon.champions.follow()
    assert here.daemon.state().idle
    assert "no promoted run of model price" in here.prices.waits_for
    here.pipeline.first(here.manifest)
    here.daemon.champions.follow()
    assert not here.daemon.state().idle
    assert here.prices.waits_for == ""
    here.close()
    here.server.stop()


def test_the_configuration_may_name_the_reference(tmp_path: Path):
    here = Here(tmp_path)
    here.close()
    other = world.train(tmp_path, "other", START, NEVER)
    here.rewrite("      pipeline: main\n", f"      reference: {other}\n")
    here.open()
    assert here.prices.reference.uri == "training/other/manifest.json"  # of the data folder
    here.daemon.champions.follow()  # what is promoted elsewhere does not move it
    assert here.prices.reference.uri == "training/other/manifest.json"  # of the data folder
    world.serve(here.folder, SERVED, 5, SERVED)
    assert here.daemon.evaluate("") == 4
    assert here.prices.verdicts[0].level is Level.DRIFT
    here.rewrite(str(other), str(tmp_path / "nosuch.json"))
    here.daemon.reload()
    assert here.daemon.state().counters.reloads_rejected == 1
    here.close()
    here.server.stop()


def test_a_bucket_is_judged_by_itself_before_the_window_is_full(here: Here):
    world.serve(here.folder, SERVED, 2, SERVED)
    here.daemon.evaluator.evaluate("prices", 1)
    assert here.prices.window.rows == PER_DAY
    levels = {v.feature: v.level for v in here.prices.verdicts}
    assert levels == {"x": Level.DRIFT, "kind": Level.OK}


def test_catching_up_is_bounded_and_in_order(here: Here, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(under_test, "BUCKETS_PER_TICK", 3)
    world.serve(here.folder, SERVED, 8, NEVER)
    for done, days in ((3, 3), (3, 6), (1, 7), (0, 7)):
        assert here.daemon.evaluate("") == done
        assert here.prices.watermark == SERVED + days * DAY


def test_rows_that_come_late_are_counted_and_change_nothing(here: Here):
    world.serve(here.folder, SERVED, 3, NEVER)
    here.daemon.evaluate("")
    judged = here.prices.verdicts
    served = here.folder / "data" / "served" / "prices"
    (first, *_) = sorted(served.glob("*.parquet"))
    time.sleep(0.05)
    (served / first.name.replace(".parquet", "-late.parquet")).write_bytes(first.read_bytes())
    assert here.daemon.evaluate("") == 0
    world.serve(here.folder, SERVED + 3 * DAY, 1, NEVER)
    here.daemon.evaluate("")
    assert here.daemon.state().counters.late_rows == {"prices": PER_DAY}
    assert here.prices.window.rows == 3 * PER_DAY
    assert judged != here.prices.verdicts  # of the next window
    world.serve(here.folder, SERVED + 4 * DAY, 1, NEVER)
    here.daemon.evaluate("")
    assert here.daemon.state().counters.late_rows == {"prices": PER_DAY}


def test_broken_data_raises_an_incident_and_blocks(here: Here):
    world.serve(here.folder, SERVED, 4, SERVED)
    world.serve(here.folder, SERVED + 4 * DAY, 2, SERVED, null_x=True)
    here.daemon.evaluator.evaluate("prices", 3)
    here.daemon.evaluate("")
    kinds = [alert.kind for alert in here.ledger.alerts(0, 100)]
    assert AlertKind.DATA_INCIDENT in kinds
    assert here.prices.blocked


def test_a_restart_goes_on_with_the_same_figures(tmp_path: Path):
    """Evaluated in one life or in four, the ledger holds the same windows."""
    found = []
    for name, lives in (("one", 1), ("four", 4)):
        folder = tmp_path / name
        folder.mkdir()
        here = Here(folder)
        here.daemon.champions.follow()
        world.serve(folder, SERVED, 6, SERVED + 2 * DAY)
        for life in range(lives):
            if life:
                here.close()
                here.open()
            here.daemon.evaluator.evaluate("prices", 64 if life == lives - 1 else 1)
        here.close()
        here.server.stop()
        with duckdb.connect(str(folder / "data" / "monitor" / "monitor.duckdb")) as con:
            query = "SELECT past, verdicts, figures, freshness, performance FROM windows"
            found.append(con.execute(query + " ORDER BY end_time").fetchall())
    assert found[0] == found[1]
    assert len(found[0]) == 5


def test_a_clock_that_jumps_a_day_back_and_forth_decides_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """On the wall clock; the oracle is a ledger whose clock only went on."""
    found = []
    for name, jumps in (("steady", (0,)), ("jumping", (0, -1, 1, -1, 0))):
        folder = tmp_path / name
        folder.mkdir()
        here = Here(folder)
        here.rewrite("clock: watermark", "clock: wall")
        here.close()
        here.open()
        here.daemon.champions.follow()
        world.serve(folder, SERVED, 7, SERVED + 2 * DAY)
        for day in range(1, 7):
            for jump in jumps:
                at = SERVED + (min(day + jump, 6)) * DAY + timedelta(hours=1)

                class Clock(datetime):
                    @classmethod
                    def now(cls, tz=None):  # noqa: ARG003
                        return at  # noqa: B023 - used before the next turn

                monkeypatch.setattr("steadfeast.monitor.evaluation.evaluator.datetime", Clock)
                here.daemon.evaluate("")
        monkeypatch.undo()
        here.close()
        here.server.stop()
        with duckdb.connect(str(folder / "data" / "monitor" / "monitor.duckdb")) as con:
            tables = ("windows", "episodes", "triggers", "alerts", "counters")
            found.append(
                {one: sorted(map(str, con.execute(f"FROM {one}").fetchall())) for one in tables}
            )
    assert found[0] == found[1]
    assert len(found[0]["windows"]) == 6
    assert found[0]["triggers"]


def test_snapshots_leave_after_the_retention(tmp_path: Path):
    here = Here(tmp_path)
    here.rewrite("  tick: 100ms", "  tick: 100ms\n  retention: 4d")
    here.close()
    here.open()
    here.daemon.champions.follow()
    world.serve(here.folder, SERVED, 12, NEVER)
    here.daemon.evaluate("")
    kept = list((here.folder / "data" / "monitor" / "snapshots").rglob("*.parquet"))
    assert len(kept) == 7  # the window's three days and four more
    here.close()
    here.server.stop()


def test_a_reload_is_taken_over_whole_or_not_at_all(here: Here):
    daemon = here.daemon
    before = daemon.evaluator.config
    here.rewrite("cooldown: 7d", "cooldown: 7 moons")
    daemon.reload()
    here.rewrite("cooldown: 7 moons", "cooldown: 8d\n      features: [nosuch]")
    daemon.reload()  # the file is well-formed; the training set lacks the feature
    here.rewrite("features: [nosuch]", "statistic: nosuch")
    daemon.reload()
    here.rewrite("statistic: nosuch", "features: [x]")
    here.rewrite("clock: watermark", "clock: wall")
    daemon.reload()
    assert daemon.evaluator.config is before
    counters = daemon.state().counters
    assert (counters.reloads, counters.reloads_rejected) == (0, 4)
    here.rewrite("clock: wall", "clock: watermark")
    daemon.reload()
    assert daemon.evaluator.config.monitors["prices"].cooldown == timedelta(days=8)
    (noted,) = here.ledger.audit(0, 10)
    assert (noted.act, noted.subject) == ("configure", str(here.path))
    assert daemon.state().counters.reloads == 1
    world.serve(here.folder, SERVED, 4, NEVER)
    daemon.evaluate("")
    assert [v.feature for v in here.prices.verdicts] == ["x"]


def test_a_changed_configuration_is_noticed_at_a_start(here: Here):
    world.serve(here.folder, SERVED, 4, NEVER)
    here.daemon.evaluate("")
    here.close()
    here.rewrite("min_rows: 100", "min_rows: 100\n      features: [kind]")
    here.open()
    world.serve(here.folder, SERVED + 4 * DAY, 1, NEVER)
    here.daemon.evaluate("")
    assert [v.feature for v in here.prices.verdicts] == ["kind"]
    assert here.prices.window.rows == 3 * PER_DAY  # earlier buckets are counted over new edges


def test_a_person_approves_what_waits(tmp_path: Path):
    here = Here(tmp_path, extra="      approval: manual\n")
    here.daemon.champions.follow()
    world.serve(here.folder, SERVED, 6, SERVED)
    here.daemon.evaluate("")
    (trigger,) = here.daemon.state().triggers
    assert trigger.state == "waiting"
    kinds = {one.kind for one in here.daemon.state().episodes if one.open}
    assert kinds == {"drift", "performance"}
    assert len(trigger.episode_ids) == 2
    assert here.ledger.pending() == []
    decided = here.daemon.evaluator.decide(trigger.request_id, yes=True, actor="ann", comment="go")
    assert decided.state == "pending"
    (message,) = here.ledger.pending()
    body = pb.TriggerRetrainRequest.FromString(message.body)
    assert body.as_of.ToSeconds() == here.prices.watermark.timestamp()
    assert list(body.cause.episode_ids) == list(trigger.episode_ids)
    with pytest.raises(NotDecidableError, match="does not wait"):
        here.daemon.evaluator.decide(trigger.request_id, yes=True, actor="ann", comment="")
    here.close()
    here.server.stop()


def test_the_configuration_of_the_last_run_is_compared_at_a_start(tmp_path: Path):
    """Names of fields, and nothing of what is in them; a token that changed shows too."""
    here = Here(tmp_path)

    def start() -> list[tuple[str, str]]:
        here.daemon.start()
        here.daemon.close()
        noted = [(one.actor, one.remark) for one in here.ledger.audit(0, 100)]
        here.ledger.close()
        here.open()
        return noted

    assert start() == [("start", "the first configuration")]
    here.rewrite(
        "monitor:\n",
        "security: {tokens: {ann: {token: 0123456789abcdef, roles: [admin]}}}\nmonitor:\n",
    )
    here.open_again()
    assert start()[1:] == [("start", "security.tokens")]
    here.rewrite("0123456789abcdef", "fedcba9876543210")
    here.rewrite("cooldown: 7d", "cooldown: 8d")
    here.open_again()
    assert start()[2:] == [("start", "monitors.prices, security.tokens")]
    assert len(start()) == 3
    kept = here.ledger.fields()
    assert not any("fedcba" in value for value in kept.values())
    here.close()
    here.server.stop()


def as_an_earlier_build(here: Here) -> None:
    """Store the reference as before there were versions, without a field that came later."""
    here.close()
    with duckdb.connect(str(here.folder / "data" / "monitor" / "monitor.duckdb")) as con:
        ((text,),) = con.execute("SELECT reference FROM monitors").fetchall()
        data = json.loads(text)
        del data["version"], data["thresholds"]
        con.execute("UPDATE monitors SET reference = ?, reference_key = 'old'", [json.dumps(data)])


def test_a_reference_of_an_earlier_build_is_built_anew_by_itself(here: Here):
    world.serve(here.folder, SERVED, 6, NEVER)
    assert here.daemon.evaluate("") == 5
    before = here.ledger.held("prices")
    as_an_earlier_build(here)
    here.open()
    now = here.ledger.held("prices")
    assert now.outdated is None
    assert now.reference == before.reference
    assert (now.watermark, now.reference_key) == (before.watermark, before.reference_key)
    # It goes on where it stood, with the buckets counted over the same bins.
    world.serve(here.folder, SERVED + 6 * DAY, 1, NEVER)
    assert here.daemon.evaluate("") == 1
    assert here.prices.verdicts
    here.open_again()
    assert here.ledger.held("prices").reference == before.reference


def test_without_its_training_set_it_says_what_to_do(here: Here):
    kept = here.manifest.read_bytes()
    as_an_earlier_build(here)
    here.manifest.unlink()
    with pytest.raises(OutdatedReferenceError, match="bring the training set back") as error:
        here.open()
    assert (error.value.monitor, error.value.version) == ("prices", 1)
    assert isinstance(error.value, UserError)  # so the command ends with it, and exit code 2
    here.ledger.close()
    here.manifest.write_bytes(kept)
    here.open()
    assert here.prices.reference


def garble(path: Path, first: int = 4, last: int = -16) -> None:
    content = path.read_bytes()
    wrong = bytes(byte ^ 0x5A for byte in content[first:last])
    path.write_bytes(content[:first] + wrong + content[last:])


def test_a_damaged_snapshot_is_named_until_it_is_put_right(here: Here):
    world.serve(here.folder, SERVED, 5, NEVER)
    here.daemon.evaluate("")
    paths = sorted(here.folder.glob("**/snapshots/prices/*.parquet"))
    assert len(paths) == 4
    here.daemon.snapshots.look()
    assert here.prices.damaged == ()
    whole = [path.read_bytes() for path in paths]
    paths[1].write_bytes(whole[1][: len(whole[1]) // 2])
    garble(paths[2], 4, 8)  # four bytes of a page that nobody reads again
    here.daemon.snapshots.look()
    named = [line.partition(": ")[0] for line in here.prices.damaged]
    assert named == [str(paths[1]), str(paths[2])]
    (problem,) = problems(here.daemon.state())
    assert problem.title == "2 not as they were frozen"
    exposed = generate_latest(registry(here.daemon.state)).decode()
    assert 'steadfeast_snapshots_damaged{monitor="prices"} 2.0' in exposed
    paths[1].unlink()
    paths[2].write_bytes(whole[2])
    here.daemon.snapshots.look()
    assert here.prices.damaged == ()
    world.serve(here.folder, SERVED + 5 * DAY, 1, NEVER)
    assert here.daemon.evaluate("") == 1


def test_a_damaged_snapshot_of_the_window_holds_nothing_up(tmp_path: Path):
    """The figures of the model and of segments lack its rows; the next buckets are judged."""
    here = Here(tmp_path, "      segments: [kind]\n      multivariate: true\n")
    here.daemon.champions.follow()
    world.serve(here.folder, SERVED, 5, NEVER)
    here.daemon.evaluate("")
    garble(max(here.folder.glob("**/snapshots/prices/*.parquet")))
    here.open_again()  # nothing is remembered
    world.serve(here.folder, SERVED + 5 * DAY, 1, NEVER)
    assert here.daemon.evaluate("") == 1
    # Of two days of three; the last labels are not known yet.
    assert world.PER_DAY < here.prices.performance.labelled < 2 * world.PER_DAY
    assert any("cannot be read" in one.reason for one in here.prices.verdicts)
    here.close()
    here.server.stop()


def test_a_bucket_that_cannot_be_counted_anew_is_named(here: Here):
    world.serve(here.folder, SERVED, 5, NEVER)
    here.daemon.evaluate("")
    path = max(here.folder.glob("**/snapshots/prices/*.parquet"))
    garble(path)
    other = world.train(here.folder, "other", START, START)
    here.rewrite("      pipeline: main\n", f"      reference: {other}\n")
    here.daemon.reload()
    with pytest.raises(SnapshotUnreadableError, match="restore it from a copy, or remove it"):
        here.daemon.evaluate("")
    path.unlink()
    here.daemon.evaluate("")
    assert here.daemon.state().idle


@pytest.mark.parametrize("how", ["absolute", "dots", "link"])
def test_a_run_that_names_files_elsewhere_is_not_followed(tmp_path: Path, how: str):
    """What a pipeline says is read only inside the data folder, wherever links lead."""
    here = Here(tmp_path / "shop")
    data = here.folder / "data"
    outside = tmp_path / "outside"
    here.manifest.parent.rename(outside)
    (data / "training" / "link").symlink_to(outside)
    uri = {
        "absolute": str(outside / "manifest.json"),
        "dots": "../../outside/manifest.json",
        "link": "training/link/manifest.json",
    }[how]
    here.pipeline._db.execute("DELETE FROM runs")
    here.pipeline.first(uri)
    here.daemon.champions.follow()
    assert here.prices.reference is None
    assert f"manifest_uri leads to {outside}/manifest.json, outside" in here.prices.waits_for
    here.close()
    here.server.stop()
