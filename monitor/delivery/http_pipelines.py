"""Pipelines that speak their own HTTP API: GitHub Actions, GitLab, Jenkins, Airflow.

Above `calls`. What they have in common is here once: a trigger first looks for a run of its
request, and starts one only if there is none; a run is followed by looking again. How sure that is
differs. Airflow refuses a second run of one id, so its effect is once. The others start what they
are told; between a start and the moment at which the run is listed, a second delivery (after a
crash, or an answer that was lost) starts a second run. The workflow must carry the request id
where `find` looks for it; docs/guide/delivery.md says where.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from steadfeast.monitor.config import (
    AirflowConfig,
    GithubConfig,
    GitlabConfig,
    JenkinsConfig,
)
from steadfeast.monitor.delivery import pipeline
from steadfeast.monitor.delivery.http_client import Caller
from steadfeast.monitor.delivery.pipeline import RejectedError, RunForgottenError
from steadfeast.monitor.ledger import ENDED, timestamp
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from steadfeast.monitor.config import PipelineConfig
    from steadfeast.monitor.delivery.pipeline import Pipeline

POLL_SECONDS = 10.0
POLLS = 6
"""Looks in one watch."""
UNSEEN = timedelta(hours=1)
"""How long a run that was started may stay unseen before it is given up."""
NEWEST = 100
"""Runs that are looked through for a request."""

QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED = (
    pb.RUN_STATE_QUEUED,
    pb.RUN_STATE_RUNNING,
    pb.RUN_STATE_SUCCEEDED,
    pb.RUN_STATE_FAILED,
    pb.RUN_STATE_CANCELLED,
)
_SEQUENCE = {QUEUED: 1, RUNNING: 2}


@dataclass(frozen=True, slots=True)
class Found:
    """A run as its system tells of it; `said` is the system's own word for its state."""

    run_id: str
    state: pb.RunState.ValueType
    said: str
    url: str = ""


class Adapter(Protocol):
    """What is particular to one system."""

    def find(self, request: str) -> Found | None:
        """Return the run of a request, if it is listed."""

    def start(self, request: pb.TriggerRetrainRequest) -> None:
        """Start one."""


def inputs(request: pb.TriggerRetrainRequest) -> dict[str, str]:
    """Return what a run is told, as text; every system can carry that."""
    return {
        "request_id": request.request_id,
        "model": request.model,
        "contract": request.contract,
        "as_of": f"{request.as_of.ToDatetime(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "cause": request.cause.summary,
    }


class Github:
    """GitHub Actions: `POST /repos/{r}/actions/workflows/{w}/dispatches` answers before a run is.

    The run is known by its name, so the workflow has to say
    `run-name: retrain ${{ inputs.request_id }}`.
    """

    def __init__(self, config: GithubConfig) -> None:
        headers = {
            "accept": "application/vnd.github+json",
            "x-github-api-version": "2022-11-28",
            **_bearer(config.token.get_secret_value()),
        }
        self.caller = Caller(config.url, headers, config.ca)
        workflow = quote(config.workflow, safe="")
        self._path = f"/repos/{config.repository}/actions/workflows/{workflow}"
        self._ref = config.ref

    def find(self, request: str) -> Found | None:
        """See `Adapter`."""
        asked = {"event": "workflow_dispatch", "per_page": str(NEWEST)}
        answer = self.caller.get(f"{self._path}/runs", asked)
        for run in answer.body["workflow_runs"] if answer else []:
            if request in (run.get("display_title") or ""):
                said = run.get("conclusion") or run["status"]
                state = {
                    "success": SUCCEEDED,
                    "cancelled": CANCELLED,
                    "skipped": CANCELLED,
                    "in_progress": RUNNING,
                }.get(said, FAILED if run.get("conclusion") else QUEUED)
                return Found(str(run["id"]), state, said, run.get("html_url", ""))
        return None

    def start(self, request: pb.TriggerRetrainRequest) -> None:
        """See `Adapter`."""
        self.caller.post(f"{self._path}/dispatches", {"ref": self._ref, "inputs": inputs(request)})


class Gitlab:
    """GitLab: `POST /projects/{id}/pipeline` with variables.

    The pipeline is known by its name, so `.gitlab-ci.yml` has to say
    `workflow: {name: "$STEADFEAST_REQUEST_ID"}`.
    """

    def __init__(self, config: GitlabConfig) -> None:
        headers = {"private-token": config.token.get_secret_value()}
        self.caller = Caller(f"{config.url}/api/v4", headers, config.ca)
        self._path = f"/projects/{quote(config.project, safe='')}"
        self._ref = config.ref

    def find(self, request: str) -> Found | None:
        """See `Adapter`."""
        answer = self.caller.get(f"{self._path}/pipelines", {"name": request})
        for run in answer.body if answer else []:
            state = {
                "running": RUNNING,
                "success": SUCCEEDED,
                "failed": FAILED,
                "canceled": CANCELLED,
                "skipped": CANCELLED,
            }.get(run["status"], QUEUED)
            return Found(str(run["id"]), state, run["status"], run.get("web_url", ""))
        return None

    def start(self, request: pb.TriggerRetrainRequest) -> None:
        """See `Adapter`."""
        variables = [
            {"key": f"STEADFEAST_{name.upper()}", "value": value}
            for name, value in inputs(request).items()
        ]
        self.caller.post(f"{self._path}/pipeline", {"ref": self._ref, "variables": variables})


class Jenkins:
    """Jenkins: `POST {job}/buildWithParameters`, with a user's API token, so without a crumb.

    The build is known by its parameter `request_id`, so the job has to declare it.
    """

    def __init__(self, config: JenkinsConfig) -> None:
        token = config.token.get_secret_value()
        self.caller = Caller(config.url, _basic(config.user, token), config.ca)
        self._path = "".join(f"/job/{quote(part, safe='')}" for part in config.job.split("/"))

    def find(self, request: str) -> Found | None:
        """See `Adapter`. A build that waits is in the queue only."""
        fields = "number,url,building,result,actions[parameters[name,value]]"
        tree = f"builds[{fields}]{{0,{NEWEST}}}"
        answer = self.caller.get(f"{self._path}/api/json", {"tree": tree})
        for build in answer.body.get("builds", []) if answer else []:
            if _asked_by(build, request):
                said = "building" if build["building"] else build["result"]
                state = {"building": RUNNING, "SUCCESS": SUCCEEDED, "ABORTED": CANCELLED}
                return Found(str(build["number"]), state.get(said, FAILED), said, build["url"])
        tree = "items[id,actions[parameters[name,value]]]"
        answer = self.caller.get("/queue/api/json", {"tree": tree})
        for item in answer.body.get("items", []) if answer else []:
            if _asked_by(item, request):
                return Found(f"queue item {item['id']}", QUEUED, "queued")
        return None

    def start(self, request: pb.TriggerRetrainRequest) -> None:
        """See `Adapter`."""
        self.caller.post(f"{self._path}/buildWithParameters", fields=inputs(request))


class Airflow:
    """Airflow: `POST /dags/{dag}/dagRuns`, whose run id is the request's: a second one is a 409."""

    def __init__(self, config: AirflowConfig) -> None:
        token = config.token.get_secret_value()
        headers = _basic(config.user, token) if config.user else _bearer(token)
        self.caller = Caller(f"{config.url}/api/{config.api}", headers, config.ca)
        self._path = f"/dags/{quote(config.dag, safe='')}/dagRuns"
        self._more: Mapping[str, Any] = {"logical_date": None} if config.api == "v2" else {}

    def find(self, request: str) -> Found | None:
        """See `Adapter`."""
        answer = self.caller.get(f"{self._path}/{quote(request, safe='')}")
        if answer is None:
            return None
        said = answer.body["state"]
        state = {"running": RUNNING, "success": SUCCEEDED, "failed": FAILED}.get(said, QUEUED)
        return Found(answer.body["dag_run_id"], state, said)

    def start(self, request: pb.TriggerRetrainRequest) -> None:
        """See `Adapter`."""
        told = {"dag_run_id": request.request_id, "conf": inputs(request), **self._more}
        self.caller.post(self._path, told, known=frozenset({409}))


class HttpTarget:
    """A `Pipeline` over one adapter.

    Args:
        adapter: Of the system.
        close: Lets its connections go.
        poll_seconds: Between two looks at a run.
    """

    def __init__(
        self, adapter: Adapter, close: Callable[[], None], poll_seconds: float = POLL_SECONDS
    ) -> None:
        self._adapter, self._close, self._poll_seconds = adapter, close, poll_seconds
        self._closed = Event()

    def trigger(self, request: pb.TriggerRetrainRequest) -> pb.Run:
        """See `Pipeline`. The run's id is the request's until the system has given one."""
        found = self._find(request.request_id)
        if found is None:
            self._adapter.start(request)
            found = self._find(request.request_id)
        run = pb.Run(
            run_id=request.request_id,
            request_id=request.request_id,
            model=request.model,
            state=QUEUED,
            as_of=request.as_of,
            cause=request.cause,
            created_at=timestamp(datetime.now(UTC)),
        )
        return run if found is None else _as(run, found, QUEUED)

    def watch(self, run: pb.Run, after: int) -> Iterator[tuple[int, pb.Run]]:
        """See `Pipeline`; looks every few seconds."""
        for _ in range(POLLS):
            if self._closed.is_set():
                return
            found = self._look(run)
            if found is not None and _SEQUENCE.get(found.state, 3) > after:
                after = _SEQUENCE.get(found.state, 3)
                run = _as(run, found, found.state)
                yield after, run
                if run.state in ENDED:
                    return
            self._closed.wait(self._poll_seconds)

    def champion(self, model: str) -> pb.Run | None:
        """See `Pipeline`: no such system knows."""
        del model
        return None

    def close(self) -> None:
        """See `Pipeline`."""
        self._closed.set()
        self._close()

    def _look(self, run: pb.Run) -> Found | None:
        try:
            found = self._find(run.request_id)
        except RejectedError as error:
            raise pipeline.UnansweredError(error.reason) from error
        if found is None and datetime.now(UTC) - run.created_at.ToDatetime(UTC) > UNSEEN:
            raise RunForgottenError(
                f"no run carries request {run.request_id}; see docs/guide/delivery.md"
            )
        return found

    def _find(self, request: str) -> Found | None:
        try:
            return self._adapter.find(request)
        except (KeyError, TypeError, AttributeError) as error:
            # A proxy's page, or an API that has changed.
            raise RejectedError(f"the answer is not what the API promises: {error!r}") from error


def pipeline_of(config: PipelineConfig) -> Pipeline:
    """Return the pipeline that `config` describes; connects when first asked.

    Raises:
        UnansweredError: A certificate cannot be read.
    """
    made: Github | Gitlab | Jenkins | Airflow
    match config:
        case GithubConfig():
            made = Github(config)
        case GitlabConfig():
            made = Gitlab(config)
        case JenkinsConfig():
            made = Jenkins(config)
        case AirflowConfig():
            made = Airflow(config)
        case _:
            return pipeline.grpc_pipeline(config)
    return HttpTarget(made, made.caller.close)


def _as(run: pb.Run, found: Found, state: pb.RunState.ValueType) -> pb.Run:
    told = pb.Run()
    told.CopyFrom(run)
    told.run_id, told.state = found.run_id, state
    told.updated_at.FromDatetime(datetime.now(UTC))
    where = f" ({found.url})" if found.url else ""
    told.reason = f"{found.said}{where}"
    return told


def _asked_by(item: Mapping[str, Any], request: str) -> bool:
    return any(
        parameter.get("name") == "request_id" and parameter.get("value") == request
        for action in item.get("actions", [])
        for parameter in action.get("parameters", [])
    )


def _bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"} if token else {}


def _basic(user: str, token: str) -> dict[str, str]:
    return {"authorization": f"Basic {b64encode(f'{user}:{token}'.encode()).decode()}"}
