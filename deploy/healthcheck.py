#!/opt/steadfeast/bin/python
"""Say by the exit code whether a server of this container answers: 0 when it does, 1 when not.

    healthcheck [ADDRESS]

ADDRESS is `http://host:port/path`, `https://...` or `grpc://host:port` (gRPC's health protocol,
without TLS); without it STEADFEAST_HEALTH, or the daemon's page. A certificate is not checked: the
server is asked whether it answers, by its own container, and nothing is sent to it.
"""

from __future__ import annotations

import os
import ssl
import sys
import urllib.error
import urllib.request
from http import HTTPStatus

SECONDS = 4


def answers(address: str) -> bool:
    """Return whether the server at `address` answers, and says that it is well."""
    if address.startswith("grpc://"):
        return _grpc_answers(address.removeprefix("grpc://"))
    if not address.startswith(("http://", "https://")):
        sys.exit(f"healthcheck: {address}: an address begins with http://, https:// or grpc://")
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    opener = urllib.request.build_opener(  # not by a proxy: it is this container
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    try:
        with opener.open(address, timeout=SECONDS) as answer:
            return answer.status == HTTPStatus.OK
    except (OSError, urllib.error.HTTPError):
        return False


def _grpc_answers(address: str) -> bool:
    import grpc  # noqa: PLC0415 - most checks are over HTTP, and run every few seconds
    from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: PLC0415

    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(address, options=options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        except grpc.RpcError:
            return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    default = os.environ.get("STEADFEAST_HEALTH", "http://127.0.0.1:9464/healthz")
    sys.exit(not answers(sys.argv[1] if len(sys.argv) > 1 else default))
