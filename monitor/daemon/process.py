"""The process: a daemon with its two ports, from the first check to the last word.

Above `daemon` and the edges; `cli` calls `main`. What was opened last is closed first, so that
nobody is answered from something that has been let go.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

import structlog

from steadfeast.featurestore.errors import AddressError, ConfigError
from steadfeast.featurestore.security import Security, load_security, signals
from steadfeast.monitor.config import load
from steadfeast.monitor.daemon.daemon import Daemon
from steadfeast.monitor.evaluation import check, project
from steadfeast.monitor.exporter import registry
from steadfeast.monitor.ledger import Ledger
from steadfeast.monitor.rpc import Monitor, ports
from steadfeast.monitor.web import Operator, app

if TYPE_CHECKING:
    from pathlib import Path

log = structlog.get_logger(__name__)

M_ARENA_MAX = -8
"""Of glibc's malloc.h."""


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
        security = Security(load_security(path))
        daemon = Daemon(path, config, store.data, ledger, project(store), views, security)
        people = Operator(
            security.access, ledger.acknowledge, daemon.evaluator.decide, daemon.causes.told
        )
        service = Monitor(
            ledger, daemon.state, daemon.evaluate, daemon.evaluator.decide, daemon.evaluator.resend
        )
        page = app(daemon.state, daemon.healthy, registry(daemon.state), people)
        try:
            server = ports(service, config.grpc, security, config.http, page)
        except AddressError as error:
            field = "http" if error.address == config.http else "grpc"
            problem = f"{error.address} {error.problem}"
            raise ConfigError(path, [(f"monitor.{field}", problem)]) from error
        daemon.start()
        stack.callback(daemon.close)
        stack.enter_context(server)
        stack.enter_context(signals(daemon.inbox))
        log.info(
            "started",
            grpc=server.grpc_port,
            http=server.http_port,
            monitors=list(config.monitors),
        )
        daemon.run(lambda: server.serving(healthy=daemon.healthy().ok))
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
