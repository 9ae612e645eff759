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


def _request(port: int, service: str, keys: list[int]) -> bytes:
    body = json.dumps({"feature_service": service, "entities": {"key": keys}}).encode()
    head = (
        f"POST /get-online-features HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class _Connection:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.data, self.needed, self.began = bytearray(), 0, 0

    def send(self, request: bytes) -> None:
        self.data.clear()
        self.needed = 0
        self.began = time.perf_counter_ns()
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
    selector = selectors.DefaultSelector()
    idle = [_Connection(port) for _ in range(connections)]
    for connection in idle:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
    for request in requests[:8]:  # warm
        idle[0].send(request)
        while not idle[0].finished():
            pass
    taken: list[int] = []
    began = time.perf_counter()
    for number, connection in enumerate(idle):
        connection.send(requests[number])
    waiting, sent = len(idle), len(idle)
    while waiting:
        for key, _ in selector.select(timeout=30):
            connection = key.data
            if not connection.finished():
                continue
            taken.append(time.perf_counter_ns() - connection.began)
            if time.perf_counter() - began < seconds and sent < most:
                connection.send(requests[sent % len(requests)])
                sent += 1
            else:
                waiting -= 1
    elapsed = time.perf_counter() - began
    for connection in idle:
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
