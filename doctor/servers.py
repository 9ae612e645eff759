"""Addresses, monitors and names of the configuration. Above `findings`.

A port that is in use is no finding where the state folder's lock says that the server of this very
configuration runs.
"""

from __future__ import annotations

import errno
import fcntl
import socket
from typing import TYPE_CHECKING

from steadfeast.doctor.findings import Finding
from steadfeast.featurestore.config import is_loopback, written
from steadfeast.featurestore.errors import AddressError, NotFoundError, UserError
from steadfeast.featurestore.security import Security, SecurityConfig
from steadfeast.monitor.config import GrpcPipelineConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from steadfeast.featurestore.definitions import Defined
    from steadfeast.monitor.config import DaemonConfig, MonitorConfig
    from steadfeast.pipeline.config import PipelineConfig

_LOCKS = {"monitor": "monitor.lock", "pipeline": "worker.lock"}
"""Section to the file in its state folder that its server holds."""


def server_findings(
    monitor: DaemonConfig | None, pipeline: PipelineConfig | None, security: SecurityConfig
) -> Iterator[Finding]:
    """Look at the addresses that servers listen on and send to."""
    addresses: dict[str, str] = {}
    taken: set[str] = set()
    if monitor is not None:
        addresses |= {"monitor.http": monitor.http, "monitor.grpc": monitor.grpc}
        taken |= set() if _runs(monitor.state, "monitor") else {"monitor.http", "monitor.grpc"}
    if pipeline is not None:
        addresses["pipeline.grpc"] = pipeline.grpc
        taken |= set() if _runs(pipeline.state, "pipeline") else {"pipeline.grpc"}
    plain = {} if monitor is None else _prefixed(monitor.in_plaintext(security))
    try:
        checked = Security(security)
    except UserError as error:
        yield Finding("configuration", "security.tls", str(error), "put the files right")
        checked = Security(security.model_copy(update={"tls": None, "allow_plaintext": True}))
    for field, address in addresses.items():
        try:
            checked.check(address)
        except AddressError as error:
            remedy = "put it right; the server does not start with it as it is"
            yield Finding("configuration", field, f"{address} {error.problem}", remedy)
            continue
        if not is_loopback(address):
            plain |= {} if security.tls else {field: address}
            yield from _open_to_all(field, address, security)
        if field in taken:
            yield from _free(field, address)
    yield from _twice(addresses)
    for field, address in plain.items():
        yield Finding(
            "plaintext",
            field,
            f"{address} is off this machine and without TLS, so others on the network can read "
            "values and tokens",
            "give tls, or accept it where only trusted programs share the network",
        )


def monitor_findings(
    monitor: DaemonConfig, pipeline: PipelineConfig | None, defined: Defined | None
) -> Iterator[Finding]:
    """Look at what monitors name, and whom they tell."""
    ttls = {} if defined is None else {str(view.name): view.ttl for view in defined.views}
    for name, one in monitor.monitors.items():
        field = f"monitor.monitors.{name}"
        if defined is not None:
            yield from _names(field, one, defined)
        for view, age in one.max_age.items():
            ttl = ttls.get(view)
            if ttl and age > ttl:
                yield Finding(
                    "max-age",
                    f"{field}.max_age.{view}",
                    f"{written(age)} is longer than the view's TTL ({written(ttl)}), so values are "
                    "served as null before their age is an incident",
                    f"write {written(ttl)} or less",
                )
        if pipeline is not None:
            yield from _receiver(monitor, field, one, pipeline)
    if not monitor.alerts:
        yield Finding(
            "no-alerts",
            "monitor.alerts",
            "there are none, so drift and incidents are told on the page and in metrics alone",
            "name a target, such as ops: {kind: slack, url: ...}, or alert on the metrics",
        )
    if all(one.audit is None for one in monitor.monitors.values() if one.service):
        watched = [name for name, one in monitor.monitors.items() if one.service]
        if watched:
            yield Finding(
                "no-audit",
                ", ".join(f"monitor.monitors.{name}.audit" for name in watched),
                "is never, so only `steadfeast store audit` shows that serving gave what training "
                "saw",
                "write audit: 1d, or run that command from a scheduler",
            )


def name_problem(kind: str, name: str, known: tuple[str, ...] | Mapping[str, object]) -> str:
    """Return what is wrong with a name that has to exist; empty if it does."""
    return "" if name in known else str(NotFoundError(kind, name, known))


def _names(field: str, monitor: MonitorConfig, defined: Defined) -> Iterator[Finding]:
    views = tuple(str(view.name) for view in defined.views)
    asked = [(f"{field}.max_age", "feature view", view, views) for view in monitor.max_age]
    if monitor.service:
        asked.append((f"{field}.service", "feature service", monitor.service, defined.services))
    elif monitor.source is not None and monitor.source.view:
        asked.append((f"{field}.source.view", "feature view", monitor.source.view, views))
    for where, kind, name, known in asked:
        problem = name_problem(kind, name, known)
        if problem:
            yield Finding("unknown-name", where, problem, "write the name of one that is defined")


def _receiver(
    monitor: DaemonConfig, field: str, one: MonitorConfig, pipeline: PipelineConfig
) -> Iterator[Finding]:
    """Look whether a monitor's triggers come to the pipeline of the same file."""
    target = None if one.pipeline is None else monitor.pipelines[one.pipeline]
    if not isinstance(target, GrpcPipelineConfig):
        return
    if target.address == pipeline.grpc:
        problem = name_problem("model", one.model, pipeline.models)
        if problem:
            remedy = "write the name of a model under pipeline.models; its triggers are refused"
            yield Finding("unknown-name", f"{field}.model", problem, remedy)
    elif is_loopback(target.address) and is_loopback(pipeline.grpc):
        yield Finding(
            "pipeline-address",
            f"monitor.pipelines.{one.pipeline}",
            f"{target.address} is not pipeline.grpc ({pipeline.grpc}), so triggers do not come to "
            "the pipeline of this file",
            f"write {pipeline.grpc}, or accept it where another pipeline listens there",
        )


def _open_to_all(field: str, address: str, security: SecurityConfig) -> Iterator[Finding]:
    if not any(one.token.get_secret_value() for one in security.tokens.values()):
        yield Finding(
            "no-tokens",
            field,
            f"{address} is reached from other machines and no token is set, so whoever reaches it "
            "may do everything",
            "give security.tokens",
        )


def _free(field: str, address: str) -> Iterator[Finding]:
    """Bind to an address and let it go."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, int(port)), family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            problem = f"{address} is in use by another program, so the server does not start"
            remedy = "end that program, or write another port"
        else:
            problem = f"{address} cannot be listened on here: {error.strerror}"
            remedy = "write an address of this machine; accept it where the server runs elsewhere"
        yield Finding("port-taken", field, problem, remedy)


def _twice(addresses: Mapping[str, str]) -> Iterator[Finding]:
    first: dict[str, str] = {}
    for field, address in addresses.items():
        if address.endswith(":0"):
            continue
        if address in first:
            problem = f"{address} is also {first[address]}, and only one of them can listen on it"
            yield Finding("port-taken", field, problem, "write another port")
        first.setdefault(address, field)


def _runs(state: Path, section: str) -> bool:
    """Tell whether the server of a state folder runs, by the lock that it holds."""
    path = state / _LOCKS[section]
    if not path.is_file():
        return False
    try:
        with path.open("rb") as tried:
            fcntl.flock(tried, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # not ours to read
        return False
    return False


def _prefixed(fields: Mapping[str, str]) -> dict[str, str]:
    return {f"monitor.{field}": address for field, address in fields.items()}
