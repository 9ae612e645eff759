"""Feast's `RetrievalJob` over a query that runs when its result is asked for.

Above `session`. A job holds what to run, not a connection: asking twice runs twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
from feast.infra.offline_stores.offline_store import RetrievalJob

from featurestore.offline.writing import persist

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd
    from feast.infra.offline_stores.offline_store import RetrievalMetadata
    from feast.on_demand_feature_view import OnDemandFeatureView
    from feast.repo_config import RepoConfig
    from feast.saved_dataset import SavedDatasetStorage


class DuckDBRetrievalJob(RetrievalJob):  # type: ignore[misc]
    """A result to be computed.

    Args:
        config: The repository's configuration.
        batches: Runs the query; gives its schema and its record batches, in order.
        text: Gives the query as one SQL statement.
        on_demand: On-demand feature views to apply to the result.
        full_names: Whether results are called `view__feature`.
        metadata: Feast's description of the result.
    """

    def __init__(
        self,
        config: RepoConfig,
        batches: Callable[[], Iterator[pa.Table]],
        text: Callable[[], str],
        *,
        on_demand: Sequence[OnDemandFeatureView] = (),
        full_names: bool = False,
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        self._config, self._batches, self._text = config, batches, text
        self._on_demand, self._full_names = list(on_demand), full_names
        self._metadata = metadata

    def to_sql(self) -> str:
        """Return one SQL statement that gives the same result.

        An entity frame that was given as a table appears in it under the name `entity_df`.
        """
        return self._text()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002 - Feast's
        return pa.concat_tables(self._batches())

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
        timeout: int | None = None,
    ) -> None:
        """Write the result, on-demand features included, to a saved dataset's location.

        Raises:
            SavedDatasetLocationAlreadyExists: There is something, and `allow_overwrite` is off.
        """
        table: Any = self.to_arrow(timeout=timeout)
        persist(table, storage.to_data_source(), self._config.repo_path, overwrite=allow_overwrite)
