"""Feast repos of one view and one service, for tests that need a table of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from steadfeast import Store

if TYPE_CHECKING:
    from pathlib import Path

HEAD = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import *
e = Entity(name="e", join_keys=["k"], value_type=ValueType.INT64)
"""
VIEW = """
v = FeatureView(name="view", entities=[e], ttl=timedelta(0), schema=[{schema}], source=FileSource(
    name="s", path="{path}", timestamp_field="at"{more}))
svc = FeatureService(name="svc", features=[v])
"""
SQLITE = {"type": "steadfeast.SQLiteOnlineStore", "path": "data/online.db"}


def one_view(schema: str, *, path: str = "data/s.parquet", created: str = "") -> str:
    """Return definitions of a service of one view."""
    more = f', created_timestamp_column="{created}"' if created else ""
    return VIEW.format(schema=schema, path=path, more=more)


def tiny_repo(
    folder: Path,
    table: pa.Table | None,
    definitions: str,
    *,
    online: dict[str, Any] | None = None,
) -> Store:
    """Make a repo and open it; nothing is applied."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    if table is not None:
        pq.write_table(table, folder / "data/s.parquet")
    settings = {
        "project": "tiny",
        "provider": "local",
        "registry": "data/registry.db",
        "offline_store": {"type": "steadfeast.DuckDBOfflineStore"},
        "online_store": online or SQLITE,
        "entity_key_serialization_version": 3,
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    (folder / "steadfeast.yaml").write_text("store:\n  repo: .\n  data: data\n")
    (folder / "features.py").write_text(HEAD + definitions)
    return Store.open(folder / "steadfeast.yaml")
