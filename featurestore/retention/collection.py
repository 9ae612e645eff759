"""What goes because it is kept for nothing, or longer than somebody wants.

Above `training` and `served_log`, below `store`. Collected are pins that no manifest needs, what a
killed writer left half done, and, with an age, the pins of older training sets and older files of
the served log. Contracts, manifests and the definitions kept with them stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from steadfeast.featurestore.served_log import KINDS, collect, intakes, named
from steadfeast.featurestore.tables import abandoned, sweep
from steadfeast.featurestore.training import (
    Manifest,
    changes_of,
    manifests,
    remember_removal,
    removals_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import timedelta
    from pathlib import Path

    from feast import FeatureStore

    from steadfeast.featurestore.definitions import Catalog

_YOUNG_SECONDS = 3600.0
"""Files so young may belong to a training set that is being written."""


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
    counts = [] if limit is None else _old_counts(data, limit)
    files += [(path, "of a process that ended without writing all that it served")
              for path in counts]  # fmt: skip
    half = [path for path in abandoned(data) if path.is_file()]
    files += [(path, "its writer has ended without finishing it") for path in half]
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
        sweep(data)
    return found


def _unneeded(
    folder: Path, needed: set[str], now: float, old: set[str]
) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.stem in needed:
            continue
        if path.stem in old or now - path.stat().st_mtime > _YOUNG_SECONDS:
            yield path, "no training set needs it"


def _old_counts(data: Path, limit: datetime) -> list[Path]:
    until = int(limit.timestamp() * 1_000_000)
    return [
        path
        for folder in sorted((data / "served").glob("*"))
        for path, intake in intakes(folder)
        if not intake.alive and intake.last_time < until
    ]


def _old_logs(data: Path, limit: datetime) -> dict[Path, list[Path]]:
    until = int(limit.timestamp() * 1_000_000)
    found: dict[Path, list[Path]] = {}
    for kind in KINDS:
        for folder in sorted((data / kind).glob("*")) if (data / kind).is_dir() else ():
            paths = [folder / name for _, last, name in sorted(named(folder)) if last < until]
            if paths:
                found[folder] = paths
    return found
