"""Online stores: plain Feast `OnlineStore` plugins that keep one packed row per entity.

`keys` and `protos` are below `base`, which knows rows, order and Feast's interfaces; `sqlite`

    online_store:
      type: featurestore.online.SQLiteOnlineStore
      path: data/online.db
"""

from featurestore.online.base import PackedOnlineStore, PackedRead
from featurestore.online.sqlite import SQLiteOnlineStore, SQLiteOnlineStoreConfig

__all__ = [
    "PackedOnlineStore",
    "PackedRead",
    "SQLiteOnlineStore",
    "SQLiteOnlineStoreConfig",
]
