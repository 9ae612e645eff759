"""The daemon's HTTP port: the page, the report, `/metrics`, `/healthz` and `/readyz`.

Above `render`, `access` and `collector`; `daemon` serves what is made here. A GET reads the last
committed state and nothing else, so it never waits for an evaluation and changes nothing. A POST
says what a person did, if they may. Nothing is loaded from elsewhere and nothing is run in the
browser: the policy below forbids it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol
from urllib.parse import parse_qsl

from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from steadfeast.featurestore.errors import NotFoundError, RequestError
from steadfeast.featurestore.plain_text import check_plain
from steadfeast.featurestore.security import (
    COOKIE,
    SESSION_SECONDS,
    Access,
    RefusedError,
    Role,
    same_origin,
)
from steadfeast.monitor.decisions import NotDecidableError
from steadfeast.monitor.evaluation import NotYetError
from steadfeast.monitor.ledger import LedgerWriteError
from steadfeast.monitor.web.alertmanager import MAX_WEBHOOK_BYTES, parse
from steadfeast.monitor.web.render import HERE, Renderer, Viewer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from prometheus_client import CollectorRegistry
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from steadfeast.monitor.evaluation import ForeignAlert
    from steadfeast.monitor.ledger import State

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
"""Sent with every answer."""

ROLES = {"acknowledge": Role.ACKNOWLEDGE, "approve": Role.APPROVE, "reject": Role.APPROVE}
"""What each verb of a form needs."""

MAX_BODY_BYTES = 16 * 1024
"""Largest form that is read."""

STATIC = {"page.css": "text/css; charset=utf-8", "icon.svg": "image/svg+xml"}
"""Files beside this one that the page loads, with their types."""


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the daemon does its work.

    Attributes:
        ok: True when it does.
        reason: Why not, in one line; empty when it does.
        stuck: Whether only a new process would help.
    """

    ok: bool
    reason: str = ""
    stuck: bool = False


class _Headers:
    """Adds `HEADERS` to every answer, and keeps caches from answering for the daemon."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                added = {**HEADERS, "Cache-Control": "no-store"}.items()
                message["headers"] = [
                    *message["headers"],
                    *(
                        (name.lower().encode(), value.encode())
                        for name, value in added
                        if name.lower().encode() not in present
                    ),
                ]
            await send(message)

        await self._app(scope, receive, with_headers)


class Acknowledge(Protocol):
    """Notes that a person has seen an episode; see `Ledger.acknowledge`."""

    def __call__(self, episode: str, actor: str, comment: str) -> object:
        """Commit it."""


class Decide(Protocol):
    """A person's word on a trigger that waits; see `Evaluator.decide`."""

    def __call__(self, request: str, *, yes: bool, actor: str, comment: str) -> object:
        """Commit it."""


class Tell(Protocol):
    """Takes other systems' alerts as causes; see `Causes.told`."""

    def __call__(self, alerts: Sequence[ForeignAlert], actor: str) -> int:
        """Commit what follows."""


def nobody(alerts: Sequence[ForeignAlert], actor: str) -> int:  # noqa: ARG001
    """Take nothing: no alert is a cause."""
    return 0


@dataclass(frozen=True, slots=True)
class Operator:
    """What may be done over HTTP, and by whom.

    Attributes:
        access: Who may act.
        tell: Takes other systems' alerts.
    """

    access: Access
    acknowledge: Acknowledge
    decide: Decide
    tell: Tell = nobody


def app(
    state: Callable[[], State],
    healthy: Callable[[], Health],
    metrics: CollectorRegistry,
    operator: Operator | None = None,
) -> Starlette:
    """Return the application to serve.

    Args:
        state: Gives the last committed state, without blocking.
        healthy: Says whether the daemon does its work, without blocking.
        metrics: What `/metrics` exposes.
        operator: What people may do; without it the page has no buttons and no POST is taken.
    """
    routes = [*_reading(metrics), *_probes(state, healthy)]
    access = None if operator is None else operator.access
    renderer = Renderer()
    routes += _showing(state, healthy, renderer, access)
    if operator is not None and access is not None:
        routes += _Acting(operator, renderer, access).routes()
    return Starlette(routes=routes, middleware=[Middleware(_Headers)])


def _reading(metrics: CollectorRegistry) -> list[Route]:
    """Return what is for machines and browsers, not for people."""
    contents = {name: (HERE / "static" / name).read_bytes() for name in STATIC}

    async def exposition(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        content = await run_in_threadpool(encode, metrics)
        return Response(content, headers={"content-type": content_type})

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC:
            return PlainTextResponse("not found\n", status_code=404)
        headers = {"content-type": STATIC[name], "cache-control": "max-age=3600"}
        return Response(contents[name], headers=headers)

    return [Route("/metrics", exposition), Route("/static/{name}", static)]


def _probes(state: Callable[[], State], healthy: Callable[[], Health]) -> list[Route]:
    async def alive(_: Request) -> Response:
        health = healthy()
        return _answer(health if health.stuck else Health(ok=True))

    async def ready(_: Request) -> Response:
        health = healthy()
        if health.ok and not any(job.last_success for job in state().jobs.values()):
            health = Health(ok=False, reason="no job has ended well since the start")
        return _answer(health)

    return [Route("/healthz", alive), Route("/readyz", ready)]


def _showing(
    state: Callable[[], State],
    healthy: Callable[[], Health],
    renderer: Renderer,
    access: Access | None,
) -> list[Route]:
    async def index(request: Request) -> Response:
        session = access.session(request.cookies.get(COOKIE, "")) if access else None
        viewer = Viewer(session.actor, session.key) if session else None
        possible = access is not None and access.needed
        now, health = datetime.now(UTC), healthy()
        html = await run_in_threadpool(
            renderer.page, state(), health.reason, now, viewer, may_sign_in=possible
        )
        return HTMLResponse(html)

    async def report(_: Request) -> Response:
        html = await run_in_threadpool(
            renderer.report, state(), healthy().reason, datetime.now(UTC)
        )
        return HTMLResponse(html, headers={"content-security-policy": renderer.report_policy})

    return [Route("/", index), Route("/report", report)]


class _Acting:
    """What changes something. Every refusal is a page or, for a program, a line."""

    def __init__(self, operator: Operator, renderer: Renderer, access: Access) -> None:
        self._operator, self._renderer, self._access = operator, renderer, access

    def routes(self) -> list[Route]:
        """Return a route for each; none of them changes anything on GET."""
        found = (
            ("/sign-in", self._ask, "GET"),
            ("/sign-in", self._sign_in, "POST"),
            ("/sign-out", self._sign_out, "POST"),
            ("/act", self._act, "POST"),
            ("/alertmanager", self._told, "POST"),
        )
        return [Route(path, self._where_possible(do), methods=[verb]) for path, do, verb in found]

    def _where_possible(
        self, do: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Hide what nobody may do: without any token nobody can say who they are."""

        async def answer(request: Request) -> Response:
            if not self._access.needed:
                return PlainTextResponse("not found\n", status_code=404)
            return await do(request)

        return answer

    async def _ask(self, _: Request) -> Response:
        return HTMLResponse(self._renderer.sign_in("Sign in"))

    async def _sign_in(self, request: Request) -> Response:
        try:
            form = await _form(request)
            cookie = self._access.sign_in(
                form.get("actor", ""), form.get("token", ""), _address(request)
            )
        except RefusedError as error:
            return self._refused(request, error.status, str(error), ask=True)
        answer = RedirectResponse("./", status_code=303)
        answer.set_cookie(
            COOKIE,
            cookie,
            max_age=SESSION_SECONDS,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    async def _sign_out(self, request: Request) -> Response:
        cookie = request.cookies.get(COOKIE, "")
        try:
            self._access.actor(request.headers, cookie, await _form(request))
        except RefusedError as error:
            return self._refused(request, error.status, str(error))
        self._access.sign_out(cookie)
        answer = RedirectResponse("./", status_code=303)
        answer.delete_cookie(COOKIE)
        return answer

    async def _act(self, request: Request) -> Response:
        try:
            form = await _form(request)
            cookie = request.cookies.get(COOKIE, "")
            role = ROLES.get(form.get("verb", ""))
            actor = self._access.actor(request.headers, cookie, form, role, _address(request))
            anchor = await run_in_threadpool(_done, self._operator, form, actor)
        except RefusedError as error:
            ask = error.status == HTTPStatus.UNAUTHORIZED
            return self._refused(request, error.status, str(error), ask=ask)
        except NotFoundError as error:
            return self._refused(request, HTTPStatus.NOT_FOUND, str(error))
        except NotDecidableError as error:
            return self._refused(request, HTTPStatus.CONFLICT, str(error))
        except LedgerWriteError as error:
            return self._refused(request, HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        return RedirectResponse(f"./#{anchor}", status_code=303)

    async def _told(self, request: Request) -> Response:
        """Take a message of Alertmanager's; what is no JSON of its is not sent again after 400."""
        try:
            form = {"actor": "alertmanager"}
            actor = self._access.actor(request.headers, "", form, Role.TRIGGER, _address(request))
            alerts = parse(await _body(request, MAX_WEBHOOK_BYTES))
            changed = await run_in_threadpool(self._operator.tell, alerts, actor)
        except RefusedError as error:
            return PlainTextResponse(f"{error}\n", status_code=error.status)
        except (NotYetError, LedgerWriteError) as error:
            return PlainTextResponse(f"{error}\n", status_code=503)
        return PlainTextResponse(f"{changed} of {len(alerts)} alerts changed something\n")

    def _refused(
        self, request: Request, status: int, problem: str, *, ask: bool = False
    ) -> Response:
        if "text/html" not in request.headers.get("accept", ""):
            return PlainTextResponse(f"{problem}\n", status_code=status)
        title = "Sign in" if ask else "That was not done"
        html = self._renderer.sign_in(title, problem, ask=ask)
        return HTMLResponse(html, status_code=status)


async def _form(request: Request) -> dict[str, str]:
    """Read a form that a page of ours, or a program, has posted.

    Raises:
        RefusedError: It comes from another site, is no form, or is too large.
    """
    if not same_origin(request.headers, request.url.scheme):
        raise RefusedError(403, "this request was made by another site")
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        raise RefusedError(415, "post application/x-www-form-urlencoded")
    body = await _body(request, MAX_BODY_BYTES)
    form = dict(parse_qsl(body.decode(errors="replace")))
    for field, text in form.items():
        try:
            check_plain(field, text)
        except RequestError as error:
            raise RefusedError(400, str(error)) from error
    return form


async def _body(request: Request, limit: int) -> bytes:
    """Read the body.

    Raises:
        RefusedError: It is larger than `limit`.
    """
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > limit:
            raise RefusedError(413, f"the body is larger than {limit} bytes")
    return b"".join(parts)


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _done(operator: Operator, form: dict[str, str], actor: str) -> str:
    """Do what a form asks for and return where on the page it is seen."""
    verb, subject, comment = (form.get(name, "") for name in ("verb", "subject", "comment"))
    if verb == "acknowledge":
        operator.acknowledge(subject, actor, comment)
        return f"episode-{subject}"
    if verb in {"approve", "reject"}:
        operator.decide(subject, yes=verb == "approve", actor=actor, comment=comment)
        return "retraining"
    raise RefusedError(400, "field verb has to be acknowledge, approve or reject")


def _answer(health: Health) -> Response:
    return PlainTextResponse(
        "ok\n" if health.ok else f"{health.reason}\n", status_code=200 if health.ok else 503
    )
