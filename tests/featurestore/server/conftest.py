"""A small shop with rows online, and an edge that serves it on real sockets."""

from __future__ import annotations

from datetime import timedelta

import grpc
import pytest

from steadfeast import Store
from steadfeast.featurestore.server import Edge
from support.edge import NOW


@pytest.fixture
def store(shop):
    def row(age, **values):
        return {"at": NOW - age, **values}

    users = [
        row(timedelta(hours=1), user_id=1, spend=4.0, visits=2**62 + 1, city="Bern"),
        row(timedelta(days=2), user_id=2, spend=9.0, visits=3, city="Graz"),
        row(timedelta(hours=2), user_id=3, spend=float("nan"), visits=None, city=None),
    ]
    items = [row(timedelta(days=9), item_id="a", price=0.1, listed=NOW - timedelta(days=30))]
    shop.write([{"written": user["at"], **user} for user in users], items)
    with Store.open(shop.config) as opened:
        opened.materialize(NOW)
        yield opened


@pytest.fixture
def edge(store):
    with Edge(store, "127.0.0.1:0", "127.0.0.1:0") as running:
        yield running


@pytest.fixture
def channel(edge):
    with grpc.insecure_channel(f"127.0.0.1:{edge.grpc_port}") as opened:
        yield opened
