"""What a monitor compares with: the training set's profile, and how far is far.

Above `monitor.profile`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import stats

from featurestore.errors import UserError
from monitor.profile import (
    ORDERED,
    ColumnEdges,
    ColumnProfile,
    Edges,
    Profile,
    Window,
    edges_of,
    profile,
    total,
)
from monitor.statistics import EmptyWindowError, Statistic, statistic

if TYPE_CHECKING:
    import duckdb

    from monitor.config import MonitorConfig

TIME = "event_timestamp"


class ReferenceError(UserError):
    """A training set cannot serve as a reference.

    Attributes:
        path: Its manifest.
        problem: What is wrong with it.
    """

    def __init__(self, path: Path, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{path}: {problem}")


@dataclass(frozen=True, slots=True)
class Calibration:
    """How one feature's threshold came about.

    Attributes:
        statistic: Name of the statistic that is used for this feature.
        blocks: Blocks of the reference that were compared with the rest of it.
        mean: Mean distance of a block to the others, in the statistic's unit (root mean square
            for a metric).
        freedom: Effective number of directions in which blocks differ.
        threshold: Limit, in the statistic's unit.
    """

    statistic: str
    blocks: int
    mean: float
    freedom: float
    threshold: float


@dataclass(frozen=True, slots=True)
class Reference:
    """A champion's training set as a monitor sees it.

    Attributes:
        uri: Path of the training set's manifest.
        contract: Hash of the contract it was built under, 64 hexadecimal digits.
        model_version: Version of the model that was trained on it; may be empty.
        window: From the first to the last row, by event time.
        edges: Binning of each feature.
        profile: Counts over `edges`.
        thresholds: Limit per feature, in the unit of the feature's statistic. A feature that
            could not be calibrated has none.
        performance: What the model measured on its hold-out, by metric name.
        calibration: Per feature, where the threshold came from.
        columns: Every column of the training set: features, keys, label.
        quietest: Fewest rows in any of the reference's buckets.
    """

    uri: str
    contract: str
    model_version: str
    window: Window
    edges: Edges
    profile: Profile
    thresholds: Mapping[str, float]
    performance: Mapping[str, float] = field(default_factory=dict)
    calibration: Mapping[str, Calibration] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    quietest: int = 0

    @property
    def features(self) -> tuple[str, ...]:
        """The watched features, in the training set's order."""
        return tuple(self.edges.columns)

    def to_json(self) -> str:
        """Return JSON text from which `from_json` makes an equal reference."""
        raise NotImplementedError

    @classmethod
    def from_json(cls, text: str) -> Reference:
        """Return what `to_json` was called on."""
        raise NotImplementedError


def build_reference(
    con: duckdb.DuckDBPyConnection,
    manifest_path: Path,
    config: MonitorConfig,
    *,
    model_version: str = "",
    performance: Mapping[str, float] | None = None,
) -> Reference:
    """Profile a training set and calibrate the thresholds on its own windows.

    Args:
        con: Any DuckDB connection; nothing is written to its database.
        manifest_path: `manifest.json` of the training set.
        config: The monitor.
        model_version: Version of the model that was trained on it.
        performance: That model's metrics on its hold-out, from the run.

    Raises:
        ReferenceError: The training set is missing, is not one, or is empty.
        NotFoundError: A watched feature is not in it, or the statistic does not exist.
    """
    raise NotImplementedError


def compare(
    chosen: Statistic, edges: ColumnEdges, reference: ColumnProfile, current: ColumnProfile
) -> float:
    """Return the distance of two profiles of one column, in the unit of `chosen`.

    Raises:
        EmptyWindowError: A side has no usable counts.
    """
    left, right = reference.counts, current.counts
    if chosen.coarse:
        left, right = edges.coarse(left), edges.coarse(right)
        return chosen.measure(left, right, np.arange(len(left), dtype=np.float64))
    held = [
        bound
        for bound in (reference.minimum, current.minimum, reference.maximum, current.maximum)
        if bound is not None
    ]
    return chosen.measure(
        left, right, edges.positions(min(held, default=None), max(held, default=None))
    )


def suited(chosen: Statistic, edges: ColumnEdges) -> Statistic:
    """Return `chosen`, or what stands in for it on a column whose bins have no order."""
    if chosen.ordered and edges.kind not in ORDERED:
        return statistic("total_variation")
    return chosen
