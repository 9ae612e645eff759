"""Promotion and rollback by hand.

Above `registry`. What a person decides is recorded as a run that ended promoted, with a manual
cause: the monitor follows runs, so its reference moves with the alias whoever moved it.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steadfeast.featurestore.plain_text import check_plain
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb

if TYPE_CHECKING:
    from steadfeast.pipeline.queue import RunQueue
    from steadfeast.pipeline.registry import Registry


@dataclass(frozen=True, slots=True)
class By:
    """Who promotes, and why.

    Attributes:
        actor: A person's name.
        comment: Their reason; may be empty.
    """

    actor: str
    comment: str = ""

    def __post_init__(self) -> None:
        """Refuse what is no plain line.

        Raises:
            RequestError: A text holds control characters.
        """
        check_plain("actor", self.actor)
        check_plain("comment", self.comment)


def by_hand(queue: RunQueue, registry: Registry, model: str, version: str, by: By) -> pb.Run:
    """Make `version` the champion; return the run that records it.

    Repeating it after a crash records the same promotion again and changes nothing else.

    Raises:
        NotFoundError: There is no such version.
    """
    before = registry.set_champion(model, version)
    how = f"by hand, in place of {before or 'none'}"
    return _record(queue, registry, model, version, how, by)


def rollback(queue: RunQueue, registry: Registry, model: str, by: By) -> pb.Run:
    """Make the champion before this one the champion again; return the run that records it.

    Raises:
        NotFoundError: There was none.
    """
    before = registry.champion_version(model)
    version = registry.restore_champion(model)
    how = f"rolled back from {before or 'none'}"
    return _record(queue, registry, model, version, how, by)


def _record(
    queue: RunQueue, registry: Registry, model: str, version: str, how: str, by: By
) -> pb.Run:
    facts = registry.facts(model, version)
    if by.comment:
        how = f"{how}: {by.comment}"
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
    run, _ = queue.accept(request, outcome, by.actor)
    return run
