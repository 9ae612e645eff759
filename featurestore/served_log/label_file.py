"""Labels in a file or a table: what a warehouse gives out, read for the served log.

Above `log`; imports no Feast. DuckDB reads what there is; rows go to the log in batches, so that a
file may be larger than memory.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from steadfeast.featurestore.errors import NotFoundError, SourceError
from steadfeast.featurestore.tables import identifier, literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from steadfeast.featurestore.served_log.log import ServedLog

COLUMNS = {"request_id": "request_id", "label": "label", "known_at": "known_at"}
"""What the log calls a column -> what a file calls it, where nobody says otherwise."""

_BATCH_ROWS = 100_000
_DATABASES = (".duckdb", ".db")
_ALL = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)


@contextmanager
def opened(path: Path, table: str) -> Iterator[tuple[duckdb.DuckDBPyConnection, str, int]]:
    """Give a connection, what to select from, and how many rows there are.

    Args:
        path: Parquet, CSV, or a DuckDB file.
        table: Of the DuckDB file.

    Raises:
        SourceError: It cannot be read, or is a DuckDB file and no table of it is named.
    """
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        try:
            if path.suffix in _DATABASES:
                if not table:
                    raise SourceError("", str(path), "is a database: name a table of it")
                con.execute(f"ATTACH {literal(str(path))} AS given (READ_ONLY)")
                scan = f"given.{identifier(table)}"
            else:
                reader = "read_csv" if path.suffix == ".csv" else "read_parquet"
                scan = f"{reader}({literal(str(path))})"
            ((rows,),) = con.execute(f"SELECT count(*) FROM {scan}").fetchall()
            yield con, scan, int(rows)
        except duckdb.Error as error:
            raise SourceError("", str(path), str(error)) from error


def log_labels(
    log: ServedLog,
    service: str,
    path: Path,
    *,
    table: str = "",
    columns: Mapping[str, str] = COLUMNS,
    tell: Callable[[int, int], object] = lambda _done, _all: None,
) -> tuple[int, int]:
    """Log the labels of a file, and write them.

    Args:
        log: The served log.
        service: The feature service that was read.
        path: Parquet, CSV, or a DuckDB file.
        table: Of the DuckDB file.
        columns: What the log calls a column -> what the file calls it. A file without the column
            of `known_at` has labels that are known from now on.
        tell: Called with the rows that are logged, and all.

    Returns:
        Labels logged, and those of requests that the log does not hold yet.

    Raises:
        NotFoundError: There is no such service, or no such column.
        SourceError: See `opened`.
        LogRefusedError: A value is no label, or no time with a zone; batches before it are logged.
    """
    now, done = datetime.now(UTC), 0
    with opened(path, table) as (con, scan, rows):
        there = [row[0] for row in con.execute(f"DESCRIBE SELECT * FROM {scan}").fetchall()]
        for name in ("request_id", "label"):
            if columns[name] not in there:
                raise NotFoundError("column", columns[name], there)
        dated = columns["known_at"] in there
        wanted = [columns["request_id"], columns["label"], *([columns["known_at"]] * dated)]
        query = f"SELECT {', '.join(map(identifier, wanted))} FROM {scan}"
        for batch in con.sql(query).to_arrow_reader(_BATCH_ROWS):
            some = pa.table(batch)
            times = some.column(2) if dated else now
            log.append_labels(service, some.column(0).cast(pa.string()), some.column(1), times)
            done += some.num_rows
            tell(done, rows)
        log.flush("labels", service)
        log.flush("served", service)
        served = [str(file) for file in log.files(service, *_ALL)]
        known = f"SELECT {identifier(columns['request_id'])}::VARCHAR AS request_id FROM {scan}"
        if not served:
            return done, rows
        ((unknown,),) = con.execute(
            f"SELECT count(*) FROM ({known}) ANTI JOIN "
            "read_parquet($served, union_by_name = true) USING (request_id)",
            {"served": served},
        ).fetchall()
    return done, int(unknown)
