"""The columns that every part agrees on.

Bottom of `featurestore.tables`: no I/O, and no Feast, so that who only reads tables starts at once.
What is named here is named nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Mapping

    from feast import FeatureView

TIMESTAMP = pa.timestamp("us", tz="UTC")
"""The type of every time: UTC microseconds."""

EVENT_TIMESTAMP = "event_timestamp"
CREATED_TIMESTAMP = "created_timestamp"

LOGGED = frozenset(
    ("request_id", "request_time", "model", "model_version", "contract", "prediction")
)
"""Columns that the served log has beside keys and features."""


def is_personal(tags: Mapping[str, str] | None) -> bool:
    """Tell whether Feast tags mark personal data: `pii` with any value but "false"."""
    return (tags or {}).get("pii", "false").lower() != "false"


def personal_fields(view: FeatureView) -> frozenset[str]:
    """Return which join keys and features of a view are personal.

    A tag on the view is one on each feature that does not say otherwise itself.
    """
    own = {item.name: item.tags or {} for item in (*view.entity_columns, *view.features)}
    whole = {item.name: {**(view.tags or {}), **own[item.name]} for item in view.features}
    return frozenset(name for name, tags in {**own, **whole}.items() if is_personal(tags))
