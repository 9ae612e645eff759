"""PipelineService over real gRPC on loopback, as the monitor calls it."""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status

from steadfeast.featurestore.errors import AddressError
from steadfeast.pipeline.config import load
from steadfeast.pipeline.queue import RunQueue, canonical
from steadfeast.pipeline.registry import Registry
from steadfeast.pipeline.server.service import ROLES, SERVICE, Server
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb
from steadfeast.protos.steadfeast.v1 import pipeline_pb2_grpc as rpc
from support.shop_world import MODEL, at, configure, trigger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECONDS = 20


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return configure(tmp_path)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[RunQueue]:
    with RunQueue(tmp_path / "runs.db") as made:
        yield made


@pytest.fixture
def channel(config: Path, queue: RunQueue) -> Iterator[grpc.Channel]:
    """To a server with nobody working on its runs: a test decides what happens to them."""
    with (
        Server(load(config)[0], queue, Registry.open(load(config)[0])) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as opened,
    ):
        yield opened


@pytest.fixture
def stub(channel: grpc.Channel) -> rpc.PipelineServiceStub:
    return rpc.PipelineServiceStub(channel)


def refused(call, request, detail: type):
    """Make a call that must fail; return its code and its one detail of type `detail`."""
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=SECONDS)
    (packed,) = rpc_status.from_call(caught.value).details
    unpacked = detail()
    assert packed.Unpack(unpacked)
    return caught.value.code(), unpacked


def test_a_trigger_is_kept_before_it_is_answered_and_once(stub, queue):
    request = trigger(at(40), contract="c" * 64)
    answer = stub.TriggerRetrain(request, timeout=SECONDS)
    assert answer.created
    assert queue.get(answer.run.run_id) == answer.run
    again = stub.TriggerRetrain(request, timeout=SECONDS)
    assert (again.created, again.run) == (False, answer.run)
    assert (
        stub.GetRun(pb.GetRunRequest(run_id=answer.run.run_id), timeout=SECONDS).run == answer.run
    )


def test_another_body_for_the_same_id_is_already_exists_with_the_first_hash(stub, queue):
    request = trigger(at(40))
    run = stub.TriggerRetrain(request, timeout=SECONDS).run
    code, info = refused(
        stub.TriggerRetrain, trigger(at(41), request.request_id), error_details_pb2.ErrorInfo
    )
    assert code == grpc.StatusCode.ALREADY_EXISTS
    assert info.metadata["accepted_sha256"] == canonical(request)[1]
    assert info.metadata["run_id"] == run.run_id
    assert len(queue.runs()) == 1


WINDOW = pb.Window()
WINDOW.start.FromDatetime(at(2))
WINDOW.end.FromDatetime(at(1))


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (pb.TriggerRetrainRequest(), ["request_id", "model", "as_of", "cause.kind"]),
        (trigger(at(1), "7"), ["request_id"]),
        (trigger(at(1), contract="abc"), ["contract"]),
        (trigger(at(1), cause=pb.Cause(current=WINDOW)), ["cause.current"]),
        (trigger(at(1), cause=pb.Cause(reference=WINDOW)), ["cause.reference"]),
    ],
)
def test_a_malformed_trigger_names_every_field_and_stores_nothing(stub, queue, request_, fields):
    code, bad = refused(stub.TriggerRetrain, request_, error_details_pb2.BadRequest)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in bad.field_violations] == fields
    assert queue.runs() == []


def test_what_is_not_there_is_not_found(stub, queue):
    unknown = trigger(at(40))
    unknown.model = "sail"
    calls = [
        (stub.TriggerRetrain, unknown, ("model", "sail")),
        (stub.GetRun, pb.GetRunRequest(run_id="r"), ("run", "r")),
        (stub.CancelRun, pb.CancelRunRequest(run_id="r"), ("run", "r")),
        (
            lambda r, timeout: [*stub.WatchRun(r, timeout=timeout)],
            pb.WatchRunRequest(run_id="r"),
            ("run", "r"),
        ),
    ]
    for call, request, (kind, name) in calls:
        code, info = refused(call, request, error_details_pb2.ResourceInfo)
        assert code == grpc.StatusCode.NOT_FOUND
        assert (info.resource_type, info.resource_name) == (kind, name)
    assert queue.runs() == []


def test_runs_are_listed_last_changed_first(stub, queue):
    ids = [queue.accept(trigger(at(day)))[0].run_id for day in range(3)]
    queue.finish(ids[0], pb.RUN_STATE_PROMOTED)

    def listed(**fields):
        request = pb.ListRunsRequest(**fields)
        return [run.run_id for run in stub.ListRuns(request, timeout=SECONDS).runs]

    assert listed() == [ids[0], ids[2], ids[1]]
    assert listed(limit=1) == [ids[0]]
    assert listed(states=[pb.RUN_STATE_QUEUED]) == [ids[2], ids[1]]
    assert listed(model=MODEL, states=[pb.RUN_STATE_PROMOTED]) == [ids[0]]
    assert listed(model="sail") == []
    for limit in (-1, 1001):
        code, bad = refused(
            stub.ListRuns, pb.ListRunsRequest(limit=limit), error_details_pb2.BadRequest
        )
        assert (code, bad.field_violations[0].field) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "limit",
        )


def test_cancelling_ends_a_queued_run_and_not_one_that_has_ended(stub, queue):
    run, _ = queue.accept(trigger(at(40)))
    request = pb.CancelRunRequest(run_id=run.run_id, reason="no need")
    cancelled = stub.CancelRun(request, timeout=SECONDS).run
    assert (cancelled.state, cancelled.reason) == (pb.RUN_STATE_CANCELLED, "no need")
    code, failure = refused(stub.CancelRun, request, error_details_pb2.PreconditionFailure)
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert failure.violations[0].subject == run.run_id


def test_a_watcher_sees_every_change_and_then_the_end(stub, queue):
    run, _ = queue.accept(trigger(at(40)))
    stream = stub.WatchRun(pb.WatchRunRequest(run_id=run.run_id), timeout=SECONDS)
    first = next(stream)
    assert (first.sequence, first.run.state) == (1, pb.RUN_STATE_QUEUED)
    queue.claim()
    assert next(stream).run.state == pb.RUN_STATE_RUNNING
    queue.finish(run.run_id, pb.RUN_STATE_REFUSED, "a gate")
    last = next(stream)
    assert (last.sequence, last.run) == (3, queue.get(run.run_id))
    assert [*stream] == []
    assert stream.code() == grpc.StatusCode.OK


def test_a_watcher_resumes_where_it_was(stub, queue):
    run, _ = queue.accept(trigger(at(40)))
    queue.claim()
    queue.finish(run.run_id, pb.RUN_STATE_PROMOTED)
    for after in range(5):
        request = pb.WatchRunRequest(run_id=run.run_id, after_sequence=after)
        seen = [event.sequence for event in stub.WatchRun(request, timeout=SECONDS)]
        assert seen == [1, 2, 3][after:]


def test_heartbeats_repeat_the_last_sequence_while_nothing_happens(stub, queue):
    run, _ = queue.accept(trigger(at(40)))
    request = pb.WatchRunRequest(
        run_id=run.run_id, after_sequence=1, heartbeat_interval=Duration(nanos=100_000_000)
    )
    stream = stub.WatchRun(request, timeout=SECONDS)
    for _ in range(3):
        beat = next(stream)
        assert (beat.sequence, beat.HasField("run")) == (1, False)
    queue.finish(run.run_id, pb.RUN_STATE_FAILED, "so it goes")
    assert [event.sequence for event in stream if event.HasField("run")] == [2]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"heartbeat_interval": Duration(nanos=1000)}, "heartbeat_interval"),
        ({"heartbeat_interval": Duration(seconds=61)}, "heartbeat_interval"),
        ({"after_sequence": -1}, "after_sequence"),
    ],
)
def test_a_watch_that_cannot_be_is_refused(stub, queue, fields, field):
    run, _ = queue.accept(trigger(at(40)))
    code, bad = refused(
        lambda r, timeout: [*stub.WatchRun(r, timeout=timeout)],
        pb.WatchRunRequest(run_id=run.run_id, **fields),
        error_details_pb2.BadRequest,
    )
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in bad.field_violations] == [field]


def test_stopping_ends_streams_so_that_they_resume_elsewhere(config, queue):
    """A run goes on after a restart; its watcher is told where to go on from."""
    run, _ = queue.accept(trigger(at(40)))
    with ExitStack() as stack:
        server = stack.enter_context(Server(load(config)[0], queue, Registry.open(load(config)[0])))
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            stub = rpc.PipelineServiceStub(channel)
            stream = stub.WatchRun(pb.WatchRunRequest(run_id=run.run_id), timeout=SECONDS)
            assert next(stream).sequence == 1
            stack.close()
            with pytest.raises(grpc.RpcError) as caught:
                next(stream)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == "the pipeline is stopping; resume after sequence 1"


def test_health_and_reflection_are_there(channel):
    for service in ("", SERVICE):
        answer = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service=service), timeout=SECONDS
        )
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert SERVICE in ProtoReflectionDescriptorDatabase(channel).get_services()


@pytest.mark.parametrize("where", ["cause.summary", "model", "cause.features.0.feature"])
def test_words_that_forge_lines_are_refused_at_the_edge(stub, queue, where):
    request = trigger(at(40))
    request.cause.features.add(feature="x")
    part = request.cause.features[0] if "features" in where else request
    part = request.cause if where == "cause.summary" else part
    setattr(part, where.rpartition(".")[2], "all is well\n2026-01-01 promoted")
    code, bad = refused(stub.TriggerRetrain, request, error_details_pb2.BadRequest)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in bad.field_violations] == [where]
    assert queue.runs() == []


def test_a_trigger_is_no_larger_than_a_run_may_keep(stub, queue):
    request = trigger(at(40))
    request.cause.summary = "x" * 300_000
    with pytest.raises(grpc.RpcError) as caught:
        stub.TriggerRetrain(request, timeout=SECONDS)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert queue.runs() == []


def test_every_method_has_a_role():
    """A method that somebody adds is refused until it is given one."""
    service = pb.DESCRIPTOR.services_by_name["PipelineService"]
    assert set(ROLES) == {f"{SERVICE}/{method.name}" for method in service.methods}


def test_a_promotion_over_the_wire_is_refused_by_name(stub):
    for request, said in (
        (pb.PromoteVersionRequest(model=MODEL, version="1"), "actor: is empty"),
        (pb.PromoteVersionRequest(model="nosuch", version="1", actor="ann"), "'nosuch'"),
        (pb.PromoteVersionRequest(model=MODEL, version="7", actor="ann"), "'7'"),
    ):
        with pytest.raises(grpc.RpcError, match=re.escape(said)):
            stub.PromoteVersion(request, timeout=SECONDS)
    with pytest.raises(grpc.RpcError) as caught:
        stub.RollBack(pb.RollBackRequest(model=MODEL, actor="ann"), timeout=SECONDS)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("grpc_", ["0.0.0.0:0", "192.0.2.1:0", "example.org:0"])
def test_an_address_that_is_not_loopback_is_refused(tmp_path, queue, grpc_):
    path = configure(tmp_path, grpc=grpc_)
    with pytest.raises(AddressError, match=r"is no loopback address.*security\.tls"):
        Server(load(path)[0], queue, Registry.open(load(path)[0]))


def test_a_port_that_is_taken_is_refused(config, tmp_path, queue):
    with Server(load(config)[0], queue, Registry.open(load(config)[0])) as server:
        path = configure(tmp_path, "second.yaml", grpc=f"127.0.0.1:{server.grpc_port}")
        with pytest.raises(AddressError, match="is taken"):
            Server(load(path)[0], queue, Registry.open(load(path)[0]))
