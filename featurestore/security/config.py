"""Section `security` of `steadfeast.yaml`: one for every server that reads the file.

Bottom of `security`. Secrets are text, `${NAME}` from the environment, or `{file: PATH}`.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from steadfeast.featurestore.config import FilePath, Section, load_section, sections

SECTION = "security"
SHORTEST_TOKEN = 16


def _secret(value: object, info: ValidationInfo) -> object:
    """Read `{file: PATH}`; anything else is the secret itself."""
    if not isinstance(value, dict):
        return value
    if set(value) != {"file"}:
        raise ValueError("write the secret, ${NAME} for an environment variable, or {file: PATH}")
    path = Path((info.context or {}).get("folder", ".")) / str(value["file"])
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


_FILE = {"type": "object", "properties": {"file": {"type": "string"}}, "required": ["file"]}
Secret = Annotated[
    SecretStr,
    BeforeValidator(_secret),
    WithJsonSchema({"anyOf": [{"type": "string"}, {**_FILE, "additionalProperties": False}]}),
]
"""A token: as text, `${NAME}` from the environment, or `{file: PATH}`."""


class Role(StrEnum):
    """What a token may be used for.

    `read` sees features, runs, drift and alerts, but not who did what, which is for `audit`.
    `log` adds predictions and labels, `write` adds rows to the online store, `predict` asks
    models. `acknowledge` says that an episode was seen, `approve` decides triggers that wait.
    `trigger` starts and stops retraining, evaluates now, and tells of other systems' alerts.
    `promote` changes which model serves. `admin` may do everything.
    """

    READ = "read"
    LOG = "log"
    WRITE = "write"
    PREDICT = "predict"
    ACKNOWLEDGE = "acknowledge"
    APPROVE = "approve"
    TRIGGER = "trigger"
    PROMOTE = "promote"
    AUDIT = "audit"
    ADMIN = "admin"


class TokenConfig(Section):
    """Who may do what with which token.

    Attributes:
        token: At least 16 characters; an empty one is nobody's, so that `${NAME:-}` may be unset.
        roles: What for.
    """

    token: Secret
    roles: tuple[Role, ...] = Field(min_length=1)

    @field_validator("token")
    @classmethod
    def _not_guessable(cls, token: SecretStr) -> SecretStr:
        if 0 < len(token) < SHORTEST_TOKEN:
            raise ValueError(f"must have {SHORTEST_TOKEN} characters or more")
        return token


class TlsConfig(Section):
    """Certificates of a server's ports; files that change are used from the next connection on.

    Attributes:
        certificate: PEM, with the chain.
        key: PEM.
        client_ca: PEM; with it, gRPC ports take only clients with a certificate signed by it.
    """

    certificate: FilePath
    key: FilePath
    client_ca: FilePath | None = None


class ClientTlsConfig(Section):
    """How a server is known, and how a client shows who it is.

    Attributes:
        ca: PEM of who signs the server's certificate; none means what the machine trusts.
        certificate: PEM of the client's own certificate, for mTLS.
        key: PEM.
    """

    ca: FilePath | None = None
    certificate: FilePath | None = None
    key: FilePath | None = None

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together")
        return self


class SecurityConfig(Section):
    """The whole section; without it, servers answer on loopback, to everybody, in plaintext.

    Attributes:
        tls: Of all ports; none means plaintext.
        tokens: Tokens by the name of who has them. As soon as there is one, every call needs one
            but probes, `/metrics` and the monitor's page.
        allow_plaintext: Serve, and reach others, without TLS off loopback too: inside a network
            that only trusted programs share.
        hosts: More names that requests may come for, beside addresses, names without a dot, and
            names of private zones: a page of a stranger must not reach a server by a name of its
            own that points here.
    """

    tls: TlsConfig | None = None
    tokens: dict[str, TokenConfig] = Field(default_factory=dict)
    allow_plaintext: bool = False
    hosts: tuple[str, ...] = ()

    def token_of(self, role: Role) -> str:
        """Return a token that may be used for `role`, the one for the least first; or nothing."""
        fitting = [
            one
            for one in self.tokens.values()
            if {role, Role.ADMIN} & set(one.roles) and one.token.get_secret_value()
        ]
        fitting.sort(key=lambda one: (Role.ADMIN in one.roles, len(one.roles)))
        return fitting[0].token.get_secret_value() if fitting else ""


def load_security(path: Path) -> SecurityConfig:
    """Read section `security` of the file at `path`; one without it is the default.

    Raises:
        ConfigError: See `featurestore.config.load_section`.
    """
    if SECTION not in sections(path):
        return SecurityConfig()
    return load_section(path, SECTION, SecurityConfig)
