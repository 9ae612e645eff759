"""One version with everything that is kept of it: run, manifest, parameters, libraries.

Bottom of `reports`. What is gone is empty here and no error: a version outlives its training set.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steadfeast.featurestore.errors import ManifestError, NotFoundError, UserError
from steadfeast.featurestore.tables import path_of
from steadfeast.featurestore.training import Manifest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from steadfeast.pipeline.config import PipelineConfig
    from steadfeast.pipeline.queue import RunQueue
    from steadfeast.pipeline.registry import Facts, Registry
    from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb

_VERSION = re.compile(r"\d{1,6}")
_SHORTEST_RUN = 6
_MOST_RUNS = 100_000


@dataclass(frozen=True, slots=True)
class Described:
    """One version.

    Attributes:
        model: Its model.
        version: As the registry counts them.
        facts: What the registry knows of it.
        run: The run that made it; None if the queue does not have it.
        manifest: Of its training set; None if that is gone.
        manifest_path: Where that is, or was.
        scored_path: The training set's rows with the predictions of the judged fit; the file may
            be gone, and is None where none was kept.
        params: Parameters that were tracked; empty if MLflow has none.
        environment: `platform`, `libraries`, `commit` and `tree_is_clean`; empty if unknown.
    """

    model: str
    version: str
    facts: Facts
    run: pb.Run | None
    manifest: Manifest | None
    manifest_path: Path
    scored_path: Path | None
    params: Mapping[str, str]
    environment: Mapping[str, Any]

    @property
    def title(self) -> str:
        """Which it is, in a few words."""
        return f"version {self.version}"


def describe(
    name: str,
    config: PipelineConfig,
    data: Path,
    queue: RunQueue,
    registry: Registry,
    model: str = "",
) -> Described:
    """Return the version that `name` stands for.

    Args:
        name: A version's number, `champion`, `challenger`, or a run's id or its first 6 digits
            or more.
        config: The pipeline's section.
        data: The store's folder, which paths are kept as seen from.
        queue: The runs.
        registry: The versions.
        model: Which model's; empty is enough where there is one model, and for a run.

    Raises:
        NotFoundError: There is no such version, run or model.
        UserError: It is not clear which is meant, or the run registered no version.
    """
    model, version = _resolved(name, config, queue, registry, model)
    facts = registry.facts(model, version)
    runs = [run for run in queue.runs(model, limit=_MOST_RUNS) if run.run_id == facts.run_id]
    path = path_of(facts.manifest_uri, data)
    try:
        manifest = Manifest.load(path)
    except ManifestError:
        manifest = None
    kept = registry.runs.file(model, facts.run_id, "environment.json")
    return Described(
        model=model,
        version=version,
        facts=facts,
        run=runs[0] if runs else None,
        manifest=manifest,
        manifest_path=path,
        scored_path=path_of(facts.scored_uri, data) if facts.scored_uri else None,
        params=registry.runs.params(model, facts.run_id),
        environment=json.loads(kept) if kept else {},
    )


def _resolved(
    name: str, config: PipelineConfig, queue: RunQueue, registry: Registry, model: str
) -> tuple[str, str]:
    """Return model and version that `name` stands for."""
    if model and model not in config.models:
        raise NotFoundError("model", model, config.models)
    if _VERSION.fullmatch(name) or name in {"champion", "challenger"}:
        if not model and len(config.models) > 1:
            known = ", ".join(sorted(config.models))
            raise UserError(f"version {name} of which model? Give --model: {known}")
        model = model or next(iter(config.models))
        if name.isdecimal():
            return model, name
        version = registry.alias(model, name)
        if version is None:
            raise NotFoundError(f"alias of model {model}", name, ())
        return model, version
    return _of_run(name, queue, model)


def _of_run(name: str, queue: RunQueue, model: str) -> tuple[str, str]:
    runs = queue.runs(model, limit=_MOST_RUNS)
    long_enough = len(name) >= _SHORTEST_RUN
    found = [run for run in runs if long_enough and run.run_id.startswith(name)]
    if not found:
        raise NotFoundError("run or version", name, [run.run_id[:12] for run in runs])
    if len(found) > 1:
        raise UserError(f"{name} is the beginning of {len(found)} runs; give more of its digits")
    (run,) = found
    if not run.model_version:
        why = f": {run.reason}" if run.reason else ""
        raise UserError(f"run {run.run_id} has registered no version{why}")
    return run.model, run.model_version
