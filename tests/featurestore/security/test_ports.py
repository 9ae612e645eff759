"""What hostile clients may try, against real ports: others are served meanwhile."""

from __future__ import annotations

import http.client
import socket
import time
from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from steadfeast.featurestore.errors import AddressError
from steadfeast.featurestore.security import (
    CredentialsError,
    Ports,
    Role,
    Security,
    SecurityConfig,
    channel,
    grpc_guard,
    http_guard,
)
from support.tokens import security_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request

READER, WRITER = "reader-token-0123456789", "writer-token-0123456789"
ROLES = {"test.Echo/Say": Role.READ, "test.Echo/Each": Role.LOG, "test.Echo/Count": Role.READ}


class Echo:
    """A service of each kind; its messages are bytes."""

    def say(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        if request == b"sleep":
            time.sleep(0.2)
        if request == b"abort":
            context.abort(grpc.StatusCode.OUT_OF_RANGE, "too far")
        return request

    async def each(self, requests, context) -> bytes:
        del context
        return b"".join([part async for part in requests])

    def count(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        for number in range(int(request)):
            if not context.is_active():
                return
            yield str(number).encode()

    def add(self, server: grpc.Server) -> None:
        handlers = {
            "Say": grpc.unary_unary_rpc_method_handler(self.say),
            "Each": grpc.stream_unary_rpc_method_handler(self.each),
            "Count": grpc.unary_stream_rpc_method_handler(self.count),
            "Hidden": grpc.unary_unary_rpc_method_handler(self.say),
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("test.Echo", handlers),)
        )


async def _whole(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{len(await request.body())}\n")


async def _well(_: Request) -> PlainTextResponse:
    return PlainTextResponse("ok\n")


def ports(security: Security | None = None, **more: object) -> Ports:
    app = Starlette(routes=[Route("/body", _whole, methods=["POST"]), Route("/healthz", _well)])
    given = {"grpc_address": "127.0.0.1:0", "http_address": "127.0.0.1:0", **more}
    return Ports(
        security or Security(),
        roles=ROLES,
        services=Echo().add,
        names=("test.Echo",),
        app=app,
        **given,
    )


def connect(port: int, stack: ExitStack) -> grpc.Channel:
    """Return a channel with a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    return stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}", options=options))


def say(opened: grpc.Channel, text: bytes = b"x", token: str = "") -> bytes:
    metadata = [("authorization", f"Bearer {token}")] if token else None
    return opened.unary_unary("/test.Echo/Say")(text, timeout=20, metadata=metadata)


def code(call, *given: object, **more: object) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call(*given, **more)
    return caught.value.code()


def idle_stream(opened: grpc.Channel, method: str) -> grpc.Future:
    """Begin a call and send no message; returns what can be cancelled."""
    return opened.stream_unary(method).future(_held(), timeout=60)


def _held() -> Iterator[bytes]:
    while not _RELEASED:
        time.sleep(0.05)
        if _RELEASED:
            return
    yield b""


_RELEASED: list[bool] = []


def status(port: int, path: str = "/healthz", **headers: str) -> int:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as client:
        client.request("GET", path, headers=headers)
        return client.getresponse().status


def test_every_kind_of_call_works_and_ends(monkeypatch: pytest.MonkeyPatch):
    with ports() as served, ExitStack() as stack:
        opened = connect(served.grpc_port, stack)
        assert say(opened) == b"x"
        assert opened.stream_unary("/test.Echo/Each")(iter([b"a", b"b"]), timeout=20) == b"ab"
        counted = opened.unary_stream("/test.Echo/Count")(b"5", timeout=20)
        assert list(counted) == [b"0", b"1", b"2", b"3", b"4"]
        assert code(say, opened, b"abort") is grpc.StatusCode.OUT_OF_RANGE
        hidden = opened.unary_unary("/test.Echo/Hidden")
        assert code(hidden, b"", timeout=20) is grpc.StatusCode.PERMISSION_DENIED
        missing = opened.unary_unary("/test.Echo/Nothing")
        assert code(missing, b"", timeout=20) is grpc.StatusCode.UNIMPLEMENTED
        monkeypatch.setattr(grpc_guard, "REQUEST_SECONDS", 0.1)
        never = opened.stream_unary("/test.Echo/Each")
        assert code(never, _slowly(), timeout=20) is grpc.StatusCode.DEADLINE_EXCEEDED


def _slowly() -> Iterator[bytes]:
    yield b"a"
    time.sleep(1)
    yield b"b"


def test_each_method_asks_for_its_role():
    security = security_of(r=(READER, ["read"]), w=(WRITER, ["log"]))
    with ports(security) as served, ExitStack() as stack:
        opened = connect(served.grpc_port, stack)
        assert code(say, opened) is grpc.StatusCode.UNAUTHENTICATED
        assert code(say, opened, token="x" * 20) is grpc.StatusCode.UNAUTHENTICATED
        assert code(say, opened, token=WRITER) is grpc.StatusCode.PERMISSION_DENIED
        assert say(opened, token=READER) == b"x"
        each = stack.enter_context(channel(f"127.0.0.1:{served.grpc_port}", token=WRITER))
        assert each.stream_unary("/test.Echo/Each")(iter([b"a"]), timeout=20) == b"a"
        health = health_pb2_grpc.HealthStub(opened)
        answer = health.Check(health_pb2.HealthCheckRequest(), timeout=20)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(opened)
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        answers = reflection.ServerReflectionInfo(asked, timeout=20)
        assert code(next, answers) is grpc.StatusCode.UNAUTHENTICATED


def test_tokens_are_changed_while_it_runs():
    security = security_of(r=(READER, ["read"]))
    with ports(security) as served, ExitStack() as stack:
        opened = connect(served.grpc_port, stack)
        assert say(opened, token=READER) == b"x"
        security.reload(security_of(r=(WRITER, ["read"])).config)
        assert code(say, opened, token=READER) is grpc.StatusCode.UNAUTHENTICATED
        assert say(opened, token=WRITER) == b"x"


@pytest.mark.parametrize(
    "method", ["/test.Echo/Say", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"]
)
def test_calls_that_send_nothing_hold_nobody(method: str):
    """Far more of them than there are threads, on connections of their own."""
    with ports(threads=4) as served, ExitStack() as stack:
        other = connect(served.grpc_port, stack)
        assert say(other) == b"x"
        _RELEASED.clear()
        stack.callback(_RELEASED.append, True)
        held = []
        for _ in range(4):
            opened = connect(served.grpc_port, stack)
            held += [idle_stream(opened, method) for _ in range(25)]
        for _ in range(20):
            assert say(other) == b"x"
        for call in held:
            call.cancel()


def test_of_too_many_that_wait_the_longest_is_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(grpc_guard, "MAX_WAITING", 10)
    with ports() as served, ExitStack() as stack:
        opened, other = connect(served.grpc_port, stack), connect(served.grpc_port, stack)
        _RELEASED.clear()
        stack.callback(_RELEASED.append, True)
        first = idle_stream(opened, "/test.Echo/Say")
        time.sleep(0.5)
        held = [idle_stream(opened, "/test.Echo/Say") for _ in range(20)]
        assert first.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert say(other) == b"x"
        for call in held:
            call.cancel()


def test_one_principal_cannot_take_all_calls(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(grpc_guard, "MAX_CALLS", 8)
    security = security_of(r=(READER, ["read"]), w=(WRITER, ["read"]))
    with ports(security, threads=16) as served, ExitStack() as stack:
        opened = connect(served.grpc_port, stack)
        greedy = [("authorization", f"Bearer {READER}")]
        calls = [
            opened.unary_unary("/test.Echo/Say").future(b"sleep", metadata=greedy, timeout=20)
            for _ in range(8)
        ]
        assert say(opened, token=WRITER) == b"x"
        codes = [call.code() for call in calls]
        assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 4
        assert codes.count(grpc.StatusCode.OK) == 4


def test_half_sent_requests_hold_nobody(monkeypatch: pytest.MonkeyPatch):
    """More of them than there may be connections: each new one costs the oldest that waits."""
    monkeypatch.setattr(http_guard, "MAX_CLIENT_CONNECTIONS", 32)
    with ports() as served, ExitStack() as stack:
        for number in range(100):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", served.http_port)))
            if number % 3 == 0:
                idle.sendall(b"POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n12")
            elif number % 3 == 1:
                idle.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n")
            assert number % 10 or status(served.http_port) == 200
        assert status(served.http_port) == 200


def test_a_client_has_its_time_for_head_and_body(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(http_guard, "HEADER_SECONDS", 0.3)
    monkeypatch.setattr(http_guard, "BODY_SECONDS", 0.3)
    with ports() as served, ExitStack() as stack:
        for sent in (
            b"",
            b"GET /healthz HTTP/1.1\r\nhost: x\r\n",
            b"POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n12",
        ):
            idle = stack.enter_context(
                socket.create_connection(("127.0.0.1", served.http_port), timeout=20)
            )
            idle.sendall(sent)
            assert _ended(idle)
        assert status(served.http_port) == 200


def _ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(100) == b""
    except ConnectionError:
        return True


def test_a_head_has_its_limit():
    with ports() as served:
        assert status(served.http_port, x="y" * 8_000) == 200
        assert status(served.http_port, x="y" * 17_000) == 400
        assert status(served.http_port, **{f"x{n}": "y" * 90 for n in range(200)}) == 400


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("127.0.0.1:9464", True),
        ("[::1]:9464", True),
        ("localhost", True),
        ("daemon:9464", True),
        ("daemon.monitoring.svc.cluster.local", True),
        ("drift.example.org", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("evil.example:9464", False),
        ("", False),
    ],
)
def test_only_requests_for_this_host_are_answered(host: str, answered: bool):
    security = Security(SecurityConfig(hosts=("drift.example.org",)))
    with ports(security) as served:
        assert status(served.http_port, host=host) == (200 if answered else 421)


@pytest.mark.parametrize("address", ["0.0.0.0:0", "192.0.2.1:0", "example.org:0", "[::]:0"])
@pytest.mark.parametrize("edge", ["grpc_address", "http_address"])
def test_plaintext_is_for_loopback_only_unless_told(address: str, edge: str):
    with pytest.raises(AddressError, match=r"security\.tls"):
        ports(**{edge: address})
    allowed = Security(SecurityConfig(allow_plaintext=True))
    if address == "0.0.0.0:0":
        with ports(allowed, **{edge: address}):
            pass


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:x", ":80", "127.0.0.1:99999"])
def test_what_is_no_address_is_said(address: str):
    with pytest.raises(AddressError, match="is not host:port"):
        ports(http_address=address)


def test_ipv6():
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with ports(grpc_address="[::1]:0", http_address="[::1]:0") as served, ExitStack() as stack:
        opened = stack.enter_context(grpc.insecure_channel(f"[::1]:{served.grpc_port}"))
        assert say(opened) == b"x"
        with closing(http.client.HTTPConnection("::1", served.http_port, timeout=20)) as client:
            client.request("GET", "/healthz")
            assert client.getresponse().status == 200


class TestClient:
    def test_a_token_is_not_sent_in_the_clear(self):
        with pytest.raises(CredentialsError, match="in the clear"):
            channel("features.internal:9467", token=READER)
        channel("features.internal:9467", token=READER, allow_plaintext=True).close()

    def test_calls_to_this_machine_go_through_no_proxy(self, monkeypatch: pytest.MonkeyPatch):
        for name in ("http_proxy", "https_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.delenv("no_proxy", raising=False)
        with ports() as served, channel(f"127.0.0.1:{served.grpc_port}") as opened:
            assert say(opened) == b"x"


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked",
        b"content-length: 5\r\ncontent-length: 6",
        b"content-length: 5, 6",
        b"content-length: +5",
        b"transfer-encoding: chunked, identity",
        b"transfer-encoding : chunked",
        b"x: a\r\n\x00b: c",
        b"host: other",
    ],
)
def test_a_request_that_two_servers_would_read_differently_is_refused(head: bytes):
    """Or ends the connection: what follows is never read as a second request (smuggling)."""
    hidden = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    body = b"0\r\n\r\n" + hidden
    with (
        ports() as served,
        socket.create_connection(("127.0.0.1", served.http_port), timeout=20) as connection,
    ):
        connection.sendall(b"POST /body HTTP/1.1\r\nhost: x\r\n" + head + b"\r\n\r\n" + body)
        said = b""
        with suppress(ConnectionError, TimeoutError):
            connection.settimeout(1)
            while part := connection.recv(1000):
                said += part
    assert said.split(b" ")[1] in {b"400", b"421", b"501"}, said
    assert said.count(b"HTTP/1.1 ") == 1, said
