"""Section `monitor` of `steadfeast.yaml`.

Above `endpoints`. Times are durations as Prometheus writes them (`1d`, `30s`); a monitor
works in event time, so windows, lateness, cooldown and budget follow the data's clock.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from steadfeast.featurestore.config import (
    Address,
    AlsoWritten,
    Duration,
    FilePath,
    FolderName,
    Section,
    StoreConfig,
    is_loopback,
    load_section,
)
from steadfeast.featurestore.errors import ConfigError
from steadfeast.featurestore.security import SecurityConfig, load_security
from steadfeast.measures import Task
from steadfeast.monitor.config.calendar import CalendarConfig
from steadfeast.monitor.config.cron import parse
from steadfeast.monitor.config.endpoints import AlertTargetConfig, PipelineConfig
from steadfeast.monitor.config.of_models import with_facts_of_model
from steadfeast.monitor.config.sources import ReferenceConfig, SourceConfig, StretchConfig

Share = Annotated[float, Field(gt=0, le=1)]


ColumnRole = Literal[
    "feature", "constant", "empty", "identifier", "growing", "time", "calendar", "unwatched"
]
"""What a column may be declared to be; see `profiles.roles.Role`."""


def _cron(line: str) -> str:
    parse(line)
    return line


Cron = Annotated[str, AfterValidator(_cron)]
"""A cron line in UTC: minute, hour, day of the month, month, day of the week."""


class EpisodeConfig(Section):
    """When an episode opens and closes.

    Attributes:
        k: Windows over threshold, out of the last `n`, that open one.
        n: Windows looked at.
        close: Windows in a row below 0.8 of the threshold that close it.
    """

    k: PositiveInt = 2
    n: PositiveInt = 3
    close: PositiveInt = 3

    @model_validator(mode="after")
    def _k_of_n(self) -> Self:
        if self.k > self.n:
            raise ValueError(f"k ({self.k}) must not exceed n ({self.n})")
        return self


class BudgetConfig(Section):
    """What retraining may cost.

    Attributes:
        runs: At most so many for a model in any stretch of length `per`. A run whose model was
            refused counts by what it cost: half, or nothing where nothing was fitted.
        per: Length of the stretch.
        reserve: More runs, which only a drop in performance may use.
    """

    runs: PositiveInt = 12
    per: Duration = timedelta(days=365)
    reserve: NonNegativeInt = 2


class PerformanceConfig(Section):
    """What to expect of the live model once labels are in.

    Attributes:
        metric: The measure that decides, by its name in `steadfeast.measures` (scikit-learn's
            scorers: `roc_auc`, `f1`, `root_mean_squared_error`, ...); or one of your own: the name
            of an entry point in `steadfeast.measures`, or `module:function`. All measures of the
            same task are taken and shown. The default is for binary models; of another task it
            must be given.
        task: What the model predicts; unset means what `pipeline.models` says of it, and else
            follows from the metric, and is `binary` where that may be of several tasks.
        min_labels: Labelled rows below which there is no figure.
        max_drop: How much worse than on its hold-out the model may be, in the figure's unit.
        label_delay: How long labels take to come in; unset means what `pipeline.models` says of
            the model, or that they come at once. What is measured at each bucket is the
            window that ended so long before; what is estimated is always the current one.
    """

    metric: str = "roc_auc"
    task: Task | None = None
    min_labels: PositiveInt = 500
    max_drop: PositiveFloat = 0.05
    label_delay: Duration = timedelta(0)


_OF_A_SERVICE = ("scored", "max_age", "audit")


class MonitorConfig(Section):
    """One monitor: what is watched, by default one feature service as one model reads it.

    Attributes:
        service: Feature service whose served log is watched.
        source: What is watched in place of a served log.
        model: Registered model that reads it, and that a trigger retrains. May be left out where
            there is a `reference` and no `pipeline`: drift is then told, and nothing is fired.
        pipeline: Name of the pipeline, in `pipelines`, that triggers go to; none means that
            drift is watched and nothing is fired.
        reference: What to compare with, for good: manifest of a training set; or a stretch of
            what is watched, as `{from: 2024-01-01, to: 2024-03-01}`. None means the training set
            of the model's champion, as the pipeline tells it, which moves with every promotion.
        scored: With `reference`: Parquet file of rows with the model's `prediction`, as the runs of
            a pipeline name one by `scored_uri`.
        bucket: Length of one snapshot; divides a day or is whole days.
        window: Length of what is compared with the reference; a multiple of `bucket`.
        lateness: How long after its end a bucket takes late rows. Until then its window is
            shown as it stands; then the bucket is frozen, and its window decided on, once.
        min_rows: Rows in a window below which the verdict is `insufficient_data`.
        statistic: Name of the statistic that decides.
        features: Watched features; empty means all that are served.
        columns: What some columns are, in place of what is recognised on the reference: `feature`,
            `identifier`, `growing`, `calendar`, ... An identifier and what grows or follows the
            calendar by construction is not compared with the reference.
        segments: Columns whose values split the rows: the same looks at each of the largest.
        multivariate: Look at all features together, too: whether they hang together as they did.
            Needs the extra `multivariate`, a training set whose rows are kept, and seconds.
        false_alarms_per_year: False notifications that the user accepts from this monitor, in all.
        false_alarm_days_per_year: Days with a false alarm standing that the user accepts from it.
        smallest_change: Shift in standard deviations that the user wants to hear of; less never
            is drift. Shares of single values, tails and nulls go with it.
        calendar: Days that are compared with their like.
        max_null_increase: Rise of a feature's null share over the reference that is an
            incident.
        max_age: Per feature view, the age of its newest value at request time that is an
            incident, at the median.
        episode: When an episode opens and closes.
        cooldown: Least time between two triggers for the model.
        budget: What retraining may cost.
        retry_after: How long after a trigger whose run promoted nothing the same drift asks again,
            with newer data.
        refresh: When to retrain though nothing is wrong: `auto` once enough has become known that a
            refit is worth it, a length of time (`30d`), or `never`.
        approval: `auto`, or `manual`: a person decides each trigger.
        schedule: When to retrain though nothing drifted, as a cron line in UTC. A time that comes
            while the daemon is away counts once it is back, but only the last of several.
        causes: Labels of other systems' alerts that are causes to retrain, as Alertmanager's
            webhook tells them: an alert is one if it has every label of any entry.
        audit: How often the store's invariants are checked on the current window, wall clock;
            none, or `never`, means never.
        performance: What to expect of the live model once labels are in; null for no look at it.
    """

    service: str = ""
    source: SourceConfig | None = None
    model: str = ""
    pipeline: str | None = None
    reference: ReferenceConfig | None = None
    scored: FilePath | None = None
    bucket: Duration = timedelta(days=1)
    window: Duration = timedelta(days=7)
    lateness: Duration = timedelta(0)
    min_rows: PositiveInt = 200
    statistic: str = "psi"
    features: tuple[str, ...] = ()
    columns: dict[str, ColumnRole] = Field(default_factory=dict)
    segments: tuple[str, ...] = Field(default=(), max_length=4)
    multivariate: bool = False
    false_alarms_per_year: PositiveFloat = 4
    false_alarm_days_per_year: PositiveFloat = 18
    smallest_change: PositiveFloat = 0.15
    calendar: CalendarConfig = CalendarConfig()
    max_null_increase: Share = 0.2
    max_age: dict[str, Duration] = Field(default_factory=dict)
    episode: EpisodeConfig = EpisodeConfig()
    cooldown: Duration = timedelta(days=7)
    budget: BudgetConfig = BudgetConfig()
    retry_after: Duration = timedelta(days=14)
    refresh: Literal["auto", "never"] | Duration = "auto"
    approval: Literal["auto", "manual"] = "auto"
    schedule: Cron | None = None
    causes: tuple[Annotated[dict[str, str], Field(min_length=1)], ...] = ()
    audit: Annotated[Duration | None, AlsoWritten(const="never")] = None
    performance: PerformanceConfig | None = PerformanceConfig()

    @field_validator("audit", mode="before")
    @classmethod
    def _never(cls, audit: object) -> object:
        # A variable of the environment cannot say none.
        return None if audit == "never" else audit

    @property
    def manifest(self) -> Path | None:
        """Manifest of the training set to compare with for good, if it is one."""
        return self.reference if isinstance(self.reference, Path) else None

    @property
    def stretch(self) -> StretchConfig | None:
        """Stretch of what is watched to compare with, if it is one."""
        return self.reference if isinstance(self.reference, StretchConfig) else None

    @property
    def kind(self) -> Literal["served", "view", "table"]:
        """What sort of source is watched."""
        if self.source is None:
            return "served"
        return "view" if self.source.view else "table"

    @property
    def subject(self) -> str:
        """Name of what is watched: the feature service, the view, the table or the files."""
        if self.source is None:
            return self.service
        return self.source.view or self.source.table or str(self.source.files)

    @model_validator(mode="before")
    @classmethod
    def _no_labels_without_a_service(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("source") is not None:
            return {"performance": None, **given}
        return given

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.service) == (self.source is not None):
            raise ValueError("give either service or source")
        if self.source is not None:
            extra = [name for name in _OF_A_SERVICE if getattr(self, name)]
            extra += ["performance"] if self.performance is not None else []
            if extra:
                raise ValueError(
                    f"{' and '.join(extra)} cannot go with source: there are no requests, no "
                    f"predictions and no labels"
                )
            if self.multivariate:
                raise ValueError(
                    "multivariate goes with service: it needs a training set's rows, and a stretch "
                    "that was read once keeps none"
                )
        elif self.stretch is not None:
            raise ValueError("reference: a stretch goes with source, a training set with service")
        if not self.model and (self.pipeline is not None or self.reference is None):
            raise ValueError(
                "model is missing; without one give reference, as {from: 2024-01-01, "
                "to: 2024-03-01} or a training set's manifest, and no pipeline"
            )
        return self

    @model_validator(mode="after")
    def _whole_buckets(self) -> Self:
        day = timedelta(days=1)
        if self.bucket <= timedelta(0) or (day % self.bucket and self.bucket % day):
            raise ValueError(f"bucket ({self.bucket}) must divide a day or be whole days")
        if self.window < self.bucket or self.window % self.bucket:
            raise ValueError(f"window ({self.window}) must be a multiple of bucket ({self.bucket})")
        if self.performance is not None and self.performance.label_delay % self.bucket:
            raise ValueError(
                f"performance.label_delay ({self.performance.label_delay}) must be a multiple of "
                f"bucket ({self.bucket})"
            )
        if self.scored is not None and self.manifest is None:
            raise ValueError("scored goes with a manifest; a pipeline's runs name their own")
        return self

    @model_validator(mode="after")
    def _somewhere_to_send(self) -> Self:
        if self.pipeline is None and (self.schedule or self.causes):
            raise ValueError("schedule and causes need a pipeline to send triggers to")
        return self


class DaemonConfig(Section):
    """The whole section.

    Attributes:
        state: Folder for the daemon's DuckDB file and its snapshots.
        http: Address of `/metrics`, `/healthz`, `/readyz` and the page.
        grpc: Address of MonitorService.
        clock: `wall`; or `watermark`, where now is the latest event seen: for replays.
        tick: Time between two looks at the sources, wall clock.
        retention: How long snapshot rows are kept; profiles stay.
        alerts: Name to where alerts are sent, from when it is first configured on.
        pipelines: Name to gRPC address, or to more about it.
        monitors: Name to monitor.
    """

    state: FilePath
    http: Address = "127.0.0.1:9464"
    grpc: Address = "127.0.0.1:9465"
    clock: Literal["wall", "watermark"] = "wall"
    tick: Duration = timedelta(seconds=30)
    retention: Duration = timedelta(days=90)
    alerts: dict[str, AlertTargetConfig] = Field(default_factory=dict)
    pipelines: dict[str, PipelineConfig] = Field(default_factory=dict)
    monitors: dict[FolderName, MonitorConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _pipelines_exist(self) -> Self:
        for name, monitor in self.monitors.items():
            if monitor.pipeline is not None and monitor.pipeline not in self.pipelines:
                raise ValueError(
                    f"monitors.{name}.pipeline: {monitor.pipeline!r} is not in pipelines "
                    f"({', '.join(self.pipelines) or 'which is empty'})"
                )
        return self

    def in_plaintext(self, security: SecurityConfig) -> dict[str, str]:
        """Return the addresses off loopback that others could read along with, by their field."""
        plain = {} if security.tls else {"http": self.http, "grpc": self.grpc}
        plain |= {f"pipelines.{name}": one.plaintext for name, one in self.pipelines.items()}
        plain |= {f"alerts.{name}": one.plaintext for name, one in self.alerts.items()}
        return {field: at for field, at in plain.items() if at and not is_loopback(at)}


def load(path: Path) -> tuple[DaemonConfig, StoreConfig]:
    """Read what the daemon needs of the file at `path`.

    A monitor that says no `label_delay` has that of its model in section `pipeline`, in whole
    buckets; and one that says no `task` has its model's.

    Raises:
        ConfigError: See `featurestore.config.load_section`; the two sections differ; a metric is
            none of the model's task; or an address off loopback has no TLS, and section `security`
            does not allow that.
    """
    config, security = load_section(path, "monitor", DaemonConfig), load_security(path)
    if not security.allow_plaintext:
        problem = (
            "{} is no loopback address, and would be in plaintext; give tls, or "
            "security.allow_plaintext: true where only trusted programs share the network"
        )
        plain = config.in_plaintext(security)
        if plain:
            raise ConfigError(
                path, [(f"monitor.{field}", problem.format(at)) for field, at in plain.items()]
            )
    monitors = {name: with_facts_of_model(path, name, one) for name, one in config.monitors.items()}
    return config.model_copy(update={"monitors": monitors}), load_section(
        path, "store", StoreConfig
    )
