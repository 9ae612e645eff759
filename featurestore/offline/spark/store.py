"""The Feast plugin: `offline_store: type: steadfeast.SparkOfflineStore`.

Top of `offline.spark`. What does not join or pull rows of a source (writing to files, logging,
Feast's monitoring) is the store's of one machine.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from feast.infra.offline_stores.offline_store import RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.utils import compute_non_entity_date_range
from pydantic import Field, StrictStr

from steadfeast.featurestore.errors import EntityFrameError, SourceError
from steadfeast.featurestore.offline.binding import bind, requested
from steadfeast.featurestore.offline.entities import MissingColumnsError, read_entities
from steadfeast.featurestore.offline.join import check_names, join
from steadfeast.featurestore.offline.latest import (
    exact_numbers,
    known_from,
    say_what_is_not_seen,
    table_of,
    with_dummy,
)
from steadfeast.featurestore.offline.retrieval import DuckDBRetrievalJob
from steadfeast.featurestore.offline.session import session
from steadfeast.featurestore.offline.spark import cluster, plan, tasks
from steadfeast.featurestore.offline.spark.sources import finder
from steadfeast.featurestore.offline.store import DuckDBOfflineStore, DuckDBOfflineStoreConfig
from steadfeast.featurestore.tables import instant, micros, sql, whole_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from feast.data_source import DataSource
    from feast.feature_view import FeatureView
    from feast.infra.registry.base_registry import BaseRegistry
    from feast.repo_config import RepoConfig

    from steadfeast.featurestore.offline.entities import Entities


class SparkOfflineStoreConfig(DuckDBOfflineStoreConfig):
    """`offline_store:` in feature_store.yaml.

    The settings of DuckDB are those of one task of an executor: `threads` is 1 when absent, and
    a `temp_directory` that is not absolute is left to the executor's system.

    Attributes:
        type: The plugin's dotted name.
        spark_conf: Settings of the Spark session, such as `spark.master`, unless one is active.
        partitions: Buckets that each view's rows are cut into; by the sources' size when absent.
        staging_location: Folder that `to_remote_storage` writes to; driver and executors see it.
    """

    type: StrictStr = "steadfeast.SparkOfflineStore"
    spark_conf: dict[str, str] | None = None
    partitions: int | None = Field(default=None, ge=1, le=100_000)
    staging_location: StrictStr | None = None


class SparkRetrievalJob(DuckDBRetrievalJob):
    """A result that a Spark cluster computes."""

    def to_remote_storage(self) -> list[str]:
        """Write the result as Parquet files below `staging_location`; return their paths, in order.

        Raises:
            SourceError: No staging location is configured.
        """
        place = self._config.offline_store.staging_location
        if not place:
            raise SourceError("", "offline_store", "staging_location is not set")
        folder = Path(place.removeprefix("file://")) / uuid.uuid4().hex
        folder.mkdir(parents=True)
        paths = []
        for number, batch in enumerate(self.to_batches()):
            path = folder / f"part-{number:05}.parquet"
            with whole_file(path, private=False) as half:
                pq.write_table(pa.Table.from_batches([batch]), half, compression="zstd")
            paths.append(str(path))
        return paths


class SparkOfflineStore(DuckDBOfflineStore):
    """Point-in-time joins by DuckDB's rules, cell for cell, on a Spark cluster."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: Any,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> SparkRetrievalJob:
        """Return the features of each entity row as they stood at its time.

        Args and errors are those of `DuckDBOfflineStore`, but that `entity_df` may be a Spark
        DataFrame, and that its text is a query of Spark's. Entity rows pass through the driver.

        Raises:
            ClusterError: Spark cannot be reached, does not fit, or gave up.
        """
        on = _cluster(config)
        wanted = requested(feature_views, feature_refs)
        with session(config) as connection:  # what is wrong is said now, not when it runs
            bounds = [
                bind(
                    connection,
                    config.repo_path,
                    view,
                    names,
                    full_names=full_feature_names,
                    find=finder(on.spark),
                )
                for view, names in wanted
            ]
            if entity_df is None:
                spread = compute_non_entity_date_range(feature_views, start_date, end_date)
                frame: Any = _between(on, bounds, *map(micros, spread))
            else:
                frame = _frame(on.spark, entity_df)
            entities = read_entities(frame, connection)
        needed = {column for bound in bounds for column in bound.entity_columns}
        missing = needed - set(entities.table.column_names)
        if missing:
            raise MissingColumnsError(missing, entities.table.column_names)
        check_names(entities, bounds)
        reach = entities.range()

        def tables(rows: int | None) -> Iterator[pa.Table]:  # noqa: ARG001 - slices have a size
            if not entities.table.num_rows:
                yield _without_rows(config, entities, bounds)
                return
            result = plan.joined(on, entities, bounds, as_known=filter_by_created_timestamp)
            yield from cluster.collected(on.spark, result)

        def text() -> str:
            job = DuckDBOfflineStore.get_historical_features(
                config,
                feature_views,
                feature_refs,
                entities.table,
                registry,
                project,
                full_feature_names,
                filter_by_created_timestamp,
            )
            return job.to_sql()

        return SparkRetrievalJob(
            config,
            tables,
            text,
            on_demand=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            full_names=full_feature_names,
            metadata=RetrievalMetadata(
                features=feature_refs,
                keys=[n for n in entities.table.column_names if n != entities.time],
                min_event_timestamp=reach and instant(reach[0]),
                max_event_timestamp=reach and instant(reach[1]),
            ),
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> SparkRetrievalJob:
        """Return each key's newest row of those that became known in the range, ends included.

        See `DuckDBOfflineStore`. Executors send on only their own newest rows of each key.

        Raises:
            SourceError: The source is missing, unreadable or lacks a column.
        """
        on = _cluster(config)
        view, source = _table(
            config,
            on,
            data_source,
            join_key_columns,
            feature_name_columns,
            timestamp_field,
            created_timestamp_column,
        )
        until = micros(end_date)
        if not created_timestamp_column:
            say_what_is_not_seen(data_source.name)

        def whole() -> Any:
            narrowed, since = known_from(view, micros(start_date))
            text = sql.newest(view, None, until, known_by=None)
            query = text if view.keys else with_dummy(text)
            frame = plan.newest(on, narrowed, source, since, until, known_by=None, query=query)
            return frame, query

        return _pulled(config, on, view, whole, exact=True)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> SparkRetrievalJob:
        """Return all rows with an event time in the range, both ends included.

        See `DuckDBOfflineStore`.

        Raises:
            SourceError: The source is missing, unreadable or lacks a column.
        """
        on = _cluster(config)
        view, source = _table(
            config,
            on,
            data_source,
            join_key_columns,
            feature_name_columns,
            timestamp_field,
            created_timestamp_column,
        )
        if created_timestamp_column == "":
            say_what_is_not_seen(data_source.name)

        def whole() -> Any:
            narrowed, since = known_from(view, micros(start_date))
            text = sql.everything(narrowed, since, micros(end_date))
            query = text if view.keys else with_dummy(text)
            return plan.read(on, source, plan.reading_of(source, query, "0")), query

        return _pulled(config, on, view, whole, exact=created_timestamp_column is not None)


def newest(
    config: RepoConfig, view: FeatureView, since: datetime | None, until: datetime
) -> Iterator[Any]:
    """Give the schema, then the batches, of `offline.latest` for a view, from the cluster."""
    on = _cluster(config)
    with session(config) as connection:
        names = [field.name for field in view.features]
        bound = bind(connection, config.repo_path, view, names, find=finder(on.spark))
        source: Any = bound.source
        _empty(connection, bound.view)
        text = sql.newest(
            _over_rows(bound.view), micros(since), micros(until), known_by=micros(until)
        )
        yield connection.sql(text).to_arrow_table().schema
    frame = plan.newest(
        on,
        bound.view,
        source,
        micros(since),
        micros(until),
        known_by=micros(until),
        query=text,
    )
    for table in cluster.collected(on.spark, frame):
        yield from table.to_batches()


def _over_rows(view: sql.View) -> sql.View:
    from dataclasses import replace  # noqa: PLC0415 - only here

    return replace(view, scan=tasks.ROWS)


def _cluster(config: RepoConfig) -> plan.Cluster:
    options: Any = config.offline_store
    spark = cluster.spark_session(options.spark_conf)
    folder = options.temp_directory
    shared = {
        "memory_limit": options.memory_limit,
        "temp_directory": folder if folder and Path(folder).is_absolute() else None,
        "max_temp_directory_size": options.max_temp_directory_size,
        "threads": options.threads or 1,
        "settings": dict(options.settings),
    }
    settings = tasks.Settings(shared, duckdb.__version__)
    return plan.Cluster(spark, settings, options.partitions or 0)


def _frame(spark: Any, frame: Any) -> Any:
    """Return the entity frame as something that `read_entities` takes without a query."""
    from pyspark.errors import PySparkException  # noqa: PLC0415 - an extra
    from pyspark.sql import DataFrame  # noqa: PLC0415 - an extra

    try:
        if isinstance(frame, str):
            frame = spark.sql(frame)
        return frame.toArrow() if isinstance(frame, DataFrame) else frame
    except PySparkException as error:
        line = str(error).strip().split("\n", 1)[0]
        raise EntityFrameError(f"the query failed: {line}") from error


def _between(on: plan.Cluster, bounds: list[Any], since: int, until: int) -> pa.Table:
    """Return every distinct key and event time of views: executors first, then the driver."""
    parts: list[pa.Table] = []
    names = list(dict.fromkeys(name for bound in bounds for name in bound.entity_columns))
    for bound in bounds:
        query = sql.between([(bound.view, bound.entity_columns)], since, until)
        frame = plan.read(on, bound.source, plan.reading_of(bound.source, query, "0"))
        parts += cluster.collected(on.spark, frame)
    columns = ["event_timestamp", *names]
    if not parts:
        kinds = [pa.timestamp("us", "UTC"), *(pa.int64() for _ in names)]
        return pa.schema(list(zip(columns, kinds, strict=True))).empty_table()
    together = pa.concat_tables(parts, promote_options="permissive").select(columns)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("parts", together)
        return connection.sql("SELECT DISTINCT * FROM parts ORDER BY ALL").to_arrow_table()


def _empty(connection: Any, view: sql.View) -> None:
    types = {name: str(kind) for name, kind in sql.needed(view).items()}
    tasks.fill(connection, types, iter(()))


def _without_rows(config: RepoConfig, entities: Entities, bounds: list[Any]) -> pa.Table:
    """Return the result for no entity rows: its columns and their types."""
    from dataclasses import replace  # noqa: PLC0415 - only here

    table = entities.table
    with session(config) as connection:
        for bound in bounds:
            _empty(connection, bound.view)
            over = [replace(bound, view=_over_rows(bound.view))]
            whole = join(connection, entities, over, as_known=False)
            for _, name in bound.view.features:
                table = table.append_column(whole.field(name), whole[name])
    return table


def _table(
    config: RepoConfig,
    on: plan.Cluster,
    data_source: DataSource,
    keys: list[str],
    features: list[str],
    timestamp: str,
    created: str | None,
) -> tuple[sql.View, Any]:
    found: list[Any] = []

    def find(*args: Any) -> Any:
        found.append(finder(on.spark)(*args))
        return found[0]

    with session(config) as connection:
        view = table_of(
            connection,
            config,
            data_source,
            keys=keys,
            features=features,
            timestamp=timestamp,
            created=created,
            find=find,
        )
    return view, found[0]


def _pulled(
    config: RepoConfig,
    on: plan.Cluster,
    view: sql.View,
    whole: Callable[[], tuple[Any, str]],
    *,
    exact: bool,
) -> SparkRetrievalJob:
    """Return a job over a frame of blocks, and the query that each of them answers."""

    def tables(rows: int | None) -> Iterator[pa.Table]:
        frame, query = whole()
        with session(config) as connection:
            _empty(connection, view)
            empty = connection.sql(query).to_arrow_table()
        parts = cluster.collected(on.spark, frame)
        if rows is not None:
            yield empty
            yield from parts
            return
        table = pa.concat_tables([empty, *parts])
        yield exact_numbers(table) if exact else table

    def text() -> str:
        raise SourceError("", "Spark", "a pull is no single SQL statement; ask for to_arrow()")

    return SparkRetrievalJob(config, tables, text)


__all__ = ["SparkOfflineStore", "SparkOfflineStoreConfig", "newest"]
