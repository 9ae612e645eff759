"""Bodies of HTTP requests, read whole and no larger than a limit.

Below `http_app`; the model edge reads its bodies here too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from steadfeast.featurestore.errors import RequestError
from steadfeast.featurestore.security import MAX_REQUEST_BYTES

if TYPE_CHECKING:
    from starlette.types import Receive


class TooLargeError(RequestError):
    """The body is larger than what is read."""

    def __init__(self) -> None:
        super().__init__("body", f"is larger than {MAX_REQUEST_BYTES} bytes")


async def read_body(receive: Receive, encoding: str = "") -> bytes:
    """Return the body of a request.

    Args:
        receive: Of the ASGI application.
        encoding: The header Content-Encoding; a few kilobytes of a compressed body may stand for
            gigabytes, so that none is read.

    Raises:
        TooLargeError: It is larger than `MAX_REQUEST_BYTES`.
        RequestError: It is compressed, or ends early.
    """
    if encoding not in {"", "identity"}:
        raise RequestError("body", f"is sent as {encoding}; send it without Content-Encoding")
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestError("body", "ended early")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > MAX_REQUEST_BYTES:
            raise TooLargeError
    return b"".join(parts)
