"""A Feast repository on a chosen offline store.

The store under test is ours, or the one that STEADFEAST_OFFLINE_STORE names: the semantics tests
run on any (`benchmarks/semantics.py` prints what each store makes of them).
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.types import Float64, PrimitiveFeastType
from feast.value_type import ValueType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import timedelta
    from pathlib import Path

OURS = "steadfeast.DuckDBOfflineStore"
SPARK = "steadfeast.SparkOfflineStore"


@dataclass
class Repo:
    """One Feast repository in a folder of its own."""

    folder: Path
    store: FeatureStore
    views: dict[str, FeatureView] = field(default_factory=dict)
    names: Iterator[int] = field(default_factory=itertools.count)

    def write(self, table: pa.Table, name: str = "") -> str:
        """Write a Parquet file; return its path relative to the repository."""
        path = name or f"source-{next(self.names)}.parquet"
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, self.folder / path)
        return path

    def view(
        self,
        data: pa.Table | str,
        features: Sequence[str],
        *,
        keys: Sequence[str] = ("k",),
        ttl: timedelta | None = None,
        created: str = "",
        name: str = "v",
        time: str = "ts",
        dtype: PrimitiveFeastType = Float64,
        key_type: ValueType = ValueType.INT64,
        mapping: dict[str, str] | None = None,
        **source: Any,
    ) -> FeatureView:
        """Register a feature view over a table or a path, and its entities."""
        path = data if isinstance(data, str) else self.write(data)
        if self.store.config.offline_store.type not in (OURS, SPARK):
            path = str(self.folder / path)  # Feast's DuckDB store starts at the working directory
        entities = [Entity(name=f"e_{k}", join_keys=[k], value_type=key_type) for k in keys]
        view = FeatureView(
            name=name,
            entities=entities,
            ttl=ttl,
            schema=[Field(name=f, dtype=dtype) for f in features],
            source=FileSource(
                name=f"{name}_source",
                path=path,
                timestamp_field=time,
                created_timestamp_column=created,
                field_mapping=mapping,
                **source,
            ),
        )
        self.store.apply([*entities, view])
        self.views[name] = view
        return view

    def join(self, entities: Any, refs: Sequence[str], **options: Any) -> pa.Table:
        """Join features to entity rows through Feast's API."""
        frame = entities
        if isinstance(entities, pa.Table) and self.store.config.offline_store.type not in (
            OURS,
            SPARK,
        ):
            frame = entities.to_pandas()  # others take pandas only
        job = self.store.get_historical_features(entity_df=frame, features=list(refs), **options)
        return job.to_arrow()


@pytest.fixture
def make_repo(tmp_path: Path) -> Iterator[Callable[..., Repo]]:
    """Make repositories; keyword arguments go to the offline store's configuration."""
    counter = itertools.count()
    made: list[Repo] = []

    def make(**options: Any) -> Repo:
        folder = tmp_path / f"repo{next(counter)}"
        folder.mkdir()
        kind = os.environ.get("STEADFEAST_OFFLINE_STORE", OURS)
        config = RepoConfig(
            project="tests",
            provider="local",
            registry=str(folder / "registry.db"),
            online_store={"type": "sqlite", "path": str(folder / "online.db")},
            offline_store={"type": kind, **options},
            entity_key_serialization_version=3,
            repo_path=str(folder),
        )
        made.append(Repo(folder, FeatureStore(config=config)))
        return made[-1]

    yield make
    for repo in made:
        connection = repo.store._get_provider().online_store._conn
        if connection is not None:  # Feast leaves it to the collector, which 3.13 warns of
            connection.close()


@pytest.fixture
def repo(make_repo: Callable[..., Repo]) -> Repo:
    return make_repo()
