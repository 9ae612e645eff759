"""Triggers as GitHub, GitLab, Jenkins and Airflow runs, over real HTTP."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from pydantic import TypeAdapter

from steadfeast.monitor.config.endpoints import PipelineConfig
from steadfeast.monitor.decisions.model import TriggerState
from steadfeast.monitor.delivery import http_pipelines
from steadfeast.monitor.delivery.http_client import Caller
from steadfeast.monitor.delivery.http_pipelines import pipeline_of
from steadfeast.monitor.delivery.pipeline import RejectedError, RunForgottenError, UnansweredError
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb
from support import http_world
from support.http_world import TOKEN, Api
from support.monitor_world import START, wait_for
from support.outbox_world import World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REQUEST = pb.TriggerRetrainRequest(
    request_id="6b1f0a3e-0000-5000-8000-000000000001",
    model="price",
    contract="c" * 64,
    cause=pb.Cause(summary="drift: x: psi 0.5 over 0.1"),
)
REQUEST.as_of.FromDatetime(START)


@pytest.fixture(params=["Github", "Gitlab", "Jenkins", "Airflow"])
def api(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr(http_pipelines, "POLL_SECONDS", 0.05)
    made = getattr(http_world, request.param)()
    yield made
    made.close()


def target(api: Api, **changes: object) -> http_pipelines.HttpTarget:
    plain = {**api.config, "url": api.url, "token": TOKEN, **changes}
    made = pipeline_of(TypeAdapter(PipelineConfig).validate_python(plain))
    assert isinstance(made, http_pipelines.HttpTarget)
    made._poll_seconds = 0.05
    return made


def test_a_trigger_becomes_one_run_that_knows_why(api: Api):
    here = target(api)
    run = here.trigger(REQUEST)
    again = here.trigger(REQUEST)
    assert (again.run_id, again.state) == (run.run_id, pb.RUN_STATE_QUEUED)
    (told,) = api.told()
    assert told == {
        "request_id": REQUEST.request_id,
        "model": "price",
        "contract": "c" * 64,
        "as_of": "2024-01-01T00:00:00Z",
        "cause": "drift: x: psi 0.5 over 0.1",
    }
    here.close()


@pytest.mark.parametrize(
    ("end", "state"),
    [
        ("done", pb.RUN_STATE_SUCCEEDED),
        ("broken", pb.RUN_STATE_FAILED),
        ("stopped", pb.RUN_STATE_CANCELLED),
    ],
)
def test_a_run_is_followed_to_its_end(api: Api, end: str, state: int):
    here = target(api)
    run = here.trigger(REQUEST)
    events = here.watch(run, 0)
    assert next(events)[0] == 1
    api.state("running")
    sequence, now = next(events)
    assert (sequence, now.state) == (2, pb.RUN_STATE_RUNNING)
    api.state(end)
    ((sequence, now),) = list(here.watch(now, 2))  # resumed
    expected = pb.RUN_STATE_FAILED if (end, api.config["kind"]) == ("stopped", "airflow") else state
    assert (sequence, now.state) == (3, expected)
    assert now.model == "price"
    here.close()


def test_an_answer_that_was_lost_starts_no_second_run(api: Api):
    """The system did it and the answer was a 503: the next delivery finds the run."""
    here = target(api)
    here.trigger(REQUEST)
    api.broken = [503]
    with pytest.raises(UnansweredError, match="503"):
        here.trigger(REQUEST)
    here.trigger(REQUEST)
    assert len(api.runs) == 1
    here.close()


def test_what_is_not_yet_listed_may_start_twice_except_at_airflow(api: Api):
    """Said in the documentation; this test notices when it is no longer so."""
    here = target(api)
    api.listed = False
    assert here.trigger(REQUEST).run_id == REQUEST.request_id
    here.trigger(REQUEST)
    assert len(api.runs) == (1 if api.config["kind"] == "airflow" else 2)
    here.close()


def test_a_run_that_never_shows_is_given_up(api: Api):
    here = target(api)
    api.listed = False
    run = here.trigger(REQUEST)
    run.created_at.FromDatetime(datetime.now(UTC) - http_pipelines.UNSEEN - timedelta(seconds=1))
    with pytest.raises(RunForgottenError, match=REQUEST.request_id):
        list(here.watch(run, 0))
    here.close()


def test_a_wrong_token_is_a_refusal(api: Api):
    here = target(api, token="x" * 5)
    with pytest.raises(RejectedError, match="401"):
        here.trigger(REQUEST)
    assert not api.runs
    here.close()


def test_an_answer_of_another_kind_is_a_refusal(api: Api):
    api.answer = lambda *_: (200, ["nonsense"])  # a proxy's page, say
    here = target(api)
    with pytest.raises(RejectedError, match="not what the API promises"):
        here.trigger(REQUEST)
    here.close()


def test_nobody_there_is_tried_again(api: Api):
    here = target(api, url="http://127.0.0.1:1")
    with pytest.raises(UnansweredError):
        here.trigger(REQUEST)
    here.close()


def test_redirects_are_not_followed(api: Api):
    """The token would go with them."""
    api.answer = lambda *_: (302, None, {"Location": "http://127.0.0.1:1/elsewhere"})
    here = target(api)
    with pytest.raises(RejectedError, match="302"):
        here.trigger(REQUEST)
    here.close()


def test_a_large_answer_is_cut(api: Api, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("steadfeast.monitor.delivery.http_client.MAX_ANSWER_BYTES", 10)
    api.known = lambda _: True
    api.answer = lambda *_: (200, ["x" * 1000])
    caller = Caller(api.url, {})
    answer = caller.get("/")
    assert answer is not None
    assert answer.body is None
    caller.close()


def test_from_the_ledger_to_the_end(api: Api, tmp_path: Path):
    """A committed trigger is delivered, followed, and its end is committed; once over a restart."""
    here = World(tmp_path)
    try:
        plain = {**api.config, "url": api.url, "token": TOKEN}
        config = TypeAdapter(PipelineConfig).validate_python(plain)
        here.config.pipelines["main"] = config
        here.deliver()
        here.fire()
        wait_for(lambda: here.ledger.trigger("r1").state is TriggerState.DELIVERED)
        api.state("running")
        here.outbox.close()
        here.deliver()
        api.state("done")
        wait_for(here.ended, 30)
        run = here.ledger.trigger("r1").run
        assert run is not None
        assert run.state == pb.RUN_STATE_SUCCEEDED
        assert len(api.runs) == 1
        assert "succeeded" in here.ledger.alerts_before(1)[0].summary
        assert here.ledger.held("prices").reference is None  # it does not say that it promoted
    finally:
        here.close()
