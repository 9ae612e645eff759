"""Columns are known for what they are: what only grows or names a row is no drift, ever."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
from prometheus_client import generate_latest

from steadfeast.monitor.cli import output
from steadfeast.monitor.drift.detector import Level
from steadfeast.monitor.exporter.collector import registry
from steadfeast.monitor.ledger import messages
from steadfeast.monitor.ledger.state import State
from steadfeast.monitor.profiles.binning import Edges, edges_of
from steadfeast.monitor.profiles.roles import Role
from steadfeast.monitor.web.page import page
from steadfeast.protos.steadfeast.v1 import monitor_pb2
from support.table_world import DAY, START, TRAINED, evaluator, times, watched, written

if TYPE_CHECKING:
    from pathlib import Path

CUSTOMERS = 60
DAYS = TRAINED + 12


def orders(rng, day, rows):
    """A table of orders, as shops have them; nothing happens."""
    at = times(rng, day, rows)
    micros = np.array(at.cast(pa.int64()))
    who = rng.integers(0, CUSTOMERS, rows)
    return {
        "ts": at,
        "order_id": np.arange(rows) + day * rows,
        "hash": rng.integers(2**60, 2**62, rows),
        "customer": who,
        "created_at": pa.array(micros - rng.integers(0, 3 * 86_400_000_000, rows), "timestamp[us]"),
        "days_since_first": (day + who).astype(float),
        "year": np.full(rows, 2024),
        "month": np.full(rows, (START + day * DAY).month),
        "day": [f"{START + day * DAY:%Y-%m-%d}"] * rows,
        "version": np.full(rows, 3.0),
        "coupon": pa.array([1.0 if i == 0 else None for i in range(rows)]),
        "session": [f"{one:016x}" for one in rng.integers(0, 2**62, rows)],
        "note": [f"please leave it {one}" for one in rng.integers(0, 10**9, rows)],
        "vector": pa.array(list(rng.normal(0, 1, (rows, 8))), pa.list_(pa.float64())),
        "kinds": pa.array([[("a", 1)]] * rows, pa.map_(pa.string(), pa.int64())),
        "amount": rng.lognormal(3, 1, rows),
        "hour": rng.integers(0, 24, rows),
    }


EXPECTED = {
    "order_id": (Role.IDENTIFIER, ()),
    "hash": (Role.IDENTIFIER, ()),
    "created_at": (Role.TIME, ("created_at.age",)),
    "days_since_first": (Role.GROWING, ()),
    "year": (Role.CALENDAR, ()),
    "month": (Role.CALENDAR, ()),
    "day": (Role.CALENDAR, ()),
    "version": (Role.CONSTANT, ("version",)),
    "coupon": (Role.EMPTY, ("coupon",)),
    "session": (Role.IDENTIFIER, ("session", "session.pattern")),
    "note": (Role.TEXT, ("note", "note.pattern")),
    "vector": (Role.EMBEDDING, ("vector.length", "vector.norm", "vector.distance")),
    "kinds": (Role.UNWATCHED, ()),
    "amount": (Role.FEATURE, ("amount",)),
    "hour": (Role.FEATURE, ("hour",)),
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("shop")
    return folder, written(folder, orders, DAYS)


def test_what_columns_are_is_recognised_and_shown(shop):
    folder, files = shop
    found = watched(folder, files, keys=["customer"])
    columns = found.reference.edges.watched(found.reference.profile.types)
    assert {one.name: (one.role, one.features) for one in columns} == EXPECTED
    assert found.reference.edges == Edges.from_json(found.reference.edges.to_json())
    assert [one.name for one in found.state.columns] == list(EXPECTED)
    assert found.incidents == []
    # Weeks after the reference ids, ages and months are where they are by then: no drift.
    assert [one.feature for one in found.verdicts.values() if one.level is Level.DRIFT] == []
    assert found.windows[-1].judged >= 8
    assert "map" in next(one.watched_by for one in columns if one.name == "kinds")
    assert {"order_id", "hash", "session"} <= found.reference.facts.repeats.keys()


def test_what_is_not_compared_is_on_the_page_in_status_and_a_metric(shop):
    folder, files = shop
    state = watched(folder, files, keys=["customer"]).state
    answer = monitor_pb2.GetStatusResponse(monitors=[messages.status(state)])
    lines = [str(part) for part in output.status(answer)]
    [named] = [line for line in lines if "values not compared" in line]
    left_out = [name for name, (_, features) in EXPECTED.items() if not features]
    assert all(f"{name} ({EXPECTED[name][0]})" in named for name in left_out)
    assert any("created_at is time: its age at the event time" in line for line in lines)
    whole = State(monitors={"m": state})
    facts = {one.term for one in page(whole, "", START).monitors[0].facts}
    assert {f"{name}, {EXPECTED[name][0]}" for name in left_out} <= facts
    told = generate_latest(registry(lambda: whole)).decode()
    for name in left_out:
        assert f'steadfeast_feature_unwatched{{feature="{name}",monitor="m"}} 1.0' in told
    assert 'steadfeast_monitor_judged_features{monitor="m"}' in told


def test_an_identifier_that_comes_twice_and_one_that_is_missing_are_incidents(tmp_path):
    def make(rng, day, rows):
        columns = orders(rng, day, rows)
        if day >= DAYS - 2:
            columns["order_id"] = columns["order_id"] // 2
            columns["hash"] = pa.nulls(rows, pa.int64())
        return columns

    found = watched(tmp_path, written(tmp_path, make, DAYS), keys=["customer"])
    told = {one.incident.kind: one.incident.summary for one in found.state.incidents}
    assert told["duplicates"] == "125 of 250 rows repeat order_id of another row"
    assert told["null_burst"] == "100% of hash are null; 0% are in the reference"


def test_the_configuration_has_the_last_word(shop, tmp_path):
    _, files = shop
    columns = {"amount": "unwatched", "order_id": "feature", "version": "identifier"}
    with evaluator(tmp_path, files, keys=["customer"], columns=columns) as (_, ledger):
        edges = ledger.held("m").reference.edges.columns
    assert edges["amount"].bins == 0
    assert edges["order_id"].bins > 10
    assert edges["version"].role is Role.IDENTIFIER


def changed(rng, _day, rows, later):
    """Columns of types that are no numbers and no text, as they are and as they become."""
    big = np.array([2**60 + 1, 2**60 + 2])
    hours = rng.integers(*((0, 3) if later else (9, 17)), rows)
    sizes = rng.integers(*((40, 60) if later else (5, 9)), rows)
    return {
        "time": pa.array([dt.time(int(hour)) for hour in hours]),
        "tags": pa.array([["a", "b" if later else "c"]] * rows, pa.list_(pa.string())),
        "struct": pa.array([{"price": {"net": float(v)}} for v in rng.normal(50 * later, 1, rows)]),
        "blob": pa.array([b"x" * int(size) for size in sizes]),
        "code": big[(rng.random(rows) < (0.8 if later else 0.3)).astype(int)],
        "span": pa.array(rng.integers(1, 1000, rows) * (100 if later else 1), pa.duration("s")),
        "flag": rng.random(rows) < 0.5,
    }


def test_types_that_are_no_numbers_are_compared_by_what_is_computed_of_them(tmp_path):
    def make(rng, day, rows):
        return changed(rng, day, rows, later=day >= TRAINED + 3)

    found = watched(tmp_path, written(tmp_path, make, DAYS))
    drifted = {one.feature for one in found.verdicts.values() if one.level is Level.DRIFT}
    assert drifted == {
        "time.hour", "tags.words", "struct.price.net", "blob.length", "code.digits", "span",
    }  # fmt: skip
    assert "115292150460684697" in found.verdicts["code.digits"].reason


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("world", ["walk", "season", "noise"])
def test_what_wanders_is_no_growth(world, seed):
    """Day effects as autocorrelated as .95, and eight weeks of a yearly season, stay features."""
    rng = np.random.default_rng([seed, 5])
    days, rows = 56, 400
    effects = np.zeros(days)
    for day in range(1, days):
        effects[day] = 0.95 * effects[day - 1] + 0.1 * np.sqrt(1 - 0.95**2) * rng.normal()
    if world == "season":
        effects = 0.3 * np.sin(2 * np.pi * (np.arange(days) / 365 + seed / 6))
    if world == "noise":
        effects = 0.3 * rng.standard_t(3, days)
    micros = np.arange(days * rows) * (86_400_000_000 // rows) + 1_700_000_000_000_000
    table = pa.table(
        {
            "event time of the row": pa.array(micros, pa.timestamp("us", "UTC")),
            "x": np.repeat(effects, rows) + rng.normal(0, 1, days * rows),
            "cents": rng.integers(1, 10**6, days * rows),
        }
    )
    edges = edges_of(table, ["x", "cents"]).columns
    assert [one.role for one in edges.values()] == [Role.FEATURE, Role.FEATURE]
