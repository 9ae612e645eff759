"""Promotion and rollback by hand.

Above `registry`. What a person decides is recorded as a run that ended promoted, with a manual
cause: the monitor follows runs, so its reference moves with the alias whoever moved it.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb

if TYPE_CHECKING:
    from steadfeast.pipeline.queue import RunQueue
    from steadfeast.pipeline.registry import Registry


def by_hand(queue: RunQueue, registry: Registry, model: str, version: str) -> pb.Run:
    """Make `version` the champion; return the run that records it.

    Repeating it after a crash records the same promotion again and changes nothing else.

    Raises:
        NotFoundError: There is no such version.
    """
    before = registry.set_champion(model, version)
    return _record(queue, registry, model, version, f"by hand, in place of {before or 'none'}")


def rollback(queue: RunQueue, registry: Registry, model: str) -> pb.Run:
    """Make the champion before this one the champion again; return the run that records it.

    Raises:
        NotFoundError: There was none.
    """
    before = registry.champion_version(model)
    version = registry.restore_champion(model)
    return _record(queue, registry, model, version, f"rolled back from {before or 'none'}")


def _record(queue: RunQueue, registry: Registry, model: str, version: str, how: str) -> pb.Run:
    facts = registry.facts(model, version)
    summary = f"version {version} is champion {how}"
    request = pb.TriggerRetrainRequest(
        request_id=str(uuid.uuid4()),
        model=model,
        contract=facts.contract,
        cause=pb.Cause(kind=pb.CAUSE_KIND_MANUAL, summary=summary),
    )
    request.as_of.FromDatetime(facts.as_of)
    outcome = pb.Run(
        state=pb.RUN_STATE_PROMOTED,
        reason=how,
        manifest_uri=facts.manifest_uri,
        contract=facts.contract,
        model_version=version,
        metrics=facts.metrics,
        scored_uri=facts.scored_uri,
    )
    run, _ = queue.accept(request, outcome)
    return run
