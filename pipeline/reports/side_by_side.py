"""Two versions side by side: what they come to on the same rows, and what differs between them.

Above `comparison` and `differences`. Opens what it reads, and writes nothing.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steadfeast import featurestore
from steadfeast.featurestore.errors import ContractMismatchError, NotFoundError
from steadfeast.featurestore.training import MANIFEST, TrainingSet, manifests
from steadfeast.pipeline import recipes
from steadfeast.pipeline.config import load
from steadfeast.pipeline.queue import RunQueue
from steadfeast.pipeline.registry import Registry
from steadfeast.pipeline.reports.comparison import ComparisonError, Side, compare
from steadfeast.pipeline.reports.differences import differences
from steadfeast.pipeline.reports.version import describe
from steadfeast.pipeline.training import examples
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    import pyarrow as pa

    from steadfeast.featurestore import Store
    from steadfeast.pipeline.config import ModelConfig
    from steadfeast.pipeline.reports.comparison import Comparison
    from steadfeast.pipeline.reports.differences import Change
    from steadfeast.pipeline.reports.version import Described


@dataclass(frozen=True, slots=True)
class Asked:
    """How two versions are to be compared.

    Attributes:
        as_of: What was known then counts.
        on: A training set's id, or the path of its manifest, whose rows are taken; empty takes
            the newest rows of the entities file.
        confidence: Of each interval, between 0 and 1.
    """

    as_of: datetime
    on: str = ""
    confidence: float = 0.95


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Two versions.

    Attributes:
        a: The first.
        b: The second.
        comparison: On the same rows; None if that cannot be.
        problem: Why it cannot be; empty if it can.
        changes: Of `differences`.
    """

    a: Described
    b: Described
    comparison: Comparison | None
    problem: str
    changes: Mapping[str, list[Change]]

    def plain(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        compared: dict[str, Any] | None = None
        if self.comparison is not None:
            compared = asdict(self.comparison)
            for end in ("start", "end"):
                compared[end] = f"{compared[end]:%Y-%m-%dT%H:%M:%SZ}"
        return {
            "model": self.a.model,
            "a": version_of(self.a),
            "b": version_of(self.b),
            "comparison": compared,
            "problem": self.problem or None,
            "differences": {
                part: [asdict(change) for change in changes]
                for part, changes in self.changes.items()
            },
        }


def version_of(one: Described) -> dict[str, Any]:
    """Return which version it is, what asked for it and what became of it, as JSON has it."""
    facts, run = one.facts, one.run
    return {
        "version": one.version,
        "run": facts.run_id,
        "as_of": f"{facts.as_of:%Y-%m-%dT%H:%M:%SZ}",
        "training_set": None if one.manifest is None else one.manifest.id,
        "contract": facts.contract,
        "cause": None
        if run is None
        else pb.CauseKind.Name(run.cause.kind).removeprefix("CAUSE_KIND_").lower(),
        "outcome": None
        if run is None
        else pb.RunState.Name(run.state).removeprefix("RUN_STATE_").lower(),
    }


def side_by_side(path: Path, a: str, b: str, model: str, asked: Asked) -> SideBySide:
    """Return two versions of one model side by side.

    Args:
        path: The configuration file.
        a: The first, as `describe` reads it.
        b: The second.
        model: Which model's; may be empty, see `describe`.
        asked: How they are to be compared.

    Raises:
        NotFoundError: There is no such version, run or training set.
        ComparisonError: They are versions of two models, or one and the same.
        UntrustedModelError: A model's file is not what was registered.
    """
    config, _ = load(path)
    with ExitStack() as stack:
        queue = stack.enter_context(RunQueue(config.state / "runs.db"))
        store = stack.enter_context(featurestore.Store.open(path))
        registry = Registry.open(config)
        one, two = (describe(name, config, store.data, queue, registry, model) for name in (a, b))
        if one.model != two.model:
            raise ComparisonError(
                f"{a} is a version of model {one.model} and {b} of {two.model}; "
                "compare versions of one model"
            )
        if one.version == two.version:
            raise ComparisonError(f"{a} and {b} are both version {one.version} of {one.model}")
        settings = config.models.get(one.model)
        if settings is None:
            raise NotFoundError("model", one.model, config.models)
        changes = differences(one, two, store.kept_contract)
        first, second = (_side(store, registry, each) for each in (one, two))
        found, problem = None, ""
        with recipes.limited(config.threads):
            try:
                found = compare(
                    (first, second),
                    _bases(store, settings, asked),
                    settings,
                    asked.as_of,
                    path.resolve().parent,
                    asked.confidence,
                )
            except (ComparisonError, ContractMismatchError) as error:
                problem = str(error)
    return SideBySide(one, two, found, problem, changes)


def _side(store: Store, registry: Registry, one: Described) -> Side:
    manifest = one.manifest

    def features(rows: pa.Table) -> pa.Table:
        if manifest is None:
            raise ComparisonError(
                f"the manifest of {one.title} is gone, and with it the service that it reads"
            )
        return store.point_in_time(
            manifest.service,
            rows,
            contract=manifest.contract,
            event_time_only=manifest.event_time_only,
        )

    return Side(one, registry.load(one.model, one.version), features)


def _bases(store: Store, config: ModelConfig, asked: Asked) -> Iterator[pa.Table]:
    """Yield rows to compare on: the newest first, then all; or those of a training set alone."""
    if asked.on:
        yield _replayed(store, asked.on)
        return
    if config.since is not None:
        yield examples(config, asked.as_of)
    yield examples(config.model_copy(update={"since": None}), asked.as_of)


def _replayed(store: Store, on: str) -> pa.Table:
    """Return the entity frame of a training set, once it has replayed to the same bytes."""
    folder = store.data / "training"
    places = (Path(on), Path(on, MANIFEST), folder / on / MANIFEST)
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise NotFoundError(
            "training set", on, (one.parent.name for one, _ in manifests(store.data))
        )
    training = TrainingSet.load(path)
    return replace(training, table=store.replay(path)).entities
