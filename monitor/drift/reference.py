"""What a monitor compares with: the training set's profile, and the limits of each feature.

Above `monitor.drift.calibration`, which measures limits on counts of the reference's buckets. Here
those are made, from the rows of the training set that the live model was trained on.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from steadfeast import featurestore
from steadfeast.featurestore.errors import ManifestError, NotFoundError, SteadfeastError
from steadfeast.featurestore.tables import EPOCH, EVENT_TIMESTAMP, identifier
from steadfeast.monitor.drift.calendar import Calendar
from steadfeast.monitor.drift.calibration import Expected, calibrate
from steadfeast.monitor.drift.data_facts import DataFacts
from steadfeast.monitor.drift.distances import statistic
from steadfeast.monitor.drift.multivariate.domain_classifier import Usual
from steadfeast.monitor.drift.related import related
from steadfeast.monitor.drift.shares import extended, shares_of
from steadfeast.monitor.drift.thresholds import Threshold
from steadfeast.monitor.performance import Estimator
from steadfeast.monitor.profiles import (
    EVENT_TIMES,
    Edges,
    Profile,
    Role,
    Window,
    edges_of,
    profile,
    total,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    import duckdb
    import numpy.typing as npt

    from steadfeast.monitor.config import MonitorConfig

VERSION = 3
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
        performance: What the model measured on its hold-out, by metric name.
        thresholds: The limits of each feature that could be calibrated.
        expected: What buckets are expected to look like, by the calendar: of features, and of
            what the model said; empty with too few.
        columns: Every column of the training set: features, keys, label.
        quietest: Fewest rows in any whole bucket of the reference.
        scored_uri: Path of the rows with the model's predictions; empty without any.
        importance: Per feature, how much worse the model gets without it; empty if unknown.
        estimator: Estimates performance without labels; None when there is nothing to fit on.
        segments: Per column that is split by, the profile of each of its values' rows.
        joint: Per look at all features together, what is usual; empty without them.
        facts: Volumes and repeats; of a stretch of a source.
        groups: Of each feature that moves with others of its view, the name of the group.
    """

    uri: str
    contract: str
    model_version: str
    window: Window
    edges: Edges
    profile: Profile
    performance: Mapping[str, float] = field(default_factory=dict)
    thresholds: Mapping[str, Threshold] = field(default_factory=dict)
    expected: tuple[Expected, ...] = ()
    columns: tuple[str, ...] = ()
    quietest: int = 0
    scored_uri: str = ""
    importance: Mapping[str, float] = field(default_factory=dict)
    estimator: Estimator | None = None
    segments: Mapping[str, Mapping[str, Profile]] = field(default_factory=dict)
    joint: Mapping[str, Usual] = field(default_factory=dict)
    facts: DataFacts = field(default_factory=DataFacts)
    groups: Mapping[str, str] = field(default_factory=dict)

    @property
    def features(self) -> tuple[str, ...]:
        """The watched features, in the training set's order."""
        return tuple(self.edges.columns)

    def usual(
        self, feature: str, starts: Sequence[datetime], config: MonitorConfig
    ) -> tuple[npt.NDArray[np.float64], float]:
        """Return the shares of `feature` to expect, and as how many rows they are good.

        Args:
            feature: Which.
            starts: Of the buckets that are judged; without any, all of the reference is expected.
            config: The monitor.
        """
        found = next((one for one in self.expected if feature in one.shares), None)
        if found is None or not starts:
            column = self.profile.columns[feature]
            return shares_of(extended(column)), float(column.usable)
        calendar = Calendar(config.bucket, config.calendar, found.terms)
        return found.of(feature, calendar.design(starts))

    def unlike(self, start: datetime, config: MonitorConfig) -> str:
        """Return of which kind the day of a bucket is that the reference has none of, or ""."""
        terms = self.expected[0].terms if self.expected else ()
        return Calendar(config.bucket, config.calendar, terms).unlike(start)

    def impact(self, feature: str, value: float) -> float | None:
        """Return effect x importance of a distance; None when either is not known.

        The effect is the shift in standard deviations of a normal feature that `value` stands
        for, the importance the feature's share of all that the model would lose.
        """
        found, whole = self.thresholds.get(feature), sum(self.importance.values())
        if found is None or feature not in self.importance or not whole:
            return None
        return found.effect(value) * self.importance[feature] / whole

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
            "performance": dict(self.performance),
            "thresholds": {name: asdict(one) for name, one in self.thresholds.items()},
            "expected": [one.to_json() for one in self.expected],
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
            "groups": dict(self.groups),
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
                "thresholds": {
                    name: Threshold.from_json(one) for name, one in data["thresholds"].items()
                },
                "expected": tuple(map(Expected.from_json, data["expected"])),
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
    return reference_of(found, edges, config, **told)


def reference_of(
    found: Sequence[tuple[datetime, Profile]],
    edges: Edges,
    config: MonitorConfig,
    *,
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
    expected, thresholds = calibrate(found, edges, config, beside=beside, tell=tell)
    filled = (last - start) // config.bucket + 1 == len(found)
    return Reference(
        uri=uri,
        contract=contract,
        model_version=model_version,
        window=Window(start, last + config.bucket, whole.rows),
        edges=edges,
        profile=whole,
        performance=dict(performance or {}),
        thresholds=thresholds,
        expected=() if expected is None else (expected,),
        columns=columns,
        groups=related(found, edges),
        # The first and the last bucket may be cut by where the training set begins and ends.
        quietest=min((one.rows for _, one in found[1:-1]), default=0) if filled else 0,
    )


def read_columns(
    con: duckdb.DuckDBPyConnection, data: Path, columns: Sequence[str], *, in_order: bool
) -> pa.RecordBatchReader:
    """Read columns of a Parquet file with the time of each row, by time if that is asked for."""
    listed = ", ".join(identifier(name) for name in dict.fromkeys(columns))
    order = f' ORDER BY "{EVENT_TIMESTAMP}"' if in_order else ""
    query = f'SELECT {listed}, "{EVENT_TIMESTAMP}" AS "{_AT}" FROM read_parquet($path){order}'
    return con.sql(query, params={"path": str(data)}).to_arrow_reader()


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
