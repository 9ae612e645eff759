"""The table at the end: what each month of the replay was like."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from rich import box
from rich.table import Table
from sklearn.metrics import roc_auc_score

from steadfeast.protos.steadfeast.v1 import monitor_pb2, pipeline_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from datetime import datetime
    from pathlib import Path

    import numpy as np

    from steadfeast.pipeline.registry import LoadedModel

NEW_YORK = ZoneInfo("America/New_York")
SERVED = "served"
_LEVELS = {monitor_pb2.LEVEL_DRIFT: "drift", monitor_pb2.LEVEL_INCIDENT: "incident"}
_ALERTED = {
    monitor_pb2.ALERT_KIND_EPISODE: monitor_pb2.LEVEL_DRIFT,
    monitor_pb2.ALERT_KIND_DATA_INCIDENT: monitor_pb2.LEVEL_INCIDENT,
}
_WORDS = {
    monitor_pb2.TRIGGER_STATE_WAITING: "waits",
    monitor_pb2.TRIGGER_STATE_PENDING: "under way",
    monitor_pb2.TRIGGER_STATE_DELIVERED: "fired",
    monitor_pb2.TRIGGER_STATE_SUPPRESSED: "held",
}


@dataclass(frozen=True)
class Month:
    """One row of the table.

    Attributes:
        name: As `2013-03`, in New York's time.
        rows: Requests served.
        top: The watched feature furthest over its threshold, at a week's end or in an alert,
            and its ratio.
        verdict: Whether there was drift, an incident, both, or all was ok.
        triggers: Triggers decided, by what became of them: fired, or held by a data incident,
            the cooldown or the budget until the episode was over.
        runs: Runs that ended, as `v3 promoted`.
        auc_live: Of what was served; NaN if nothing was labelled.
        auc_monthly: Of the same rows, had the model been refitted on the first of each month.
        auc_abandoned: Of the same rows, had the first model been left alone.
    """

    name: str
    rows: int
    top: str
    verdict: str
    triggers: str
    runs: str
    auc_live: float
    auc_monthly: float
    auc_abandoned: float


def months(
    served: Path,
    labels: Path,
    first_model: LoadedModel,
    monthly: pa.Table,
    statuses: Sequence[monitor_pb2.GetStatusResponse],
    alerts: Sequence[monitor_pb2.Alert],
) -> list[Month]:
    """Return one row per month of what was served.

    Args:
        served: Folder of the service's served log.
        labels: Folder of its labels.
        first_model: The model that was live at the start.
        monthly: What `monthly.monthly` returns.
        statuses: The daemon's, at each week's end.
        alerts: The daemon's, all of them.
    """
    table = ds.dataset(served).to_table()
    truth = ds.dataset(labels).to_table(columns=["request_id", "label"])
    table = table.append_column("abandoned", pa.array(first_model.predict(table)))
    local = pc.strftime(table["request_time"].cast(pa.timestamp("s", NEW_YORK.key)), "%Y-%m")
    table = table.append_column("month", local)
    labelled = table.join(truth, "request_id", join_type="inner")
    labelled = labelled.join(monthly, "request_id", join_type="inner")
    levels, drifts = defaultdict(set), defaultdict(list)
    for status in statuses:
        for monitor in status.monitors:
            month = _month(monitor.watermark.ToDatetime(UTC))
            levels[month] |= {verdict.level for verdict in monitor.verdicts}
            drifts[month] += [verdict.drift for verdict in monitor.verdicts]
    for alert in alerts:
        if alert.kind in _ALERTED and not alert.resolved:
            levels[_month(alert.at.ToDatetime(UTC))].add(_ALERTED[alert.kind])
            drifts[_month(alert.at.ToDatetime(UTC))] += alert.features
    triggers = {t.request_id: t for status in statuses for t in status.triggers}.values()
    rows = []
    for name in sorted(set(local.to_pylist())):
        own = [t for t in triggers if _month(_decided(t)) == name]
        counted = Counter(sorted(_WORDS.get(t.state, "given up") for t in own))
        known = labelled.filter(pc.field("month") == name)
        rows.append(
            Month(
                name=name,
                rows=pc.sum(pc.equal(table["month"], name)).as_py(),
                top=_top(drifts[name]),
                verdict=_verdict(levels[name]),
                triggers=", ".join(f"{n} {word}" for word, n in counted.items()) or "-",
                runs=", ".join(_run(t.run) for t in own if t.HasField("run")) or "-",
                auc_live=_auc(known["label"], known["prediction"]),
                auc_monthly=_auc(known["label"], known["monthly"]),
                auc_abandoned=_auc(known["label"], known["abandoned"]),
            )
        )
    return rows


def render(rows: Iterable[Month]) -> Table:
    """Return the table as `rich` prints it."""
    rows = list(rows)
    table = Table(box=box.SIMPLE, title="The year replayed", title_justify="left")
    for heading, justify in COLUMNS.items():
        table.add_column(heading, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(row.name, f"{row.rows:,}", row.top, row.verdict, row.triggers, row.runs,
                      *(_figure(getattr(row, name)) for name in AUCS))  # fmt: skip
    table.add_section()
    table.add_row("mean", f"{sum(row.rows for row in rows):,}", "", "", "", "",
                  *(_figure(mean_auc(rows, name)) for name in AUCS))  # fmt: skip
    return table


COLUMNS: Mapping[str, str] = {
    "month": "left", "rows": "right", "top drifted feature": "left", "verdict": "left",
    "trigger": "left", "run": "left", "AUC live": "right", "monthly": "right",
    "left alone": "right",
}  # fmt: skip
AUCS = ("auc_live", "auc_monthly", "auc_abandoned")


def mean_auc(rows: Iterable[Month], name: str) -> float:
    """Return the mean of one AUC column over the months that have one; NaN without any."""
    values = [v for v in (getattr(row, name) for row in rows) if not math.isnan(v)]
    return sum(values) / len(values) if values else math.nan


def _auc(labels: pa.ChunkedArray, scores: pa.ChunkedArray) -> float:
    truth: np.ndarray = labels.to_numpy()
    if len(set(truth.tolist())) < 2:  # noqa: PLR2004 - no ranking without both classes
        return math.nan
    return float(roc_auc_score(truth, scores.to_numpy()))


def _month(moment: datetime) -> str:
    return moment.astimezone(NEW_YORK).strftime("%Y-%m")


def _decided(trigger: monitor_pb2.Trigger) -> datetime:
    return trigger.decided_at.ToDatetime(UTC)


def _top(drifts: Sequence[pipeline_pb2.FeatureDrift]) -> str:
    measured = [d for d in drifts if d.threshold > 0 and d.source == SERVED]
    if not measured:
        return "-"
    worst = max(measured, key=lambda d: d.value / d.threshold)
    return f"{worst.feature} {worst.value / worst.threshold:.1f}x"


def _verdict(levels: AbstractSet[int]) -> str:
    found = [word for level, word in _LEVELS.items() if level in levels]
    return ", ".join(found) or ("ok" if monitor_pb2.LEVEL_OK in levels else "-")


def _run(run: pipeline_pb2.Run) -> str:
    state = _word(pipeline_pb2.RunState.Name(run.state), "RUN_STATE_")
    return f"v{run.model_version} {state}" if run.model_version else state


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower().replace("_", " ")


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
