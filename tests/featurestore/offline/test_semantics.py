"""The corners of a point-in-time join, on whichever Feast offline store is under test.

Each test's first line says a rule; `benchmarks/semantics.py` prints which stores keep it.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from feast.types import Array, Bytes, Float32, Int64, String
from feast.value_type import ValueType

from support.offline_oracle import INSTANT, at, bits, oracle

if TYPE_CHECKING:
    from conftest import Repo

US = timedelta(microseconds=1)
HOUR = timedelta(hours=1)


def table(rows: list[dict[str, Any]], **types: pa.DataType) -> pa.Table:
    """Make a source: `ts` and `made` are UTC microseconds, `k` int64, the rest as given."""
    known = {"k": pa.int64(), "ts": INSTANT, "made": INSTANT} | types
    names = list(rows[0])
    return pa.table(
        {n: pa.array([row[n] for row in rows], known.get(n, pa.float64())) for n in names}
    )


def ask(*rows: tuple[Any, datetime | None], **columns: list[Any]) -> pa.Table:
    """Make an entity frame of keys and times."""
    keys = [key for key, _ in rows]
    kind = pa.string() if any(isinstance(key, str) for key in keys) else pa.int64()
    times = pa.array([when for _, when in rows], INSTANT)
    return pa.table({"k": pa.array(keys, kind), "event_timestamp": times} | columns)


def test_newest_row_at_or_before_the_time(repo: Repo) -> None:
    """A row gets the newest value at or before its time."""
    repo.view(table([{"k": 1, "ts": at(h), "a": float(h)} for h in range(5)]), ["a"])
    found = repo.join(ask((1, at(2.5)), (1, at(3)), (1, at(9))), ["v:a"])
    assert sorted(found["a"].to_pylist()) == [2.0, 3.0, 4.0]


def test_rows_without_a_value_survive(repo: Repo) -> None:
    """A row without a value survives, with null: unknown key, only later, only expired."""
    rows = [{"k": 1, "ts": at(10), "a": 1.0}, {"k": 3, "ts": at(0), "a": 3.0}]
    repo.view(table(rows), ["a"], ttl=HOUR)
    found = repo.join(ask((2, at(11)), (1, at(9)), (3, at(9)), (1, at(10.5))), ["v:a"])
    assert sorted(found["a"].to_pylist(), key=str) == [1.0, None, None, None]


@pytest.mark.parametrize(("late", "usable"), [(-1, True), (0, True), (1, False)])
def test_ttl_includes_its_last_microsecond(repo: Repo, late: int, usable: bool) -> None:
    """The TTL includes its last microsecond and not one more."""
    repo.view(table([{"k": 1, "ts": at(0), "a": 1.0}]), ["a"], ttl=HOUR)
    found = repo.join(ask((1, at(1, late))), ["v:a"])
    assert found["a"].to_pylist() == [1.0 if usable else None]


def test_ttl_zero_is_no_limit(repo: Repo) -> None:
    """A TTL of zero is no limit."""
    repo.view(table([{"k": 1, "ts": at(-24 * 3650), "a": 1.0}]), ["a"], ttl=timedelta(0))
    assert repo.join(ask((1, at(0))), ["v:a"])["a"].to_pylist() == [1.0]


@pytest.mark.parametrize("seed", range(4))
def test_ties_do_not_depend_on_row_order(repo: Repo, seed: int) -> None:
    """Ties in event time are decided by the values, not by the order of rows."""
    rows = [{"k": 1, "ts": at(0), "a": float(a), "b": float(b)} for a in range(3) for b in range(3)]
    order = np.random.default_rng(seed).permutation(len(rows))
    repo.view(table([rows[i] for i in order]), ["a", "b"])
    found = repo.join(ask((1, at(1))), ["v:a", "v:b"])
    assert (found["a"].to_pylist(), found["b"].to_pylist()) == ([2.0], [2.0])


def test_ties_are_decided_by_features_not_asked_for(repo: Repo) -> None:
    """Which row wins a tie does not depend on which of its features are asked for."""
    rows = [{"k": 1, "ts": at(0), "a": 1.0, "b": 9.0}, {"k": 1, "ts": at(0), "a": 2.0, "b": 0.0}]
    repo.view(table(rows), ["a", "b"])
    both = repo.join(ask((1, at(1))), ["v:a", "v:b"]).select(["a", "b"]).to_pylist()[0]
    alone = [repo.join(ask((1, at(1))), [f"v:{f}"])[f].to_pylist()[0] for f in ("a", "b")]
    assert alone == [both["a"], both["b"]]


def test_created_time_decides_ties(repo: Repo) -> None:
    """Of two rows of one event time, the one created later wins, a null created time never."""
    rows = [
        {"k": 1, "ts": at(0), "made": at(2), "a": 1.0},
        {"k": 1, "ts": at(0), "made": None, "a": 9.0},
        {"k": 1, "ts": at(0), "made": at(1), "a": 5.0},
    ]
    repo.view(table(rows), ["a"], created="made")
    assert repo.join(ask((1, at(9))), ["v:a"])["a"].to_pylist() == [1.0]


def test_as_known_uses_only_what_was_known(repo: Repo) -> None:
    """With the created-time filter, a row counts from its created time on; without, at once."""
    rows = [
        {"k": 1, "ts": at(0), "made": at(0), "a": 1.0},
        {"k": 1, "ts": at(0), "made": at(5), "a": 2.0},  # corrects the first
        {"k": 1, "ts": at(1), "made": at(8), "a": 3.0},  # arrives late
    ]
    repo.view(table(rows), ["a"], created="made")
    asked = ask(*((1, at(h)) for h in (0.5, 2, 5, 7, 8)))
    found = repo.join(asked, ["v:a"], filter_by_created_timestamp=True)
    by_time = dict(zip(found["event_timestamp"].to_pylist(), found["a"].to_pylist(), strict=True))
    assert [by_time[t] for t in sorted(by_time)] == [1.0, 1.0, 2.0, 2.0, 3.0]
    found = repo.join(asked, ["v:a"])
    by_time = dict(zip(found["event_timestamp"].to_pylist(), found["a"].to_pylist(), strict=True))
    assert [by_time[t] for t in sorted(by_time)] == [2.0, 3.0, 3.0, 3.0, 3.0]


def test_null_keys_match_nothing(repo: Repo) -> None:
    """A null key matches nothing, not even a null key of the source."""
    rows = [{"k": None, "ts": at(0), "a": 1.0}, {"k": 1, "ts": at(0), "a": 2.0}]
    repo.view(table(rows), ["a"])
    found = repo.join(ask((None, at(1)), (1, at(1))), ["v:a"])
    assert sorted(found["a"].to_pylist(), key=str) == [2.0, None]


def test_composite_keys(repo: Repo) -> None:
    """All parts of a composite key must match; parts never run together."""
    rows = [
        {"k": 1, "j": 11, "ts": at(0), "a": 1.0},
        {"k": 11, "j": 1, "ts": at(0), "a": 2.0},
        {"k": 1, "j": None, "ts": at(0), "a": 3.0},
    ]
    repo.view(table(rows, j=pa.int64()), ["a"], keys=["k", "j"])
    asked = ask(*[(1, at(1)), (11, at(1)), (1, at(1)), (1, at(1))], j=pa.array([11, 1, 2, None]))
    found = repo.join(asked, ["v:a"])
    assert sorted(found["a"].to_pylist(), key=str) == [1.0, 2.0, None, None]


def test_aliased_join_keys_and_one_view_twice(repo: Repo) -> None:
    """One view under two names, each with a join key of its own."""
    view = repo.view(table([{"k": k, "ts": at(0), "a": float(k)} for k in range(4)]), ["a"])
    views = [
        view.with_name("origin").with_join_key_map({"k": "from"}),
        view.with_name("target").with_join_key_map({"k": "to"}),
    ]
    from feast import FeatureService  # noqa: PLC0415 - only here

    service = FeatureService(name="route", features=views)
    repo.store.apply([service])
    asked = pa.table(
        {"from": [1, 2], "to": [3, 9], "event_timestamp": pa.array([at(1)] * 2, INSTANT)}
    )
    job = repo.store.get_historical_features(asked.to_pandas(), service, full_feature_names=True)
    found = job.to_arrow()
    pairs = zip(found["origin__a"].to_pylist(), found["target__a"].to_pylist(), strict=True)
    assert sorted(pairs) == [(1.0, 3.0), (2.0, None)]


def test_field_mapping(repo: Repo) -> None:
    """Mapped features, keys and times are read under their source's names."""
    rows = [{"key": 1, "when": at(h), "made at": at(h), "A": float(h)} for h in range(3)]
    data = pa.table(
        {n: pa.array([r[n] for r in rows], INSTANT if n[0] in "wm" else None) for n in rows[0]}
    )
    mapping = {"key": "k", "when": "ts", "made at": "made", "A": "a"}
    repo.view(data, ["a"], created="made", mapping=mapping)
    assert repo.join(ask((1, at(1.5))), ["v:a"])["a"].to_pylist() == [1.0]


def test_repeated_rows_all_survive(repo: Repo) -> None:
    """Entity rows that repeat are each answered."""
    repo.view(table([{"k": 1, "ts": at(0), "a": 1.0}]), ["a"])
    assert repo.join(ask(*[(1, at(1))] * 3), ["v:a"])["a"].to_pylist() == [1.0] * 3


def test_order_and_extra_columns_are_kept(repo: Repo) -> None:
    """Rows keep their order and their extra columns."""
    repo.view(table([{"k": k, "ts": at(0), "a": float(k)} for k in range(50)]), ["a"])
    keys = np.random.default_rng(0).permutation(60).tolist()
    asked = ask(*((k, at(1)) for k in keys), note=[f"n{k}" for k in keys])
    found = repo.join(asked, ["v:a"])
    assert found["k"].to_pylist() == keys
    assert found["note"].to_pylist() == [f"n{k}" for k in keys]
    assert found["a"].to_pylist() == [float(k) if k < 50 else None for k in keys]


def test_sql_entity_frame(repo: Repo) -> None:
    """The entity frame may be the text of a query."""
    repo.view(table([{"k": 1, "ts": at(0), "a": 1.0}]), ["a"])
    query = "SELECT 1 AS k, TIMESTAMP '2024-01-01 01:00:00+00' AS event_timestamp"
    assert repo.join(query, ["v:a"])["a"].to_pylist() == [1.0]


def test_date_range_instead_of_entity_frame(repo: Repo) -> None:
    """Without an entity frame, every key and event time of a date range is a row."""
    rows = [{"k": k, "ts": at(h), "a": 10.0 * k + h} for k in (1, 2) for h in range(5)]
    repo.view(table(rows), ["a"])
    found = repo.join(None, ["v:a"], start_date=at(1), end_date=at(3))
    assert sorted(found["a"].to_pylist()) == [11.0, 12.0, 13.0, 21.0, 22.0, 23.0]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
def test_time_types_of_the_source(repo: Repo, unit: str, zone: str | None) -> None:
    """Event times of any unit, naive or aware, mean the same instant; naive is UTC."""
    data = table([{"k": 1, "ts": at(h), "a": float(h)} for h in range(3)])
    times = data["ts"].cast(pa.timestamp(unit, tz="UTC"))
    cast = times.cast(pa.int64()).cast(pa.timestamp(unit, tz=zone))
    repo.view(data.set_column(1, "ts", cast), ["a"], ttl=timedelta(hours=0.9))
    assert repo.join(ask((1, at(1.5))), ["v:a"])["a"].to_pylist() == [1.0]


def test_entity_times_in_another_zone(repo: Repo) -> None:
    """Entity times in another zone mean their instant, through a change of clocks."""
    zone = "America/New_York"  # 05:30 and 06:30 UTC are both 01:30 there on 3 November
    first = datetime(2024, 11, 3, 5, 30, tzinfo=UTC)
    repo.view(table([{"k": 1, "ts": first + HOUR * h, "a": float(h)} for h in range(3)]), ["a"])
    times = pd.Series(pd.to_datetime([first, first + HOUR])).dt.tz_convert(zone)
    found = repo.join(pd.DataFrame({"k": [1, 1], "event_timestamp": times}), ["v:a"])
    assert found["a"].to_pylist() == [0.0, 1.0]


def test_before_1970(repo: Repo) -> None:
    """Times before 1970 are times like others."""
    then = datetime(1955, 11, 5, tzinfo=UTC)
    repo.view(table([{"k": 1, "ts": then, "a": 1.0}]), ["a"], ttl=HOUR)
    found = repo.join(ask((1, then + HOUR), (1, then - US)), ["v:a"])
    assert sorted(found["a"].to_pylist(), key=str) == [1.0, None]


def test_null_is_not_nan(repo: Repo) -> None:
    """Null, NaN, the infinities and both zeros come back as they are."""
    given = [None, math.nan, math.inf, -math.inf, -0.0, 0.0]
    repo.view(table([{"k": k, "ts": at(0), "a": a} for k, a in enumerate(given)]), ["a"])
    found = repo.join(ask(*((k, at(1)) for k in range(6))), ["v:a"])
    pairs = dict(zip(found["k"].to_pylist(), found["a"].to_pylist(), strict=True))
    assert [bits(pairs[k]) for k in range(6)] == [bits(a) for a in given]


def test_integers_beside_nulls(repo: Repo) -> None:
    """int64 stays int64 and exact, to its extremes, with nulls beside it."""
    given = [2**63 - 1, -(2**63), 2**53 + 1, None]
    rows = [{"k": k, "ts": at(0), "a": a} for k, a in enumerate(given)]
    repo.view(table(rows, a=pa.int64()), ["a"], dtype=Int64)
    found = repo.join(ask(*((k, at(1)) for k in range(5))), ["v:a"])
    pairs = dict(zip(found["k"].to_pylist(), found["a"].to_pylist(), strict=True))
    assert found.schema.field("a").type == pa.int64()
    assert [pairs[k] for k in range(5)] == [*given, None]


VALUES = {
    "float32": (pa.float32(), Float32, [0.1, -0.0]),
    "string": (pa.string(), String, ["it's", 'a "b"; --', "", "\u00e9\U0001f600\x00x"]),
    "bytes": (pa.binary(), Bytes, [b"", b"\x00\xff"]),
    "list": (pa.list_(pa.float64()), Array(Int64), [[], [1.0, math.nan], [None]]),
    "decimal": (pa.decimal128(20, 4), String, [Decimal("1.2300"), Decimal("-9999999999.9999")]),
    "struct": (pa.struct([("x", pa.int64()), ("y", pa.string())]), String, [{"x": 1, "y": None}]),
}


@pytest.mark.parametrize("kind", VALUES)
def test_values_of_every_type(repo: Repo, kind: str) -> None:
    """Values come back bit for bit, in their own type, and null where there is none."""
    arrow, dtype, given = VALUES[kind]
    rows = [{"k": k, "ts": at(0), "a": a} for k, a in enumerate([*given, None])]
    data = table(rows, a=arrow)
    repo.view(data, ["a"], dtype=dtype)
    found = repo.join(ask(*((k, at(1)) for k in range(len(rows) + 1))), ["v:a"])
    pairs = dict(zip(found["k"].to_pylist(), found["a"].to_pylist(), strict=True))
    wanted = data["a"].to_pylist()
    assert found.schema.field("a").type == arrow
    assert [bits(pairs[k]) for k in range(len(rows) + 1)] == [bits(a) for a in [*wanted, None]]


@pytest.mark.parametrize("key", ["it's", "", "a;b", "\u00e9"])
def test_text_keys(repo: Repo, key: str) -> None:
    """Keys are compared as they are."""
    rows = [{"k": k, "ts": at(0), "a": float(i)} for i, k in enumerate([key, key + "x", "z"])]
    repo.view(table(rows, k=pa.string()), ["a"], key_type=ValueType.STRING)
    found = repo.join(ask((key, at(1)), (key + " ", at(1))), ["v:a"])
    assert sorted(found["a"].to_pylist(), key=str) == [0.0, None]


@pytest.mark.parametrize("name", ["select", "a b", 'q"t', "a_y", "rn", "entity_row_id", "i"])
def test_any_name_is_a_name(repo: Repo, name: str) -> None:
    """Features may be called anything: spaces, quotes, reserved words."""
    rows = [{"k": 1, "ts": at(h), name: float(h)} for h in range(2)]
    repo.view(table(rows), [name])
    assert repo.join(ask((1, at(3))), [f"v:{name}"])[name].to_pylist() == [1.0]


def test_full_feature_names_part_views_that_share_them(repo: Repo) -> None:
    """Two views' features of one name are told apart by full feature names."""
    for n, name in enumerate(("v", "w")):
        repo.view(table([{"k": 1, "ts": at(0), "a": float(n)}]), ["a"], name=name)
    found = repo.join(ask((1, at(1))), ["v:a", "w:a"], full_feature_names=True)
    assert (found["v__a"].to_pylist(), found["w__a"].to_pylist()) == ([0.0], [1.0])


def test_materialize_nanoseconds_with_a_zone(repo: Repo) -> None:
    """Materialization reads time-zone-aware nanoseconds, pandas' default."""
    data = table([{"k": 1, "ts": at(h), "a": float(h)} for h in range(3)])
    times = data["ts"].cast(pa.timestamp("ns", tz="UTC"))
    repo.view(data.set_column(1, "ts", times), ["a"])
    repo.store.materialize(at(0), at(9), feature_views=["v"])
    online = repo.store.get_online_features(["v:a"], [{"k": 1}]).to_dict()
    assert online["a"] == [2.0]


@pytest.mark.parametrize("as_known", [False, True])
@pytest.mark.parametrize("per_key", [1, 40])
def test_a_random_history(repo: Repo, as_known: bool, per_key: int) -> None:
    """A random history with ties, late rows and nulls agrees with the naive loop."""
    random = np.random.default_rng(7)
    rows = [
        {
            "k": int(random.integers(0, 12)),
            "ts": at(int(random.integers(0, 40))),
            "made": at(int(random.integers(0, 60))),
            "a": None if random.random() < 0.1 else float(random.integers(0, 5)),
            "b": float(random.integers(0, 5)),
        }
        for _ in range(600)
    ]
    repo.view(table(rows), ["a", "b"], created="made", ttl=5 * HOUR)
    keys = list(range(14)) * per_key
    asked = ask(*((k, at(float(random.integers(0, 50)))) for k in keys), n=list(range(len(keys))))
    options = {"filter_by_created_timestamp": True} if as_known else {}
    found = {row["n"]: row for row in repo.join(asked, ["v:a", "v:b"], **options).to_pylist()}
    for row in asked.to_pylist():
        best = oracle(rows, row, ["a", "b"], ttl=5 * HOUR, as_known=as_known) or {}
        got = found[row["n"]]
        assert (got["a"], got["b"]) == (best.get("a"), best.get("b")), row
