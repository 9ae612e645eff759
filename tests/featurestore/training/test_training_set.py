"""Training sets: no leak, one content hash, the same bytes later or the reason why not."""

from __future__ import annotations

import json
import math
import random
import shutil
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steadfeast import Manifest, Store, TrainingSet
from steadfeast.featurestore.errors import (
    EntityRowsError,
    FutureKnowledgeError,
    ManifestError,
    NotFoundError,
    ReplayError,
)
from steadfeast.featurestore.offline import binding
from steadfeast.featurestore.tables.hashing import content_sha256, differs, profile

NOON = datetime(2024, 3, 10, 12, tzinfo=UTC)
HOUR, DAY, TICK = timedelta(hours=1), timedelta(days=1), timedelta(microseconds=1)


def user(number, at, written=None, **values):
    return {"user_id": number, "at": at, "written": written or at, **values}


def frame(*rows):
    return pa.table(
        {
            "user_id": pa.array([row[0] for row in rows], pa.int64()),
            "event_timestamp": pa.array([row[1] for row in rows], pa.timestamp("us", "UTC")),
            "late": pa.array(range(len(rows)), pa.int64()),
        }
    )


def test_each_row_sees_what_was_known_at_its_own_time(shop):
    shop.write(
        [
            user(1, NOON, spend=1.0),
            user(1, NOON, written=NOON + 2 * HOUR, spend=2.0),  # a correction
            user(1, NOON + 3 * HOUR, spend=3.0),
        ],
        [],
    )
    times = [NOON - TICK, NOON, NOON + 2 * HOUR - TICK, NOON + 2 * HOUR, NOON + 3 * HOUR]
    entities = frame(*((1, time) for time in times))
    with Store.open(shop.config) as store:
        built = store.training_set(entities, "small", label="late", as_known_at=times[-1])
    assert built.table["spend"].to_pylist() == [None, 1.0, 1.0, 2.0, 3.0]
    assert built.table.drop_columns("spend").equals(entities)
    assert (built.features, built.label, built.entities.num_rows) == (("spend",), "late", 5)


def test_the_manifest_says_what_it_was_made_of(shop):
    shop.write([user(1, NOON, spend=1.0), user(2, NOON, spend=math.nan)], [])
    with Store.open(shop.config) as store:
        built = store.training_set(frame((1, NOON), (2, NOON), (3, NOON)), "small", label="late")
        manifest = Manifest.load(built.path / "manifest.json")
        assert manifest == built.manifest
        assert manifest.contract == store.contract("small").sha256
        again = store.training_set(frame((1, NOON), (2, NOON), (3, NOON)), "small", label="late")
        other = store.training_set(frame((1, NOON), (3, NOON), (2, NOON)), "small", label="late")
    assert again.path == built.path == shop.data / "training" / manifest.id
    assert other.path != built.path
    assert sorted(path.name for path in built.path.iterdir()) == ["data.parquet", "manifest.json"]
    assert (manifest.rows, manifest.keys, manifest.label) == (3, ("user_id",), "late")
    assert manifest.sha256 == content_sha256(built.table)
    assert manifest.columns["spend"] == {
        "type": "double",
        "nulls": 1,
        "nans": 1,
        "min": 1.0,
        "max": 1.0,
        "mean": 1.0,
    }
    (source,) = manifest.sources
    assert (source["view"], source["path"]) == ("users", "data/sources/users.parquet")
    assert content_sha256(TrainingSet.load(built.path / "manifest.json").table) == manifest.sha256


def test_a_manifest_marks_personal_columns_and_holds_none_of_their_values():
    ages = profile(pa.table({"age": [41, 97], "spend": [1, 3]}), {"age"})
    assert ages["age"] == {"type": "int64", "nulls": 0, "pii": True}
    assert ages["spend"]["max"] == 3


def test_the_tags_of_the_definitions_reach_the_manifest(shop):
    shop.write([user(1, NOON, spend=1.0, city="Bern")], [])
    entities = (
        frame((1, NOON))
        .append_column("item_id", pa.array(["i"]))
        .append_column("amount", pa.array([1.0]))
    )
    with Store.open(shop.config) as store:
        columns = store.training_set(entities, "purchase", label="late").manifest.columns
    assert {name for name, facts in columns.items() if facts.get("pii")} >= {"city"}
    assert "pii" not in columns["spend"]


def test_a_tag_on_a_whole_view_is_one_on_each_feature_that_does_not_deny_it(shop):
    shop.edit("features.py", 'tags={"pii": "true"}', 'tags={"pii": "false"}')
    shop.edit("features.py", 'name="users",', 'name="users", tags={"pii": "true"},')
    shop.write([user(1, NOON - HOUR, spend=1.0, visits=2, city="Bern")], [])
    with Store.open(shop.config) as store:
        store.apply()
        entities = (
            frame((1, NOON))
            .append_column("item_id", pa.array(["i"]))
            .append_column("amount", pa.array([1.0]))
        )
        columns = store.training_set(entities, "purchase").manifest.columns
        described = binding.described(shop.folder, store.feast.get_feature_view("users"))
    personal = {name for name, one in columns.items() if one.get("pii")}
    assert {"spend", "visits"} <= personal
    assert not {"city", "user_id", "price"} & personal
    assert not {"min", "max", "mean"} & columns["spend"].keys()
    assert described["personal"] == ["spend", "visits"]


def test_rows_and_labels_after_the_knowledge_time_are_refused_with_their_number(shop):
    entities = frame((1, NOON), (1, NOON + TICK), (1, NOON + HOUR))
    with Store.open(shop.config) as store:
        with pytest.raises(FutureKnowledgeError, match=r"2 entity rows have 'event_timestamp'"):
            store.training_set(entities, "small", as_known_at=NOON)
        labelled = frame((1, NOON), (1, NOON)).append_column(
            "known_at", pa.array([NOON, NOON + DAY])
        )
        with pytest.raises(FutureKnowledgeError, match="1 entity row has 'known_at'") as caught:
            store.training_set(labelled, "small", as_known_at=NOON)
    assert (caught.value.column, caught.value.rows) == ("known_at", 1)


def test_wrong_entity_frames_are_refused_by_column(shop):
    entities = frame((1, NOON))
    wrong = [
        (entities.drop_columns("user_id"), "'user_id' is missing"),
        (entities.drop_columns("event_timestamp"), "'event_timestamp' is missing"),
        (entities.append_column("spend", [[1.0]]), "'spend' has the name of a feature"),
        (entities.set_column(0, "user_id", [["x"]]), "'user_id' is string and does not fit int64"),
        (frame((1, None)), "'event_timestamp' is null in 1 rows"),
    ]
    with Store.open(shop.config) as store:
        for table, problem in wrong:
            with pytest.raises(EntityRowsError, match=problem):
                store.training_set(table, "small")
        with pytest.raises(EntityRowsError, match="'y' is the label, and missing"):
            store.training_set(entities, "small", label="y")
        with pytest.raises(NotFoundError):
            store.training_set(entities, "smal")
    assert not (shop.data / "training").exists()


def test_a_manifest_replays_after_late_rows_backfills_and_other_orders(shop):
    """Whatever is added with a later created time, in whatever order the file ends up."""
    dice = random.Random(11)
    rows = [
        user(dice.randrange(5), time, time + dice.choice([0, 1, 90]) * HOUR, spend=dice.random())
        for time in (NOON + dice.randrange(72) * HOUR for _ in range(200))
    ]
    entities = frame(*((dice.randrange(6), NOON + dice.randrange(96) * HOUR) for _ in range(100)))
    shop.write(rows, [])
    with Store.open(shop.config) as store:
        built = store.training_set(entities, "small")
        for _ in range(5):
            late = [
                user(
                    dice.randrange(6), NOON + dice.randrange(96) * HOUR, NOON + 200 * HOUR, spend=9
                )
                for _ in range(50)
            ]
            rows = dice.sample(rows + late, len(rows) + len(late))
            shop.write(rows, [])
            assert store.replay(built.path / "manifest.json").equals(built.table)


def test_what_cannot_be_replayed_says_exactly_why(shop):
    shop.config.write_text("store: {repo: ., data: data, training: {pin: hash}}\n")
    shop.write([user(1, NOON, spend=1.0)], [])
    with Store.open(shop.config) as store:
        manifest = store.training_set(frame((1, NOON)), "small").path / "manifest.json"
        assert not (shop.data / "pins").exists()
        shop.write([user(1, NOON, spend=2.0)], [])
        with pytest.raises(
            ReplayError, match=r"users\.parquet of view users changed from .* nothing of it was"
        ) as caught:
            store.replay(manifest)
        assert len(caught.value.reasons) == 1
        shop.edit("features.py", "timedelta(days=1)", "timedelta(days=2)")
        store.apply()
        kept = shop.data / "contracts" / f"{Manifest.load(manifest).contract}.zip"
        kept.unlink()
    with Store.open(shop.config) as store:
        with pytest.raises(ReplayError, match="view users ttl_us: 86400000000 became"):
            store.replay(manifest)
        users = shop.data / "sources" / "users.parquet"
        users.write_bytes(b"PAR1")
        with pytest.raises(ReplayError, match=r"users\.parquet: "):
            store.replay(manifest)
        users.unlink()
        with pytest.raises(ReplayError, match=r"users\.parquet of view users is gone"):
            store.replay(manifest)


def test_altered_training_data_is_not_loaded(shop):
    with Store.open(shop.config) as store:
        built = store.training_set(frame((1, NOON)), "small")
        other = store.training_set(frame((2, NOON)), "small")
    path = built.path / "manifest.json"
    shutil.copy(other.path / "data.parquet", built.path)
    with pytest.raises(ManifestError, match=f"not {built.manifest.sha256}"):
        TrainingSet.load(path)
    (built.path / "data.parquet").unlink()
    with pytest.raises(ManifestError, match=r"data\.parquet cannot be read"):
        TrainingSet.load(path)
    raw = json.loads(path.read_text())
    for text, problem in (
        ("{", "is not JSON"),
        (json.dumps({**raw, "extra": 1}), "fields at fault: extra"),
        ("[]", "is not a manifest"),
    ):
        path.write_text(text)
        with pytest.raises(ManifestError, match=problem):
            Manifest.load(path)
    with pytest.raises(ManifestError, match="cannot be read"):
        Manifest.load(path.with_name("none.json"))


TYPES = {
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float64(): st.floats(),
    pa.float32(): st.floats(width=32),
    pa.string(): st.text(max_size=5),
    pa.binary(): st.binary(max_size=5),
    pa.bool_(): st.booleans(),
    pa.timestamp("us", "UTC"): st.integers(-(2**55), 2**57),
    pa.date32(): st.integers(-1000, 1000),
    pa.decimal128(10, 2): st.integers(-999, 999).map(lambda cents: Decimal(cents) / 100),
    pa.list_(pa.float64()): st.lists(st.none() | st.floats(), max_size=3),
    pa.struct([("a", pa.int32()), ("b", pa.string())]): st.fixed_dictionaries(
        {"a": st.none() | st.integers(-9, 9), "b": st.none() | st.text(max_size=2)}
    ),
    pa.map_(pa.string(), pa.int64()): st.lists(
        st.tuples(st.text(max_size=2), st.none() | st.integers(-9, 9)), max_size=2
    ),
}


@st.composite
def columns(draw):
    kind = draw(st.sampled_from(list(TYPES)))
    return kind, draw(st.lists(st.none() | TYPES[kind], max_size=8))


def bits(value):
    """An oracle: text that tells null, NaN, -0.0 and types apart, and one NaN from no other."""
    return repr(value)


@settings(max_examples=150)
@given(columns(), st.data())
def test_content_hash_is_of_the_cells_and_not_of_how_they_are_held(column, data):
    kind, values = column
    array = pa.array(values, kind)
    cut = data.draw(st.integers(0, len(values)))
    padded = pa.concat_arrays([pa.nulls(3, kind), array, pa.nulls(2, kind)]).slice(3, len(values))
    chunked = pa.chunked_array([array.slice(0, cut), array.slice(cut)], kind)
    hashes = {content_sha256(pa.table({"x": held})) for held in (array, padded, chunked)}
    assert len(hashes) == 1
    changed = list(values)
    if values:
        place = data.draw(st.integers(0, len(values) - 1))
        changed[place] = data.draw(st.none() | TYPES[kind])
    other = pa.array(changed, kind)
    same = [bits(v) for v in other.to_pylist()] == [bits(v) for v in array.to_pylist()]
    assert (content_sha256(pa.table({"x": other})) in hashes) == same
    expected = [
        i
        for i, (a, b) in enumerate(zip(array.to_pylist(), other.to_pylist(), strict=True))
        if bits(a) != bits(b)
    ]
    assert differs(pa.chunked_array([array]), pa.chunked_array([other])).tolist() == expected
    assert content_sha256(pa.table({"y": array})) not in hashes


def test_nan_is_one_value_and_null_hides_nothing():
    odd = np.array([0x7FF8000000000001, 0xFFF8000000000000], np.uint64).view(np.float64)
    plain = pa.table({"x": [math.nan, math.nan]})
    assert content_sha256(pa.table({"x": odd})) == content_sha256(plain)
    null = pa.table({"x": pa.nulls(2, pa.float64())})
    assert content_sha256(null) != content_sha256(plain)
    mask = np.array([False, True])
    hidden = (pa.array([1, left], pa.int64(), mask=mask) for left in (2, 3))
    assert len({content_sha256(pa.table({"x": column})) for column in hidden}) == 1


def test_profile_leaves_nan_out_of_the_figures():
    nothing = pa.nulls(3, pa.int64())
    facts = profile(pa.table({"x": [1.0, math.nan, None], "n": nothing, "s": ["a", None, "b"]}))
    assert facts["x"] == {"type": "double", "nulls": 1, "nans": 1, "min": 1, "max": 1, "mean": 1}
    assert facts["n"] == {"type": "int64", "nulls": 3, "min": None, "max": None, "mean": None}
    assert facts["s"] == {"type": "string", "nulls": 1}
