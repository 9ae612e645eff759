"""What an edge serves is logged by the edge: names of requests, and the call of the served log.

Above `store`, below `http_app` and `grpc_server`. A request has one id, given by who asks or made
here; its rows are named after it. A vector is in the log before its answer leaves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

from steadfeast.featurestore.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from steadfeast.featurestore.serving import OnlineFeatures
    from steadfeast.featurestore.store import Store

REQUEST_ID = "x-request-id"
"""Header of HTTP and key of gRPC's metadata, both ways."""

_PLAIN = re.compile(r"[!-~]{1,200}")


@dataclass(frozen=True, slots=True)
class Named:
    """What a request says of itself.

    Attributes:
        request_id: Of the whole request.
        rows: Ids of its rows; empty: each row is named after the request.
        model: Name of the model that the features are for; empty if none is named.
        model_version: Its version.
    """

    request_id: str
    rows: Sequence[str] = ()
    model: str = ""
    model_version: str = ""

    def ids(self, rows: int) -> Sequence[str]:
        """Return an id for each row: the request's for a single one, else `ID/0`, `ID/1`, ...

        Raises:
            RequestError: Ids are given, and not one for each row.
        """
        if self.rows:
            if len(self.rows) != rows:
                raise RequestError("request_ids", f"are {len(self.rows)} for {rows} rows")
            return self.rows
        if rows == 1:
            return (self.request_id,)
        return [f"{self.request_id}/{i}" for i in range(rows)]


def request_id(given: str) -> str:
    """Return the id that a request was given, or a new one for an empty one.

    Raises:
        RequestError: It is no id: longer than 200 characters, or not printable ASCII.
    """
    if not given:
        return uuid4().hex
    if not _PLAIN.fullmatch(given):
        raise RequestError(REQUEST_ID, "must be 1 to 200 printable ASCII characters, no spaces")
    return given


def log(store: Store, service: str, got: OnlineFeatures, named: Named, at: datetime) -> None:
    """Log what a request got, if the configuration does not say that others do.

    Raises:
        RequestError: See `Named.ids`.
        LogRefusedError: Ids are double.
        LogUnavailableError: There is no room, and the disk takes nothing: nobody is served what
            is not logged.
    """
    ids = named.ids(got.rows)
    if got.rows and store.config.log.edge:
        store.served.append(
            service,
            got,
            request_ids=ids,
            request_time=at,
            model=named.model,
            model_version=named.model_version,
        )
