"""What a monitor compares with: the training set's profile, and the limits of each feature.

Above `monitor.drift.calibration`, which measures limits on counts of the reference's buckets. Here
those are made, from the rows of the training set that the live model was trained on.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from steadfeast import featurestore
from steadfeast.featurestore.errors import ManifestError, NotFoundError, SteadfeastError
from steadfeast.featurestore.tables.columns import EVENT_TIMESTAMP
from steadfeast.monitor.drift.calibration import Series, calibrate, calibrate_latest
from steadfeast.monitor.drift.clustering import clusterings
from steadfeast.monitor.drift.data_facts import DataFacts
from steadfeast.monitor.drift.distances import statistic
from steadfeast.monitor.drift.multivariate.domain_classifier import Usual
from steadfeast.monitor.drift.shares import extended
from steadfeast.monitor.drift.thresholds import Calibration, seasonal, weekday
from steadfeast.monitor.performance.estimated import Estimator
from steadfeast.monitor.profiles.binning import EVENT_TIMES, Edges, edges_of
from steadfeast.monitor.profiles.profile import Profile, Window, profile, total
from steadfeast.monitor.profiles.roles import Role
from steadfeast.monitor.sources.snapshot import EPOCH

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    import duckdb
    import numpy.typing as npt

    from steadfeast.monitor.config.schema import MonitorConfig
    from steadfeast.monitor.drift.clustering import Clustering
    from steadfeast.monitor.drift.distances import Statistic

CLUSTER_ROWS = 50_000
_WINDOW, _LATEST = 0.5, 1.0
"""Shares of a feature's false alarms for its two spans, as simulated days want them (tuning seeds
of `benchmarks/detection.py`). More than 1 together: one often is over when the other is, limits
know their noise from few windows and err to the quiet side, and looks of a day share theirs by
squares. Less for the window, whose episodes last for as long as it holds what opened them."""
VERSION = 2
"""Of a stored reference: with another one, its limits mean something else and are measured anew."""

PREDICTION = "prediction"
"""The column of a served log, and of scored rows, that holds what the model said."""


@dataclass(frozen=True, slots=True)
class Outdated:
    """What of another build's reference is enough to build it anew; as of `Reference`."""

    version: int
    uri: str
    model_version: str
    scored_uri: str
    performance: Mapping[str, float]


class ReferenceVersionError(SteadfeastError):
    """A stored reference is of another version.

    Attributes:
        outdated: What is known of it.
    """

    def __init__(self, outdated: Outdated) -> None:
        self.outdated = outdated
        super().__init__(
            f"a reference of version {outdated.version}; this Steadfeast reads {VERSION}"
        )


@dataclass(frozen=True, slots=True)
class Reference:
    """A champion's training set as a monitor sees it.

    Attributes:
        uri: Path of the training set's manifest, or in words which stretch of a source it is.
        contract: Hash of the contract it was built under, 64 hexadecimal digits; empty for a
            stretch of a source.
        model_version: Version of the model that was trained on it; may be empty.
        window: From the first to the last row, by event time.
        edges: Binning of each feature.
        profile: Counts over `edges`.
        thresholds: Limit per feature for a window with as many rows as the reference's, in the
            unit of the feature's statistic. A feature that could not be calibrated has none.
        performance: What the model measured on its hold-out, by metric name.
        calibration: Per feature with a threshold, the limits for a whole window.
        latest: The same for a window's last part; for features whose reference is long enough.
        weekdays: The reference by day of the week, from `snapshot.weekday`, 7 profiles; none
            where there are too few days to tell them apart.
        columns: Every column of the training set: features, keys, label.
        quietest: Fewest rows in any whole bucket of the reference.
        scored_uri: Path of the rows with the model's predictions; empty without any.
        importance: Per feature, how much worse the model gets without it; empty if unknown.
        estimator: Estimates performance without labels; None when there is nothing to fit on.
        segments: Per column that is split by, the profile of each of its values' rows.
        joint: Per look at all features together, what is usual; empty without them.
        facts: Volumes and repeats; of a stretch of a source.
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
    latest: Mapping[str, Calibration] = field(default_factory=dict)
    weekdays: tuple[Profile, ...] = ()
    columns: tuple[str, ...] = ()
    quietest: int = 0
    scored_uri: str = ""
    importance: Mapping[str, float] = field(default_factory=dict)
    estimator: Estimator | None = None
    segments: Mapping[str, Mapping[str, Profile]] = field(default_factory=dict)
    joint: Mapping[str, Usual] = field(default_factory=dict)
    facts: DataFacts = field(default_factory=DataFacts)

    @property
    def features(self) -> tuple[str, ...]:
        """The watched features, in the training set's order."""
        return tuple(self.edges.columns)

    def by_weekday(self, feature: str) -> npt.NDArray[np.int64] | None:
        """Return `extended` counts of `feature` by day of the week, shape (7, bins + 1).

        None where they are not told apart.
        """
        held = [one.columns[feature] for one in self.weekdays if feature in one.columns]
        return np.array([extended(one) for one in held]) if held else None

    def limit(self, feature: str, rows: int) -> float | None:
        """Return the threshold of `feature` for a window of `rows` usable rows, if it has one."""
        found = self.calibration.get(feature)
        return self.thresholds.get(feature) if found is None else found.limit(rows)

    def impact(self, feature: str, value: float) -> float | None:
        """Return effect x importance of a distance; None when either is not known.

        The effect is the shift in standard deviations of a normal feature that `value` stands
        for, the importance the feature's share of all that the model would lose.
        """
        found, whole = self.calibration.get(feature), sum(self.importance.values())
        if found is None or feature not in self.importance or not whole:
            return None
        return found.shift(value) * self.importance[feature] / whole

    def to_json(self) -> str:
        """Return JSON text from which `from_json` makes an equal reference."""
        plain = {
            "version": VERSION,
            "uri": self.uri,
            "contract": self.contract,
            "model_version": self.model_version,
            "window": self.window.to_json(),
            "edges": self.edges.to_json(),
            "profile": json.loads(self.profile.to_json()),
            "thresholds": dict(self.thresholds),
            "performance": dict(self.performance),
            "calibration": {name: asdict(one) for name, one in self.calibration.items()},
            "latest": {name: asdict(one) for name, one in self.latest.items()},
            "weekdays": [json.loads(one.to_json()) for one in self.weekdays],
            "columns": list(self.columns),
            "quietest": self.quietest,
            "scored_uri": self.scored_uri,
            "importance": dict(self.importance),
            "estimator": None if self.estimator is None else self.estimator.to_json(),
            "segments": {
                column: {value: json.loads(one.to_json()) for value, one in parts.items()}
                for column, parts in self.segments.items()
            },
            "joint": {name: asdict(one) for name, one in self.joint.items()},
            "facts": self.facts.to_json(),
        }
        return json.dumps(plain, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Reference:
        """Return what `to_json` was called on.

        Raises:
            ReferenceVersionError: Another build stored it, in another version.
        """
        data = json.loads(text)
        found = data.pop("version", 1)
        if found != VERSION:
            scored = data.get("scored_uri", "")
            raise ReferenceVersionError(
                Outdated(
                    found, data["uri"], data["model_version"], scored, dict(data["performance"])
                )
            )
        edges = Edges.from_json(data["edges"])
        return cls(
            **{
                **data,
                "window": Window.from_json(data["window"]),
                "edges": edges,
                "profile": Profile.from_json(json.dumps(data["profile"]), edges),
                **{
                    scale: {name: Calibration.from_json(one) for name, one in data[scale].items()}
                    for scale in ("calibration", "latest")
                },
                "weekdays": tuple(
                    Profile.from_json(json.dumps(one), edges) for one in data["weekdays"]
                ),
                "columns": tuple(data["columns"]),
                # What follows came later; a reference that lacks it is none the worse.
                "estimator": Estimator.from_json(data["estimator"])
                if data.get("estimator")
                else None,
                "segments": {
                    column: {
                        value: Profile.from_json(json.dumps(one), edges)
                        for value, one in parts.items()
                    }
                    for column, parts in data.get("segments", {}).items()
                },
                "joint": {name: Usual(**one) for name, one in data.get("joint", {}).items()},
                "facts": DataFacts.from_json(data["facts"]) if "facts" in data else DataFacts(),
            }
        )


def build_reference(
    con: duckdb.DuckDBPyConnection,
    manifest_path: Path,
    config: MonitorConfig,
    *,
    model_version: str = "",
    performance: Mapping[str, float] | None = None,
    beside: int = 0,
    tell: Callable[[int, int], None] | None = None,
) -> Reference:
    """Profile a training set and calibrate the thresholds on its own windows.

    Args:
        con: Any DuckDB connection; nothing is written to its database.
        manifest_path: `manifest.json` of the training set.
        config: The monitor.
        model_version: Version of the model that was trained on it.
        performance: That model's metrics on its hold-out, from the run.
        beside: Columns that are watched beside the features, and share the false alarms.
        tell: Called with how many features are calibrated, and how many there are.

    Raises:
        ManifestError: The training set is missing, is not one, or is empty.
        NotFoundError: A watched feature is not in it, or the statistic does not exist.
    """
    statistic(config.statistic)
    # Through the package, which imports Feast only when a name is asked for.
    manifest = featurestore.Manifest.load(manifest_path)
    data = manifest_path.with_name("data.parquet")
    if not data.exists():
        raise ManifestError(manifest_path, f"{data.name} is not beside it")
    for name in config.features:
        if name not in manifest.features:
            raise NotFoundError("feature of the training set", name, manifest.features)
    watched = config.features or manifest.features
    personal = {name for name, one in manifest.columns.items() if one.get("pii")}
    for name in personal.intersection(config.segments):
        raise ManifestError(
            manifest_path,
            f"{name} is tagged pii: as a segment its values would be shown; leave it out of "
            f"`segments`",
        )
    found = reference_of_rows(
        con,
        data,
        config,
        watched,
        keys=manifest.keys,
        personal=personal,
        uri=str(manifest_path),
        contract=manifest.contract,
        model_version=model_version,
        performance=performance or {},
        columns=tuple(manifest.columns),
        beside=beside,
        tell=tell,
    )
    rows = 0 if found is None else found.profile.rows
    if found is None or rows != manifest.rows:
        raise ManifestError(manifest_path, f"{data.name} holds {rows} rows, not {manifest.rows}")
    return found


def reference_of_rows(
    con: duckdb.DuckDBPyConnection,
    data: Path,
    config: MonitorConfig,
    watched: Sequence[str],
    *,
    keys: Sequence[str] = (),
    personal: Collection[str] = (),
    **told: Any,
) -> Reference | None:
    """Make a reference of the rows of one Parquet file; None without any.

    Args:
        con: Any DuckDB connection; nothing is written to its database.
        data: The file; its event time is `event_timestamp`.
        config: The monitor.
        watched: Columns that are compared.
        keys: Columns that name entities.
        personal: Columns whose values are somebody's.
        told: See `reference_of`.
    """
    there = con.sql("FROM read_parquet($path)", params={"path": str(data)}).columns
    keyed = [name for name in keys if name in there]
    given = read_columns(con, data, (*watched, *keyed), in_order=False)
    roles = {name: Role(role) for name, role in config.columns.items()}
    edges = edges_of(given, watched, personal, keys=keyed, roles=roles)
    found = list(by_bucket(read_columns(con, data, watched, in_order=True), edges, config.bucket))
    if not found:
        return None
    sample = _sample(con, data, (*watched, *keys), sum(one.rows for _, one in found))
    chosen, clusters = statistic(config.statistic), clusterings(sample, edges, keys)
    return reference_of(found, edges, config, chosen, clusters=clusters, **told)


def reference_of(
    found: Sequence[tuple[datetime, Profile]],
    edges: Edges,
    config: MonitorConfig,
    chosen: Statistic,
    *,
    clusters: Mapping[str, Clustering] = MappingProxyType({}),
    uri: str = "",
    contract: str = "",
    model_version: str = "",
    performance: Mapping[str, float] | None = None,
    columns: tuple[str, ...] = (),
    beside: int = 0,
    tell: Callable[[int, int], None] | None = None,
) -> Reference:
    """Make a reference of one profile per bucket, which is all that calibration needs.

    Args:
        found: Start and profile of each bucket with rows, at least one, by time.
        edges: What the profiles are over.
        config: The monitor.
        chosen: The statistic that decides.
        clusters: How shares vary with the entities, from `monitor.drift.clustering`.
        uri: Copied into the reference, like all that follow.
        contract: See `Reference`.
        model_version: See `Reference`.
        performance: See `Reference`.
        columns: See `Reference`.
        beside: See `build_reference`.
        tell: See `build_reference`.
    """
    whole = total((one for _, one in found), edges)
    start, last = found[0][0], found[-1][0]
    held = dict(found)
    empty = Profile.empty(edges)
    series = [
        held.get(start + i * config.bucket, empty)
        for i in range((last - start) // config.bucket + 1)
    ]
    weekdays = np.array([weekday(start + i * config.bucket) for i in range(len(series))])
    same_weekdays = seasonal(config, weekdays[[one.rows > 0 for one in series]])
    share = config.false_alarms_per_year / max(1, len(edges.columns) + beside)
    calibration, latest = {}, {}
    for done, (name, one) in enumerate(edges.columns.items()):
        if tell is not None:
            tell(done, len(edges.columns))
        counts = Series.of(name, series, weekdays, clusters.get(name))
        column = whole.columns[name]
        # Both looks at a feature make one verdict: they share its chances of a false alarm.
        short = calibrate_latest(
            one, counts, column, config=config, chosen=chosen, alarms_per_year=_LATEST * share
        )
        window = calibrate(
            one,
            counts,
            column,
            config=config,
            chosen=chosen,
            alarms_per_year=share if short is None else _WINDOW * share,
        )
        if window is not None:
            calibration[name] = window
            if short is not None:
                latest[name] = short
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
        latest=latest,
        weekdays=tuple(
            total((one for one, day in zip(series, weekdays, strict=True) if day == number), edges)
            for number in range(7)
            if same_weekdays
        ),
        columns=columns,
        # The first and the last bucket may be cut by where the training set begins and ends.
        quietest=min((one.rows for one in series[1:-1]), default=0),
    )


def read_columns(
    con: duckdb.DuckDBPyConnection, data: Path, columns: Sequence[str], *, in_order: bool
) -> pa.RecordBatchReader:
    """Read columns of a Parquet file with the time of each row, by time if that is asked for."""
    listed = ", ".join('"' + name.replace('"', '""') + '"' for name in dict.fromkeys(columns))
    order = f' ORDER BY "{EVENT_TIMESTAMP}"' if in_order else ""
    query = f'SELECT {listed}, "{EVENT_TIMESTAMP}" AS "{_AT}" FROM read_parquet($path){order}'
    return con.sql(query, params={"path": str(data)}).to_arrow_reader()


def _sample(
    con: duckdb.DuckDBPyConnection, data: Path, columns: Sequence[str], rows: int
) -> pa.Table:
    """Read about `CLUSTER_ROWS` rows, the same whatever their order."""
    present = con.sql("FROM read_parquet($path)", params={"path": str(data)}).columns
    listed = ", ".join(
        '"' + name.replace('"', '""') + '"' for name in dict.fromkeys(columns) if name in present
    )
    return con.sql(
        f"SELECT {listed} FROM read_parquet($path) AS r WHERE hash(r) % $rows < $wanted",
        params={"path": str(data), "rows": max(rows, CLUSTER_ROWS), "wanted": CLUSTER_ROWS},
    ).to_arrow_table()


_AT = EVENT_TIMES[0]


def by_bucket(
    batches: Iterable[pa.RecordBatch], edges: Edges, length: timedelta
) -> Iterator[tuple[datetime, Profile]]:
    """Profile batches that are in the order of time, bucket by bucket."""
    step = length // timedelta(microseconds=1)
    held: tuple[int, Profile] | None = None
    for batch in batches:
        micros = batch.column(_AT).cast(pa.timestamp("us", "UTC")).cast(pa.int64())
        numbers = micros.to_numpy(zero_copy_only=False) // step
        cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), batch.num_rows]
        rows = batch
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
