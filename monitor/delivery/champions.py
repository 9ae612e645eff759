"""Each monitor compared with its model's champion, whoever promoted it.

Above `connections`. A promotion that somebody made by hand is noticed at the next look; the runs
that our own triggers began are the run follower's.
"""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING

import structlog

from steadfeast.featurestore.errors import UserError
from steadfeast.monitor.delivery.pipeline import UnansweredError

if TYPE_CHECKING:
    from steadfeast.monitor.delivery.connections import Connections
    from steadfeast.monitor.drift import Reference
    from steadfeast.monitor.evaluation import Evaluator
    from steadfeast.monitor.ledger import Ledger
    from steadfeast.protos.steadfeast.v1 import pipeline_pb2

log = structlog.get_logger(__name__)

NOT_ASKED = "no pipeline was asked for the model's champion yet"


class Champions:
    """Moves references to the champions that the pipelines name.

    Args:
        ledger: Says what each monitor compares with.
        evaluator: Builds and moves references; its configuration names the pipelines.
        connections: To the pipelines.
    """

    def __init__(self, ledger: Ledger, evaluator: Evaluator, connections: Connections) -> None:
        self._ledger, self._evaluator, self._connections = ledger, evaluator, connections
        self._missing: dict[str, str] = {}
        self._nobody: frozenset[str] = frozenset()

    def waits_for(self, monitor: str) -> str:
        """Return why a monitor has no reference, as of the last look."""
        return self._missing.get(monitor, NOT_ASKED)

    def nobody_has(self, monitor: str) -> bool:
        """Whether every pipeline there is has said that it has no reference for `monitor`."""
        return monitor in self._nobody

    def follow(self) -> None:
        """Have each monitor compare with its model's champion, whoever promoted it."""
        nobody, missing = set(), {}
        for name, monitor in self._evaluator.config.monitors.items():
            if monitor.reference is not None:
                continue
            problem, final = self._find(name)
            if problem and self._ledger.held(name).reference is None:
                missing[name] = problem
                nobody |= {name} if final else set()
            if problem != self._missing.get(name, "") and problem:
                log.info("no_reference", monitor=name, reason=problem)
        self._missing, self._nobody = missing, frozenset(nobody)

    def _find(self, name: str) -> tuple[str, bool]:
        """Move one monitor to the champion; return why not, and whether that will stay so."""
        config = self._evaluator.config
        monitor, before = config.monitors[name], self._ledger.held(name).reference
        targets = [monitor.pipeline] if monitor.pipeline else list(config.pipelines)
        problems, final = [], True
        for target in targets:
            try:
                run = self._connections.to(target).champion(monitor.model)
            except UnansweredError as error:
                problems.append(f"pipeline {target}: {error}")
                final = False
                continue
            if run is None:
                problems.append(f"pipeline {target}: no promoted run of model {monitor.model}")
                continue
            try:
                self._follow_champion(name, run, before)
            except UserError as error:
                problems.append(f"pipeline {target}: run {run.run_id}: {error}")
                continue
            return "", True
        if not targets:
            problems = ["no pipeline is configured, and the monitor names no reference"]
        return "; ".join(problems), final

    def _follow_champion(self, name: str, run: pipeline_pb2.Run, before: Reference | None) -> None:
        if before is not None:
            if (before.uri, before.model_version) == (run.manifest_uri, run.model_version):
                return
            if any(one.request_id == run.request_id for one in self._ledger.following()):
                return  # whoever follows the run commits its end and the move together
        built = {name: self._evaluator.build(run)[name]}
        with self._ledger.transaction():
            # Moved since the pipeline was asked: what it said may be older than that.
            if self._ledger.held(name).reference is before:
                how = f": {run.reason}" if run.reason else ""
                reason = f"version {run.model_version} promoted{how}"
                self._evaluator.move(built, "first reference" if before is None else reason)
                if not self._ledger.asked_for(run.request_id):
                    noticed_at = self._ledger.held(name).watermark or run.as_of.ToDatetime(UTC)
                    self._ledger.add_promotion(name, run, noticed_at)
