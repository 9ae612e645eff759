"""A copy of a project with the rows of a test in place of its sources. Bottom of `testing`.

The project itself, its registry, its state and its online store are left alone, so a test needs
neither data nor servers, and may run beside whatever serves.
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from feast.infra.offline_stores.file_source import FileSource

from steadfeast.featurestore import Store
from steadfeast.featurestore.config import StoreConfig, load_section, read_mapping
from steadfeast.featurestore.errors import NotFoundError, UserError
from steadfeast.featurestore.tables import TIMESTAMP, arrow_type, is_remote

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from feast import FeatureView

    Rows = Mapping[str, Sequence[Mapping[str, Any]]]

_CODE = (".py", ".yaml", ".yml", ".json", ".toml", ".sql")
_DATA = "steadfeast-data"


class SandboxError(UserError):
    """A project cannot be tested in a sandbox.

    Attributes:
        subject: What is at fault: a file, or a feature view.
        problem: Why, and what would be right.
    """

    def __init__(self, subject: object, problem: str) -> None:
        self.subject, self.problem = subject, problem
        super().__init__(f"{subject}: {problem}")


@contextmanager
def open_sandbox(
    config: Path, folder: Path, rows: Rows, *, until: datetime | None = None
) -> Iterator[Store]:
    """Give the store of a copy of a project, applied and materialized.

    Code and settings are copied; online rows are in a SQLite file, whatever the project has.

    Args:
        config: The project's steadfeast.yaml.
        folder: A new folder for the copy.
        rows: Feature view -> its rows, by the names of the source's columns; a column that a row
            leaves out is null. Views that are not named have none.
        until: The store is materialized to here, and may be asked as of any later time; now,
            when absent.

    Raises:
        NotFoundError: There is no such feature view.
        SandboxError: A source is no Parquet file inside the project, or a row does not fit.
        UserError: The configuration or the definitions are wrong.
    """
    section = load_section(config, "store", StoreConfig)
    repo = section.repo
    _copy(repo, folder, section.data)
    settings = read_mapping(repo / "feature_store.yaml", "Feast's settings")
    settings["registry"] = f"{_DATA}/registry.db"
    settings["online_store"] = {
        "type": "steadfeast.SQLiteOnlineStore",
        "path": f"{_DATA}/online.db",
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    copied = section.model_copy(update={"repo": folder, "data": folder / _DATA})
    with Store(copied) as store:
        views = {str(view.name): view for view in store.defined().views}
        for name in rows:
            if name not in views:
                raise NotFoundError("feature view", name, views)
        for name, view in views.items():
            _write(folder, view, rows.get(name, ()))
        store.apply()
        store.materialize(until or datetime.now(UTC))
        yield store


def _copy(repo: Path, folder: Path, data: Path) -> None:
    """Copy what definitions are made of; hidden folders, environments and state stay behind."""

    def skipped(here: str, names: list[str]) -> list[str]:
        return [
            name
            for name in names
            if name.startswith((".", "__pycache__"))
            or Path(here, name, "pyvenv.cfg").is_file()
            or Path(here, name).resolve() in {data.resolve(), folder.resolve()}
            or (Path(here, name).is_file() and not name.endswith(_CODE))
        ]

    shutil.copytree(repo, folder, ignore=skipped)


def _write(folder: Path, view: FeatureView, rows: Sequence[Mapping[str, Any]]) -> None:
    source: Any = view.batch_source
    subject = f"feature view {view.name!r}"
    if not isinstance(source, FileSource):
        raise SandboxError(
            subject, f"has a {type(source).__name__}, and only files can be replaced"
        )
    inside = not is_remote(source.path) and not PurePath(source.path).is_absolute()
    if not inside or not source.path.endswith(".parquet"):
        problem = f"its source {source.path} is no Parquet file named relative to the repo"
        raise SandboxError(subject, problem)
    types = {field.name: arrow_type(field) for field in (*view.entity_columns, *view.features)}
    original = {new: old for old, new in source.field_mapping.items()}
    columns = {original.get(name, name): kind for name, kind in types.items()}
    columns |= {
        name: TIMESTAMP
        for name in (source.timestamp_field, source.created_timestamp_column)
        if name
    }
    unknown = sorted({name for row in rows for name in row} - columns.keys())
    if unknown:
        raise SandboxError(subject, str(NotFoundError("column", unknown[0], columns)))
    try:
        table = pa.Table.from_pylist([dict(row) for row in rows], pa.schema(columns.items()))
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise SandboxError(subject, f"a row does not fit: {error}") from error
    path = folder / source.path
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
