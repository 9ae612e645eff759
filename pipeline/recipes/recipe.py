"""What a user writes to have a model retrained: one function, a recipe.

Above `config`. A recipe gets the training set and gives a fitted estimator::

    from steadfeast import Fitted, frame

    def fit(training: TrainingSet) -> Fitted:
        features = training.features
        model = HistGradientBoostingClassifier(random_state=0)
        model.fit(frame(training.table, features), training.table["late"].to_numpy())
        return Fitted(model, features, {})

`frame` is the one way from Arrow to what an estimator reads, in training and in serving alike.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd
import pyarrow as pa
from threadpoolctl import threadpool_limits

from steadfeast.featurestore.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from steadfeast.featurestore.training import TrainingSet
    from steadfeast.measures import Task


class Recipe(Protocol):
    """From a training set to a fitted estimator; whatever it raises ends the run."""

    def __call__(self, training: TrainingSet, /, *more: Any) -> Fitted:
        """Fit on `training`."""


class RecipeError(UserError):
    """A recipe cannot be loaded, or gives something that cannot be used.

    Attributes:
        spec: `module:function`, as configured.
        file: The file that the module was looked for in.
    """

    def __init__(self, spec: str, file: Path, problem: str) -> None:
        self.spec, self.file = spec, file
        super().__init__(f"recipe {spec} in {file}: {problem}")


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a recipe gives back.

    Attributes:
        estimator: A fitted estimator with scikit-learn's interface: `predict_proba` of classes,
            `predict` of numbers and rankings.
        features: The columns that it reads, in its order.
        metrics: The recipe's own figures; recorded, never compared.
        classes: What the columns of `predict_proba` mean, where the recipe encodes the labels;
            None means the estimator's own `classes_`.
        settings: What the recipe has chosen, as a number of rounds. A recipe that takes an
            argument `settings` gets it back when the model that serves is fitted on everything.
    """

    estimator: Any
    features: tuple[str, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    classes: Sequence[Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def file_of(spec: str, folder: Path) -> Path:
    """Return the file that the module of `spec` is in."""
    return folder.joinpath(*spec.partition(":")[0].split(".")).with_suffix(".py")


def load_function(spec: str, folder: Path) -> Callable[..., Any]:
    """Import a function of the user's own, `module:function`, the module a file in `folder`.

    The file is read anew at every call, so an edit counts from the next run on; what it
    imports from its own folder is read once.

    Raises:
        RecipeError: No such file or function, or the module cannot be imported.
    """
    name = spec.partition(":")[2]
    file = file_of(spec, folder)
    if not file.is_file():
        raise RecipeError(spec, file, "there is no such file")
    # A name of its own, so that `train` of one folder is never `train` of another.
    unique = f"steadfeast_recipe_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    described = importlib.util.spec_from_file_location(unique, file)
    if described is None or described.loader is None:
        raise RecipeError(spec, file, "is not a Python file")
    module = importlib.util.module_from_spec(described)
    sys.modules[unique] = module
    sys.path.insert(0, str(folder))
    try:
        described.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        raise RecipeError(spec, file, f"the module cannot be imported: {error}") from error
    finally:
        sys.path.remove(str(folder))
    function = getattr(module, name, None)
    if not callable(function):
        found = "has no function" if function is None else "has something that is no function:"
        raise RecipeError(spec, file, f"the module {found} {name}")
    return function  # type: ignore[no-any-return]


def check(fitted: Any, available: Sequence[str], task: Task, spec: str, file: Path) -> Fitted:
    """Return what a recipe gave if it can be served.

    Raises:
        RecipeError: It is no `Fitted`, reads columns that the training set lacks, or cannot do
            what the task asks for.
    """
    if not isinstance(fitted, Fitted):
        raise RecipeError(spec, file, f"returned {type(fitted).__name__}, not Fitted")
    missing = [name for name in fitted.features if name not in available]
    if missing or not fitted.features:
        raise RecipeError(
            spec, file, f"features {missing or 'are empty'}; the training set has {list(available)}"
        )
    asked = "predict_proba" if task.is_classification else "predict"
    if not callable(getattr(fitted.estimator, asked, None)):
        kind = type(fitted.estimator).__name__
        raise RecipeError(spec, file, f"{kind} has no {asked}, which task {task} needs")
    told = fitted.classes is not None or hasattr(fitted.estimator, "classes_")
    if task.is_classification and not told:
        kind = type(fitted.estimator).__name__
        problem = f"{kind} is not fitted, or knows no classes_; give Fitted(classes=...)"
        raise RecipeError(spec, file, problem)
    return fitted


def frame(table: pa.Table, features: Sequence[str]) -> pd.DataFrame:
    """Return columns `features` of `table` as an estimator reads them, in that order.

    Numbers and booleans are float64 with NaN for null, whatever the batch holds, so a batch
    without nulls has the types of one with; everything else is an object column with None.
    """
    columns: dict[str, Any] = {}
    for name in features:
        column = table.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if _is_number(column.type):
            columns[name] = column.cast(pa.float64(), safe=False).to_numpy()
        else:
            columns[name] = column.to_numpy().astype(object)
    return pd.DataFrame(columns, copy=False)


def limited(threads: int) -> Any:
    """Limit the native thread pools that the calling thread uses, as a context manager.

    OpenMP keeps its limit per thread: enter it in the thread that fits. Libraries loaded after
    it was entered are not limited, hence the import.
    """
    import sklearn.ensemble  # noqa: F401, PLC0415 - loads OpenMP, which must be there to be limited

    return threadpool_limits(limits=threads)


def _is_number(kind: pa.DataType) -> bool:
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    return any(is_kind(kind) for is_kind in kinds)
