"""The daemon's gRPC edge: protobuf in, one call inside, protobuf out.

Above `outbox`. Alerts are read from the ledger page by page, each reader at its own pace: what
a reader has not yet fetched costs no memory here, and a slow one holds nobody.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from threading import Event, Lock
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from steadfeast.featurestore.errors import NotFoundError
from steadfeast.featurestore.security import Ports, Role, Security
from steadfeast.monitor.ledger import messages
from steadfeast.monitor.rpc.errors import (
    BehindError,
    ShuttingDownError,
    TooManyWatchersError,
    between,
    errors,
    required,
)
from steadfeast.protos.steadfeast.v1 import monitor_pb2, monitor_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import grpc
    from starlette.types import ASGIApp

    from steadfeast.monitor.ledger import Ledger, State, TriggerRecord

SERVICE = monitor_pb2.DESCRIPTOR.services_by_name["MonitorService"].full_name

WORKERS = 576
MAX_WATCHERS = 512
"""Open WatchAlerts streams; each holds one worker, and the rest stay for unary calls."""
MAX_BEHIND = 10_000
"""Alerts that a reader may be behind once it has caught up."""
PAGE = 256
MAX_REQUEST_BYTES = 64 * 1024
"""No request of the protocol is longer than a comment."""


class Decide(Protocol):
    """A person's word on a trigger that waits."""

    def __call__(self, request: str, *, yes: bool, actor: str, comment: str) -> TriggerRecord:
        """See `Evaluator.decide`."""


class Resend(Protocol):
    """A person's word that a trigger that was given up is to be delivered again."""

    def __call__(self, request: str, *, actor: str, comment: str) -> TriggerRecord:
        """See `Evaluator.resend`."""


_TRIGGERS = {number: state for state, number in messages.TRIGGERS.items()}


class Monitor(monitor_pb2_grpc.MonitorServiceServicer):
    """MonitorService over one ledger.

    Args:
        ledger: Read page by page for alerts, written by acknowledgements.
        state: The last committed state with the daemon's own part; cheap.
        evaluate: Evaluates one monitor, or all for an empty name, and returns the buckets.
        decide: Approves or rejects; see `Evaluator.decide`.
        resend: Delivers again what was given up; see `Evaluator.resend`.
    """

    def __init__(
        self,
        ledger: Ledger,
        state: Callable[[], State],
        evaluate: Callable[[str], int],
        decide: Decide,
        resend: Resend,
    ) -> None:
        self._ledger, self._state = ledger, state
        self._evaluate, self._decide, self._resend = evaluate, decide, resend
        self._stopping = Event()
        self._watchers = 0
        self._watchers_lock = Lock()

    def stop(self) -> None:
        """End every stream at its next wake-up."""
        self._stopping.set()
        with self._ledger.changed:
            self._ledger.changed.notify_all()

    def GetStatus(  # noqa: N802 - the protocol's name
        self, request: monitor_pb2.GetStatusRequest, context: grpc.ServicerContext
    ) -> monitor_pb2.GetStatusResponse:
        """See monitor.proto."""
        with errors(context):
            state = self._state()
            known = self._named(request.monitor, state)
            return monitor_pb2.GetStatusResponse(
                monitors=[messages.status(state.monitors[name]) for name in known],
                open_episodes=[
                    messages.episode(e) for e in state.episodes if e.open and e.monitor in known
                ],
                triggers=[messages.trigger(t) for t in state.triggers if t.monitor in known],
                promotions=[
                    messages.promotion(one) for one in state.promotions if one.monitor in known
                ],
                latest_event=messages.timestamp(state.latest_event),
                idle=state.idle,
            )

    def Evaluate(  # noqa: N802
        self, request: monitor_pb2.EvaluateRequest, context: grpc.ServicerContext
    ) -> monitor_pb2.EvaluateResponse:
        """See monitor.proto."""
        with errors(context):
            self._named(request.monitor, self._state())
            return monitor_pb2.EvaluateResponse(buckets=self._evaluate(request.monitor))

    def Acknowledge(  # noqa: N802
        self, request: monitor_pb2.AcknowledgeRequest, context: grpc.ServicerContext
    ) -> monitor_pb2.AcknowledgeResponse:
        """See monitor.proto."""
        with errors(context):
            required("actor", request.actor)
            record = self._ledger.acknowledge(request.episode_id, request.actor, request.comment)
            return monitor_pb2.AcknowledgeResponse(episode=messages.episode(record))

    def DecideTrigger(  # noqa: N802
        self, request: monitor_pb2.DecideTriggerRequest, context: grpc.ServicerContext
    ) -> monitor_pb2.DecideTriggerResponse:
        """See monitor.proto."""
        with errors(context):
            required("actor", request.actor)
            record = self._decide(
                request.request_id,
                yes=request.approve,
                actor=request.actor,
                comment=request.comment,
            )
            return monitor_pb2.DecideTriggerResponse(trigger=messages.trigger(record))

    def ResendTrigger(  # noqa: N802
        self, request: monitor_pb2.ResendTriggerRequest, context: grpc.ServicerContext
    ) -> monitor_pb2.ResendTriggerResponse:
        """See monitor.proto."""
        with errors(context):
            required("actor", request.actor)
            record = self._resend(request.request_id, actor=request.actor, comment=request.comment)
            return monitor_pb2.ResendTriggerResponse(trigger=messages.trigger(record))

    def ListTriggers(  # noqa: N802
        self, request: monitor_pb2.ListTriggersRequest, context: grpc.ServicerContext
    ) -> monitor_pb2.ListTriggersResponse:
        """See monitor.proto."""
        with errors(context):
            self._named(request.monitor, self._state())
            limit = between("limit", request.limit or 100, 1, 1000)
            found = self._ledger.triggers(
                int(limit), request.monitor, [_TRIGGERS[number] for number in request.states]
            )
            return monitor_pb2.ListTriggersResponse(triggers=map(messages.trigger, found))

    def ListAlerts(  # noqa: N802
        self, request: monitor_pb2.ListAlertsRequest, context: grpc.ServicerContext
    ) -> monitor_pb2.ListAlertsResponse:
        """See monitor.proto."""
        with errors(context):
            self._named(request.monitor, self._state())
            limit = between("limit", request.limit or 100, 1, 1000)
            alerts = self._ledger.alerts_before(int(limit), request.monitor)
            return monitor_pb2.ListAlertsResponse(alerts=map(messages.alert, alerts))

    def ListAudit(  # noqa: N802
        self, request: monitor_pb2.ListAuditRequest, context: grpc.ServicerContext
    ) -> monitor_pb2.ListAuditResponse:
        """See monitor.proto."""
        with errors(context):
            limit = int(between("limit", request.limit or 100, 1, 1000))
            after = request.after_sequence
            if after < 0:
                after = max(0, self._ledger.last_audit() - limit)
            entries = self._ledger.audit(after, limit)
            return monitor_pb2.ListAuditResponse(entries=map(messages.audit, entries))

    def WatchAlerts(  # noqa: N802
        self, request: monitor_pb2.WatchAlertsRequest, context: grpc.ServicerContext
    ) -> Iterator[monitor_pb2.WatchAlertsResponse]:
        """See monitor.proto."""
        with errors(context), self._watcher():
            seconds = 10.0
            if request.HasField("heartbeat_interval"):
                asked = request.heartbeat_interval.ToTimedelta().total_seconds()
                seconds = between("heartbeat_interval", asked, 0.1, 60)
            after = int(between("after_sequence", request.after_sequence, 0, 2**62))
            context.add_callback(self._wake)
            yield from self._watch(context, after, seconds)

    def _watch(
        self, context: grpc.ServicerContext, position: int, heartbeat_seconds: float
    ) -> Iterator[monitor_pb2.WatchAlertsResponse]:
        caught_up, beat = False, 0.0
        while context.is_active():
            if self._stopping.is_set():
                raise ShuttingDownError
            page = self._ledger.alerts(position, PAGE)
            last = self._ledger.last_sequence()
            if caught_up and last - position > MAX_BEHIND:
                raise BehindError(position, MAX_BEHIND)
            for alert in page:
                position = alert.sequence
                yield monitor_pb2.WatchAlertsResponse(
                    alert=messages.alert(alert), last_sequence=last
                )
            if page:
                beat = monotonic() + heartbeat_seconds
                continue
            caught_up = True
            if monotonic() >= beat:
                # The first comes at once, so that a reader knows that it is connected.
                yield monitor_pb2.WatchAlertsResponse(last_sequence=last)
                beat = monotonic() + heartbeat_seconds
            with self._ledger.changed:
                quiet = self._ledger.last_sequence() == position or position > last
                if quiet and context.is_active() and not self._stopping.is_set():
                    self._ledger.changed.wait(max(0.0, beat - monotonic()))

    def _wake(self) -> None:
        with self._ledger.changed:
            self._ledger.changed.notify_all()

    @contextmanager
    def _watcher(self) -> Iterator[None]:
        with self._watchers_lock:
            if self._watchers >= MAX_WATCHERS:
                raise TooManyWatchersError(MAX_WATCHERS)
            self._watchers += 1
        try:
            yield
        finally:
            with self._watchers_lock:
                self._watchers -= 1

    @staticmethod
    def _named(monitor: str, state: State) -> list[str]:
        if not monitor:
            return list(state.monitors)
        if monitor not in state.monitors:
            raise NotFoundError("monitor", monitor, state.monitors)
        return [monitor]


ROLES = {
    f"{SERVICE}/{name}": role
    for name, role in (
        ("GetStatus", Role.READ),
        ("ListAlerts", Role.READ),
        ("ListAudit", Role.AUDIT),
        ("ListTriggers", Role.READ),
        ("WatchAlerts", Role.READ),
        ("Acknowledge", Role.ACKNOWLEDGE),
        ("DecideTrigger", Role.APPROVE),
        ("Evaluate", Role.TRIGGER),
        ("ResendTrigger", Role.TRIGGER),
    )
}
"""What each method needs."""


def ports(
    monitor: Monitor,
    grpc_address: str,
    security: Security | None = None,
    http_address: str = "",
    app: ASGIApp | None = None,
) -> Ports:
    """Return the ports of a daemon, bound.

    Args:
        monitor: Answers gRPC.
        grpc_address: `host:port`; port 0 takes a free one.
        security: Who may ask what; without it, everybody on loopback.
        http_address: The same for HTTP; empty for none.
        app: Answers HTTP.

    Raises:
        AddressError: See `Ports`.
    """
    return Ports(
        security or Security(),
        roles=ROLES,
        services=partial(monitor_pb2_grpc.add_MonitorServiceServicer_to_server, monitor),
        names=(SERVICE,),
        grpc_address=grpc_address,
        http_address=http_address,
        app=app,
        threads=WORKERS,
        request_bytes=MAX_REQUEST_BYTES,
        plain=True,
        stopping=monitor.stop,
    )
