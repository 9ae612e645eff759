"""Alertmanager's webhook: its JSON, version 4, as alerts that may be causes.

Above `causes`, whose alerts are made here; `web` takes the request. Only what is used is looked
at, so a newer Alertmanager may say more.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import structlog
from pydantic import BaseModel, Field, ValidationError

from steadfeast.featurestore.security import RefusedError
from steadfeast.monitor.evaluation import ForeignAlert

log = structlog.get_logger(__name__)

MAX_WEBHOOK_BYTES = 1024 * 1024
"""Largest message that is read; give the receiver `max_alerts` where groups are larger."""
SUMMARY = 200
"""Characters of a summary that are kept."""


class _Alert(BaseModel):
    status: Literal["firing", "resolved"]
    labels: dict[str, str]
    annotations: dict[str, str] = {}
    startsAt: datetime  # noqa: N815 - Alertmanager's name
    fingerprint: Annotated[str, Field(min_length=1)]


class _Message(BaseModel):
    version: Literal["4"]
    truncatedAlerts: int = 0  # noqa: N815
    alerts: list[_Alert]


def parse(body: bytes) -> list[ForeignAlert]:
    """Return the alerts of one message.

    Raises:
        RefusedError: It is no such message (400); Alertmanager does not repeat it then.
    """
    try:
        message = _Message.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RefusedError(400, f"{where or 'body'}: {first['msg']}") from error
    if message.truncatedAlerts:
        log.warning("alerts_truncated", left_out=message.truncatedAlerts)
    return [
        ForeignAlert(
            one.fingerprint, one.startsAt, one.status == "firing", one.labels, _summary(one)
        )
        for one in message.alerts
    ]


def _summary(alert: _Alert) -> str:
    """Return one line: what Alertmanager shows first, and the alert's name."""
    name = alert.labels.get("alertname", "alert")
    said = alert.annotations.get("summary") or alert.annotations.get("description") or ""
    line = " ".join(f"{name}: {said}".split()) if said else name
    return line if len(line) <= SUMMARY else f"{line[: SUMMARY - 1]}…"
