"""Who may act: tokens, roles, sessions, certificates."""

from steadfeast.monitor.auth.access import (
    COOKIE,
    SESSION_SECONDS,
    Access,
    Principal,
    RefusedError,
    access_of,
    same_origin,
)
from steadfeast.monitor.auth.certificates import Certificates

__all__ = [
    "COOKIE",
    "SESSION_SECONDS",
    "Access",
    "Certificates",
    "Principal",
    "RefusedError",
    "access_of",
    "same_origin",
]
