"""Training sets and windows made to measure, for tests of calibration, detection, quality."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from steadfeast import Manifest
from steadfeast.monitor.config.schema import MonitorConfig
from steadfeast.monitor.profiles.profile import profile

T0 = datetime(2013, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
FEATURES = ("x", "rain", "kind", "flag", "level")
CONFIG = MonitorConfig(service="late", model="late", max_age={"weather": timedelta(hours=3)})


def rows(day, size, *, shift=0.0, jitter=0.05, seed=0):
    """One day of requests: normal, zero-inflated, categorical, boolean, and all-null columns."""
    rng = np.random.default_rng([seed, day])
    seconds = np.sort(rng.integers(0, 86_400, size))
    moved = shift + jitter * rng.standard_normal()
    return pa.table(
        {
            "event_timestamp": pa.array(
                [T0 + day * DAY + timedelta(seconds=int(s)) for s in seconds],
                pa.timestamp("us", "UTC"),
            ),
            "x": rng.normal(moved, 1, size).astype(np.float32),
            "rain": np.where(rng.random(size) < 0.9, 0.0, rng.exponential(1, size)),
            "kind": rng.choice(["a", "b", "c"], size, p=[0.7, 0.25, 0.05]),
            "flag": rng.random(size) < 0.3,
            "level": pa.nulls(size, pa.float64()),
            "late": rng.integers(0, 2, size),
        }
    )


def window(first, days=7, size=300, **options):
    """The rows of several days."""
    return pa.concat_tables(rows(first + i, size, **options) for i in range(days))


def training_set(folder, table, *, features=FEATURES, contract="c" * 64, count=None, keys=()):
    """Write a training set as the store does, and return its manifest's path."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "data.parquet")
    manifest = Manifest(
        id="0" * 16,
        service="late",
        contract=contract,
        label="late",
        features=tuple(features),
        keys=keys,
        created_at=T0.isoformat(),
        as_known_at=None,
        rows=table.num_rows if count is None else count,
        sha256="",
        entities_sha256="",
        sources=(),
        columns={name: {"type": str(table[name].type)} for name in table.column_names},
        commit="",
        libraries={},
    )
    path = folder / "manifest.json"
    path.write_text(manifest.to_json())
    return path


def profiled(reference, table):
    """Profile a table over a reference's edges."""
    return profile(table.to_batches(), reference.edges)
