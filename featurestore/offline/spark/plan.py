"""The frames of a join and of a pull: which blocks go where.

Above `cluster`, `sources` and `tasks`. A join is two shuffles. First rows of entities and of
sources meet in buckets of their key, every view in partitions of its own; then each entity row's
features come together in slices of the result, in the order asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np

from steadfeast.featurestore.offline.binding import spine_key
from steadfeast.featurestore.offline.join import span
from steadfeast.featurestore.offline.spark import cluster, tasks
from steadfeast.featurestore.offline.spark.blocks import SPARK_SCHEMA, cut, row
from steadfeast.featurestore.offline.spark.sources import splits
from steadfeast.featurestore.tables import sql

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa

    from steadfeast.featurestore.offline.binding import Bound
    from steadfeast.featurestore.offline.entities import Entities
    from steadfeast.featurestore.offline.spark.sources import ClusterSource

SLICE_ROWS = 262_144
_BUCKET_BYTES, _BUCKET_ROWS = 64 << 20, 500_000


@dataclass(frozen=True)
class Cluster:
    """A Spark session, how its executors' DuckDB runs, and the buckets asked for (0: by size)."""

    spark: Any
    settings: tasks.Settings
    partitions: int = 0

    def buckets(self, source: ClusterSource, rows: int) -> int:
        """Return how many buckets the rows of a source, and those that ask of it, are cut into."""
        if self.partitions:
            return self.partitions
        if source.frame is not None:
            least = int(self.spark.conf.get("spark.sql.shuffle.partitions"))
        else:
            weight = sum(_size(file) for file in source.files)
            least = -(-weight // _BUCKET_BYTES)
        cores = int(self.spark.sparkContext.defaultParallelism)
        return max(1, cores, least, -(-rows // _BUCKET_ROWS))


def _size(file: str) -> int:
    return Path(file).stat().st_size


def read(cluster_: Cluster, source: ClusterSource, reading: tasks.Reading) -> Any:
    """Return the frame of the blocks of a source's rows."""
    if source.frame is not None:
        columns = [f"`{name.replace('`', '``')}`" for name in reading.columns]
        chosen = source.frame.select(*columns)
        task = tasks.read_batches(reading, cluster_.settings)
        return chosen.mapInArrow(task, SPARK_SCHEMA)
    parts = splits(source)
    return cluster.numbered(
        cluster_.spark, len(parts), tasks.read_files(reading, parts, cluster_.settings)
    )


def reading_of(source: ClusterSource, query: str, place: str) -> tasks.Reading:
    """Return how executors read a source; columns that `query` does not name are left out."""
    columns = {name: str(kind) for name, kind in source.columns.items()}
    return tasks.Reading(
        source.view, source.location, columns, query, place, tasks.SOURCE, source.hive
    )


def joined(
    cluster_: Cluster, entities: Entities, bounds: Sequence[Bound], *, as_known: bool
) -> Any:
    """Return the frame of the result's slices, one block each, in partitions by number.

    Raises:
        EntityFrameError: A key of the entity frame cannot be compared with a view's.
    """
    spark, rows = cluster_.spark, entities.table.num_rows
    parts, joinings, first = [], [], 0
    for number, bound in enumerate(bounds):
        if not bound.view.features:
            continue
        source: Any = bound.source
        buckets = cluster_.buckets(source, rows) if bound.view.keys else 1
        asked = list(_asked(entities, bound, first, buckets))
        parts += [
            cluster.given(spark, asked),
            read(cluster_, source, _joinable(bound, entities, first, buckets)),
        ]
        joinings.append(tasks.Joining(tasks.Shipped.of(bound), first, buckets, number))
        first += buckets
    names = [[name for _, name in bound.view.features] for bound in bounds]
    slices = -(-rows // SLICE_ROWS)
    whole = cluster.given(spark, list(_given(entities)))
    if joinings:
        task = tasks.join_buckets(joinings, cluster_.settings, SLICE_ROWS, as_known=as_known)
        whole = whole.union(cluster.exchanged(_union(parts), first, task))
    return cluster.exchanged(whole, slices, tasks.assemble(names, SLICE_ROWS))


def _union(frames: Sequence[Any]) -> Any:
    whole = frames[0]
    for frame in frames[1:]:
        whole = whole.union(frame)
    return whole


def _joinable(bound: Bound, entities: Entities, first: int, buckets: int) -> tasks.Reading:
    view, reach = bound.view, span(entities, bound.view)
    names = ", ".join(map(sql.identifier, sql.needed(view)))
    there = [f"{sql.identifier(key.name)} IS NOT NULL" for key in view.keys]
    where = " AND ".join([sql.within(view.timestamp, reach.since, reach.until), *there])
    place = tasks.place_of(
        ((sql.identifier(key.name), key.type.id) for key in view.keys), first, buckets
    )
    source: Any = bound.source
    return reading_of(source, f"SELECT {names} FROM {view.scan} WHERE {where}", place)


def _asked(entities: Entities, bound: Bound, first: int, buckets: int) -> Iterator[pa.RecordBatch]:
    view = bound.view
    keys = {
        name: spine_key(name, entities.table[name], bound, key)
        for name, key in zip(bound.entity_columns, view.keys, strict=True)
    }
    table = tasks.asked_rows(keys, entities.table[entities.time])
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("asked", table)
        relation = connection.sql("SELECT * FROM asked")
        types = dict(zip(relation.columns, relation.types, strict=True))
        place = tasks.place_of(
            ((sql.identifier(name), types[name].id) for name in bound.entity_columns),
            first,
            buckets,
        )
        places = connection.sql(f"SELECT ({place})::BIGINT AS place FROM asked").to_arrow_table()
    numbers = places["place"].to_numpy() if len(places) else np.empty(0, np.int64)
    yield from cut(table, numbers.astype(np.int64), tasks.ENTITIES)


def _given(entities: Entities) -> Iterator[pa.RecordBatch]:
    for number, part in enumerate(entities.slices(SLICE_ROWS)):
        yield row(number, -1, tasks.given_rows(part.table, number * SLICE_ROWS))


def newest(
    cluster_: Cluster,
    view: sql.View,
    source: ClusterSource,
    since: int | None,
    until: int | None,
    *,
    known_by: int | None,
    query: str,
) -> Any:
    """Return the frame of each key's newest row, by `query` over `tasks.ROWS`.

    Each task of the first stage sends on only its own newest rows, so that the shuffle costs keys
    and not history.
    """
    buckets = cluster_.buckets(source, 0) if view.keys else 1
    place = tasks.place_of(
        ((sql.identifier(key.name), key.type.id) for key in view.keys), 0, buckets
    )
    first = sql.newest_rows(view, since, until, known_by=known_by)
    types = {name: str(kind) for name, kind in sql.needed(view).items()}
    task = tasks.query_buckets(source.view, types, query, cluster_.settings)
    return cluster.exchanged(
        read(cluster_, source, reading_of(source, first, place)), buckets, task
    )
