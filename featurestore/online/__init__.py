"""Online stores: plain Feast `OnlineStore` plugins that keep one packed row per entity.

`keys` and `packing` are below `columns`, which moves batches; `base` is what Feast knows; `sqlite`
and `redis` know where bytes are kept. In `feature_store.yaml`:

    online_store:
      type: featurestore.online.SQLiteOnlineStore
      path: data/online.db
"""

from steadfeast.featurestore.online.base import PackedOnlineStore
from steadfeast.featurestore.online.batches import space_of
from steadfeast.featurestore.online.feast_values import to_values
from steadfeast.featurestore.online.keys import KeyCodec
from steadfeast.featurestore.online.packing import PackedRead, plan_of, unpack
from steadfeast.featurestore.online.progress import Place
from steadfeast.featurestore.online.redis import RedisOnlineStore, RedisOnlineStoreConfig
from steadfeast.featurestore.online.sqlite import SQLiteOnlineStore, SQLiteOnlineStoreConfig

__all__ = [
    "KeyCodec",
    "PackedOnlineStore",
    "PackedRead",
    "Place",
    "RedisOnlineStore",
    "RedisOnlineStoreConfig",
    "SQLiteOnlineStore",
    "SQLiteOnlineStoreConfig",
    "plan_of",
    "space_of",
    "to_values",
    "unpack",
]
