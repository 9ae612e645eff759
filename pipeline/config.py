"""Section `pipeline` of `steadfeast.yaml`. Bottom of `pipeline`."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveInt,
    SecretStr,
    field_validator,
    model_validator,
)

from steadfeast.featurestore.config import (
    Address,
    Duration,
    FilePath,
    Section,
    StoreConfig,
    load_section,
)
from steadfeast.featurestore.errors import UserError
from steadfeast.featurestore.security import SHORTEST_TOKEN, Secret
from steadfeast.measures import Task, measure_named, measures_of

if TYPE_CHECKING:
    from pathlib import Path

ModelName = Annotated[str, Field(pattern=r"^\w[\w.-]*$", examples=["late_arrival"])]
"""Name of a registered model; MLflow's filters cannot quote more than this."""


Percent = Annotated[str, Field(pattern=r"^\d+(\.\d+)?%$", examples=["1%"])]
"""A share of the champion's figure."""

_OPTIONS = ("at", "quantile", "top")


class GateConfig(Section):
    """One thing that must hold before a challenger serves; a `metric` or a `check`.

    Attributes:
        metric: Name of a measure (see `steadfeast.measures`), or `module:function` of truth and
            prediction, the module beside the configuration file.
        check: `module:function` of the model and the held-out rows, which returns a
            `steadfeast.Gate`, or true or false.
        not_worse_by: The challenger is refused if it is shown to be worse than the champion, and
            was worse by more than this, in the measure's unit or as a share of the champion's
            figure: 0.005, or 1%.
        at_least: The challenger's own figure must reach this.
        at_most: The challenger's own figure must not be above this.
        confidence: Of the interval of the difference. An equally good challenger is refused with
            a chance of at most half of what it leaves: 0.05 for 0.9.
        by: A column of the examples or of the features; each of its values with enough rows is
            judged on its own.
        min_rows: Rows that a value of `by` needs to be judged.
        at: Probability from which a prediction says 1, for measures that count classes.
        quantile: That a prediction is meant to be, for `mean_pinball_loss`.
        top: Places that count, for `ndcg`.
    """

    metric: str | None = None
    check: str | None = Field(default=None, pattern=r"^[\w.]+:\w+$")
    not_worse_by: NonNegativeFloat | Percent | None = None
    at_least: float | None = None
    at_most: float | None = None
    confidence: float = Field(default=0.9, gt=0.5, lt=1)
    by: str | None = None
    min_rows: PositiveInt = 100
    at: float | None = Field(default=None, gt=0, lt=1)
    quantile: float | None = Field(default=None, gt=0, lt=1)
    top: PositiveInt | None = None

    @property
    def options(self) -> dict[str, float]:
        """Options of the measure that are set."""
        given = {name: getattr(self, name) for name in _OPTIONS}
        return {name: float(value) for name, value in given.items() if value is not None}

    def margin(self, champion: float) -> float:
        """Return by how much the challenger may be worse than a champion of this figure."""
        if isinstance(self.not_worse_by, str):
            return abs(champion) * float(self.not_worse_by[:-1]) / 100
        return self.not_worse_by or 0.0

    @model_validator(mode="after")
    def _says_what_is_judged(self) -> Self:
        limits = [
            name
            for name in ("not_worse_by", "at_least", "at_most")
            if getattr(self, name) is not None
        ]
        if (self.metric is None) == (self.check is None):
            raise ValueError("give either metric or check")
        if self.check is not None and (limits or self.by or self.options):
            raise ValueError("a check says itself whether it passes; give nothing beside it")
        if self.metric is not None and not limits:
            raise ValueError("say what is asked for: not_worse_by: 0.005, at_least: or at_most:")
        if self.at_least is not None and self.at_most is not None:
            raise ValueError("at_least and at_most are two gates")
        return self


Share = Annotated[float, Field(ge=0, le=1)]


class ChecksConfig(Section):
    """What must hold of the examples before anything is fitted on them.

    Attributes:
        nulls: Share of nulls that a feature may have.
        nans: Share of NaN that it may have.
        infinities: Share of infinities that it may have.
        more: How much greater each of these shares may be than the champion's.
        outside: Share of a feature's values that may lie outside the champion's range by more
            than the whole range.
        new_categories: Share of a text feature's values that the champion never saw.
        duplicates: Share of rows that have the keys and the time of another.
        label_share: How far the share of a class may have moved since the champion, or a tenth of
            how far the mean of a number may have, in standard deviations.
        leak: How much one feature alone may say of the label, from 0 to 1.
        positives: Rows that each of two classes needs, to train on and held out.
        ignore: Features that are not looked at.
        own: Checks of one's own, `module:function` of the rows, and of other libraries:
            `{pandera: "schemas:sales"}`, `{great_expectations: suite.json}`.
    """

    nulls: Share = 0.95
    nans: Share = 0.95
    infinities: Share = 0.01
    more: Share = 0.5
    outside: Share = 0.1
    new_categories: Share = 0.5
    duplicates: Share = 0.1
    label_share: Share = 0.3
    leak: Share = 0.98
    positives: PositiveInt = 10
    ignore: tuple[str, ...] = ()
    own: tuple[str | dict[str, str], ...] = ()


class ModelConfig(Section):
    """How one model is retrained.

    Attributes:
        service: Feature service that it is trained and served with.
        recipe: `module:function`, the module beside the configuration file.
        entities: Parquet file with a row per example: join keys, request data,
            `event_timestamp`, the label, and `known_at`, the time the label became known.
        label: Name of the label column.
        task: What the model predicts: one of two classes, one of several, a number, or an order.
        positive: The class that a binary model's score is the probability of; unset means the
            greater of the two, so 1 of 0 and 1, true, and `yes` of `no` and `yes`.
        group: Column of the examples whose rows are ranked among each other, for `ranking`.
        since: Examples older than this before `as_of` are left out; none means all.
        holdout: Length of the stretch that models are judged on: the newest one whose labels are
            known.
        label_delay: How long labels take. Unset means what was measured: 95 % of the examples'
            labels were known that soon. The monitor has it from here too.
        min_rows: Held-out rows that a model is judged on, at least.
        window: What the recipe is fitted on. `blend` fits it on everything known, on its newest
            half and on its newest eighth, and serves a weighted mean of the three; a stretch with
            fewer than twice `min_rows` rows is left out. `all` fits it once, on everything.
        refit: What serves after the gates: `all` fits the recipe once more on everything known,
            hold-out included; `none` keeps the model that was judged.
        checks: What must hold of the examples.
        gates: What a challenger must reach; unset compares the task's first measure with the
            champion's.
        slices: Columns of the examples or of the features by whose values figures are tracked,
            beside those that a gate names; values with `min_rows` held-out rows count.
        licence: Under what the model may be used, as on its card: an SPDX name, or words.
        trusted_types: Full names of types in the recipe's estimator that a model file may hold
            beyond scikit-learn's; loading builds them, so list only what you know.
    """

    service: str
    recipe: str = Field(pattern=r"^[\w.]+:\w+$")
    entities: FilePath
    label: str
    task: Task = Task.BINARY
    positive: str | bool | int | float | None = None
    group: str | None = None
    since: Duration | None = None
    holdout: Duration = timedelta(days=14)
    label_delay: Duration | None = None
    min_rows: PositiveInt = 500
    window: Literal["blend", "all"] = "blend"
    refit: Literal["all", "none"] = "all"
    checks: ChecksConfig = ChecksConfig()
    gates: tuple[GateConfig, ...] = ()
    slices: tuple[str, ...] = ()
    licence: str = ""
    trusted_types: tuple[str, ...] = ()

    @field_validator("gates", mode="before")
    @classmethod
    def _a_list(cls, given: object) -> object:
        if isinstance(given, dict):
            raise ValueError(  # noqa: TRY004 - pydantic reports a ValueError as a problem of the field
                "is a list: - {metric: roc_auc, not_worse_by: 0.005}; min_rows stands beside it"
            )
        return given

    @property
    def judged_by(self) -> tuple[GateConfig, ...]:
        """The gates, those of the task if none are given."""
        if self.gates:
            return self.gates
        metric = measures_of(self.task)[0].name
        return (GateConfig(metric=metric, not_worse_by=_MARGINS[self.task]),)

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        if self.holdout <= timedelta(0):
            raise ValueError("holdout must be longer than nothing")
        if self.since is not None and self.since <= self.holdout:
            raise ValueError(f"since ({self.since}) must be longer than holdout ({self.holdout})")
        return self

    @model_validator(mode="after")
    def _fits_the_task(self) -> Self:
        if (self.task is Task.RANKING) != (self.group is not None):
            raise ValueError(
                "task: ranking needs group, the column whose rows are ranked among each other"
                if self.group is None
                else f"group goes with task: ranking, not with {self.task}"
            )
        if self.positive is not None and self.task is not Task.BINARY:
            raise ValueError(f"positive goes with task: binary, not with {self.task}")
        for gate in self.gates:
            _suits(gate, self.task)
        return self


_MARGINS: dict[Task, float | str] = {
    Task.BINARY: 0.005,
    Task.MULTICLASS: 0.005,
    Task.REGRESSION: "1%",
    Task.RANKING: 0.005,
}


def _suits(gate: GateConfig, task: Task) -> None:
    """Check what can be known of a gate's measure without importing the user's code."""
    if gate.metric is None or ":" in gate.metric:
        return
    try:
        measure = measure_named(gate.metric, gate.options)
    except UserError as error:
        raise ValueError(str(error)) from error
    if not measure.suits(task):
        known = ", ".join(one.name for one in measures_of(task))
        raise ValueError(f"{measure.name} is no measure of task {task}; these are: {known}")


class PipelineConfig(Section):
    """The whole section.

    Attributes:
        state: Folder for the run queue and MLflow's artifacts.
        grpc: Address of PipelineService.
        tracking_uri: MLflow's; unset means a SQLite file in `state`, and model files beside it.
        trackers: Other experiment trackers that are told of each run, by the name that a package
            registered under the entry points `steadfeast.trackers`, with what it is given.
        signing_key: Signs each model that is registered, by HMAC-SHA256; with it, only models that
            it signed are loaded. 16 characters or more.
        threads: Native threads that a recipe's libraries may use; on few cores one is fastest.
        models: Registered model name to how it is retrained.
    """

    state: FilePath
    grpc: Address = "127.0.0.1:9466"
    tracking_uri: str | None = None
    trackers: dict[str, str] = Field(default_factory=dict)
    signing_key: Secret = SecretStr("")
    threads: PositiveInt = 1
    models: dict[ModelName, ModelConfig] = Field(min_length=1)

    @field_validator("signing_key")
    @classmethod
    def _not_guessable(cls, key: SecretStr) -> SecretStr:
        if 0 < len(key) < SHORTEST_TOKEN:
            raise ValueError(f"must have {SHORTEST_TOKEN} characters or more")
        return key


def load(path: Path) -> tuple[PipelineConfig, StoreConfig]:
    """Read what the pipeline needs of the file at `path`.

    Raises:
        ConfigError: See `featurestore.config.load_section`.
    """
    return load_section(path, "pipeline", PipelineConfig), load_section(path, "store", StoreConfig)
