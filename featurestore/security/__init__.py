"""Who may ask which server what: TLS, tokens, roles, limits, and the ports themselves.

A name is imported when it is first asked for: a configuration is read without loading a server.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steadfeast.featurestore.security.access import (
        COOKIE,
        SESSION_SECONDS,
        Access,
        Principal,
        RefusedError,
        access_of,
        same_origin,
    )
    from steadfeast.featurestore.security.certificates import CertificateError, Certificates
    from steadfeast.featurestore.security.client import CredentialsError, channel, from_environment
    from steadfeast.featurestore.security.config import (
        SHORTEST_TOKEN,
        ClientTlsConfig,
        Role,
        Secret,
        SecurityConfig,
        TlsConfig,
        TokenConfig,
        load_security,
    )
    from steadfeast.featurestore.security.grpc_guard import Call, caller
    from steadfeast.featurestore.security.http_guard import refusal
    from steadfeast.featurestore.security.ports import (
        GRACE_SECONDS,
        MAX_REQUEST_BYTES,
        Ports,
        Security,
        signals,
        until_stopped,
    )

_MODULES = {
    "GRACE_SECONDS": "ports",
    "signals": "ports",
    "until_stopped": "ports",
    "refusal": "http_guard",
    "SHORTEST_TOKEN": "config",
    "Access": "access",
    "COOKIE": "access",
    "Call": "grpc_guard",
    "CertificateError": "certificates",
    "Certificates": "certificates",
    "ClientTlsConfig": "config",
    "CredentialsError": "client",
    "MAX_REQUEST_BYTES": "ports",
    "Ports": "ports",
    "Principal": "access",
    "RefusedError": "access",
    "Role": "config",
    "SESSION_SECONDS": "access",
    "Secret": "config",
    "Security": "ports",
    "SecurityConfig": "config",
    "TlsConfig": "config",
    "TokenConfig": "config",
    "access_of": "access",
    "caller": "grpc_guard",
    "channel": "client",
    "from_environment": "client",
    "load_security": "config",
    "same_origin": "access",
}

__all__ = [
    "COOKIE",
    "GRACE_SECONDS",
    "MAX_REQUEST_BYTES",
    "SESSION_SECONDS",
    "SHORTEST_TOKEN",
    "Access",
    "Call",
    "CertificateError",
    "Certificates",
    "ClientTlsConfig",
    "CredentialsError",
    "Ports",
    "Principal",
    "RefusedError",
    "Role",
    "Secret",
    "Security",
    "SecurityConfig",
    "TlsConfig",
    "TokenConfig",
    "access_of",
    "caller",
    "channel",
    "from_environment",
    "load_security",
    "refusal",
    "same_origin",
    "signals",
    "until_stopped",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
