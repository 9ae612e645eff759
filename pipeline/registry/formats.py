"""The files that a model is kept in, by the library that made it; nothing is ever unpickled.

Bottom of `registry`. Boosters go to files of their own libraries, which hold numbers and no code:
XGBoost's UBJSON, LightGBM's text, CatBoost's binary, ONNX. Everything else is scikit-learn's and
goes to skops, which builds only types that are listed. A scikit-learn `Pipeline` that ends in a
booster is two files: the steps before it, and the booster. A blend is the files of its parts, each
under the part's number.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from steadfeast.featurestore.errors import SteadfeastError, UserError
from steadfeast.pipeline.recipes import Blend, Fitted, own_classes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

TRUSTED_TYPES = (
    "numpy.dtype",
    "sklearn._loss.link.Interval",
    "sklearn._loss.loss.HalfGammaLoss",
    "sklearn._loss.loss.HalfPoissonLoss",
    "sklearn._loss.loss.HalfTweedieLoss",
    "sklearn._loss.loss.HalfTweedieLossIdentity",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
    "sklearn.gaussian_process.kernels.ConstantKernel",
    "sklearn.gaussian_process.kernels.Product",
    "sklearn.gaussian_process.kernels.RBF",
    "sklearn.metrics._dist_metrics.EuclideanDistance64",
    "sklearn.neighbors._ball_tree.BallTree",
    "sklearn.neighbors._kd_tree.KDTree",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.tree._tree.Tree",
)
"""What scikit-learn's own estimators hold beyond what skops knows; more per model by `trusted`."""

SKOPS = "model.skops"
LAST = "last."
BLEND = "blend.json"


class UntrustedModelError(SteadfeastError):
    """A model file that must not be loaded.

    Attributes:
        what: Which model or version.
    """

    def __init__(self, what: str, problem: str) -> None:
        self.what = what
        super().__init__(f"{what}: {problem}")


class MissingLibraryError(UserError):
    """The library that reads a model file is not installed.

    Attributes:
        library: Its name.
    """

    def __init__(self, library: str, file: str) -> None:
        self.library = library
        super().__init__(f"{file} needs {library}, which is not installed: pip install {library}")


class OnnxModel:
    """A model in ONNX, with scikit-learn's interface.

    Args:
        content: The file's bytes, as `model.SerializeToString()` gives them.
        classes: What the columns of its probabilities mean; empty for a regressor.
        features: Names of the columns that it reads, in its order; empty where it reads one
            array of numbers, or has one input of its own per column.
    """

    def __init__(
        self, content: bytes, classes: Sequence[Any] = (), features: Sequence[str] = ()
    ) -> None:
        runtime = _library("onnxruntime", "model.onnx")
        self.content = content
        self.classes_ = np.array(list(classes))
        self.feature_names_in_ = np.array(list(features), object)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = runtime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )

    def predict(self, rows: Any) -> Any:
        """Return the first output, shape (rows,)."""
        return np.asarray(self._run(rows)[0]).reshape(len(rows))

    def predict_proba(self, rows: Any) -> Any:
        """Return the probabilities of the classes, shape (rows, classes)."""
        given = self._run(rows)[-1]
        if isinstance(given, list):  # one dictionary a row, as converters make by default
            given = [[row[value] for value in self.classes_.tolist()] for row in given]
        return np.asarray(given, np.float64)

    def _run(self, rows: Any) -> list[Any]:
        inputs = self._session.get_inputs()
        array = np.asarray(rows)
        if len(inputs) == 1:
            feed = {inputs[0].name: array.astype(np.float32)}
        else:
            feed = {
                one.name: array[:, [place]].astype(object if "string" in one.type else np.float32)
                for place, one in enumerate(inputs)
            }
        return list(self._session.run(None, feed))


class LightGBMModel:
    """A LightGBM booster read from its text, with scikit-learn's interface."""

    def __init__(self, text: str, classes: Sequence[Any]) -> None:
        self._booster = _library("lightgbm", "model.txt").Booster(model_str=text)
        self.classes_ = np.array(list(classes))
        self.feature_names_in_ = np.array(self._booster.feature_name(), object)

    def predict(self, rows: Any) -> Any:
        """Return the booster's answers, shape (rows,)."""
        return np.asarray(self._booster.predict(rows, num_threads=1))

    def predict_proba(self, rows: Any) -> Any:
        """Return the probabilities of the classes, shape (rows, classes)."""
        given = np.asarray(self._booster.predict(rows, num_threads=1))
        return given if given.ndim > 1 else np.column_stack([1 - given, given])


class BoosterPipeline:
    """A scikit-learn `Pipeline` and the booster that it ends in, read from two files."""

    def __init__(self, before: Any, last: Any) -> None:
        self._before, self._last = before, last
        self.classes_: Any = getattr(last, "classes_", ())
        self.feature_names_in_ = getattr(before, "feature_names_in_", None)

    def predict(self, rows: Any) -> Any:
        """Return the booster's answers, shape (rows,)."""
        return self._last.predict(self._before.transform(rows))

    def predict_proba(self, rows: Any) -> Any:
        """Return the probabilities of the classes, shape (rows, classes)."""
        return self._last.predict_proba(self._before.transform(rows))


@dataclass(frozen=True, slots=True)
class Format:
    """How the models of one library are kept.

    Attributes:
        library: Its name, as Python imports it.
        file: Name of the file.
        write: From an estimator to the file's bytes.
        read: From the bytes and the facts beside it to an estimator.
    """

    library: str
    file: str
    write: Callable[[Any], bytes]
    read: Callable[[bytes, Mapping[str, Any]], Any]

    FACTS: ClassVar[str] = "model.json"

    def wrote(self, estimator: Any) -> bool:
        """Whether it is a model of this library."""
        return type(estimator).__module__.partition(".")[0] == self.library


def _library(name: str, file: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingLibraryError(name, file) from error


def _through_a_file(save: Callable[[str], object], file: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, file)
        save(str(path))
        return path.read_bytes()


def _from_a_file(model: Any, content: bytes, file: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, file)
        path.write_bytes(content)
        model.load_model(str(path))
    return model


def _one_of(library: str, names: Sequence[str], asked: str, file: str) -> Any:
    if asked not in names:
        raise UntrustedModelError(file, f"{asked} is no model of {library}")
    return getattr(_library(library, file), asked)()


_XGBOOST = ("XGBClassifier", "XGBRegressor", "XGBRanker", "XGBRFClassifier", "XGBRFRegressor")
_CATBOOST = ("CatBoostClassifier", "CatBoostRegressor", "CatBoostRanker", "CatBoost")
FORMATS = (
    Format(
        "xgboost",
        "model.ubj",
        lambda model: _through_a_file(model.save_model, "model.ubj"),
        lambda content, facts: _from_a_file(
            _one_of("xgboost", _XGBOOST, facts["type"], "model.ubj"), content, "model.ubj"
        ),
    ),
    Format(
        "lightgbm",
        "model.txt",
        lambda model: str(model.booster_.model_to_string()).encode(),
        lambda content, facts: LightGBMModel(content.decode(), facts["classes"]),
    ),
    Format(
        "catboost",
        "model.cbm",
        lambda model: _through_a_file(model.save_model, "model.cbm"),
        lambda content, facts: _from_a_file(
            _one_of("catboost", _CATBOOST, facts["type"], "model.cbm"), content, "model.cbm"
        ),
    ),
)
_ONNX = Format(
    "onnx",
    "model.onnx",
    lambda model: bytes(model.content),
    lambda content, facts: OnnxModel(content, facts["classes"], facts["features"]),
)


def write(estimator: Any) -> dict[str, bytes]:
    """Return the files that an estimator is kept in, by name."""
    if isinstance(estimator, Blend):
        facts = [
            {
                "features": one.features,
                "classes": own_classes(one.estimator, one.classes),
                "weight": weight,
                "share": share,
            }
            for one, weight, share in zip(
                estimator.parts, estimator.weights, estimator.shares, strict=True
            )
        ]
        parts = {
            f"{place}.{name}": content
            for place, one in enumerate(estimator.parts)
            for name, content in write(one.estimator).items()
        }
        return {BLEND: json.dumps(facts).encode(), **parts}
    chosen = _format_of(estimator)
    if chosen is not None:
        return {chosen.file: chosen.write(estimator), Format.FACTS: _facts(estimator)}
    steps: list[Any] = getattr(estimator, "steps", None) or [("", None)]
    last = _format_of(steps[-1][1])
    if last is None:
        return {SKOPS: _skops().dumps(estimator)}
    from sklearn.pipeline import Pipeline  # noqa: PLC0415 - reading facts needs no scikit-learn

    before = Pipeline([*steps[:-1], (steps[-1][0], "passthrough")])
    return {
        SKOPS: _skops().dumps(before),
        LAST + last.file: last.write(steps[-1][1]),
        LAST + Format.FACTS: _facts(steps[-1][1]),
    }


def read(files: Mapping[str, bytes], trusted: Sequence[str], what: str) -> Any:
    """Return the estimator that `write` kept.

    Args:
        files: By name.
        trusted: Types that skops may build in addition to `TRUSTED_TYPES`.
        what: Which model it is, for errors.

    Raises:
        UntrustedModelError: It holds types that nobody listed.
        MissingLibraryError: The library that made it is not installed.
    """
    if BLEND in files:
        return _blend(files, trusted, what)
    for known in (*FORMATS, _ONNX):
        if known.file in files:
            return known.read(files[known.file], json.loads(files[Format.FACTS]))
    estimator = _from_skops(files[SKOPS], trusted, what)
    for known in (*FORMATS, _ONNX):
        if LAST + known.file in files:
            facts = json.loads(files[LAST + Format.FACTS])
            return BoosterPipeline(estimator, known.read(files[LAST + known.file], facts))
    return estimator


def libraries_of(files: Mapping[str, bytes]) -> list[str]:
    """Return the distributions beside scikit-learn that made the files."""
    made = [known.library for known in FORMATS if any(name.endswith(known.file) for name in files)]
    distributions = packages_distributions()
    return sorted({name for library in made for name in distributions.get(library, ())})


def _blend(files: Mapping[str, bytes], trusted: Sequence[str], what: str) -> Blend:
    parts, given = [], json.loads(files[BLEND])
    for place, facts in enumerate(given):
        prefix = f"{place}."
        own = {n.removeprefix(prefix): c for n, c in files.items() if n.startswith(prefix)}
        estimator = read(own, trusted, what)
        parts.append(
            Fitted(estimator, tuple(facts["features"]), classes=tuple(facts["classes"]) or None)
        )
    return Blend(parts, [one["weight"] for one in given], [one["share"] for one in given])


def _from_skops(content: bytes, trusted: Sequence[str], what: str) -> Any:
    skops = _skops()
    allowed = [*TRUSTED_TYPES, *trusted]
    unknown = sorted(set(skops.get_untrusted_types(data=content)) - set(allowed))
    if unknown:
        raise UntrustedModelError(
            what,
            f"holds types not listed in trusted_types: {', '.join(unknown)}. If you know them, "
            f"add to the model in steadfeast.yaml: trusted_types: [{', '.join(unknown)}]",
        )
    return skops.loads(content, trusted=allowed)


def _skops() -> Any:
    import skops.io  # noqa: PLC0415 - half a second that listing runs need not wait

    return skops.io


def _format_of(estimator: Any) -> Format | None:
    if isinstance(estimator, OnnxModel):
        return _ONNX
    return next((known for known in FORMATS if known.wrote(estimator)), None)


def _facts(estimator: Any) -> bytes:
    classes = np.asarray(getattr(estimator, "classes_", ())).tolist()
    features = [str(name) for name in getattr(estimator, "feature_names_in_", ())]
    facts = {"type": type(estimator).__name__, "classes": classes, "features": features}
    return json.dumps(facts).encode()
