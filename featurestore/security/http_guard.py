"""What every HTTP request passes: limits that no client gets round, and the host that it is for.

Above `access`, below `ports`. A connection that waits for its client costs little and is the first
to go: where there are too many, the one that waits longest is closed, so that whoever sends a
whole request is heard. Probes and `/metrics` are answered by the event loop, which nothing blocks.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from starlette.responses import PlainTextResponse
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from steadfeast.featurestore.security.access import RefusedError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Collection

    from starlette.types import ASGIApp, Receive, Scope, Send

    from steadfeast.featurestore.security.access import Access
    from steadfeast.featurestore.security.config import Role

HEADER_SECONDS = 10.0
"""In which the head of a request has to arrive, on a new connection and on one that is kept."""
BODY_SECONDS = 30.0
"""In which its body has to arrive, and in which a client has to take what it is sent."""
MAX_HEADER_BYTES = 16 * 1024
MAX_CONNECTIONS = 512
MAX_CLIENT_CONNECTIONS = 256
"""Of one address."""

PRIVATE = (".localhost", ".local", ".internal", ".svc", ".svc.cluster.local", ".home.arpa")
"""Zones in which no stranger on the internet has a name."""


class Connections:
    """The HTTP connections of one server; only its event loop comes here."""

    def __init__(self) -> None:
        self._waiting: dict[Connection, float] = {}
        self._clients: Counter[str] = Counter()

    def opened(self, client: str) -> bool:
        """Count a connection, at the cost of one that waits; false where none does."""
        if self._clients[client] >= MAX_CLIENT_CONNECTIONS:
            room = self._close_oldest(client)
        else:
            room = self._clients.total() < MAX_CONNECTIONS or self._close_oldest()
        if room:
            self._clients[client] += 1
        return room

    def closed(self, connection: Connection) -> None:
        """Count a connection no more."""
        self._waiting.pop(connection, None)
        self._clients[connection.address] -= 1
        if not self._clients[connection.address]:
            del self._clients[connection.address]

    def waits(self, connection: Connection, until: float) -> None:
        """Note that nothing goes on before the client sends more, and how long it may take."""
        self._waiting.pop(connection, None)
        self._waiting[connection] = until  # at the end: it waits for the shortest time

    def works(self, connection: Connection) -> None:
        """Note that a whole request has arrived."""
        self._waiting.pop(connection, None)

    def sweep(self, now: float) -> None:
        """Close what has waited for too long."""
        for connection in [one for one, until in self._waiting.items() if until < now]:
            connection.end()

    def _close_oldest(self, client: str | None = None) -> bool:
        for connection in self._waiting:
            if client in {None, connection.address}:
                connection.end()
                return True
        return False


class Connection(HttpToolsProtocol):
    """One connection, with its limits.

    Args:
        among: All of the server's.

    Attributes:
        address: Of the client.
    """

    def __init__(self, among: Connections, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.address = ""
        self._among, self._counted, self._in_head, self._head_bytes = among, False, True, 0
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Count it, or close it where there is no room."""
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        if not self._among.opened(self.address):
            transport.abort()
            return
        self._counted = True
        self._among.waits(self, self.loop.time() + HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it no more."""
        self._release()
        super().connection_lost(exc)

    def end(self) -> None:
        """Close it now."""
        self._release()
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read on, as far as a head may be long."""
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEADER_BYTES:
            self.send_400_response("")

    def on_headers_complete(self) -> None:
        """Give the body its time."""
        if self._head_bytes > MAX_HEADER_BYTES:  # or the body's first bytes are among them
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > MAX_HEADER_BYTES:
                raise _HeadTooLongError
        self._in_head, self._head_bytes = False, 0
        self._among.waits(self, self.loop.time() + BODY_SECONDS)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Wait for the client no more."""
        self._in_head = True
        self._among.works(self)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        if self._counted and self._in_head and self.cycle.response_complete:
            self._among.waits(self, self.loop.time() + HEADER_SECONDS)

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong with a request that cannot be read."""
        if self._head_bytes > MAX_HEADER_BYTES:
            msg = f"The head of the request is longer than {MAX_HEADER_BYTES} bytes."
        if not self.transport.is_closing():
            super().send_400_response(msg)

    def pause_writing(self) -> None:
        """Give the client its time to take what it is sent."""
        super().pause_writing()
        self._stalled = self.loop.call_later(BODY_SECONDS, self.end)

    def resume_writing(self) -> None:
        """See `pause_writing`."""
        if self._stalled is not None:
            self._stalled.cancel()
        super().resume_writing()

    def _release(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
        if self._counted:
            self._counted = False
            self._among.closed(self)


class _HeadTooLongError(Exception):
    """The head of a request is longer than what is read."""


def refusal(access: Access, role: Role, scope: Scope) -> RefusedError | None:
    """Return why a request that needs `role` may not be answered; None when it may."""
    header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    client = scope.get("client") or ("", 0)
    try:
        access.bearer(header.decode("latin-1"), role, client[0])
    except RefusedError as error:
        return error
    return None


class HostCheck:
    """Answers requests that are for this server, and no page's of a stranger.

    A browser lets a page ask its own host whatever it likes, and its owner may let that name point
    to a server in here (DNS rebinding). A name that no stranger can own is trusted.

    Args:
        app: Answers.
        hosts: Names beside those that are private.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] = ()) -> None:
        self._app, self._hosts = app, frozenset(name.lower() for name in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        named = [value for name, value in scope["headers"] if name == b"host"]
        if len(named) == 1 and _is_mine(named[0], self._hosts):
            await self._app(scope, receive, send)
            return
        problem = (
            f"this server is not known as {named[0][:100]!r}; name it under security.hosts\n"
            if named
            else "the request names no host\n"
        )
        await PlainTextResponse(problem, 421)(scope, receive, send)


@lru_cache(maxsize=1024)
def _is_mine(host: bytes, hosts: frozenset[str]) -> bool:
    text = host.decode("latin-1")
    name = text if text.endswith("]") else text.rpartition(":")[0] or text
    name = name.strip("[]").rstrip(".").lower()
    if not name:
        return False
    if name in hosts or "." not in name or name.endswith(PRIVATE):
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
