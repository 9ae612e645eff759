"""A Feast-backed feature store that keeps training and serving the same, and its monitor.

What people write is imported from here; everything else lives in the packages below. A name is
imported when it is first asked for, since Feast alone takes seconds:

    from steadfeast import Store, TrainingSet, Fitted, frame

In `feature_store.yaml` the plugins are `type: steadfeast.DuckDBOfflineStore`,
`steadfeast.SQLiteOnlineStore`, `steadfeast.RedisOnlineStore` and `steadfeast.DuckDBComputeEngine`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steadfeast.featurestore.definitions.contract import Contract
    from steadfeast.featurestore.materialization.engine import (
        DuckDBComputeEngine,
        DuckDBComputeEngineConfig,
    )
    from steadfeast.featurestore.offline import DuckDBOfflineStore, DuckDBOfflineStoreConfig
    from steadfeast.featurestore.online import (
        RedisOnlineStore,
        RedisOnlineStoreConfig,
        SQLiteOnlineStore,
        SQLiteOnlineStoreConfig,
    )
    from steadfeast.featurestore.served_log.log import ServedLog
    from steadfeast.featurestore.serving.features import OnlineFeatures
    from steadfeast.featurestore.store import Store
    from steadfeast.featurestore.training.manifest import Manifest, TrainingSet
    from steadfeast.pipeline.recipes.recipe import Fitted, Recipe, frame

    __version__: str

_MODULES = {
    "Contract": "featurestore.definitions.contract",
    "DuckDBComputeEngine": "featurestore.materialization.engine",
    "DuckDBComputeEngineConfig": "featurestore.materialization.engine",
    "DuckDBOfflineStore": "featurestore.offline",
    "DuckDBOfflineStoreConfig": "featurestore.offline",
    "Fitted": "pipeline.recipes.recipe",
    "Manifest": "featurestore.training.manifest",
    "OnlineFeatures": "featurestore.serving.features",
    "Recipe": "pipeline.recipes.recipe",
    "RedisOnlineStore": "featurestore.online",
    "RedisOnlineStoreConfig": "featurestore.online",
    "SQLiteOnlineStore": "featurestore.online",
    "SQLiteOnlineStoreConfig": "featurestore.online",
    "ServedLog": "featurestore.served_log.log",
    "Store": "featurestore.store",
    "TrainingSet": "featurestore.training.manifest",
    "frame": "pipeline.recipes.recipe",
}

__all__ = [
    "Contract",
    "DuckDBComputeEngine",
    "DuckDBComputeEngineConfig",
    "DuckDBOfflineStore",
    "DuckDBOfflineStoreConfig",
    "Fitted",
    "Manifest",
    "OnlineFeatures",
    "Recipe",
    "RedisOnlineStore",
    "RedisOnlineStoreConfig",
    "SQLiteOnlineStore",
    "SQLiteOnlineStoreConfig",
    "ServedLog",
    "Store",
    "TrainingSet",
    "__version__",
    "frame",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name == "__version__":
        metadata = import_module("importlib.metadata")
        return metadata.version("steadfeast")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted(__all__)
