"""Errors over HTTP as problem details (RFC 9457).

Below `http_app`; the model edge answers with them too. Beside the standard's members stand `error`,
which clients of the Open Inference Protocol look for, and what the error is about.
"""

from __future__ import annotations

import json
from typing import Any

from steadfeast.featurestore.errors import NotFoundError, RequestError

PROBLEM = "application/problem+json"


def problem(error: Exception, status: int) -> bytes:
    """Return the body of an answer that says what is wrong, and with which field or name."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": type(error).__name__,
        "status": status,
        "detail": str(error),
        "error": str(error),
    }
    if isinstance(error, RequestError):
        body["field"] = error.field
    if isinstance(error, NotFoundError):
        body["name"] = error.name
    return json.dumps(body).encode()
