"""What a record is made of: parameters, figures by slice and over time, an example, libraries.

Bottom of `tracking`. Pure but for `environment`, which looks at what the process has loaded.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from steadfeast.measures import MeasureError, OneClassError
from steadfeast.pipeline.recipes import Blend

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from steadfeast.featurestore.training import Manifest
    from steadfeast.measures import Measure, Sample
    from steadfeast.pipeline.config import ModelConfig
    from steadfeast.pipeline.recipes import Fitted

MOST_SLICES = 20
"""Values of a column that figures are given for: the most frequent ones."""
PARTS = 12
"""Of the hold-out that figures over time are of, at most."""
COMMON = 5
"""Rows that must share a text for it to stand in the example."""
NULL = "(null)"
"""How a slice of nulls is named."""

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_NO_PARAMETERS = frozenset({"checks", "gates", "entities", "trusted_types"})


def parameters(fitted: Fitted | None, config: ModelConfig) -> dict[str, str]:
    """Return the parameters of an estimator, of its recipe and of the configuration, as texts.

    Of a blend the first fit's parameters are given: the recipe makes all of them alike. None
    stands for no model; only the configuration is given then.
    """
    found: dict[str, Any] = {
        f"config.{name}": value
        for name, value in config.model_dump(mode="json", exclude=set(_NO_PARAMETERS)).items()
        if value not in (None, [], ())
    }
    if fitted is None:
        return {name: str(value) for name, value in found.items()}
    one = fitted
    if isinstance(fitted.estimator, Blend):
        blend = fitted.estimator
        found |= {"blend.weights": blend.weights, "blend.shares": blend.shares}
        one = blend.parts[0]
    found |= {f"recipe.{name}": value for name, value in one.settings.items()}
    found["estimator"] = type(one.estimator).__name__
    given = getattr(one.estimator, "get_params", None)
    own = given() if callable(given) else {}
    for name, value in own.items():
        if not hasattr(value, "get_params"):  # its own parameters are listed beside it
            found[f"estimator.{name}"] = value
    return {name: _ADDRESS.sub("", str(value)) for name, value in found.items()}


def slices(
    table: pa.Table,
    sample: Sample,
    columns: Sequence[str],
    measures: Sequence[Measure],
    min_rows: int,
) -> dict[str, dict[str, dict[str, float]]]:
    """Return column -> value -> measure -> figure, for values with `min_rows` rows.

    Args:
        table: The held-out rows.
        sample: The same rows with their predictions.
        columns: Of the rows, none of lists or records.
        measures: What is measured.
        min_rows: Fewer say nothing.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in columns:
        column = table[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        encoded = pc.dictionary_encode(column.combine_chunks(), null_encoding="encode")
        codes = np.asarray(encoded.indices)
        values = encoded.dictionary.to_pylist()
        rows = np.bincount(codes, minlength=len(values))
        most = sorted(range(len(values)), key=lambda code: (-rows[code], str(values[code])))
        for code in most[:MOST_SLICES]:
            if rows[code] < min_rows:
                continue
            value = NULL if values[code] is None else str(values[code])
            found.setdefault(name, {})[value] = _figures(sample.take(codes == code), measures)
    return found


def over_time(
    times: np.ndarray, sample: Sample, measures: Sequence[Measure], min_rows: int
) -> list[tuple[datetime, dict[str, float]]]:
    """Return the end of each part of the hold-out, and its figures; parts have `min_rows` rows.

    Args:
        times: Event times, `datetime64[us]` in UTC, shape (rows,).
        sample: Rows and predictions.
        measures: What is measured.
        min_rows: Of a part, at least; with fewer rows than twice that there is one part.
    """
    if not len(times):
        return []
    order = np.argsort(times, kind="stable")
    count = max(1, min(PARTS, len(times) // min_rows))
    found = []
    for rows in np.array_split(order, count):
        end = times[rows[-1]].astype("datetime64[us]").item().replace(tzinfo=UTC)
        found.append((end, _figures(sample.take(rows), measures)))
    return found


def example(table: pa.Table, features: Sequence[str], manifest: Manifest) -> pa.Table:
    """Return one row of the features' middle values and commonest texts, which is nobody's.

    Null stands for features of people, and where no text is common.
    """
    columns = {}
    for name in features:
        column = table[name]
        personal = manifest.columns.get(name, {}).get("pii")
        columns[name] = pa.array([None if personal else _typical(column)], column.type)
    return pa.table(columns)


def environment() -> tuple[dict[str, str], dict[str, str]]:
    """Return the version of each distribution that this process has loaded, and its platform."""
    owners = _owners()
    names: set[str] = set()
    files: dict[str, set[str]] = {}
    for module, loaded in tuple(sys.modules.items()):
        top = module.partition(".")[0]
        if len(owners.get(top, ())) == 1:
            names.update(owners[top])
        elif top in owners:  # a namespace, such as google: only files tell its parts apart
            files.setdefault(top, set()).add(str(getattr(loaded, "__file__", None)))
    for top, paths in files.items():
        names.update(name for name in owners[top] if not paths.isdisjoint(_files(name)))
    libraries = {name: importlib.metadata.version(name) for name in sorted(names, key=str.lower)}
    machine = {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
    }
    return libraries, machine


@cache
def _owners() -> Mapping[str, tuple[str, ...]]:
    """Return module -> the distributions that have files in it."""
    listed = importlib.metadata.packages_distributions()
    return {module: tuple(dict.fromkeys(names)) for module, names in listed.items()}


@cache
def _files(distribution: str) -> frozenset[str]:
    listed = importlib.metadata.files(distribution) or ()
    return frozenset(str(Path(str(one.locate()))) for one in listed if one.suffix in {".py", ".so"})


def _figures(sample: Sample, measures: Sequence[Measure]) -> dict[str, float]:
    found = {}
    for measure in measures:
        try:
            value = measure.value(sample)
        except (OneClassError, MeasureError):
            continue
        if np.isfinite(value):
            found[measure.name] = value
    return found


def _typical(column: pa.ChunkedArray) -> Any:
    kind = column.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind):
        values = column.drop_null()
        if pa.types.is_floating(kind):
            values = values.filter(pc.is_finite(values))
        return pc.quantile(values, 0.5, interpolation="lower")[0].as_py()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind):
        counts = pc.value_counts(column.drop_null()).to_pylist()
        common = [one for one in counts if one["counts"] >= COMMON]
        most = max(common, key=lambda one: (one["counts"], one["values"]), default=None)
        return None if most is None else most["values"]
    return None
