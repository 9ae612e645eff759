"""A pipeline that is away for an hour of retries, and then answers twice: one run, one ledger."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import grpc

from steadfeast.monitor.delivery.dispatcher import Dispatcher
from steadfeast.monitor.delivery.threads import Backoff
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb
from support import monitor_world as world
from support.daemon_world import SERVED, Here
from support.monitor_world import DAY, wait_for

if TYPE_CHECKING:
    from pathlib import Path

HOUR_OF_RETRIES = 64
"""The first seven take a minute between them, by the waits that are configured; then one each."""
DRIFT_AT = SERVED + 2 * DAY


class Forgetful:
    """Keeps the first run of a request and loses the answer, once."""

    def __init__(self, pipeline: world.Pipeline) -> None:
        self._trigger, self.lost = pipeline.TriggerRetrain, False
        pipeline.TriggerRetrain = self  # type: ignore[method-assign]

    def __call__(self, request: Any, context: Any) -> Any:
        answer = self._trigger(request, context)
        if not self.lost:
            self.lost = True
            context.abort(grpc.StatusCode.UNAVAILABLE, "the answer was lost")
        return answer


def live(folder: Path, *, away: bool) -> tuple[Here, dict[str, Any]]:
    folder.mkdir()
    here = Here(folder)
    here.pipeline._drift_at = DRIFT_AT
    here.daemon.champions.follow()
    world.serve(folder, SERVED, 6, DRIFT_AT)
    here.daemon.evaluate("")
    (message,) = here.ledger.pending()
    if away:
        Forgetful(here.pipeline)
        here.server.stop()
    for _ in range(3 if away else 1):  # a restart of the daemon in between, and another
        outbox = Dispatcher(here.ledger, here.daemon.evaluator, Backoff(first=0.01, most=0.02))
        outbox.start()
        if away:
            before = here.ledger.pending()[0].attempts
            wait_for(
                lambda before=before: (
                    here.ledger.pending()[0].attempts > before + HOUR_OF_RETRIES // 3
                )
            )
            assert not outbox.problem()
            outbox.close()
    if away:
        here.server.start()
        outbox = Dispatcher(here.ledger, here.daemon.evaluator, Backoff(first=0.01, most=0.02))
        outbox.start()
    wait_for(lambda: [run.state for run in here.pipeline.runs()] == [pb.RUN_STATE_PROMOTED])
    wait_for(lambda: not here.ledger.following() and not here.ledger.pending())
    outbox.close()
    assert here.pipeline.bodies()[0].request_id == message.request_id
    (trigger,) = [one for one in here.daemon.state().triggers if one.run is not None]
    assert not away or trigger.attempts > HOUR_OF_RETRIES
    here.close()
    here.server.stop()
    return here, world.ledger(folder)


def test_an_hour_away_and_two_answers_are_one_run(tmp_path: Path):
    _, undisturbed = live(tmp_path / "undisturbed", away=False)
    here, found = live(tmp_path / "away", away=True)
    assert here.pipeline.calls == 2
    for name, rows in undisturbed.items():
        assert found[name] == rows, name


def test_an_hour_is_as_many_retries_as_the_test_takes():
    """Without jitter, the waits of the outbox come to an hour after so many failures."""
    backoff = Backoff()
    waits = (min(backoff.most, backoff.first * 2**attempt) for attempt in itertools.count())
    total = itertools.accumulate(waits)
    assert sum(1 for _ in itertools.takewhile(lambda seconds: seconds < 3600, total)) < 70
