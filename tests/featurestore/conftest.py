"""Online stores on real servers: SQLite files, a Redis, and a Redis cluster of one node.

And `shop`, a small Feast repo of its own for tests of what stands above the stores.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from feast.repo_config import RepoConfig

from steadfeast import Store
from steadfeast.featurestore.online import RedisOnlineStore, SQLiteOnlineStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from steadfeast.featurestore.online import PackedOnlineStore

STORES = (
    "sqlite",
    pytest.param("redis", marks=pytest.mark.service("redis-server")),
    pytest.param("cluster", marks=pytest.mark.service("redis-server")),
)
_PROJECTS = itertools.count()


class Online(NamedTuple):
    """A store, ready for use, under a project of its own."""

    kind: str
    store: PackedOnlineStore
    config: RepoConfig
    options: dict[str, Any]


def _start(program: Path, folder: Path, port: int, *more: str) -> subprocess.Popen[bytes] | None:
    """Start redis-server, or None when the port was taken meanwhile."""
    address = ("--bind", "127.0.0.1", "--port", str(port))
    disk = ("--save", "", "--appendonly", "no", "--dir", str(folder))
    log = (folder / "log").open("wb")
    with log:
        server = subprocess.Popen([str(program), *address, *disk, *more], stdout=log)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with redis.Redis(port=port, socket_timeout=1) as client:
                client.ping()
        except redis.ConnectionError:
            time.sleep(0.05)
        else:
            return server
    server.kill()
    server.wait()
    return None


def _serve(program: Path, folder: Path, free_port: Callable[[], int], *more: str) -> Iterator[int]:
    for _ in range(5):
        port = free_port()
        server = _start(program, folder, port, *more)
        if server is not None:
            break
    else:
        pytest.fail((folder / "log").read_text())
    try:
        yield port
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="session")
def redis_port(
    service_binary: Callable[[str], Path],
    free_port: Callable[[], int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[int]:
    """Port of a real redis-server that keeps nothing on disk."""
    yield from _serve(service_binary("redis-server"), tmp_path_factory.mktemp("redis"), free_port)


@pytest.fixture(scope="session")
def cluster_port(
    service_binary: Callable[[str], Path],
    free_port: Callable[[], int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[int]:
    """Port of a redis-server that is a cluster by itself: it checks slots as a large one does."""
    program, folder = service_binary("redis-server"), tmp_path_factory.mktemp("cluster")
    bus = free_port()
    for port in _serve(
        program, folder, free_port, "--cluster-enabled", "yes", "--cluster-port", str(bus)
    ):
        with redis.Redis(port=port) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            while b"cluster_state:ok" not in client.execute_command(
                "CLUSTER", "INFO", NEVER_DECODE=True
            ):
                time.sleep(0.05)
        yield port


def online_options(kind: str, request: pytest.FixtureRequest, folder: Path) -> dict[str, Any]:
    """Return section `online_store` for a store of `kind`."""
    if kind == "sqlite":
        path = str(folder / "online.db")
        return {"type": "steadfeast.SQLiteOnlineStore", "path": path}
    port = request.getfixturevalue("redis_port" if kind == "redis" else "cluster_port")
    return {
        "type": "steadfeast.RedisOnlineStore",
        "url": f"redis://127.0.0.1:{port}",
        "cluster": kind == "cluster",
    }


def repo_config(options: dict[str, Any], folder: Path) -> RepoConfig:
    """Return a Feast configuration under a new project."""
    return RepoConfig(
        project=f"test_{next(_PROJECTS)}",
        provider="local",
        registry=str(folder / "registry.db"),
        online_store=options,
        entity_key_serialization_version=3,
    )


@pytest.fixture
def configured(tmp_path: Path) -> Callable[[dict[str, Any]], RepoConfig]:
    """Make a Feast configuration of online store options, under a new project."""
    return lambda options: repo_config(options, tmp_path)


@pytest.fixture
def start_redis(
    service_binary: Callable[[str], Path], tmp_path: Path
) -> Callable[[int], subprocess.Popen[bytes] | None]:
    """Start a redis-server on a port."""
    return lambda port: _start(service_binary("redis-server"), tmp_path, port)


@pytest.fixture(params=STORES)
def online(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Online]:
    """Each store in turn, empty."""
    options = online_options(request.param, request, tmp_path)
    store = SQLiteOnlineStore() if request.param == "sqlite" else RedisOnlineStore()
    yield Online(request.param, store, repo_config(options, tmp_path), options)
    store.release()


class Shop:
    """A Feast repo of its own, applied, with the sources that a test gives it."""

    USERS = pa.schema(
        [
            ("user_id", pa.int64()),
            ("spend", pa.float64()),
            ("visits", pa.int64()),
            ("city", pa.string()),
            ("at", pa.timestamp("us", tz="UTC")),
            ("written", pa.timestamp("us", tz="UTC")),
        ]
    )
    ITEMS = pa.schema(
        [
            ("item_id", pa.string()),
            ("price", pa.float32()),
            ("listed", pa.timestamp("us", tz="UTC")),
            ("at", pa.timestamp("us", tz="UTC")),
        ]
    )

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, folder / "steadfeast.yaml"
        self.data = folder / "data"

    def write(self, users: list[dict[str, Any]], items: list[dict[str, Any]]) -> None:
        """Replace both sources; a column that a row leaves out is null."""
        sources = self.data / "sources"
        sources.mkdir(parents=True, exist_ok=True)
        for name, rows, schema in (
            ("users", users, self.USERS),
            ("items", items, self.ITEMS),
        ):
            pq.write_table(pa.Table.from_pylist(rows, schema), sources / f"{name}.parquet")

    def edit(self, file: str, old: str, new: str) -> None:
        """Change the definitions; `old` must be there."""
        path = self.folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


@pytest.fixture(scope="session")
def _applied_shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop") / "repo"
    shutil.copytree(Path(__file__).parent / "shop", folder)
    Shop(folder).write([], [])
    with Store.open(folder / "steadfeast.yaml") as store:
        store.apply()
    return folder


@pytest.fixture
def shop(_applied_shop: Path, tmp_path: Path) -> Shop:
    """Give a copy of the applied shop: paths in its registry are relative."""
    folder = tmp_path / "repo"
    shutil.copytree(_applied_shop, folder)
    return Shop(folder)
