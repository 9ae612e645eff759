"""`steadfeast store serve` off the default host: TLS, tokens by role, and tokens that change."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from ssl import create_default_context
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from steadfeast.featurestore.security import ClientTlsConfig, channel
from steadfeast.featurestore.server.grpc_server import ROLES, SERVICE
from steadfeast.protos.steadfeast.v1 import features_pb2, features_pb2_grpc
from support.authority import Authority
from support.edge import get
from support.monitor_world import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOST = "127.0.0.2"
READER, SCORER, NEW = "reader-token-0123456789", "scorer-token-0123456789", "new-token-0123456789"


class Served:
    """A store edge as a process, and its clients."""

    def __init__(self, folder: Path, config: Path) -> None:
        self.folder, self.authority = folder, Authority(folder, "authority")
        certificate, key = self.authority.issue("server")
        self.tokens = folder / "reader.token"
        self.tokens.write_text(READER)
        plain = config.read_text()
        config.write_text(
            "security:\n"
            f"  tls: {{certificate: {certificate}, key: {key}}}\n"
            "  tokens:\n"
            f"    reader: {{token: {{file: {self.tokens}}}, roles: [read]}}\n"
            f"    scorer: {{token: {SCORER}, roles: [read, log]}}\n" + plain
        )
        command = [sys.executable, "-P", "-m", "steadfeast.featurestore.cli", "store", "serve"]
        command += ["--config", str(config), "--grpc", f"{HOST}:0", "--http", f"{HOST}:0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        said = self.process.stdout.readline().split()
        self.grpc, self.http = int(said[4].rstrip(",")), int(said[-1])

    def channel(self, token: str) -> grpc.Channel:
        tls = ClientTlsConfig(ca=self.authority.path)
        return channel(f"{HOST}:{self.grpc}", token=token, tls=tls)

    def post(self, path: str, body: dict[str, Any], token: str = "") -> tuple[int, Any]:
        request = urllib.request.Request(
            f"https://{HOST}:{self.http}{path}",
            json.dumps(body).encode(),
            {"authorization": f"Bearer {token}"} if token else {},
        )
        context = create_default_context(cafile=str(self.authority.path))
        try:
            with urllib.request.urlopen(request, timeout=30, context=context) as answer:  # noqa: S310
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)


@pytest.fixture
def served(store, shop, tmp_path: Path) -> Iterator[Served]:
    del store  # has filled the online store
    made = Served(tmp_path, shop.config)
    yield made
    made.process.terminate()
    made.process.communicate(timeout=60)


def code(opened: grpc.Channel) -> grpc.StatusCode:
    try:
        get(opened, service="small")
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_each_token_may_do_its_roles_and_no_more(served: Served):
    ask = {"feature_service": "small", "entities": {"user_id": [1]}}
    label = {"service": "small", "labels": [{"request_id": "r", "value": 1}]}
    for token, reads, logs in ((READER, 200, 403), (SCORER, 200, 202), ("", 401, 401)):
        assert served.post("/get-online-features", ask, token)[0] == reads
        status, body = served.post("/labels", label, token)
        assert status == logs, body
    assert served.post("/push", {}, SCORER)[0] == 403
    assert "role read is needed" in served.post("/get-online-features", ask)[1]["detail"]
    with served.channel(READER) as reader, served.channel(SCORER) as scorer:
        assert get(reader, service="small").statuses.keys() == {"spend"}
        labels = [features_pb2.Label(request_id="r", value=1)]
        sent = [features_pb2.LogLabelsRequest(service="small", labels=labels)]
        stub = features_pb2_grpc.FeatureServiceStub
        assert stub(scorer).LogLabels(iter(sent), timeout=30).accepted == 1
        with pytest.raises(grpc.RpcError) as caught:
            stub(reader).LogLabels(iter(sent), timeout=30)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_a_token_and_a_certificate_change_without_a_restart(served: Served):
    served.tokens.write_text(NEW)
    os.kill(served.process.pid, signal.SIGHUP)
    with served.channel(NEW) as opened:
        wait_for(lambda: code(opened) is grpc.StatusCode.OK, 30)
    with served.channel(READER) as opened:
        assert code(opened) is grpc.StatusCode.UNAUTHENTICATED
    served.tokens.write_text("short")
    os.kill(served.process.pid, signal.SIGHUP)  # is refused, and the token from before stays
    other = Authority(served.folder, "other")
    other.issue("server")
    served.authority = other
    with served.channel(NEW) as opened:
        assert code(opened) is grpc.StatusCode.OK
    ask = {"feature_service": "small", "entities": {"user_id": [1]}}
    wait_for(lambda: _answers(served, ask), 30)


def _answers(served: Served, ask: dict[str, Any]) -> bool:
    try:
        return served.post("/get-online-features", ask, NEW)[0] == 200
    except urllib.error.URLError:  # of the certificate from before
        return False


def test_every_method_has_a_role():
    """A method that somebody adds is refused until it is given one."""
    service = features_pb2.DESCRIPTOR.services_by_name["FeatureService"]
    assert set(ROLES) == {f"{SERVICE}/{method.name}" for method in service.methods}
