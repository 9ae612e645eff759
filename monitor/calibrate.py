"""What a monitor compares with: the training set's profile, and a threshold per feature.

Above `monitor.limits`, which measures a threshold on profiles of the reference's buckets. Here
those are made, from the rows of the training set that the live model was trained on.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

import featurestore
from featurestore.errors import ManifestError, NotFoundError
from monitor.bins import Edges, edges_of
from monitor.limits import Calibration, calibrate
from monitor.profile import Profile, Window, profile, total
from monitor.snapshot import EPOCH
from monitor.statistics import statistic

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    import duckdb

    from monitor.config import MonitorConfig
    from monitor.statistics import Statistic

TIME = "event_timestamp"


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
        thresholds: Limit per feature for a window with as many rows as the reference's, in the
            unit of the feature's statistic. A feature that could not be calibrated has none.
        performance: What the model measured on its hold-out, by metric name.
        calibration: Per feature with a threshold, where it came from.
        columns: Every column of the training set: features, keys, label.
        quietest: Fewest rows in any whole bucket of the reference.
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

    def limit(self, feature: str, rows: int) -> float | None:
        """Return the threshold of `feature` for a window of `rows` usable rows, if it has one."""
        found = self.calibration.get(feature)
        return self.thresholds.get(feature) if found is None else found.limit(rows)

    def to_json(self) -> str:
        """Return JSON text from which `from_json` makes an equal reference."""
        plain = {
            "uri": self.uri,
            "contract": self.contract,
            "model_version": self.model_version,
            "window": self.window.to_json(),
            "edges": self.edges.to_json(),
            "profile": json.loads(self.profile.to_json()),
            "thresholds": dict(self.thresholds),
            "performance": dict(self.performance),
            "calibration": {name: asdict(one) for name, one in self.calibration.items()},
            "columns": list(self.columns),
            "quietest": self.quietest,
        }
        return json.dumps(plain, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Reference:
        """Return what `to_json` was called on."""
        data = json.loads(text)
        edges = Edges.from_json(data["edges"])
        return cls(
            **{
                **data,
                "window": Window.from_json(data["window"]),
                "edges": edges,
                "profile": Profile.from_json(json.dumps(data["profile"]), edges),
                "calibration": {
                    name: Calibration(**{**one, "curve": tuple(one["curve"])})
                    for name, one in data["calibration"].items()
                },
                "columns": tuple(data["columns"]),
            }
        )


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
        ManifestError: The training set is missing, is not one, or is empty.
        NotFoundError: A watched feature is not in it, or the statistic does not exist.
    """
    chosen = statistic(config.statistic)
    # Through the package, which imports Feast only when a name is asked for.
    manifest = featurestore.Manifest.load(manifest_path)
    data = manifest_path.with_name("data.parquet")
    if not data.exists():
        raise ManifestError(manifest_path, f"{data.name} is not beside it")
    for name in config.features:
        if name not in manifest.features:
            raise NotFoundError("feature of the training set", name, manifest.features)
    watched = config.features or manifest.features
    edges = edges_of(_read(con, data, watched, in_order=False), watched)
    by_bucket = list(_by_bucket(_read(con, data, watched, in_order=True), edges, config.bucket))
    rows = sum(one.rows for _, one in by_bucket)
    if not rows or rows != manifest.rows:
        raise ManifestError(manifest_path, f"{data.name} holds {rows} rows, not {manifest.rows}")
    return reference_of(
        by_bucket,
        edges,
        config,
        chosen,
        uri=str(manifest_path),
        contract=manifest.contract,
        model_version=model_version,
        performance=performance or {},
        columns=tuple(manifest.columns),
    )


def reference_of(
    by_bucket: Sequence[tuple[datetime, Profile]],
    edges: Edges,
    config: MonitorConfig,
    chosen: Statistic,
    *,
    uri: str = "",
    contract: str = "",
    model_version: str = "",
    performance: Mapping[str, float] | None = None,
    columns: tuple[str, ...] = (),
) -> Reference:
    """Make a reference of one profile per bucket, which is all that calibration needs.

    Args:
        by_bucket: Start and profile of each bucket with rows, at least one, by time.
        edges: What the profiles are over.
        config: The monitor.
        chosen: The statistic that decides.
        uri: Copied into the reference, like all that follow.
        contract: See `Reference`.
        model_version: See `Reference`.
        performance: See `Reference`.
        columns: See `Reference`.
    """
    whole = total((one for _, one in by_bucket), edges)
    start, last = by_bucket[0][0], by_bucket[-1][0]
    found = dict(by_bucket)
    empty = Profile.empty(edges)
    series = [
        found.get(start + i * config.bucket, empty)
        for i in range((last - start) // config.bucket + 1)
    ]
    share = config.false_alarms_per_year / max(1, len(edges.columns))
    calibration = {
        name: made
        for name, one in edges.columns.items()
        if (
            made := calibrate(
                name,
                one,
                series,
                whole=whole,
                config=config,
                chosen=chosen,
                alarms_per_year=share,
            )
        )
        is not None
    }
    return Reference(
        uri=uri,
        contract=contract,
        model_version=model_version,
        window=Window(start, last + config.bucket, whole.rows),
        edges=edges,
        profile=whole,
        thresholds={name: one.limit(one.rows) for name, one in calibration.items()},
        performance=dict(performance or {}),
        calibration=calibration,
        columns=columns,
        # The first and the last bucket may be cut by where the training set begins and ends.
        quietest=min((one.rows for one in series[1:-1]), default=0),
    )


def _read(
    con: duckdb.DuckDBPyConnection, data: Path, columns: Sequence[str], *, in_order: bool
) -> pa.RecordBatchReader:
    listed = ", ".join('"' + name.replace('"', '""') + '"' for name in dict.fromkeys(columns))
    order = f' ORDER BY "{TIME}"' if in_order else ""
    query = f'SELECT {listed}, "{TIME}" AS "{_AT}" FROM read_parquet($path){order}'
    return con.sql(query, params={"path": str(data)}).to_arrow_reader()


_AT = "event time of the row"


def _by_bucket(
    batches: Iterable[pa.RecordBatch], edges: Edges, length: timedelta
) -> Iterator[tuple[datetime, Profile]]:
    """Profile batches that are in the order of time, bucket by bucket."""
    step = length // timedelta(microseconds=1)
    held: tuple[int, Profile] | None = None
    for batch in batches:
        micros = batch.column(_AT).cast(pa.timestamp("us", "UTC")).cast(pa.int64())
        numbers = micros.to_numpy(zero_copy_only=False) // step
        cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), batch.num_rows]
        rows = batch.drop_columns([_AT])
        for begin, end in pairwise(cuts):
            if begin == end:
                continue
            number = int(numbers[begin])
            one = profile([rows.slice(begin, end - begin)], edges)
            if held is not None and held[0] != number:
                yield EPOCH + held[0] * length, held[1]
                held = None
            held = (number, one if held is None else held[1] + one)
    if held is not None:
        yield EPOCH + held[0] * length, held[1]
