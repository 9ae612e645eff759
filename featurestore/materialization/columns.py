"""From a source's column names to those of the online store.

Bottom of `materialization`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_NAME, DUMMY_ENTITY_VAL

from steadfeast.featurestore.tables import CREATED_TIMESTAMP, EVENT_TIMESTAMP

if TYPE_CHECKING:
    from collections.abc import Mapping

    from feast import FeatureView

Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)


def as_online(view: FeatureView, rows: Rows) -> Rows:
    """Return rows of a source under the online store's names."""
    names = online_names(view)
    rows = rows.rename_columns([names.get(name, name) for name in rows.schema.names])
    if view.entities == [DUMMY_ENTITY_NAME]:  # Feast's key of views without entities
        key = pa.array([DUMMY_ENTITY_VAL] * rows.num_rows, pa.string())
        rows = rows.append_column(DUMMY_ENTITY_ID, key)
    return rows


def online_names(view: FeatureView) -> Mapping[str, str]:
    """Names of the source's time and key columns, mapped or not -> those of the online store."""
    source = view.batch_source
    if source is None:
        return {}
    names = {source.timestamp_field: EVENT_TIMESTAMP}
    if source.created_timestamp_column:
        names[source.created_timestamp_column] = CREATED_TIMESTAMP
    keys = {field.name for field in view.entity_columns}
    for column, mapped in (source.field_mapping or {}).items():
        if mapped in names or mapped in keys:
            names[column] = names.get(mapped, mapped)
    return names
