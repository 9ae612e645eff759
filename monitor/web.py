"""The daemon's HTTP port: the page, `/metrics`, `/healthz` and `/readyz`.

Above `page` and `collector`; `daemon` serves what is made here. Reads the last committed state
and nothing else, so a request never waits for an evaluation. Nothing is loaded from elsewhere
and nothing is run in the browser: the policy below forbids it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from monitor.collector import registry
from monitor.page import lasting, moment, page

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from monitor.state import State

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Sent with every answer."""

HERE = Path(__file__).parent

STATIC = {"page.css": "text/css; charset=utf-8", "icon.svg": "image/svg+xml"}
"""Files beside this one that the page loads, with their types."""


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the daemon does its work.

    Attributes:
        ok: True when it does.
        reason: Why not, in one line; empty when it does.
    """

    ok: bool
    reason: str = ""


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


def app(state: Callable[[], State], healthy: Callable[[], Health]) -> Starlette:
    """Return the application to serve.

    Args:
        state: Gives the last committed state, without blocking.
        healthy: Says whether the daemon does its work, without blocking.
    """
    metrics = registry(state)
    templates = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"moment": moment, "lasting": lasting}
    template = templates.get_template("page.html.jinja")
    contents = {name: (HERE / "static" / name).read_bytes() for name in STATIC}

    async def index(_: Request) -> Response:
        health = healthy()
        shown = page(state(), "" if health.ok else health.reason, datetime.now(UTC))
        return HTMLResponse(template.render(page=shown))

    async def exposition(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(metrics), headers={"content-type": content_type})

    async def alive(_: Request) -> Response:
        return _answer(healthy())

    async def ready(_: Request) -> Response:
        health = healthy()
        if health.ok and not any(job.last_success for job in state().jobs.values()):
            health = Health(ok=False, reason="no job has ended well since the start")
        return _answer(health)

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC:
            return PlainTextResponse("not found\n", status_code=404)
        headers = {"content-type": STATIC[name], "cache-control": "max-age=3600"}
        return Response(contents[name], headers=headers)

    return Starlette(
        routes=[
            Route("/", index),
            Route("/metrics", exposition),
            Route("/healthz", alive),
            Route("/readyz", ready),
            Route("/static/{name}", static),
        ],
        middleware=[Middleware(_Headers)],
    )


def _answer(health: Health) -> Response:
    return PlainTextResponse(
        "ok\n" if health.ok else f"{health.reason}\n", status_code=200 if health.ok else 503
    )
