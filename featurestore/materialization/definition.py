"""Everything that decides which rows of a view are online, as plain JSON, and what changed in it.

Below `materializer`, which keeps it with the rows and fills them anew when it differs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from steadfeast.featurestore.definitions import LAYOUT, TIE_RULE, describe_source
from steadfeast.featurestore.tables import arrow_type, duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from feast import FeatureView

ENGINE = "duckdb"


def definition_of(view: FeatureView, repo: Path) -> dict[str, Any]:
    """Describe a view's source, mapping, keys, types and engine.

    A TTL decides what is served, not what is online, but for sources without a created column:
    of those, late rows are looked for as far back as it reaches.
    """
    source = view.batch_source
    described: dict[str, Any] = {
        "source": None if source is None else describe_source(source, repo),
        "keys": {field.name: str(arrow_type(field)) for field in view.entity_columns},
        "features": {field.name: str(arrow_type(field)) for field in view.features},
        "engine": {"name": ENGINE, "rows": LAYOUT, "order": TIE_RULE},
    }
    if not getattr(source, "created_timestamp_column", ""):
        described["ttl_us"] = duration(view.ttl) if view.ttl else 0
    return described


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Say in words what differs between two definitions."""
    return "; ".join(_changes(old, new, ""))


def _changes(old: object, new: object, name: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _changes(old.get(key), new.get(key), f"{name} {key}".strip())
    elif old != new:
        if old is None:
            yield f"{name} was added, {new}"
        elif new is None:
            yield f"{name} was removed"
        else:
            yield f"{name} was {old} and is {new}"
