"""Delivery over real gRPC: retries, dead letters, runs followed with resume, references moved."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import grpc
import pytest

from steadfeast.featurestore.errors import NotFoundError
from steadfeast.monitor.config.schema import load
from steadfeast.monitor.decisions.model import (
    NotDecidableError,
    Severity,
    TriggerState,
)
from steadfeast.monitor.delivery.threads import Backoff
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb
from support import monitor_world as world
from support.monitor_world import DAY, START
from support.outbox_world import World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def here(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.deliver()
    yield made
    made.close()


def test_a_trigger_is_delivered_and_its_run_followed_to_the_end(here: World):
    here.pipeline.end = pb.RUN_STATE_REFUSED
    here.fire()
    world.wait_for(here.ended)
    trigger = here.ledger.trigger("r1")
    assert (trigger.state, trigger.attempts) == (TriggerState.DELIVERED, 1)
    assert trigger.run is not None
    assert trigger.run.state == pb.RUN_STATE_REFUSED
    assert here.ledger.held("prices").reference is None
    (alert, *_) = here.ledger.alerts_before(1)
    assert alert.severity is Severity.WARNING
    assert "not better" in alert.summary


def test_a_promotion_moves_the_reference_with_the_end_of_the_run(here: World):
    here.fire()
    world.wait_for(here.ended)
    held = here.ledger.held("prices")
    assert held.reference is not None
    (run,) = here.pipeline.runs()
    assert held.reference.uri == run.manifest_uri
    assert held.reference.model_version == run.model_version
    assert held.reference.performance == {"roc_auc": 0.9}


def test_a_promotion_without_a_training_set_says_so(here: World):
    here.pipeline._keep = lambda *_: None  # the run is not kept, so its manifest is not either
    world.train(here.folder, "v-run-r1", START, START)
    (here.folder / "data" / "training" / "v-run-r1" / "data.parquet").unlink()
    here.pipeline._db.execute(
        "INSERT INTO runs VALUES ('r1', ?, ?)",
        [b"", pb.Run(run_id="run-r1", request_id="r1", model="price").SerializeToString()],
    )
    here.ledger.changed.acquire()
    here.fire()
    here.ledger.delivered("r1", pb.Run(run_id="run-r1", model="price"))
    here.ledger.changed.release()
    world.wait_for(here.ended)
    assert here.ledger.held("prices").reference is None
    assert "the reference stays" in here.ledger.alerts_before(1)[0].summary


def test_it_goes_on_trying_while_nobody_answers(here: World):
    here.server.stop()
    here.fire()
    world.wait_for(lambda: here.ledger.pending()[0].attempts >= 3)
    here.server.start()
    world.wait_for(here.ended)
    assert len(here.pipeline.runs()) == 1
    assert here.ledger.trigger("r1").attempts > 3


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
def test_what_says_nothing_is_tried_again(here: World, code: grpc.StatusCode):
    here.pipeline.refusal = code
    here.fire()
    world.wait_for(lambda: here.pipeline.calls >= 3)
    here.pipeline.refusal = None
    world.wait_for(here.ended)


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNKNOWN,
    ],
)
def test_any_other_answer_is_a_dead_letter(here: World, code: grpc.StatusCode):
    here.pipeline.refusal = code
    here.fire()
    world.wait_for(lambda: not here.pending())
    trigger = here.ledger.trigger("r1")
    assert trigger.state is TriggerState.DEAD
    assert code.name in trigger.reason
    assert here.pipeline.calls == 1


def test_a_dead_letter_does_not_hold_the_next(here: World):
    here.pipeline.refusal = grpc.StatusCode.INVALID_ARGUMENT
    here.fire("r1")
    world.wait_for(lambda: not here.pending())
    here.pipeline.refusal = None
    here.fire("r2")
    world.wait_for(lambda: here.ended("r2"))


def test_a_run_is_resumed_after_a_restart(here: World):
    here.pipeline.hold.clear()
    here.fire()
    world.wait_for(lambda: here.ledger.following() and here.ledger.following()[0].sequence == 1)
    here.outbox.close()
    assert here.ledger.following()[0].run.state == pb.RUN_STATE_RUNNING
    here.pipeline.hold.set()
    here.deliver()
    world.wait_for(here.ended)
    assert here.pipeline.calls == 1
    told = [alert.summary for alert in here.ledger.alerts(0, 100) if "promoted" in alert.summary]
    assert len(told) == 1


def test_a_run_survives_a_restart_of_the_pipeline(here: World):
    here.pipeline.hold.clear()
    here.fire()
    world.wait_for(lambda: here.ledger.following() and here.ledger.following()[0].sequence == 1)
    here.server.stop()
    here.pipeline.hold.set()
    here.server.start()
    world.wait_for(here.ended)
    assert here.ledger.held("prices").reference is not None


def test_a_run_that_the_pipeline_forgot_has_failed(here: World):
    here.pipeline.hold.clear()
    here.fire()
    world.wait_for(lambda: here.ledger.following() and here.ledger.following()[0].sequence == 1)
    here.server.stop()
    here.pipeline._db.execute("DELETE FROM runs WHERE request_id = 'r1'")
    here.server.start()
    world.wait_for(here.ended)
    run = here.ledger.trigger("r1").run
    assert run is not None
    assert run.state == pb.RUN_STATE_FAILED
    assert "no longer knows" in run.reason


def test_the_first_reference_is_the_champion(here: World):
    here.champions.follow()
    reference = here.ledger.held("prices").reference
    assert reference is not None
    assert reference.uri == str(here.manifest)
    assert here.evaluator.without_reference() == []


def test_without_a_champion_there_is_no_reference_yet(here: World):
    here.pipeline._db.execute("DELETE FROM runs")
    here.champions.follow()
    here.server.stop()
    here.champions.follow()
    assert here.evaluator.without_reference() == ["prices"]


def test_waits_double_up_to_a_bound_less_a_random_half():
    backoff = Backoff(first=0.5, most=60)
    for attempt, whole in ((1, 0.5), (2, 1.0), (5, 8.0), (8, 60.0), (10_000, 60.0)):
        waits = [backoff.seconds(attempt) for _ in range(200)]
        assert whole / 2 <= min(waits) < max(waits) <= whole


def test_a_promotion_by_hand_moves_the_reference(here: World):
    here.champions.follow()
    other = world.train(here.folder, "other", START, START + 99 * DAY)
    by_hand = pb.Run(
        run_id="hand", request_id="hand", model="price", state=pb.RUN_STATE_PROMOTED,
        manifest_uri=str(other), model_version="7", reason="by hand, in place of 1",
    )  # fmt: skip
    here.pipeline._keep("hand", b"", by_hand)
    here.champions.follow()
    moved = here.ledger.held("prices").reference
    assert moved is not None
    assert (moved.uri, moved.model_version) == (str(other), "7")
    here.champions.follow()  # the same champion again is no news
    assert here.ledger.held("prices").reference is moved
    noticed = here.ledger.state(here.evaluator.config.monitors).promotions
    assert [(one.monitor, one.run.reason) for one in noticed] == [
        ("prices", "by hand, in place of 1"),
        ("prices", ""),  # the first model
    ]


def test_an_answer_that_is_older_than_the_last_move_moves_nothing(here: World):
    here.champions.follow()
    other = world.train(here.folder, "other", START, START + 99 * DAY)
    before = here.ledger.held("prices").reference
    old = here.pipeline._db.execute("SELECT run FROM runs").fetchone()[0]
    here.evaluator.move(
        here.evaluator.build(pb.Run(model="price", manifest_uri=str(other), model_version="7")),
        "meanwhile",
    )
    said = pb.Run.FromString(old)
    said.model_version = "0"
    here.champions._follow_champion("prices", said, before)
    now = here.ledger.held("prices").reference
    assert now is not None
    assert now.model_version == "7"


def test_why_there_is_no_reference_is_said(here: World):
    assert "yet" in here.champions.waits_for("prices")
    here.pipeline._db.execute("DELETE FROM runs")
    here.champions.follow()
    assert here.champions.waits_for("prices") == "pipeline main: no promoted run of model price"
    assert here.champions.nobody_has("prices")
    here.server.stop()
    here.champions.follow()
    assert "UNAVAILABLE" in here.champions.waits_for("prices")
    assert not here.champions.nobody_has("prices")  # it may be that the pipeline has one
    here.server.start()
    here.pipeline.first(here.folder / "gone" / "manifest.json")

    def looked() -> bool:
        here.champions.follow()
        return "gone" in here.champions.waits_for("prices")

    world.wait_for(looked)


def test_a_pipeline_that_hangs_holds_no_other(here: World, monkeypatch: pytest.MonkeyPatch):
    """One listens and never answers; the other's trigger is there long before the deadline."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        path = here.folder / "steadfeast.yaml"
        text = path.read_text().replace(
            "pipelines: {", f'pipelines: {{mute: "127.0.0.1:{mute.getsockname()[1]}", '
        )
        path.write_text(text)
        config, _ = load(path)
        here.evaluator.configure(config, {})
        silent = config.monitors["prices"].model_copy(update={"pipeline": "mute"})
        monkeypatch.setitem(here.config.monitors, "prices", silent)
        here.fire("r0")
        monkeypatch.undo()
        began = time.monotonic()
        here.fire("r1")
        world.wait_for(lambda: here.ledger.trigger("r1").run is not None, 5)
        assert time.monotonic() - began < 5
        assert [message.request_id for message in here.ledger.pending()] == ["r0"]
        assert not here.outbox.problem()
        here.outbox.close()  # and does not wait for the deadline either
        assert time.monotonic() - began < 9


def test_a_dead_letter_sent_again_reaches_the_pipeline_unchanged(here: World):
    here.pipeline.refusal = grpc.StatusCode.INVALID_ARGUMENT
    here.fire()
    world.wait_for(lambda: not here.pending())
    here.pipeline.refusal = None
    with pytest.raises(NotFoundError):
        here.evaluator.resend("nosuch", actor="ann", comment="")
    assert here.evaluator.resend("r1", actor="ann", comment="").state is TriggerState.PENDING
    world.wait_for(here.ended)
    assert [body.request_id for body in here.pipeline.bodies()] == ["r1"]
    with pytest.raises(NotDecidableError, match="delivered"):
        here.evaluator.resend("r1", actor="ann", comment="")
