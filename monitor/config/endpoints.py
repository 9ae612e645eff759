"""Where a configuration says that pipelines are: gRPC addresses, and the APIs of other systems.

Bottom of `monitor`, below `config`; `targets` and `adapters` reach what is described here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr

from steadfeast.featurestore.config import Address, AlsoWritten, FilePath, Section
from steadfeast.featurestore.security import ClientTlsConfig, Secret

Url = Annotated[str, Field(pattern=r"^https?://[^\s/]+(/[^\s?#]*)?$")]


class GrpcPipelineConfig(Section):
    """A pipeline that speaks PipelineService; as plain text, only its address.

    Attributes:
        kind: May be left out.
        address: `host:port` of its gRPC port.
        tls: None means plaintext.
        token: Sent with every call, as `authorization: Bearer`.
    """

    kind: Literal["grpc"] = "grpc"
    address: Address
    tls: ClientTlsConfig | None = None
    token: Secret = SecretStr("")

    @property
    def plaintext(self) -> str:
        """The `host:port` that would be reached without TLS; empty when none is."""
        return "" if self.tls else self.address


class HttpConfig(Section):
    """What all that is reached over HTTP has.

    Attributes:
        url: Without a slash at the end.
        token: How it is sent follows from the kind.
        ca: PEM of who signs the certificate; none means what the machine trusts.
    """

    url: Url
    token: Secret = SecretStr("")
    ca: FilePath | None = None

    @property
    def plaintext(self) -> str:
        """The `host:port` that would be reached without TLS; empty when none is."""
        parts = urlsplit(self.url)
        return "" if parts.scheme == "https" else f"{parts.hostname}:{parts.port or 80}"


class GithubConfig(HttpConfig):
    """A GitHub Actions workflow with `on: workflow_dispatch`.

    Attributes:
        kind: `github`.
        repository: `owner/name`.
        workflow: File name of the workflow.
        ref: Branch or tag.
    """

    kind: Literal["github"]
    url: Url = "https://api.github.com"
    repository: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    workflow: str
    ref: str = "main"


class GitlabConfig(HttpConfig):
    """A GitLab project's pipeline.

    Attributes:
        kind: `gitlab`.
        project: Its number, or its full path.
        ref: Branch or tag.
    """

    kind: Literal["gitlab"]
    url: Url = "https://gitlab.com"
    project: str
    ref: str = "main"


class JenkinsConfig(HttpConfig):
    """A parameterised Jenkins job.

    Attributes:
        kind: `jenkins`.
        job: Its path, as `folder/job`.
        user: Whose API token it is.
    """

    kind: Literal["jenkins"]
    job: str
    user: str


class AirflowConfig(HttpConfig):
    """An Airflow DAG.

    Attributes:
        kind: `airflow`.
        dag: Its id.
        user: With it the token is a password (basic); without it a bearer token.
        api: `v2` is Airflow 3's, `v1` Airflow 2's.
    """

    kind: Literal["airflow"]
    dag: str
    user: str = ""
    api: Literal["v1", "v2"] = "v2"


class AlertTargetConfig(HttpConfig):
    """Where alerts go, besides to whoever watches over gRPC.

    Attributes:
        kind: `cloudevents` (1.0, structured JSON), `slack` (a webhook that takes `text`), or
            `alertmanager` (its API v2; `url` is the server's).
    """

    kind: Literal["cloudevents", "slack", "alertmanager"]


def _pipeline(value: Any) -> Any:
    if isinstance(value, str):
        return {"kind": "grpc", "address": value}
    return {"kind": "grpc", **value} if isinstance(value, dict) else value


PipelineConfig = Annotated[
    GrpcPipelineConfig | GithubConfig | GitlabConfig | JenkinsConfig | AirflowConfig,
    Field(discriminator="kind"),
    BeforeValidator(_pipeline),
    AlsoWritten(type="string", description="host:port of a pipeline that speaks gRPC."),
]
