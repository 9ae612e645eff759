"""TLS, tokens and roles over real sockets; certificates are made here with `cryptography`."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from steadfeast.featurestore.errors import ConfigError
from steadfeast.featurestore.security import (
    CertificateError,
    Certificates,
    Principal,
    Role,
    Security,
    SecurityConfig,
    TlsConfig,
    load_security,
)
from steadfeast.monitor.config.schema import MonitorConfig, load
from steadfeast.monitor.ledger.ledger import Ledger
from steadfeast.monitor.rpc.service import ROLES, SERVICE, Monitor, ports
from steadfeast.protos.steadfeast.v1 import monitor_pb2 as mp
from steadfeast.protos.steadfeast.v1 import monitor_pb2_grpc
from support import monitor_world as world
from support.authority import Authority
from support.tokens import security_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIG = {"w": MonitorConfig(service="s", model="m")}
READER, DECIDER, OPERATOR = "reader" * 4, "decider" * 4, "operator" * 3


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Monitor]:
    with Ledger(tmp_path / "state") as ledger:

        def decide(request: str, **_: object):
            return ledger.trigger(request)

        yield Monitor(ledger, lambda: ledger.state(CONFIG), lambda _: 7, decide, decide)


def serving(port: int, ca: Path, own: tuple[Path, Path] | None = None) -> bool:
    """Ask health v1 over a fresh TLS connection."""
    chain, key = (None, None) if own is None else (p.read_bytes() for p in own)
    credentials = grpc.ssl_channel_credentials(ca.read_bytes(), key, chain)
    fresh = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, fresh) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        except grpc.RpcError:
            return False
        return answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_renewed_certificate_is_used_without_a_restart(authority: Authority, monitor: Monitor):
    certificate, key = authority.issue("server")
    files = TlsConfig(certificate=certificate, key=key)
    with ports(monitor, "127.0.0.1:0", Security(SecurityConfig(tls=files))) as server:
        assert serving(server.grpc_port, authority.path)
        other = Authority(authority.folder, "other")
        assert not serving(server.grpc_port, other.path)
        key.write_text("half written")
        assert serving(server.grpc_port, authority.path)  # the old one stays until the new one fits
        other.issue("server")
        assert serving(server.grpc_port, other.path)
        assert not serving(server.grpc_port, authority.path)


def test_mtls_takes_only_clients_of_the_authority(authority: Authority, monitor: Monitor):
    certificate, key = authority.issue("server")
    files = TlsConfig(certificate=certificate, key=key, client_ca=authority.path)
    with ports(monitor, "127.0.0.1:0", Security(SecurityConfig(tls=files))) as server:
        assert serving(server.grpc_port, authority.path, authority.issue("client"))
        assert not serving(server.grpc_port, authority.path)
        stranger = Authority(authority.folder, "stranger").issue("intruder")
        assert not serving(server.grpc_port, authority.path, stranger)


def test_a_certificate_that_cannot_be_used_is_an_error_at_start(authority: Authority):
    certificate, key = authority.issue("server")
    _, wrong = authority.issue("another")
    with pytest.raises(CertificateError, match=r"server\.crt"):
        Certificates(TlsConfig(certificate=certificate, key=wrong))
    key.unlink()
    with pytest.raises(CertificateError):
        Certificates(TlsConfig(certificate=certificate, key=key))


def test_every_method_has_a_role():
    """A method that somebody adds is refused until it is given one."""
    service = mp.DESCRIPTOR.services_by_name["MonitorService"]
    assert set(ROLES) == {f"{SERVICE}/{method.name}" for method in service.methods}


@pytest.fixture
def guarded(monitor: Monitor) -> Iterator[monitor_pb2_grpc.MonitorServiceStub]:
    tokens = {
        "operator": (OPERATOR, ["admin"]),
        "grafana": (READER, ["read"]),
        "oncall": (DECIDER, ["read", "acknowledge"]),
    }
    with (
        ports(monitor, "127.0.0.1:0", security_of(**tokens)) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        yield monitor_pb2_grpc.MonitorServiceStub(channel)


def code(call, request: object, token: str = "") -> grpc.StatusCode:
    metadata = [("authorization", f"Bearer {token}")] if token else []
    try:
        answer = call(request, timeout=5, metadata=metadata)
        if hasattr(answer, "__next__"):
            next(answer)
            answer.cancel()
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_each_token_may_do_what_its_roles_say(guarded: monitor_pb2_grpc.MonitorServiceStub):
    ok, no = grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED
    none = grpc.StatusCode.NOT_FOUND  # got through: there is no such episode or trigger
    calls = {
        "read": (guarded.GetStatus, mp.GetStatusRequest()),
        "stream": (guarded.WatchAlerts, mp.WatchAlertsRequest()),
        "acknowledge": (guarded.Acknowledge, mp.AcknowledgeRequest(episode_id="e", actor="a")),
        "approve": (guarded.DecideTrigger, mp.DecideTriggerRequest(request_id="r", actor="a")),
        "trigger": (guarded.Evaluate, mp.EvaluateRequest()),
    }
    expected = {
        READER: [ok, ok, no, no, no],
        DECIDER: [ok, ok, none, no, no],
        OPERATOR: [ok, ok, none, none, ok],
        "": [grpc.StatusCode.UNAUTHENTICATED] * 5,
        "x" * 24: [grpc.StatusCode.UNAUTHENTICATED] * 5,
    }
    found = {token: [code(*call, token) for call in calls.values()] for token in expected}
    assert found == expected


def test_guessing_is_stopped(guarded: monitor_pb2_grpc.MonitorServiceStub):
    codes = {code(guarded.GetStatus, mp.GetStatusRequest(), f"guess{n:020}") for n in range(12)}
    assert codes == {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_a_request_that_is_too_large_is_refused(guarded: monitor_pb2_grpc.MonitorServiceStub):
    large = mp.AcknowledgeRequest(episode_id="e", actor="a", comment="x" * 100_000)
    assert code(guarded.Acknowledge, large, OPERATOR) is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_whose_token_it_was_is_kept():
    oncall = Principal("oncall", frozenset(Role))
    assert oncall.signed(" ann ") == "ann (oncall)"
    assert oncall.signed("") == "oncall"
    assert Principal("", frozenset(Role)).signed("ann") == "ann"


def changed(folder: Path, security: dict[str, object] | None = None, **daemon: object) -> Path:
    path = world.configure(folder, pipeline=1)
    plain = yaml.safe_load(path.read_text())
    plain["monitor"] |= daemon
    plain["security"] = security or {}
    path.write_text(yaml.safe_dump(plain))
    return path


def test_plaintext_off_loopback_is_refused_unless_told(tmp_path: Path):
    for changes in (
        {"http": "0.0.0.0:9464"},
        {"grpc": "daemon.internal:9465"},
        {"pipelines": {"main": "10.0.0.7:9466"}},
    ):
        with pytest.raises(ConfigError, match="plaintext"):
            load(changed(tmp_path, **changes))
        load(changed(tmp_path, {"allow_plaintext": True}, **changes))
    files = {"certificate": "a.crt", "key": "a.key"}
    load(changed(tmp_path, {"tls": files}, http="0.0.0.0:9464"))
    load(changed(tmp_path, pipelines={"main": {"address": "10.0.0.7:9466", "tls": {}}}))


def test_tokens_come_from_the_environment_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "token").write_text(f"{READER}\n")
    monkeypatch.setenv("TEST_TOKEN", DECIDER)
    tokens = {
        "grafana": {"token": {"file": "token"}, "roles": ["read"]},
        "oncall": {"token": "${TEST_TOKEN}", "roles": ["acknowledge"]},
    }
    found = load_security(changed(tmp_path, {"tokens": tokens})).tokens
    assert {n: one.token.get_secret_value() for n, one in found.items()} == {
        "grafana": READER,
        "oncall": DECIDER,
    }
    assert READER not in repr(found)
    for wrong, said in (({"file": "nosuch"}, "cannot be read"), ("short", "16 characters")):
        tokens["grafana"]["token"] = wrong
        with pytest.raises(ConfigError, match=said):
            load_security(changed(tmp_path, {"tokens": tokens}))


def test_a_process_with_tls_and_tokens(tmp_path: Path, authority: Authority):
    """HTTP and gRPC of a real daemon; a renewed certificate, and the command line as a client."""
    certificate, key = authority.issue("server")
    daemon = world.Daemon(tmp_path, 1)
    plain = yaml.safe_load(daemon.config.read_text())
    plain["security"] = {
        "tls": {"certificate": str(certificate), "key": str(key)},
        "tokens": {"grafana": {"token": READER, "roles": ["read"]}},
    }
    daemon.config.write_text(yaml.safe_dump(plain))
    daemon.start()

    def trusted(ca: Authority) -> bool:
        context = ssl.create_default_context(cafile=str(ca.path))
        url = f"https://127.0.0.1:{daemon.http}/healthz"
        try:
            with urllib.request.urlopen(url, timeout=5, context=context) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    try:
        world.wait_for(lambda: trusted(authority), 60)
        with socket.create_connection(("127.0.0.1", daemon.http), timeout=5) as plaintext:
            plaintext.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert b"200" not in plaintext.recv(100)
        status = [
            sys.executable,
            "-c",
            "from steadfeast.monitor.cli.app import app; app()",
            "status",
        ]
        status += ["--address", f"127.0.0.1:{daemon.grpc}"]
        environment = {**os.environ, "STEADFEAST_CA": str(authority.path)}
        for token, said in ((READER, "prices: model price"), ("", "role read is needed")):
            told = subprocess.run(
                status,
                env={**environment, "STEADFEAST_TOKEN": token},
                capture_output=True,
                text=True,
                check=False,
            )
            assert said in told.stdout + told.stderr
        other = Authority(tmp_path, "other")
        other.issue("server")
        world.wait_for(lambda: trusted(other), 20)
    finally:
        assert daemon.stop() == 0
