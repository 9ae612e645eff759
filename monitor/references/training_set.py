"""References: a stretch of a source; or a training set, completed by what its model said.

Above `monitor.drift.reference` and `monitor.sources.source`. A training set does not say what the
model predicts. The pipeline does, by the file that `scored_uri` of a run names: the rows of the
training set with `prediction`, and with `held_out` where the model was not trained on the row. From
all of them comes the reference of the predictions themselves, watched like a feature from then on;
from the held-out ones the expected figures, the estimator of performance, and each feature's
importance.

Known limit: of rows that it was trained on a model is surer than it will be. That shows far less
than weeks differ from each other (on the flights a PSI of .07 between the held-out week and the
others, which are apart by .02 to .34 among themselves), and a hold-out alone has too few weeks to
tell what is usual.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from steadfeast import featurestore
from steadfeast.featurestore.errors import NotFoundError, SourceError, UserError
from steadfeast.featurestore.tables import EVENT_TIMESTAMP, literal
from steadfeast.measures import Sample
from steadfeast.monitor.drift import (
    PREDICTION,
    build_reference,
    by_bucket,
    data_facts,
    quarantined_share,
    read_columns,
    reference_of,
    reference_of_rows,
    segmented,
    unique_columns,
)
from steadfeast.monitor.drift.multivariate.detector import extra_tests, related
from steadfeast.monitor.performance import figures_of, fit, measured
from steadfeast.monitor.profiles import Edges, Profile, edges_of
from steadfeast.monitor.sources import AT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import duckdb

    from steadfeast.monitor.config import MonitorConfig
    from steadfeast.monitor.drift import Reference
    from steadfeast.monitor.sources import Quarantined, Source

HELD_OUT = "held_out"
STRETCH = "rows of "
"""How the name of a reference begins that is no training set."""
IMPORTANCE = b"steadfeast.importance"


class ScoredError(UserError):
    """A file of scored rows cannot be used.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path, problem: str) -> None:
        self.path = path
        super().__init__(f"{path}: {problem}")


class NoRowsError(UserError):
    """A stretch to compare with has no rows.

    Attributes:
        subject: What is watched.
        first: Event time of its first row; None without any.
        last: Of its last.
    """

    def __init__(self, source: Source, config: MonitorConfig) -> None:
        self.subject, self.first, self.last = config.subject, source.first(), source.latest()
        known = "it has none at all"
        if self.first is not None and self.last is not None:
            known = f"it has some from {self.first:%Y-%m-%dT%H:%MZ} to {self.last:%Y-%m-%dT%H:%MZ}"
        asked = stretch_uri(config).removeprefix(STRETCH)
        super().__init__(f"reference: no rows in {asked}; {known}")


def reference_from(
    con: duckdb.DuckDBPyConnection,
    manifest_path: Path,
    config: MonitorConfig,
    *,
    scored: Path | None = None,
    model_version: str = "",
    performance: Mapping[str, float] | None = None,
) -> Reference:
    """Build a reference of a training set and, if there are any, of its model's scored rows.

    Args:
        con: Any DuckDB connection; nothing is written to its database.
        manifest_path: `manifest.json` of the training set.
        config: The monitor.
        scored: Parquet file of rows with `prediction`; None leaves out all that needs it.
        model_version: Version of the model that was trained on the training set.
        performance: That model's metrics on its hold-out, as the run tells them; what the run
            does not tell is measured on the scored rows.

    Raises:
        UserError: The training set or the scored rows cannot be used.
    """
    # The predictions share the budget of false alarms with the features.
    reference = build_reference(
        con,
        manifest_path,
        config,
        model_version=model_version,
        performance=performance,
        beside=extra_tests(config) + (0 if scored is None else 1),
    )
    data = manifest_path.with_name("data.parquet")
    if scored is None:
        return related(con, segmented(con, reference, data, config), config)
    label = featurestore.Manifest.load(manifest_path).label
    table = _read(scored, label)
    edges = edges_of(table, (PREDICTION,))
    in_order = read_columns(con, scored, (PREDICTION,), in_order=True)
    said = reference_of(
        list(by_bucket(in_order, edges, config.bucket)),
        edges,
        config,
        beside=len(reference.features) + extra_tests(config),
    )
    merged = Edges({**reference.edges.columns, **edges.columns})
    expected: dict[str, float] = {}
    estimator = None
    if config.performance is not None:
        task, measures = figures_of(config.performance)
        unseen = table.filter(table[HELD_OUT]) if HELD_OUT in table.column_names else table
        both = unseen.select([PREDICTION, "label"]).drop_null()
        if both.num_rows:
            truth, prediction = both["label"].to_numpy(), both[PREDICTION].to_numpy()
            expected, _ = measured(measures, Sample(truth, prediction))
        estimator = fit(unseen, merged, task)
    whole = replace(
        reference,
        edges=merged,
        profile=Profile(
            merged,
            reference.profile.rows,
            {**reference.profile.columns, **said.profile.columns},
            {**reference.profile.types, **said.profile.types},
        ),
        thresholds={**reference.thresholds, **said.thresholds},
        expected=(*reference.expected, *said.expected),
        performance={**expected, **reference.performance},
        scored_uri=str(scored),
        importance=_importance(scored),
        estimator=estimator,
    )
    return related(con, segmented(con, whole, data, config), config)


def stretch_uri(config: MonitorConfig) -> str:
    """Return in words what a monitor compares with; empty where that is a training set."""
    stretch = config.stretch
    if stretch is None:
        return ""
    ends = f"from {stretch.start:%Y-%m-%dT%H:%MZ} to {stretch.end:%Y-%m-%dT%H:%MZ}"
    return f"{STRETCH}{config.subject} {ends}"


def reference_from_stretch(
    con: duckdb.DuckDBPyConnection,
    source: Source,
    config: MonitorConfig,
    *,
    tell: Callable[[int, int], None] | None = None,
) -> Reference:
    """Build a reference of the stretch of `source` that `config` names.

    It is read once, into a file that is gone afterwards: whatever becomes of the source
    meanwhile, edges, counts and limits are of the same rows.

    Args:
        con: Any DuckDB connection; nothing is written to its database.
        source: What the monitor watches.
        config: The monitor, with a stretch as its reference.
        tell: See `build_reference`.

    Raises:
        NoRowsError: There are none in the stretch.
        SourceError: The source cannot be read.
        NotFoundError: It lacks a column that is watched or split by.
    """
    stretch = config.stretch
    if stretch is None:
        raise ValueError("the monitor names no stretch")
    with TemporaryDirectory(prefix="steadfeast-reference-") as folder:
        data = Path(folder) / "data.parquet"
        aside = _copy(con, source, config, data)
        columns = tuple(name for name in pq.read_schema(data).names if name != EVENT_TIMESTAMP)
        for name in config.features:
            if name not in columns:
                raise NotFoundError(f"column of {config.subject}", name, columns)
        watched = config.features or tuple(one for one in columns if one not in source.keys)
        found = reference_of_rows(
            con,
            data,
            config,
            watched,
            keys=source.keys,
            personal=source.personal,
            uri=stretch_uri(config),
            columns=columns,
            tell=tell,
        )
        if found is None:
            raise NoRowsError(source, config)
        for name in source.personal.intersection(config.segments):
            raise UserError(
                f"{config.subject}: {name} is tagged pii: as a segment its values would be shown; "
                f"leave it out of `segments`"
            )
        unique = unique_columns(source.keys, found.edges.identifiers, EVENT_TIMESTAMP)
        facts = data_facts(con, data, EVENT_TIMESTAMP, config.bucket, unique)
        share = quarantined_share(aside, found.profile.rows)
        found = replace(found, facts=replace(facts, quarantined=share))
        return segmented(con, found, data, config)


def _copy(
    con: duckdb.DuckDBPyConnection, source: Source, config: MonitorConfig, data: Path
) -> tuple[Quarantined, ...]:
    """Write the rows of a stretch that can be read to a file, and return what cannot."""
    stretch = config.stretch
    if stretch is None:
        raise ValueError("the monitor names no stretch")
    for carefully in (False, True):
        reading = source.reading(con, stretch.start, stretch.end, carefully=carefully)
        try:
            with reading as found:
                if found.rows is None:
                    raise NoRowsError(source, config)
                con.execute(
                    f"COPY (SELECT * RENAME ({AT} AS {EVENT_TIMESTAMP}) FROM ({found.rows.query}) "
                    f"ORDER BY {EVENT_TIMESTAMP}) "
                    f"TO {literal(str(data))} (FORMAT parquet, COMPRESSION zstd)",
                    dict(found.rows.values),
                ).fetchall()
                return found.quarantined
        except SourceError:
            if carefully:
                raise
    return ()


def own(batches: Iterable[pa.RecordBatch], model_version: str) -> Iterator[pa.RecordBatch]:
    """Yield rows of the served log, with a prediction only where this version made it.

    After a promotion a window holds what two models said. What the former one said is neither
    null nor drift: the rows are given without that column.
    """
    for batch in batches:
        names = batch.schema.names
        if not model_version or PREDICTION not in names or "model_version" not in names:
            yield batch
            continue
        mine = pc.fill_null(pc.equal(batch.column("model_version"), model_version), False)
        if pc.all(mine).as_py() is not False:
            yield batch
            continue
        yield batch.filter(mine)
        yield batch.filter(pc.invert(mine)).drop_columns([PREDICTION])


def _read(path: Path, label: str | None) -> pa.Table:
    """Return the scored rows, with the label as `label`."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ScoredError(path, f"cannot be read as Parquet: {error}") from error
    missing = [name for name in (EVENT_TIMESTAMP, PREDICTION) if name not in table.column_names]
    if HELD_OUT in table.column_names and table.schema.field(HELD_OUT).type != pa.bool_():
        raise ScoredError(path, f"{HELD_OUT} is {table.schema.field(HELD_OUT).type}, not bool")
    if missing or not table.num_rows:
        what = f"no column {' and '.join(missing)}" if missing else "no rows"
        raise ScoredError(path, f"has {what}")
    prediction = table[PREDICTION].cast(pa.float64())
    known = pa.nulls(table.num_rows, pa.float64())
    if label is not None and label in table.column_names:
        known = table[label].cast(pa.float64())
        if label != "label":
            table = table.drop_columns([label])
    kept = table.drop_columns(
        [name for name in (PREDICTION, "label") if name in table.column_names]
    )
    return kept.append_column(PREDICTION, prediction).append_column("label", known)


def _importance(path: Path) -> dict[str, float]:
    """Return what the file says of each feature's importance; empty when it says nothing."""
    text = (pq.read_schema(path).metadata or {}).get(IMPORTANCE)
    if text is None:
        return {}
    try:
        found = {str(name): float(value) for name, value in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ScoredError(path, f"{IMPORTANCE.decode()} is no object of numbers") from error
    if not all(math.isfinite(value) and value >= 0 for value in found.values()):
        raise ScoredError(path, f"{IMPORTANCE.decode()} holds a number below 0, or none")
    return found
