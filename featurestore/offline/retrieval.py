"""Feast's `RetrievalJob` over a query that runs when its result is asked for.

Above `writing`. A job holds what to run, not a connection: asking twice runs twice.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import pyarrow as pa
from feast.infra.offline_stores.offline_store import RetrievalJob

from steadfeast.featurestore.offline.writing import check_target, persist
from steadfeast.featurestore.tables import data_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd
    from feast.infra.offline_stores.offline_store import RetrievalMetadata
    from feast.on_demand_feature_view import OnDemandFeatureView
    from feast.repo_config import RepoConfig
    from feast.saved_dataset import SavedDatasetStorage


class DuckDBRetrievalJob(RetrievalJob):
    """A result to be computed.

    Args:
        config: The repository's configuration.
        tables: Runs the query; given the most rows at a time (None: the query's own choice), it
            gives the result in order, in at least one table.
        text: Gives the query as one SQL statement.
        on_demand: On-demand feature views to apply to the result.
        full_names: Whether results are called `view__feature`.
        metadata: Feast's description of the result.
    """

    def __init__(
        self,
        config: RepoConfig,
        tables: Callable[[int | None], Iterator[pa.Table]],
        text: Callable[[], str],
        *,
        on_demand: Sequence[OnDemandFeatureView] = (),
        full_names: bool = False,
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        self._config, self._tables, self._text = config, tables, text
        self._on_demand, self._full_names = list(on_demand), full_names
        self._metadata = metadata

    def to_sql(self) -> str:
        """Return one SQL statement that gives the same result, on-demand features aside.

        It runs in DuckDB with `SET TimeZone='UTC'`, from the repository's folder. An entity frame
        that was given as a table is `entity_df` in it.
        """
        return self._text()

    def to_batches(self, rows: int = 1_000_000) -> pa.RecordBatchReader:
        """Stream the result in order, on-demand features included, for what exceeds memory.

        Args:
            rows: Entity rows joined at a time. Each time reads the sources once.
        """
        stream = self._batches(rows)
        first = next(stream)
        return pa.RecordBatchReader.from_batches(first.schema, chain([first], stream))

    def _batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        for table in self._tables(rows):
            whole = _Part(table, self).to_arrow() if self._on_demand else table
            batches = whole.to_batches()
            yield from batches or [pa.RecordBatch.from_pylist([], schema=whole.schema)]

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return data_frame(self._to_arrow_internal(timeout))

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002 - Feast's
        return pa.concat_tables(self._tables(None))

    @property
    def full_feature_names(self) -> bool:
        """Whether results are called `view__feature`."""
        return self._full_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """The on-demand feature views that Feast applies to the result."""
        return self._on_demand

    @property
    def metadata(self) -> RetrievalMetadata | None:
        """Feast's description of the result."""
        return self._metadata

    def persist(
        self,
        storage: SavedDatasetStorage,
        allow_overwrite: bool = False,
        timeout: int | None = None,  # noqa: ARG002 - Feast's
    ) -> None:
        """Stream the result, on-demand features included, to a saved dataset's location.

        Raises:
            SavedDatasetLocationAlreadyExists: There is something, and `allow_overwrite` is off.
            SourceError: The location is not local, or is no Parquet file, folder or Delta table.
        """
        source = storage.to_data_source()
        target = check_target(source, self._config.repo_path, overwrite=allow_overwrite)
        persist(self.to_batches(), source, target)


class _Part(RetrievalJob):
    """A part of a job's rows, for Feast to apply the job's on-demand views to."""

    def __init__(self, table: pa.Table, job: DuckDBRetrievalJob) -> None:
        self._table, self._job = table, job

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002 - Feast's
        return self._table

    @property
    def full_feature_names(self) -> bool:
        return self._job.full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._job.on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._job.metadata
