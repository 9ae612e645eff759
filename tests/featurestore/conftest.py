"""Online stores on real servers: SQLite files, a Redis, and a Redis cluster of one node."""

from __future__ import annotations

import itertools
import subprocess
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import redis
from feast.repo_config import RepoConfig

from featurestore.online import RedisOnlineStore, SQLiteOnlineStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from featurestore.online import PackedOnlineStore

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


def _serve(
    program: Path, folder: Path, free_port: Callable[[], int], *more: str
) -> Iterator[int]:
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
            while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO", NEVER_DECODE=True):
                time.sleep(0.05)
        yield port


def online_options(kind: str, request: pytest.FixtureRequest, folder: Path) -> dict[str, Any]:
    """Return section `online_store` for a store of `kind`."""
    if kind == "sqlite":
        path = str(folder / "online.db")
        return {"type": "featurestore.online.SQLiteOnlineStore", "path": path}
    port = request.getfixturevalue("redis_port" if kind == "redis" else "cluster_port")
    return {
        "type": "featurestore.online.RedisOnlineStore",
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


@pytest.fixture(params=STORES)
def online(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Online]:
    """Each store in turn, empty."""
    options = online_options(request.param, request, tmp_path)
    store = SQLiteOnlineStore() if request.param == "sqlite" else RedisOnlineStore()
    yield Online(request.param, store, repo_config(options, tmp_path), options)
    store.release()
