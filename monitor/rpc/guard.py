"""What a gRPC call has to show, and the certificates of both ports.

Above `access`, which knows the tokens; `server` and `daemon` use it. Certificates are read again
when their files change, so a renewed one is used from the next connection on, without a restart.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import grpc
import structlog

from steadfeast.featurestore.errors import UserError
from steadfeast.monitor.auth.access import Access, Principal, RefusedError
from steadfeast.monitor.config.schema import Role

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from steadfeast.monitor.config.schema import DaemonConfig, TlsConfig

log = structlog.get_logger(__name__)

PREFIX = "/steadfeast.v1.MonitorService/"

METHODS = {
    "GetStatus": Role.READ,
    "ListAlerts": Role.READ,
    "ListAudit": Role.AUDIT,
    "ListTriggers": Role.READ,
    "WatchAlerts": Role.READ,
    "Acknowledge": Role.ACKNOWLEDGE,
    "DecideTrigger": Role.APPROVE,
    "Evaluate": Role.TRIGGER,
    "ResendTrigger": Role.TRIGGER,
}
"""What each method of MonitorService needs; health and reflection are for everybody."""

_CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


class CertificateError(UserError):
    """A certificate or key cannot be used.

    Attributes:
        path: The certificate.
    """

    def __init__(self, path: Path, problem: str) -> None:
        self.path = path
        super().__init__(f"{path}: {problem}")


def principals(config: DaemonConfig) -> tuple[Principal, ...]:
    """Return who has a token, besides the operator."""
    return tuple(
        Principal(name, one.token.get_secret_value(), frozenset(one.roles))
        for name, one in config.tokens.items()
    )


class Guard(grpc.ServerInterceptor):  # type: ignore[type-arg]
    """Asks every call of MonitorService for a token of the method's role, where one is needed.

    The name of a token becomes part of who did it. A method without a role is refused.
    """

    def __init__(self, access: Access) -> None:
        self._access = access

    def intercept_service(
        self, continuation: Callable[[Any], Any], details: grpc.HandlerCallDetails
    ) -> Any:
        """See `grpc.ServerInterceptor`."""
        handler = continuation(details)
        mine = handler is not None and details.method.startswith(PREFIX)
        role = METHODS.get(details.method.removeprefix(PREFIX))
        if not mine or (role is not None and not self._access.needed(role)):
            return handler
        metadata = dict(details.invocation_metadata)
        scheme, _, token = str(metadata.get("authorization", "")).partition(" ")
        if role is None:
            return _refusing(handler, _CODES[403], "nobody may call this method")
        if scheme.lower() != "bearer":
            return _refusing(handler, _CODES[401], f"a token with the role {role} is needed")
        try:
            principal = self._access.authorize(token, role)
        except RefusedError as error:
            return _refusing(handler, _CODES[error.status], str(error))
        if handler.response_streaming:
            return handler
        return grpc.unary_unary_rpc_method_handler(
            _signed(handler.unary_unary, principal),
            handler.request_deserializer,
            handler.response_serializer,
        )


def _signed(
    behaviour: Callable[[Any, Any], Any], principal: Principal
) -> Callable[[Any, Any], Any]:
    def call(request: Any, context: grpc.ServicerContext) -> Any:
        if "actor" in request.DESCRIPTOR.fields_by_name:
            request.actor = principal.signed(request.actor)
        return behaviour(request, context)

    return call


def _refusing(handler: Any, code: grpc.StatusCode, problem: str) -> Any:
    def refuse(_: Any, context: grpc.ServicerContext) -> Any:
        context.abort(code, problem)

    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(refuse, handler.request_deserializer)
    return grpc.unary_unary_rpc_method_handler(refuse, handler.request_deserializer)


class Certificates:
    """The files of one `TlsConfig`, read again when they change."""

    def __init__(self, config: TlsConfig) -> None:
        """Read them once.

        Raises:
            CertificateError: A file is missing, or certificate and key do not belong together.
        """
        self._config = config
        self._seen: dict[object, tuple[float, ...]] = {}
        self._check()

    def server_credentials(self) -> grpc.ServerCredentials:
        """Return credentials that follow the files."""
        self._seen["grpc"] = self._changed()
        credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            self._grpc(),
            self._fetch,
            require_client_authentication=self._config.client_ca is not None,
        )
        return credentials

    def refresh(self, context: ssl.SSLContext) -> None:
        """Have `context` use the files as they are now, if they have changed."""
        changed = self._changed()
        if self._seen.get(context) == changed:
            return
        try:
            self._check()
            context.load_cert_chain(self._config.certificate, self._config.key)
        except CertificateError as error:
            log.warning("certificate_kept", reason=str(error))
        else:
            self._seen[context] = changed

    def _fetch(self) -> Any:
        """Return what a new connection is to be served with; None keeps what there is."""
        changed = self._changed()
        if self._seen["grpc"] == changed:
            return None
        try:
            self._check()
            fresh = self._grpc()
        except (CertificateError, OSError) as error:
            log.warning("certificate_kept", reason=str(error))
            return None
        self._seen["grpc"] = changed
        log.info("certificate_reloaded", path=str(self._config.certificate))
        return fresh

    def _grpc(self) -> Any:
        config = self._config
        return grpc.ssl_server_certificate_configuration(
            [(config.key.read_bytes(), config.certificate.read_bytes())],
            root_certificates=None if config.client_ca is None else config.client_ca.read_bytes(),
        )

    def _changed(self) -> tuple[float, ...]:
        files = (self._config.certificate, self._config.key, self._config.client_ca)
        return tuple(p.stat().st_mtime_ns for p in files if p is not None and p.exists())

    def _check(self) -> None:
        # A certificate is replaced in two writes; between them it does not fit its key.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._config.certificate, self._config.key)
            if self._config.client_ca is not None:
                context.load_verify_locations(self._config.client_ca)
        except (OSError, ssl.SSLError) as error:
            raise CertificateError(
                self._config.certificate, error.strerror or str(error)
            ) from error
