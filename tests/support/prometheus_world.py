"""A real Prometheus that scrapes what it is given and evaluates our rules."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running server, by its address."""

    url: str

    def get(self, path: str, **parameters: str) -> Any:
        """Ask the HTTP API; a query that does not parse raises `HTTPError` 400."""
        asked = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(asked, timeout=10) as answer:  # noqa: S310  # a server of ours
            return json.load(answer)["data"]

    def query(self, expr: str) -> list[Any]:
        """Return the series of an instant query."""
        return self.get("query", query=expr)["result"]


@contextmanager
def scraping(
    binary: Path, url: str, folder: Path, alertmanager: str = "", others: Sequence[str] = ()
) -> Iterator[Prometheus]:
    """Run `binary` in `folder` on the daemon at `url` and on `others`; entered once it has data."""
    config = {
        "global": {"scrape_interval": "200ms", "evaluation_interval": "200ms"},
        "rule_files": [str(ROOT / "grafana" / "rules" / "steadfeast.rules.yml")],
        "alerting": {
            "alertmanagers": [
                {"static_configs": [{"targets": [alertmanager] if alertmanager else []}]}
            ]
        },
        "scrape_configs": [
            {
                "job_name": "steadfeast",
                "static_configs": [
                    {"targets": [one.removeprefix("http://") for one in (url, *others)]}
                ],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with (folder / "log").open("w", encoding="utf-8") as log:
        server = subprocess.Popen(
            [
                binary,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                "--web.listen-address=127.0.0.1:0",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield _ready(server, folder / "log")
        finally:
            server.terminate()
            server.wait(timeout=20)


def _ready(server: subprocess.Popen[bytes], log: Path) -> Prometheus:
    """Wait until the server has scraped three times and judged every rule."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        text = log.read_text(encoding="utf-8")
        if server.poll() is not None:
            pytest.fail(f"prometheus ended with {server.returncode}:\n{text}")
        # It binds a port that is free and says which in its log.
        listening = re.search(r'"Listening on" address=(\S+)', text)
        if listening is not None and _has_data(Prometheus(f"http://{listening[1]}")):
            return Prometheus(f"http://{listening[1]}")
        time.sleep(0.1)
    pytest.fail(f"prometheus has scraped nothing in a minute:\n{log.read_text(encoding='utf-8')}")


def _has_data(running: Prometheus) -> bool:
    try:
        scraped = running.query("count_over_time(steadfeast_build_info[1m])")
        rules = [rule for group in running.get("rules")["groups"] for rule in group["rules"]]
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.SERVICE_UNAVAILABLE:  # while it opens its storage
            raise
        return False
    judged = bool(rules) and all(rule["health"] == "ok" for rule in rules)
    return judged and bool(scraped) and int(scraped[0]["value"][1]) >= 3
