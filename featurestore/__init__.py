"""The feature store: plain Feast definitions, Feast plugins, and the guarantee on top of them.

A name is imported when it is first asked for: Feast alone takes seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steadfeast.featurestore.definitions import Contract
    from steadfeast.featurestore.materialization import (
        DuckDBComputeEngine,
        DuckDBComputeEngineConfig,
    )
    from steadfeast.featurestore.offline import DuckDBOfflineStore, DuckDBOfflineStoreConfig
    from steadfeast.featurestore.offline.spark import SparkOfflineStore, SparkOfflineStoreConfig
    from steadfeast.featurestore.online import (
        RedisOnlineStore,
        RedisOnlineStoreConfig,
        SQLiteOnlineStore,
        SQLiteOnlineStoreConfig,
    )
    from steadfeast.featurestore.served_log import ServedLog
    from steadfeast.featurestore.serving import OnlineFeatures
    from steadfeast.featurestore.store import Store
    from steadfeast.featurestore.training import Manifest, TrainingSet

_MODULES = {
    "Contract": "definitions.contract",
    "DuckDBComputeEngine": "materialization.engine",
    "DuckDBComputeEngineConfig": "materialization.engine",
    "DuckDBOfflineStore": "offline",
    "DuckDBOfflineStoreConfig": "offline",
    "Manifest": "training.manifest",
    "OnlineFeatures": "serving.features",
    "RedisOnlineStore": "online",
    "RedisOnlineStoreConfig": "online",
    "SQLiteOnlineStore": "online",
    "SQLiteOnlineStoreConfig": "online",
    "ServedLog": "served_log.log",
    "SparkOfflineStore": "offline.spark",
    "SparkOfflineStoreConfig": "offline.spark",
    "Store": "store",
    "TrainingSet": "training.manifest",
}

__all__ = [
    "Contract",
    "DuckDBComputeEngine",
    "DuckDBComputeEngineConfig",
    "DuckDBOfflineStore",
    "DuckDBOfflineStoreConfig",
    "Manifest",
    "OnlineFeatures",
    "RedisOnlineStore",
    "RedisOnlineStoreConfig",
    "SQLiteOnlineStore",
    "SQLiteOnlineStoreConfig",
    "ServedLog",
    "SparkOfflineStore",
    "SparkOfflineStoreConfig",
    "Store",
    "TrainingSet",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
