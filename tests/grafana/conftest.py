"""A real Prometheus on the real exposition, and the modules of `grafana/`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
from prometheus_client import start_http_server

from steadfeast import OnlineFeatures
from steadfeast.featurestore.server import metrics
from support import prometheus_world as world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from types import ModuleType

    from steadfeast.monitor.ledger.state import State
    from support.prometheus_world import Prometheus

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def grafana() -> Iterator[Callable[[str], ModuleType]]:
    """Give a module of `grafana/` by its name; it is a folder of scripts, not a package."""
    sys.path.insert(0, str(ROOT / "grafana"))
    yield importlib.import_module
    sys.path.remove(str(ROOT / "grafana"))


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
        return world.scraping(binary, url, folder, alertmanager, others)

    return start


@pytest.fixture(scope="session")
def prometheus(
    drifting: State,
    served: Callable[..., AbstractContextManager[str]],
    scraping: Callable[[str], AbstractContextManager[Prometheus]],
) -> Iterator[Prometheus]:
    """Give a Prometheus that has scraped a daemon in trouble and a serving edge a few times."""
    figures = metrics.Figures()
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
