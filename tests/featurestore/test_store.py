"""The facade on a real Feast repo: what is served is what training sees, and nothing else."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from steadfeast import Store
from steadfeast.featurestore.errors import (
    ConfigError,
    ContractMismatchError,
    DefinitionsError,
    EntityRowsError,
    NotFoundError,
    OnDemandError,
    UnsupportedTypeError,
)

NOON = datetime(2024, 3, 10, 12, tzinfo=UTC)
HOUR, DAY, TICK = timedelta(hours=1), timedelta(days=1), timedelta(microseconds=1)
BIG = 2**63 - 1


def user(number, at, written=None, **values):
    return {"user_id": number, "at": at, "written": written or at, **values}


def item(name, at, **values):
    return {"item_id": name, "at": at, **values}


def ask(users=(1,), items=("a",), amount=10.0):
    return pa.table(
        {
            "user_id": pa.array(users, pa.int64()),
            "item_id": pa.array(items, pa.string()),
            "amount": pa.array([amount] * len(users), pa.float64()),
        }
    )


def at(rows, time):
    return rows.append_column("event_timestamp", pa.array([time] * rows.num_rows))


def test_serves_what_was_materialized_with_states_and_times(shop):
    shop.write(
        [user(1, NOON - HOUR, spend=4.0, visits=BIG, city="Bern"), user(2, NOON - HOUR)],
        [item("a", NOON - 9 * DAY, price=2.5)],
    )
    with Store.open(shop.config) as store:
        assert store.materialize(NOON) == {"users": 2, "items": 1}
        got = store.online_features("purchase", ask([1, 2, 3], ["a", "b", None]), request_time=NOON)
    assert got.table.column_names == [
        *("user_id", "item_id", "amount"),
        *("spend", "visits", "city", "price", "listed"),
        *("share", "more_visits", "label", "twice"),
    ]
    assert got.to_dict() | {} == {
        "user_id": [1, 2, 3],
        "item_id": ["a", "b", None],
        "amount": [10.0] * 3,
        "spend": [4.0, None, None],
        "visits": [BIG, None, None],
        "city": ["Bern", None, None],
        "price": [2.5, None, None],
        "listed": [None] * 3,
        "share": [2.5, None, None],
        "more_visits": [BIG - 1, None, None],
        "label": ["BERN", None, None],
        "twice": [5.0, None, None],
    }
    assert got.table["visits"].type == pa.int64()
    assert got.statuses["visits"].tolist() == [1, 2, 3]
    assert got.statuses["price"].tolist() == [1, 3, 3]
    assert got.statuses["share"].tolist() == [1, 2, 2]
    assert got.event_times["users"].to_pylist() == [NOON - HOUR, NOON - HOUR, None]
    assert got.contract == Store.open(shop.config).contract("purchase").sha256
    assert np.isnan(got.to_numpy()["spend"][1])


@pytest.mark.parametrize("offset", [-TICK, timedelta(0), TICK])
def test_a_ttl_means_the_same_on_both_sides_of_its_last_microsecond(shop, offset):
    shop.write([user(1, NOON, spend=4.0)], [])
    time = NOON + DAY + offset
    with Store.open(shop.config) as store:
        store.materialize(time)
        online = store.online_features("small", ask(), request_time=time)
        offline = store.point_in_time("small", at(ask(), time))
    assert online.table["spend"].to_pylist() == offline["spend"].to_pylist()
    assert online.table["spend"].to_pylist() == ([4.0] if offset <= timedelta(0) else [None])
    assert online.statuses["spend"].tolist() == ([1] if offset <= timedelta(0) else [4])


def test_a_late_row_arrives_with_the_next_step_and_an_older_span_undoes_nothing(shop):
    early, late = user(1, NOON - 2 * HOUR, spend=1.0), user(1, NOON, spend=3.0)
    missed = user(2, NOON - 2 * HOUR, written=NOON + HOUR, spend=2.0)
    shop.write([early], [])
    with Store.open(shop.config) as store:
        store.materialize(NOON - HOUR)
        shop.write([early, late, missed], [])
        assert store.materialize(NOON)["users"] == 1
        assert store.online_features("small", ask([1, 2], "ab"), request_time=NOON).table[
            "spend"
        ].to_pylist() == [3.0, None]
        assert store.materialize(NOON + HOUR)["users"] == 1
        store.materialize(NOON - HOUR, since=NOON - DAY)
        got = store.online_features("small", ask([1, 2], "ab"), request_time=NOON + HOUR)
        assert got.table["spend"].to_pylist() == [3.0, 2.0]
        assert store.watermark("users") == NOON + HOUR


def test_many_small_steps_end_where_one_large_step_does(shop):
    """Random histories, corrections and late rows; steps are read ahead, the file changes."""
    dice = random.Random(7)
    rows = []
    for _ in range(400):
        time = NOON + timedelta(minutes=dice.randrange(48 * 60))
        lag = timedelta(minutes=dice.choice([0, 0, 0, 5, 300]))
        spend = dice.choice([None, 0.0, -0.0, math.nan, 1.5, 2.5])
        rows.append(user(dice.randrange(9), time, time + lag, spend=spend))
    goods = [
        item(dice.choice("abc"), NOON + timedelta(minutes=7 * i % 2880), price=float(i))
        for i in range(90)
    ]
    shop.write(rows, goods)
    with Store.open(shop.config) as store:
        for step in range(1, 60):
            if step == 30:
                shop.write(rows[::-1], goods[::-1])
            store.materialize(NOON + step * HOUR)
            if step % 13 == 0:
                now = NOON + step * HOUR
                asked = ask(list(range(9)), list("abcabcabc"))
                online = store.online_features("purchase", asked, request_time=now).table
                offline = store.point_in_time("purchase", at(asked, now))
                # As text: NaN is one value and 0.0 is not -0.0.
                assert str(online.select(offline.column_names).to_pylist()) == str(
                    offline.to_pylist()
                )
        report = store.audit("purchase")
        assert all(check.ok for check in report.checks if check.invariant == "I1"), report.to_text()


def test_on_demand_values_are_the_same_alone_in_a_batch_and_offline(shop):
    values = [None, 0.0, -0.0, math.nan, math.inf, -math.inf, 5e-324, 1.7e308]
    visits = [None, 1, 2**53 + 1, BIG, -(2**63) + 1, 0, -1, 7]
    shop.write(
        [
            user(n, NOON, spend=spend, visits=count, city=None if n % 3 else f"Zür{n}")
            for n, (spend, count) in enumerate(zip(values, visits, strict=True))
        ],
        [item("a", NOON, price=0.1), item("b", NOON, price=math.nan), item("c", NOON)],
    )
    asked = ask(list(range(8)), list("abcabcab"))
    with Store.open(shop.config) as store:
        store.materialize(NOON)
        batch = store.online_features("purchase", asked, request_time=NOON).table
        alone = pa.concat_tables(
            store.online_features("purchase", asked.slice(n, 1), request_time=NOON).table
            for n in range(8)
        )
        as_rows = store.online_features("purchase", asked.to_pylist(), request_time=NOON).table
        offline = store.training_set(at(asked, NOON), "purchase").table
    expected = [repr(row) for row in offline.drop_columns("event_timestamp").to_pylist()]
    for got in (batch, alone, as_rows):
        assert got.schema == batch.schema
        assert [repr(row) for row in got.to_pylist()] == expected
    assert batch["more_visits"].to_pylist()[2:4] == [2**53, BIG - 1]


def test_an_on_demand_result_that_does_not_fit_is_refused_by_name(shop):
    halves = 'inputs["visits"] if inputs["amount"][0] != 10 else inputs["visits"] + 0.5'
    shop.edit("features.py", 'inputs["visits"] - 1', halves)
    shop.write([user(1, NOON, visits=1)], [])
    with Store.open(shop.config) as store:
        store.apply()
        store.materialize(NOON)
        with pytest.raises(OnDemandError, match="'affinity', feature 'more_visits'") as caught:
            store.online_features("purchase", ask(), request_time=NOON)
    assert caught.value.feature == "more_visits"


def test_no_rows_are_a_typed_answer(shop):
    with Store.open(shop.config) as store:
        got = store.online_features("purchase", ask([], []))
        assert got.table.num_rows == 0
        built = store.training_set(at(ask(), NOON).slice(1), "purchase")
    assert built.table.select(got.features).schema == got.table.select(got.features).schema


def test_wrong_requests_name_service_and_column(shop):
    with Store.open(shop.config) as store:
        with pytest.raises(NotFoundError, match="did you mean purchase"):
            store.online_features("purchas", ask())
        with pytest.raises(EntityRowsError, match="'item_id' is missing"):
            store.online_features("purchase", ask().drop_columns("item_id"))
        with pytest.raises(EntityRowsError, match="'user_id' does not fit int64"):
            store.online_features("purchase", [{"user_id": "x", "item_id": "a", "amount": 1.0}])
        with pytest.raises(EntityRowsError, match="'amount' is missing"):
            store.online_features("purchase", [{"user_id": 1, "item_id": "a"}])
        with pytest.raises(NotFoundError, match="did you mean users"):
            store.materialize(NOON, views=["user"])


def test_a_pinned_contract_is_served_or_refused_with_both_hashes(shop):
    with Store.open(shop.config) as store:
        asked = store.contract("purchase").sha256
        assert store.online_features("purchase", ask(), contract=asked).contract == asked
        shop.edit("features.py", 'name="price", dtype=Float32', 'name="price", dtype=Float64')
        store.apply()
        served = store.contract("purchase").sha256
        with pytest.raises(ContractMismatchError) as caught:
            store.online_features("purchase", ask(), contract=asked)
        assert (caught.value.asked, caught.value.served) == (asked, served)
        assert '"float" became "double" (changes values)' in str(caught.value)
        with pytest.raises(ContractMismatchError, match="never applied"):
            store.online_features("purchase", ask(), contract="0" * 64)


def test_definitions_that_were_not_applied_are_refused(shop):
    shop.edit("features.py", 'inputs["visits"] - 1', 'inputs["visits"] - 2')
    with (
        Store.open(shop.config) as store,
        pytest.raises(DefinitionsError, match="run `steadfeast store apply`"),
    ):
        store.contract("purchase")


def test_a_repo_folder_without_feast_is_named(tmp_path):
    config = tmp_path / "steadfeast.yaml"
    config.write_text("store: {repo: nowhere, data: data}\n")
    with pytest.raises(ConfigError, match=r"feature_store\.yaml: is missing"):
        Store.open(config)


def test_features_of_one_name_are_served_under_their_views_names(shop):
    shop.edit("features.py", 'features=[users[["spend"]]]', "features=[users, doubled]")
    shop.edit(
        "features.py",
        "small = FeatureService",
        """doubled = FeatureView(
    name="doubled", entities=[item], schema=[Field(name="spend", dtype=Float32)],
    source=FileSource(path="data/sources/items.parquet", timestamp_field="at",
                      field_mapping={"price": "spend"}),
)
small = FeatureService""",
    )
    shop.write([user(1, NOON, spend=4.0)], [item("a", NOON, price=2.5)])
    with Store.open(shop.config) as store:
        store.apply()
        store.materialize(NOON)
        got = store.online_features("small", ask(), request_time=NOON).table
        built = store.training_set(at(ask(), NOON), "small").table
    for table in (got, built):
        assert table["users__spend"].to_pylist() == [4.0]
        assert table["doubled__spend"].to_pylist() == [2.5]
        assert "spend" not in table.column_names


def test_a_view_without_entities_has_one_row_for_everybody(shop):
    shop.edit(
        "features.py",
        'small = FeatureService(name="small", features=[users[["spend"]]])',
        """market = FeatureView(
    name="market", entities=[], schema=[Field(name="price", dtype=Float32)],
    source=FileSource(path="data/sources/items.parquet", timestamp_field="at"),
)
small = FeatureService(name="small", features=[users[["spend"]], market])""",
    )
    shop.write([], [item("a", NOON - HOUR, price=1.5), item("b", NOON, price=2.5)])
    with Store.open(shop.config) as store:
        store.apply()
        hidden = store.feast.list_feature_views(allow_cache=True)  # takes the dummy key away
        assert [view.entities for view in hidden if view.name == "market"] == [[]]
        store.materialize(NOON)
        got = store.online_features("small", ask([1, 2], "ab"), request_time=NOON).table
        offline = store.point_in_time("small", at(ask([1, 2], "ab"), NOON))
        report = store.audit("small")
    assert got["price"].to_pylist() == offline["price"].to_pylist() == [2.5, 2.5]
    assert [c.ok for c in report.checks if c.subject == "market"] == [True], report.to_text()


def test_a_service_without_any_entity_answers_each_row_asked_for(shop):
    shop.edit(
        "features.py",
        'small = FeatureService(name="small", features=[users[["spend"]]])',
        """market = FeatureView(
    name="market", entities=[], schema=[Field(name="price", dtype=Float32)],
    source=FileSource(path="data/sources/items.parquet", timestamp_field="at"),
)
small = FeatureService(name="small", features=[market])""",
    )
    shop.write([], [item("a", NOON - HOUR, price=1.5), item("b", NOON, price=2.5)])
    with Store.open(shop.config) as store:
        store.apply()
        store.materialize(NOON)
        for form, given in enumerate((pa.table({"x": [1, 2]}), {"x": [1, 2]}, [{"x": 1}, {}])):
            got = store.online_features("small", given, request_time=NOON)
            assert got.to_dict() == {"price": [2.5, 2.5]}
            ids = [f"r{form}", f"s{form}"]
            store.served.append("small", got, request_ids=ids, request_time=NOON)
        assert store.online_features("small", {}, request_time=NOON).rows == 0
        report = store.audit("small")
        assert [c.cells for c in report.checks if c.invariant == "I2"] == [6]
        assert report.ok, report.to_text()


def test_a_stream_writes_past_materialization(shop):
    shop.write([user(1, NOON, spend=4.0)], [])
    row = pa.Table.from_pylist([user(1, NOON + HOUR, spend=9.0)], shop.USERS)
    with Store.open(shop.config) as store:
        store.materialize(NOON)
        assert store.write_online("users", row) == 1
        got = store.online_features("small", ask(), request_time=NOON + HOUR)
        assert got.table["spend"].to_pylist() == [9.0]
        before = store.online_features("small", ask(), request_time=NOON)
        assert before.table["spend"].to_pylist() == [4.0]


def test_pandas_frames_are_entity_frames_too(shop):
    shop.write([user(1, NOON, spend=4.0)], [])
    frame = pd.DataFrame({"user_id": [1, 2], "event_timestamp": [NOON, NOON], "late": [0, 1]})
    with Store.open(shop.config) as store:
        built = store.training_set(frame, "small", label="late")
    assert built.to_pandas()["spend"].fillna(-1).tolist() == [4.0, -1.0]
    assert pq.read_table(built.path / "data.parquet").equals(built.table)


def test_a_source_of_another_width_is_rounded_alike_on_both_sides(shop):
    """Doubles in the file, declared Float32; an integer that does not fit is an error in both."""
    sources = shop.data / "sources"
    prices = {"a": 0.1, "b": 1e-50, "c": 16777217}
    rows = [item(name, NOON, price=price) for name, price in prices.items()]
    wide = shop.ITEMS.set(1, pa.field("price", pa.float64()))
    pq.write_table(pa.Table.from_pylist(rows, wide), sources / "items.parquet")
    asked = ask([1, 1, 1], "abc")
    with Store.open(shop.config) as store:
        store.materialize(NOON)
        online = store.online_features("purchase", asked, request_time=NOON).table["price"]
        offline = store.point_in_time("purchase", at(asked, NOON))["price"]
        assert online.type == offline.type == pa.float32()
        assert online.to_pylist() == offline.to_pylist() == [float(np.float32(0.1)), 0, 16777216]
        rows = [user(1, NOON, visits=2**63)]
        unsigned = shop.USERS.set(2, pa.field("visits", pa.uint64()))
        pq.write_table(pa.Table.from_pylist(rows, unsigned), sources / "users.parquet")
        with pytest.raises(UnsupportedTypeError, match="visits"):
            store.materialize(NOON + HOUR)
        with pytest.raises(UnsupportedTypeError, match="visits"):
            store.point_in_time("purchase", at(asked, NOON))
