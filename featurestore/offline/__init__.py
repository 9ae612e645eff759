"""The offline store: point-in-time joins that are right in every corner.

`DuckDBOfflineStore` is a plain Feast plugin; `latest` feeds materialization.
"""

from steadfeast.featurestore.offline.latest import latest
from steadfeast.featurestore.offline.store import DuckDBOfflineStore, DuckDBOfflineStoreConfig

__all__ = ["DuckDBOfflineStore", "DuckDBOfflineStoreConfig", "latest"]
