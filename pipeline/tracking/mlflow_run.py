"""A record, written to MLflow's run of it.

Above `record` and `artifacts`. Written twice it says the same: a run that was cut off is simply
run again. Only what MLflow's own interface shows is written; what is loaded to serve is the
registry's.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from steadfeast.pipeline.recipes import frame
from steadfeast.pipeline.tracking.artifacts import write_artifacts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from steadfeast.pipeline.tracking.record import Record

_PARAMS, _METRICS = 100, 1000
"""That MLflow takes in one request."""
_LONGEST_NAME, _LONGEST_PARAM, _LONGEST_TAG = 250, 6000, 8000
_NOT_IN_NAMES = re.compile(r"[^\w.\- :]")
_EXAMPLE = "input_example.json"
_TWO = 2


def log_record(client: Any, mlflow_run: str, record: Record) -> None:
    """Write parameters, figures, inputs, tags and artifacts.

    Args:
        client: MLflow's `MlflowClient`.
        mlflow_run: Id of MLflow's run.
        record: What is to be written.
    """
    from mlflow.entities import Metric, Param, RunTag  # noqa: PLC0415 - after the registry's switch

    there = client.get_run(mlflow_run).data.params
    params = [
        Param(name, value[:_LONGEST_PARAM])
        for name, value in _named(((name,), value) for name, value in record.params.items())
        if name not in there  # MLflow refuses to change one
    ]
    for first in range(0, len(params), _PARAMS):
        client.log_batch(mlflow_run, params=params[first : first + _PARAMS])
    tags = [RunTag(name, value[:_LONGEST_TAG]) for name, value in _tags(record).items() if value]
    client.log_batch(mlflow_run, tags=tags)
    known_at = int(record.as_of.timestamp() * 1000)
    metrics = [
        Metric(name, figure, known_at, 0)
        for name, figure in _named(
            ((measure, column, value), figure)
            for column, values in record.slices.items()
            for value, measures in values.items()
            for measure, figure in measures.items()
        )
    ]
    for step, (end, measures) in enumerate(record.over_time):
        at = int(end.timestamp() * 1000)
        named = _named(((measure, "over_time"), figure) for measure, figure in measures.items())
        metrics += [Metric(name, figure, at, step) for name, figure in named]
    for first in range(0, len(metrics), _METRICS):
        client.log_batch(mlflow_run, metrics=metrics[first : first + _METRICS])
    client.log_inputs(mlflow_run, datasets=_inputs(mlflow_run, record))
    with tempfile.TemporaryDirectory() as folder:
        write_artifacts(Path(folder), record)
        if record.example is not None:
            _write_description(Path(folder, "model"), mlflow_run, record, record.example)
        client.log_artifacts(mlflow_run, folder)


def origin_tags(asked_by: str, cause: Mapping[str, str], recipe: str) -> dict[str, str]:
    """Return the tags that say where a run came from: known before anything is fitted."""
    tags = {
        "mlflow.user": asked_by or "unknown",
        "mlflow.source.type": "JOB",
        "mlflow.source.name": recipe,
        "steadfeast.cause": cause.get("kind", ""),
        **{f"steadfeast.cause.{name}": cause.get(name, "") for name in _CAUSE},
    }
    return {name: value[:_LONGEST_TAG] for name, value in tags.items() if value}


_CAUSE = ("policy", "summary", "episodes")


def _named(values: Iterable[tuple[tuple[str, ...], Any]]) -> list[tuple[str, Any]]:
    """Return names that MLflow takes, each once: parts of a name are separated by a slash.

    What MLflow has no character for is `_`; names that are the same after that are numbered.
    """
    found: dict[str, Any] = {}
    for parts, value in values:
        cleaned = [_NOT_IN_NAMES.sub("_", part) for part in parts]
        # A name is read as a path: a part that is empty or a dot would lead elsewhere.
        whole = "/".join(part if part.strip(".") else f"_{part}" for part in cleaned)
        name, number = whole[:_LONGEST_NAME], 1
        while name in found:
            number += 1
            name = f"{whole[: _LONGEST_NAME - 8]} {number}"
        found[name] = value
    return list(found.items())


def _tags(record: Record) -> dict[str, str]:
    tags = {
        **origin_tags(record.asked_by, record.cause, record.recipe),
        "steadfeast.as_of": record.as_of.isoformat(),
        "steadfeast.contract": record.manifest.contract,
        "steadfeast.manifest_uri": record.manifest_uri,
        "steadfeast.refused_by": ", ".join(record.refused_by),
        "steadfeast.platform": json.dumps(dict(record.platform)),
    }
    if record.commit:
        tags["mlflow.source.git.commit"] = record.commit
        tags["mlflow.source.git.dirty"] = "false" if record.tree_is_clean else "true"
    return tags


def _inputs(mlflow_run: str, record: Record) -> list[Any]:
    """Return the training set as MLflow's data set; its source is the manifest in the artifacts."""
    from mlflow.entities import Dataset, DatasetInput, InputTag  # noqa: PLC0415 - see log_record

    manifest = record.manifest
    columns = _specs(record.schema, record.schema.names, _stored_type)
    dataset = Dataset(
        manifest.service,
        manifest.id,
        "local",
        json.dumps({"uri": f"runs:/{mlflow_run}/manifest.json"}),
        json.dumps({"mlflow_colspec": columns.to_dict()}),
        json.dumps({"num_rows": manifest.rows, "sha256": manifest.sha256}),
    )
    return [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]


def _write_description(folder: Path, mlflow_run: str, record: Record, example: pa.Table) -> None:
    """Write MLflow's own description of a model: signature and example, and no way to load it."""
    from mlflow.models import Model, ModelSignature  # noqa: PLC0415 - see log_record
    from mlflow.types import ColSpec, DataType, Schema  # noqa: PLC0415

    folder.mkdir()
    lines = [f"{name}=={version}\n" for name, version in record.libraries.items()]
    (folder / "requirements.txt").write_text("".join(lines), encoding="utf-8")
    classes = record.target.classes
    several = len(classes) > _TWO
    names = [str(value) for value in classes] if several else ["prediction"]
    rows = frame(example, record.features)
    split = {
        "columns": list(rows.columns),
        "data": rows.astype(object).where(pd.notna(rows), None).to_numpy().tolist(),
    }
    (folder / _EXAMPLE).write_text(json.dumps(split), encoding="utf-8")
    Model(
        artifact_path="model",
        run_id=mlflow_run,
        signature=ModelSignature(
            _specs(record.schema, record.features, _read_type),
            Schema([ColSpec(DataType.double, name) for name in names]),
        ),
        saved_input_example_info={
            "artifact_path": _EXAMPLE,
            "type": "dataframe",
            "pandas_orient": "split",
        },
        metadata={"steadfeast.contract": record.manifest.contract},
    ).save(folder / "MLmodel")


def _specs(schema: pa.Schema, names: Iterable[str], type_of: Callable[[pa.DataType], Any]) -> Any:
    """Return columns as MLflow's schema, none of them required: each may be null."""
    from mlflow.types import ColSpec, Schema  # noqa: PLC0415 - see log_record

    return Schema([ColSpec(type_of(schema.field(name).type), name, False) for name in names])


def _read_type(kind: pa.DataType) -> Any:
    """Return MLflow's type of a column as an estimator reads it: numbers are doubles."""
    is_number = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    if pa.types.is_boolean(kind) or any(asks(kind) for asks in is_number):
        return _stored_type(pa.float64())
    return _stored_type(kind)


def _stored_type(kind: pa.DataType) -> Any:
    """Return MLflow's type of an Arrow column; what it has none for is a string."""
    from mlflow.types import DataType  # noqa: PLC0415 - see log_record
    from mlflow.types.schema import Array  # noqa: PLC0415

    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return Array(_stored_type(kind.value_type))
    if pa.types.is_dictionary(kind):
        return _stored_type(kind.value_type)
    if pa.types.is_integer(kind):
        bits = kind.bit_width + pa.types.is_unsigned_integer(kind)
        return DataType.integer if bits <= _INT else DataType.long
    chosen: tuple[tuple[Callable[[pa.DataType], bool], Any], ...] = (
        (pa.types.is_boolean, DataType.boolean),
        (pa.types.is_float16, DataType.float),
        (pa.types.is_float32, DataType.float),
        (pa.types.is_floating, DataType.double),
        (pa.types.is_decimal, DataType.double),
        (pa.types.is_timestamp, DataType.datetime),
        (pa.types.is_date, DataType.datetime),
        (pa.types.is_binary, DataType.binary),
    )
    return next((name for asks, name in chosen if asks(kind)), DataType.string)


_INT = 32
"""Bits of MLflow's `integer`."""
