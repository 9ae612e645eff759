"""A whole backtest, from a configuration file to verdicts. Above `judgement`; shows a bar."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from steadfeast.backtest.history import History
from steadfeast.backtest.judgement import judge
from steadfeast.backtest.policies import policies
from steadfeast.backtest.replay import replay
from steadfeast.backtest.report import Verdicts
from steadfeast.backtest.runs import Runs
from steadfeast.featurestore.errors import ConfigError, NotFoundError, UserError
from steadfeast.monitor.config import MonitorConfig
from steadfeast.monitor.config import load as load_monitors
from steadfeast.pipeline.config import load as load_pipeline

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from rich.progress import TaskID

    from steadfeast.pipeline.config import ModelConfig

FIRST_SHARE = 6
"""The first model is trained after one part in so many of the examples' time."""


class StretchError(UserError):
    """The stretch to replay is none.

    Attributes:
        start: When the first model is trained.
        end: When the replay ends.
    """

    def __init__(self, start: datetime, end: datetime) -> None:
        self.start, self.end = start, end
        super().__init__(f"nothing to replay from {start:%Y-%m-%d} to {end:%Y-%m-%d}")


def compare(
    path: Path,
    names: Sequence[str],
    *,
    model: str = "",
    start: datetime | None = None,
    first: timedelta | None = None,
    end: datetime | None = None,
    label_delay: timedelta | None = None,
    kept: Path | None = None,
) -> Verdicts:
    """Replay policies for each model of a configuration, or for one.

    Args:
        path: The configuration file.
        names: Of the policies.
        model: Of the model; empty is each.
        start: When the first model is trained; None is after `first`.
        first: Length of the examples that it is trained on; None is a sixth of them.
        end: Of the replay; None is the last example.
        label_delay: Labels are taken to be known this much later than they were.
        kept: Where runs are kept; None is in the pipeline's state.

    Raises:
        NotFoundError: There is no such model.
        StretchError: There is nothing between start and end.
    """
    section, _ = load_pipeline(path)
    if model and model not in section.models:
        raise NotFoundError("model", model, section.models)
    found = Verdicts()
    for name in [model] if model else section.models:
        config = section.models[name]
        monitor = _monitor(path, name, config)
        if label_delay is not None:
            config, monitor = _later(config, monitor, label_delay)
        history = History.build(path, config, label_delay=label_delay or timedelta(0))
        day = timedelta(days=1)
        length = first or (history.end - history.start) / FIRST_SHARE
        begin = start or _midnight(history.start + length)
        stop = end or _midnight(history.end) + day
        if not history.start < begin < stop:
            raise StretchError(begin, stop)
        here = path.resolve().parent
        runs = Runs(history, here, kept or section.state / "backtest", section.threads)
        chosen = policies(names, history, monitor, begin)
        replays = []
        with _bar() as progress:
            total = (stop - begin) // monitor.bucket
            for policy in chosen:
                task = progress.add_task(f"{name}: {policy.name}", total=total)

                advance = partial(_advance, progress, task, policy.name)
                replays.append(replay(history, runs, policy, begin, stop, monitor.bucket, advance))
        found[name] = judge(history, replays, begin, stop, here)
    return found


def _monitor(path: Path, model: str, config: ModelConfig) -> MonitorConfig:
    """Return the monitor of a model; one of defaults where none is configured."""
    try:
        monitors = list(load_monitors(path)[0].monitors.values())
    except ConfigError as error:
        if any(field != "monitor" for field, _ in error.problems):
            raise
        monitors = []
    watching = [one for one in monitors if one.model == model and one.service]
    return watching[0] if watching else MonitorConfig(service=config.service, model=model)


def _later(
    config: ModelConfig, monitor: MonitorConfig, delay: timedelta
) -> tuple[ModelConfig, MonitorConfig]:
    """Return the two for labels that come this much later."""
    performance = monitor.performance
    if performance is not None:
        performance = performance.model_copy(
            update={"label_delay": performance.label_delay + delay}
        )
    if config.label_delay is not None:
        config = config.model_copy(update={"label_delay": config.label_delay + delay})
    return config, monitor.model_copy(update={"performance": performance})


def _advance(progress: Progress, task: TaskID, policy: str, at: datetime, count: int) -> None:
    progress.update(task, advance=1, description=f"{policy}: {at:%Y-%m-%d}, {count} runs")


def _midnight(at: datetime) -> datetime:
    return at.replace(hour=0, minute=0, second=0, microsecond=0)


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(compact=True))
    console = Console(stderr=True)
    return Progress(*columns, console=console, disable=not console.is_terminal)
