"""Rows that Feast's clients send: `/write-to-online-store` and `/push` of Feast's feature server.

Above `store`, below `http_app`. What JSON has no type for is read by the type that the feature view
declares: a number of a time is seconds, a text of bytes is base64. Columns may have the view's
names or the source's, as Feast takes them; its remote online store calls times `event_timestamp`
and `created`, whatever the source does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
from pydantic import BaseModel

from steadfeast.featurestore.errors import NotFoundError, RequestError
from steadfeast.featurestore.server.json_values import column_of
from steadfeast.featurestore.tables import (
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    TIMESTAMP,
    arrow_type,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from feast import FeatureView

    from steadfeast.featurestore.store import Store


class Written(BaseModel, frozen=True):
    """Body of `/write-to-online-store`; other keys are ignored.

    Attributes:
        feature_view_name: Where the rows go.
        df: Column of values per join key, feature and time.
    """

    feature_view_name: str
    df: dict[str, list[Any]]


class Pushed(BaseModel, frozen=True):
    """Body of `/push`; other keys are ignored.

    Attributes:
        push_source_name: Every feature view that has it as its stream takes the rows.
        df: As of `Written`.
        to: Where the rows go: what is online, the batch source, or both.
    """

    push_source_name: str
    df: dict[str, list[Any]]
    to: Literal["online", "offline", "online_and_offline"] = "online"


def write(store: Store, body: Written) -> None:
    """Write rows to the online store, as `Store.write_online` does.

    Raises:
        NotFoundError: There is no such feature view.
        RequestError: A column is missing, or a value does not fit its type.
    """
    (view,) = store.catalog.online_views([body.feature_view_name])
    store.write_online(view.name, rows_of(view, body.df))


def push(store: Store, body: Pushed) -> None:
    """Write rows to every feature view of a push source.

    Raises:
        NotFoundError: No feature view has such a source.
        RequestError: See `write`.
        SourceError: The batch source takes no rows.
    """
    streams = {
        view.name: str(stream.name)
        for view in store.catalog.online_views(())
        if (stream := getattr(view, "stream_source", None)) is not None
    }
    names = [name for name, stream in streams.items() if stream == body.push_source_name]
    if not names:
        raise NotFoundError("push source", body.push_source_name, set(streams.values()))
    for view in store.catalog.online_views(names):
        rows = rows_of(view, body.df)
        if body.to != "online":  # what is appended is known from now on, whatever it says
            source = view.batch_source
            created = source.created_timestamp_column if source is not None else ""
            store.ingest(view.name, rows.drop_columns([created] if created else []))
        if body.to != "offline":
            store.write_online(view.name, rows)


def rows_of(view: FeatureView, columns: Mapping[str, list[Any]]) -> pa.Table:
    """Return JSON columns as rows of a feature view, as `Store.write_online` takes them.

    Raises:
        RequestError: A column is missing, is of another length, or does not fit its type.
    """
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1:
        raise RequestError("df", f"columns have different lengths: {sorted(lengths)}")
    source = view.batch_source
    if source is None:
        raise RequestError(
            "feature view", f"{view.name!r} has no batch source that names its times"
        )
    mapped = {to: name for name, to in (source.field_mapping or {}).items()}
    made = {}
    for field in (*view.entity_columns, *view.features):
        found = next((n for n in (field.name, mapped.get(field.name)) if n in columns), None)
        if found is None:
            raise RequestError("df", f"has no column {field.name!r}")
        made[field.name] = column_of(f"df.{found}", columns[found], arrow_type(field))
    times = {source.timestamp_field: EVENT_TIMESTAMP}
    if source.created_timestamp_column:
        times[source.created_timestamp_column] = "created"
    for name, otherwise in times.items():
        found = next((n for n in (name, otherwise, CREATED_TIMESTAMP) if n in columns), None)
        if found is None:
            raise RequestError("df", f"has no column {name!r}")
        made[name] = column_of(f"df.{found}", columns[found], TIMESTAMP)
    return pa.table(made)
