"""The measures by name: what each is of, its direction, its options, and one's own.

Above `figures`. Names are those of scikit-learn's scorers. Where a scorer begins with `neg_`, the
name without it is the same figure with its own sign, of which less is better.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from steadfeast.featurestore.errors import NotFoundError, UserError
from steadfeast.measures import figures as f
from steadfeast.measures.sample import Sample, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from steadfeast.measures.figures import Floats, Interval

GROUP = "steadfeast.measures"
GROUPS = "groups"
"""Name of the column that says which rows of a ranking belong together."""

_NEGATED = "neg_"


class MeasureError(UserError):
    """A measure cannot be used.

    Attributes:
        spec: As configured.
    """

    def __init__(self, spec: str, problem: str) -> None:
        self.spec = spec
        super().__init__(f"measure {spec}: {problem}")


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of merit.

    Attributes:
        name: Of the figure; the last part of its metric's name.
        function: From truth and prediction (see `Sample`), then one argument per name in
            `columns`, to one number, or to one per row, whose mean is the figure.
        tasks: What it is of; empty means of any task.
        unit: Of the value.
        lower_is_better: Whether a fall is good.
        interval: From the same arguments to the ends of an interval; None takes that of the mean
            over the rows, or resamples rows.
        columns: More columns of the rows that the function takes, by name.
        options: Numbers that may be set by name, as `at` of recall.
    """

    name: str
    function: Callable[..., float | Floats]
    tasks: frozenset[Task] = frozenset()
    unit: str = "ratio"
    lower_is_better: bool = False
    interval: Callable[..., Interval] | None = None
    columns: tuple[str, ...] = ()
    options: frozenset[str] = field(default_factory=frozenset)

    def value(self, sample: Sample) -> float:
        """Return the figure.

        Raises:
            OneClassError: The labels do not differ, and the figure needs that.
            MeasureError: A function of the user's own raised, or asks for a missing column.
        """
        return float(np.mean(self._call(self.function, sample)))

    def ends(self, sample: Sample) -> Interval:
        """Return the ends of the interval of 95 % for rows that are drawn independently."""
        if self.interval is not None and sample.prediction.ndim == 1:
            low, high = self._call(self.interval, sample)
            return float(low), float(high)
        values = np.asarray(self._call(self.function, sample))
        if values.ndim:
            return f.of_mean(values)
        return f.resampled(lambda rows: self.value(sample.take(rows)), len(sample))

    def drop(self, expected: float, found: float) -> float:
        """Return how much worse than `expected` the figure is, in its unit; below 0 is better."""
        return found - expected if self.lower_is_better else expected - found

    def suits(self, task: Task) -> bool:
        """Whether it is a figure of such models."""
        return not self.tasks or task in self.tasks

    def with_options(self, options: Mapping[str, float]) -> Measure:
        """Return the measure with its options set, which its name then tells: `recall_at_0.4`.

        Raises:
            MeasureError: It has no such option.
        """
        unknown = sorted(set(options) - self.options)
        if unknown:
            takes = ", ".join(sorted(self.options)) or "no options"
            raise MeasureError(self.name, f"has no option {', '.join(unknown)}; it takes {takes}")
        if not options:
            return self
        told = "".join(f"_{name}_{value:g}" for name, value in sorted(options.items()))
        interval = None if self.interval is None else partial(self.interval, **options)
        function = partial(self.function, **options)
        return replace(self, name=self.name + told, function=function, interval=interval)

    def _call(self, function: Callable[..., Any], sample: Sample) -> Any:
        missing = [name for name in self.columns if name not in sample.columns]
        if missing:
            raise MeasureError(self.name, f"needs column {', '.join(missing)} of the rows")
        more = [sample.columns[name] for name in self.columns]
        return function(sample.truth, sample.prediction, *more)


_CLASSES = frozenset({Task.BINARY, Task.MULTICLASS})
_BINARY, _MANY = frozenset({Task.BINARY}), frozenset({Task.MULTICLASS})
_NUMBERS = frozenset({Task.REGRESSION})
_AT = frozenset({"at"})
_LABEL = "the label's"
_CONFUSION = (
    ("precision", f.precision, f.precision_interval),
    ("recall", f.recall, f.recall_interval),
    ("f1", f.f1, f.f1_interval),
)
_ALL = (
    Measure("roc_auc", f.roc_auc, _BINARY, interval=f.roc_auc_interval),
    Measure("roc_auc_ovr", f.roc_auc, _MANY),
    Measure(
        "average_precision",
        f.average_precision,
        _CLASSES,
        interval=f.average_precision_interval,
    ),
    Measure("accuracy", f.accuracy, _CLASSES, interval=f.accuracy_interval, options=_AT),
    Measure(
        "balanced_accuracy",
        f.balanced_accuracy,
        _CLASSES,
        interval=f.balanced_accuracy_interval,
        options=_AT,
    ),
    *(
        Measure(name, function, _BINARY, interval=interval, options=_AT)
        for name, function, interval in _CONFUSION
    ),
    *(
        Measure(f"{name}_{how}", partial(function, average=how), _CLASSES, options=_AT)
        for name, function, _ in _CONFUSION
        for how in ("macro", "weighted")
    ),
    Measure("log_loss", f.log_loss, _CLASSES, "nats", True),
    Measure("brier_score", f.brier_score, _CLASSES, lower_is_better=True),
    Measure(
        "calibration_error",
        f.calibration_error,
        _CLASSES,
        lower_is_better=True,
        interval=f.calibration_interval,
    ),
    Measure(
        "root_mean_squared_error",
        f.root_mean_squared_error,
        _NUMBERS,
        _LABEL,
        True,
        f.root_mean_squared_error_interval,
    ),
    Measure("mean_absolute_error", f.mean_absolute_error, _NUMBERS, _LABEL, True),
    Measure(
        "mean_absolute_percentage_error",
        f.mean_absolute_percentage_error,
        _NUMBERS,
        lower_is_better=True,
    ),
    Measure(
        "mean_pinball_loss",
        f.mean_pinball_loss,
        _NUMBERS,
        _LABEL,
        True,
        options=frozenset({"quantile"}),
    ),
    Measure("r2", f.r2, _NUMBERS, interval=f.r2_interval),
    Measure(
        "ndcg",
        f.ndcg,
        frozenset({Task.RANKING}),
        columns=(GROUPS,),
        options=frozenset({"top"}),
    ),
)
MEASURES: Mapping[str, Measure] = MappingProxyType({measure.name: measure for measure in _ALL})
"""The measures that come with Steadfeast, by name."""

SHORT: Mapping[str, str] = MappingProxyType(
    {
        "auc": "roc_auc",
        "rmse": "root_mean_squared_error",
        "mae": "mean_absolute_error",
        "mape": "mean_absolute_percentage_error",
        "pinball": "mean_pinball_loss",
    }
)
"""Short names that a configuration may use."""

_FIRST = {
    Task.BINARY: "roc_auc",
    Task.MULTICLASS: "roc_auc_ovr",
    Task.REGRESSION: "root_mean_squared_error",
    Task.RANKING: "ndcg",
}


def measure_named(
    spec: str, options: Mapping[str, float] | None = None, folder: Path | None = None
) -> Measure:
    """Return a measure of ours, one that a package registered, or the user's own function.

    Args:
        spec: A name of `MEASURES` or `SHORT`; the same after `neg_`, which is the figure with the
            other sign, of which more is better; one that an installed package registered under
            the entry points `steadfeast.measures`; or `module:function`. What is loaded is a
            `Measure`, or a function of truth and prediction, of which more is better; its further
            arguments are columns of the rows by name.
        options: Of the measure, as `{"at": 0.4}` of recall.
        folder: Where the module of one's own may be too, beside where Python looks.

    Raises:
        NotFoundError: Nobody registered one of this name.
        MeasureError: The function cannot be imported, or the measure has no such option.
    """
    measure = _ours(spec)
    if measure is None:
        measure = _loaded(spec, folder)
    return measure.with_options(options or {})


def measures_of(task: Task, *more: Measure) -> tuple[Measure, ...]:
    """Return the measures of a task, the one that usually decides first, then those of `more`."""
    first = MEASURES[_FIRST[task]]
    ours = [first, *(one for one in _ALL if task in one.tasks and one is not first)]
    if task is Task.BINARY:  # of two classes, the positive one is what is asked about
        ours = [one for one in ours if not one.name.endswith(("_macro", "_weighted"))]
    names = {one.name for one in ours}
    return (*ours, *(one for one in more if one.name not in names))


def _ours(spec: str) -> Measure | None:
    name = SHORT.get(spec, spec)
    if name in MEASURES:
        return MEASURES[name]
    positive = name.removeprefix(_NEGATED)
    measure = MEASURES.get(SHORT.get(positive, positive))
    if measure is None or not measure.lower_is_better:
        return None
    function, interval = measure.function, measure.interval
    return replace(
        measure,
        name=f"{_NEGATED}{measure.name}",
        function=partial(_minus, function),
        lower_is_better=False,
        interval=None if interval is None else partial(_turned, interval),
    )


def _loaded(spec: str, folder: Path | None) -> Measure:
    module, _, name = spec.partition(":")
    if name:
        path = [] if folder is None else [str(folder)]
        sys.path[:0] = path
        try:
            loaded = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise MeasureError(spec, f"cannot be imported: {error}") from error
        finally:
            del sys.path[: len(path)]
    else:
        registered = entry_points(group=GROUP)
        points = list(registered.select(name=spec))
        if not points:
            raise NotFoundError("measure", spec, [*MEASURES, *SHORT, *registered.names])
        name, loaded = spec, points[0].load()
    if isinstance(loaded, Measure):
        return replace(loaded, name=name)
    if not callable(loaded):
        raise MeasureError(spec, "is no function of truth and prediction")
    return Measure(name, loaded, columns=_further_arguments(loaded, spec))


def _further_arguments(function: Callable[..., Any], spec: str) -> tuple[str, ...]:
    """Return the names of what a function takes beyond truth and prediction."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # written in C, and says nothing of its arguments
        return ()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < 2 and not any(p.kind is p.VAR_POSITIONAL for p in parameters):  # noqa: PLR2004
        raise MeasureError(spec, "must take truth and prediction")
    return tuple(p.name for p in positional[2:] if p.default is p.empty)


def _minus(function: Callable[..., Any], *given: Any, **options: float) -> Any:
    return -function(*given, **options)


def _turned(interval: Callable[..., Interval], *given: Any, **options: float) -> Interval:
    low, high = interval(*given, **options)
    return -high, -low
