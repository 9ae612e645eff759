"""Who may act over HTTP: a token, sessions in memory, and what a request has to show.

Below `web`. Nobody may act unless the daemon was given an operator token. Who has it either sends
it with each request (`Authorization: Bearer`), or signs in with it once and gets a cookie that
scripts cannot read and that browsers send to no other site's requests. A request that comes with
a cookie must also carry the session's key, which only our own pages know.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING

from featurestore.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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
class Session:
    """One person who signed in.

    Attributes:
        key: What their forms carry.
        until: When it ends, monotonic clock.
    """

    actor: str
    key: str
    until: float


class Access:
    """Decides who may act; safe to share between threads.

    Args:
        token: The operator token; empty lets nobody in.
        clock: Monotonic seconds.
    """

    def __init__(self, token: str, clock: Callable[[], float] = monotonic) -> None:
        self._token, self._clock = token.encode(), clock
        self._lock = Lock()
        self._sessions: dict[str, Session] = {}
        self._failures: list[float] = []

    @property
    def possible(self) -> bool:
        """Whether anybody can get in at all."""
        return bool(self._token)

    def sign_in(self, actor: str, token: str) -> str:
        """Open a session and return the value of its cookie.

        Raises:
            RefusedError: The token is wrong, there were too many wrong ones, or no name.
        """
        if not actor.strip():
            raise RefusedError(400, "a name is needed: it is kept with what you do")
        self._check(token)
        now = self._clock()
        with self._lock:
            live = {sid: one for sid, one in self._sessions.items() if one.until > now}
            while len(live) >= MAX_SESSIONS:
                live.pop(next(iter(live)))
            cookie = secrets.token_urlsafe(32)
            key = secrets.token_urlsafe(32)
            live[cookie] = Session(actor.strip(), key, now + SESSION_SECONDS)
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

    def actor(self, headers: Mapping[str, str], cookie: str, form: Mapping[str, str]) -> str:
        """Return who makes a request that changes something.

        Args:
            headers: Of the request, lower case.
            cookie: Of the session; empty without one.
            form: Fields of the body: `key` with a cookie, `actor` with a bearer token.

        Raises:
            RefusedError: They may not.
        """
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            self._check(token)
            if not form.get("actor", "").strip():
                raise RefusedError(400, "field actor is needed: it is kept with what is done")
            return form["actor"].strip()
        session = self.session(cookie)
        if session is None:
            raise RefusedError(401, "sign in first")
        if not hmac.compare_digest(session.key.encode(), form.get("key", "").encode()):
            raise RefusedError(403, "this form is not of your session; go back and reload the page")
        return session.actor

    def _check(self, token: str) -> None:
        if not self._token:
            raise RefusedError(403, "this daemon has no operator token, so nobody may act here")
        now = self._clock()
        with self._lock:
            self._failures = [at for at in self._failures if now - at < FAILURE_SECONDS]
            if len(self._failures) >= MAX_FAILURES:
                raise RefusedError(429, "too many wrong tokens; wait a minute")
            if not hmac.compare_digest(self._token, token.encode()):
                self._failures.append(now)
                raise RefusedError(401, "the token is wrong")


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
