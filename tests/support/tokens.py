"""Tokens for tests: who has which, for what."""

from __future__ import annotations

from steadfeast.featurestore.security import Access, Security, SecurityConfig


def security_of(**tokens: tuple[str, list[str]]) -> Security:
    """Return a server's security with these tokens: `name=(token, roles)`."""
    given = {name: {"token": token, "roles": roles} for name, (token, roles) in tokens.items()}
    return Security(SecurityConfig.model_validate({"tokens": given}))


def access_of(**tokens: tuple[str, list[str]]) -> Access:
    """Return who may act with these tokens."""
    return security_of(**tokens).access
