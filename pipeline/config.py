"""Section `pipeline` of `steadfeast.yaml`. Bottom of `pipeline`."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from steadfeast.featurestore.config import Duration, FilePath, Section, StoreConfig, load_section

if TYPE_CHECKING:
    from pathlib import Path

ModelName = Annotated[str, Field(pattern=r"^[\w.-]+$", examples=["late_arrival"])]
"""Name of a registered model; MLflow's filters cannot quote more than this."""

Address = Annotated[str, Field(pattern=r"^[^:\s]+:\d{1,5}$", examples=["127.0.0.1:9466"])]


class GatesConfig(Section):
    """What a challenger must reach on the held-out rows to be promoted.

    Attributes:
        metric: The metric that champion and challenger are compared on; greater is better.
        minimum: Absolute floor of the challenger's metric.
        max_regression: How far the challenger may stay below the champion.
        min_rows: Held-out rows needed to compare at all.
    """

    metric: Literal["auc", "accuracy"] = "auc"
    minimum: float = 0.5
    max_regression: NonNegativeFloat = 0.0
    min_rows: PositiveInt = 500


class ModelConfig(Section):
    """How one model is retrained.

    Attributes:
        service: Feature service that it is trained and served with.
        recipe: `module:function`, the module beside the configuration file.
        entities: Parquet file with a row per example: join keys, request data,
            `event_timestamp`, the label, and `known_at`, the time the label became known.
        label: Name of the label column.
        since: Examples older than this before `as_of` are left out; none means all.
        holdout: The last stretch before `as_of`, held out to compare on.
        gates: What a challenger must reach.
        trusted_types: Full names of types in the recipe's estimator that a model file may hold
            beyond scikit-learn's; loading builds them, so list only what you know.
    """

    service: str
    recipe: str = Field(pattern=r"^[\w.]+:\w+$")
    entities: FilePath
    label: str
    since: Duration | None = None
    holdout: Duration = timedelta(days=14)
    gates: GatesConfig = GatesConfig()
    trusted_types: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        if self.holdout <= timedelta(0):
            raise ValueError("holdout must be longer than nothing")
        if self.since is not None and self.since <= self.holdout:
            raise ValueError(f"since ({self.since}) must be longer than holdout ({self.holdout})")
        return self


class PipelineConfig(Section):
    """The whole section.

    Attributes:
        state: Folder for the run queue and MLflow's artifacts.
        grpc: Address of PipelineService.
        tracking_uri: MLflow's; unset means a SQLite file in `state`, and model files beside it.
        threads: Native threads that a recipe's libraries may use; on few cores one is fastest.
        models: Registered model name to how it is retrained.
    """

    state: FilePath
    grpc: Address = "127.0.0.1:9466"
    tracking_uri: str | None = None
    threads: PositiveInt = 1
    models: dict[ModelName, ModelConfig] = Field(min_length=1)


def load(path: Path) -> tuple[PipelineConfig, StoreConfig]:
    """Read what the pipeline needs of the file at `path`.

    Raises:
        ConfigError: See `featurestore.config.load_section`.
    """
    return load_section(path, "pipeline", PipelineConfig), load_section(path, "store", StoreConfig)
