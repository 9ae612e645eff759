"""What a training set read, kept by its content, so that it can be read again.

Above `offline` and `service`, below `training`. A pin holds the rows of one view's source that a
join used: as many as the entity frame has, at most, and those that tie with them. Its name is the
SHA-256 of the file, so that training sets which used the same rows share it, and what was altered
shows.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from steadfeast.featurestore.offline import can_pin, pinned, unknown_then, used_rows
from steadfeast.featurestore.tables import EVENT_TIMESTAMP, finish, half_file, hash_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pyarrow as pa
    from feast.repo_config import RepoConfig

    from steadfeast.featurestore.definitions import ServicePlan


def make_pins(
    config: RepoConfig,
    plan: ServicePlan,
    entities: pa.Table,
    folder: Path,
    *,
    as_known: bool = True,
) -> dict[str, dict[str, Any]]:
    """Copy what a join of `plan` to `entities` uses into `folder`.

    Returns:
        View -> `{sha256, rows, bytes}`; a view that is not read from files here has none.

    Raises:
        SourceError: A source cannot be read.
    """
    pins = {}
    for view in plan.views:
        if not can_pin(config, view.view):
            continue
        with half_file(folder / view.name) as half:
            rows = used_rows(config, view.view, entities, half, as_known=as_known)
            digest, size = hash_file(half), half.stat().st_size
            finish(half, pin_path(folder, digest))
        pins[view.name] = {"sha256": digest, "rows": rows, "bytes": size}
    return pins


def lost_to_knowledge(
    config: RepoConfig, plan: ServicePlan, entities: pa.Table, features: pa.Table
) -> dict[str, int]:
    """Return view -> entity rows without a value of it because none was known yet.

    Only rows that have no value at all of a view are looked at again.

    Args:
        config: Feast's configuration.
        plan: The service.
        entities: The entity frame.
        features: What was joined to it.

    Raises:
        SourceError: A source cannot be read.
    """
    lost = {}
    for view in plan.views:
        if not can_pin(config, view.view):
            continue
        there = [features[out.name].is_valid() for out in plan.outputs if out.view == view.name]
        rows = entities.select([*view.keys.values(), EVENT_TIMESTAMP])
        if there:
            rows = rows.filter(pc.invert(reduce(pc.or_, there)))
        count = unknown_then(config, view.view, rows)
        if count:
            lost[view.name] = count
    return lost


def pin_path(folder: Path, sha256: str) -> Path:
    """Return where the pin of that content is."""
    return folder / f"{sha256}.parquet"


def intact(folder: Path, pins: Mapping[str, Mapping[str, Any]]) -> dict[str, Path]:
    """Return view -> file of the pins that are there and hold what their names say."""
    paths = {view: pin_path(folder, pin["sha256"]) for view, pin in pins.items()}
    return {
        view: path
        for view, path in paths.items()
        if path.is_file() and hash_file(path) == path.stem
    }


def over_pins(plan: ServicePlan, paths: Mapping[str, Path]) -> ServicePlan:
    """Return `plan` with the views that `paths` names read from there."""
    there = copy.copy(plan)
    there.views = tuple(
        replace(view, view=pinned(view.view, paths[view.name])) if view.name in paths else view
        for view in plan.views
    )
    return there
