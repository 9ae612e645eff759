"""A real Prometheus on the real exposition, and the modules of `grafana/`."""

from __future__ import annotations

import importlib
import subprocess
import sys
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
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


MODEL_EDGE = """
import sys
from types import SimpleNamespace
from prometheus_client import start_http_server
from steadfeast.pipeline.inference.metrics import STAGES, Figures
figures = Figures()
figures.request("late_arrival", "http", "OK")
figures.predicted("late_arrival", SimpleNamespace(version="3", request_ids=("a", "b")))
figures.serves("late_arrival", "3", "")
for stage in STAGES:
    figures.spent("late_arrival", stage, 0.001)
server, _ = start_http_server(0, "127.0.0.1", figures.registry)
print(server.server_port, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")  # it scrapes several times a second: not for the whole run
def prometheus(
    drifting: State,
    served: Callable[..., AbstractContextManager[str]],
    scraping: Callable[[str], AbstractContextManager[Prometheus]],
) -> Iterator[Prometheus]:
    """Give a Prometheus that has scraped a daemon in trouble and both edges a few times."""
    figures = metrics.Figures()
    found = np.array([1, 3], np.uint8)  # one value present, one not found
    now = datetime.now(UTC)
    times = {"weather": pa.array([now - timedelta(hours=1), None], pa.timestamp("us", "UTC"))}
    answer = OnlineFeatures(pa.table({"origin": ["EWR", "JFK"]}), {"temp": found}, times, "")
    with figures.request("http", "late_arrival"):
        figures.served("http", "late_arrival", answer, now)
    figures.logged("labels", "late_arrival", 2)
    figures.backlog = lambda: {("late_arrival", "served"): 2}
    with ExitStack() as stack:
        server, thread = start_http_server(0, "127.0.0.1", figures.registry)
        stack.callback(thread.join)
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        others = [f"127.0.0.1:{server.server_port}"]
        # In a process of its own, as an edge is: Feast switches this one's metrics to files.
        model_edge = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", MODEL_EDGE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(model_edge.kill)
        others.append(f"127.0.0.1:{model_edge.stdout.readline().strip()}")
        url = stack.enter_context(served(drifting))
        yield stack.enter_context(scraping(url, others=others))
