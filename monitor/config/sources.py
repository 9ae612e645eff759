"""What a monitor watches other than a served log, and what it may compare it with.

Below `config`, whose monitors have these; `sources` reads what is described here.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Annotated, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema, model_validator

from steadfeast.featurestore.config import FilePath, Section


def _instant(value: object) -> object:
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    elif isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return value


Instant = Annotated[
    datetime,
    BeforeValidator(_instant),
    WithJsonSchema({"type": "string", "examples": ["2024-01-01", "2024-01-01T06:00:00Z"]}),
]
"""A day, or a time in ISO 8601; UTC unless it says otherwise."""


class StretchConfig(Section):
    """A stretch of what a monitor watches, to compare with.

    Attributes:
        start: `from`, its first day or time, included.
        end: `to`, the day or time after the last one.
    """

    start: Instant = Field(alias="from")
    end: Instant = Field(alias="to")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.start >= self.end:
            raise ValueError(
                f"from ({self.start:%Y-%m-%d}) must be before to ({self.end:%Y-%m-%d})"
            )
        return self


ReferenceConfig = Annotated[
    Annotated[FilePath, Tag("manifest")] | Annotated[StretchConfig, Tag("stretch")],
    Discriminator(
        lambda value: "stretch" if isinstance(value, dict | StretchConfig) else "manifest"
    ),
]


class SourceConfig(Section):
    """What is watched in place of a served log: a feature view, or any table that DuckDB reads.

    Attributes:
        view: A feature view of the store; the rows of its source by event time, of several for
            the same entity and time the one that a point-in-time join would take.
        files: Parquet or CSV: a file, a folder of Parquet files, a glob; or a Delta table's folder.
        database: A DuckDB file; opened to read, and only while it is read.
        table: Its table or view, as `orders` or `sales.orders`.
        timestamp: Column of the event time, of files and databases.
        keys: Columns that name entities: rows of one are not independent.
        pii: Columns of files and databases whose values are somebody's, so that none is shown.
    """

    view: str = ""
    files: FilePath | None = None
    database: FilePath | None = None
    table: str = ""
    timestamp: str = ""
    keys: tuple[str, ...] = ()
    pii: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(map(bool, (self.view, self.files, self.database))) != 1:
            raise ValueError("give one of view, files and database")
        if bool(self.database) != bool(self.table):
            raise ValueError("database and table go together")
        if bool(self.view) == bool(self.timestamp):
            raise ValueError("timestamp goes with files and database; a view knows its own")
        if self.view and (self.keys or self.pii):
            raise ValueError("keys and pii go with files and database; a view knows its own")
        return self
