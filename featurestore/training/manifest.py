"""Training sets as they are kept: the data, and the manifest that says what it is.

Above `evidence`; imports no Feast, so that what only reads training sets starts at once.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from steadfeast.featurestore import notebook
from steadfeast.featurestore.errors import ErasedError, ManifestError
from steadfeast.featurestore.tables import content_sha256, data_frame, write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd

DATA, MANIFEST = "data.parquet", "manifest.json"
_REMOVALS = "removals.json"


def removals_of(folder: Path) -> list[dict[str, Any]]:
    """Return what was removed from a training set on purpose, the oldest first.

    Each has `at`, and `erasure` with `rows`, or `collected` with what.
    """
    path = folder / _REMOVALS
    if not path.is_file():
        return []
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def remember_removal(folder: Path, removal: Mapping[str, Any]) -> None:
    """Note beside a training set that something is removed from it."""
    held = [*removals_of(folder), dict(removal)]
    write_whole(folder / _REMOVALS, json.dumps(held, indent=1).encode())


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a training set was made of; JSON beside its data.

    Attributes:
        id: First 16 hexadecimal digits of the SHA-256 of everything below but `created_at` and
            `pins`.
        service: The feature service.
        contract: SHA-256 of its contract.
        label: Label column, if there is one.
        features: Feature columns.
        keys: Entity columns that were joined on, request fields included.
        created_at: When it was built, ISO 8601.
        as_known_at: The knowledge time asked for, ISO 8601, or null.
        rows: How many.
        sha256: Of the canonical Arrow content of the data.
        entities_sha256: Of that of the entity frame.
        sources: `{view, path, sha256, size}` of each file that was read; hash and size are null
            for what is not a local file.
        pins: View -> `{sha256, rows, bytes}` of the copy of the source rows that were used;
            empty when they were only hashed. Not part of the identity.
        columns: Name -> `{type, nulls, ...}`; `pii` is true of those tagged so.
        commit: Git commit of the definitions, with "+changes" when files differ; empty without git.
        libraries: Versions of what executed.
        event_time_only: Rows counted from their event time on, whenever they became known.
        unknown_then: View -> entity rows that have no value of it because every row that was due
            by its event time became known later; none with `event_time_only`.
    """

    id: str
    service: str
    contract: str
    label: str | None
    features: tuple[str, ...]
    keys: tuple[str, ...]
    created_at: str
    as_known_at: str | None
    rows: int
    sha256: str
    entities_sha256: str
    sources: tuple[Mapping[str, Any], ...]
    columns: Mapping[str, Mapping[str, Any]]
    commit: str
    libraries: Mapping[str, str]
    event_time_only: bool = False
    unknown_then: Mapping[str, int] = field(default_factory=dict)
    pins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def facts(self) -> list[str]:
        """What it is in a few words each, for a person; empty where there is nothing to say."""
        known = f"as known at {self.as_known_at}" if self.as_known_at else ""
        return [
            self.service,
            notebook.plural(self.rows, "row"),
            notebook.plural(len(self.features), "feature"),
            f"label {self.label}" if self.label else "",
            known,
            f"contract {self.contract[: notebook.DIGITS]}",
        ]

    def __repr__(self) -> str:
        """Say which it is; `to_json` has everything."""
        return notebook.line("Manifest", self.id, *self.facts)

    def _repr_html_(self) -> str:
        columns = [
            (name, column.get("type"), column.get("nulls"), self._role(name))
            for name, column in self.columns.items()
        ]
        sources = [
            (one.get("view"), one.get("path"), str(one.get("sha256") or "")[: notebook.DIGITS])
            for one in self.sources
        ]
        return notebook.card(
            f"Manifest {self.id}",
            [*self.facts, f"built {self.created_at}", f"content {self.sha256[: notebook.DIGITS]}"],
            notebook.table(("column", "type", "nulls", "role"), columns),
            notebook.table(("view", "source", "SHA-256"), sources),
        )

    def _role(self, name: str) -> str:
        if name == self.label:
            return "label"
        return "feature" if name in self.features else "key" if name in self.keys else ""

    def to_json(self) -> str:
        """Return the manifest as JSON, sorted and indented."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read one.

        Raises:
            ManifestError: It is missing, not JSON, or not a manifest.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ManifestError(path, f"cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ManifestError(path, f"is not JSON: {error}") from error
        names = {item.name for item in fields(cls)}
        if isinstance(raw, dict):
            for name, nothing in (("pins", {}), ("event_time_only", False), ("unknown_then", {})):
                raw.setdefault(name, nothing)  # older ones lack what came later
        if not isinstance(raw, dict) or set(raw) != names:
            odd = sorted(names.symmetric_difference(raw)) if isinstance(raw, dict) else []
            raise ManifestError(path, f"is not a manifest; fields at fault: {', '.join(odd)}")
        for name in ("features", "keys", "sources"):
            raw[name] = tuple(raw[name])
        return cls(**raw)


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Features and label, with the evidence of what they are.

    Attributes:
        table: Entity columns, then features, in the order of the entity frame.
        manifest: What it was made of.
        path: Folder that holds `data.parquet` and `manifest.json`.
    """

    table: pa.Table
    manifest: Manifest
    path: Path

    def __repr__(self) -> str:
        """Say which it is; no value is shown."""
        return notebook.line("TrainingSet", self.manifest.id, *self.manifest.facts)

    def _repr_html_(self) -> str:
        notes = [notebook.table(("note",), [(note,) for note in self.notes])] if self.notes else []
        title = f"Training set {self.manifest.id}"
        return notebook.card(title, self.manifest.facts, notebook.preview(self.table), *notes)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the feature columns, in the order of the service."""
        return self.manifest.features

    @property
    def label(self) -> str | None:
        """Name of the label column."""
        return self.manifest.label

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing of it, one sentence each."""
        return tuple(
            f"{rows} of {self.manifest.rows} rows have no value of view {view}: what was due by "
            "its event time became known after the row's event_timestamp. If the source was "
            "filled afterwards, and its created column says when that was, ask for event times "
            "alone: training_set(..., event_time_only=True), --event-time-only, or "
            "store.training.event_time_only"
            for view, rows in self.manifest.unknown_then.items()
        )

    @property
    def entities(self) -> pa.Table:
        """The entity frame it was built from."""
        return self.table.drop_columns(list(self.features))

    def to_pandas(self) -> pd.DataFrame:
        """Return the table as a data frame, whole numbers beside nulls exact."""
        return data_frame(self.table)

    @classmethod
    def load(cls, path: Path) -> TrainingSet:
        """Read the training set whose manifest is at `path`, checking its content hash.

        Raises:
            ManifestError: The manifest or the data is missing, unreadable or altered.
            ErasedError: Rows of it were erased.
        """
        manifest = Manifest.load(path)
        for removal in removals_of(path.parent):
            if "erasure" in removal:
                raise ErasedError(manifest.id, removal["erasure"], removal["at"], removal["rows"])
        try:
            table = pq.read_table(path.parent / DATA, partitioning=None)
        except (OSError, pa.ArrowInvalid) as error:
            raise ManifestError(path, f"its {DATA} cannot be read: {error}") from error
        found = content_sha256(table)
        if found != manifest.sha256:
            raise ManifestError(path, f"its {DATA} holds {found}, not {manifest.sha256}")
        return cls(table, manifest, path.parent)


def manifests(data: Path) -> Sequence[tuple[Path, Manifest]]:
    """Return path and content of every manifest under `data`.

    Raises:
        ManifestError: One cannot be read.
    """
    paths = sorted((data / "training").glob(f"[!.]*/{MANIFEST}"))
    return [(path, Manifest.load(path)) for path in paths]
