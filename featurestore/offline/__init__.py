"""The offline store: point-in-time joins that are right in every corner.

`DuckDBOfflineStore` is a plain Feast plugin; `latest` feeds materialization.
"""

from steadfeast.featurestore.offline.binding import Bound, bind, described, opened
from steadfeast.featurestore.offline.entities import Rows, arrow_table
from steadfeast.featurestore.offline.ingestion import delete, ingest
from steadfeast.featurestore.offline.latest import latest
from steadfeast.featurestore.offline.pins import (
    can_pin,
    pinned,
    reads_files,
    unknown_then,
    used_rows,
)
from steadfeast.featurestore.offline.session import at_most, session
from steadfeast.featurestore.offline.sources import is_there, reading
from steadfeast.featurestore.offline.store import DuckDBOfflineStore, DuckDBOfflineStoreConfig

__all__ = [
    "Bound",
    "DuckDBOfflineStore",
    "DuckDBOfflineStoreConfig",
    "Rows",
    "arrow_table",
    "at_most",
    "bind",
    "can_pin",
    "delete",
    "described",
    "ingest",
    "is_there",
    "latest",
    "opened",
    "pinned",
    "reading",
    "reads_files",
    "session",
    "unknown_then",
    "used_rows",
]
