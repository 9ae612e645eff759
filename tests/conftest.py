"""What every test may use: the real programs of Debian's packages, and free loopback ports.

Top of `tests`. A test that needs a real server says so, `@pytest.mark.service("prometheus")`,
or asks `service_binary("prometheus")` for its path; without that program it is skipped with
the program's name, and with STEADFEAST_REQUIRE_SERVICES=1 it fails instead.
`scripts/services.sh` installs them.
"""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGES = {
    "redis-server": "redis-server",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "amtool": "prometheus-alertmanager",
    "chromium": "chromium",
}
"""Program to the Debian package that has it."""


def _find(name: str) -> Path:
    """Return where `name` is, or skip (or fail) the test that asks."""
    package = PACKAGES[name]  # a typing error in a test is a KeyError, never a skip
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"  # where Debian keeps some servers
    found = shutil.which(name, path=path)
    if found is not None:
        return Path(found)
    message = f"{name} is missing (Debian package {package}); scripts/services.sh installs it"
    if os.environ.get("STEADFEAST_REQUIRE_SERVICES") == "1":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail a test marked `service` before it starts anything."""
    for mark in item.iter_markers("service"):
        for name in mark.args:
            _find(name)


@pytest.fixture(scope="session")
def service_binary() -> Callable[[str], Path]:
    """Give the path of a real program by its name; see `PACKAGES` for the names."""
    return _find


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Give a loopback port that was free a moment ago.

    For servers that cannot bind port 0 and say what they got: between this and their bind,
    another process may take it, so start them in a loop.
    """

    def _free() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return _free
