"""Which model served when: the promoted runs of a monitor's model. Below `report`.

Pipelines are asked over gRPC, as the daemon asks them. Where none answers, and the configuration
has a section `pipeline` with the model, its queue is read from its state folder by a process of
the pipeline's own, `steadfeast pipeline runs`: a backtest of the past needs no server, and the
two packages do not import each other.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from google.protobuf.json_format import ParseDict
from pydantic import BaseModel

from steadfeast.featurestore.config import load_section
from steadfeast.featurestore.errors import ConfigError
from steadfeast.monitor.backtest.replay import NoHistoryError, promoted_at
from steadfeast.monitor.delivery import GrpcTarget, UnansweredError, pipeline_of
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path

    from steadfeast.monitor.config import DaemonConfig

_ASK_SECONDS = 120.0
_RUNS = 1000
"""The last runs that are looked at; what was promoted before lies out of most histories."""


class _Pipeline(BaseModel, extra="ignore"):
    models: dict[str, object] = {}


def promoted(path: Path, config: DaemonConfig, monitor: str) -> list[pb.Run]:
    """Return the runs of a monitor's model that were promoted, by time.

    Args:
        path: The configuration file.
        config: Its section `monitor`.
        monitor: Whose model.

    Raises:
        NoHistoryError: No pipeline answers, and no state folder has any.
    """
    asked = config.monitors[monitor]
    names = [asked.pipeline] if asked.pipeline else list(config.pipelines)
    problems = []
    for name in names:
        target = pipeline_of(config.pipelines[name])
        try:
            if isinstance(target, GrpcTarget):
                runs = target.promoted(asked.model)
                if runs:
                    return sorted(runs, key=promoted_at(config))
            problems.append(f"pipeline {name} knows of no promoted run of model {asked.model}")
        except UnansweredError as error:
            problems.append(f"pipeline {name}: {error}")
        finally:
            target.close()
    if asked.model in _models(path):
        runs, problem = _kept(path, asked.model)
        if runs:
            return sorted(runs, key=promoted_at(config))
        problems.append(problem)
    raise NoHistoryError(
        monitor,
        f"{'; '.join(problems) or 'no pipeline is configured'}. Start the pipeline, or name a "
        "training set by --reference",
    )


def _models(path: Path) -> dict[str, object]:
    try:
        return load_section(path, "pipeline", _Pipeline).models
    except ConfigError:  # there is none here, or the pipeline has to complain of it
        return {}


def _kept(path: Path, model: str) -> tuple[list[pb.Run], str]:
    """Return the promoted runs that the pipeline's state folder keeps, or why there are none."""
    words = ["pipeline", "runs", "--json", "--model", model, "--limit", str(_RUNS)]
    try:
        done = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-P", "-m", "steadfeast", *words, "--config", str(path)],
            capture_output=True,
            text=True,
            timeout=_ASK_SECONDS,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        said = str(error.stderr).strip().rpartition("\n")[2]
        return [], f"its state folder: {said.removeprefix('error: ')}"
    except subprocess.TimeoutExpired:
        return [], f"its state folder: no answer within {_ASK_SECONDS:.0f} s"
    runs = [ParseDict(json.loads(line), pb.Run()) for line in done.stdout.splitlines()]
    found = [run for run in runs if run.state == pb.RUN_STATE_PROMOTED]
    return found, f"the pipeline's state folder has no promoted run of model {model}"
