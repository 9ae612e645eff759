"""A Feast repo of one source and one view, for tests of what is online beside what is offline."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from pathlib import Path

    from steadfeast import Store

MICROS = pa.timestamp("us", tz="UTC")
START = datetime(2024, 1, 1, tzinfo=UTC)

HEAD = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import *

e = Entity(name="e", join_keys=["k"], value_type=ValueType.INT64)
"""
VIEW = """
view = FeatureView(
    name="view", entities=[e], ttl=timedelta(days=30), schema=[Field(name="v", dtype=Int64)],
    source=FileSource(name="s", path="data/s.parquet", timestamp_field="at"),
)
svc = FeatureService(name="svc", features=[view])
"""
CREATED = VIEW.replace('"at")', '"at", created_timestamp_column="made")')


def hour(number: float) -> datetime:
    """Return the instant that many hours after `START`."""
    return START + timedelta(hours=number)


def rows(*cells: tuple[int, datetime, int | None]) -> pa.Table:
    """Return a source table of `(key, event time, value)`; `w` is ten times the value."""
    keys, times, values = zip(*cells, strict=True) if cells else ((), (), ())
    return pa.table(
        {
            "k": pa.array(keys, pa.int64()),
            "at": pa.array(times, MICROS),
            "v": pa.array(values, pa.int64()),
            "w": pa.array([None if v is None else v * 10 for v in values], pa.int64()),
        }
    )


class SmallRepo:
    """The repo in `folder`; its source is `data/s.parquet`."""

    def __init__(
        self, folder: Path, definitions: str = VIEW, online: dict[str, Any] | None = None
    ) -> None:
        self.folder, self.config = folder, folder / "steadfeast.yaml"
        (folder / "data").mkdir(parents=True)
        options = online or {"type": "steadfeast.SQLiteOnlineStore", "path": "data/online.db"}
        lines = "".join(f"  {name}: {value}\n" for name, value in options.items())
        (folder / "feature_store.yaml").write_text(
            f"project: p{uuid4().hex[:9]}\nprovider: local\nregistry: data/registry.db\n"
            "offline_store:\n  type: steadfeast.DuckDBOfflineStore\n"
            f"online_store:\n{lines}entity_key_serialization_version: 3\n"
        )
        self.config.write_text("store:\n  repo: .\n  data: data\n")
        self.define(definitions)

    def define(self, definitions: str) -> None:
        """Replace the definitions."""
        (self.folder / "features.py").write_text(HEAD + definitions)

    def write(self, table: pa.Table, name: str = "s") -> None:
        """Replace a source."""
        pq.write_table(table, self.folder / "data" / f"{name}.parquet")


def served(store: Store, at: datetime, keys: tuple[int, ...] = (1, 2)) -> dict[str, list[Any]]:
    """Return what is served of `svc` at `at`."""
    got = store.online_features("svc", [{"k": key} for key in keys], request_time=at)
    values: dict[str, list[Any]] = got.table.drop_columns(["k"]).to_pydict()
    return values


def trained(store: Store, at: datetime, keys: tuple[int, ...] = (1, 2)) -> dict[str, list[Any]]:
    """Return what training sees of `svc` at `at`."""
    frame = {"k": pa.array(keys, pa.int64()), "event_timestamp": pa.array([at] * len(keys), MICROS)}
    values: dict[str, list[Any]] = store.point_in_time("svc", pa.table(frame)).to_pydict()
    return values
