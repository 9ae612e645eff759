"""Who may act: tokens with their roles, sessions in memory, and what a request has to show.

Below `web`, and `rpc.guard`, which asks for gRPC. Nobody may act over HTTP unless the daemon was
given a token. Who has one either sends it with each request (`Authorization: Bearer`), or signs in
with it once and gets a cookie that scripts cannot read and that browsers send to no other site's
requests. A request that comes with a cookie must also carry the session's key, which only our own
pages know.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING

from steadfeast.featurestore.errors import UserError
from steadfeast.monitor.config import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from steadfeast.monitor.config import DaemonConfig

COOKIE = "steadfeast_session"
SESSION_SECONDS = 8 * 3600
MAX_SESSIONS = 100
MAX_FAILURES = 10
FAILURE_SECONDS = 60.0
"""After `MAX_FAILURES` wrong tokens within this time, no token is looked at."""


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
    """A holder of a token.

    Attributes:
        name: Of the token; empty for the operator.
    """

    name: str
    token: str
    roles: frozenset[Role]

    def signed(self, actor: str) -> str:
        """Return who did something, as it is kept: the name given, and whose token it was."""
        actor = actor.strip()
        return f"{actor} ({self.name})" if actor and self.name else actor or self.name


@dataclass(frozen=True, slots=True)
class Session:
    """One person who signed in.

    Attributes:
        roles: What they may do.
        key: What their forms carry.
        until: When it ends, monotonic clock.
    """

    actor: str
    roles: frozenset[Role]
    key: str
    until: float


class Access:
    """Decides who may act; safe to share between threads.

    Args:
        token: The operator token, for everything; empty for none.
        clock: Monotonic seconds.
        principals: More tokens.
    """

    def __init__(
        self,
        token: str,
        clock: Callable[[], float] = monotonic,
        principals: Sequence[Principal] = (),
    ) -> None:
        operator = [Principal("", token, frozenset(Role))] if token else []
        self._principals, self._clock = (*operator, *principals), clock
        self._lock = Lock()
        self._sessions: dict[str, Session] = {}
        self._failures: list[float] = []

    @property
    def possible(self) -> bool:
        """Whether anybody can get in at all."""
        return bool(self._principals)

    def needed(self, role: Role) -> bool:
        """Whether a token is needed for `role` at all."""
        if role is Role.READ:
            return any(one.name and role in one.roles for one in self._principals)
        return self.possible

    def sign_in(self, actor: str, token: str) -> str:
        """Open a session and return the value of its cookie.

        Raises:
            RefusedError: The token is wrong, there were too many wrong ones, or no name.
        """
        if not actor.strip():
            raise RefusedError(400, "a name is needed: it is kept with what you do")
        principal = self.authorize(token)
        now = self._clock()
        with self._lock:
            live = {sid: one for sid, one in self._sessions.items() if one.until > now}
            while len(live) >= MAX_SESSIONS:
                live.pop(next(iter(live)))
            cookie = secrets.token_urlsafe(32)
            key = secrets.token_urlsafe(32)
            live[cookie] = Session(
                principal.signed(actor), principal.roles, key, now + SESSION_SECONDS
            )
            self._sessions = live
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

    def actor(
        self,
        headers: Mapping[str, str],
        cookie: str,
        form: Mapping[str, str],
        role: Role | None = None,
    ) -> str:
        """Return who makes a request that changes something.

        Args:
            headers: Of the request, lower case.
            cookie: Of the session; empty without one.
            form: Fields of the body: `key` with a cookie, `actor` with a bearer token.
            role: What the request needs; none for what everybody may.

        Raises:
            RefusedError: They may not.
        """
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            principal = self.authorize(token, role)
            if not form.get("actor", "").strip():
                raise RefusedError(400, "field actor is needed: it is kept with what is done")
            return principal.signed(form["actor"])
        session = self.session(cookie)
        if session is None:
            raise RefusedError(401, "sign in first")
        if not hmac.compare_digest(session.key.encode(), form.get("key", "").encode()):
            raise RefusedError(403, "this form is not of your session; go back and reload the page")
        if role is not None and role not in session.roles:
            raise RefusedError(403, f"your token may not {role}")
        return session.actor

    def authorize(self, token: str, role: Role | None = None) -> Principal:
        """Return whose token it is.

        Raises:
            RefusedError: Nobody's, not one for `role`, or there were too many wrong ones.
        """
        if not self._principals:
            raise RefusedError(403, "this daemon has no operator token, so nobody may act here")
        now = self._clock()
        with self._lock:
            self._failures = [at for at in self._failures if now - at < FAILURE_SECONDS]
            if len(self._failures) >= MAX_FAILURES:
                raise RefusedError(429, "too many wrong tokens; wait a minute")
            # All are compared, so that the time taken does not say which was near.
            found = [
                one
                for one in self._principals
                if hmac.compare_digest(one.token.encode(), token.encode())
            ]
            if not found:
                self._failures.append(now)
                raise RefusedError(401, "the token is wrong")
        if role is not None and role not in found[0].roles:
            raise RefusedError(403, f"your token may not {role}")
        return found[0]


def access_of(config: DaemonConfig) -> Access:
    """Return who may act on a daemon; both of its ports share one, so that each failure counts."""
    principals = [
        Principal(name, one.token.get_secret_value(), frozenset(one.roles))
        for name, one in config.tokens.items()
    ]
    return Access(config.operator_token.get_secret_value(), principals=principals)


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
