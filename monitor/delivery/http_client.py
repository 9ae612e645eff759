"""One HTTP call: JSON in, JSON out, and three ways to end.

Above `targets`, whose errors it raises; below `adapters` and `sinks`. An answer, or
`UnansweredError` for what says nothing about the request (no connection, a timeout, 408, 429, 502,
503, 504), or `RejectedError` for any other status of 400 and above. Redirects are not followed: a
token would go with them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import urllib3

from steadfeast.monitor.delivery.pipeline import RejectedError, UnansweredError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

DEADLINE_SECONDS = 10.0
MAX_ANSWER_BYTES = 8 * 1024 * 1024
RETRIED = frozenset({408, 429, 502, 503, 504})
SAID = 200
"""Characters of an answer that are quoted."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered; `body` is None when it is no JSON."""

    status: int
    headers: Mapping[str, str]
    body: Any


class Caller:
    """Calls one server; safe to share between threads.

    Args:
        url: What every path is appended to.
        headers: Sent with every call.
        ca: PEM of who signs the server's certificate; none means what the machine trusts.
    """

    def __init__(self, url: str, headers: Mapping[str, str], ca: Path | None = None) -> None:
        self._url = url.rstrip("/")
        self._headers = {"user-agent": "steadfeast", **headers}
        self._pool = urllib3.PoolManager(
            retries=False,
            timeout=urllib3.Timeout(total=DEADLINE_SECONDS),
            ca_certs=None if ca is None else str(ca),
        )

    def get(self, path: str, fields: Mapping[str, str] | None = None) -> Answer | None:
        """Return what is at `path`; None when nothing is (404).

        Raises:
            UnansweredError: See above.
            RejectedError: See above.
        """
        answer = self._call("GET", path, fields=dict(fields or {}))
        return None if answer.status == 404 else _checked(answer)  # noqa: PLR2004

    def post(
        self,
        path: str,
        body: object = None,
        *,
        fields: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        known: frozenset[int] = frozenset(),
    ) -> Answer:
        """Send JSON, or a form with `fields`; a status in `known` is an answer, not an error.

        Raises:
            UnansweredError: See above.
            RejectedError: See above.
        """
        if fields is not None:
            answer = self._call("POST", path, fields=dict(fields), encode_multipart=False)
        else:
            headers = {**self._headers, "content-type": content_type}
            answer = self._call("POST", path, body=json.dumps(body).encode(), headers=headers)
        return answer if answer.status in known else _checked(answer)

    def close(self) -> None:
        """Let connections go."""
        self._pool.clear()

    def _call(self, method: str, path: str, **more: Any) -> Answer:
        more.setdefault("headers", self._headers)
        try:
            response = self._pool.request(
                method, self._url + path, redirect=False, preload_content=False, **more
            )
            data = response.read(MAX_ANSWER_BYTES)
            response.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise UnansweredError(f"{self._url}: {error}") from error
        try:
            body = json.loads(data) if data else None
        except ValueError:
            body = None
        answer = Answer(response.status, response.headers, body)
        if answer.status in RETRIED:
            raise UnansweredError(_said(answer, data))
        if answer.status >= 300 and answer.status != 404 and body is None:  # noqa: PLR2004
            return Answer(answer.status, answer.headers, data[:SAID].decode(errors="replace"))
        return answer


def _checked(answer: Answer) -> Answer:
    if answer.status >= 300:  # noqa: PLR2004 - redirects are not followed
        raise RejectedError(_said(answer, b""))
    return answer


def _said(answer: Answer, data: bytes) -> str:
    text = data.decode(errors="replace") if answer.body is None else json.dumps(answer.body)
    return f"HTTP {answer.status}: {text[:SAID]}".rstrip(": ")
