"""TLS, tokens and roles over real sockets; certificates are made here with `cryptography`."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING

import grpc
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc

from steadfeast.featurestore.errors import ConfigError
from steadfeast.monitor.auth.access import Access, Principal
from steadfeast.monitor.auth.certificates import CertificateError, Certificates
from steadfeast.monitor.config.schema import MonitorConfig, Role, TlsConfig, load
from steadfeast.monitor.ledger.ledger import Ledger
from steadfeast.monitor.rpc.guard import METHODS
from steadfeast.monitor.rpc.service import Monitor, Server
from steadfeast.protos.steadfeast.v1 import monitor_pb2 as mp
from steadfeast.protos.steadfeast.v1 import monitor_pb2_grpc
from support import monitor_world as world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIG = {"w": MonitorConfig(service="s", model="m")}
READER, DECIDER, OPERATOR = "reader" * 4, "decider" * 4, "operator" * 3


class Authority:
    """Signs certificates for 127.0.0.1."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.own = self._sign(name, self.key, ca=True)
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(self.own.public_bytes(serialization.Encoding.PEM))

    def _sign(self, subject: str, key: ec.EllipticCurvePrivateKey, *, ca: bool = False):
        now = datetime.now(UTC)
        named = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)])
        issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, self.name)])
        alternative = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
        builder = (
            x509.CertificateBuilder()
            .subject_name(named)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(alternative, critical=False)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
        )
        if ca:
            signs = dict.fromkeys(
                ("digital_signature", "content_commitment", "key_encipherment",
                 "data_encipherment", "key_agreement", "encipher_only", "decipher_only"), False,
            )  # fmt: skip
            usage = x509.KeyUsage(key_cert_sign=True, crl_sign=True, **signs)
            builder = builder.add_extension(usage, critical=True)
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, name: str) -> tuple[Path, Path]:
        """Write certificate and key of `name`, over what was there."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate, secret = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        certificate.write_bytes(self._sign(name, key).public_bytes(serialization.Encoding.PEM))
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return certificate, secret


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
    server = Server(monitor, "127.0.0.1:0", certificates=Certificates(files))
    server.start()
    try:
        assert serving(server.port, authority.path)
        other = Authority(authority.folder, "other")
        assert not serving(server.port, other.path)
        key.write_text("half written")
        assert serving(server.port, authority.path)  # the old one stays until the new one fits
        other.issue("server")
        assert serving(server.port, other.path)
        assert not serving(server.port, authority.path)
    finally:
        server.close()


def test_mtls_takes_only_clients_of_the_authority(authority: Authority, monitor: Monitor):
    certificate, key = authority.issue("server")
    files = TlsConfig(certificate=certificate, key=key, client_ca=authority.path)
    server = Server(monitor, "127.0.0.1:0", certificates=Certificates(files))
    server.start()
    try:
        assert serving(server.port, authority.path, authority.issue("client"))
        assert not serving(server.port, authority.path)
        stranger = Authority(authority.folder, "stranger").issue("intruder")
        assert not serving(server.port, authority.path, stranger)
    finally:
        server.close()


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
    assert set(METHODS) == {method.name for method in service.methods}


@pytest.fixture
def guarded(monitor: Monitor) -> Iterator[monitor_pb2_grpc.MonitorServiceStub]:
    access = Access(
        OPERATOR,
        principals=[
            Principal("grafana", READER, frozenset({Role.READ})),
            Principal("oncall", DECIDER, frozenset({Role.READ, Role.ACKNOWLEDGE})),
        ],
    )
    server = Server(monitor, "127.0.0.1:0", access)
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield monitor_pb2_grpc.MonitorServiceStub(channel)
    server.close()


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
    oncall = Principal("oncall", DECIDER, frozenset(Role))
    assert oncall.signed(" ann ") == "ann (oncall)"
    assert oncall.signed("") == "oncall"
    assert Principal("", OPERATOR, frozenset(Role)).signed("ann") == "ann"


def changed(folder: Path, **daemon: object) -> Path:
    path = world.configure(folder, pipeline=1)
    plain = yaml.safe_load(path.read_text())
    plain["monitor"] |= daemon
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
        load(changed(tmp_path, **changes, allow_plaintext=True))
    files = {"certificate": "a.crt", "key": "a.key"}
    load(changed(tmp_path, http="0.0.0.0:9464", tls=files))
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
    found = load(changed(tmp_path, tokens=tokens))[0].tokens
    assert {n: one.token.get_secret_value() for n, one in found.items()} == {
        "grafana": READER,
        "oncall": DECIDER,
    }
    assert READER not in repr(found)
    for wrong, said in (({"file": "nosuch"}, "cannot be read"), ("short", "16 characters")):
        tokens["grafana"]["token"] = wrong
        with pytest.raises(ConfigError, match=said):
            load(changed(tmp_path, tokens=tokens))


def test_a_process_with_tls_and_tokens(tmp_path: Path, authority: Authority):
    """HTTP and gRPC of a real daemon; a renewed certificate, and the command line as a client."""
    certificate, key = authority.issue("server")
    daemon = world.Daemon(tmp_path, 1)
    plain = yaml.safe_load(daemon.config.read_text())
    plain["monitor"] |= {
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
