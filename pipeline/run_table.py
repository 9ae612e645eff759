"""Runs side by side: figures, data version, contract, cause and outcome of each.

Above `queue`, below `cli`. Only what a run itself keeps is shown; nothing is computed anew.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from steadfeast.featurestore.errors import NotFoundError
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence


def run_table(runs: Sequence[pb.Run], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row per run, in the order given.

    Args:
        runs: As the queue gives them.
        metrics: Names of the figures to show; a run without one has None there.

    Returns:
        Rows with `run`, `model`, a column per metric, `data` (id of the training set's manifest,
        its data version), `as_of`, `date` (when it was asked for), `contract`, `cause`, `outcome`
        and `version`. None stands for what a run does not have.

    Raises:
        NotFoundError: None of the runs has a figure of that name.
    """
    known = {name for run in runs for name in run.metrics}
    for name in metrics:
        if known and name not in known:
            raise NotFoundError("metric", name, sorted(known))
    return [_row(run, metrics) for run in runs]


def _row(run: pb.Run, metrics: Sequence[str]) -> dict[str, Any]:
    return {
        "run": run.run_id,
        "model": run.model,
        **{name: run.metrics.get(name) for name in metrics},
        "data": PurePath(run.manifest_uri).parent.name or None,
        "as_of": f"{run.as_of.ToDatetime():%Y-%m-%dT%H:%M:%SZ}",
        "date": f"{run.created_at.ToDatetime():%Y-%m-%dT%H:%M:%SZ}",
        "contract": run.contract or None,
        "cause": pb.CauseKind.Name(run.cause.kind).removeprefix("CAUSE_KIND_").lower(),
        "outcome": pb.RunState.Name(run.state).removeprefix("RUN_STATE_").lower(),
        "version": run.model_version or None,
    }
