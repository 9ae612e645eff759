"""The files that go with a record: report, manifest, importance, environment and plots.

Above `record`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from steadfeast.pipeline import html

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from steadfeast.pipeline.tracking.record import Record

_BARS = 30


def write_artifacts(folder: Path, record: Record) -> None:
    """Write every file of `record` into `folder`; nothing is written of what it does not have."""
    (folder / "manifest.json").write_text(record.manifest.to_json(), encoding="utf-8")
    environment = {
        "platform": dict(record.platform),
        "libraries": dict(record.libraries),
        "commit": record.commit,
        "tree_is_clean": record.tree_is_clean,
    }
    for name, content in (
        ("environment.json", environment),
        ("feature_importance.json", dict(record.importance)),
        ("slices.json", record.slices),
        ("gates.json", [_plain(gate) for gate in record.gates]),
    ):
        if content:
            (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    (folder / "report.html").write_text(_report(record), encoding="utf-8")
    (folder / "plots").mkdir()
    if record.importance:
        _bars(folder / "plots" / "feature_importance.png", record.importance)
    for measure in sorted({name for _, measures in record.over_time for name in measures}):
        file = measure.replace(":", "_").replace("/", "_")
        _line(folder / "plots" / f"{file}_over_time.png", measure, record.over_time)


def _plain(gate: Any) -> dict[str, Any]:
    fields = ("name", "passed", "value", "limit", "detail", "metric", "champion", "difference")
    return {name: getattr(gate, name) for name in fields}


def _report(record: Record) -> str:
    """Return the run as one page."""
    refused = ", ".join(record.refused_by)
    verdict = f"refused by {refused}" if refused else "passed every gate"
    gates = [(gate.name, "pass" if gate.passed else "FAIL", gate.detail) for gate in record.gates]
    important = sorted(record.importance.items(), key=lambda one: -one[1])
    times = [
        (f"{end:%Y-%m-%d %H:%M}", measure, figure)
        for end, measures in record.over_time
        for measure, figure in measures.items()
    ]
    by_slice = [
        (column, value, measure, figure)
        for column, values in record.slices.items()
        for value, measures in values.items()
        for measure, figure in measures.items()
    ]
    return html.document(
        f"{record.model} as of {record.as_of:%Y-%m-%d %H:%M} UTC: {verdict}",
        html.table(("figure", "value"), sorted(record.metrics.items())),
        html.table(("gate", "", "detail"), gates),
        html.table(("feature", "importance"), important),
        html.table(("hold-out until", "figure", "value"), times),
        html.table(("column", "value", "figure", ""), by_slice),
        html.table(("parameter", "value"), sorted(record.params.items())),
        html.table(("library", "version"), list(record.libraries.items())),
    )


def _bars(path: Path, values: Mapping[str, float]) -> None:
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import

    shown = sorted(values.items(), key=lambda one: one[1])[-_BARS:]
    figure = Figure(figsize=(7, 1 + 0.3 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh([name for name, _ in shown], [value for _, value in shown])
    axes.set_xlabel("worse without it, in the first measure's unit")
    figure.savefig(path)


def _line(
    path: Path, measure: str, over_time: Sequence[tuple[datetime, Mapping[str, float]]]
) -> None:
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import

    points = [(end, figures[measure]) for end, figures in over_time if measure in figures]
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(
        [np.datetime64(end.replace(tzinfo=None)) for end, _ in points],
        [value for _, value in points],
        marker="o",
    )
    axes.set_ylabel(measure)
    axes.tick_params(axis="x", rotation=30)
    figure.savefig(path)
