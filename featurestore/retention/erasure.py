"""A person's data goes, everywhere that it is kept, when somebody asks for it.

Above `training`, `served_log` and `definitions`, below `store`. Erasing takes an entity's rows out
of the online store, of training sets, of the pins they were made from, of the served log with the
labels and predictions of those requests, of what killed writers left half done, and of what other
packages keep in folders of their own. Training sets that lost rows say so by name ever after, and
nowhere is the key of whom.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from steadfeast.featurestore.errors import (
    DamagedFilesError,
    InvalidKeysError,
    NotFoundError,
    UnsupportedTypeError,
)
from steadfeast.featurestore.served_log import KINDS, named, take_out
from steadfeast.featurestore.tables import (
    abandoned,
    cast_array,
    flat,
    sweep,
    whole_file,
    write_whole,
)
from steadfeast.featurestore.training import DATA, Manifest, manifests, remember_removal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from steadfeast.featurestore.definitions import Catalog

_PLACE = "__steadfeast_place"

Keys = dict[str, str]
"""Join key -> the column that holds it."""
Bits = np.ndarray[Any, np.dtype[np.bool_]]


class Holder(Protocol):
    """Another package that keeps rows of entities in a folder of its own."""

    def __call__(self, file: Path, matches: Matches, *, apply: bool) -> Mapping[str, int]:
        """Count, and with `apply` remove, the rows that match; return where -> how many.

        Args:
            file: The configuration file, whose section says where the folder is.
            matches: Says which rows of a table are those of the entities.
            apply: Remove them.
        """


@dataclass(frozen=True, slots=True)
class Erasure:
    """What goes, or has gone, for one request of erasure.

    Attributes:
        id: Its name, of which errors speak; empty where nothing was removed yet.
        at: When, ISO 8601.
        applied: Whether it was done, or would be.
        online: Feature view -> rows of the online store.
        training_sets: Training set -> rows of it.
        pins: How many pins.
        served: Feature service -> rows of the served log.
        half_files: How many files that a killed writer left half done, whatever is in them.
        elsewhere: What other packages keep -> rows of it.
    """

    id: str
    at: str
    applied: bool
    online: Mapping[str, int]
    training_sets: Mapping[str, int]
    pins: int
    served: Mapping[str, int]
    half_files: int
    elsewhere: Mapping[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Return it in plain JSON types."""
        return asdict(self)


class Matches:
    """Says which rows of a table are those of some entities.

    Args:
        catalog: Knows under which names join keys stand in what was made under a contract.
        keys: Join keys, one row per entity.
    """

    def __init__(self, catalog: Catalog, keys: pa.Table) -> None:
        self._catalog, self._keys = catalog, keys

    def __call__(self, table: pa.Table) -> Bits:
        """Return which rows are theirs, by the contracts that the table names, if it does."""
        named = "contract" in table.column_names
        contracts = table["contract"].unique().to_pylist() if named else [""]
        views = [v for c in contracts for v in self.views(c or "", table.column_names).values()]
        return self.of(table, views)

    def views(self, contract: str, columns: Iterable[str]) -> dict[str, Keys]:
        """Return view -> its join keys, as columns of what was made under a contract."""
        try:
            described = self._catalog.kept_contract(contract).description["views"]
        except NotFoundError:  # then under their own names
            return {"": {name: name for name in columns}}
        return {
            view: {key: held["column"] for key, held in facts["keys"].items()}
            for view, facts in described.items()
        }

    def source_names(self, contract: str, view: str, keys: Iterable[str]) -> Keys:
        """Return join key -> column of the view's source."""
        try:
            source = self._catalog.kept_contract(contract).description["views"][view]["source"]
        except (NotFoundError, KeyError):
            return {key: key for key in keys}
        original = {new: old for old, new in (source or {}).get("field_mapping", {}).items()}
        return {key: original.get(key, key) for key in keys}

    def every_source_name(self) -> list[Keys]:
        """Return all ways in which sources ever named these join keys."""
        found = [{key: key for key in self._keys.column_names}]
        for contract in self._catalog.kept_contracts():
            for view, keys in self.views(contract, ()).items():
                found.append(self.source_names(contract, view, keys))
        return found

    def of(self, table: pa.Table, views: Iterable[Keys]) -> Bits:
        """Return which rows hold an entity: for a view, in all of its keys that are given."""
        found = np.zeros(table.num_rows, np.bool_)
        for view in views:
            there = {
                key: column
                for key, column in view.items()
                if key in self._keys.column_names and column in table.column_names
            }
            if not there or not table.num_rows:
                continue
            try:
                wanted = pa.table(
                    {
                        column: cast_array(
                            flat(self._keys[key]), table.schema.field(column).type, key
                        )
                        for key, column in there.items()
                    }
                )
            except UnsupportedTypeError as error:
                raise InvalidKeysError("", str(error)) from error
            rows = table.select(list(there.values())).append_column(
                _PLACE, pa.array(np.arange(table.num_rows))
            )
            places = rows.join(wanted, list(there.values()), join_type="left semi")[_PLACE]
            found[places.to_numpy()] = True
        return found


def erase_files(
    matches: Matches,
    data: Path,
    online: Mapping[str, int],
    elsewhere: Mapping[str, int],
    *,
    apply: bool,
) -> Erasure:
    """Count, and with `apply` take out, the rows of entities in the files under `data`.

    Args:
        matches: Says whose rows.
        data: Folder of the store.
        online: What goes from the online store.
        elsewhere: What goes from what other packages keep.
        apply: Remove it.

    Raises:
        InvalidKeysError: A value does not fit the key's type.
        ManifestError: A manifest cannot be read.
        DamagedFilesError: Whose rows a file holds cannot be known.
    """
    identity, at = uuid4().hex[:12] if apply else "", datetime.now(UTC).isoformat()
    half_files = len(abandoned(data))
    if apply:
        sweep(data)
    sets: dict[str, int] = {}
    needed: set[str] = set()
    pins: set[Path] = set()
    for path, manifest in manifests(data):
        needed |= {pin["sha256"] for pin in manifest.pins.values()}
        pins |= _pins_of(matches, data / "pins", manifest)
        table = _table(path.parent / DATA)
        gone = matches.of(table, matches.views(manifest.contract, manifest.keys).values())
        if gone.any():
            sets[manifest.id] = rows = int(gone.sum())
            if apply:
                # First what tells, then what it tells of: a crash in between repeats, hides none.
                remember_removal(path.parent, {"erasure": identity, "at": at, "rows": rows})
                _forget_figures(path, manifest)
                with whole_file(path.parent / DATA) as fresh:
                    pq.write_table(table.filter(pa.array(~gone)), fresh, compression="zstd")
    pins |= _pins_of_nobody(matches, data / "pins", needed)
    for file in pins if apply else ():
        file.unlink(missing_ok=True)
    served = _erase_served(matches, data, apply=apply)
    return Erasure(identity, at, apply, online, sets, len(pins), served, half_files, elsewhere)


def _pins_of(matches: Matches, folder: Path, manifest: Manifest) -> set[Path]:
    """Return the pins of a training set that hold rows of the entities."""
    found = set()
    views = matches.views(manifest.contract, manifest.keys)
    for view, pin in manifest.pins.items():
        file = folder / f"{pin['sha256']}.parquet"
        names = matches.source_names(manifest.contract, view, views.get(view, {}))
        if file.is_file() and matches.of(_table(file), [names]).any():
            found.add(file)
    return found


def _pins_of_nobody(matches: Matches, folder: Path, needed: set[str]) -> set[Path]:
    """Return those that no manifest names: whoever made them ended before it wrote one."""
    names = matches.every_source_name()
    files = folder.glob("[!.]*.parquet") if folder.is_dir() else ()
    others = [file for file in files if file.stem not in needed]
    return {f for f in others if matches.of(_table(f), names).any()}


def _erase_served(matches: Matches, data: Path, *, apply: bool) -> dict[str, int]:
    erased: dict[str, int] = {}
    folders = sorted((data / "served").glob("*")) if (data / "served").is_dir() else []
    for folder in folders:
        requests: list[pa.ChunkedArray] = []
        for _, _, name in named(folder):
            path = folder / name
            table = _table(path)
            gone = matches(table)
            if gone.any():
                requests.append(table["request_id"].filter(pa.array(gone)))
                erased[folder.name] = erased.get(folder.name, 0) + int(gone.sum())
                if apply:
                    take_out(path, pa.array(~gone))
        if requests:
            ids = pa.chunked_array([chunk for found in requests for chunk in found.chunks])
            for kind in KINDS[1:]:
                _erase_requests(data / kind / folder.name, ids, apply=apply)
    return erased


def _erase_requests(folder: Path, ids: pa.ChunkedArray, *, apply: bool) -> None:
    """Look for what refers to requests in the files of a folder, and take it out."""
    for _, _, name in named(folder):
        held = _table(folder / name, ["request_id"])
        of_them = pc.is_in(held["request_id"], ids)
        if apply and pc.any(of_them).as_py():
            take_out(folder / name, pc.invert(of_them).combine_chunks())


def _table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a file whole.

    Raises:
        DamagedFilesError: Whose rows it holds cannot be known.
    """
    try:
        return pq.read_table(path, columns=columns, partitioning=None)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise DamagedFilesError({path: str(error).partition("\n")[0]}) from error


def _forget_figures(path: Path, manifest: Manifest) -> None:
    """Leave out least and greatest values: they may be the person's."""
    raw = json.loads(manifest.to_json())
    for facts in raw["columns"].values():
        for name in ("min", "max", "mean"):
            facts.pop(name, None)
    text = json.dumps(raw, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    write_whole(path, text.encode())
