"""One run, from the examples to the champion.

Above `promote`. The steps are: build the training set, judge the examples, train and register,
judge the challenger, promote. Each leaves its result where the next start finds it (the
training set by its content, the version by the run's id, the gates in the queue), so a run that
was cut off is simply run again, and does nothing twice that others can see.
"""

from __future__ import annotations

import dataclasses
import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from steadfeast import featurestore
from steadfeast.featurestore.errors import NotFoundError, SteadfeastError, UserError
from steadfeast.featurestore.tables.sql import identifier
from steadfeast.pipeline.gates.gates import (
    Champion,
    HeldOut,
    data_gates,
    metrics,
    model_gates,
    refusal,
)
from steadfeast.pipeline.recipes import recipe
from steadfeast.pipeline.registry.registry import Facts
from steadfeast.pipeline.training import scored_rows
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from steadfeast.featurestore.training.manifest import TrainingSet
    from steadfeast.pipeline.config import ModelConfig, PipelineConfig
    from steadfeast.pipeline.queue import RunQueue
    from steadfeast.pipeline.registry.registry import LoadedModel, Registry

TIME, KNOWN_AT = "event_timestamp", "known_at"


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
    missing = [name for name in (TIME, KNOWN_AT, config.label) if name not in schema.names]
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
    query = f"""SELECT * FROM read_parquet($path)
        WHERE {identifier(config.label)} IS NOT NULL
            AND {known_at} <= $as_of AND {at} <= $as_of
            AND ($since IS NULL OR {at} > $since)"""
    since = None if config.since is None else _microseconds(as_of - config.since)
    with duckdb.connect() as con:
        table = con.sql(
            query, params={"path": str(path), "as_of": _microseconds(as_of), "since": since}
        ).to_arrow_table()
    for name in (TIME, KNOWN_AT):
        column = table.column(name).cast(pa.timestamp("us", tz="UTC"), safe=False)
        table = table.set_column(table.column_names.index(name), name, column)
    return table


@dataclasses.dataclass(frozen=True, slots=True)
class Split:
    """A training set in two: what to train on, before `boundary`, and what to judge on."""

    before: pa.Table
    held_out: pa.Table
    boundary: datetime


def split(table: pa.Table, boundary: datetime) -> Split:
    """Split `table` at event time `boundary`, which itself is held out."""
    before = _before(table, boundary)
    return Split(table.filter(before), table.filter(pc.invert(before)), boundary)


def _before(table: pa.Table, boundary: datetime) -> pa.ChunkedArray:
    return pc.less(table.column(TIME), pa.scalar(boundary, pa.timestamp("us", tz="UTC")))


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
        self._queue, self._registry = queue, registry

    def __call__(self, run: pb.Run, check: Callable[[], None]) -> None:
        """Bring `run` to its end: promoted or refused. Anything raised is a failure.

        `check` is called between steps and raises when the run must stop.
        """
        if run.model not in self._config.models:
            raise NotFoundError("model", run.model, self._config.models)
        config = self._config.models[run.model]
        as_of = run.as_of.ToDatetime(UTC)
        version = self._registry.find(run.model, run.run_id)
        if version is None:
            boundary = as_of - config.holdout
            training = self._training_set(run, config, as_of)
            check()
        else:
            facts = self._registry.facts(run.model, version)
            boundary = facts.trained_before
            training = featurestore.TrainingSet.load(Path(facts.manifest_uri))
        if training is None:
            return
        parts = split(training.table, boundary)
        gates = data_gates(
            parts.before, parts.held_out, training.features, config.label, config.gates
        )
        if refusal(gates):
            self._refuse(run, gates)
            return
        if version is None:
            version = self._train(run, config, training, parts)
            check()
        # What is registered is what is judged: it is loaded here as serving will load it.
        challenger = self._registry.load(run.model, version)
        champion = self._registry.champion_version(run.model)
        if champion != version and self._queue.judged_against(run.run_id) != (champion or ""):
            run = self._judge(run, challenger, champion, parts.held_out, gates)
        if refusal(run.gates):
            self._refuse(run, run.gates)
            return
        check()
        self._registry.set_champion(run.model, version)
        self._queue.finish(run.run_id, pb.RUN_STATE_PROMOTED)

    def _training_set(
        self, run: pb.Run, config: ModelConfig, as_of: datetime
    ) -> TrainingSet | None:
        """Build the training set and note it; None, and refused, if no example was known."""
        entities = examples(config, as_of)
        if not entities.num_rows:
            limit, detail = config.gates.min_rows, f"no labelled example was known by {as_of}"
            self._refuse(run, [pb.Gate(name="holdout_rows", limit=limit, detail=detail)])
            return None
        with featurestore.Store.open(self._path) as store:
            training = store.training_set(
                entities, config.service, label=config.label, as_known_at=as_of
            )

        def noted(run: pb.Run) -> None:
            run.manifest_uri = str(training.path / "manifest.json")
            run.contract = training.manifest.contract

        self._queue.change(run.run_id, noted)
        return training

    def _train(self, run: pb.Run, config: ModelConfig, training: TrainingSet, parts: Split) -> str:
        """Fit by the recipe on the earlier part, register, note the version; return it."""
        folder = self._path.resolve().parent
        file = recipe.file_of(config.recipe, folder)
        code = hashlib.sha256(file.read_bytes()).hexdigest()
        fit = recipe.load(config.recipe, folder)
        with recipe.limited(self._config.threads):
            given = fit(dataclasses.replace(training, table=parts.before))
        fitted = recipe.check(given, training.table.column_names, config.recipe, file)
        said = recipe.scores(fitted.estimator, training.table, fitted.features)
        held_out = pc.invert(_before(training.table, parts.boundary)).to_numpy()
        measured = metrics(_labels(parts.held_out, config.label), said[held_out])
        kept = self._config.state / "scored" / f"{run.run_id}.parquet"
        important = scored_rows.importance(
            fitted.estimator, parts.held_out, fitted.features, config.label, config.gates.metric
        )
        told = training.table.select([TIME, config.label])
        scored_rows.write(kept, told, said, held_out, important)
        facts = Facts(
            run_id=run.run_id,
            features=tuple(fitted.features),
            contract=training.manifest.contract,
            manifest_uri=str(training.path / "manifest.json"),
            as_of=run.as_of.ToDatetime(UTC),
            trained_before=parts.boundary,
            rows=parts.before.num_rows,
            commit=training.manifest.commit,
            recipe=f"{config.recipe} sha256:{code}",
            metrics=measured,
            scored_uri=str(kept.resolve()),
        )
        version = self._registry.register(run.model, fitted.estimator, facts, fitted.metrics)

        def registered(run: pb.Run) -> None:
            run.model_version = version
            run.scored_uri = facts.scored_uri
            run.metrics.update(measured)

        self._queue.change(run.run_id, registered)
        return version

    def _judge(
        self,
        run: pb.Run,
        challenger: LoadedModel,
        champion: str | None,
        held_out: pa.Table,
        gates: Sequence[pb.Gate],
    ) -> pb.Run:
        """Compare with the champion, note the gates; return the run with them."""
        config = self._config.models[run.model]
        rows = HeldOut(
            times=held_out.column(TIME).to_numpy().astype("datetime64[us]"),
            labels=_labels(held_out, config.label),
            scores=challenger.predict(held_out),
            contract=challenger.contract,
        )
        live = None if champion is None else self._on(held_out, run.model, champion)
        judged = [*gates, *model_gates(rows, live, config.gates)]

        def noted(run: pb.Run) -> None:
            run.model_version = challenger.version
            run.contract, run.manifest_uri = challenger.contract, challenger.manifest_uri
            run.scored_uri = challenger.facts.scored_uri
            run.metrics.update(challenger.facts.metrics)
            del run.gates[:]
            run.gates.extend(judged)

        return self._queue.judged(run.run_id, champion or "", noted)

    def _on(self, held_out: pa.Table, model: str, version: str) -> Champion:
        """Return how the live model does on the held-out rows."""
        live = self._registry.load(model, version)
        missing = [name for name in live.features if name not in held_out.column_names]
        return Champion(
            version=version,
            scores=None if missing else live.predict(held_out),
            unreadable=f"it reads {', '.join(missing)}, which is served no more" if missing else "",
            contract=live.contract,
            trained_before=live.facts.trained_before,
        )

    def _refuse(self, run: pb.Run, gates: Sequence[pb.Gate]) -> None:
        def refused(run: pb.Run) -> None:
            run.state, run.reason = pb.RUN_STATE_REFUSED, refusal(gates)
            del run.gates[:]
            run.gates.extend(gates)

        self._queue.change(run.run_id, refused)


def _microseconds(time: datetime) -> int:
    """Return `time` as microseconds since 1970."""
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _labels(table: pa.Table, label: str) -> Any:
    """Return the labels as 0 and 1, shape (rows,)."""
    return table.column(label).cast(pa.float64()).to_numpy().astype(int)
