"""The Feast plugin: `offline_store: type: featurestore.offline.DuckDBOfflineStore`.

Top of `featurestore.offline`: each method binds names to sources, and leaves the rest to the
modules below.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from feast.feature_logging import LoggingConfig  # noqa: TC002 - Feast inspects the signatures
from feast.infra.offline_stores.file_source import FileLoggingDestination, FileSource
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel
from feast.utils import compute_non_entity_date_range
from pydantic import Field, StrictStr

from steadfeast.featurestore.errors import SourceError
from steadfeast.featurestore.offline import feast_monitoring
from steadfeast.featurestore.offline.binding import bind, originals, requested
from steadfeast.featurestore.offline.entities import MissingColumnsError, read_entities
from steadfeast.featurestore.offline.join import check_names, join, span
from steadfeast.featurestore.offline.latest import (
    known_from,
    pulled,
    say_what_is_not_seen,
    table_of,
    with_dummy,
)
from steadfeast.featurestore.offline.retrieval import DuckDBRetrievalJob
from steadfeast.featurestore.offline.session import session
from steadfeast.featurestore.offline.sources import arrow_schema, is_there, open_source
from steadfeast.featurestore.offline.writing import append, log
from steadfeast.featurestore.tables import instant, is_remote, micros, sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import date, datetime

    import duckdb
    import pyarrow as pa
    from feast.data_source import DataSource
    from feast.feature_logging import LoggingSource
    from feast.feature_view import FeatureView
    from feast.infra.registry.base_registry import BaseRegistry
    from feast.repo_config import RepoConfig

_ROWS = 4_000_000
"""Entity rows joined at a time: the work for more would outweigh their result in memory."""


class DuckDBOfflineStoreConfig(FeastConfigBaseModel):
    """`offline_store:` in feature_store.yaml.

    Attributes:
        type: The plugin's dotted name.
        memory_limit: What DuckDB may hold in memory, as `4GiB`; its own default, 80 % of the
            machine's, when absent. A result as one table comes on top; `to_batches` streams it.
        temp_directory: Folder to spill to; relative to the repository. The system's when absent.
        max_temp_directory_size: What may be spilled, as `50GiB`.
        threads: Threads for one query; one per core when absent.
        settings: Further DuckDB settings by name, such as `s3_region`.
    """

    type: StrictStr = "steadfeast.DuckDBOfflineStore"
    memory_limit: StrictStr | None = None
    temp_directory: StrictStr | None = None
    max_temp_directory_size: StrictStr | None = None
    threads: int | None = None
    settings: dict[str, str | int | float | bool] = Field(default_factory=dict)


class DuckDBOfflineStore(OfflineStore):
    """Point-in-time joins with DuckDB over Parquet and Delta files.

    Rows of one key are totally ordered by `(event time, created time, canonical row bytes)`
    (`featurestore.tables.sql`), so the answer never depends on row order, threads or time zone.
    """

    supports_filter_by_created_timestamp = True

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
    ) -> DuckDBRetrievalJob:
        """Return the features of each entity row as they stood at its time.

        Args:
            config: The repository's configuration.
            feature_views: Views with their projections.
            feature_refs: `view:feature` references; results come in their order, by view.
            entity_df: pandas, Arrow, the text of a DuckDB query; or None for every key and event
                time of the views between `start_date` and `end_date`, both included.
            registry: For the on-demand views among `feature_refs`.
            project: The project.
            full_feature_names: Call results `view__feature`.
            filter_by_created_timestamp: Use a source row only from its created time on.
            start_date: See `entity_df`; the longest TTL before `end_date` by default, or 30 days.
            end_date: See `entity_df`; now by default.

        Raises:
            EntityFrameError: The entity frame lacks a column or holds what cannot be used.
            SourceError: A source is missing, unreadable or lacks a column.
        """
        wanted = requested(feature_views, feature_refs)
        spread = compute_non_entity_date_range(feature_views, start_date, end_date)
        with session(config) as connection:  # what is wrong is said now, not when it runs
            bounds = [
                bind(connection, config.repo_path, view, names, full_names=full_feature_names)
                for view, names in wanted
            ]
            frame = entity_df
            if frame is None:
                frame = sql.between(
                    [(b.view, b.entity_columns) for b in bounds], *map(micros, spread)
                )
            entities = read_entities(frame, connection)
        needed = {column for bound in bounds for column in bound.entity_columns}
        missing = needed - set(entities.table.column_names)
        if missing:
            raise MissingColumnsError(missing, entities.table.column_names)
        check_names(entities, bounds)
        reach = entities.range()

        def tables(rows: int | None) -> Iterator[pa.Table]:
            remote = any(is_remote(bound.source.location) for bound in bounds)
            with session(config, remote=remote) as connection:
                for part in entities.slices(rows or _ROWS):
                    yield join(connection, part, bounds, as_known=filter_by_created_timestamp)

        def text() -> str:
            given = f"({frame})" if isinstance(frame, str) else "entity_df"
            return sql.point_in_time_sql(
                given,
                entities.table.column_names,
                entities.time,
                [
                    (b.view, b.entity_columns, span(entities, b.view))
                    for b in bounds
                    if b.view.features
                ],
                as_known=filter_by_created_timestamp,
            )

        return DuckDBRetrievalJob(
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
    ) -> DuckDBRetrievalJob:
        """Return each key's newest row of those that became known in the range, ends included.

        Newest is greatest in the total order. Rows with an event time in the range are among
        them, and older ones that were created in it: Feast's own engine asks here for what it
        is to write. A key that is null, or has a null part, is left out: nothing can ask for it.

        Raises:
            SourceError: The source is missing, unreadable or lacks a column.
        """

        def query(connection: duckdb.DuckDBPyConnection) -> str:
            view = table_of(
                connection,
                config,
                data_source,
                keys=join_key_columns,
                features=feature_name_columns,
                timestamp=timestamp_field,
                created=created_timestamp_column,
            )
            view, since = known_from(view, micros(start_date))
            text = sql.newest(view, since, micros(end_date), known_by=None)
            return text if view.keys else with_dummy(text)

        if not created_timestamp_column:
            say_what_is_not_seen(data_source.name)
        return pulled(config, data_source, query, exact=True)

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
    ) -> DuckDBRetrievalJob:
        """Return all rows with an event time in the range, both ends included.

        With a created column that is asked for by name, as by Feast's own engine, older rows that
        were created in the range are among them.

        Raises:
            SourceError: The source is missing, unreadable or lacks a column.
        """

        def query(connection: duckdb.DuckDBPyConnection) -> str:
            view = table_of(
                connection,
                config,
                data_source,
                keys=join_key_columns,
                features=feature_name_columns,
                timestamp=timestamp_field,
                created=created_timestamp_column,
            )
            view, since = known_from(view, micros(start_date))
            text = sql.everything(view, since, micros(end_date))
            return text if view.keys else with_dummy(text)

        # Feast's own engine says "" where there is none; who reads for other ends says nothing.
        materializes = created_timestamp_column is not None
        if created_timestamp_column == "":
            say_what_is_not_seen(data_source.name)
        return pulled(config, data_source, query, exact=materializes)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Append rows to a view's batch source; nothing that is there is rewritten.

        Raises:
            SourceError: The source cannot be written, or the rows do not fit it.
            ValueError: The columns are not the source's, in its order (Feast's contract).
        """
        source = feature_view.batch_source
        if source is None:
            raise SourceError(feature_view.name, "", "the view has no batch source")
        schema = arrow_schema(config.repo_path, source, feature_view.name)
        if table.column_names != schema.names:
            raise ValueError(
                f"feature view {feature_view.name!r}: the table's columns {table.column_names} "
                f"are not the source's, in its order: {schema.names}"
            )
        append(table, source, config.repo_path, feature_view.name)
        if progress is not None:
            progress(table.num_rows)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,
        data: pa.Table | Path,
        source: LoggingSource,  # noqa: ARG004 - the table already has the schema
        logging_config: LoggingConfig,
        registry: BaseRegistry,  # noqa: ARG004
    ) -> None:
        """Append logged features to the destination, as a file of their own.

        Raises:
            SourceError: The destination is not a local folder.
        """
        destination = logging_config.destination
        if not isinstance(destination, FileLoggingDestination):
            raise SourceError("", type(destination).__name__, "is not a FileLoggingDestination")
        folder = FileSource.get_uri_for_file_path(config.repo_path, destination.path)
        log(data, Path(folder), destination.partition_by)

    def validate_data_source(self, config: RepoConfig, data_source: DataSource) -> None:
        """Check that a source can be read and has the columns that it names.

        A source that is not there yet is not an error: Feast applies definitions before data.

        Raises:
            SourceError: It is there and cannot be read, or lacks a column.
        """
        if not isinstance(data_source, FileSource):
            try:
                data_source.validate(config=config)
            except (ImportError, AttributeError) as error:  # it asks for a setting of its own store
                kind = type(data_source).__name__
                problem = f"this store reads FileSource, not {kind} ({error})"
                raise SourceError("", data_source.name, problem) from error
            return
        if not is_there(config.repo_path, data_source):
            return
        with session(config) as connection:
            source = open_source(connection, config.repo_path, data_source)
        old = originals(data_source, source.columns)
        for name in (data_source.timestamp_field, data_source.created_timestamp_column):
            if name:
                source.time(old.get(name, name))

    def get_table_column_names_and_types_from_data_source(
        self, config: RepoConfig, data_source: Any
    ) -> list[tuple[str, str]]:
        """Return a source's column names and their Arrow types, as results have them.

        Raises:
            SourceError: It is missing or unreadable.
        """
        if is_remote(data_source.path):
            return list(data_source.get_table_column_names_and_types(config))
        schema = arrow_schema(config.repo_path, data_source)
        return [(field.name, str(field.type)) for field in schema]

    @staticmethod
    def compute_monitoring_metrics(
        config: RepoConfig,
        data_source: DataSource,
        feature_columns: list[tuple[str, str]],
        timestamp_field: str,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        histogram_bins: int = 20,
        top_n: int = 10,
    ) -> list[dict[str, Any]]:
        """Return Feast's monitoring figures of columns, in the order asked.

        Raises:
            SourceError: The source is missing, unreadable or lacks a column.
        """
        with session(config) as connection:
            source = open_source(connection, config.repo_path, data_source)
            names = [source.column(name).name for name, _ in feature_columns]
            chosen = ", ".join(map(sql.identifier, names)) or "1"
            times = sql.within(source.time(timestamp_field), micros(start_date), micros(end_date))
            rows = f"SELECT {chosen} FROM {source.scan} WHERE {times}"
            numbers = [name for name, kind in feature_columns if kind == "numeric"]
            found = {
                metric["feature_name"]: metric
                for metric in feast_monitoring.numeric(connection, rows, numbers, histogram_bins)
            }
            for name in names:
                if name not in found:
                    found[name] = feast_monitoring.categorical(connection, rows, name, top_n)
        return [found[name] for name in names]

    @staticmethod
    def get_monitoring_max_timestamp(
        config: RepoConfig, data_source: DataSource, timestamp_field: str
    ) -> datetime | None:
        """Return the greatest event time of a source, None without any.

        Raises:
            SourceError: The source is missing, unreadable or lacks the column.
        """
        with session(config) as connection:
            source = open_source(connection, config.repo_path, data_source)
            time = source.time(timestamp_field)
            value = sql.micros(sql.identifier(time.name), time.type.id)
            query = f"SELECT max({value}) FROM {source.scan}"
            greatest = connection.execute(query).fetchall()[0][0]
        return None if greatest is None else instant(greatest)

    @staticmethod
    def ensure_monitoring_tables(config: RepoConfig) -> None:
        """Make the files that keep monitoring figures."""
        feast_monitoring.ensure(_folder(config))

    @staticmethod
    def save_monitoring_metrics(
        config: RepoConfig, metric_type: str, metrics: list[dict[str, Any]]
    ) -> None:
        """Keep monitoring figures; those with the key of others take their place."""
        feast_monitoring.save(_folder(config), metric_type, metrics)

    @staticmethod
    def query_monitoring_metrics(
        config: RepoConfig,
        project: str,
        metric_type: str,
        filters: dict[str, Any] | None = None,
        start_date: date | None = None,
        end_date: date | None = None,
    ) -> list[dict[str, Any]]:
        """Return kept monitoring figures in order of date, both ends included."""
        folder = _folder(config)
        return feast_monitoring.query(folder, project, metric_type, filters, start_date, end_date)

    @staticmethod
    def clear_monitoring_baseline(
        config: RepoConfig,
        project: str,
        feature_view_name: str | None = None,
        feature_name: str | None = None,
        data_source_type: str | None = None,
    ) -> None:
        """Unmark the baseline of the feature figures that match."""
        wanted = {
            "project_id": project,
            "feature_view_name": feature_view_name,
            "feature_name": feature_name,
            "data_source_type": data_source_type,
        }
        feast_monitoring.clear_baseline(_folder(config), wanted)


def _folder(config: RepoConfig) -> Path:
    return Path(config.repo_path or ".")
