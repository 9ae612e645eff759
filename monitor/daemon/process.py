"""The process: a daemon with its two ports, from the first check to the last word.

Above `daemon` and the edges; `cli` calls `main`. What was opened last is closed first, so that
nobody is answered from something that has been let go.
"""

from __future__ import annotations

import ctypes
import logging
import socket
import sys
from contextlib import ExitStack, suppress
from threading import Thread
from typing import TYPE_CHECKING, Any, TextIO, cast

import structlog
import uvicorn

from steadfeast.featurestore.errors import UserError
from steadfeast.monitor.auth import Certificates, access_of
from steadfeast.monitor.config import load
from steadfeast.monitor.daemon.daemon import Daemon
from steadfeast.monitor.evaluation import check, project
from steadfeast.monitor.exporter import registry
from steadfeast.monitor.ledger import Ledger
from steadfeast.monitor.rpc import Monitor, Server
from steadfeast.monitor.web import Operator, app

if TYPE_CHECKING:
    from pathlib import Path

    from steadfeast.monitor.config import TlsConfig

log = structlog.get_logger(__name__)

M_ARENA_MAX = -8
"""Of glibc's malloc.h."""
MAX_HTTP = 256
"""Connections to the HTTP port; more are answered 503."""


class PortTakenError(UserError):
    """An address of the configuration cannot be listened on.

    Attributes:
        field: Field of the configuration.
        address: The address.
    """

    def __init__(self, field: str, address: str, problem: str) -> None:
        self.field, self.address = field, address
        super().__init__(f"monitor.{field}: cannot listen on {address}: {problem}")


class Web:
    """The HTTP port, served by a thread of its own.

    Args:
        daemon: Whose state is shown.
        address: `host:port`; port 0 takes a free one.
        operator: What people may do there.
        tls: None serves plaintext.
    """

    def __init__(
        self,
        daemon: Daemon,
        address: str,
        operator: Operator,
        tls: TlsConfig | None = None,
    ) -> None:
        """Bind the port.

        Raises:
            PortTakenError: The address cannot be listened on.
        """
        host, _, port = address.rpartition(":")
        try:
            self._socket = socket.create_server((host, int(port)))
        except OSError as error:
            raise PortTakenError("http", address, error.strerror or str(error)) from error
        self.port = int(self._socket.getsockname()[1])
        served = app(daemon.state, daemon.healthy, registry(daemon.state), operator)
        self._server = uvicorn.Server(
            uvicorn.Config(
                served,
                log_config=None,
                access_log=False,
                lifespan="off",
                limit_concurrency=MAX_HTTP,
                ssl_certfile=None if tls is None else tls.certificate,
                ssl_keyfile=None if tls is None else tls.key,
            )
        )
        self._server.config.load()
        self._thread = Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="http", daemon=True
        )

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def refresh(self, certificates: Certificates) -> None:
        """Use the certificates as they are now."""
        context = self._server.config.ssl
        if context is not None:
            certificates.refresh(context)

    def close(self) -> None:
        """Let requests finish, stop."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()


def one_heap() -> None:
    """Have all threads share what they have freed, where the C library is glibc.

    It gives threads a heap of their own each, up to eight for a processor, and what one of them has
    freed no other can use: with every promotion one more holds what a reference took to build.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)


def main(path: Path, *, json_logs: bool) -> int:
    """Run a daemon until it is told to stop; returns 0.

    Raises:
        UserError: The configuration, the ledger or a port cannot be used. Nothing was opened
            that others see.
    """
    one_heap()
    config, store = load(path)
    configure_logs(json_logs=json_logs)
    views = check(path, config, store)
    with ExitStack() as stack:  # closes in reverse order
        ledger = stack.enter_context(Ledger(config.state))
        daemon = Daemon(path, config, store.data, ledger, project(store), views)
        access = access_of(config)
        certificates = None if config.tls is None else Certificates(config.tls)
        people = Operator(access, ledger.acknowledge, daemon.evaluator.decide, daemon.causes.told)
        web = Web(daemon, config.http, people, config.tls)
        stack.callback(web.close)
        service = Monitor(
            ledger, daemon.state, daemon.evaluate, daemon.evaluator.decide, daemon.evaluator.resend
        )
        try:
            server = Server(service, config.grpc, access, certificates)
        except RuntimeError as error:
            raise PortTakenError("grpc", config.grpc, str(error)) from error
        daemon.start()
        stack.callback(daemon.close)
        web.start()
        stack.callback(server.close)
        server.start()
        log.info("started", grpc=server.port, http=web.port, monitors=list(config.monitors))

        def beat() -> None:
            server.serving(healthy=daemon.healthy().ok)
            if certificates is not None:
                web.refresh(certificates)

        daemon.run(beat)
    log.info("stopped")
    return 0


class _Lossy:
    """Standard error, but a log that cannot be written stops nobody: its disk may be full."""

    def write(self, text: str) -> int:
        """Write what can be written."""
        with suppress(OSError):
            return sys.stderr.write(text)
        return 0

    def flush(self) -> None:
        """Flush what can be flushed."""
        with suppress(OSError):
            sys.stderr.flush()


def configure_logs(*, json_logs: bool) -> None:
    """Send our logs and those of libraries to standard error, as JSON lines or for a person."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: Any = (
        structlog.processors.JSONRenderer()
        if json_logs
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    last = [structlog.processors.format_exc_info, render] if json_logs else [render]
    structlog.configure(
        processors=[*shared, *last],
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Lossy())),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(_Lossy())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    # What it says is counted as misfires and failures, and told once by `Jobs`.
    logging.getLogger("apscheduler").setLevel(logging.CRITICAL)
