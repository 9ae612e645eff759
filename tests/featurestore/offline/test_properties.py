"""Random histories and requests: the join against the naive loop, and the tie rule's two forms."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steadfeast.featurestore.offline import join, sources
from steadfeast.featurestore.offline.binding import Bound
from steadfeast.featurestore.offline.entities import Entities
from steadfeast.featurestore.tables import sql, total_order
from support.offline_oracle import INSTANT, at, bits, oracle

if TYPE_CHECKING:
    from pathlib import Path

# Few distinct instants and values, so that ties, repeats and boundaries are common.
instants = st.one_of(
    st.integers(0, 6).map(at),
    st.sampled_from([at(1, -1), at(1, 1), at(2, 1), datetime(1969, 12, 31, 23, 59, 59, 1, UTC)]),
)
floats = st.one_of(st.none(), st.sampled_from([0.0, -0.0, math.nan, math.inf, 1.0, 2.0]))
keys = st.one_of(st.none(), st.integers(0, 3))
histories = st.lists(
    st.fixed_dictionaries(
        {
            "k": keys,
            "j": st.one_of(st.none(), st.sampled_from(["a", "b"])),
            "ts": st.one_of(st.none(), instants),
            "made": st.one_of(st.none(), instants),
            "a": floats,
            "b": st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.integers(0, 1)),
        }
    ),
    max_size=30,
)
requests = st.lists(
    st.fixed_dictionaries(
        {
            "k": keys,
            "j": st.one_of(st.none(), st.sampled_from(["a", "b", "c"])),
            "event_timestamp": st.one_of(st.none(), instants),
        }
    ),
    min_size=1,
    max_size=12,
)
TYPES = {"k": pa.int64(), "j": pa.string(), "ts": INSTANT, "made": INSTANT, "a": pa.float64()}


def arrow(rows: list[dict[str, Any]], names: list[str]) -> pa.Table:
    kinds = TYPES | {"b": pa.int64(), "event_timestamp": INSTANT}
    return pa.table({n: pa.array([row[n] for row in rows], kinds[n]) for n in names})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'America/New_York'")  # must not matter
    return SimpleNamespace(connection=connection, folder=tmp_path_factory.mktemp("random"))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    history=histories,
    asked=requests,
    by=st.sampled_from([["k"], ["k", "j"], []]),
    ttl=st.sampled_from([timedelta(0), timedelta(hours=1), timedelta(microseconds=1)]),
    created=st.booleans(),
    as_known=st.booleans(),
    repeat=st.sampled_from([1, 9]),
    threads=st.sampled_from([1, 2]),
)
def test_join_agrees_with_the_naive_loop(
    world: SimpleNamespace,
    history: list[dict[str, Any]],
    asked: list[dict[str, Any]],
    by: list[str],
    ttl: timedelta,
    created: bool,
    as_known: bool,
    repeat: int,
    threads: int,
) -> None:
    path = world.folder / "history.parquet"
    pq.write_table(arrow(history, ["k", "j", "ts", "made", "a", "b"]), path)
    world.connection.execute(f"SET threads = {threads}")
    scan = sql.parquet([str(path)])
    relation = world.connection.sql(f"SELECT * FROM {scan}")
    columns = dict(zip(relation.columns, relation.types, strict=True))
    source = sources.Source("v", str(path), scan, columns)
    view = sql.View(
        scan=scan,
        keys=tuple(source.column(key) for key in by),
        timestamp=source.time("ts"),
        created=source.time("made") if created else None,
        features=((source.column("a"), "a"), (source.column("b"), "b")),
        order=(("a", source.column("a")), ("b", source.column("b"))),
        ttl=ttl // timedelta(microseconds=1),
    )
    asked = asked * repeat
    frame = Entities(arrow(asked, ["k", "j", "event_timestamp"]), "event_timestamp")
    bound = Bound("v", view, tuple(by), source)
    found = join.join(world.connection, frame, [bound], as_known=as_known)
    assert found.select(frame.table.column_names).equals(frame.table)
    rows = history if created else [{**row, "made": None} for row in history]
    for ask, got in zip(asked, found.to_pylist(), strict=True):
        best = oracle(rows, ask, "ab", keys=by, ttl=ttl, as_known=as_known and created) or {}
        assert (bits(got["a"]), bits(got["b"])) == (bits(best.get("a")), bits(best.get("b")))


nested = {
    "double": (pa.float64(), floats),
    "float": (pa.float32(), floats),
    "int": (pa.int32(), st.one_of(st.none(), st.integers(-(2**31), 2**31 - 1))),
    "unsigned": (pa.uint64(), st.one_of(st.none(), st.integers(0, 2**64 - 1))),
    "bool": (pa.bool_(), st.one_of(st.none(), st.booleans())),
    "string": (pa.string(), st.one_of(st.none(), st.text(max_size=3), st.just("\x00"))),
    "bytes": (pa.binary(), st.one_of(st.none(), st.binary(max_size=3))),
    "time": (INSTANT, st.one_of(st.none(), instants)),
    "decimal": (
        pa.decimal128(10, 2),
        st.one_of(st.none(), st.integers(-999, 999).map(lambda n: Decimal(n).scaleb(-2))),
    ),
    "floats": (pa.list_(pa.float64()), st.one_of(st.none(), st.lists(floats, max_size=3))),
    "lists": (
        pa.list_(pa.list_(pa.int64())),
        st.lists(st.one_of(st.none(), st.lists(st.integers(0, 2), max_size=2)), max_size=2),
    ),
    "struct": (
        pa.struct([("x y", pa.float64()), ("it's", pa.string())]),
        st.one_of(
            st.none(),
            st.fixed_dictionaries({"x y": floats, "it's": st.one_of(st.none(), st.text("ab"))}),
        ),
    ),
    "map": (
        pa.map_(pa.string(), pa.float64()),
        st.lists(st.tuples(st.sampled_from("ab"), floats), max_size=2, unique_by=lambda p: p[0]),
    ),
}


@pytest.mark.parametrize("kind", nested)
def test_sql_orders_rows_as_their_canonical_bytes(world: SimpleNamespace, kind: str) -> None:
    """Sorting by the SQL keys and sorting by the bytes give the same order of values."""
    arrow_type, values = nested[kind]

    @settings(max_examples=25)
    @given(st.lists(st.tuples(values, st.integers(0, 1)), min_size=2, max_size=8))
    def check(pairs: list[tuple[Any, int]]) -> None:
        table = pa.table(
            {
                "n": pa.array(range(len(pairs))),
                "b c": pa.array([a for a, _ in pairs], arrow_type),
                "a": pa.array([b for _, b in pairs], pa.int8()),
            }
        )
        world.connection.register("t", table)
        relation = world.connection.sql("SELECT * FROM t")
        types = dict(zip(relation.columns, relation.types, strict=True))
        features = [(name, sql.identifier(name), types[name]) for name in ("b c", "a")]
        by = ", ".join(f"{k} ASC NULLS FIRST" for k in total_order.canonical_keys(features))
        ranked = f"SELECT n, dense_rank() OVER (ORDER BY {by}) AS place FROM t ORDER BY n"
        places = [place for _, place in world.connection.execute(ranked).fetchall()]
        rows = table.drop_columns("n").to_pylist()
        encoded = [total_order.canonical_bytes(row) for row in rows]
        wanted = {code: place for place, code in enumerate(sorted(set(encoded)), 1)}
        assert places == [wanted[code] for code in encoded]

    check()


def test_canonical_bytes_are_what_the_definition_says() -> None:
    """The bytes of one row, written out by hand."""
    row = {"b": 1, "a": None, "c": -0.0, "d": "x\x00", "e": [True], "f": math.nan}
    wanted = (
        "00"
        "01 80000000000000000000000000000001"
        "01 7fffffffffffffff"
        "01 78 00ff 0000"
        "01 01 01 01 00"
        "01 ffffffffffffffff"
    )
    assert total_order.canonical_bytes(row) == bytes.fromhex(wanted)


def test_late_knowledge_never_crosses_keys(world: SimpleNamespace, tmp_path: Path) -> None:
    """A row known only after every request leaves the next key alone, packed or not."""
    rows = [
        {"k": 0, "ts": at(0), "made": at(10**6), "a": 1.0, "b": 0},
        {"k": 1, "ts": at(0), "made": at(0), "a": 2.0, "b": 0},
    ]
    asked = [{"k": k, "j": None, "event_timestamp": at(1)} for k in (0, 1)] * 30
    history = [{**row, "j": None} for row in rows]
    del tmp_path
    check = test_join_agrees_with_the_naive_loop.hypothesis.inner_test
    check(world, history, asked, ["k"], timedelta(hours=2), True, True, 1, 2)
