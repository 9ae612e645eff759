"""A bounded load on a feature server over loopback: raw sockets that are kept open.

Run in a process of its own, so that what is measured is the server.
"""

from __future__ import annotations

import json
import selectors
import socket
import statistics
import sys
import time
from typing import Any

Steps = list[tuple[int, list[bytes]]]


def post(port: int, path: str, body: object) -> bytes:
    """Return a request as it goes over the wire."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def _request(port: int, service: str, keys: list[int]) -> bytes:
    return post(
        port, "/get-online-features", {"feature_service": service, "entities": {"key": keys}}
    )


class _Connection:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.data, self.needed = bytearray(), 0

    def send(self, request: bytes) -> None:
        self.data.clear()
        self.needed = 0
        self.socket.sendall(request)

    def finished(self) -> bool:
        """Take in what has come; say whether the response is whole."""
        received = self.socket.recv(1 << 18)
        if not received:
            raise ConnectionError("the server closed the connection")
        self.data += received
        if not self.needed:
            end = self.data.find(b"\r\n\r\n")
            if end < 0:
                return False
            head = bytes(self.data[:end]).lower()
            if not head.startswith(b"http/1.1 200"):
                raise ConnectionError(bytes(self.data[:300]).decode(errors="replace"))
            length = head.split(b"content-length:")[1].split(b"\r\n")[0]
            self.needed = end + 4 + int(length)
        return len(self.data) >= self.needed


def load(
    port: int, service: str, rows: int, *, keys: int, connections: int, seconds: float, most: int
) -> dict[str, Any]:
    """Ask for `seconds` or `most` times; return requests/s, p50 and p99 in milliseconds."""
    requests = [
        _request(port, service, [(start * 7919 + i * 31) % keys for i in range(rows)])
        for start in range(64)
    ]
    return run([(port, requests)], connections=connections, seconds=seconds, most=most)


class _Client:
    """One client, with a connection to each server that it asks in turn."""

    def __init__(self, ports: list[int]) -> None:
        self.connections = [_Connection(port) for port in ports]
        self.began, self.step, self.number = 0, 0, 0

    def begin(self, steps: Steps, number: int) -> None:
        self.began, self.step, self.number = time.perf_counter_ns(), 0, number
        self.send(steps)

    def send(self, steps: Steps) -> None:
        requests = steps[self.step][1]
        self.connections[self.step].send(requests[self.number % len(requests)])

    def finished(self, steps: Steps) -> bool:
        """Take in what has come; ask the next server; say whether the last has answered."""
        if not self.connections[self.step].finished():
            return False
        self.step += 1
        if self.step == len(steps):
            return True
        self.send(steps)
        return False


def run(  # noqa: C901 - one loop, as short as it can be beside what it measures
    steps: Steps, *, connections: int, seconds: float, most: int
) -> dict[str, Any]:
    """Ask each server of `steps` in turn, again and again; figures as of `load`.

    Args:
        steps: Port of a server, and the requests that it is sent in turn.
        connections: Clients at once.
        seconds: How long.
        most: At most so many times.
    """
    clients = [_Client([port for port, _ in steps]) for _ in range(connections)]
    selector = selectors.DefaultSelector()
    for client in clients:
        for connection in client.connections:
            selector.register(connection.socket, selectors.EVENT_READ, client)
    for number in range(8):  # warm
        clients[0].begin(steps, number)
        while not clients[0].finished(steps):
            pass
    taken: list[int] = []
    began = time.perf_counter()
    for number, client in enumerate(clients):
        client.begin(steps, number)
    waiting, sent = len(clients), len(clients)
    while waiting:
        for key, _ in selector.select(timeout=30):
            client = key.data
            if not client.finished(steps):
                continue
            taken.append(time.perf_counter_ns() - client.began)
            if time.perf_counter() - began < seconds and sent < most:
                client.begin(steps, sent)
                sent += 1
            else:
                waiting -= 1
    elapsed = time.perf_counter() - began
    for client in clients:
        for connection in client.connections:
            connection.socket.close()
    taken.sort()
    return {
        "rate": len(taken) / elapsed,
        "p50": statistics.median(taken) / 1e6,
        "p99": taken[len(taken) * 99 // 100] / 1e6,
        "requests": len(taken),
    }


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    sys.stdout.write(json.dumps(load(**given)))
