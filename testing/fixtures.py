"""Fixtures for pytest: `pytest_plugins = ["steadfeast.testing.fixtures"]`. Above `sandboxes`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from steadfeast.testing.sandboxes import SandboxError, open_sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from steadfeast.featurestore import Store


@pytest.fixture
def steadfeast_yaml(request: pytest.FixtureRequest) -> Path:
    """Give the configuration that is tested: the nearest at or above the test's file.

    Override it to name another.
    """
    for folder in request.path.parents:
        if (folder / "steadfeast.yaml").is_file():
            return folder / "steadfeast.yaml"
    raise SandboxError(request.path, "there is no steadfeast.yaml in its folder or above")


@pytest.fixture
def sandbox(steadfeast_yaml: Path, tmp_path: Path) -> Iterator[Callable[..., Store]]:
    """Give `sandbox(rows, until=None)`, which is `open_sandbox` on the project of the test."""
    with ExitStack() as stack:
        made = 0

        def make(
            rows: Mapping[str, Sequence[Mapping[str, Any]]], *, until: datetime | None = None
        ) -> Store:
            nonlocal made
            made += 1
            folder = tmp_path / f"sandbox{made}"
            return stack.enter_context(open_sandbox(steadfeast_yaml, folder, rows, until=until))

        yield make
