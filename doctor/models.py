"""Recipes and examples of models: are they there, and do delay and hold-out go with them.

Above `findings` and `servers`. The examples are read by DuckDB, four figures of each file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from steadfeast.doctor.findings import Finding
from steadfeast.doctor.servers import name_problem
from steadfeast.featurestore.config import written
from steadfeast.featurestore.tables import identifier, instant, micros

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from steadfeast.featurestore.definitions import Defined
    from steadfeast.monitor.config import DaemonConfig
    from steadfeast.pipeline.config import ModelConfig, PipelineConfig

_TIME, _KNOWN_AT = "event_timestamp", "known_at"
_HOUR = timedelta(hours=1)
_BINDS = r"^(?:def|class) +{0}\b|^{0} *[:=]|\bimport\b.*\b{0}\b|^ +{0},?$"
"""What gives a name of a module its value, as text: its recipe is not imported here."""


@dataclass(frozen=True, slots=True)
class _Labels:
    """What the examples say of their labels.

    Attributes:
        oldest: Time of the first example.
        newest: Time of the last.
        delay: 95 % of the labels were known that soon.
    """

    oldest: datetime
    newest: datetime
    delay: timedelta


def model_findings(
    folder: Path, pipeline: PipelineConfig, monitor: DaemonConfig | None, defined: Defined | None
) -> Iterator[Finding]:
    """Look at each model that the pipeline trains.

    Args:
        folder: Of the configuration file.
        pipeline: The section.
        monitor: The section, if there is one.
        defined: What the files define, if it is known.
    """
    for name, model in pipeline.models.items():
        field = f"pipeline.models.{name}"
        if defined is not None:
            problem = name_problem("feature service", model.service, defined.services)
            if problem:
                remedy = "write the name of one that is defined"
                yield Finding("unknown-name", f"{field}.service", problem, remedy)
        yield from _recipe(f"{field}.recipe", folder, model.recipe)
        problem = _unusable(model)
        if problem:
            remedy = "put the file or the names right; no run can begin"
            yield Finding("examples", f"{field}.entities", f"{model.entities} {problem}", remedy)
            continue
        labels = _labels(model)
        if labels is None:
            problem = f"{model.entities} holds no labels"
            yield Finding("examples", f"{field}.entities", problem, "fill the column of labels")
            continue
        yield from _delay(field, name, model, monitor, labels)
        yield from _holdout(field, model, labels)


def _recipe(field: str, folder: Path, recipe: str) -> Iterator[Finding]:
    """Look for the text of a recipe, without importing what it needs."""
    module, _, function = recipe.partition(":")
    home = folder.joinpath(*module.split("."))
    files = (home.with_suffix(".py"), home / "__init__.py")
    text = next((one.read_text(encoding="utf-8") for one in files if one.is_file()), None)
    if text is None and (folder / module.partition(".")[0]).with_suffix(".py").exists():
        text = ""
    if text is None:
        problem = f"{recipe}: there is no {files[0].name} beside the configuration file"
    elif not re.search(_BINDS.format(re.escape(function)), text, re.MULTILINE):
        problem = f"{recipe}: {files[0].name} has no {function}"
    else:
        return
    yield Finding("recipe", field, f"{problem}, so no run can begin", "write module:function")


def _unusable(model: ModelConfig) -> str:
    """Return why the examples of a model cannot be trained on; empty if they can."""
    try:
        schema = pq.read_schema(model.entities)
    except FileNotFoundError:
        return "is not there"
    except (OSError, pa.ArrowInvalid) as error:
        return f"cannot be read as Parquet: {str(error).splitlines()[0]}"
    needed = (_TIME, _KNOWN_AT, model.label, *([model.group] if model.group else []))
    missing = [name for name in needed if name not in schema.names]
    if missing:
        return f"has no column {', '.join(missing)}"
    odd = [
        name for name in (_TIME, _KNOWN_AT) if not pa.types.is_timestamp(schema.field(name).type)
    ]
    return f"holds no times in {', '.join(odd)}" if odd else ""


def _labels(model: ModelConfig) -> _Labels | None:
    """Measure the labels; None when there are none."""
    query = f"""SELECT min(asked), max(asked), quantile_disc(known - asked, 0.95) FROM (
        SELECT epoch_us({_TIME}) AS asked, epoch_us({_KNOWN_AT}) AS known
        FROM read_parquet($path) WHERE {identifier(model.label)} IS NOT NULL)"""
    with duckdb.connect() as connection:
        [row] = connection.execute(query, {"path": str(model.entities)}).fetchall()
    if None in row:
        return None
    return _Labels(
        instant(row[0]), instant(row[1]), max(timedelta(0), timedelta(microseconds=row[2]))
    )


def _delay(
    field: str, name: str, model: ModelConfig, monitor: DaemonConfig | None, labels: _Labels
) -> Iterator[Finding]:
    measured = written(-(-labels.delay // _HOUR) * _HOUR)
    found = f"95 % of the labels are known within {measured} of the request, and not within"
    if model.label_delay is not None:
        if labels.delay > model.label_delay:
            yield Finding(
                "label-delay",
                f"{field}.label_delay",
                f"{found} {written(model.label_delay)}, so the newest rows that models are judged "
                "on are those whose labels came early",
                f"write label_delay: {measured}",
            )
        return
    watching = [] if monitor is None else list(monitor.monitors.items())
    for title, one in watching:
        if one.model != name or one.performance is None:
            continue
        if labels.delay - one.performance.label_delay >= one.bucket:
            delay = written(one.performance.label_delay)
            yield Finding(
                "label-delay",
                f"monitor.monitors.{title}.performance.label_delay",
                f"{found} {delay}, so performance is measured on windows whose labels are not in",
                f"write {field}.label_delay: {measured}, which both read",
            )


def _holdout(field: str, model: ModelConfig, labels: _Labels) -> Iterator[Finding]:
    subject = f"{field}.holdout"
    delay = labels.delay if model.label_delay is None else model.label_delay
    if model.since is not None and model.since <= model.holdout + delay:
        yield Finding(
            "holdout",
            subject,
            f"since ({written(model.since)}) is no longer than holdout and the labels' delay "
            f"together ({written(model.holdout + delay)}), so nothing is left to fit on",
            "lengthen since, or shorten holdout",
        )
        return
    end = min(datetime.now(UTC) - delay, labels.newest)
    start = end - model.holdout
    before = start - max(labels.oldest, end - model.since if model.since else labels.oldest)
    if before < model.holdout:
        yield Finding(
            "holdout",
            subject,
            f"the examples leave {_days(before)} before a hold-out of {written(model.holdout)}, so "
            "models are fitted on less than they are judged on",
            "shorten holdout, or bring older examples",
        )
    rows = _rows(model, start, end)
    if rows < model.min_rows:
        yield Finding(
            "holdout",
            subject,
            f"{rows} labelled examples fall into it and min_rows is {model.min_rows}, so no model "
            "passes its gates",
            "lengthen holdout, or lower min_rows",
        )


def _rows(model: ModelConfig, start: datetime, end: datetime) -> int:
    query = f"""SELECT count(*) FROM read_parquet($path)
        WHERE {identifier(model.label)} IS NOT NULL
            AND epoch_us({_TIME}) > $start AND epoch_us({_TIME}) <= $end"""
    given = {"path": str(model.entities), "start": micros(start), "end": micros(end)}
    with duckdb.connect() as connection:
        [row] = connection.execute(query, given).fetchall()
    return int(row[0])


def _days(length: timedelta) -> str:
    return f"{max(length, timedelta(0)) / timedelta(days=1):.3g} days"
