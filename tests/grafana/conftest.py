"""A real Prometheus that scrapes the real exposition and evaluates our rules."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from prometheus_client import start_http_server

from featurestore import OnlineFeatures, edge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from types import ModuleType

    from monitor.state import State

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


@pytest.fixture(scope="session")
def grafana() -> Iterator[Callable[[str], ModuleType]]:
    """Give a module of `grafana/` by its name; it is a folder of scripts, not a package."""
    sys.path.insert(0, str(ROOT / "grafana"))
    yield importlib.import_module
    sys.path.remove(str(ROOT / "grafana"))


@contextmanager
def _scraping(
    binary: Path, url: str, folder: Path, alertmanager: str = "", others: Sequence[str] = ()
) -> Iterator[Prometheus]:
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


@pytest.fixture(scope="session")
def scraping(
    service_binary: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], AbstractContextManager[Prometheus]]:
    """Give what starts a Prometheus on a daemon's address: `with scraping(url) as prometheus`."""
    binary = service_binary("prometheus")

    def start(
        url: str, alertmanager: str = "", others: Sequence[str] = ()
    ) -> AbstractContextManager[Prometheus]:
        folder = tmp_path_factory.mktemp("prometheus")
        return _scraping(binary, url, folder, alertmanager, others)

    return start


@pytest.fixture(scope="session")
def prometheus(
    drifting: State,
    served: Callable[..., AbstractContextManager[str]],
    scraping: Callable[[str], AbstractContextManager[Prometheus]],
) -> Iterator[Prometheus]:
    """Give a Prometheus that has scraped a daemon in trouble and a serving edge a few times."""
    figures = edge.Figures()
    found = np.array([1, 3], np.uint8)  # one value present, one not found
    answer = OnlineFeatures(pa.table({"origin": ["EWR", "JFK"]}), {"temp": found}, {}, "")
    with figures.request("http", "late_arrival"):
        figures.served("http", "late_arrival", answer)
    server, thread = start_http_server(0, "127.0.0.1", figures.registry)
    try:
        with (
            served(drifting) as url,
            scraping(url, others=[f"127.0.0.1:{server.server_port}"]) as running,
        ):
            yield running
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


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
