"""Worlds to retrain in: a Feast repo that is applied once and copied for each test."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from steadfeast import featurestore
from steadfeast.pipeline.config import load
from steadfeast.pipeline.registry.registry import Registry
from support import shop_world as world
from support.shop_pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a world whose definitions are applied and whose MLflow has its tables."""
    folder = tmp_path_factory.mktemp("shops")
    path = world.make(folder)
    with featurestore.Store.open(path) as store:
        store.apply()
    Registry.open(load(path)[0])
    return folder


@pytest.fixture
def shops(applied: Path, tmp_path: Path) -> Path:
    """A world of the test's own; give its folder."""
    folder = tmp_path / "shops"
    shutil.copytree(applied, folder)
    return folder


@pytest.fixture
def pipeline(shops: Path) -> Iterator[Pipeline]:
    made = Pipeline(shops / "steadfeast.yaml")
    yield made
    made.queue.close()
