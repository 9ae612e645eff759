"""What a configuration was, without keeping it: a digest of each of its fields.

Above `config`; `daemon` keeps the digests in the ledger, to say at the next start what has changed
meanwhile. Secrets take part, so that a new token shows; the digests are keyed by a salt, so that
those of two ledgers cannot be compared.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

if TYPE_CHECKING:
    from steadfeast.featurestore.security import SecurityConfig
    from steadfeast.monitor.config import DaemonConfig

SALT = ""
"""Name under which the salt itself is kept."""


def digests(config: DaemonConfig, security: SecurityConfig, salt: str = "") -> dict[str, str]:
    """Return field to digest, one for each monitor, with the salt that they were made with."""
    salt = salt or secrets.token_hex(16)
    plain = config.model_dump()
    fields = {name: value for name, value in plain.items() if name != "monitors"}
    fields |= {f"monitors.{name}": value for name, value in plain["monitors"].items()}
    fields |= {f"security.{name}": value for name, value in security.model_dump().items()}
    return {SALT: salt, **{name: _digest(value, salt) for name, value in fields.items()}}


def _digest(value: Any, salt: str) -> str:
    text = json.dumps(value, default=_plain, sort_keys=True)
    return hashlib.blake2b(text.encode(), key=salt.encode(), digest_size=16).hexdigest()


def _plain(value: Any) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
