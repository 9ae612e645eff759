"""One run as it is told to MLflow and to the other trackers. Above `challenge`.

MLflow has the run from its beginning to its end, however it ends; the other trackers are told of
it once it is judged. A tracker that fails is no end of the run: it is named once, in the run's
events and in the log, and is told no more of this run.
"""

from __future__ import annotations

import logging
from datetime import UTC
from functools import cache, partial
from typing import TYPE_CHECKING

import pyarrow as pa

from steadfeast.featurestore.tables import code_commit
from steadfeast.measures import measures_of
from steadfeast.pipeline import tracking
from steadfeast.pipeline.training.challenge import judged_by, times_of
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import Literal

    from steadfeast.featurestore.training import TrainingSet
    from steadfeast.pipeline.config import ModelConfig, PipelineConfig
    from steadfeast.pipeline.queue import RunQueue
    from steadfeast.pipeline.recipes import Target
    from steadfeast.pipeline.registry import MlflowRuns
    from steadfeast.pipeline.training.challenge import Challenge

log = logging.getLogger(__name__)

_MEASURES = 4
"""That are followed by slice and over time: the task's first, and those of the gates."""
_STATUS: dict[int, Literal["FAILED", "KILLED"]] = {
    pb.RUN_STATE_FAILED: "FAILED",
    pb.RUN_STATE_CANCELLED: "KILLED",
}
_LONGEST = 1000


class Tracked:
    """Tells trackers of one run.

    Args:
        run: The run.
        config: The pipeline's configuration.
        folder: Of the configuration file.
        queue: Where the run's events go.
        mlflow: MLflow's runs.
    """

    def __init__(
        self, run: pb.Run, config: PipelineConfig, folder: Path, queue: RunQueue, mlflow: MlflowRuns
    ) -> None:
        self._run, self._config, self._folder = run, config, folder
        self._queue, self._mlflow = queue, mlflow
        self._failed: set[str] = set()

    def begin(self) -> None:
        """Have MLflow show the run as running."""
        run = self._run
        recipe = self._config.models[run.model].recipe
        tags = tracking.origin_tags(run.asked_by, cause_of(run), recipe)
        self._tell("mlflow", lambda: self._mlflow.resume(run.model, run.run_id, tags))

    def judged(
        self,
        training: TrainingSet,
        target: Target,
        challenged: Challenge,
        important: Mapping[str, float],
    ) -> None:
        """Tell every tracker what the challenger came to, also where the data were refused."""
        run = self._run

        @cache
        def record() -> tracking.Record:
            config = self._config.models[run.model]
            now = self._queue.get(run.run_id)  # has the manifest, which `run` may not
            return record_of(now, config, training, target, challenged, important, self._folder)

        def to_mlflow() -> None:
            opened = self._mlflow.open(run.model, run.run_id, {})
            tracking.log_record(self._mlflow.client, opened.info.run_id, record())

        def to(name: str, argument: str) -> None:
            tracking.load_tracker(name, argument, self._folder)(record())

        self._tell("mlflow", to_mlflow)
        for name, argument in self._config.trackers.items():
            self._tell(name, partial(to, name, argument))

    def end(self, state: pb.RunState.ValueType, reason: str) -> None:
        """Have MLflow show how the run ended."""
        run, name = self._run, pb.RunState.Name(state).removeprefix("RUN_STATE_").lower()
        why = " ".join(reason.split())[:_LONGEST]
        as_of = run.as_of.ToDatetime(UTC)
        tags = {
            "steadfeast.outcome": name,
            "mlflow.note.content": f"As of {as_of:%Y-%m-%d %H:%M} UTC: {name}. {why}".rstrip(),
        }
        status: Literal["FINISHED", "FAILED", "KILLED"] = _STATUS.get(state, "FINISHED")
        self._tell("mlflow", lambda: self._mlflow.end(run.model, run.run_id, status, tags))

    def _tell(self, name: str, tell: Callable[[], None]) -> None:
        if name in self._failed:
            return
        try:
            tell()
        except Exception as error:
            self._failed.add(name)
            text = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST]
            problem = f"tracker {name} was not told of this run, which goes on: {text}"
            log.warning("run %s: %s", self._run.run_id, problem)
            log.debug("tracker %s", name, exc_info=error)
            self._note(problem)

    def _note(self, problem: str) -> None:
        def noted(run: pb.Run) -> None:
            run.reason = problem

        if self._queue.get(self._run.run_id).state == pb.RUN_STATE_RUNNING:
            self._queue.change(self._run.run_id, noted)


def cause_of(run: pb.Run) -> dict[str, str]:
    """Return why a run was asked for, as a record has it."""
    cause = run.cause
    kind = pb.CauseKind.Name(cause.kind).removeprefix("CAUSE_KIND_").lower()
    found = {
        "kind": "" if cause.kind == pb.CAUSE_KIND_UNSPECIFIED else kind,
        "policy": cause.policy,
        "summary": cause.summary,
        "episodes": ", ".join(cause.episode_ids or filter(None, [cause.episode_id])),
    }
    return {name: value for name, value in found.items() if value}


def record_of(
    run: pb.Run,
    config: ModelConfig,
    training: TrainingSet,
    target: Target,
    challenged: Challenge,
    important: Mapping[str, float],
    folder: Path,
) -> tracking.Record:
    """Return what trackers are told of a challenger."""
    judged, parts, manifest = challenged.judged, challenged.split, training.manifest
    metrics: Mapping[str, float] = {}
    slices, over_time, features, example = {}, [], tuple(training.features), None
    fitted = None
    if judged is not None:
        fitted, metrics = judged.model.fitted, judged.metrics
        features, held_out = judged.model.features, parts.held_out
        sample = target.sample(held_out, judged.predictions[parts.is_held_out])
        own = [judged_by(gate, folder).measure for gate in config.judged_by]
        first = measures_of(config.task)[0]
        measures = {one.name: one for one in (first, *own) if one is not None}
        followed = list(measures.values())[:_MEASURES]
        by = _columns(run, config, training)
        slices = tracking.slices(held_out, sample, by, followed, config.min_rows)
        over_time = tracking.over_time(times_of(held_out), sample, followed, config.min_rows)
        example = tracking.example(training.table, features, manifest)
    libraries, platform = tracking.environment()
    commit, _, changes = code_commit(folder).partition("+")
    return tracking.Record(
        run_id=run.run_id,
        model=run.model,
        asked_by=run.asked_by,
        cause=cause_of(run),
        as_of=run.as_of.ToDatetime(UTC),
        params=tracking.parameters(fitted, config),
        metrics=metrics,
        slices=slices,
        over_time=over_time,
        importance=important,
        gates=challenged.gates,
        manifest=manifest,
        manifest_uri=run.manifest_uri,
        schema=training.table.schema,
        features=features,
        target=target,
        example=example,
        libraries=libraries,
        platform=platform,
        commit=commit,
        tree_is_clean=bool(commit) and not changes,
        recipe=config.recipe,
    )


def _columns(run: pb.Run, config: ModelConfig, training: TrainingSet) -> list[str]:
    """Return the columns that figures are given by; say which of the configured ones cannot be."""
    names = [gate.by for gate in config.judged_by if gate.by]
    schema, facts = training.table.schema, training.manifest.columns
    found = []
    for name in dict.fromkeys((*names, *config.slices)):
        problem = ""
        if name not in schema.names:
            problem = f"is no column of the training set, which has {', '.join(schema.names)}"
        elif facts.get(name, {}).get("pii"):
            problem = "is tagged pii, and a person's values are told to no tracker"
        elif pa.types.is_nested(schema.field(name).type):
            problem = f"is {schema.field(name).type}, whose values are no slices"
        if problem:
            log.warning("run %s: models.%s.slices: %s %s", run.run_id, run.model, name, problem)
        else:
            found.append(name)
    return found
