"""What became known of a feature view in a span of time: the rows that materialization moves.

Above `offline`. A row is known from the later of its event time and its created time. Reading by
event time alone, as Feast does, never sees a row that was written late; reading by either finds
it, and the online store's own order keeps it from undoing what is newer.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from featurestore import sql
from featurestore.offline.session import session
from featurestore.offline.views import bind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa
    from feast import FeatureView
    from feast.repo_config import RepoConfig


@contextmanager
def reader(
    config: RepoConfig,
) -> Iterator[Callable[[FeatureView, int | None, int], pa.RecordBatchReader]]:
    """Open one DuckDB session and give a function that reads views through it.

    The function takes a view, `since` (microseconds, or None for the beginning) and `until`, and
    streams each key's greatest row among those that became known from `since` to `until`, both
    included. Read one stream to its end before asking for the next.
    """
    with session(config) as connection:

        def read(view: FeatureView, since: int | None, until: int) -> pa.RecordBatchReader:
            bound = bind(
                connection, config.repo_path, view, [field.name for field in view.features]
            )
            rows = bound.view
            if rows.created is None or since is None:
                text = sql.newest(rows, since, until, known_by=until)
            else:
                known = " OR ".join(
                    f"({sql.within(column, since, until)})"
                    for column in (rows.timestamp, rows.created)
                )
                scan = f"(SELECT * FROM {rows.scan} WHERE {known})"
                text = sql.newest(replace(rows, scan=scan), None, until, known_by=until)
            return connection.sql(text).to_arrow_reader()

        yield read
