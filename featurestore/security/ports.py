"""The ports of a server: gRPC and HTTP on one event loop, with their guards, health and end.

Top of `security`. Every server of Steadfeast is a `Ports` with services and an application of its
own, so that TLS, tokens, limits and draining are the same everywhere.
"""

from __future__ import annotations

import asyncio
import atexit
import resource
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from email.utils import formatdate
from functools import cache
from queue import Empty
from threading import Thread
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc
import structlog
import uvicorn
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from uvicorn.server import ServerState

from steadfeast.featurestore.config import is_loopback
from steadfeast.featurestore.errors import AddressError, UserError
from steadfeast.featurestore.security.access import access_of
from steadfeast.featurestore.security.certificates import Certificates
from steadfeast.featurestore.security.config import Role, SecurityConfig, load_security
from steadfeast.featurestore.security.grpc_guard import Guard
from steadfeast.featurestore.security.http_guard import (
    HEADER_SECONDS,
    Connection,
    Connections,
    HostCheck,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
    from pathlib import Path
    from queue import SimpleQueue
    from types import TracebackType

    from starlette.types import ASGIApp

    from steadfeast.featurestore.security.access import Access

log = structlog.get_logger(__name__)

GRACE_SECONDS = 5.0
MAX_REQUEST_BYTES = 4 * 2**20
"""Largest request that an edge reads."""

_THREADS = 32
"""Of HTTP requests and coroutines of all ports that may block."""

_HEALTH = f"/{health.SERVICE_NAME}/"
_OPEN = {f"{_HEALTH}{method}": None for method in ("Check", "Watch", "List")}
_REFLECTION = {
    f"/{name}/ServerReflectionInfo": Role.READ
    for name in ("grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection")
}
_OPTIONS = [
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.max_concurrent_streams", 1024),
    ("grpc.max_allowed_incoming_connections", 1024),
    # A connection on which nobody speaks HTTP/2, and one whose other end has vanished, is let go.
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]

_Result = TypeVar("_Result")


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of all ports of this process, in a thread of its own.

    It lasts as long as the process: gRPC's queue of events is bound to the first loop it meets.
    """
    loop = asyncio.new_event_loop()
    loop.set_default_executor(ThreadPoolExecutor(_THREADS, "ports"))
    thread = Thread(target=loop.run_forever, name="ports", daemon=True)
    thread.start()

    def end() -> None:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    atexit.register(end)
    return loop


def _run(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run `work` in the event loop and wait for its end."""
    return asyncio.run_coroutine_threadsafe(work, _loop()).result()


class Security:
    """What the ports of one process have in common, while it runs.

    Attributes:
        config: As it is now.
        access: Who may act.
        certificates: None means plaintext.
    """

    def __init__(self, config: SecurityConfig | None = None) -> None:
        """Read the certificates; a process that has tokens leaves no core dump, which would too.

        Raises:
            CertificateError: They cannot be used.
        """
        self.config = config or SecurityConfig()
        if self.config.tokens:
            resource.setrlimit(
                resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1])
            )
        self.access: Access = access_of(self.config)
        tls = self.config.tls
        self.certificates = None if tls is None else Certificates(tls)

    def reload(self, config: SecurityConfig) -> None:
        """Take other tokens from now on; everything else needs a new process."""
        self.config = self.config.model_copy(update={"tokens": config.tokens})
        self.access.replace(config.tokens)
        log.info("tokens_reloaded", tokens=list(config.tokens))

    def check(self, address: str) -> tuple[str, int]:
        """Return host and port of an address that may be served.

        Raises:
            AddressError: It is not `host:port`, or others could read along.
        """
        host, _, port = address.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or not port.isdecimal() or int(port) > 65535:  # noqa: PLR2004
            raise AddressError(address, "is not host:port")
        if not (self.config.tls or self.config.allow_plaintext or is_loopback(address)):
            problem = (
                "is no loopback address, and would be served in plaintext; give security.tls, or "
                "security.allow_plaintext: true where only trusted programs share the network"
            )
            raise AddressError(address, problem)
        return host, int(port)


class Ports:
    """A gRPC port, an HTTP port, or both; a context manager that serves and drains them.

    Args:
        security: Shared by all ports of the process.
        roles: What each method of `services` needs, by `Service/Method` without package.
        services: Adds the servicers to the server it is given.
        names: Full names of their services.
        grpc_address: `host:port`; port 0 takes a free one; empty for none.
        http_address: The same.
        app: Answers HTTP.
        threads: Calls that may block at once.
        request_bytes: Largest gRPC request.
        plain: Whether requests with control characters in any text are refused.
        shared: Whether processes share the ports.
        stopping: Called when draining begins.

    Raises:
        AddressError: See `Security.check`; or an address is taken.

    Attributes:
        grpc_port: The port taken; 0 without one.
        http_port: The same.
    """

    def __init__(
        self,
        security: Security,
        *,
        roles: Mapping[str, Role | None] = MappingProxyType({}),
        services: Callable[[Any], None] = lambda _: None,
        names: Sequence[str] = (),
        grpc_address: str = "",
        http_address: str = "",
        app: ASGIApp | None = None,
        threads: int = 16,
        request_bytes: int = MAX_REQUEST_BYTES,
        plain: bool = False,
        shared: bool = False,
        stopping: Callable[[], object] = lambda: None,
    ) -> None:
        self._security, self._names, self._stopping = security, names, stopping
        self._grpc: Any = None
        self._socket: socket.socket | None = None
        self._ssl: Any = None
        self.grpc_port = self.http_port = 0
        self._serving: dict[str, bool] = {}
        with ExitStack() as undo:
            if http_address:
                self._socket = undo.enter_context(_listen(security, http_address, shared=shared))
                self.http_port = self._socket.getsockname()[1]
                self._web = self._configured(app)
            if grpc_address:
                self._threads = ThreadPoolExecutor(threads, "grpc")
                undo.callback(self._threads.shutdown)
                security.check(grpc_address)
                limits = [
                    *_OPTIONS,
                    ("grpc.so_reuseport", int(shared)),
                    ("grpc.max_receive_message_length", request_bytes),
                    ("grpc.max_send_message_length", -1),
                ]
                methods = {f"/{name}": role for name, role in roles.items()}
                roles = {**_OPEN, **_REFLECTION, **methods}
                guard = Guard(security.access, roles, self._threads, plain=plain)
                bound = self._bound(grpc_address, guard, services, limits)
                self._grpc, self.grpc_port = _run(bound)
            undo.pop_all()

    def _configured(self, app: ASGIApp | None) -> uvicorn.Config:
        tls = self._security.config.tls
        config = uvicorn.Config(
            HostCheck(app, self._security.config.hosts) if app is not None else "",
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_keep_alive=int(HEADER_SECONDS),
            ssl_certfile=None if tls is None else tls.certificate,
            ssl_keyfile=None if tls is None else tls.key,
        )
        config.load()
        self._state, self._ssl = ServerState(), config.ssl
        return config

    async def _bound(
        self,
        address: str,
        guard: Guard,
        services: Callable[[Any], None],
        limits: Sequence[tuple[str, Any]],
    ) -> tuple[Any, int]:
        server = grpc.aio.server(interceptors=[guard], options=limits)
        services(server)
        self._health: Any = health.aio.HealthServicer()  # type: ignore[attr-defined]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if self._security.access.needed or is_loopback(address):
            names = (*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        try:
            if self._security.certificates is None:
                return server, server.add_insecure_port(address)
            credentials = self._security.certificates.server_credentials()
            return server, server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise AddressError(address, "is taken or unknown") from error

    def __enter__(self) -> Self:
        _run(self._start())
        self.serving(healthy=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """Say NOT_SERVING, let what is under way end, stop."""
        self._stopping()
        _run(self._stop(grace_seconds))
        if self._grpc is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        if self._socket is not None:
            self._socket.close()

    def serving(self, *, healthy: bool, name: str = "") -> None:
        """Say over gRPC how a service is; the empty name stands for all of them."""
        if self._grpc is None or self._serving.get(name) is healthy:
            return
        self._serving[name] = healthy
        states = health_pb2.HealthCheckResponse
        state = states.SERVING if healthy else states.NOT_SERVING
        for service in (name,) if name else ("", *self._names):
            _run(self._health.set(service, state))

    async def _start(self) -> None:
        if self._grpc is not None:
            await self._grpc.start()
        if self._socket is None:
            return
        loop, among = asyncio.get_running_loop(), Connections()
        self._listener = await loop.create_server(
            lambda: Connection(among, self._web, self._state, {}, loop),
            sock=self._socket,
            ssl=self._ssl,
            ssl_handshake_timeout=HEADER_SECONDS if self._ssl else None,
            backlog=1024,
        )
        self._ticking = asyncio.create_task(self._tick(among))

    async def _tick(self, among: Connections) -> None:
        """Keep the header Date and the certificates as they are now; close who waits too long."""
        loop = asyncio.get_running_loop()
        certificates = self._security.certificates
        while True:
            date = formatdate(usegmt=True).encode()
            self._state.default_headers = [(b"date", date)]
            if certificates is not None and self._ssl is not None:
                certificates.refresh(self._ssl)
            among.sweep(loop.time())
            await asyncio.sleep(1)

    async def _stop(self, grace_seconds: float) -> None:
        if self._grpc is not None:
            await self._health.enter_graceful_shutdown()
            await self._grpc.stop(grace_seconds)
        if self._socket is None or not hasattr(self, "_listener"):
            return
        self._ticking.cancel()
        self._listener.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=grace_seconds)
        for connection in list(self._state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # lets the connections end


def _listen(security: Security, address: str, *, shared: bool) -> socket.socket:
    host, port = security.check(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        made = socket.create_server((host, port), family=family, backlog=1024, reuse_port=shared)
    except OSError as error:
        raise AddressError(address, error.strerror or str(error)) from error
    # Head and body of an answer are two writes; the second must not wait for the first's receipt.
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def until_stopped(
    inbox: SimpleQueue[int],
    security: Security,
    config: Path,
    alive: Callable[[], bool] = lambda: True,
) -> bool:
    """Wait for SIGTERM or SIGINT in an `inbox` of `signals`; SIGHUP reads the tokens again.

    A configuration that cannot be read leaves the tokens as they are, and is logged.

    Returns:
        True; false as soon as `alive` says so.
    """
    while alive():
        with suppress(Empty):
            # Not for ever: a signal that another thread of the process takes wakes nobody.
            if inbox.get(timeout=1) != signal.SIGHUP:
                return True
            _reload(security, config)
    return False


@contextmanager
def signals(inbox: SimpleQueue[int], *more: signal.Signals) -> Iterator[None]:
    """Have SIGINT, SIGTERM, SIGHUP and `more` wait in `inbox` within, and end nothing.

    A server enters it before it says that it serves: whoever reads that may stop it at once.
    """
    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *more)
    before = {n: signal.signal(n, lambda caught, _: inbox.put(caught)) for n in watched}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _reload(security: Security, config: Path) -> None:
    try:
        security.reload(load_security(config))
    except UserError as error:
        log.error("reload_rejected", reason=str(error))  # noqa: TRY400 - the user's
