"""What section `pipeline` says of the models that monitors watch: their task and label delay.

Above the section's parts, below `schema`, whose `load` asks. The pipeline itself is not imported:
it may be another's, and then there is no such section.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta  # noqa: TC003 - pydantic reads the types of fields
from typing import TYPE_CHECKING

from pydantic import BaseModel

from steadfeast.featurestore.config import Duration, load_section
from steadfeast.featurestore.errors import ConfigError, NotFoundError
from steadfeast.measures import MeasureError, Task, measure_named, measures_of

if TYPE_CHECKING:
    from pathlib import Path

    from steadfeast.monitor.config.schema import MonitorConfig, PerformanceConfig


class _Model(BaseModel, extra="ignore"):
    label_delay: Duration | None = None
    task: Task = Task.BINARY


class _Pipeline(BaseModel, extra="ignore"):
    models: dict[str, _Model] = {}


def with_facts_of_model(path: Path, name: str, monitor: MonitorConfig) -> MonitorConfig:
    """Return a monitor with the task of its model and the delay of its labels.

    Args:
        path: The configuration file.
        name: Of the monitor.
        monitor: As section `monitor` has it.

    Raises:
        ConfigError: Both sections say one thing, and differ; or the metric is none of the task.
    """
    performance = monitor.performance
    if performance is None:
        return monitor
    models: dict[str, _Model] = {}
    with suppress(ConfigError):  # there is none here, or another process has to complain of it
        models = load_section(path, "pipeline", _Pipeline).models
    model = models.get(monitor.model) if monitor.model else None
    field = f"monitor.monitors.{name}.performance"
    if model is not None:
        performance = _delayed(path, field, monitor, performance, model)
        performance = _of_task(path, field, monitor, performance, model)
    _check_metric(path, field, monitor, performance)
    return monitor.model_copy(update={"performance": performance})


def _delayed(
    path: Path, field: str, monitor: MonitorConfig, performance: PerformanceConfig, model: _Model
) -> PerformanceConfig:
    """Return it with the delay of the model's labels, in whole buckets."""
    if model.label_delay is None:
        return performance
    delay: timedelta = -(-model.label_delay // monitor.bucket) * monitor.bucket
    if "label_delay" in performance.model_fields_set and performance.label_delay != delay:
        problem = f"differs from pipeline.models.{monitor.model}.label_delay; give it once"
        raise ConfigError(path, [(f"{field}.label_delay", problem)])
    return performance.model_copy(update={"label_delay": delay})


def _of_task(
    path: Path, field: str, monitor: MonitorConfig, performance: PerformanceConfig, model: _Model
) -> PerformanceConfig:
    if performance.task not in {None, model.task}:
        problem = (
            f"is {performance.task}, and pipeline.models.{monitor.model}.task is {model.task}; "
            "give it there only"
        )
        raise ConfigError(path, [(f"{field}.task", problem)])
    if model.task is Task.BINARY:  # which is what follows from a metric of several tasks
        return performance
    return performance.model_copy(update={"task": model.task})


def _check_metric(
    path: Path, field: str, monitor: MonitorConfig, performance: PerformanceConfig
) -> None:
    """Refuse a metric of another task; what it says itself of a function of one's own is later."""
    task = performance.task
    if task is None or ":" in performance.metric:
        return
    try:
        measure = measure_named(performance.metric)
    except (MeasureError, NotFoundError):  # told with all other names, see `evaluation.check`
        return
    if measure.suits(task):
        return
    fitting = ", ".join(one.name for one in measures_of(task))
    whose = f"model {monitor.model}" if monitor.model else "the model"
    wrong = f"{performance.metric} is no measure of task {task}, which is that of {whose}"
    if "metric" not in performance.model_fields_set:
        wrong = f"is missing: {whose} is of task {task}, which {performance.metric} does not fit"
    raise ConfigError(path, [(f"{field}.metric", f"{wrong}; these fit: {fitting}")])
