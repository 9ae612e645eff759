"""What a training set read is kept: it replays whatever becomes of the sources."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from steadfeast import Manifest, Store
from steadfeast.featurestore.errors import ReplayError
from steadfeast.featurestore.tables.hashing import content_sha256, hash_file

NOON = datetime(2024, 3, 10, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
few = settings(
    max_examples=8,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def user(number, at, written=None, **values):
    return {"user_id": number, "at": at, "written": written or at, **values}


def asked(users, time):
    return pa.table(
        {
            "user_id": pa.array(users, pa.int64()),
            "item_id": pa.array(["ab"[n % 2] for n in users]),
            "amount": [1.0] * len(users),
            "event_timestamp": pa.array([time] * len(users)),
        }
    )


moments = st.integers(0, 40).map(lambda hours: NOON + hours * HOUR)
lags = st.sampled_from([timedelta(0), HOUR, 30 * HOUR])
values = st.sampled_from([None, 0.0, -0.0, float("nan"), 2.5])
rows = st.lists(
    st.builds(
        lambda n, at, lag, spend: user(n, at, at + lag, spend=spend, city=str(spend)),
        st.integers(1, 3), moments, lags, values,
    ),
    max_size=12,
)  # fmt: skip


def rewritten(shop, others):
    shop.write(others, [{"item_id": "a", "at": NOON, "price": 9.0}])


def shortened(shop, _):
    for path in (shop.data / "sources").iterdir():
        pq.write_table(pq.read_table(path).slice(0, 1), path)


def cut_in_two(shop, _):
    for path in (shop.data / "sources").iterdir():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def deleted(shop, _):
    shutil.rmtree(shop.data / "sources")


def other_columns(shop, _):
    for path in (shop.data / "sources").iterdir():
        pq.write_table(pa.table({"at": [NOON]}), path)


@few
@given(
    history=rows,
    others=rows,
    times=st.lists(moments, min_size=1, max_size=4),
    harm=st.sampled_from([rewritten, shortened, cut_in_two, deleted, other_columns]),
)
def test_a_training_set_replays_to_the_byte_whatever_is_done_to_its_sources(
    shop, history, others, times, harm
):
    entities = pa.concat_tables([asked([1, 2, 3], time) for time in times])
    shop.write(history, [{"item_id": "b", "at": NOON, "price": 1.5}])
    with Store.open(shop.config) as store:
        built = store.training_set(entities, "purchase")
        plain = store.point_in_time("purchase", entities)
        assert content_sha256(built.table.select(plain.column_names)) == content_sha256(plain)
        harm(shop, others)
        replayed = store.replay(built.path / "manifest.json")
        assert content_sha256(replayed) == built.manifest.sha256


def test_a_pin_holds_what_was_used_and_is_shared(shop):
    """One row per entity row at most, of the columns of the view; equal ones are one file."""
    shop.write([user(n, NOON + h * HOUR) for n in range(50) for h in range(40)], [])
    with Store.open(shop.config) as store:
        one = store.training_set(asked([1, 2], NOON + 5 * HOUR), "small")
        again = store.training_set(asked([1, 2], NOON + 5 * HOUR), "small")
        labelled = asked([1, 2], NOON + 5 * HOUR).append_column("label", [[0.0, 1.0]])
        other = store.training_set(labelled, "small", label="label")
    assert one.path == again.path != other.path
    assert one.manifest.pins == other.manifest.pins
    (path,) = (shop.data / "pins").iterdir()
    assert path.name == f"{hash_file(path)}.parquet"
    held = pq.read_table(path)
    assert held.column_names == ["user_id", "at", "city", "spend", "visits", "written"]
    assert held["at"].to_pylist() == [NOON + 5 * HOUR] * 2
    assert one.manifest.pins["users"] == {
        "sha256": path.stem,
        "rows": 2,
        "bytes": path.stat().st_size,
    }


def test_a_source_of_any_types_is_pinned_as_it_is(shop):
    """Nanoseconds with a zone, as pandas writes them, mapped names, and a folder of partitions."""
    shop.edit("features.py", 'path="data/sources/users.parquet"', 'path="data/sources/days"')
    mapping = 'field_mapping={"paid": "spend", "who": "user_id"}, '
    shop.edit("features.py", "created_timestamp_column", f"{mapping}created_timestamp_column")
    at = pd.to_datetime([NOON, NOON + HOUR], utc=True).astype("datetime64[ns, UTC]")
    frame = pd.DataFrame({"who": [1, 2], "paid": [1.5, None], "visits": [1, None], "at": at})
    frame = frame.assign(city=["x", None], written=at + pd.Timedelta(1, "ns"))
    for name, part in (("2024-03-10", frame[:1]), ("2024-03-11", frame[1:])):
        folder = shop.data / "sources" / "days" / f"day={name}"
        folder.mkdir(parents=True)
        part.to_parquet(folder / "part.parquet")
    with Store.open(shop.config) as store:
        store.apply()
        entities = asked([1, 2], NOON + 2 * HOUR)
        built = store.training_set(entities, "purchase")
        assert built.table["spend"].to_pylist() == [1.5, None]
        deleted(shop, None)
        assert store.replay(built.path / "manifest.json").equals(built.table)


def test_what_is_gone_is_said_by_name(shop):
    shop.write([user(1, NOON, spend=1.0)], [])
    with Store.open(shop.config) as store:
        built = store.training_set(asked([1], NOON), "small")
        manifest = built.path / "manifest.json"
        (pin,) = (shop.data / "pins").iterdir()
        whole = pin.read_bytes()
        pin.write_bytes(whole[:-1] + b"0")
        assert store.replay(manifest).equals(built.table)  # the source is as it was
        shop.write([user(1, NOON, spend=2.0)], [])
        problem = rf"users\.parquet of view users changed .* its pin {pin.stem[:16]} is gone or al"
        with pytest.raises(ReplayError, match=problem) as caught:
            store.replay(manifest)
        assert caught.value.id == built.manifest.id
        pin.unlink()
        with pytest.raises(ReplayError, match=problem):
            store.replay(manifest)
        pin.write_bytes(whole)
        assert store.replay(manifest).equals(built.table)


def test_a_source_that_was_written_while_it_was_hashed_is_read_from_its_pin(shop):
    """The manifest then holds the hash of what came after; the content decides."""
    shop.write([user(1, NOON, spend=1.0)], [])
    with Store.open(shop.config) as store:
        built = store.training_set(asked([1], NOON), "small")
        shop.write([user(1, NOON, spend=2.0)], [])
        manifest = built.path / "manifest.json"
        raw = json.loads(manifest.read_text())
        raw["sources"][0]["sha256"] = hash_file(shop.data / "sources" / "users.parquet")
        manifest.write_text(json.dumps(raw))
        assert store.replay(manifest).equals(built.table)


def test_a_manifest_of_before_pins_is_read(shop):
    with Store.open(shop.config) as store:
        path = store.training_set(asked([1], NOON), "small").path / "manifest.json"
        raw = json.loads(path.read_text())
        del raw["pins"]
        path.write_text(json.dumps(raw))
        assert Manifest.load(path).pins == {}
        assert store.replay(path).num_rows == 1
