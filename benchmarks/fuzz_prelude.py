"""What every program of the fuzz stands on: one Feast repo in a folder of its own.

Printed in front of a program that shows a disagreement, so that the two run by themselves.
"""

import os
import shutil
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import redis

from steadfeast import Store

nan, inf = float("nan"), float("inf")


class Repo:
    """A repo, its sources, and the stores that are open on it.

    Args:
        base: What offsets are measured from, ISO 8601; now, when empty.
        zone: The time zone of the process.
        url: Redis to serve from; SQLite, when empty.
    """

    def __init__(self, *, base: str = "", zone: str = "UTC", url: str = "") -> None:
        os.environ["TZ"] = zone
        time.tzset()
        self.folder, self.url = Path(tempfile.mkdtemp(prefix="steadfeast-fuzz-")), url
        now = datetime.now(UTC).replace(microsecond=0)
        self.base = datetime.fromisoformat(base) if base else now
        self.stores: dict[int, Store] = {}
        online = f"  type: steadfeast.RedisOnlineStore\n  url: {url}\n"
        if not url:
            online = "  type: steadfeast.SQLiteOnlineStore\n  path: data/online.db\n"
        (self.folder / "feature_store.yaml").write_text(
            f"project: p{os.getpid()}\nprovider: local\nregistry: data/registry.db\n"
            "offline_store:\n  type: steadfeast.DuckDBOfflineStore\n"
            f"online_store:\n{online}entity_key_serialization_version: 3\n"
        )
        (self.folder / "steadfeast.yaml").write_text("store:\n  repo: .\n  data: data\n")

    def at(self, offset: int) -> datetime:
        """Return base plus microseconds."""
        return self.base + timedelta(microseconds=offset)

    def times(self, offsets: list[int | None], unit: str = "us", zone: str = "UTC") -> pa.Array:
        """Return times as a source may hold them."""
        moments = [None if offset is None else self.at(offset) for offset in offsets]
        utc = pa.array(moments, pa.timestamp("us", tz="UTC"))
        return utc.cast(pa.timestamp(unit, tz=zone or None))

    def forget(self, path: str) -> None:
        """Remove every file of a source."""
        shutil.rmtree(self.folder / path, ignore_errors=True)

    def write(self, path: str, columns: dict[str, pa.Array]) -> None:
        """Replace one file of a source."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), file)

    def define(self, text: str) -> None:
        """Replace the definitions."""
        (self.folder / "features.py").write_text(text)

    def store(self, number: int = 0) -> Store:
        """Return one of the stores that are open."""
        if number not in self.stores:
            self.stores[number] = Store.open(self.folder / "steadfeast.yaml")
        return self.stores[number]

    def close(self) -> None:
        """Close every store, as when the processes end."""
        for store in self.stores.values():
            store.close()
        self.stores.clear()

    def lose(self) -> None:
        """Lose the online store: its file, or what is in Redis."""
        if self.url:
            redis.Redis.from_url(self.url).flushall()
            return
        for path in (self.folder / "data").glob("online.db*"):
            path.unlink()
        time.sleep(0.05)  # reads look at the file fifty times a second
