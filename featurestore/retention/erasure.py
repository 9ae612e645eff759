"""What goes on purpose: a person's data, at once, and what is old, when somebody asks for it.

Above `catalog`, `replay` and `logfiles`, below `store`. Erasing takes an entity's rows out of the
online store, of training sets, of the pins they were made from, and of the served log, with the
labels of those requests. Training sets that lost rows say so by name ever after, and nowhere is
the key of whom. Collecting removes pins that no manifest needs, and what is older than somebody
says. Contracts, manifests and the definitions kept with them stay.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from steadfeast.featurestore.errors import InvalidKeysError, NotFoundError, UnsupportedTypeError
from steadfeast.featurestore.served_log.files import collect, named, take_out
from steadfeast.featurestore.tables.casting import cast_array, flat
from steadfeast.featurestore.tables.whole_files import whole_file, write_whole
from steadfeast.featurestore.training.manifest import (
    DATA,
    MANIFEST,
    Manifest,
    remember_removal,
    removals_of,
)
from steadfeast.featurestore.training.pins import pin_path
from steadfeast.featurestore.training.replay import changes_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import timedelta
    from pathlib import Path

    from feast import FeatureStore

    from steadfeast.featurestore.definitions.catalog import Catalog

_PLACE = "__steadfeast_place"
_YOUNG_SECONDS = 3600.0
"""Files so young may belong to a training set that is being written."""

Keys = dict[str, str]
"""Join key -> the column that holds it."""


@dataclass(frozen=True, slots=True)
class Erasure:
    """What was removed for one request of erasure.

    Attributes:
        id: Its name, of which errors speak.
        at: When, ISO 8601.
        online: Feature view -> rows that were removed from the online store.
        training_sets: Training set -> rows that were removed from it.
        pins: How many pins were removed.
        served: Feature service -> rows that were removed from the served log.
    """

    id: str
    at: str
    online: Mapping[str, int]
    training_sets: Mapping[str, int]
    pins: int
    served: Mapping[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Return it in plain JSON types."""
        return asdict(self)


def erase_files(catalog: Catalog, data: Path, keys: pa.Table, online: Mapping[str, int]) -> Erasure:
    """Take the rows of entities out of the files under `data`.

    Args:
        catalog: Knows under which names join keys stand in what was made under a contract.
        data: Folder of the store.
        keys: Join keys, one row per entity.
        online: What was removed from the online store.

    Raises:
        InvalidKeysError: A value does not fit the key's type.
        ManifestError: A manifest cannot be read.
    """
    identity, at = uuid4().hex[:12], datetime.now(UTC).isoformat()
    sets: dict[str, int] = {}
    pins: set[Path] = set()
    for path, manifest in manifests(data):
        views = _views(catalog, manifest.contract, manifest.keys)
        table = pq.read_table(path.parent / DATA, partitioning=None)
        gone = _matching(table, views.values(), keys)
        for view, pin in manifest.pins.items():
            file = pin_path(data / "pins", pin["sha256"])
            if (
                file.is_file()
                and _matching(
                    pq.read_table(file, partitioning=None),
                    [_source_names(catalog, manifest.contract, view, views.get(view, {}))],
                    keys,
                ).any()
            ):
                pins.add(file)
        if gone.any():
            sets[manifest.id] = rows = int(gone.sum())
            # First what tells, then what it tells of: a crash in between repeats, and hides none.
            remember_removal(path.parent, {"erasure": identity, "at": at, "rows": rows})
            _forget_figures(path, manifest)
            with whole_file(path.parent / DATA) as fresh:
                pq.write_table(table.filter(pa.array(~gone)), fresh, compression="zstd")
    for file in pins:
        file.unlink()
    return Erasure(identity, at, online, sets, len(pins), _erase_served(catalog, data, keys))


def _erase_served(catalog: Catalog, data: Path, keys: pa.Table) -> dict[str, int]:
    erased: dict[str, int] = {}
    folders = sorted((data / "served").glob("*")) if (data / "served").is_dir() else []
    for folder in folders:
        requests: list[pa.ChunkedArray] = []
        for _, _, name in named(folder):
            path = folder / name
            table = pq.read_table(path, partitioning=None)
            contracts = table["contract"].unique().to_pylist()
            views = [v for c in contracts for v in _views(catalog, c, table.column_names).values()]
            gone = _matching(table, views, keys)
            if gone.any():
                requests.append(table["request_id"].filter(pa.array(gone)))
                take_out(path, pa.array(~gone))
                erased[folder.name] = erased.get(folder.name, 0) + int(gone.sum())
        if requests:
            ids = pa.chunked_array([chunk for found in requests for chunk in found.chunks])
            labels = data / "labels" / folder.name
            for _, _, name in named(labels):
                held = pq.read_table(labels / name, columns=["request_id"], partitioning=None)
                of_them = pc.is_in(held["request_id"], ids)
                if pc.any(of_them).as_py():
                    take_out(labels / name, pc.invert(of_them).combine_chunks())
    return erased


def _views(catalog: Catalog, contract: str, columns: Iterable[str]) -> dict[str, Keys]:
    """Return view -> its join keys, as columns of what was made under a contract."""
    try:
        described = catalog.kept_contract(contract).description["views"]
    except NotFoundError:  # then under their own names
        return {"": {name: name for name in columns}}
    return {
        view: {key: held["column"] for key, held in facts["keys"].items()}
        for view, facts in described.items()
    }


def _source_names(catalog: Catalog, contract: str, view: str, keys: Keys) -> Keys:
    """Return join key -> column of the view's source."""
    try:
        source = catalog.kept_contract(contract).description["views"][view]["source"]
    except (NotFoundError, KeyError):
        return {key: key for key in keys}
    original = {new: old for old, new in (source or {}).get("field_mapping", {}).items()}
    return {key: original.get(key, key) for key in keys}


def _matching(
    table: pa.Table, views: Iterable[Keys], keys: pa.Table
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which rows hold one of the entities: for a view, in all of its keys that are given."""
    found = np.zeros(table.num_rows, np.bool_)
    for view in views:
        there = {
            key: column
            for key, column in view.items()
            if key in keys.column_names and column in table.column_names
        }
        if not there or not table.num_rows:
            continue
        try:
            wanted = pa.table(
                {
                    column: cast_array(flat(keys[key]), table.schema.field(column).type, key)
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


def _forget_figures(path: Path, manifest: Manifest) -> None:
    """Leave out least and greatest values: they may be the person's."""
    raw = json.loads(manifest.to_json())
    for facts in raw["columns"].values():
        for name in ("min", "max", "mean"):
            facts.pop(name, None)
    text = json.dumps(raw, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    write_whole(path, text.encode())


@dataclass(frozen=True, slots=True)
class Collectable:
    """What `gc` would remove, or has removed.

    Attributes:
        files: `(path under the data folder, bytes, why)` of each.
        unreplayable: Training set -> why it cannot be replayed without them.
        losing: Training sets that are left with their sources alone.
    """

    files: tuple[tuple[str, int, str], ...]
    unreplayable: Mapping[str, str]
    losing: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """The size of all of it."""
        return sum(size for _, size, _ in self.files)

    def as_dict(self) -> dict[str, Any]:
        """Return it in plain JSON types."""
        return {
            "files": [{"path": path, "bytes": size, "why": why} for path, size, why in self.files],
            "bytes": self.bytes,
            "unreplayable": dict(self.unreplayable),
            "losing": list(self.losing),
        }


def collect_garbage(
    feast: FeatureStore,
    catalog: Catalog,
    data: Path,
    older_than: timedelta | None,
    *,
    apply: bool,
) -> Collectable:
    """Find, and with `apply` remove, pins that nothing needs and what is older than an age.

    Args:
        feast: Feast's store.
        catalog: The services.
        data: Folder of the store.
        older_than: Pins of training sets that were built before, and files of the served log and
            of labels whose last row is from before; none, when absent.
        apply: Remove them.

    Raises:
        ManifestError: A manifest cannot be read.
    """
    now = datetime.now(UTC)
    limit = None if older_than is None else now - older_than
    needed: set[str] = set()
    losing: list[tuple[Path, Manifest]] = []
    for path, manifest in manifests(data):
        if not manifest.pins or removals_of(path.parent):
            continue
        if limit is not None and datetime.fromisoformat(manifest.created_at) < limit:
            losing.append((path, manifest))
        else:
            needed |= {pin["sha256"] for pin in manifest.pins.values()}
    losing = [
        (path, manifest)
        for path, manifest in losing
        if not needed.issuperset(pin["sha256"] for pin in manifest.pins.values())
    ]
    old = {pin["sha256"] for _, manifest in losing for pin in manifest.pins.values()}
    files = [
        (path, f"its training set is from before {limit:%Y-%m-%d}" if path.stem in old else why)
        for path, why in _unneeded(data / "pins", needed, now.timestamp(), old)
    ]
    logs = {} if limit is None else _old_logs(data, limit)
    files += [(path, f"its last row is from before {limit:%Y-%m-%d}")
              for paths in logs.values() for path in paths]  # fmt: skip
    unreplayable = {}
    for _, manifest in losing:
        changed = changes_of(feast, catalog, manifest)
        if changed:
            unreplayable[manifest.id] = "; ".join(changed)
    found = Collectable(
        tuple((str(p.relative_to(data)), p.stat().st_size, why) for p, why in files),
        unreplayable,
        tuple(manifest.id for _, manifest in losing if manifest.id not in unreplayable),
    )
    if apply:
        for path, _ in losing:
            remember_removal(path.parent, {"collected": "pins", "at": now.isoformat()})
        for folder, paths in logs.items():
            collect(folder, paths)
        for path, _ in files:
            path.unlink(missing_ok=True)
    return found


def _unneeded(
    folder: Path, needed: set[str], now: float, old: set[str]
) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.stem in needed:
            continue
        if path.stem in old or now - path.stat().st_mtime > _YOUNG_SECONDS:
            yield path, "no training set needs it"


def _old_logs(data: Path, limit: datetime) -> dict[Path, list[Path]]:
    until = int(limit.timestamp() * 1_000_000)
    found: dict[Path, list[Path]] = {}
    for kind in ("served", "labels"):
        for folder in sorted((data / kind).glob("*")) if (data / kind).is_dir() else ():
            paths = [folder / name for _, last, name in sorted(named(folder)) if last < until]
            if paths:
                found[folder] = paths
    return found


def manifests(data: Path) -> Sequence[tuple[Path, Manifest]]:
    """Return path and content of every manifest under `data`.

    Raises:
        ManifestError: One cannot be read.
    """
    paths = sorted((data / "training").glob(f"[!.]*/{MANIFEST}"))
    return [(path, Manifest.load(path)) for path in paths]
