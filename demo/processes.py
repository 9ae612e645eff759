"""The demo's two servers, as real processes on free loopback ports."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from steadfeast.featurestore.errors import SteadfeastError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

START_SECONDS = 90
STOP_SECONDS = 30


class ProcessDiedError(SteadfeastError):
    """A server of the demo ended, or did not become healthy; its log says why."""

    def __init__(self, name: str, log: Path) -> None:
        self.name, self.log = name, log
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        super().__init__(f"{name} is not running; the end of {log}:\n{tail}")


def free_addresses(count: int) -> list[str]:
    """Return `count` loopback addresses that nothing listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    return addresses


@contextmanager
def running(
    name: str, command: list[str], address: str, log: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` until the block ends; entered once it is healthy.

    Args:
        name: For messages.
        command: The program and its arguments.
        address: Where the process serves gRPC health.
        log: File that takes what it prints.
        environment: Added to ours.

    Raises:
        ProcessDiedError: It ended, or was not healthy within `START_SECONDS`.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
    try:
        if not _healthy(process, address):
            raise ProcessDiedError(name, log)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _healthy(process: subprocess.Popen[bytes], address: str) -> bool:
    deadline = time.monotonic() + START_SECONDS
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while process.poll() is None and time.monotonic() < deadline:
            try:
                answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=1)
            except grpc.RpcError:
                time.sleep(0.1)
                continue
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return True
            time.sleep(0.1)
    return False
