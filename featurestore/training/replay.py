"""Training sets computed anew, to the bit, or exactly what is gone.

Above `catalog` and `training`, below `store`. A replay runs the definitions of the contract that
the set was made under. Each view is read from its source while that is what the manifest says it
was, else from its pin; a source that changed and has none is read all the same, since one that
keeps its past gives the same values. The content hash decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from steadfeast.featurestore.errors import (
    ContractMismatchError,
    NotFoundError,
    ReplayError,
    SourceError,
)
from steadfeast.featurestore.tables import content_sha256
from steadfeast.featurestore.training import training_set
from steadfeast.featurestore.training.manifest import TrainingSet, removals_of
from steadfeast.featurestore.training.pins import intact, over_pins

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pyarrow as pa
    from feast import FeatureStore

    from steadfeast.featurestore.definitions import Bundle, Catalog, ServicePlan
    from steadfeast.featurestore.training.manifest import Manifest


def replay(feast: FeatureStore, catalog: Catalog, pins: Path, path: Path) -> pa.Table:
    """Compute the training set whose manifest is at `path` anew.

    Args:
        feast: Feast's store.
        catalog: The services.
        pins: Folder of the pins.
        path: The manifest.

    Raises:
        ManifestError: The manifest or its entity frame is gone or altered.
        NotFoundError: There is no such service, and its definitions were not kept.
        ErasedError: Rows of it were erased.
        ReplayError: The content differs; says what is gone or has changed since.
    """
    before = TrainingSet.load(path)
    manifest, reasons = before.manifest, []
    try:
        bundle = catalog.of_then(manifest.service, manifest.contract)
    except ContractMismatchError as error:
        bundle = catalog.bundle(manifest.service)
        reasons = [*error.reasons, *error.differences]
        if not error.differences:
            asked, served = error.asked, error.served
            reasons.append(f"the contract changed from {asked} to {served}, and was not kept")
    altered, gone = _altered(feast, manifest, bundle.plan)
    there = intact(pins, manifest.pins)
    removed = [one["at"] for one in removals_of(path.parent) if "collected" in one]
    lost = [
        f"{what}, and {_no_pin(manifest, view, removed)}"
        for view, what in {**altered, **gone}.items()
        if view not in there
    ]
    if not gone.keys() <= there.keys():
        raise ReplayError(manifest.id, lost)
    needed = {view: file for view, file in there.items() if view in altered or view in gone}
    # A source may have been written while it was read: then it was hashed after the pin was made.
    for chosen in (needed, there) if needed != there else (needed,):
        try:
            table = _computed(feast, bundle, before, chosen)
        except SourceError as error:
            lost.append(str(error))
            continue
        if content_sha256(table) == manifest.sha256:
            return table
    reasons += lost
    raise ReplayError(
        manifest.id, reasons or ["sources and contract are the same, yet the values are not"]
    )


def _computed(
    feast: FeatureStore, bundle: Bundle, before: TrainingSet, paths: Mapping[str, Path]
) -> pa.Table:
    plan = over_pins(bundle.plan, paths)
    features = training_set.features_at(
        feast,
        plan,
        bundle.executors,
        training_set.entity_table(plan, before.entities),
        event_time_only=before.manifest.event_time_only,
    )
    return training_set.beside(before.entities, features)


def _altered(
    feast: FeatureStore, manifest: Manifest, plan: ServicePlan
) -> tuple[dict[str, str], dict[str, str]]:
    """Return view -> what has changed in its source, and view -> that all of it is gone."""
    now = {
        (item["view"], item["path"]): item["sha256"] for item in training_set.sources(feast, plan)
    }
    left = {view for (view, _), digest in now.items() if digest is not None}
    changed: dict[str, list[str]] = {}
    gone: dict[str, list[str]] = {}
    for item in manifest.sources:
        view, path, was = item["view"], item["path"], item["sha256"]
        digest = now.pop((view, path), None)
        if was is None:  # what is not a local file cannot be compared
            changed.setdefault(view, []).append(f"source {path} of view {view} is not kept here")
        elif digest is None:
            # A file that was appended to may have become a folder of the same rows and more.
            where = changed if view in left else gone
            where.setdefault(view, []).append(f"source {path} of view {view} is gone")
        elif digest != was:
            changed.setdefault(view, []).append(
                f"source {path} of view {view} changed from {was[:16]} to {digest[:16]}"
            )
    for (view, path), digest in now.items():
        if digest is not None:
            changed.setdefault(view, []).append(f"source {path} of view {view} is new")
    return (
        {view: "; ".join(what) for view, what in changed.items()},
        {view: "; ".join(what) for view, what in gone.items()},
    )


def changes_of(feast: FeatureStore, catalog: Catalog, manifest: Manifest) -> list[str]:
    """Say what of a training set's sources is no longer what it was made of."""
    try:
        plan = catalog.of_then(manifest.service, manifest.contract).plan
    except (ContractMismatchError, NotFoundError) as error:
        return [str(error)]
    changed, gone = _altered(feast, manifest, plan)
    return [*changed.values(), *gone.values()]


def _no_pin(manifest: Manifest, view: str, removed: list[str]) -> str:
    if view not in manifest.pins:
        return "nothing of it was pinned"
    if removed:
        return f"its pin {manifest.pins[view]['sha256'][:16]} was collected at {removed[-1]}"
    return f"its pin {manifest.pins[view]['sha256'][:16]} is gone or altered"
