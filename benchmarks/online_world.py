"""One repo of feature views that every online store of the benchmark serves, on the same data.

`f5` and `f50` are services of as many float64 features of one view; the key is an int64.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

if TYPE_CHECKING:
    from pathlib import Path

WIDTHS = (5, 10, 50)
STORES = ("steadfeast sqlite", "steadfeast redis", "feast sqlite", "feast redis")
START = datetime(2024, 1, 1, tzinfo=UTC)

_DEFINITIONS = """
from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource
from feast.types import Float64, Int64
from feast.value_type import ValueType

key = Entity(name="key", join_keys=["key"], value_type=ValueType.INT64)


def view(width):
    return FeatureView(
        name=f"view{width}",
        entities=[key],
        ttl=timedelta(days=36500),
        schema=[Field(name="key", dtype=Int64)]
        + [Field(name=f"x{i}", dtype=Float64) for i in range(width)],
        source=FileSource(path=f"data/{width}.parquet", timestamp_field="at"),
    )


"""


def make(folder: Path, store: str, widths: dict[int, int], seed: int, port: int | None) -> Path:
    """Write a repo for `store` with `widths[w]` keys of w features; return its folder.

    Args:
        folder: Where.
        store: One of STORES.
        widths: Features per view -> keys.
        seed: Of the values.
        port: Of a Redis, for a store that needs one.
    """
    repo = folder / store.replace(" ", "-")
    (repo / "data").mkdir(parents=True)
    lines = [_DEFINITIONS]
    for width, keys in widths.items():
        lines.append(f"view{width} = view({width})\n")
        lines.append(f'f{width} = FeatureService(name="f{width}", features=[view{width}])\n')
        source = folder / f"{width}-{keys}.parquet"
        if not source.exists():
            _generate(source, width, keys, seed)
        (repo / "data" / f"{width}.parquet").symlink_to(source)
    (repo / "features.py").write_text("".join(lines), encoding="utf-8")
    (repo / "feature_store.yaml").write_text(yaml.safe_dump(_config(store, port)), encoding="utf-8")
    (repo / "steadfeast.yaml").write_text("store:\n  repo: .\n  data: data\n", encoding="utf-8")
    return repo


def _generate(path: Path, width: int, keys: int, seed: int) -> None:
    random = np.random.default_rng([seed, width])
    minutes = random.integers(0, 60 * 24 * 30, keys).astype("timedelta64[m]")
    at = np.datetime64(START.replace(tzinfo=None), "us") + minutes
    columns: dict[str, Any] = {
        "key": random.permutation(keys),
        "at": pa.array(at, pa.timestamp("us")).cast(pa.timestamp("us", tz="UTC")),
    }
    columns |= {f"x{i}": random.normal(size=keys) for i in range(width)}
    pq.write_table(pa.table(columns), path, compression="zstd")


def _config(store: str, port: int | None) -> dict[str, Any]:
    ours, kind = store.split()
    online: dict[str, Any]
    if ours == "steadfeast":
        offline = "steadfeast.DuckDBOfflineStore"
        online = {"type": "steadfeast.SQLiteOnlineStore", "path": "data/online.db"}
        if kind == "redis":
            url = f"redis://127.0.0.1:{port}/0"
            online = {"type": "steadfeast.RedisOnlineStore", "url": url}
    else:
        offline = "dask"
        online = {"type": "sqlite", "path": "data/online.db"}
        if kind == "redis":
            online = {"type": "redis", "connection_string": f"127.0.0.1:{port},db=1"}
    return {
        "project": "bench",
        "provider": "local",
        "registry": {"path": "data/registry.db", "cache_ttl_seconds": 0},
        "offline_store": {"type": offline},
        "online_store": online,
        "entity_key_serialization_version": 3,
    }


def until() -> datetime:
    """Return a time after every row."""
    return START + timedelta(days=60)
