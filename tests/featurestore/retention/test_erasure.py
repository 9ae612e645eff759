"""What goes on purpose: a person's data at once, old files when somebody asks, and what is said."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from steadfeast import Store, TrainingSet
from steadfeast.featurestore import cli
from steadfeast.featurestore.errors import DamagedFilesError, ErasedError, ReplayError
from steadfeast.featurestore.tables.hashing import content_sha256

NOON = datetime(2024, 3, 10, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
WHO = 987_654_321


def user(number, at, **values):
    return {"user_id": number, "at": at, "written": at, **values}


def asked(*users, item="a"):
    return pa.table(
        {
            "user_id": pa.array(users, pa.int64()),
            "item_id": [item] * len(users),
            "amount": [1.0] * len(users),
        }
    )


def at(rows, time_):
    return rows.append_column("event_timestamp", pa.array([time_] * rows.num_rows))


@pytest.fixture
def store(shop):
    users = [user(n, NOON - HOUR, spend=float(n), city=f"city of {n}") for n in (1, 2, WHO)]
    shop.write(users, [{"item_id": "a", "at": NOON - DAY, "price": 2.0}])
    with Store.open(shop.config) as opened:
        opened.materialize(NOON)
        yield opened


def serve(store, users, moment=NOON, prefix="r"):
    got = store.online_features("purchase", asked(*users), request_time=moment)
    ids = [f"{prefix}{n}" for n in users]
    store.served.append("purchase", got, request_ids=ids, request_time=moment, model="m")
    store.served.append_labels("purchase", ids, [0.0] * len(ids), moment + HOUR)
    store.served.flush()


def everything(shop):
    """All bytes under the data folder but the sources and what Feast and SQLite keep."""
    for path in sorted(shop.data.rglob("*")):
        if path.is_file() and path.relative_to(shop.data).parts[0] != "sources":
            if path.suffix == ".parquet":
                for column in pq.read_table(path, partitioning=None).columns:
                    yield str(column.to_pylist())
            elif path.suffix in (".json", ".jsonl"):
                yield path.read_text()


def test_an_erased_entity_is_nowhere_and_what_held_it_says_so_by_name(shop, store):
    mine = store.training_set(at(asked(1, WHO, 2), NOON), "purchase")
    again = store.training_set(at(asked(WHO), NOON + HOUR), "small")
    others = store.training_set(at(asked(1, 2), NOON), "purchase")
    serve(store, [1, WHO, 2])
    assert any(str(WHO) in held for held in everything(shop))
    done = store.erase([{"user_id": str(WHO)}], apply=True)
    assert done.online == {"users": 1}
    assert done.training_sets == {mine.manifest.id: 1, again.manifest.id: 1}
    assert done.served == {"purchase": 1}
    assert done.pins == 2
    assert done.applied
    assert not any(str(WHO) in held for held in everything(shop))
    for built in (mine, again):
        for read in (store.replay, TrainingSet.load):
            with pytest.raises(ErasedError, match="1 row was erased from it at ") as caught:
                read(built.path / "manifest.json")
            error = caught.value
            assert (error.id, error.erasure, error.rows) == (built.manifest.id, done.id, 1)
            assert error.at == done.at
            assert str(WHO) not in str(error)
    assert store.replay(others.path / "manifest.json").equals(others.table)
    labels = [pq.read_table(p) for p in (shop.data / "labels" / "purchase").glob("*.parquet")]
    assert pa.concat_tables(labels)["request_id"].to_pylist() == ["r1", "r2"]
    checks = {check.invariant: check for check in store.audit("purchase").checks}
    assert checks["I2"].ok
    assert checks["I11"].ok
    assert store.erase([{"user_id": WHO}], apply=True).training_sets == {}


def contents(shop):
    """Every file under the data folder, by its bytes."""
    return {path: path.read_bytes() for path in shop.data.rglob("*") if path.is_file()}


def test_what_would_go_is_what_goes_and_nothing_goes_before(shop, store):
    store.training_set(at(asked(1, WHO, 2), NOON), "purchase")
    serve(store, [1, WHO, 2])
    half = shop.data / "training" / ".set.1.half"
    half.mkdir()
    (half / "data.parquet").write_bytes(b"")
    before = contents(shop)
    would = store.erase([{"user_id": WHO}])
    assert contents(shop) == before
    assert (would.applied, would.id) == (False, "")
    done = store.erase([{"user_id": WHO}], apply=True)
    said = [{**one.as_dict(), "id": 0, "at": 0, "applied": 0} for one in (would, done)]
    assert said[0] == said[1]
    assert (done.half_files, done.pins, done.served) == (1, 1, {"purchase": 1})
    assert not half.exists()
    assert (
        store.online_features("small", asked(WHO), request_time=NOON).table["spend"][0].as_py()
        is None
    )


def test_what_a_killed_writer_left_is_reached(shop, store):
    """A pin whose training set was never written, a half one, and half a file of the log."""
    built = store.training_set(at(asked(1, WHO), NOON), "purchase")
    for path in built.path.iterdir():
        path.unlink()
    built.path.rmdir()
    pins = list((shop.data / "pins").glob("*.parquet"))
    mine = [pin for pin in pins if str(WHO) in str(pq.read_table(pin).to_pydict())]
    assert len(mine) == 1
    (shop.data / "served" / "purchase").mkdir(parents=True)
    halves = [
        shop.data / "pins" / ".users.1.half",
        shop.data / "served/purchase/.1-2-3.parquet.half",
    ]
    for half in halves:
        half.write_bytes(mine[0].read_bytes())
    done = store.erase([{"user_id": WHO}], apply=True)
    assert (done.pins, done.half_files) == (1, 2)
    assert not any(path.exists() for path in (*mine, *halves))
    assert set((shop.data / "pins").glob("*.parquet")) == set(pins) - set(mine)


@pytest.mark.parametrize("kind", ["training", "pins", "served", "labels", "predictions"])
def test_where_a_file_is_damaged_nothing_goes_and_it_is_named(shop, store, kind):
    store.training_set(at(asked(1, WHO, 2), NOON), "purchase")
    serve(store, [1, WHO, 2])
    given = {"request_time": NOON, "model": "m", "model_version": "2"}
    store.served.append_predictions("purchase", [f"r{WHO}"], [0.25], **given)
    store.served.flush()
    path = max((shop.data / kind).glob("**/[!.]*.parquet"))
    path.write_bytes(path.read_bytes()[:100])
    before = contents(shop)
    for apply in (False, True):
        with pytest.raises(DamagedFilesError, match=f"{path.name}: truncated or damaged"):
            store.erase([{"user_id": WHO}], apply=apply)
    assert contents(shop) == before
    read = store.online_features("small", asked(WHO), request_time=NOON).table
    assert read["spend"].to_pylist() == [WHO]


def test_what_other_versions_said_of_a_request_goes_with_it(shop, store):
    serve(store, [1, WHO])
    given = {"request_time": NOON, "model": "m", "model_version": "2"}
    store.served.append_predictions("purchase", ["r1", f"r{WHO}"], [0.5, 0.25], **given)
    store.erase([{"user_id": WHO}], apply=True)
    (path,) = (shop.data / "predictions" / "purchase").glob("*.parquet")
    assert pq.read_table(path, partitioning=None)["request_id"].to_pylist() == ["r1"]
    assert store.audit("purchase").checks[-1].ok


def test_every_row_with_the_keys_that_are_given_goes_and_no_other(store):
    rows = pa.concat_tables([asked(1, 2, item="a"), asked(1, item="b")])
    built = store.training_set(at(rows, NOON), "purchase")
    assert store.erase([{"item_id": "b"}], apply=True).training_sets == {built.manifest.id: 1}
    left = pq.read_table(built.path / "data.parquet", partitioning=None)
    assert left["item_id"].to_pylist() == ["a", "a"]
    only = store.erase([{"user_id": 1}], views=["users"], apply=True)
    assert (only.online, only.training_sets) == ({"users": 1}, {})


def test_aliases_and_mapped_names_are_known_from_the_contract(shop):
    mapping = 'field_mapping={"who": "user_id"}, '
    shop.edit("features.py", "created_timestamp_column", f"{mapping}created_timestamp_column")
    spend = 'users[["spend"]]'
    shop.edit("features.py", spend, f'{spend}.with_join_key_map({{"user_id": "buyer"}})')
    table = pa.Table.from_pylist([user(WHO, NOON, spend=1.0), user(2, NOON)], shop.USERS)
    names = ["who" if name == "user_id" else name for name in table.column_names]
    pq.write_table(table.rename_columns(names), shop.data / "sources" / "users.parquet")
    with Store.open(shop.config) as store:
        store.apply()
        frame = pa.table({"buyer": [WHO, 2], "event_timestamp": [NOON, NOON]})
        built = store.training_set(frame, "small")
        (pin,) = (shop.data / "pins").iterdir()
        assert pq.read_table(pin)["who"].to_pylist() == [2, WHO]
        done = store.erase([{"user_id": WHO}], apply=True)
        assert (done.training_sets, done.pins) == ({built.manifest.id: 1}, 1)
        assert not pin.exists()


def older(path, days):
    """Let a training set be from `days` ago."""
    raw = json.loads(path.read_text())
    raw["created_at"] = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    path.write_text(json.dumps(raw))


def test_nothing_is_collected_that_a_training_set_needs(shop, store):
    built = store.training_set(at(asked(1), NOON), "small")
    assert store.collect_garbage(apply=True).files == ()
    (pin,) = (shop.data / "pins").iterdir()
    for path in built.path.iterdir():
        path.unlink()
    assert store.collect_garbage(apply=True).files == ()  # it may be of a set that is being built
    long_ago = time.time() - 7200
    os.utime(pin, (long_ago, long_ago))
    (found,) = store.collect_garbage().files
    assert found == (f"pins/{pin.name}", pin.stat().st_size, "no training set needs it")
    assert pin.exists()
    store.collect_garbage(apply=True)
    assert not pin.exists()


def test_old_pins_go_when_asked_and_what_depended_on_them_is_named(shop, store):
    stays = store.training_set(at(asked(1), NOON), "small")
    sources = store.training_set(at(asked(2), NOON), "small")
    items = store.training_set(at(asked(1), NOON), "purchase")
    for built in (sources, items):
        older(built.path / "manifest.json", 100)
    dry = store.collect_garbage(older_than=timedelta(days=90))
    shared = stays.manifest.pins["users"]["sha256"]
    assert shared == items.manifest.pins["users"]["sha256"]
    assert len(dry.files) == 2  # of the three, one is shared with a young set
    assert not any(shared in path for path, _, _ in dry.files)
    assert dry.unreplayable == {}
    assert set(dry.losing) == {sources.manifest.id, items.manifest.id}
    users = pq.read_table(shop.data / "sources" / "users.parquet")
    shop.write([user(1, NOON - HOUR, spend=7.0), user(2, NOON - HOUR, spend=7.0)], [])
    words = ["store", "gc", "--older-than", "90d", "-c", str(shop.config)]
    told = CliRunner().invoke(cli.app, words)
    assert told.exit_code == 0, told.output
    assert f"training set {sources.manifest.id} cannot be replayed without its pins" in told.output
    assert "add --apply to remove them" in told.output
    assert store.replay(sources.path / "manifest.json").equals(sources.table)
    applied = CliRunner().invoke(cli.app, [*words, "--apply", "--json"])
    assert set(json.loads(applied.output)["unreplayable"]) == {
        sources.manifest.id,
        items.manifest.id,
    }
    with pytest.raises(ReplayError, match=r"users\.parquet .* changed .* was collected at 20"):
        store.replay(sources.path / "manifest.json")
    assert store.replay(stays.path / "manifest.json").equals(stays.table)
    pq.write_table(users, shop.data / "sources" / "users.parquet")
    assert content_sha256(store.replay(sources.path / "manifest.json")) == sources.manifest.sha256
    assert store.collect_garbage(older_than=timedelta(days=90)).files == ()


def test_old_files_of_the_log_go_and_the_rest_is_still_complete(shop, store):
    now = datetime.now(UTC)
    for days in (400, 399, 398, 1):
        serve(store, [1, 2], now - days * DAY, prefix=f"{days}-")
    files = sorted((shop.data / "served" / "purchase").glob("*.parquet"))
    assert len(files) == 4
    found = store.collect_garbage(older_than=timedelta(days=300), apply=True)
    assert len([path for path, _, _ in found.files if path.startswith("served/")]) == 3
    assert len([path for path, _, _ in found.files if path.startswith("labels/")]) == 3
    assert [path for path in files if path.exists()] == files[3:]
    serve(store, [1], now, prefix="new")
    check = next(c for c in store.audit("purchase").checks if c.invariant == "I11")
    assert check.ok
    assert (check.cells, check.note) == (3, "6 more were collected")
    files[3].unlink()  # this one nobody collected
    check = next(c for c in store.audit("purchase").checks if c.invariant == "I11")
    assert check.mismatches == {"lost": 2}


def test_an_age_that_cannot_be_read_is_one_message(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["steadfeast", "store", "gc", "--older-than", "soon"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert "'soon' is not a duration" in capsys.readouterr().err
