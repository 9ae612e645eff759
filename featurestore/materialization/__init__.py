"""From sources to the online store, by the store's own command and by Feast's."""

from steadfeast.featurestore.materialization.columns import as_online
from steadfeast.featurestore.materialization.engine import (
    DuckDBComputeEngine,
    DuckDBComputeEngineConfig,
)
from steadfeast.featurestore.materialization.materializer import (
    Materialized,
    Materializer,
    Standing,
)

__all__ = [
    "DuckDBComputeEngine",
    "DuckDBComputeEngineConfig",
    "Materialized",
    "Materializer",
    "Standing",
    "as_online",
]
