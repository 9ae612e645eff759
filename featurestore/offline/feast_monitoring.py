"""Feast's monitoring hooks: figures of a source's columns, and the files that keep them.

Above `sources`. File names and columns are Feast's own, so that its service and UI read them.
Figures of numbers are those of the finite values: one NaN does not blank a feature.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast.monitoring.monitoring_utils import (
    MONITORING_DIR,
    empty_categorical_metric,
    empty_numeric_metric,
    monitoring_parquet_meta,
    normalize_monitoring_row,
)

from steadfeast.featurestore.tables import identifier, whole_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date
    from pathlib import Path

    import duckdb

_QUANTILES = {"p50": 0.5, "p75": 0.75, "p90": 0.9, "p95": 0.95, "p99": 0.99}


def numeric(
    connection: duckdb.DuckDBPyConnection, rows: str, names: Sequence[str], bins: int
) -> list[dict[str, Any]]:
    """Return the figures of numeric columns of the query `rows`, read once, and histograms."""
    if not names:
        return []
    parts = ["count(*)"]
    for name in names:
        value = f"{identifier(name)}::DOUBLE"
        finite = f"FILTER (WHERE isfinite({value}))"
        shares = ", ".join(map(str, _QUANTILES.values()))
        parts += [
            f"count({identifier(name)})",
            f"avg({value}) {finite}",
            f"stddev_samp({value}) {finite}",
            f"min({value}) {finite}",
            f"max({value}) {finite}",
            f"quantile_cont({value}, [{shares}]) {finite}",
        ]
    found = connection.execute(f"SELECT {', '.join(parts)} FROM ({rows})").fetchall()[0]
    total, figures = found[0], []
    for i, name in enumerate(names):
        there, mean, deviation, least, most, quantiles = found[1 + 6 * i : 7 + 6 * i]
        metric = empty_numeric_metric(name) | _nulls(total, there)
        if least is not None:
            metric |= {"mean": mean, "stddev": deviation, "min_val": least, "max_val": most}
            metric |= dict(zip(_QUANTILES, quantiles, strict=True))
            metric["histogram"] = _histogram(connection, rows, name, (least, most), bins)
        figures.append(metric)
    return figures


def categorical(
    connection: duckdb.DuckDBPyConnection, rows: str, name: str, top: int
) -> dict[str, Any]:
    """Return the figures of one column of the query `rows`: its commonest values."""
    value = identifier(name)
    total, there, distinct = connection.execute(
        f"SELECT count(*), count({value}), count(DISTINCT {value}) FROM ({rows})"
    ).fetchall()[0]
    metric = empty_categorical_metric(name) | _nulls(total, there)
    if there:
        found = connection.execute(
            f"SELECT {value}::VARCHAR, count(*) AS n FROM ({rows}) WHERE {value} IS NOT NULL "
            f"GROUP BY 1 ORDER BY n DESC, 1 LIMIT {int(top)}"
        ).fetchall()
        metric["histogram"] = {
            "values": [{"value": text, "count": n} for text, n in found],
            "other_count": there - sum(n for _, n in found),
            "unique_count": distinct,
        }
    return metric


def _nulls(total: int, there: int) -> dict[str, Any]:
    return {
        "row_count": total,
        "null_count": total - there,
        "null_rate": (total - there) / total if total else 0.0,
    }


def _histogram(
    connection: duckdb.DuckDBPyConnection,
    rows: str,
    name: str,
    ends: tuple[float, float],
    bins: int,
) -> dict[str, Any]:
    value, (least, most) = f"{identifier(name)}::DOUBLE", ends
    width = (most - least) / bins
    slot = f"least(floor(({value} - {least!r}) / {width!r}), {bins - 1})" if width else "0"
    found = connection.execute(
        f"SELECT {slot}::INTEGER AS slot, count(*) FROM ({rows}) WHERE isfinite({value}) GROUP BY 1"
    ).fetchall()
    if not width:
        return {"bins": [least, most], "counts": [found[0][1]], "bin_width": 0.0}
    counts = [0] * bins
    for at, n in found:
        counts[at] = n
    edges = [least + i * width for i in range(bins + 1)]
    return {"bins": edges, "counts": counts, "bin_width": width}


def ensure(folder: Path) -> None:
    """Make the files that are not there yet."""
    for kind in ("feature", "feature_view", "feature_service", "job"):
        name, columns, _ = monitoring_parquet_meta(kind)
        if not (folder / MONITORING_DIR / name).exists():
            _store(folder / MONITORING_DIR / name, pd.DataFrame(columns=columns))


def save(folder: Path, kind: str, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Add rows; one with the key of another takes its place."""
    if not metrics:
        return
    name, columns, key = monitoring_parquet_meta(kind)
    path = folder / MONITORING_DIR / name
    fresh = pd.DataFrame([_flat(metric) for metric in metrics], columns=columns)
    old = _load(path)
    both = fresh if old is None or old.empty else pd.concat([old, fresh], ignore_index=True)
    _store(path, both.drop_duplicates(subset=key, keep="last"))


def query(
    folder: Path,
    project: str,
    kind: str,
    filters: Mapping[str, Any] | None,
    start: date | None,
    end: date | None,
) -> list[dict[str, Any]]:
    """Return the rows of a project that match, by date (jobs: by id), both ends included."""
    name, columns, _ = monitoring_parquet_meta(kind)
    frame = _load(folder / MONITORING_DIR / name)
    if frame is None or frame.empty:
        return []
    wanted = {"project_id": project or None} | dict(filters or {})
    for column, value in wanted.items():
        if value is not None:
            frame = frame[frame[column] == value]
    by = "metric_date" if "metric_date" in columns else "job_id"
    if by == "metric_date":
        if start is not None:
            frame = frame[frame[by] >= start]
        if end is not None:
            frame = frame[frame[by] <= end]
    records = frame.sort_values(by)[columns].to_dict("records")
    return [normalize_monitoring_row({str(k): v for k, v in row.items()}) for row in records]


def clear_baseline(folder: Path, wanted: Mapping[str, str | None]) -> None:
    """Unmark the baseline of the feature rows that match."""
    name, _, _ = monitoring_parquet_meta("feature")
    path = folder / MONITORING_DIR / name
    frame = _load(path)
    if frame is None or frame.empty:
        return
    chosen = pd.Series(True, index=frame.index)
    for column, value in wanted.items():
        if value is not None:
            chosen &= frame[column] == value
    frame.loc[chosen, "is_baseline"] = False
    _store(path, frame)


def _flat(metric: Mapping[str, Any]) -> dict[str, Any]:
    histogram = metric.get("histogram")
    text = isinstance(histogram, str) or histogram is None
    return dict(metric) | {"histogram": histogram if text else json.dumps(histogram)}


def _load(path: Path) -> pd.DataFrame | None:
    if not path.exists():
        return None
    frame: pd.DataFrame = pq.read_table(path).to_pandas()
    return frame


def _store(path: Path, frame: pd.DataFrame) -> None:
    """Write the file under another name, then rename: a reader sees one or the other."""
    with whole_file(path) as fresh:
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), fresh)
