"""What every HTTP request passes: limits that no client gets round, and the host that it is for.

Above `access`, below `ports`. A connection that waits for its client costs little and is the first
to go: where there are too many, the one that waits longest is closed, so that whoever sends a
whole request is heard. Probes and `/metrics` are answered by the event loop, which nothing blocks.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
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
        self._waiting: OrderedDict[Connection, str] = OrderedDict()
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

    def closed(self, connection: Connection, client: str) -> None:
        """Count a connection no more."""
        self._waiting.pop(connection, None)
        self._clients[client] -= 1
        if not self._clients[client]:
            del self._clients[client]

    def waits(self, connection: Connection, client: str) -> None:
        """Note that nothing goes on before the client sends more."""
        self._waiting[connection] = client
        self._waiting.move_to_end(connection)

    def works(self, connection: Connection) -> None:
        """Note that a whole request has arrived."""
        self._waiting.pop(connection, None)

    def _close_oldest(self, client: str | None = None) -> bool:
        for connection, owner in self._waiting.items():
            if client in {None, owner}:
                connection.end()
                return True
        return False


class _HeadersTooLongError(Exception):
    """The head of a request is longer than what is read."""


class Connection(HttpToolsProtocol):
    """One connection, with its limits.

    Args:
        among: All of the server's.
    """

    def __init__(self, among: Connections, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self._among, self._counted = among, False
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._header_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """Count it, or close it where there is no room."""
        super().connection_made(transport)
        self._client = self.client[0] if self.client else ""
        if not self._among.opened(self._client):
            transport.abort()
            return
        self._counted = True
        self._await_client(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it no more."""
        self._release()
        super().connection_lost(exc)

    def end(self) -> None:
        """Close it now."""
        self._release()
        self.transport.abort()

    def on_message_begin(self) -> None:
        """Begin to count the head."""
        super().on_message_begin()
        self._header_bytes = 0

    def on_url(self, url: bytes) -> None:
        """See `MAX_HEADER_BYTES`."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """See `MAX_HEADER_BYTES`."""
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Give the body its time."""
        self._await_client(BODY_SECONDS)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Wait for the client no more."""
        self._stop_waiting()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        if self._counted and not self.transport.is_closing() and self.cycle.response_complete:
            self._await_client(HEADER_SECONDS)

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong with a request that cannot be read."""
        if self._header_bytes > MAX_HEADER_BYTES:
            msg = f"The head of the request is longer than {MAX_HEADER_BYTES} bytes."
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

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            raise _HeadersTooLongError

    def _await_client(self, seconds: float) -> None:
        self._stop_waiting()
        self._among.waits(self, self._client)
        self._timer = self.loop.call_later(seconds, self.end)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._among.works(self)

    def _release(self) -> None:
        self._stop_waiting()
        if self._stalled is not None:
            self._stalled.cancel()
        if self._counted:
            self._counted = False
            self._among.closed(self, self._client)


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
        host = named[0].decode("latin-1") if len(named) == 1 else ""
        if self._is_mine(host):
            await self._app(scope, receive, send)
            return
        problem = (
            f"this server is not known as {host[:100]!r}; name it under security.hosts\n"
            if named
            else "the request names no host\n"
        )
        await PlainTextResponse(problem, 421)(scope, receive, send)

    def _is_mine(self, host: str) -> bool:
        name, _, _ = (
            host.rpartition(":") if not host.endswith("]") and ":" in host else (host, "", "")
        )
        name = name.strip("[]").rstrip(".").lower()
        if not name:
            return False
        if name in self._hosts or "." not in name or name.endswith(PRIVATE):
            return True
        try:
            ip_address(name)
        except ValueError:
            return False
        return True
