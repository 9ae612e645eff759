"""A Feast-backed feature store that keeps training and serving the same, and its monitor.

What people write is imported from here; everything else lives in the packages below. A name is
imported when it is first asked for, since Feast alone takes seconds:

    from steadfeast import Store, TrainingSet, Fitted, frame

In `feature_store.yaml` the plugins are `type: steadfeast.DuckDBOfflineStore`,
`steadfeast.SparkOfflineStore`,
`steadfeast.SQLiteOnlineStore`, `steadfeast.RedisOnlineStore` and `steadfeast.DuckDBComputeEngine`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steadfeast.featurestore import (
        Contract,
        DuckDBComputeEngine,
        DuckDBComputeEngineConfig,
        DuckDBOfflineStore,
        DuckDBOfflineStoreConfig,
        Manifest,
        OnlineFeatures,
        RedisOnlineStore,
        RedisOnlineStoreConfig,
        ServedLog,
        SparkOfflineStore,
        SparkOfflineStoreConfig,
        SQLiteOnlineStore,
        SQLiteOnlineStoreConfig,
        Store,
        TrainingSet,
    )
    from steadfeast.measures import Measure
    from steadfeast.monitor.frames import DriftReport, compare
    from steadfeast.pipeline import Fitted, Gate, Model, OnnxModel, Recipe, frame

    __version__: str

__all__ = [
    "Contract",
    "DriftReport",
    "DuckDBComputeEngine",
    "DuckDBComputeEngineConfig",
    "DuckDBOfflineStore",
    "DuckDBOfflineStoreConfig",
    "Fitted",
    "Gate",
    "Manifest",
    "Measure",
    "Model",
    "OnlineFeatures",
    "OnnxModel",
    "Recipe",
    "RedisOnlineStore",
    "RedisOnlineStoreConfig",
    "SQLiteOnlineStore",
    "SQLiteOnlineStoreConfig",
    "ServedLog",
    "SparkOfflineStore",
    "SparkOfflineStoreConfig",
    "Store",
    "TrainingSet",
    "__version__",
    "compare",
    "frame",
]

_PARTS = {
    **dict.fromkeys(("Fitted", "Gate", "Model", "OnnxModel", "Recipe", "frame"), "pipeline"),
    **dict.fromkeys(("DriftReport", "compare"), "monitor.frames"),
    "Measure": "measures",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name == "__version__":
        return import_module("importlib.metadata").version("steadfeast")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    part = _PARTS.get(name, "featurestore")
    return getattr(import_module(f"{__name__}.{part}"), name)


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted(__all__)
