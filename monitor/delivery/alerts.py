"""Alerts to webhooks and to Alertmanager, each target at its own pace.

Above `http_client` and `threads`. Like triggers, alerts are in the ledger first,
and how far a target has got is there too, so each gets every alert at least once, in order, over
restarts. What a target refuses is logged and left behind: an alert that one webhook will not take
must not hold back the next one.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from threading import Event
from typing import TYPE_CHECKING, Any

import structlog
from google.protobuf.json_format import MessageToDict

from steadfeast.monitor.decisions import AlertKind
from steadfeast.monitor.delivery.http_client import Caller
from steadfeast.monitor.delivery.pipeline import RejectedError, UnansweredError
from steadfeast.monitor.delivery.threads import Backoff, Worker
from steadfeast.monitor.ledger import LedgerWriteError, messages

if TYPE_CHECKING:
    from collections.abc import Mapping

    from steadfeast.monitor.config import AlertTargetConfig
    from steadfeast.monitor.decisions import Alert
    from steadfeast.monitor.ledger import Ledger

log = structlog.get_logger(__name__)

PAGE = 64
IDLE_SECONDS = 60.0
STANDING = timedelta(days=365)
"""How long Alertmanager keeps an alert that nobody ends; the end of an episode is sent."""

STANDS = {
    AlertKind.EPISODE: ("SteadfeastEpisode", "warning"),
    AlertKind.DATA_INCIDENT: ("SteadfeastDataIncident", "critical"),
}
"""What stands until it ends, with its name and severity at Alertmanager; the rest is only told."""


def cloudevent(alert: Alert) -> dict[str, Any]:
    """Return the alert as a CloudEvent 1.0; `source` and `id` together are unique."""
    return {
        "specversion": "1.0",
        "id": str(alert.sequence),
        "source": f"/steadfeast/monitors/{alert.monitor}",
        "type": f"dev.steadfeast.alert.{alert.kind}",
        "subject": ",".join(alert.episodes) or alert.monitor,
        "time": alert.at.isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "data": MessageToDict(messages.alert(alert), preserving_proto_field_name=True),
    }


def slack(alert: Alert) -> dict[str, Any]:
    """Return the alert as what Slack's and compatible webhooks take."""
    # Slack reads these three as markup.
    said = alert.summary.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return {"text": f"[{alert.severity}] {alert.monitor}: {said} ({alert.at:%Y-%m-%d %H:%M} UTC)"}


def alertmanager(alert: Alert, now: datetime, *, ended: bool) -> list[dict[str, Any]]:
    """Return what `POST /api/v2/alerts` takes, by episode; empty for what does not stand.

    Labels are the same at the beginning and at the end: they are how Alertmanager knows it.
    """
    if alert.kind not in STANDS:
        return []
    name, severity = STANDS[alert.kind]
    labels = {"alertname": name, "monitor": alert.monitor, "severity": severity}
    standing = {"endsAt": (now if ended else now + STANDING).isoformat()}
    if not ended:
        # The data's clock may be ahead of the wall's, and an alert must begin before it ends.
        standing["startsAt"] = min(alert.at, now).isoformat()
    if alert.kind is AlertKind.DATA_INCIDENT:
        return [{"labels": labels, "annotations": {"summary": alert.summary}, **standing}]
    return [
        {
            "labels": {**labels, "episode_id": episode},
            "annotations": {"summary": summary},
            **standing,
        }
        for episode, summary in alert.episodes.items()
    ]


class AlertSenders:
    """One thread for each target of alerts.

    Args:
        ledger: Where the alerts are.
        config: Targets by name.
        backoff: Waits between attempts.
    """

    def __init__(
        self,
        ledger: Ledger,
        config: Mapping[str, AlertTargetConfig],
        backoff: Backoff | None = None,
    ) -> None:
        self._ledger, self._backoff = ledger, backoff or Backoff()
        self._stopping = Event()
        self._threads = [
            Worker(f"alerts-{name}", self._run, name, one) for name, one in config.items()
        ]

    def start(self) -> None:
        """Begin to send."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop after the call under way; the rest is sent after the next start."""
        self._stopping.set()
        with self._ledger.changed:
            self._ledger.changed.notify_all()
        for thread in self._threads:
            thread.join()

    def problem(self) -> str:
        """Return why alerts are not sent, in one line; empty if they are."""
        return next(filter(None, (thread.problem() for thread in self._threads)), "")

    def _run(self, name: str, config: AlertTargetConfig) -> None:
        token = config.token.get_secret_value()
        headers = {"authorization": f"Bearer {token}"} if token else {}
        caller = Caller(config.url, headers, config.ca)
        position: int | None = None
        while not self._stopping.is_set():
            try:
                if position is None:
                    position = self._ledger.sent(name)
                for alert in self._ledger.alerts(position, PAGE):
                    if not self._send(name, config.kind, caller, alert):
                        break
                    position = alert.sequence
                    with self._ledger.transaction():
                        self._ledger.add_sent(name, position)
            except LedgerWriteError as error:
                # What was sent and is not noted is sent again after a restart at worst.
                log.error("unwritten", target=name, reason=str(error))  # noqa: TRY400 - no bug
                self._stopping.wait(self._backoff.most)
                continue
            with self._ledger.changed:
                if self._ledger.last_sequence() <= position and not self._stopping.is_set():
                    self._ledger.changed.wait(IDLE_SECONDS)
        caller.close()

    def _send(self, name: str, kind: str, caller: Caller, alert: Alert) -> bool:
        """Send one alert until it is taken or refused; False when the daemon stops first."""
        failures = 0
        while not self._stopping.is_set():
            try:
                self._post(kind, caller, alert)
            except RejectedError as error:
                log.error("alert_refused", target=name, alert=alert.sequence, reason=error.reason)  # noqa: TRY400 - no bug
            except UnansweredError as error:
                failures += 1
                wait = self._backoff.seconds(failures)
                log.warning("alert_unsent", target=name, reason=error.reason, retry_seconds=wait)
                self._stopping.wait(wait)
                continue
            return True
        return False

    def _post(self, kind: str, caller: Caller, alert: Alert) -> None:
        if kind == "cloudevents":
            caller.post("", cloudevent(alert), content_type="application/cloudevents+json")
        elif kind == "slack":
            caller.post("", slack(alert))
        else:
            ended = alert.resolved and not self._stands(alert)
            body = alertmanager(alert, datetime.now(UTC), ended=ended)
            if body and alert.resolved == ended:
                caller.post("/api/v2/alerts", body)

    def _stands(self, alert: Alert) -> bool:
        """Whether another incident of the monitor is still open: all of them are one alert."""
        if alert.kind is not AlertKind.DATA_INCIDENT:
            return False
        held = self._ledger.held(alert.monitor)
        return any(one.last_seen == held.watermark for one in held.policy.incidents)
