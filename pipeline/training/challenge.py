"""A challenger, from a training set to its gates and to the model that serves. Pure.

Above `gates` and `recipes`. No store, queue, registry or clock: what a run does with a training
set, and what a backtest of policies does with the same code. The steps are: split at the newest
stretch of known labels, judge the data, fit on what came before it, judge the model there; then,
if it may serve, fit once more on everything known.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from steadfeast.measures import OneClassError, measure_named, measures_of
from steadfeast.pipeline import recipes
from steadfeast.pipeline.gates import (
    Examples,
    Gate,
    HeldOut,
    Judged,
    Rival,
    data_gates,
    load_checks,
    model_gates,
    own_gates,
    refusal,
)
from steadfeast.pipeline.recipes import Blend, Fitted, Target, load_function, scores
from steadfeast.pipeline.training.blending import blended, newest, stretches, together

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from steadfeast.featurestore.training import TrainingSet
    from steadfeast.measures import Floats
    from steadfeast.pipeline.config import GateConfig, ModelConfig
    from steadfeast.pipeline.recipes import Recipe

TIME, KNOWN_AT = "event_timestamp", "known_at"
MOST_LABELS = 0.95
"""Of the labels that were known this soon, where no `label_delay` is configured."""

_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Split:
    """A training set in time: what to fit on, what to judge on, and what is newer.

    Attributes:
        table: All rows, in their order.
        start: Event time that the hold-out begins at.
        end: Event time that it ends before; labels of later rows are not all known.
        delay: How long labels take: as configured, or measured.
    """

    table: pa.Table
    start: datetime
    end: datetime
    delay: timedelta

    @property
    def is_held_out(self) -> np.ndarray:
        """Which rows are judged on, shape (rows,)."""
        times = times_of(self.table)
        return (times >= _instant(self.start)) & (times < _instant(self.end))

    @property
    def before(self) -> pa.Table:
        """The rows that the judged model is fitted on."""
        return self.table.filter(pa.array(times_of(self.table) < _instant(self.start)))

    @property
    def held_out(self) -> pa.Table:
        """The rows that it is judged on."""
        return self.table.filter(pa.array(self.is_held_out))


@dataclass(frozen=True, slots=True)
class Live:
    """The live model, as a challenger is compared with it.

    Attributes:
        version: Its version.
        predict: Its predictions for the rows of a table.
        features: The columns that it reads.
        classes: What its predictions mean; see `Target.classes`.
        as_of: Knowledge time of its training set: labels known later are new to it.
        trained_before: It was fitted on rows before this event time.
        contract: The contract that it was trained under.
        examples: What it was trained on, for the data to be compared with; None if that is gone.
    """

    version: str
    predict: Callable[[pa.Table], Floats]
    features: tuple[str, ...]
    classes: tuple[Any, ...]
    as_of: datetime
    trained_before: datetime
    contract: str = ""
    examples: pa.Table | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A fitted estimator with what it reads and predicts; what a check of one's own is given.

    Attributes:
        fitted: What the recipe gave.
        target: What it predicts.
    """

    fitted: Fitted
    target: Target

    @property
    def estimator(self) -> Any:
        """The estimator itself."""
        return self.fitted.estimator

    @property
    def features(self) -> tuple[str, ...]:
        """The columns that it reads."""
        return tuple(self.fitted.features)

    def predict(self, table: pa.Table) -> Floats:
        """Return its predictions: a probability, one per class, or a value for each row."""
        fitted = self.fitted
        return scores(fitted.estimator, table, fitted.features, self.target, fitted.classes)

    def live(self, version: str, as_of: datetime, trained_before: datetime) -> Live:
        """Return it as the live model that a later challenger is compared with."""
        return Live(
            version, self.predict, self.features, self.target.classes, as_of, trained_before
        )


@dataclass(frozen=True, slots=True)
class JudgedFit:
    """The fit that was judged.

    Attributes:
        model: Fitted on what came before the hold-out.
        predictions: Its own, for every row of the training set.
        metrics: Figures on the held-out rows, by name.
    """

    model: Model
    predictions: Floats
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Challenge:
    """What became of a challenger.

    Attributes:
        split: What it was fitted and judged on.
        gates: In the order in which they were judged.
        judged: The judged fit; None if the data were refused.
    """

    split: Split
    gates: tuple[Gate, ...]
    judged: JudgedFit | None = None

    @property
    def refused(self) -> str:
        """Why it may not serve, in one line; empty if it may."""
        return refusal(self.gates)


def split(table: pa.Table, config: ModelConfig, as_of: datetime) -> Split:
    """Split a training set at the newest stretch of known labels, `holdout` long.

    The stretch ends `label_delay` before `as_of`, or at the newest known label if that is older;
    without a configured delay, 95 % of the labels were known that soon. Rows that are newer are
    fitted on in the end, and not judged on: those whose labels came early are no fair sample.
    """
    delay = config.label_delay
    if delay is None:
        delay = _measured_delay(table)
    end = as_of - delay
    if table.num_rows:
        end = min(end, pc.max(table.column(TIME)).as_py())
    end += _MICROSECOND
    return Split(table, end - config.holdout, end, delay)


def challenge(
    training: TrainingSet,
    fit: Recipe,
    config: ModelConfig,
    as_of: datetime,
    live: Live | None = None,
    *,
    folder: Path | None = None,
    target: Target | None = None,
) -> Challenge:
    """Fit a challenger on what came before the hold-out, and judge it there.

    Args:
        training: Of rows that were known by `as_of`, with columns `event_timestamp`, `known_at`
            and the label.
        fit: The recipe.
        config: How the model is retrained.
        as_of: Knowledge time.
        live: The model that serves; None if there is none.
        folder: Where the modules of measures and checks of one's own are; None means where
            Python looks.
        target: What is predicted; None reads it from the training set's labels.

    Raises:
        LabelsError: The labels are not of the task.
        RecipeError: The recipe gives something that cannot be used.
    """
    target = target or target_of(training.table, config)
    parts = split(training.table, config, as_of)
    before, held_out = parts.before, parts.held_out
    examples = Examples(
        training.table,
        before,
        held_out,
        training.features,
        training.manifest.keys,
        target,
        None if live is None else live.examples,
        _setting(parts, config),
    )
    gates = data_gates(examples, config)
    for name, check in load_checks(config.checks.own, folder or Path()):
        gates += own_gates(name, check, training.table)
    if refusal(gates):
        return Challenge(parts, tuple(gates))
    each = stretches(before, times_of(before), config, target)
    fits = [fit_on(fit, training, one, config, folder) for one in each.values()]
    fitted, chosen = blended(fits, tuple(each), held_out, times_of(held_out), target)
    model = Model(fitted, target)
    predictions = model.predict(training.table)
    rows = HeldOut(
        held_out,
        target.sample(held_out, predictions[parts.is_held_out]),
        times_of(held_out),
        tuple(training.manifest.keys),
        training.manifest.contract,
    )
    judged = [judged_by(gate, folder) for gate in config.judged_by]
    rival = None if live is None else _rival(live, rows, target)
    gates = [*gates, *chosen, *model_gates(judged, rows, rival, model, config.min_rows)]
    metrics = figures(target, rows, judged)
    return Challenge(parts, tuple(gates), JudgedFit(model, predictions, metrics))


def refit(
    training: TrainingSet,
    fit: Recipe,
    config: ModelConfig,
    judged: JudgedFit,
    *,
    folder: Path | None = None,
) -> Model:
    """Return the model that serves: fitted on everything known, with the judged settings.

    A blend keeps its stretches and weights. With `refit: none` it is the judged one itself.
    """
    if config.refit == "none":
        return judged.model
    fitted, table = judged.model.fitted, training.table
    if isinstance(fitted.estimator, Blend):
        blend, times = fitted.estimator, times_of(table)
        fits = [
            fit_on(fit, training, newest(table, times, share), config, folder, part.settings)
            for part, share in zip(blend.parts, blend.shares, strict=True)
        ]
        fitted = together(fits, blend.weights, blend.shares)
    else:
        fitted = fit_on(fit, training, table, config, folder, fitted.settings)
    return Model(fitted, judged.model.target)


def fit_on(
    fit: Recipe,
    training: TrainingSet,
    table: pa.Table,
    config: ModelConfig,
    folder: Path | None,
    settings: Mapping[str, Any] | None = None,
) -> Fitted:
    """Return what the recipe gives for the rows of `table`, checked."""
    extra = {}
    if settings and "settings" in inspect.signature(fit).parameters:
        extra["settings"] = settings
    given = fit(replace(training, table=table), **extra)
    file = recipes.file_of(config.recipe, folder or Path())
    return recipes.check(given, training.table.column_names, config.task, config.recipe, file)


def target_of(table: pa.Table, config: ModelConfig) -> Target:
    """Return what the model is to predict, by the configuration and the labels.

    Raises:
        LabelsError: The labels are not of the task.
    """
    return Target.of(table, config.label, config.task, positive=config.positive, group=config.group)


def judged_by(gate: GateConfig, folder: Path | None) -> Judged:
    """Load what a gate names.

    Raises:
        NotFoundError: There is no such measure.
        MeasureError: The measure cannot be used.
        RecipeError: The check cannot be loaded.
    """
    if gate.metric is not None:
        return Judged(gate, measure_named(gate.metric, gate.options, folder))
    return Judged(gate, check=load_function(str(gate.check), folder or Path()))


def figures(target: Target, rows: HeldOut, judged: Sequence[Judged]) -> dict[str, float]:
    """Return the figures of the judged fit on the held-out rows: the task's, then the gates'."""
    own = [gate.measure for gate in judged if gate.measure is not None]
    found: dict[str, float] = {}
    for measure in measures_of(target.task, *own):
        try:
            found[measure.name] = measure.value(rows.sample)
        except OneClassError:
            continue
    return found


def times_of(table: pa.Table) -> np.ndarray:
    """Return event times, `datetime64[us]` in UTC, shape (rows,)."""
    return _times(table.column(TIME))


def new_to(table: pa.Table, as_of: datetime, trained_before: datetime) -> np.ndarray:
    """Return which rows are later than a model's training set, or known later; shape (rows,)."""
    unseen: np.ndarray = times_of(table) >= _instant(trained_before)
    if KNOWN_AT in table.column_names:
        unseen |= _times(table.column(KNOWN_AT)) > _instant(as_of)
    return unseen


def _times(column: pa.ChunkedArray) -> np.ndarray:
    stamps = column.cast(pa.timestamp("us", tz="UTC"), safe=False)
    return np.asarray(stamps.to_numpy().astype("datetime64[us]"))


def _instant(time: datetime) -> np.datetime64:
    return np.datetime64(time.astimezone(UTC).replace(tzinfo=None), "us")


def _measured_delay(table: pa.Table) -> timedelta:
    if KNOWN_AT not in table.column_names or not table.num_rows:
        return timedelta(0)
    took = _times(table.column(KNOWN_AT)) - times_of(table)
    microseconds = np.quantile(took.astype(np.int64), MOST_LABELS, method="inverted_cdf")
    return max(timedelta(0), timedelta(microseconds=int(microseconds)))


def _setting(parts: Split, config: ModelConfig) -> str:
    """Say which stretch is held out, and what would fill it."""
    stretch = f"held out are {parts.start:%Y-%m-%d %H:%M} to {parts.end:%Y-%m-%d %H:%M}"
    if not parts.table.num_rows:
        return stretch
    newest = pc.max(parts.table.column(TIME)).as_py()
    measured = _measured_delay(parts.table)
    taken = f"95 % of the labels are known {_days(measured)} after the request"
    fit_for = "lengthen holdout, or lower min_rows"
    if config.label_delay is not None and measured > config.label_delay:
        fit_for = f"set label_delay: {_days(measured)}"
    return f"{stretch}; the newest known label is of {newest:%Y-%m-%d %H:%M}; {taken}; {fit_for}"


def _days(length: timedelta) -> str:
    hours = length / timedelta(hours=1)
    return f"{hours / 24:.3g}d" if hours >= 24 else f"{hours:.3g}h"  # noqa: PLR2004 - hours of a day


def _rival(live: Live, rows: HeldOut, target: Target) -> Rival:
    table = rows.table
    unseen = new_to(table, live.as_of, live.trained_before)
    missing = [name for name in live.features if name not in table.column_names]
    if missing:
        why = f"it reads {', '.join(missing)}, which is served no more"
        return Rival(live.version, None, unseen, why, live.contract)
    prediction = target.aligned(live.predict(table), live.classes)
    return Rival(live.version, prediction, unseen, contract=live.contract)
