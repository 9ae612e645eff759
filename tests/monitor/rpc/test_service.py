"""MonitorService over real gRPC: streams that resume, errors that carry data."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from steadfeast.monitor.config.schema import MonitorConfig
from steadfeast.monitor.decisions.model import (
    Alert,
    AlertKind,
    Decision,
    Episode,
    EpisodeKind,
    Member,
    NotDecidableError,
    Outcome,
    PolicyState,
    Severity,
    Trigger,
)
from steadfeast.monitor.drift.detector import Level, Verdict
from steadfeast.monitor.ledger.ledger import Ledger, Position
from steadfeast.monitor.profiles.profile import Window
from steadfeast.monitor.rpc import service as under_test
from steadfeast.monitor.rpc.errors import STATUS
from steadfeast.monitor.rpc.service import SERVICE, Monitor, ports
from steadfeast.protos.steadfeast.v1 import monitor_pb2 as mp
from steadfeast.protos.steadfeast.v1 import monitor_pb2_grpc
from support.monitor_world import DAY, START, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIG = {"w": MonitorConfig(service="s", model="m")}
WINDOW = Window(START, START + 3 * DAY, 600)
VERDICT = Verdict("served", "x", "psi", 0.5, 0.1, Level.DRIFT, "moved", WINDOW)


def alert(text: str) -> Alert:
    return Alert(
        AlertKind.EPISODE, Severity.WARNING, "w", WINDOW.end, text, {"e": text}, (VERDICT,)
    )


class World:
    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.ledger = stack.enter_context(Ledger(folder))
        self.server = ports(
            Monitor(
                self.ledger,
                lambda: self.ledger.state(CONFIG),
                lambda _: 7,
                self.decide,
                self.resend,
            ),
            "127.0.0.1:0",
        )
        stack.enter_context(self.server)
        self.channel = stack.enter_context(
            grpc.insecure_channel(f"127.0.0.1:{self.server.grpc_port}")
        )
        self.stub = monitor_pb2_grpc.MonitorServiceStub(self.channel)

    def decide(self, request: str, *, yes: bool, actor: str, comment: str):
        del yes, actor, comment
        raise NotDecidableError(request, "waits no longer")

    def resend(self, request: str, *, actor: str, comment: str):
        with self.ledger.transaction():
            self.ledger.revive(request, "elsewhere")
            self.ledger.add_audit(actor, "resend", request, comment)
        return self.ledger.trigger(request)

    def tell(self, *texts: str) -> None:
        with self.ledger.transaction():
            self.ledger.add_alerts([alert(text) for text in texts])

    def open_episode(self) -> None:
        episode = Episode(
            "e", EpisodeKind.DRIFT, WINDOW, WINDOW, (Member(VERDICT, WINDOW.end),), "c" * 64
        )
        with self.ledger.transaction():
            self.ledger.add_decision("w", CONFIG["w"], Decision(PolicyState(), (episode,)))
            self.ledger.hold("w", Position(WINDOW.end))

    def watch(self, after: int = 0, heartbeat: float | None = None):
        request = mp.WatchAlertsRequest(after_sequence=after)
        if heartbeat is not None:
            request.heartbeat_interval.FromMicroseconds(int(heartbeat * 1e6))
        return self.stub.WatchAlerts(request)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(tmp_path, stack)


def failed(call) -> tuple[grpc.StatusCode, object]:
    """Return the status code and the one detail of a call that fails."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    status = rpc_status.from_call(caught.value)
    (packed,) = status.details
    kind = getattr(error_details_pb2, packed.TypeName().rpartition(".")[2])
    detail = kind()
    assert packed.Unpack(detail)
    return caught.value.code(), detail


def test_every_error_has_a_status():
    mine = {
        value
        for value in vars(under_test).values()
        if isinstance(value, type)
        and issubclass(value, Exception)
        and value.__module__ == under_test.__name__
    }
    assert mine <= set(STATUS)


def test_status_is_the_committed_state(here: World):
    here.open_episode()
    answer = here.stub.GetStatus(mp.GetStatusRequest())
    assert [m.monitor for m in answer.monitors] == ["w"]
    assert answer.monitors[0].watermark.ToSeconds() == WINDOW.end.timestamp()
    (episode,) = answer.open_episodes
    assert episode.state == mp.EPISODE_STATE_OPEN
    assert episode.features[0].threshold == 0.1


def test_a_watch_starts_where_it_is_told_and_goes_on_live(here: World):
    here.tell("one", "two", "three")
    stream = here.watch(after=1)
    assert [next(stream).alert.summary for _ in range(2)] == ["two", "three"]
    threading.Timer(0.2, here.tell, ["four"]).start()
    live = next(event for event in stream if event.HasField("alert"))
    assert live.alert.summary == "four"
    assert (live.alert.sequence, live.last_sequence) == (4, 4)


def test_no_alert_is_missed_or_repeated_between_two_watches(here: World):
    """Reading in pieces while alerts are written gives each exactly once, in order."""
    total = 200

    def write() -> None:
        for number in range(total):
            here.tell(str(number))

    writer = threading.Thread(target=write)
    writer.start()
    got: list[int] = []
    while len(got) < total:
        stream = here.watch(after=got[-1] if got else 0, heartbeat=0.1)
        for event in stream:
            if event.HasField("alert"):
                got.append(event.alert.sequence)
                if len(got) % 17 == 0 or len(got) == total:
                    stream.cancel()
                    break
    writer.join()
    assert got == list(range(1, total + 1))


def test_heartbeats_come_at_once_and_then_at_their_interval(here: World):
    here.tell("one")
    stream = here.watch(after=1, heartbeat=0.2)
    began = time.monotonic()
    beats = [next(stream) for _ in range(4)]
    took = time.monotonic() - began
    assert not any(beat.HasField("alert") for beat in beats)
    assert {beat.last_sequence for beat in beats} == {1}
    assert 0.5 < took < 5


def test_a_stalled_reader_holds_nobody(here: World):
    stalled = here.watch()  # never read
    here.tell(*map(str, range(500)))
    stream = here.watch()
    assert [next(stream).alert.sequence for _ in range(500)] == list(range(1, 501))
    stalled.cancel()


def test_readers_that_leave_are_forgotten(here: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(under_test, "MAX_WATCHERS", 3)
    streams = [here.watch() for _ in range(3)]
    for stream in streams:
        next(stream)
    code, detail = failed(lambda: next(here.watch()))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert detail.reason == "TOOMANYWATCHERS"
    for stream in streams:
        stream.cancel()

    def accepted() -> bool:
        try:
            next(here.watch())
        except grpc.RpcError:
            return False
        return True

    wait_for(accepted)


def test_a_reader_that_fell_behind_is_told_where_to_resume(
    here: World, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(under_test, "MAX_BEHIND", 50)
    stream = here.watch()
    next(stream)
    here.tell(*map(str, range(100)))

    def read() -> None:
        for _ in stream:
            pass

    code, detail = failed(read)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert detail.metadata["resume_after"] == "0"


@pytest.mark.parametrize("seconds", [0.01, 61])
def test_a_heartbeat_out_of_range_is_refused(here: World, seconds: float):
    request = mp.WatchAlertsRequest()
    request.heartbeat_interval.FromMicroseconds(int(seconds * 1e6))
    code, detail = failed(lambda: next(here.stub.WatchAlerts(request)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert detail.field_violations[0].field == "heartbeat_interval"


def test_unknown_names_are_not_found_with_what_was_looked_for(here: World):
    here.open_episode()
    code, detail = failed(lambda: here.stub.GetStatus(mp.GetStatusRequest(monitor="v")))
    assert code is grpc.StatusCode.NOT_FOUND
    assert (detail.resource_type, detail.resource_name) == ("monitor", "v")
    assert "did you mean" in detail.description
    code, _ = failed(lambda: here.stub.ListAlerts(mp.ListAlertsRequest(monitor="v")))
    assert code is grpc.StatusCode.NOT_FOUND
    request = mp.AcknowledgeRequest(episode_id="x", actor="ann")
    code, detail = failed(lambda: here.stub.Acknowledge(request))
    assert (code, detail.resource_type) == (grpc.StatusCode.NOT_FOUND, "episode")


def test_acknowledging_needs_a_name_and_is_idempotent(here: World):
    here.open_episode()
    code, detail = failed(lambda: here.stub.Acknowledge(mp.AcknowledgeRequest(episode_id="e")))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert detail.field_violations[0].field == "actor"
    for actor in ("ann", "bob"):
        answer = here.stub.Acknowledge(mp.AcknowledgeRequest(episode_id="e", actor=actor))
        assert answer.episode.acknowledged_by == "ann"


def test_a_decision_that_cannot_be_is_a_failed_precondition(here: World):
    request = mp.DecideTriggerRequest(request_id="r", approve=True, actor="ann")
    code, detail = failed(lambda: here.stub.DecideTrigger(request))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert detail.violations[0].subject == "r"


def test_alerts_are_listed_newest_first(here: World):
    here.tell("one", "two", "three")
    answer = here.stub.ListAlerts(mp.ListAlertsRequest(limit=2))
    assert [a.summary for a in answer.alerts] == ["three", "two"]
    code, _ = failed(lambda: here.stub.ListAlerts(mp.ListAlertsRequest(limit=1001)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_evaluate_says_how_many_buckets(here: World):
    assert here.stub.Evaluate(mp.EvaluateRequest()).buckets == 7


def test_health_and_reflection(here: World):
    health = health_pb2_grpc.HealthStub(here.channel)
    asked = health_pb2.HealthCheckRequest(service=SERVICE)
    assert health.Check(asked).status == health_pb2.HealthCheckResponse.SERVING
    here.server.serving(healthy=False)
    assert health.Check(asked).status == health_pb2.HealthCheckResponse.NOT_SERVING
    reflection = reflection_pb2_grpc.ServerReflectionStub(here.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = reflection.ServerReflectionInfo(iter([request]))
    names = {service.name for service in answer.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names


def test_a_watch_ends_as_unavailable_when_the_daemon_stops(here: World):
    stream = here.watch(heartbeat=60)
    next(stream)
    threading.Timer(0.2, here.server.close).start()
    with pytest.raises(grpc.RpcError) as caught:
        next(stream)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_dead_letter_is_listed_and_sent_again_by_word(here: World):
    episode = Episode(
        "e", EpisodeKind.DRIFT, WINDOW, WINDOW, (Member(VERDICT, WINDOW.end),), "c" * 64
    )
    fired = Trigger("r1", (episode,), Outcome.FIRED, WINDOW.end)
    with here.ledger.transaction():
        here.ledger.add_decision(
            "w",
            CONFIG["w"].model_copy(update={"pipeline": "gone"}),
            Decision(PolicyState(), (episode,), triggers=(fired,)),
        )
    again = mp.ResendTriggerRequest(request_id="r1", actor="ann", comment="fixed")
    code, detail = failed(lambda: here.stub.ResendTrigger(again))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "was not given up" in detail.violations[0].description
    here.ledger.attempted("r1", dead="INVALID_ARGUMENT: no")
    dead = mp.ListTriggersRequest(states=[mp.TRIGGER_STATE_DEAD])
    (listed,) = here.stub.ListTriggers(dead).triggers
    assert (listed.request_id, listed.reason) == ("r1", "INVALID_ARGUMENT: no")
    (body,) = [row[0] for row in here.ledger._rows("SELECT body FROM outbox")]
    answer = here.stub.ResendTrigger(again).trigger
    assert (answer.state, answer.reason) == (mp.TRIGGER_STATE_PENDING, "")
    (message,) = here.ledger.pending()
    assert (message.target, message.body) == ("elsewhere", body)
    assert not here.stub.ListTriggers(dead).triggers
    assert here.ledger._rows("SELECT actor, act, subject, remark FROM audit") == [
        ("ann", "resend", "r1", "fixed")
    ]
    unknown = mp.ResendTriggerRequest(request_id="nosuch", actor="ann")
    assert failed(lambda: here.stub.ResendTrigger(unknown))[0] is grpc.StatusCode.NOT_FOUND
