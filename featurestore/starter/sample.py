"""Sample data of a new project: what customers did, and what they bought.

Bottom of `starter`. The same end gives the same rows.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

CUSTOMERS, DAYS, EXAMPLES_A_DAY = 200, 90, 100


def write_sample(folder: Path, end: datetime, template: str, label: str) -> None:
    """Write a row per customer and day up to `end`, and examples with labels if `label` is set."""
    rng = np.random.default_rng(0)
    first = end - timedelta(days=DAYS)
    keen = rng.gamma(2.0, 1.0, CUSTOMERS)
    visits = rng.poisson(keen, (DAYS, CUSTOMERS))
    spend = np.round(rng.gamma(2.0, 10.0, (DAYS, CUSTOMERS)) * (visits + 0.2), 2)
    days, customers = np.divmod(np.arange(DAYS * CUSTOMERS), CUSTOMERS)
    at = _times(first, days * 86_400)
    folder.mkdir(parents=True)
    activity = pa.table(
        {
            "customer": customers + 1,
            "event_timestamp": at,
            "created": _times(first, days * 86_400 + 300),
            "visits": visits.ravel(),
            "spend": spend.ravel(),
        }
    )
    pq.write_table(activity, folder / "activity.parquet")
    if not label:
        return
    days = np.repeat(np.arange(DAYS - 1), EXAMPLES_A_DAY)
    who = rng.integers(0, CUSTOMERS, len(days))
    seconds = days * 86_400 + rng.integers(3_600, 86_400, len(days))
    examples = pa.table(
        {
            "customer": who + 1,
            "event_timestamp": _times(first, seconds),
            "known_at": _times(first, seconds + 86_400),
            label: _labels(rng, template, visits[days, who], spend[days, who]),
        }
    )
    pq.write_table(examples.sort_by("event_timestamp"), folder / "examples.parquet")


def _labels(rng: np.random.Generator, template: str, visits: object, spend: object) -> object:
    score = np.asarray(visits) - 2 + np.log1p(np.asarray(spend)) / 4
    noisy = score + rng.logistic(size=len(score))
    if template == "binary":
        return (noisy > 0).astype(np.int64)
    if template == "regression":
        return np.round(np.maximum(noisy + 5, 0.5), 2)
    return np.array(["small", "medium", "large"])[np.digitize(noisy, (-0.5, 1.5))]


def _times(first: datetime, seconds: np.ndarray) -> pa.Array:
    start = int(first.timestamp()) * 1_000_000
    return pa.array(start + seconds.astype(np.int64) * 1_000_000, pa.timestamp("us", tz="UTC"))
