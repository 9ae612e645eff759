"""500 readers of alerts over real gRPC, half of which never read."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from steadfeast.featurestore.security import Ports
from steadfeast.featurestore.security.grpc_guard import MAX_OPEN_TO_ALL
from steadfeast.monitor.config.schema import MonitorConfig
from steadfeast.monitor.decisions.model import Alert, AlertKind, Severity
from steadfeast.monitor.ledger.ledger import Ledger
from steadfeast.monitor.rpc.service import Monitor, ports
from steadfeast.protos.steadfeast.v1 import monitor_pb2 as mp
from steadfeast.protos.steadfeast.v1 import monitor_pb2_grpc
from support.monitor_world import DAY, START, wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from steadfeast.featurestore.security import Ports

CONFIG = {"w": MonitorConfig(service="s", model="m")}
READERS, CONNECTIONS, ALERTS = 500, 10, 8


def served(stack: ExitStack, folder: Path) -> tuple[Ledger, Monitor, Ports]:
    """Serve an empty ledger until `stack` is closed."""
    ledger = stack.enter_context(Ledger(folder))

    def nothing(request: str, **_: object):
        return ledger.trigger(request)

    monitor = Monitor(ledger, lambda: ledger.state(CONFIG), lambda _: 0, nothing, nothing)
    server = stack.enter_context(ports(monitor, "127.0.0.1:0"))
    return ledger, monitor, server


def connected(stack: ExitStack, server: Ports) -> grpc.Channel:
    """Return a channel with a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    return stack.enter_context(
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options=options)
    )


def test_stalled_readers_hold_nobody(tmp_path: Path):
    """Every reader that reads gets every alert in order; unary calls are answered meanwhile."""
    with ExitStack() as stack:
        ledger, monitor, server = served(stack, tmp_path)
        stubs = [
            monitor_pb2_grpc.MonitorServiceStub(connected(stack, server))
            for _ in range(CONNECTIONS)
        ]
        streams = [
            stubs[n % CONNECTIONS].WatchAlerts(mp.WatchAlertsRequest()) for n in range(READERS)
        ]
        wait_for(lambda: monitor._watchers == READERS, 60)
        got: dict[int, list[int]] = {n: [] for n in range(0, READERS, 2)}

        def read(number: int) -> None:
            try:
                for event in streams[number]:
                    if event.HasField("alert"):
                        got[number].append(event.alert.sequence)
            except grpc.RpcError:
                return

        threads = [threading.Thread(target=read, args=[n], daemon=True) for n in got]
        for thread in threads:
            thread.start()
        said = "x" * 10_000  # so that what nobody reads fills the window of flow control
        for _ in range(ALERTS):
            at = START + DAY
            with ledger.transaction():
                ledger.add_alerts(
                    [Alert(AlertKind.EPISODE, Severity.WARNING, "w", at, said, {"e": said})]
                )
        began = time.monotonic()
        assert stubs[0].GetStatus(mp.GetStatusRequest(), timeout=30).idle is False
        assert time.monotonic() - began < 30
        wait_for(lambda: all(len(seen) == ALERTS for seen in got.values()), 90)
        assert all(seen == list(range(1, ALERTS + 1)) for seen in got.values())
        for stream in streams:
            stream.cancel()
        for thread in threads:
            thread.join()
        wait_for(lambda: monitor._watchers == 0, 30)


def test_a_connection_holds_a_bounded_number_of_streams(tmp_path: Path):
    """What is over waits, and who comes by another connection is answered meanwhile."""
    with ExitStack() as stack:
        _, _, server = served(stack, tmp_path)
        crowded, other = connected(stack, server), connected(stack, server)
        status = monitor_pb2_grpc.MonitorServiceStub(crowded).GetStatus
        assert status(mp.GetStatusRequest(), timeout=30).idle is False
        watch = health_pb2_grpc.HealthStub(crowded).Watch
        streams = [watch(health_pb2.HealthCheckRequest()) for _ in range(4 * MAX_OPEN_TO_ALL)]
        answered = 0
        for stream in streams:
            try:
                next(stream)
                answered += 1
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # noqa: PT017
        assert answered == MAX_OPEN_TO_ALL
        elsewhere = monitor_pb2_grpc.MonitorServiceStub(other).GetStatus
        assert elsewhere(mp.GetStatusRequest(), timeout=30).idle is False
        for stream in streams:
            stream.cancel()
        assert status(mp.GetStatusRequest(), timeout=30, wait_for_ready=True).idle is False
