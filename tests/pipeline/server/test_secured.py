"""A daemon's `pipelines.NAME` with `tls` and `token` against our own pipeline, as a process."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from steadfeast.monitor.config import GrpcPipelineConfig
from steadfeast.monitor.delivery.pipeline import RejectedError, UnansweredError, grpc_pipeline
from steadfeast.protos.steadfeast.v1 import pipeline_pb2 as pb
from support.authority import Authority
from support.monitor_world import wait_for
from support.shop_world import at, configure, trigger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOST = "127.0.0.2"
DAEMON, READER = "daemon-token-0123456789", "reader-token-0123456789"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


@pytest.fixture
def address(shops: Path, authority: Authority, free_port) -> Iterator[str]:
    """Of a pipeline with TLS, mTLS and tokens; a run that it accepts waits for its recipe."""
    where = f"{HOST}:{free_port()}"
    path = configure(shops, grpc=where, recipe="train:held")
    (shops / "hold").touch()
    certificate, key = authority.issue("server")
    path.write_text(
        "security:\n"
        f"  tls: {{certificate: {certificate}, key: {key}, client_ca: {authority.path}}}\n"
        "  tokens:\n"
        f"    daemon: {{token: {DAEMON}, roles: [read, trigger]}}\n"
        f"    grafana: {{token: {READER}, roles: [read]}}\n" + path.read_text()
    )
    command = [sys.executable, "-P", "-m", "steadfeast.featurestore.cli", "pipeline", "serve"]
    with (
        path.with_name("serve.log").open("w") as log,
        subprocess.Popen([*command, "--config", str(path)], stderr=log) as process,
    ):
        try:
            yield where
        finally:
            process.kill()


def configured(address: str, authority: Authority, **more: object) -> GrpcPipelineConfig:
    certificate, key = authority.issue("daemon")
    tls = {"ca": authority.path, "certificate": certificate, "key": key}
    given = {"address": address, "tls": tls, "token": DAEMON, **more}
    return GrpcPipelineConfig.model_validate(given)


def promoted(config: GrpcPipelineConfig) -> bool:
    pipeline = grpc_pipeline(config)
    try:
        return pipeline.champion("sale") is None
    except UnansweredError:
        return False
    finally:
        pipeline.close()


def test_a_daemon_delivers_over_tls_with_its_token(address: str, authority: Authority):
    good = configured(address, authority)
    wait_for(lambda: promoted(good), 90)
    pipeline = grpc_pipeline(good)
    try:
        asked = trigger(at(40))
        run = pipeline.trigger(asked)
        assert run.state in {pb.RUN_STATE_QUEUED, pb.RUN_STATE_RUNNING}
        assert pipeline.trigger(asked).run_id == run.run_id
        assert next(pipeline.watch(run, 0))[1].run_id == run.run_id
    finally:
        pipeline.close()
    for wrong, said in (
        ({"token": READER}, "PERMISSION_DENIED: the token of grafana may not trigger"),
        ({"token": "x" * 20}, "UNAUTHENTICATED: the token is wrong"),
        ({"token": ""}, "UNAUTHENTICATED: a token with the role trigger is needed"),
    ):
        refused = grpc_pipeline(configured(address, authority, **wrong))
        with pytest.raises(RejectedError, match=said):
            refused.trigger(trigger(at(80)))
        refused.close()
    for tls in (None, {"ca": authority.path}):  # in the clear, and without a certificate of its own
        assert not promoted(configured(address, authority, tls=tls))
