"""A client's side: channels that show who asks, and send no secret in the clear.

Above `config`. A token goes over TLS, or to this machine only; calls to this machine go through no
proxy.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc

from steadfeast.featurestore.config import is_loopback
from steadfeast.featurestore.errors import UserError
from steadfeast.featurestore.security.config import ClientTlsConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TOKEN, CA, CERTIFICATE, KEY = (
    f"STEADFEAST_{name}" for name in ("TOKEN", "CA", "CERTIFICATE", "KEY")
)
"""Environment variables of command-line clients."""


class CredentialsError(UserError):
    """A server cannot be called in this way.

    Attributes:
        address: `host:port` of the server.
    """

    def __init__(self, address: str, problem: str) -> None:
        self.address = address
        super().__init__(f"{address}: {problem}")


def channel(
    address: str,
    *,
    token: str = "",
    tls: ClientTlsConfig | None = None,
    allow_plaintext: bool = False,
    options: Sequence[tuple[str, Any]] = (),
) -> grpc.Channel:
    """Return a channel to a server; it connects when it is first used.

    Args:
        address: `host:port`.
        token: Sent with every call; empty for none.
        tls: None means plaintext.
        allow_plaintext: Send a token without TLS off loopback too.
        options: Of gRPC.

    Raises:
        CredentialsError: The token would be readable on its way, or a PEM file cannot be read.
    """
    if is_loopback(address):
        options = [*options, ("grpc.enable_http_proxy", 0)]
    elif token and tls is None and not allow_plaintext:
        problem = "is not this machine, and the token would be sent in the clear; use TLS"
        raise CredentialsError(address, problem)
    if tls is None:
        made = grpc.insecure_channel(address, options=options)
    else:
        try:
            credentials = grpc.ssl_channel_credentials(
                root_certificates=_read(tls.ca),
                private_key=_read(tls.key),
                certificate_chain=_read(tls.certificate),
            )
        except OSError as error:
            raise CredentialsError(address, f"{error.filename}: {error.strerror}") from error
        made = grpc.secure_channel(address, credentials, options=options)
    return grpc.intercept_channel(made, _Token(token)) if token else made


def from_environment(
    address: str, token: str = "", ca: Path | None = None, *, allow_plaintext: bool = False
) -> grpc.Channel:
    """Return a channel with what `STEADFEAST_TOKEN`, `_CA`, `_CERTIFICATE` and `_KEY` say.

    Args:
        address: `host:port`.
        token: Where the environment has none.
        ca: Where the environment has none.
        allow_plaintext: See `channel`.

    Raises:
        CredentialsError: See `channel`.
    """
    given = {name: os.environ.get(name, "") for name in (CA, CERTIFICATE, KEY)}
    paths = {name: Path(value) if value else None for name, value in given.items()}
    root = paths[CA] or ca
    if bool(given[CERTIFICATE]) != bool(given[KEY]):
        raise CredentialsError(address, f"{CERTIFICATE} and {KEY} go together")
    tls = None
    if root is not None or paths[CERTIFICATE] is not None:
        tls = ClientTlsConfig(ca=root, certificate=paths[CERTIFICATE], key=paths[KEY])
    token = os.environ.get(TOKEN, "") or token
    return channel(address, token=token, tls=tls, allow_plaintext=allow_plaintext)


def _read(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: tuple[tuple[str, str], ...]
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: Any


class _Token(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[type-arg]
    grpc.UnaryStreamClientInterceptor,  # type: ignore[type-arg]
    grpc.StreamUnaryClientInterceptor,  # type: ignore[type-arg]
    grpc.StreamStreamClientInterceptor,  # type: ignore[type-arg]
):
    """Adds a bearer token to every call; gRPC's own credentials would refuse loopback plaintext."""

    def __init__(self, token: str) -> None:
        self._header = ("authorization", f"Bearer {token}")

    def _call(self, continuation: Callable[[Any, Any], Any], details: Any, given: Any) -> Any:
        signed = _Details(
            details.method,
            details.timeout,
            (*(details.metadata or ()), self._header),
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )
        return continuation(signed, given)

    intercept_unary_unary: Any = _call
    intercept_unary_stream: Any = _call
    intercept_stream_unary: Any = _call
    intercept_stream_stream: Any = _call
