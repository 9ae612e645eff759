"""Who may act: tokens with their roles, and sessions of people who signed in on a page.

Above `config`; the guards of gRPC and HTTP ask here. A token comes with each request
(`Authorization: Bearer`), or is exchanged once for a cookie that scripts cannot read and that
browsers send to no other site's requests. A request that comes with a cookie must also carry the
session's key, which only our own pages know.
"""

from __future__ import annotations

import hmac
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING

from steadfeast.featurestore.errors import UserError
from steadfeast.featurestore.security.config import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from steadfeast.featurestore.security.config import SecurityConfig, TokenConfig

COOKIE = "steadfeast_session"
SESSION_SECONDS = 8 * 3600
MAX_SESSIONS = 100
MAX_FAILURES = 10
FAILURE_SECONDS = 60.0
"""After `MAX_FAILURES` wrong tokens from an address within this time, it is shut out: only tokens
that were right from there before are taken."""
MAX_ADDRESSES = 1024
"""Addresses that are remembered; the one that was heard of least lately is forgotten first."""


class RefusedError(UserError):
    """A request may not do what it asks.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int, problem: str) -> None:
        self.status = status
        super().__init__(problem)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a request.

    Attributes:
        name: Of the token; empty where no token is needed.
        roles: What they may do.
    """

    name: str
    roles: frozenset[Role]

    def may(self, role: Role) -> bool:
        """Whether they may do what needs `role`."""
        return role in self.roles or Role.ADMIN in self.roles

    def signed(self, actor: str) -> str:
        """Return who did something, as it is kept: the name given, and whose token it was."""
        actor = actor.strip()
        return f"{actor} ({self.name})" if actor and self.name else actor or self.name


ANYBODY = Principal("", frozenset(Role))
"""Everybody, as long as there are no tokens."""


@dataclass(frozen=True, slots=True)
class Session:
    """One person who signed in.

    Attributes:
        actor: Their name, and whose token they used.
        token: Name of that token.
        key: What their forms carry.
        until: When it ends, monotonic clock.
    """

    actor: str
    token: str
    key: str
    until: float


class _Address:
    """What is remembered of an address: when it sent wrong tokens, and whose were right."""

    def __init__(self) -> None:
        self.failures: list[float] = []
        self.known: set[str] = set()


class Access:
    """Decides who may act; safe to share between threads.

    Args:
        tokens: By name; see `SecurityConfig.tokens`.
        clock: Monotonic seconds.
    """

    def __init__(
        self, tokens: Mapping[str, TokenConfig], clock: Callable[[], float] = monotonic
    ) -> None:
        self._clock, self._lock = clock, Lock()
        self._sessions: dict[str, Session] = {}
        self._addresses: OrderedDict[str, _Address] = OrderedDict()
        self._tokens: dict[str, tuple[bytes, Principal]] = {}
        self.replace(tokens)

    def replace(self, tokens: Mapping[str, TokenConfig]) -> None:
        """Take these tokens from now on; sessions and addresses of other tokens are forgotten.

        Where they differ from those before, so are wrong tries: a client that was given its new
        token a moment early is no guesser.
        """
        fresh = {
            name: (secret.encode(), Principal(name, frozenset(one.roles)))
            for name, one in tokens.items()
            if (secret := one.token.get_secret_value())
        }
        with self._lock:
            gone = {name for name in self._tokens if fresh.get(name) != self._tokens[name]}
            changed, self._tokens = fresh != self._tokens, fresh
            self._sessions = {k: s for k, s in self._sessions.items() if s.token not in gone}
            for address in self._addresses.values():
                address.known -= gone
                if changed:
                    address.failures.clear()

    @property
    def needed(self) -> bool:
        """Whether a request has to come with a token."""
        return bool(self._tokens)

    def authorize(self, token: str, role: Role | None = None, address: str = "") -> Principal:
        """Return whose token it is.

        Args:
            token: As it was sent.
            role: What the request needs; none for what everybody with a token may.
            address: Where the request comes from.

        Raises:
            RefusedError: 401 for nobody's, 403 for one without `role` or where there are no
                tokens, 429 while the address is shut out.
        """
        if not self._tokens:
            raise RefusedError(
                403, "there is no token in the configuration, so nobody may act here"
            )
        with self._lock:
            found = self._found(token, _network(address))
        if role is not None and not found.may(role):
            raise RefusedError(403, f"the token of {found.name} may not {role}")
        return found

    def _found(self, token: str, network: str) -> Principal:
        now, seen = self._clock(), self._addresses.setdefault(network, _Address())
        self._addresses.move_to_end(network)
        while len(self._addresses) > MAX_ADDRESSES:
            self._addresses.popitem(last=False)
        seen.failures = [at for at in seen.failures if now - at < FAILURE_SECONDS]
        # All are compared, so that the time taken does not say which was near.
        sent = token.encode()
        right = [who for secret, who in self._tokens.values() if hmac.compare_digest(secret, sent)]
        if right and (right[0].name in seen.known or len(seen.failures) < MAX_FAILURES):
            seen.known.add(right[0].name)
            return right[0]
        if len(seen.failures) >= MAX_FAILURES:
            raise RefusedError(429, "too many wrong tokens from this address; wait a minute")
        seen.failures.append(now)
        raise RefusedError(401, "the token is wrong")

    def bearer(self, header: str, role: Role, address: str) -> Principal:
        """Return who sent a request with this `Authorization` header.

        Raises:
            RefusedError: See `authorize`; 401 without a token where one is needed.
        """
        if not self.needed:
            return ANYBODY
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer":
            raise RefusedError(401, f"a token with the role {role} is needed")
        return self.authorize(token, role, address)

    def sign_in(self, actor: str, token: str, address: str = "") -> str:
        """Open a session and return the value of its cookie.

        Raises:
            RefusedError: See `authorize`; or there is no name.
        """
        if not actor.strip():
            raise RefusedError(400, "a name is needed: it is kept with what you do")
        principal = self.authorize(token, address=address)
        now = self._clock()
        cookie, key = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        opened = Session(principal.signed(actor), principal.name, key, now + SESSION_SECONDS)
        with self._lock:
            live = {sid: one for sid, one in self._sessions.items() if one.until > now}
            while len(live) >= MAX_SESSIONS:
                live.pop(next(iter(live)))
            self._sessions = {**live, cookie: opened}
        return cookie

    def sign_out(self, cookie: str) -> None:
        """End a session; unknown ones are none."""
        with self._lock:
            self._sessions.pop(cookie, None)

    def session(self, cookie: str) -> Session | None:
        """Return the live session of a cookie."""
        with self._lock:
            found = self._sessions.get(cookie)
        return found if found is not None and found.until > self._clock() else None

    def may(self, session: Session, role: Role) -> bool:
        """Whether the token of a session is for `role`."""
        held = self._tokens.get(session.token)
        return held is not None and held[1].may(role)

    def actor(
        self,
        headers: Mapping[str, str],
        cookie: str,
        form: Mapping[str, str],
        role: Role | None = None,
        address: str = "",
    ) -> str:
        """Return who makes a request that changes something.

        Args:
            headers: Of the request, lower case.
            cookie: Of the session; empty without one.
            form: Fields of the body: `key` with a cookie, `actor` with a bearer token.
            role: What the request needs; none for what everybody may.
            address: Where it comes from.

        Raises:
            RefusedError: They may not.
        """
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            principal = self.authorize(token, role, address)
            if not form.get("actor", "").strip():
                raise RefusedError(400, "field actor is needed: it is kept with what is done")
            return principal.signed(form["actor"])
        session = self.session(cookie)
        if session is None:
            raise RefusedError(401, "sign in first")
        if not hmac.compare_digest(session.key.encode(), form.get("key", "").encode()):
            raise RefusedError(403, "this form is not of your session; go back and reload the page")
        if role is not None and not self.may(session, role):
            raise RefusedError(403, f"the token of {session.token} may not {role}")
        return session.actor


def access_of(config: SecurityConfig) -> Access:
    """Return who may act on a server; all of its ports share one, so that each failure counts."""
    return Access(config.tokens)


def _network(address: str) -> str:
    """Return what is counted as one address: of IPv6, a host has a whole /64."""
    try:
        ip = ip_address(address)
    except ValueError:
        return address
    if not isinstance(ip, IPv6Address):
        return address
    return str(ip.ipv4_mapped or ip_network((ip, 64), strict=False))


def same_origin(headers: Mapping[str, str], scheme: str) -> bool:
    """Say whether a request was sent by a page of ours, or by no page at all.

    Args:
        headers: Of the request, lower case.
        scheme: Of the request, `http` or `https`.
    """
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if site is not None and site != "same-origin":
        return False
    # A proxy may end TLS before us, so the scheme may differ from ours; the host may not.
    hosts = {f"{one}://{headers.get('host', '')}" for one in (scheme, "https")}
    return origin is None or origin in hosts
