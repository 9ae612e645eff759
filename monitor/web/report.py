"""The report: the daemon's page as one file, from the daemon or from what it left behind.

Above `render` and `ledger`; `cli` calls it. The ledger has one holder, so a running daemon is
asked over HTTP; only when nothing answers is its file opened, which its lock makes safe.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from steadfeast.featurestore.errors import UserError
from steadfeast.monitor.config import load
from steadfeast.monitor.ledger import Ledger
from steadfeast.monitor.web.render import Renderer

if TYPE_CHECKING:
    from pathlib import Path

    from steadfeast.monitor.config import DaemonConfig

TIMEOUT_SECONDS = 30.0


class NoStateError(UserError):
    """No daemon answers and none has been here.

    Attributes:
        address: The daemon's HTTP address.
        folder: Its state folder.
    """

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.folder = address, folder
        super().__init__(f"no daemon at http://{address}, and no ledger in {folder}")


class ReportRefusedError(UserError):
    """Something answers at the daemon's address, and not with a report."""

    def __init__(self, address: str, problem: str) -> None:
        self.address = address
        super().__init__(f"http://{address}/report: {problem}")


def written(config: Path, out: Path) -> str:
    """Write the report to `out`; returns where it is from, `daemon` or `ledger`.

    Raises:
        UserError: There is neither, or the file cannot be written.
    """
    settings, _ = load(config)
    html, source = _asked(settings.http), "daemon"
    if html is None:
        html, source = _left_behind(settings), "ledger"
    try:
        out.write_text(html, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out}: {error.strerror or error}") from error
    return source


def _asked(address: str) -> str | None:
    """Return the running daemon's report; None when nothing listens."""
    url = f"http://{address}/report"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=TIMEOUT_SECONDS) as answer:
            text: str = answer.read().decode()
    except urllib.error.HTTPError as error:
        raise ReportRefusedError(address, f"HTTP {error.code}") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionRefusedError):
            return None
        raise ReportRefusedError(address, str(error.reason)) from error
    return text


def _left_behind(config: DaemonConfig) -> str:
    if not (config.state / "monitor.duckdb").is_file():
        raise NoStateError(config.http, config.state)
    with Ledger(config.state) as ledger:
        state = ledger.state(config.monitors)
    ends = [one.watermark for one in state.monitors.values() if one.watermark is not None]
    monitors = {
        name: replace(one, max_age=config.monitors[name].max_age)
        for name, one in state.monitors.items()
    }
    state = replace(state, monitors=monitors, latest_event=max(ends, default=None))
    return Renderer().report(state, "", datetime.now(UTC))
