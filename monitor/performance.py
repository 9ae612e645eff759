"""How good the served predictions were, once their labels are known.

Above `monitor.quality`. Joins served predictions with labels; a label counts only from its
`known_at` on, so that a replay sees at each time what was known then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    import duckdb

    from monitor.config import MonitorConfig
    from monitor.profile import Window


@dataclass(frozen=True, slots=True)
class Performance:
    """Metrics of one window.

    Attributes:
        metrics: By name: `auc`, `accuracy`, `log_loss` (nats); `auc` only with both classes.
        labelled: Predictions whose label was known.
        positives: Labels that are 1 among them.
        window: The window, by request time; its rows are the predictions, labelled or not.
    """

    metrics: Mapping[str, float]
    labelled: int
    positives: int
    window: Window


def measure(
    con: duckdb.DuckDBPyConnection,
    served_files: Sequence[Path],
    label_files: Sequence[Path],
    window: Window,
    as_of: datetime,
    config: MonitorConfig,
    *,
    model_version: str | None = None,
) -> Performance | None:
    """Measure the predictions requested in `window` against the labels known by `as_of`.

    Args:
        con: Any DuckDB connection; nothing is written to its database.
        served_files: Snapshots or served-log files that hold the window.
        label_files: Label files; of several labels for a request the latest known counts.
        window: By request time.
        as_of: Knowledge time.
        config: The monitor; `performance.min_labels` is the least for a figure.
        model_version: Only this version's predictions; None means all.

    Returns:
        The metrics; None with fewer labels than asked for, or if `config.performance` is None.
    """
    raise NotImplementedError
