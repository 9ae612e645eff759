"""The certificates of a server's ports.

They are read again when their files change, so that a renewed one is used from the next connection
on, without a restart.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import grpc
import structlog

from steadfeast.featurestore.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from steadfeast.featurestore.security.config import TlsConfig

log = structlog.get_logger(__name__)


class CertificateError(UserError):
    """A certificate or key cannot be used.

    Attributes:
        path: The certificate.
    """

    def __init__(self, path: Path, problem: str) -> None:
        self.path = path
        super().__init__(f"{path}: {problem}")


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
