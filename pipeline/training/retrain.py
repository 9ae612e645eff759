"""One run, from the examples to the champion.

Above `challenge`. The steps are: read the examples, build the training set, fit and judge a
challenger, fit what is to serve, register it, promote it. Each leaves its result where the next
start finds it (the training set by its content, the gates in the queue, the version by the run's
id), so a run that was cut off is simply run again, and does nothing twice that others can see.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from steadfeast import featurestore
from steadfeast.featurestore.config import StoreConfig, load_section
from steadfeast.featurestore.errors import (
    ErasedError,
    ManifestError,
    NotFoundError,
    SteadfeastError,
    UserError,
)
from steadfeast.featurestore.tables import identifier, kept_path, micros, path_of
from steadfeast.pipeline import recipes
from steadfeast.pipeline.gates import Gate, load_checks, refusal
from steadfeast.pipeline.registry import Facts
from steadfeast.pipeline.training import scored_rows
from steadfeast.pipeline.training.challenge import (
    KNOWN_AT,
    TIME,
    Challenge,
    JudgedFit,
    Live,
    Split,
    challenge,
    judged_by,
    refit,
    target_of,
    times_of,
)
from steadfeast.pipeline.training.tracked import Tracked
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from steadfeast.featurestore.training import TrainingSet
    from steadfeast.pipeline.config import ModelConfig, PipelineConfig
    from steadfeast.pipeline.queue import RunQueue
    from steadfeast.pipeline.recipes import Target
    from steadfeast.pipeline.registry import Registry


class RunCancelledError(SteadfeastError):
    """A run was asked to stop, and does."""


class RunInterruptedError(SteadfeastError):
    """The process is stopping; the run goes back to the queue."""


class ExamplesError(UserError):
    """The entities file cannot be used.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path, problem: str) -> None:
        self.path = path
        super().__init__(f"{path}: {problem}")


def examples(config: ModelConfig, as_of: datetime) -> pa.Table:
    """Return the rows of the entities file that were known by `as_of`, with a label.

    Both the example and its label must be from `as_of` or before, and not older than `since`.
    Times come back as UTC microseconds; times without a zone are UTC.

    Raises:
        ExamplesError: The file is missing, is not Parquet, or lacks a column.
    """
    path = config.entities
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ExamplesError(path, f"cannot be read as Parquet: {error}") from error
    needed = (TIME, KNOWN_AT, config.label, *([config.group] if config.group else []))
    missing = [name for name in needed if name not in schema.names]
    if missing:
        raise ExamplesError(path, f"has no column {', '.join(missing)}; it has {schema.names}")
    for name in (TIME, KNOWN_AT):
        if not pa.types.is_timestamp(schema.field(name).type):
            raise ExamplesError(path, f"column {name} is {schema.field(name).type}, not a time")
    # Compared as integers: what DuckDB makes of a time without a zone depends on the machine.
    at, known_at = (
        f"epoch_us(CAST({name} AS {'TIMESTAMPTZ' if schema.field(name).type.tz else 'TIMESTAMP'}))"
        for name in (TIME, KNOWN_AT)
    )
    label = identifier(config.label)
    is_known = f"{label} IS NOT NULL"
    if pa.types.is_floating(schema.field(config.label).type):
        is_known += f" AND NOT isnan({label})"
    query = f"""SELECT * FROM read_parquet($path)
        WHERE {is_known}
            AND {known_at} <= $as_of AND {at} <= $as_of
            AND ($since IS NULL OR {at} > $since)"""
    since = None if config.since is None else micros(as_of - config.since)
    with duckdb.connect() as con:
        table = con.sql(
            query, params={"path": str(path), "as_of": micros(as_of), "since": since}
        ).to_arrow_table()
    for name in (TIME, KNOWN_AT):
        column = table.column(name).cast(pa.timestamp("us", tz="UTC"), safe=False)
        table = table.set_column(table.column_names.index(name), name, column)
    return table


class Retrain:
    """What the worker does with a run.

    Args:
        path: The configuration file; `Store.open` reads its own section.
        config: The pipeline's section of it.
        queue: Where the run's progress is kept.
        registry: Where its model goes.
    """

    def __init__(
        self, path: Path, config: PipelineConfig, queue: RunQueue, registry: Registry
    ) -> None:
        self._path, self._config = path, config
        self._folder = path.resolve().parent
        self._queue, self._registry = queue, registry

    def __call__(self, run: pb.Run, check: Callable[[], None]) -> None:
        """Bring `run` to its end: promoted or refused. Anything raised is a failure.

        `check` is called between steps and raises when the run must stop.
        """
        if run.model not in self._config.models:
            raise NotFoundError("model", run.model, self._config.models)
        version = self._registry.find(run.model, run.run_id)
        tracked = Tracked(run, self._config, self._folder, self._queue, self._registry.runs)
        if version is None:
            tracked.begin()
        try:
            self._finish(run, version, tracked, check)
        except RunInterruptedError:
            raise
        except (Exception, SystemExit) as error:
            cancelled = isinstance(error, RunCancelledError)
            state = pb.RUN_STATE_CANCELLED if cancelled else pb.RUN_STATE_FAILED
            tracked.end(state, str(error) or type(error).__name__)
            raise
        ended = self._queue.get(run.run_id)
        tracked.end(ended.state, ended.reason)

    def _finish(
        self, run: pb.Run, version: str | None, tracked: Tracked, check: Callable[[], None]
    ) -> None:
        """Bring `run`, which has registered `version` before or nothing yet, to its end."""
        config = self._config.models[run.model]
        as_of = run.as_of.ToDatetime(UTC)
        if version is None:
            prepared = self._training_set(run, config, as_of)
            if prepared is None:
                return
            training, target = prepared
        else:
            facts = self._registry.facts(run.model, version)
            training, target = (
                featurestore.TrainingSet.load(self._place(facts.manifest_uri)),
                facts.target,
            )
        check()
        # Whoever becomes the champion meanwhile is who the challenger has to be judged against.
        while version is None or not self._is_judged(run, version):
            challenged = self._judge(run, config, training, target)
            if challenged.judged is None:
                tracked.judged(training, target, challenged, {})
                self._refuse(run, challenged.gates)
                return
            check()
            if version is None:
                important = self._important(config, challenged.split, challenged.judged)
                tracked.judged(training, target, challenged, important)
                version = self._register(run, config, training, challenged, important)
                check()
        run = self._noted(run.run_id, run.model, version)
        if refusal(run.gates):
            self._refuse(run, run.gates)
            return
        self._registry.set_champion(run.model, version)
        self._queue.finish(run.run_id, pb.RUN_STATE_PROMOTED)

    def _kept(self, path: Path) -> str:
        """Return a path as runs and models keep it: as seen from the store's folder."""
        return kept_path(path, load_section(self._path, "store", StoreConfig).data)

    def _place(self, kept: str) -> Path:
        """Return where that is now."""
        return path_of(kept, load_section(self._path, "store", StoreConfig).data)

    def _is_judged(self, run: pb.Run, version: str) -> bool:
        """Whether the run's gates were taken against the champion of now."""
        champion = self._registry.champion_version(run.model)
        return champion == version or self._queue.judged_against(run.run_id) == (champion or "")

    def _training_set(
        self, run: pb.Run, config: ModelConfig, as_of: datetime
    ) -> tuple[TrainingSet, Target] | None:
        """Build the training set and note it; None, and refused, if no example was known.

        Labels, gates and recipe are looked at first: building is what takes long.
        """
        entities = examples(config, as_of)
        if not entities.num_rows:
            detail = f"no labelled example was known by {as_of}"
            self._refuse(run, [Gate("holdout_rows", False, 0, config.min_rows, detail)])
            return None
        target = target_of(entities, config)
        recipes.load_function(config.recipe, self._folder)
        load_checks(config.checks.own, self._folder)
        for gate in config.judged_by:
            judged_by(gate, self._folder)
        with featurestore.Store.open(self._path) as store:
            training = store.training_set(
                entities, config.service, label=config.label, as_known_at=as_of
            )

        def noted(run: pb.Run) -> None:
            run.manifest_uri = self._kept(training.path / "manifest.json")
            run.contract = training.manifest.contract

        self._queue.change(run.run_id, noted)
        return training, target

    def _judge(
        self, run: pb.Run, config: ModelConfig, training: TrainingSet, target: Target
    ) -> Challenge:
        """Fit and judge a challenger, and note its gates and figures."""
        champion = self._registry.champion_version(run.model)
        live = None if champion is None else self._live(run.model, champion)
        fit = recipes.load_function(config.recipe, self._folder)
        with recipes.limited(self._config.threads):
            challenged = challenge(
                training,
                fit,
                config,
                run.as_of.ToDatetime(UTC),
                live,
                folder=self._folder,
                target=target,
            )
        judged = challenged.judged
        if judged is None:
            return challenged

        def noted(run: pb.Run) -> None:
            run.metrics.clear()
            run.metrics.update(judged.metrics)
            del run.gates[:]
            run.gates.extend(gate.message() for gate in challenged.gates)

        self._queue.judged(run.run_id, champion or "", noted)
        return challenged

    def _live(self, model: str, version: str) -> Live:
        live = self._registry.load(model, version)
        facts = live.facts
        return Live(
            version=version,
            predict=live.predict,
            features=live.features,
            classes=facts.target.classes,
            as_of=facts.as_of,
            trained_before=facts.trained_before,
            contract=live.contract,
            examples=_examples_of(self._place(facts.manifest_uri)),
        )

    def _register(
        self,
        run: pb.Run,
        config: ModelConfig,
        training: TrainingSet,
        challenged: Challenge,
        important: Mapping[str, float],
    ) -> str:
        """Fit what is to serve and register it; return its version."""
        judged = challenged.judged
        if judged is None:
            raise ValueError(f"run {run.run_id} was not judged")
        serving, again = judged.model, not challenged.refused and config.refit == "all"
        if again:
            fit = recipes.load_function(config.recipe, self._folder)
            with recipes.limited(self._config.threads):
                serving = refit(training, fit, config, judged, folder=self._folder)
        parts, as_of = challenged.split, run.as_of.ToDatetime(UTC)
        classes = serving.fitted.classes
        code = hashlib.sha256(recipes.file_of(config.recipe, self._folder).read_bytes())
        facts = Facts(
            run_id=run.run_id,
            features=serving.features,
            contract=training.manifest.contract,
            manifest_uri=self._kept(training.path / "manifest.json"),
            as_of=as_of,
            trained_before=as_of + timedelta(microseconds=1) if again else parts.start,
            rows=training.table.num_rows if again else parts.before.num_rows,
            commit=training.manifest.commit,
            recipe=f"{config.recipe} sha256:{code.hexdigest()}",
            metrics=judged.metrics,
            target=serving.target,
            classes=None if classes is None else recipes.own_classes(serving.estimator, classes),
            refit="all" if again else "none",
            scored_uri=self._kept(self._scored(run, config, parts, judged, important)),
        )
        return self._registry.register(
            run.model, serving.estimator, facts, serving.fitted.metrics, training.table
        )

    def _noted(self, run_id: str, model: str, version: str) -> pb.Run:
        """Return the run with what is known of its version, which is noted if it was not."""
        run = self._queue.get(run_id)
        if run.model_version == version:
            return run
        facts, files = self._registry.facts(model, version), self._registry.files(model, version)

        def noted(run: pb.Run) -> None:
            run.model_version, run.refit = version, facts.refit
            run.contract, run.manifest_uri = facts.contract, facts.manifest_uri
            run.scored_uri = facts.scored_uri
            run.model_files.update(files)

        return self._queue.change(run_id, noted)

    def _important(self, config: ModelConfig, parts: Split, judged: JudgedFit) -> dict[str, float]:
        """Return how much the judged fit leans on each feature, by the first gate's measure."""
        first = judged_by(config.judged_by[0], self._folder).measure
        if first is None:
            return {}
        return scored_rows.importance(judged.model, parts.held_out, first)

    def _scored(
        self,
        run: pb.Run,
        config: ModelConfig,
        parts: Split,
        judged: JudgedFit,
        important: Mapping[str, float],
    ) -> Path:
        """Write what the judged fit said of the training set; return the file."""
        path = self._config.state / "scored" / f"{run.run_id}.parquet"
        labels = pa.table(
            {TIME: parts.table[TIME], config.label: judged.model.target.truth(parts.table)}
        )
        is_new = times_of(parts.table) >= np.datetime64(parts.start.replace(tzinfo=None))
        classes = judged.model.target.classes
        scored_rows.write(path, labels, judged.predictions, classes, is_new, important)
        return path

    def _refuse(self, run: pb.Run, gates: Iterable[Gate | pb.Gate]) -> None:
        messages = [gate.message() if isinstance(gate, Gate) else gate for gate in gates]

        def refused(run: pb.Run) -> None:
            run.state, run.reason = pb.RUN_STATE_REFUSED, refusal(messages)
            del run.gates[:]
            run.gates.extend(messages)

        self._queue.change(run.run_id, refused)


def _examples_of(manifest: Path) -> pa.Table | None:
    """Return what a model was trained on; None if that was erased or collected."""
    try:
        return featurestore.TrainingSet.load(manifest).table
    except (OSError, ErasedError, ManifestError):
        return None
